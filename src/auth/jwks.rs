//! The keys that the auth server signs with (its JWKS): fetched when one is needed that is not here.
//!
//! Whoever sends an unknown key's name can make us fetch, so that happens once a minute at most, and only one
//! fetch runs at a time, whose outcome all who wait for it share. A fetch that fails leaves the keys that are here in
//! force.

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

use super::Error;
use crate::clock::Clock;

/// From the end of a fetch to the next.
const PAUSE: TimeDelta = TimeDelta::minutes(1);

/// The same while there are no keys, so that an auth server that starts later is soon heard.
const PAUSE_WITHOUT_KEYS: TimeDelta = TimeDelta::seconds(1);

/// After this long the keys are fetched again, so that one that was withdrawn is not accepted for ever.
const LIFETIME: TimeDelta = TimeDelta::minutes(10);

/// How long a fetch may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// The largest answer that is read, bytes.
const SIZE_MAX: usize = 256 * 1024;

/// The handle on the keys; clones share them.
#[derive(Debug, Clone)]
pub(super) struct Jwks(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    url: String,
    client: reqwest::Client,
    clock: Clock,
    known: ArcSwap<Known>,
    /// Held by whoever fetches.
    turn: Mutex<()>,
}

/// A public key, and the one algorithm that it is for. What a token says of its algorithm decides nothing.
#[derive(Debug)]
pub(super) struct Key {
    pub(super) algorithm: Algorithm,
    pub(super) public: DecodingKey,
}

/// Why there are no keys.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("{}", innermost(.0))]
    Request(#[from] reqwest::Error),
    #[error("the auth server answers {0}")]
    Status(StatusCode),
    #[error("the answer is larger than {SIZE_MAX} bytes")]
    TooLarge,
    #[error("the answer is no JWKS: {0}")]
    NoJwks(#[from] serde_json::Error),
}

/// What is at the bottom of it. The rest repeats the URL, which may hold what the log must not.
fn innermost(error: &reqwest::Error) -> String {
    let mut cause = error.source();
    while let Some(deeper) = cause.and_then(std::error::Error::source) {
        cause = Some(deeper);
    }
    cause.map_or_else(|| "the request failed".to_owned(), ToString::to_string)
}

/// What the last fetches have found.
#[derive(Debug, Clone, Default)]
struct Known {
    /// By name, the `kid`.
    keys: BTreeMap<String, Arc<Key>>,
    /// When they came.
    fetched_at: Option<DateTime<Utc>>,
    /// When the last fetch ended, whatever came of it.
    asked_at: Option<DateTime<Utc>>,
    /// What came of that in place of keys.
    failure: Option<String>,
}

impl Known {
    fn may_ask(&self, now: DateTime<Utc>) -> bool {
        let pause = if self.keys.is_empty() {
            PAUSE_WITHOUT_KEYS
        } else {
            PAUSE
        };
        !within(pause, self.asked_at, now)
    }

    fn is_old(&self, now: DateTime<Utc>) -> bool {
        !within(LIFETIME, self.fetched_at, now) && self.may_ask(now)
    }
}

/// Whether it is not longer ago. A clock that was set back must not prolong anything.
fn within(time: TimeDelta, at: Option<DateTime<Utc>>, now: DateTime<Utc>) -> bool {
    at.is_some_and(|at| (TimeDelta::zero()..time).contains(&(now - at)))
}

impl Jwks {
    /// A handle that knows no keys yet.
    pub(super) fn new(url: String, clock: Clock) -> Result<Self, reqwest::Error> {
        // Redirects and proxies would lead to where the setting does not say.
        let client = reqwest::Client::builder()
            .redirect(Policy::none())
            .no_proxy()
            .timeout(PATIENCE)
            .build()?;
        Ok(Self(Arc::new(Shared {
            url,
            client,
            clock,
            known: ArcSwap::default(),
            turn: Mutex::default(),
        })))
    }

    /// The key of this name; none if the auth server has no such key, and an error if that cannot be known.
    pub(super) async fn key(&self, name: &str) -> Result<Option<Arc<Key>>, Error> {
        let known = self.0.known.load_full();
        match known.keys.get(name) {
            Some(key) if !known.is_old(self.0.clock.now()) => return Ok(Some(Arc::clone(key))),
            // Somebody fetches already, and this key will do meanwhile.
            Some(key) if self.0.turn.try_lock().is_err() => return Ok(Some(Arc::clone(key))),
            _ => {}
        }
        self.fetch(known).await;
        let known = self.0.known.load();
        match (known.keys.get(name), &known.failure) {
            (Some(key), _) => Ok(Some(Arc::clone(key))),
            (None, Some(failure)) => Err(Error::AuthServer(failure.clone())),
            (None, None) => Ok(None),
        }
    }

    /// Fetches the keys, if it is time to, and nobody has since they were `seen`.
    async fn fetch(&self, seen: Arc<Known>) {
        let shared = Arc::clone(&self.0);
        #[expect(
            clippy::disallowed_methods,
            reason = "it ends by itself, and a caller who goes away must not end it for those who wait"
        )]
        let fetching = tokio::spawn(async move { shared.fetch(&seen).await });
        // Where it has panicked, the keys are those that were here.
        let _ = fetching.await;
    }
}

