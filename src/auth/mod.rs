//! Authentication: looks up API keys, and verifies JWTs.
//!
//! A key is looked up in the cache, then in the mirror in Redis, then in Postgres, so counting authenticates while
//! Postgres is down. Keys change in Postgres; only the sweep writes the mirror, in the order of the changes, so a
//! revoked key does not come back after a loss, a delay or a restored backup. With both servers up, a revocation is
//! effective everywhere after one sweep and the lifetime of the caches, which is less than 5 s.
//!
//! Write access to Redis must not be enough to create a key. So the mirrored records are sealed with a secret that
//! Postgres stores ([`seal`]), and each instance loads the revoked keys from Postgres, so an older record does not
//! bring one back. They also load which keys exist, because after too many failures of an address only those are looked
//! up ([`throttle`]). Until an instance has reached Postgres it cannot verify seals, and accepts unverified records for
//! counting only, which anybody with write access to Redis can do anyway.

mod cached_key;
mod embed;
mod error;
mod jwks;
mod seal;
mod signatures;
mod throttle;
mod tokens;

use std::collections::{BTreeMap, HashSet};
use std::hash::RandomState;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use chrono::{DateTime, DurationRound as _, TimeDelta, Utc};
use quick_cache::sync::Cache;
use xxhash_rust::xxh3::xxh3_64;

pub use embed::{EmbedLink, Theme};
pub use error::{Error, Refused};
pub use tokens::{User, may_hold_token};

use crate::config::JwtConfig;
use crate::context::Context;
use crate::domain::ids::ApiKeyId;
use crate::metrics;
use crate::postgres;
use crate::postgres::api_keys::{self, IdChange, KeyRecord, PresentedKey};
use crate::redis::{self, KeyChanges};
use cached_key::CachedKey;
use seal::Seal;
use throttle::Throttle;
use tokens::Tokens;

/// The most keys in the cache.
const CACHE_SIZE: usize = 10_000;

/// The most changes that one step of a sweep applies.
const SWEEP_BATCH: u32 = 1000;

/// The most changes that are read at once of which keys exist.
const LEARN_BATCH: u32 = 10_000;

/// The name that the revision of the mirror is sealed under; no key has this id.
const MARK: &str = "mark";

/// What embed links are signed for; no id of a key is this.
const EMBED: &str = "embed";

/// The handle on API keys and JWTs; clones share the cache.
#[derive(Debug, Clone)]
pub struct Auth {
    ctx: Context,
    cache: Arc<Cache<ApiKeyId, Arc<CachedKey>>>,
    /// Unset until Postgres has been reached.
    seal: Arc<OnceLock<Seal>>,
    known: Arc<Mutex<KnownKeys>>,
    throttle: Throttle,
    /// Of fingerprints.
    hasher: RandomState,
    /// The minute in which keys were last used, until it is stored in Postgres.
    uses: Arc<Mutex<BTreeMap<ApiKeyId, DateTime<Utc>>>>,
    /// None if the service accepts no JWTs.
    tokens: Option<Tokens>,
}

/// What Postgres says of every key.
#[derive(Debug, Default)]
struct KnownKeys {
    /// A hash of each key's id.
    ids: HashSet<u64>,
    revoked: HashSet<ApiKeyId>,
    /// The revision up to which they have been loaded.
    revision: u64,
    /// Whether all have been loaded once.
    complete: bool,
}

impl KnownKeys {
    /// Whether a key with this id may exist.
    fn may_have(&self, id: &str) -> bool {
        !self.complete || self.ids.contains(&hash(id))
    }
}

fn hash(id: &str) -> u64 {
    xxh3_64(id.as_bytes())
}

impl Auth {
    /// Creates a handle with an empty cache.
    pub fn new(ctx: Context, jwt: Option<JwtConfig>) -> Result<Self, reqwest::Error> {
        let tokens = jwt.map(|jwt| Tokens::new(jwt, ctx.clock.clone()));
        let tokens = tokens.transpose()?;
        Ok(Self {
            ctx,
            cache: Arc::new(Cache::new(CACHE_SIZE)),
            seal: Arc::default(),
            known: Arc::default(),
            throttle: Throttle::new(),
            hasher: RandomState::new(),
            uses: Arc::default(),
            tokens,
        })
    }

    /// The same handle, sharing the cache, with the connections to Postgres of another context.
    #[must_use]
    pub fn on(&self, ctx: Context) -> Self {
        Self {
            ctx,
            ..self.clone()
        }
    }

