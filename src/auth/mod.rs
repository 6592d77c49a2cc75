//! Who may call: looks API keys up, close at hand first, and verifies JWTs.
//!
//! Of a key: cache, then the mirror in Redis, then Postgres, so that counting authenticates while Postgres is
//! away. Keys change in Postgres; only the sweep writes the mirror, in the order of the changes, so that a
//! revoked key does not come back, whatever was lost, delayed or restored. With both servers up a
//! revocation is in force everywhere after a sweep and the life of the caches, which is below 5 s.
//!
//! Whoever can write to Redis must not make keys thereby. So what is mirrored is sealed with a secret of Postgres
//! ([`seal`]), and each instance knows from there which keys are revoked, so that no older record brings one back.
//! Until an instance has reached Postgres it can tell no seal, and takes a record on trust for counting alone, which
//! Redis lets its writers do anyway.

mod jwks;
mod seal;
mod signatures;
mod tokens;

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use chrono::{DateTime, DurationRound as _, TimeDelta, Utc};
use quick_cache::sync::Cache;
use tokio_util::sync::CancellationToken;

pub use tokens::{User, may_hold_token};

use crate::config::JwtConfig;
use crate::context::Context;
use crate::domain::ids::ApiKeyId;
use crate::failure::Failure;
use crate::metrics::{self, Worker};
use crate::postgres;
use crate::postgres::api_keys::{self, KeyRecord, PresentedKey};
use crate::redis::{self, KeyChanges};
use seal::Seal;
use tokens::Tokens;

/// How long a key, or the absence of one, is believed without looking again.
const CACHE_LIFETIME: TimeDelta = TimeDelta::seconds(2);

/// How many keys are kept at hand.
const CACHE_SIZE: usize = 10_000;

/// Between two looks for changes that the mirror does not have.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// How many changes one step of a sweep applies at most.
const SWEEP_BATCH: u32 = 1000;

/// Under which name the revision of the mirror is sealed; no id of a key looks like this.
const MARK: &str = "mark";

/// Between two notes in Postgres of which keys were used.
const USES_INTERVAL: Duration = Duration::from_mins(1);

/// The handle on keys and tokens; clones share the cache.
#[derive(Debug, Clone)]
pub struct Auth {
    ctx: Context,
    cache: Arc<Cache<ApiKeyId, Arc<Known>>>,
    /// Unknown until Postgres was reached.
    seal: Arc<OnceLock<Seal>>,
    revoked: Arc<Mutex<Revoked>>,
    /// The minute in which keys were last used, as far as Postgres has not been told.
    uses: Arc<Mutex<BTreeMap<ApiKeyId, DateTime<Utc>>>>,
    /// None where no JWT is accepted.
    tokens: Option<Tokens>,
}

/// Which keys Postgres has said to be revoked.
#[derive(Debug, Default)]
struct Revoked {
    ids: HashSet<ApiKeyId>,
    /// The revision of the last of them.
    up_to: u64,
}

/// What a look-up found.
#[derive(Debug)]
struct Known {
    record: Option<Arc<KeyRecord>>,
    /// Before the look-up, so that nothing that changed during it is believed for longer.
    looked_up_at: DateTime<Utc>,
    /// Whether its use has been noted, which is once in the life of this.
    noted: AtomicBool,
}

impl Known {
    fn is_fresh(&self, now: DateTime<Utc>) -> bool {
        let age = now - self.looked_up_at;
        // Revoked is final. A clock that was set back must not prolong anything.
        (TimeDelta::zero()..CACHE_LIFETIME).contains(&age)
            || self.record.as_ref().is_some_and(|record| record.revoked)
    }
}

/// Why a key could be neither accepted nor refused, or the mirror not be kept.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A failure that use cases share.
    #[error(transparent)]
    Failure(Failure),
    /// The auth server, which alone knows a JWT's key.
    #[error("the keys of the auth server cannot be fetched: {0}")]
    AuthServer(String),
}

impl<E: Into<Failure>> From<E> for Error {
    fn from(failure: E) -> Self {
        Self::Failure(failure.into())
    }
}

