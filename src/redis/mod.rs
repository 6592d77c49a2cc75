//! The only code that speaks Redis.
//!
//! Owns the key grammar, the scripts and the connection. Decides nothing: what to count comes from
//! `metering`, the rule is in `lua/count.lua`. A counter that is missing here is *unknown*, never
//! zero, and no function of this module pretends otherwise. Start reading at [`Redis`].

mod announcement;
mod codec;
mod connection;
mod count;
mod counter_value;
mod erase;
mod error;
mod fences;
mod gc;
mod keys;
mod scan;
mod scripts;
mod stamp;

use std::sync::{Arc, PoisonError, RwLock};

use chrono::{DateTime, Utc};
use futures::StreamExt;
use futures::stream::BoxStream;
use redis::{Client, IntoConnectionInfo};

pub use announcement::Announcement;
pub use connection::Connection;
pub use erase::Erased;
pub use error::Error;
pub use gc::Collected;
pub use keys::{SHARDS, Shard};
pub use scripts::RecoveryReply;

use crate::clock::Clock;
use crate::domain::counter::{CounterId, Snapshot, Stamp};
use crate::domain::decision::{self, Demand};
use crate::domain::ids::{ApiKeyId, IdempotencyKey, MeterId, OrganizationId};
use crate::domain::quantity::Count;
use crate::domain::schedule::Reset;
use crate::domain::threshold::{Told, Watched};
use crate::domain::verification::Counted;
use crate::metrics::Metrics;
use count::lane::Lanes;
use keys::Keys;

/// Where Redis is and how it is used.
#[derive(Debug, Clone)]
pub struct Settings {
    /// `redis://`, `rediss://` or `redis+unix://`.
    pub url: String,
    /// In front of every key.
    pub prefix: String,
    /// Whether a restarted server is trusted to hold everything that it acknowledged.
    pub trust_restart: bool,
    /// How long an idempotency record is kept, ms.
    pub record_lifetime_ms: u64,
}

/// The handle on all counters; clones share one connection and its lanes.
#[derive(Debug, Clone)]
pub struct Redis(Arc<Inner>, Lanes);

#[derive(Debug)]
struct Inner {
    client: Client,
    keys: Keys,
    settings: Settings,
    clock: Clock,
    metrics: Metrics,
    /// The connection in use; replaced, never repaired.
    current: RwLock<Option<Arc<Connection>>>,
    /// Held while a new connection is made, so that an outage is met by one attempt at a time.
    connecting: tokio::sync::Mutex<()>,
}

/// One call's wish: all of its charges or none.
#[derive(Debug, Clone)]
pub struct Operation {
    /// Whose counters.
    pub organization: OrganizationId,
    /// Track, consume, check or refund.
    pub kind: decision::Operation,
    /// Distinct counters of that organization.
    pub charges: Vec<Charge>,
    /// Makes a repetition harmless.
    pub attempt: Option<Attempt>,
    /// How many equal calls this stands for, each of which succeeds or fails on its own. More than one only
    /// for a track or a consume with a single charge that requires no more than its amount, and no attempt.
    pub times: u32,
}

/// What an operation wants of one counter.
#[derive(Debug, Clone)]
pub struct Charge {
    /// Which counter.
    pub counter: CounterId,
    /// How much.
    pub demand: Demand,
    /// What decides, as far as the caller knows.
    pub stamp: Stamp,
    /// The start of the hour that the units belong to.
    pub hour: DateTime<Utc>,
    /// What the counter is watched for, by the limit of that stamp.
    pub watched: Arc<Watched>,
}

/// An attempt that may be repeated under the same key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    /// The caller's name for it.
    pub key: IdempotencyKey,
    /// A hash of the payload, without `|`.
    pub fingerprint: String,
}

/// What became of one operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Decided.
    Answered(Answer),
    /// Of several equal calls the first so many were granted, and the others were not: they did not fit or,
    /// where nothing limits them, would have passed the ceiling of the counter.
    Some {
        /// How many.
        granted: u32,
        /// The counter after all of them.
        reading: Reading,
    },
    /// The same idempotency key came with another payload; nothing was counted.
    KeyReused,
    /// The counter of this charge is missing: unknown. Nothing was counted.
    Missing(usize),
    /// The counter of this charge is of another generation: unknown. Nothing was counted.
    Frozen(usize),
    /// The period of this charge is closed, or over by a newer policy. Nothing was counted.
    Closed(usize),
    /// This charge would pass the ceiling of its counter. Nothing was counted.
    Overflow(usize),
    /// A change is on its way that decides which counters the organization has. Nothing was counted.
    Fenced,
}