impl Shared {
    async fn fetch(&self, seen: &Arc<Known>) {
        let _turn = self.turn.lock().await;
        let current = self.known.load_full();
        // Whoever had to wait for a fetch has its outcome, however long it took.
        if !Arc::ptr_eq(&current, seen) || !current.may_ask(self.clock.now()) {
            return;
        }
        let mut known = Known::clone(&current);
        let asked = self.ask().await;
        let now = self.clock.now();
        known.asked_at = Some(now);
        match asked {
            Ok(keys) => {
                known.keys = keys;
                known.fetched_at = Some(now);
                known.failure = None;
            }
            Err(error) => {
                let failure = error.to_string();
                tracing::warn!(
                    error = failure,
                    "the keys of the auth server cannot be fetched"
                );
                known.failure = Some(failure);
            }
        }
        self.known.store(Arc::new(known));
    }

    async fn ask(&self) -> Result<BTreeMap<String, Arc<Key>>, Failure> {
        let request = self
            .client
            .get(&self.url)
            .header(ACCEPT, "application/json");
        let mut answer = request.send().await?;
        if answer.status() != StatusCode::OK {
            return Err(Failure::Status(answer.status()));
        }
        let mut text = Vec::new();
        while let Some(part) = answer.chunk().await? {
            if text.len() + part.len() > SIZE_MAX {
                return Err(Failure::TooLarge);
            }
            text.extend_from_slice(&part);
        }
        Ok(parse(&text)?)
    }
}

/// Every key that could verify a token. Others may be among them, and are none of our business.
fn parse(text: &[u8]) -> Result<BTreeMap<String, Arc<Key>>, serde_json::Error> {
    #[derive(Deserialize)]
    struct Set {
        keys: Vec<Value>,
    }
    let set: Set = serde_json::from_slice(text)?;
    let usable = set.keys.into_iter().filter_map(|key| {
        let key: Jwk = serde_json::from_value(key).ok()?;
        let name = key.common.key_id.clone()?;
        Some((name, Arc::new(usable(&key)?)))
    });
    Ok(usable.collect())
}

fn usable(key: &Jwk) -> Option<Key> {
    let algorithm = match &key.algorithm {
        AlgorithmParameters::OctetKeyPair(it) if it.curve == EllipticCurve::Ed25519 => {
            Algorithm::EdDSA
        }
        AlgorithmParameters::EllipticCurve(it) if it.curve == EllipticCurve::P256 => {
            Algorithm::ES256
        }
        AlgorithmParameters::RSA(_) => Algorithm::RS256,
        _ => return None,
    };
    let other_algorithm = key
        .common
        .key_algorithm
        .is_some_and(|declared| declared != KeyAlgorithm::from(algorithm));
    let other_use = key
        .common
        .public_key_use
        .as_ref()
        .is_some_and(|declared| *declared != PublicKeyUse::Signature);
    if other_algorithm || other_use {
        return None;
    }
    Some(Key {
        algorithm,
        public: DecodingKey::from_jwk(key).ok()?,
    })
}