impl Auth {
    /// A handle that knows no keys yet.
    pub fn new(ctx: Context, jwt: Option<JwtConfig>) -> Result<Self, reqwest::Error> {
        let tokens = jwt
            .map(|jwt| Tokens::new(jwt, ctx.clock.clone()))
            .transpose()?;
        Ok(Self {
            ctx,
            cache: Arc::new(Cache::new(CACHE_SIZE)),
            seal: Arc::default(),
            revoked: Arc::default(),
            uses: Arc::default(),
            tokens,
        })
    }

    /// The same, sharing all that is known, with the connections to Postgres of another context.
    #[must_use]
    pub fn on(&self, ctx: Context) -> Self {
        Self {
            ctx,
            ..self.clone()
        }
    }

    /// The record of a key, if the key is right, and neither expired nor revoked.
    pub async fn authenticate(&self, key: &PresentedKey) -> Result<Option<Arc<KeyRecord>>, Error> {
        let now = self.ctx.clock.now();
        let cached = self.cache.get(&key.id);
        let known = if let Some(known) = cached.filter(|known| known.is_fresh(now)) {
            self.ctx.metrics.cache_hit(metrics::Cache::Keys);
            known
        } else {
            self.ctx.metrics.cache_missed(metrics::Cache::Keys);
            // In a box, so that a call whose key is at hand does not carry this about.
            Box::pin(self.look_up(&key.id, now)).await?
        };
        let Some(record) = &known.record else {
            return Ok(None);
        };
        if !record.matches(key) || !record.is_valid_at(now) {
            return Ok(None);
        }
        if !known.noted.load(Ordering::Relaxed) {
            known.noted.store(true, Ordering::Relaxed);
            self.note_use(&key.id, now);
        }
        Ok(Some(Arc::clone(record)))
    }

    /// The record of a key as Postgres has it, where one is not proven; none if that does not accept the key.
    pub async fn prove(&self, record: &Arc<KeyRecord>) -> Result<Option<Arc<KeyRecord>>, Error> {
        if record.proven {
            return Ok(Some(Arc::clone(record)));
        }
        let found = api_keys::find(&self.ctx.postgres, &record.id).await?;
        let now = self.ctx.clock.now();
        let same = found.filter(|it| it.is_of_the_key_of(record) && it.is_valid_at(now));
        Ok(same.map(Arc::new))
    }

    /// The user that a JWT was made for, if it is right, and now is its time.
    pub async fn user(&self, token: &str) -> Result<Option<User>, Error> {
        match &self.tokens {
            Some(tokens) => tokens.verify(token).await,
            None => Ok(None),
        }
    }

    /// Drops what is cached of one key.
    pub fn forget(&self, id: &ApiKeyId) {
        self.cache.remove(id);
    }

    /// Learns what Postgres alone can tell: the seal of the mirror, and which keys are revoked.
    pub async fn learn(&self) -> Result<(), postgres::Error> {
        if self.seal.get().is_none() {
            let secret = api_keys::mirror_secret(&self.ctx.postgres).await?;
            let _ = self.seal.set(Seal::new(&secret));
        }
        loop {
            let up_to = self.revoked().up_to;
            let news = api_keys::revoked_since(&self.ctx.postgres, up_to, SWEEP_BATCH).await?;
            let Some((_, newest)) = news.last() else {
                return Ok(());
            };
            let newest = *newest;
            for (id, _) in &news {
                self.cache.remove(id);
            }
            let mut revoked = self.revoked();
            revoked.ids.extend(news.into_iter().map(|(id, _)| id));
            revoked.up_to = revoked.up_to.max(newest);
        }
    }

    /// Brings the mirror up to date with Postgres; returns how many records it has written.
    pub async fn sweep_once(&self) -> Result<usize, Error> {
        // First, so that a revocation needs no Redis that takes writes.
        self.learn().await?;
        let Some(seal) = self.seal.get() else {
            return Ok(0);
        };
        let connection = self.ctx.redis.connection().await?;
        let mut written = 0;
        loop {
            // The mark is as old as the records beside it, so that a rollback of Redis is repaired as well.
            let mark = connection.api_keys_mark().await?;
            // One of another database, or nobody's, is none.
            let seen = mark
                .as_deref()
                .and_then(|mark| seal.open(MARK, mark)?.parse().ok());
            let seen = seen.unwrap_or(0);
            let Some(changes) =
                api_keys::changes_since(&self.ctx.postgres, seen, SWEEP_BATCH).await?
            else {
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
                replace: changes.from_the_first,
            };
            // Where another instance was faster, its mark says how far it came.
            if connection.mirror_api_keys(mark.as_deref(), &step).await? {
                written += step.records.len();
            }
        }
    }