/// A final answer, fresh or repeated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Whether everything was granted; otherwise nothing was counted.
    pub granted: bool,
    /// Whether this is what an earlier attempt was told.
    pub replayed: bool,
    /// For each charge, what its counter held after the decision.
    pub readings: Vec<Reading>,
}

/// A counter as a decision saw it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reading {
    /// The start of its period.
    pub start: DateTime<Utc>,
    /// Units counted.
    pub used: Count,
    /// What decided; newer than the caller's where somebody changed the policy meanwhile.
    pub stamp: Stamp,
    /// What a refund gave back.
    pub given_back: u64,
    /// Whether the first call was refused that this counter has refused.
    pub refused_first: bool,
}

/// What Redis is to note of a counter after a flush.
#[derive(Debug, Clone)]
pub struct Settlement<'a> {
    /// Which counter.
    pub counter: &'a CounterId,
    /// What was read; none where the counter was missing, and shall be waited for no more if it still is.
    pub snapshot: Option<&'a Snapshot>,
    /// Whether Postgres now holds exactly that; otherwise it holds something newer.
    pub stored: bool,
    /// What is told of its thresholds now, if that was stored with it and is more than before.
    pub told: Option<Told>,
    /// Hours that begin before this are reached by no event any more.
    pub drop_hours_before: DateTime<Utc>,
}

/// A counter that is to be opened.
#[derive(Debug, Clone, Copy)]
pub struct Missing<'a> {
    /// Which counter.
    pub counter: &'a CounterId,
    /// What decides, in the generation that the caller believes in.
    pub stamp: &'a Stamp,
}

/// A counter that Postgres has moved to the generation in the snapshot's stamp.
#[derive(Debug, Clone, Copy)]
pub struct Moved<'a> {
    /// The old content, which was stored first.
    pub held: Option<&'a Snapshot>,
    /// What Postgres holds now.
    pub snapshot: &'a Snapshot,
    /// Every meter that Postgres knows of the organization.
    pub meters: &'a [MeterId],
    /// Of the policy that the caller resolved.
    pub policy_version: u64,
}

impl Moved<'_> {
    /// Whether it may have crossed what was not told where it was, or not under this limit.
    fn may_have_news(&self) -> bool {
        let told = &self.snapshot.thresholds.told;
        let moved = self.held.is_some() || told.since == self.snapshot.stamp.version;
        moved && self.snapshot.may_have_news()
    }
}

/// A counter that begins at a reset.
#[derive(Debug, Clone, Copy)]
pub struct Next<'a> {
    /// Which counter.
    pub counter: &'a CounterId,
    /// The reset, which names the counter before it.
    pub reset: Reset,
    /// What decides.
    pub stamp: &'a Stamp,
}

/// An adjustment as its counter takes it.
#[derive(Debug, Clone, Copy)]
pub struct Correction<'a> {
    /// Names it; grows from one adjustment of a counter to the next.
    pub id: u64,
    /// Which counter.
    pub counter: &'a CounterId,
    /// The data set that the caller believes in.
    pub generation: u64,
    /// The policy version that the caller resolved before it saw that the adjustment is pending.
    pub policy_version: u64,
    /// Units to add, or below 0 to give back.
    pub amount: i64,
    /// The start of the hour that it is counted in.
    pub hour: DateTime<Utc>,
    /// The percentages of its limit that are told of.
    pub percents: &'a str,
}

/// What Redis knows of an organization.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownOrganization {
    /// The resolved policy: its version, a space, and its JSON.
    pub policy: String,
    /// Every meter counted in this data set; none if nothing was counted in it.
    pub meters: Option<Vec<MeterId>>,
    /// The policy version of the last deletion that Redis knows of; 0 if it knows of none.
    pub incarnation: u64,
}

/// How many counters are read in one round trip, so that calls that count never wait for long behind it.
pub const READ_MAX: usize = 250;

/// A policy as Redis gets to know it.
#[derive(Debug, Clone, Copy)]
pub struct PolicyText<'a> {
    /// Which of two is newer.
    pub version: u64,
    /// The policy version of the organization's last deletion; 0 if it never was deleted.
    pub incarnation: u64,
    /// The resolved policy as JSON, without its version, so that all who have the same share it.
    pub json: &'a str,
}