    /// The record of a key, if the secret matches and the key is neither expired nor revoked. After too many failures of
    /// an address, a key that does not exist is refused without a look-up.
    pub async fn authenticate(
        &self,
        key: PresentedKey<'_>,
        address: Option<IpAddr>,
    ) -> Result<Result<Arc<KeyRecord>, Refused>, Error> {
        let now = self.ctx.clock.now();
        let cached = match self.fresh(key.id, now) {
            Some(cached) => cached,
            None => match address.and_then(|address| self.throttle.wait(address, now)) {
                Some(wait) if !lock(&self.known).may_have(key.id) => {
                    return Ok(Err(self.throttled(wait)));
                }
                // Boxed: keeps the hot-path future small.
                _ => Box::pin(self.look_up(key.id, now)).await?,
            },
        };
        let Some(record) = cached.accept(key, &self.hasher, now) else {
            let wait = address.and_then(|address| self.throttle.fail(address, now));
            return Ok(Err(
                wait.map_or(Refused::Invalid, |wait| self.throttled(wait))
            ));
        };
        if cached.is_first_use() {
            self.record_use(&record.id, now);
        }
        Ok(Ok(Arc::clone(record)))
    }

    fn throttled(&self, wait: TimeDelta) -> Refused {
        self.ctx.metrics.authentication_throttled();
        Refused::TooManyFailures { wait }
    }

    /// The record of a key that was authenticated before, if it is neither expired nor revoked since.
    pub async fn known(&self, id: &ApiKeyId) -> Result<Option<Arc<KeyRecord>>, Error> {
        let now = self.ctx.clock.now();
        let cached = match self.fresh(id.as_str(), now) {
            Some(cached) => cached,
            None => self.look_up(id.as_str(), now).await?,
        };
        let valid = cached.record.as_ref().filter(|it| it.is_valid_at(now));
        Ok(valid.map(Arc::clone))
    }

    /// Signs a text for a purpose, which is no id of a key: hex, dot, text. None until Postgres has been reached.
    pub fn sign(&self, purpose: &str, text: &str) -> Option<String> {
        let sealed = self.seal.get()?.close(purpose, text);
        Some(sealed.replacen(' ', ".", 1))
    }

    /// The text that was signed for this purpose; none for anything else.
    pub fn verify(&self, purpose: &str, signed: &str) -> Option<String> {
        let sealed = signed.replacen('.', " ", 1);
        let text = self.seal.get()?.open(purpose, &sealed)?;
        Some(text.to_owned())
    }

    /// The token of an embed link; none until Postgres has been reached.
    pub fn embed_token(&self, link: &EmbedLink) -> Option<String> {
        self.sign(EMBED, &link.to_text()?)
    }

    /// The embed link of a token, unless it has expired or was not signed by this service.
    pub fn embed_link(&self, token: &str, now: DateTime<Utc>) -> Option<EmbedLink> {
        let link = EmbedLink::from_text(&self.verify(EMBED, token)?)?;
        (now < link.expires_at).then_some(link)
    }

    fn fresh(&self, id: &str, now: DateTime<Utc>) -> Option<Arc<CachedKey>> {
        let cached = self.cache.get(id).filter(|it| it.is_fresh(now))?;
        self.ctx.metrics.cache_hit(metrics::Cache::Keys);
        Some(cached)
    }

    /// Replaces a record whose seal was not verified by the one in Postgres; none if Postgres does not accept the key.
    pub async fn prove(&self, record: &Arc<KeyRecord>) -> Result<Option<Arc<KeyRecord>>, Error> {
        if record.proven {
            return Ok(Some(Arc::clone(record)));
        }
        let found = api_keys::find(&self.ctx.postgres, record.id.as_str()).await?;
        let now = self.ctx.clock.now();
        let accepted = found.filter(|it| it.is_same_key(record) && it.is_valid_at(now));
        Ok(accepted.map(Arc::new))
    }

    /// The user that a JWT was issued for, if it is valid now.
    pub async fn user(&self, token: &str) -> Result<Option<User>, Error> {
        match &self.tokens {
            Some(tokens) => tokens.verify(token).await,
            None => Ok(None),
        }
    }

    /// Removes a key from the cache.
    pub fn invalidate(&self, id: &ApiKeyId) {
        self.cache.remove(id);
    }

