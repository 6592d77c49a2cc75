//! The keys that the auth server signs with (its JWKS), fetched when a token names one that is not cached.
//!
//! Anybody can send a token that names an unknown key, so fetches are at least a minute apart, and concurrent callers
//! share one. When a fetch fails, the cached keys stay valid.

use std::collections::BTreeMap;
use std::error::Error as _;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use chrono::{DateTime, TimeDelta, Utc};
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey};
use reqwest::StatusCode;
use reqwest::header::ACCEPT;
use reqwest::redirect::Policy;
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::Mutex;

use super::error::Error;
use crate::clock::Clock;

/// Between two fetches.
const PAUSE: TimeDelta = TimeDelta::minutes(1);

/// Between two fetches while no key is cached, so that an auth server that starts later is found soon.
const PAUSE_WITHOUT_KEYS: TimeDelta = TimeDelta::seconds(1);

/// After this the keys are fetched again, so that a withdrawn key is not accepted forever.
const LIFETIME: TimeDelta = TimeDelta::minutes(10);

/// How long a fetch may take.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The largest response that is read, in bytes.
const SIZE_MAX: usize = 256 * 1024;

/// The auth server's keys.
#[derive(Debug)]
pub(super) struct Jwks {
    url: String,
    client: reqwest::Client,
    clock: Clock,
    cached: ArcSwap<Cached>,
    /// Held during a fetch.
    fetching: Mutex<()>,
}

/// A public key, and the only algorithm that it is used with; a token's own choice of algorithm is ignored.
#[derive(Debug)]
pub(super) struct Key {
    pub(super) algorithm: Algorithm,
    pub(super) public: DecodingKey,
}

/// By key id (`kid`).
type Keys = BTreeMap<String, Arc<Key>>;

/// The result of the last fetches.
#[derive(Debug, Clone, Default)]
struct Cached {
    keys: Keys,
    fetched_at: Option<DateTime<Utc>>,
    /// When the last fetch ended, successful or not.
    tried_at: Option<DateTime<Utc>>,
    /// Why the last fetch failed, if it did.
    failure: Option<String>,
}

impl Cached {
    fn may_fetch(&self, now: DateTime<Utc>) -> bool {
        let pause = if self.keys.is_empty() {
            PAUSE_WITHOUT_KEYS
        } else {
            PAUSE
        };
        !within(pause, self.tried_at, now)
    }

    fn is_stale(&self, now: DateTime<Utc>) -> bool {
        !within(LIFETIME, self.fetched_at, now) && self.may_fetch(now)
    }
}

/// Whether less than this has passed since `at`. A clock that was set back must not extend a lifetime.
fn within(lifetime: TimeDelta, at: Option<DateTime<Utc>>, now: DateTime<Utc>) -> bool {
    at.is_some_and(|at| (TimeDelta::zero()..lifetime).contains(&(now - at)))
}

impl Jwks {
    /// Creates a handle without keys.
    pub(super) fn new(url: String, clock: Clock) -> Result<Self, reqwest::Error> {
        // The request goes to the configured URL only: no redirects, no proxy.
        let client = reqwest::Client::builder()
            .redirect(Policy::none())
            .no_proxy()
            .timeout(TIMEOUT)
            .build()?;
        Ok(Self {
            url,
            client,
            clock,
            cached: ArcSwap::default(),
            fetching: Mutex::default(),
        })
    }