/// A policy that is to be made known.
#[derive(Debug, Clone, Copy)]
pub struct Configuration<'a> {
    /// Whose.
    pub organization: &'a OrganizationId,
    /// What Redis shall know.
    pub policy: PolicyText<'a>,
    /// Counters that it shall reach, each with what decides then; they keep their generations.
    pub running: &'a [(CounterId, Stamp)],
}

/// What came of making a policy known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Configured {
    /// Redis knows it, or a newer one.
    Known {
        /// Of the policy that Redis knows now.
        version: u64,
        /// Every meter counted in this data set.
        meters: Vec<MeterId>,
    },
    /// What Redis holds is of a life before the organization's deletion, and must be erased first.
    Former {
        /// The policy of that life: its version, a space, and its JSON.
        policy: String,
        /// Every meter counted in it in this data set.
        meters: Vec<MeterId>,
    },
}

/// Records of API keys for the mirror.
#[derive(Debug, Clone)]
pub struct KeyChanges<'a> {
    /// The mark of the mirror that they lead to.
    pub mark: String,
    /// What is to be held of each, oldest change first.
    pub records: Vec<(&'a ApiKeyId, String)>,
    /// Whether they take the place of all that the mirror holds.
    pub replace: bool,
}

/// A shard that has counters to be stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backlog {
    /// Which shard.
    pub shard: Shard,
    /// How many of its counters.
    pub dirty: usize,
    /// Since when the oldest of them waits.
    pub since: DateTime<Utc>,
}

/// A shard whose data set has a name and no number yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unnumbered {
    /// Which shard.
    pub shard: Shard,
    /// The name that a number must be drawn for.
    pub name: String,
}

impl Redis {
    /// A handle that connects at its first use.
    pub fn new(settings: Settings, clock: Clock, metrics: Metrics) -> Result<Self, Error> {
        let info = settings
            .url
            .as_str()
            .into_connection_info()
            .map_err(|error| Error::Unfit(error.to_string()))?;
        let redis = info
            .redis_settings()
            .clone()
            .set_protocol(redis::ProtocolVersion::RESP3);
        let tcp = info.tcp_settings().clone().set_nodelay(true);
        let client = Client::open(info.set_redis_settings(redis).set_tcp_settings(tcp))
            .map_err(|error| Error::Unfit(error.to_string()))?;
        let keys = Keys::new(&settings.prefix);
        let inner = Arc::new(Inner {
            client,
            keys,
            settings,
            clock,
            metrics,
            current: RwLock::new(None),
            connecting: tokio::sync::Mutex::new(()),
        });
        let lanes = Lanes::start(&inner);
        Ok(Self(inner, lanes))
    }

    /// The connection in use, or a new one on which every shard has been identified.
    pub async fn connection(&self) -> Result<Arc<Connection>, Error> {
        self.0.connection().await
    }

    /// Asks again which data sets these shards hold; returns those that need a number.
    pub async fn identify(
        &self,
        connection: &Connection,
        shards: &[Shard],
    ) -> Result<Vec<Unnumbered>, Error> {
        self.0.identify(connection, shards).await
    }

    /// Gives data sets a number that Postgres drew after they were named; returns those that were
    /// replaced by another data set meanwhile.
    pub async fn number(
        &self,
        connection: &Connection,
        shards: &[Unnumbered],
        number: u64,
    ) -> Result<Vec<Unnumbered>, Error> {
        self.0
            .name_or_number(connection, shards, Some(number))
            .await
    }

    /// Decides and counts; one outcome for each operation, in order. The charges were put together over
    /// `connection`, which says which generations they are for; where it is not the connection in use any more, the answer
    /// is none and nothing was counted.
    pub async fn count(
        &self,
        connection: &Arc<Connection>,
        operations: Vec<Operation>,
    ) -> Result<Option<Vec<Outcome>>, Error> {
        self.1.count(connection, operations).await
    }

    /// What became of attempts before, without deciding anything; none of one that was not answered.
    pub async fn answered(
        &self,
        connection: &Connection,
        attempts: &[(&OrganizationId, &Attempt)],
    ) -> Result<Vec<Option<Outcome>>, Error> {
        let mut all = Vec::with_capacity(attempts.len());
        for some in attempts.chunks(READ_MAX) {
            all.extend(scripts::answered(connection, &self.0.keys, some).await?);
        }
        Ok(all)
    }