    /// Tells Postgres which keys were used since the last time.
    pub async fn store_uses(&self) -> Result<(), postgres::Error> {
        let uses = std::mem::take(&mut *self.uses.lock().unwrap_or_else(PoisonError::into_inner));
        let stored = api_keys::note_uses(&self.ctx.postgres, &uses).await;
        if stored.is_err() {
            let mut waiting = self.uses.lock().unwrap_or_else(PoisonError::into_inner);
            for (id, minute) in uses {
                waiting.entry(id).or_insert(minute);
            }
        }
        stored
    }

    /// Sweeps, and tells Postgres which keys are used, until `stop`.
    pub async fn run(&self, stop: CancellationToken) {
        tokio::join!(self.sweep(&stop), self.keep_uses(&stop));
    }

    async fn sweep(&self, stop: &CancellationToken) {
        let mut failing = false;
        loop {
            match self
                .ctx
                .metrics
                .timed(Worker::KeySweep, self.sweep_once())
                .await
            {
                Err(error) if !failing => {
                    tracing::warn!(%error, "API keys cannot be mirrored in Redis");
                    failing = true;
                }
                Err(_) => {}
                Ok(_) => failing = false,
            }
            let pause = tokio::time::sleep(SWEEP_INTERVAL);
            if stop.run_until_cancelled(pause).await.is_none() {
                return;
            }
        }
    }

    async fn keep_uses(&self, stop: &CancellationToken) {
        loop {
            let pause = tokio::time::sleep(USES_INTERVAL);
            let stopping = stop.run_until_cancelled(pause).await.is_none();
            if let Err(error) = self.store_uses().await {
                tracing::warn!(%error, "it cannot be stored when API keys were last used");
            }
            if stopping {
                return;
            }
        }
    }

    async fn look_up(&self, id: &ApiKeyId, now: DateTime<Utc>) -> Result<Arc<Known>, Error> {
        let record = match self.mirrored(id).await {
            Ok(Some(record)) => Some(record),
            // Not mirrored yet, or nobody to ask: Postgres knows.
            Ok(None) | Err(_) => api_keys::find(&self.ctx.postgres, id).await?,
        };
        let revoked = self.revoked().ids.contains(id);
        let record = record.map(|mut record| {
            record.revoked |= revoked;
            record
        });
        let known = Arc::new(Known {
            record: record.map(Arc::new),
            looked_up_at: now,
            noted: AtomicBool::new(false),
        });
        self.cache.insert(id.clone(), Arc::clone(&known));
        Ok(known)
    }

    async fn mirrored(&self, id: &ApiKeyId) -> Result<Option<KeyRecord>, redis::Error> {
        let connection = self.ctx.redis.connection().await?;
        let text = connection.api_key(id).await?;
        let Some(text) = text else { return Ok(None) };
        let seal = self.seal.get();
        let opened = match seal {
            Some(seal) => seal.open(id.as_str(), &text),
            None => text.split_once(' ').map(|(_, text)| text),
        };
        if opened.is_none() {
            tracing::warn!(key_id = %id, "a record of an API key in Redis is not sealed by this database, and is not believed");
        }
        // What another release wrote and this one cannot read is as good as absent.
        let record: Option<KeyRecord> = opened.and_then(|text| serde_json::from_str(text).ok());
        Ok(record.map(|mut record| {
            record.proven = seal.is_some();
            record
        }))
    }

    fn revoked(&self) -> MutexGuard<'_, Revoked> {
        self.revoked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Rare enough for a lock: once in the life of what is cached of a key.
    fn note_use(&self, id: &ApiKeyId, now: DateTime<Utc>) {
        let minute = now.duration_trunc(TimeDelta::minutes(1)).unwrap_or(now);
        let mut uses = self.uses.lock().unwrap_or_else(PoisonError::into_inner);
        let newest = uses.entry(id.clone()).or_insert(minute);
        *newest = minute.max(*newest);
    }
}

fn to_json(record: &KeyRecord) -> Result<String, Error> {
    serde_json::to_string(record)
        .map_err(|error| postgres::Error::Inconsistent(error.to_string()).into())
}