    /// The key with this id. None if the auth server has no such key; an error if that cannot be determined.
    pub(super) async fn key(self: &Arc<Self>, id: &str) -> Result<Option<Arc<Key>>, Error> {
        let cached = self.cached.load_full();
        if let Some(key) = cached.keys.get(id)
            // During a fetch the stale key is used.
            && (!cached.is_stale(self.clock.now()) || self.fetching.try_lock().is_err())
        {
            return Ok(Some(Arc::clone(key)));
        }
        let jwks = Arc::clone(self);
        #[expect(
            clippy::disallowed_methods,
            reason = "it ends by itself, and a cancelled caller must not end it for the others"
        )]
        let fetch = tokio::spawn(async move { jwks.fetch(&cached).await });
        // After a panic the cached keys are unchanged.
        let _ = fetch.await;
        let cached = self.cached.load();
        match (cached.keys.get(id), &cached.failure) {
            (Some(key), _) => Ok(Some(Arc::clone(key))),
            (None, Some(failure)) => Err(Error::AuthServer(failure.clone())),
            (None, None) => Ok(None),
        }
    }

    /// Fetches the keys, unless it is too early, or another caller has fetched them since they were `seen`.
    async fn fetch(&self, seen: &Arc<Cached>) {
        let _guard = self.fetching.lock().await;
        let current = self.cached.load_full();
        // A caller that waited for another's fetch uses its result, however long it took.
        if !Arc::ptr_eq(&current, seen) || !current.may_fetch(self.clock.now()) {
            return;
        }
        let mut cached = Cached::clone(&current);
        let downloaded = self.download().await;
        let now = self.clock.now();
        cached.tried_at = Some(now);
        cached.failure = None;
        match downloaded {
            Ok(keys) => {
                cached.keys = keys;
                cached.fetched_at = Some(now);
            }
            Err(error) => {
                tracing::warn!(error, "cannot fetch the keys of the auth server");
                cached.failure = Some(error);
            }
        }
        self.cached.store(Arc::new(cached));
    }

    async fn download(&self) -> Result<Keys, String> {
        let request = self
            .client
            .get(&self.url)
            .header(ACCEPT, "application/json");
        let mut response = request.send().await.map_err(|error| root_cause(&error))?;
        if response.status() != StatusCode::OK {
            return Err(format!("it responds with {}", response.status()));
        }
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| root_cause(&error))? {
            if body.len() + chunk.len() > SIZE_MAX {
                return Err(format!("its response is larger than {SIZE_MAX} bytes"));
            }
            body.extend_from_slice(&chunk);
        }
        parse(&body).map_err(|error| format!("its response is not a JWKS: {error}"))
    }
}

/// The innermost cause. The outer errors repeat the URL, which may hold a secret.
fn root_cause(error: &reqwest::Error) -> String {
    let mut cause = error.source();
    while let Some(deeper) = cause.and_then(std::error::Error::source) {
        cause = Some(deeper);
    }
    cause.map_or_else(|| "the request failed".to_owned(), ToString::to_string)
}

/// Every key that can verify a token; other keys of the set are ignored.
fn parse(body: &[u8]) -> Result<Keys, serde_json::Error> {
    #[derive(Deserialize)]
    struct Set {
        keys: Vec<Value>,
    }
    let set: Set = serde_json::from_slice(body)?;
    let keys = set.keys.into_iter().filter_map(|key| {
        let jwk: Jwk = serde_json::from_value(key).ok()?;
        let id = jwk.common.key_id.clone()?;
        Some((id, Arc::new(verifying_key(&jwk)?)))
    });
    Ok(keys.collect())
}

fn verifying_key(jwk: &Jwk) -> Option<Key> {
    let algorithm = match &jwk.algorithm {
        AlgorithmParameters::OctetKeyPair(it) if it.curve == EllipticCurve::Ed25519 => {
            Algorithm::EdDSA
        }
        AlgorithmParameters::EllipticCurve(it) if it.curve == EllipticCurve::P256 => {
            Algorithm::ES256
        }
        AlgorithmParameters::RSA(_) => Algorithm::RS256,
        _ => return None,
    };
    let common = &jwk.common;
    let (declared, uses) = (&common.key_algorithm, &common.public_key_use);
    let suitable = declared.is_none_or(|it| it == KeyAlgorithm::from(algorithm))
        && uses
            .as_ref()
            .is_none_or(|it| *it == PublicKeyUse::Signature);
    let public = DecodingKey::from_jwk(jwk).ok()?;
    suitable.then_some(Key { algorithm, public })
}