    /// Starts missing counters at zero, each if it is certain that nothing was counted in its period.
    pub async fn open(
        &self,
        connection: &Connection,
        missing: &[Missing<'_>],
        now: DateTime<Utc>,
        margin_ms: i64,
    ) -> Result<Vec<RecoveryReply>, Error> {
        scripts::open(connection, &self.0.keys, missing, now, margin_ms).await
    }

    /// Closes counters that resets ended, and begins the next of each; doing it twice is harmless.
    pub async fn close(
        &self,
        connection: &Connection,
        next: &[Next<'_>],
        now: DateTime<Utc>,
        margin_ms: i64,
    ) -> Result<Vec<RecoveryReply>, Error> {
        scripts::close(connection, &self.0.keys, next, now, margin_ms).await
    }

    /// Applies an adjustment to its counter, and notes that there; doing it twice is harmless.
    pub async fn adjust(
        &self,
        connection: &Connection,
        correction: &Correction<'_>,
        now: DateTime<Utc>,
    ) -> Result<RecoveryReply, Error> {
        scripts::adjust(connection, &self.0.keys, correction, now).await
    }

    /// Writes counters that Postgres has moved.
    pub async fn restore(
        &self,
        connection: &Connection,
        moved: &[Moved<'_>],
    ) -> Result<Vec<RecoveryReply>, Error> {
        scripts::restore(connection, &self.0.keys, moved, self.0.clock.now()).await
    }

    /// Notes what Postgres holds of some counters of one shard.
    pub async fn settle(
        &self,
        connection: &Connection,
        shard: Shard,
        settlements: &[Settlement<'_>],
        read_at: DateTime<Utc>,
    ) -> Result<usize, Error> {
        scripts::settle(connection, &self.0.keys, shard, settlements, read_at).await
    }

    /// Makes policies known to Redis and to running counters; what came of each, in order.
    pub async fn configure(
        &self,
        connection: &Connection,
        policies: &[Configuration<'_>],
        now: DateTime<Utc>,
    ) -> Result<Vec<Configured>, Error> {
        scripts::configure(connection, &self.0.keys, policies, false, now).await
    }

    /// Makes the policy of a new life known, after what calls could reach of the former one was erased.
    pub async fn start_incarnation(
        &self,
        connection: &Connection,
        policy: &Configuration<'_>,
        now: DateTime<Utc>,
    ) -> Result<Configured, Error> {
        let policy = std::slice::from_ref(policy);
        let configured = scripts::configure(connection, &self.0.keys, policy, true, now).await?;
        let configured = configured.into_iter().next();
        configured.ok_or_else(|| Error::Inconsistent("a script did not answer".to_owned()))
    }

    /// Reads counters; none where one is missing.
    pub async fn read(
        &self,
        connection: &Connection,
        counters: &[CounterId],
    ) -> Result<Vec<Option<Snapshot>>, Error> {
        let counted = self.read_settled(connection, counters).await?;
        Ok(counted
            .into_iter()
            .map(|counted| counted.map(|counted| counted.snapshot))
            .collect())
    }

    /// The same, each with the sequence that is believed to be stored.
    pub async fn read_settled(
        &self,
        connection: &Connection,
        counters: &[CounterId],
    ) -> Result<Vec<Option<Counted>>, Error> {
        self.read_by(connection, counters, READ_MAX).await
    }

    /// The same, so many of them in one round trip, for which Redis does nothing else.
    pub async fn read_by(
        &self,
        connection: &Connection,
        counters: &[CounterId],
        together: usize,
    ) -> Result<Vec<Option<Counted>>, Error> {
        let mut all = Vec::with_capacity(counters.len());
        for some in counters.chunks(together.max(1)) {
            all.extend(scripts::read(connection, &self.0.keys, some).await?);
        }
        Ok(all)
    }

    /// What Redis knows of some organizations; none where it does not know the policy.
    pub async fn organizations(
        &self,
        connection: &Connection,
        organizations: &[&OrganizationId],
    ) -> Result<Vec<Option<KnownOrganization>>, Error> {
        scripts::known(connection, &self.0.keys, organizations).await
    }

    /// The same of one organization.
    pub async fn organization(
        &self,
        connection: &Connection,
        organization: &OrganizationId,
    ) -> Result<Option<KnownOrganization>, Error> {
        let known = self.organizations(connection, &[organization]).await?;
        Ok(known.into_iter().next().flatten())
    }

    /// The shards that have counters to be stored.
    pub async fn backlog(&self, connection: &Connection) -> Result<Vec<Backlog>, Error> {
        let mut pipeline = redis::pipe();
        for shard in Shard::all() {
            let dirty = self.0.keys.dirty(shard);
            pipeline
                .cmd("ZCARD")
                .arg(&dirty)
                .cmd("ZRANGE")
                .arg(&dirty)
                .arg(0)
                .arg(0)
                .arg("WITHSCORES");
        }
        let replies: Vec<redis::Value> = connection.run(&pipeline).await?;
        let mut shards = Vec::new();
        for (shard, reply) in Shard::all().zip(replies.chunks(2)) {
            let [size, oldest] = reply else { continue };
            let dirty: usize =
                redis::from_redis_value(size.clone()).map_err(redis::RedisError::from)?;
            let oldest: Vec<(String, f64)> =
                redis::from_redis_value(oldest.clone()).map_err(redis::RedisError::from)?;
            if let Some((_, since)) = oldest.first() {
                #[expect(
                    clippy::cast_possible_truncation,
                    reason = "scores are whole milliseconds"
                )]
                let since = DateTime::from_timestamp_millis(*since as i64).unwrap_or_default();
                shards.push(Backlog {
                    shard,
                    dirty,
                    since,
                });
            }
        }
        Ok(shards)
    }

    /// Takes shards for `ms`, and returns those that nobody else has. For economy only: nothing depends on it.
    pub async fn lease(
        &self,
        connection: &Connection,
        shards: &[Shard],
        ms: u64,
    ) -> Result<Vec<Shard>, Error> {
        if shards.is_empty() {
            return Ok(Vec::new());
        }
        let leases = shards.iter().map(|shard| self.0.keys.lease(*shard));
        let taken = self.take(connection, leases, ms).await?;
        let taken = shards.iter().zip(taken).filter(|(_, taken)| *taken);
        Ok(taken.map(|(shard, _)| *shard).collect())
    }

    /// Takes leases for `ms`; of each whether nobody else has it.
    async fn take(
        &self,
        connection: &Connection,
        leases: impl IntoIterator<Item = String>,
        ms: u64,
    ) -> Result<Vec<bool>, Error> {
        let mut pipeline = redis::pipe();
        for lease in leases {
            pipeline
                .cmd("SET")
                .arg(lease)
                .arg(&connection.run_id)
                .arg("NX")
                .arg("PX")
                .arg(ms);
        }
        let taken: Vec<Option<String>> = connection.run(&pipeline).await?;
        Ok(taken.iter().map(Option::is_some).collect())
    }

    /// The counters that have waited longest to be stored, of each shard at most so many.
    pub async fn dirty(
        &self,
        connection: &Connection,
        wanted: &[(Shard, usize)],
    ) -> Result<Vec<CounterId>, Error> {
        if wanted.is_empty() {
            return Ok(Vec::new());
        }
        let mut pipeline = redis::pipe();
        for (shard, count) in wanted {
            pipeline
                .cmd("ZRANGE")
                .arg(self.0.keys.dirty(*shard))
                .arg(0)
                .arg(count.saturating_sub(1));
        }
        let members: Vec<Vec<String>> = connection.run(&pipeline).await?;
        let parse = |key: &String| {
            let parsed = self.0.keys.parse_counter(key);
            parsed.ok_or_else(|| Error::Inconsistent(format!("the dirty index holds {key:?}")))
        };
        members.iter().flatten().map(parse).collect()
    }

    /// The mirrored record of an API key.
    pub async fn api_key(
        &self,
        connection: &Connection,
        id: &ApiKeyId,
    ) -> Result<Option<String>, Error> {
        self.mirrored(connection, id.as_str()).await
    }

    /// The mark that tells up to which change API keys are mirrored in this data set; none where none is.
    pub async fn api_keys_mark(&self, connection: &Connection) -> Result<Option<String>, Error> {
        self.mirrored(connection, scripts::MIRROR_MARK).await
    }

    /// Takes the mirror of the API keys from the mark that was `seen` to that of the records,
    /// so that counting authenticates without Postgres. False where somebody else has taken it on.
    pub async fn mirror_api_keys(
        &self,
        connection: &Connection,
        seen: Option<&str>,
        changes: &KeyChanges<'_>,
    ) -> Result<bool, Error> {
        scripts::mirror(connection, &self.0.keys, seen, changes).await
    }

    async fn mirrored(
        &self,
        connection: &Connection,
        field: &str,
    ) -> Result<Option<String>, Error> {
        let mut pipeline = redis::pipe();
        pipeline.cmd("HGET").arg(self.0.keys.api_keys()).arg(field);
        let (text,): (Option<String>,) = connection.run(&pipeline).await?;
        Ok(text)
    }

    /// The policy version up to which every change has reached this data set; 0 where nothing is known.
    pub async fn applied(&self, connection: &Connection) -> Result<u64, Error> {
        let mut pipeline = redis::pipe();
        pipeline.cmd("GET").arg(self.0.keys.applied());
        let (version,): (Option<u64>,) = connection.run(&pipeline).await?;
        Ok(version.unwrap_or(0))
    }

    /// Notes up to which policy version every change has reached this data set.
    pub async fn set_applied(&self, connection: &Connection, version: u64) -> Result<(), Error> {
        let mut pipeline = redis::pipe();
        pipeline
            .cmd("SET")
            .arg(self.0.keys.applied())
            .arg(version)
            .ignore();
        connection.run(&pipeline).await
    }

    /// Whether Redis answers.
    pub async fn ping(&self) -> Result<(), Error> {
        let connection = self.connection().await?;
        let mut pipeline = redis::pipe();
        pipeline.cmd("PING").ignore();
        connection.run(&pipeline).await
    }

    /// Tells every instance what has changed.
    pub async fn announce(
        &self,
        connection: &Connection,
        changed: &Announcement,
    ) -> Result<(), Error> {
        let mut pipeline = redis::pipe();
        pipeline
            .cmd("PUBLISH")
            .arg(self.0.keys.announcements())
            .arg(changed.to_string())
            .ignore();
        connection.run(&pipeline).await
    }

    /// What changes, until the connection breaks.
    pub async fn announcements(&self) -> Result<BoxStream<'static, Announcement>, Error> {
        let mut subscription = self
            .0
            .client
            .get_async_pubsub()
            .await
            .map_err(|error| Error::Unavailable(error.to_string()))?;
        subscription.subscribe(self.0.keys.announcements()).await?;
        let messages = subscription.into_on_message();
        Ok(messages
            .filter_map(|message| async move { message.get_payload::<String>().ok()?.parse().ok() })
            .boxed())
    }
}

impl Inner {
    async fn connection(&self) -> Result<Arc<Connection>, Error> {
        match self.healthy() {
            Some(connection) => Ok(connection),
            // In a box, so that calls over a healthy connection do not carry this about.
            None => Box::pin(self.replace_link()).await,
        }
    }

    async fn replace_link(&self) -> Result<Arc<Connection>, Error> {
        let _one_at_a_time = self.connecting.lock().await;
        if let Some(connection) = self.healthy() {
            return Ok(connection);
        }
        let connection = Arc::new(Connection::open(&self.client, &self.keys, &self.metrics).await?);
        let all: Vec<Shard> = Shard::all().collect();
        self.identify(&connection, &all).await?;
        *self.current.write().unwrap_or_else(PoisonError::into_inner) =
            Some(Arc::clone(&connection));
        Ok(connection)
    }

    fn healthy(&self) -> Option<Arc<Connection>> {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        current
            .as_ref()
            .filter(|connection| !connection.is_broken())
            .cloned()
    }

    async fn identify(
        &self,
        connection: &Connection,
        shards: &[Shard],
    ) -> Result<Vec<Unnumbered>, Error> {
        let shards: Vec<_> = shards
            .iter()
            .map(|shard| Unnumbered {
                shard: *shard,
                name: String::new(),
            })
            .collect();
        self.name_or_number(connection, &shards, None).await
    }

    async fn name_or_number(
        &self,
        connection: &Connection,
        shards: &[Unnumbered],
        number: Option<u64>,
    ) -> Result<Vec<Unnumbered>, Error> {
        let now = self.clock.now();
        let trust_restart = self.settings.trust_restart;
        scripts::identify(connection, &self.keys, shards, number, now, trust_restart).await
    }
}