    /// Loads what only Postgres has: the secret of the seal, which keys exist, and which of them are revoked.
    pub async fn learn(&self) -> Result<(), postgres::Error> {
        if self.seal.get().is_none() {
            let secret = api_keys::mirror_secret(&self.ctx.postgres).await?;
            let _ = self.seal.set(Seal::new(&secret));
        }
        loop {
            let since = lock(&self.known).revision;
            let changed = api_keys::ids_since(&self.ctx.postgres, since, LEARN_BATCH).await?;
            let mut known = lock(&self.known);
            let Some(newest) = changed.last().map(|change| change.revision) else {
                known.complete = true;
                return Ok(());
            };
            for IdChange { id, revoked, .. } in changed {
                known.ids.insert(hash(id.as_str()));
                // A refusal that was cached before the key existed must not outlive this.
                self.cache.remove(&id);
                if revoked {
                    known.revoked.insert(id);
                }
            }
            known.revision = known.revision.max(newest);
        }
    }

    /// Copies changed records from Postgres to the mirror; returns how many.
    pub async fn sweep_once(&self) -> Result<usize, Error> {
        // First, because a revocation must not wait for a Redis that accepts writes.
        self.learn().await?;
        let Some(seal) = self.seal.get() else {
            return Ok(0);
        };
        let redis = self.ctx.redis.pooled().await?;
        let mut written = 0;
        loop {
            // The mark is in the same hash as the records, so a rollback of Redis takes it back as well.
            let mark = redis.api_keys_mark().await?;
            // A mark that this database did not seal is ignored.
            let revision = mark
                .as_deref()
                .and_then(|mark| seal.open(MARK, mark)?.parse().ok())
                .unwrap_or(0);
            let changes =
                api_keys::changes_since(&self.ctx.postgres, revision, SWEEP_BATCH).await?;
            let Some(changes) = changes else {
                return Ok(written);
            };
            let records = changes
                .records
                .iter()
                .map(|record| {
                    let sealed = seal.close(record.id.as_str(), &to_json(record)?);
                    Ok((&record.id, sealed))
                })
                .collect::<Result<Vec<_>, Error>>()?;
            let step = KeyChanges {
                mark: seal.close(MARK, &changes.revision.to_string()),
                records,
                replace: changes.full,
            };
            // If another instance was faster, the next step continues at its mark.
            if redis.mirror_api_keys(mark.as_deref(), &step).await? {
                written += step.records.len();
            }
        }
    }

    /// Stores in Postgres which keys were used since the last time.
    pub async fn store_uses(&self) -> Result<(), postgres::Error> {
        let uses = lock(&self.uses).clone();
        api_keys::record_uses(&self.ctx.postgres, &uses).await?;
        lock(&self.uses).retain(|id, minute| uses.get(id) != Some(minute));
        Ok(())
    }

    async fn look_up(&self, id: &str, now: DateTime<Utc>) -> Result<Arc<CachedKey>, Error> {
        self.ctx.metrics.cache_missed(metrics::Cache::Keys);
        let record = match self.mirrored(id).await {
            Ok(Some(record)) => Some(record),
            // Not mirrored yet, or Redis is down.
            Ok(None) | Err(_) => api_keys::find(&self.ctx.postgres, id).await?,
        };
        let revoked = lock(&self.known).revoked.contains(id);
        let record = record.map(|mut record| {
            record.revoked |= revoked;
            Arc::new(record)
        });
        let cached = Arc::new(CachedKey::new(record, now));
        if let Ok(id) = id.parse() {
            self.cache.insert(id, Arc::clone(&cached));
        }
        Ok(cached)
    }

    async fn mirrored(&self, id: &str) -> Result<Option<KeyRecord>, redis::Error> {
        let connection = self.ctx.redis.connection().await?;
        let Some(text) = connection.api_key(id).await? else {
            return Ok(None);
        };
        let seal = self.seal.get();
        let opened = match seal {
            Some(seal) => seal.open(id, &text),
            None => text.split_once(' ').map(|(_, text)| text),
        };
        if opened.is_none() {
            tracing::warn!(key_id = %id, "ignoring a record of an API key in Redis that this database did not seal");
        }
        // A record that another release wrote and this release cannot read counts as missing.
        let record: Option<KeyRecord> = opened.and_then(|text| serde_json::from_str(text).ok());
        Ok(record.map(|mut record| {
            record.proven = seal.is_some();
            record
        }))
    }

    /// Rare enough for a lock: once in the lifetime of a cached key.
    fn record_use(&self, id: &ApiKeyId, now: DateTime<Utc>) {
        let minute = now.duration_trunc(TimeDelta::minutes(1)).unwrap_or(now);
        let mut uses = lock(&self.uses);
        let newest = uses.entry(id.clone()).or_insert(minute);
        *newest = minute.max(*newest);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn to_json(record: &KeyRecord) -> Result<String, Error> {
    serde_json::to_string(record)
        .map_err(|error| postgres::Error::Inconsistent(error.to_string()).into())
}
