//! One typed function for each script in `lua/`. No other file names a script, a key position or an
//! argument position; the scripts' own comments say what each does and keeps true.

use std::sync::LazyLock;
use std::time::Instant;

use chrono::{DateTime, Utc};
use redis::{Script, Value};
use uuid::Uuid;

use super::error::Error;
use super::keys::{Keys, Shard};
use super::link::Link;
use super::{Answer, KeyChanges, Operation, Outcome, Reading, Settlement, Unnumbered};
use crate::domain::counter::{CounterId, Snapshot, Stamp};
use crate::domain::decision;
use crate::domain::ids::{METERS_MAX, MeterId, OrganizationId};
use crate::domain::quantity::Count;
use crate::metrics::{self, Opened};

macro_rules! source {
    ($file:literal) => {
        include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/lua/", $file))
    };
}

static COUNT: LazyLock<Script> = LazyLock::new(|| Script::new(source!("count.lua")));
static OPEN: LazyLock<Script> = LazyLock::new(|| Script::new(source!("open.lua")));
static RESTORE: LazyLock<Script> = LazyLock::new(|| Script::new(source!("restore.lua")));
static SETTLE: LazyLock<Script> = LazyLock::new(|| Script::new(source!("settle.lua")));
static CONFIGURE: LazyLock<Script> = LazyLock::new(|| Script::new(source!("configure.lua")));
static MIRROR: LazyLock<Script> = LazyLock::new(|| Script::new(source!("mirror.lua")));
static GENERATION: LazyLock<Script> = LazyLock::new(|| Script::new(GENERATION_SOURCE));
const GENERATION_SOURCE: &str = source!("generation.lua");

/// How long Redis remembers the policy of an organization of which nothing was counted.
const UNCOUNTED_LIFETIME_MS: u64 = 3_600_000;
/// Where `mirror.lua` keeps its revision; no id of a key looks like this.
pub(super) const MIRROR_REVISION: &str = "revision";

/// What `open.lua` and `restore.lua` say of a counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opening {
    /// The counter stands, in the generation that the caller named.
    Ready,
    /// The shard has another generation, or none.
    Generation,
    /// Redis knows no policy of the organization, or a newer one.
    Policy,
    /// Unknown: Postgres must be asked.
    Restore,
    /// What was stored is not what the counter held; read it again.
    Changed,
    /// The organization has as many meters as it may have.
    TooManyMeters,
}

impl Opening {
    fn parse(word: &str) -> Result<Self, Error> {
        match word {
            "opened" | "restored" | "exists" => Ok(Self::Ready),
            "generation" => Ok(Self::Generation),
            "policy" => Ok(Self::Policy),
            "restore" => Ok(Self::Restore),
            "changed" => Ok(Self::Changed),
            "too_many_meters" => Ok(Self::TooManyMeters),
            _ => Err(Error::Inconsistent(format!("a script answered {word:?}"))),
        }
    }
}

/// Calls `count.lua`: one outcome for each operation, in order.
pub(super) async fn count(
    link: &Link,
    keys: &Keys,
    operations: &[Operation<'_>],
    now: DateTime<Utc>,
    record_lifetime_ms: u64,
) -> Result<Vec<Outcome>, Error> {
    let mut call = COUNT.prepare_invoke();
    call.arg(now.timestamp_millis())
        .arg(record_lifetime_ms)
        .arg(operations.len());
    for operation in operations {
        let kind = match operation.kind {
            decision::Operation::Track => "t",
            decision::Operation::Consume => "c",
            decision::Operation::Check => "k",
            decision::Operation::Refund => "r",
        };
        call.key(keys.dirty(Shard::of(operation.organization)));
        call.arg(kind).arg(operation.charges.len());
        match operation.attempt {
            Some(attempt) => {
                call.key(keys.idempotency(operation.organization, &attempt.key))
                    .arg(&attempt.fingerprint);
            }
            None => {
                call.arg("");
            }
        }
        for charge in &operation.charges {
            let cap = charge
                .stamp
                .rule
                .cap()
                .filter(|_| operation.kind.respects_limits());
            call.key(keys.counter(&charge.counter))
                .arg(charge.demand.amount)
                .arg(charge.demand.need);
            match cap {
                Some(cap) => call.arg(cap.get()),
                None => call.arg(""),
            };
            call.arg(charge.stamp.to_string())
                .arg(charge.hour.timestamp_millis());
        }
    }
    let charges = operations.iter().map(|operation| operation.charges.len());
    link.metrics.count_called(operations.len(), charges.sum());
    let replies: Vec<Vec<Value>> = link.invoke(metrics::Script::Count, &call).await?;
    if replies.len() != operations.len() {
        return Err(Error::Inconsistent(
            "count.lua answered another number of operations".to_owned(),
        ));
    }
    operations
        .iter()
        .zip(&replies)
        .map(|(operation, reply)| {
            outcome(operation, reply)
                .ok_or_else(|| Error::Inconsistent(format!("count.lua answered {reply:?}")))
        })
        .collect()
}

fn outcome(operation: &Operation<'_>, reply: &[Value]) -> Option<Outcome> {
    let (status, rest) = reply.split_first()?;
    let Value::Int(status) = status else {
        return None;
    };
    let position = || match rest {
        [Value::Int(one_based)] => usize::try_from(*one_based).ok()?.checked_sub(1),
        _ => None,
    };
    Some(match status {
        0 | 1 => Outcome::Answered(Answer {
            granted: *status == 0,
            replayed: false,
            readings: fresh(operation, rest)?,
        }),
        2 => match rest {
            [Value::BulkString(record)] => {
                Outcome::Answered(replayed(std::str::from_utf8(record).ok()?)?)
            }
            _ => return None,
        },
        3 => Outcome::KeyReused,
        4 => Outcome::Missing(position()?),
        5 => Outcome::Frozen(position()?),
        6 => Outcome::Closed(position()?),
        7 => Outcome::Overflow(position()?),
        _ => return None,
    })
}

/// The counts of a decision, and behind them, for a refund, what was given back of each.
fn fresh(operation: &Operation<'_>, values: &[Value]) -> Option<Vec<Reading>> {
    let charges = &operation.charges;
    let (counts, given_back) = values.split_at_checked(charges.len())?;
    let given_back = match operation.kind {
        decision::Operation::Refund => given_back.iter().map(unsigned).collect::<Option<_>>()?,
        _ => vec![0; charges.len()],
    };
    let readings = charges.iter().zip(counts).zip(given_back);
    readings
        .map(|((charge, value), given_back)| {
            let (used, stamp) = match value {
                Value::Int(_) => (unsigned(value)?, charge.stamp),
                Value::BulkString(text) => {
                    let (used, stamp) = std::str::from_utf8(text).ok()?.split_once(' ')?;
                    (used.parse().ok()?, Stamp::parse(stamp)?)
                }
                _ => return None,
            };
            let start = charge.counter.start;
            Some(Reading {
                start,
                used: Count::try_from(used).ok()?,
                stamp,
                given_back,
            })
        })
        .collect()
}

/// Reads an idempotency record: `status|start used stamp given-back|…`.
fn replayed(record: &str) -> Option<Answer> {
    let mut parts = record.split('|');
    let granted = parts.next()? == "0";
    let readings = parts.map(|part| {
        let mut words = part.split(' ');
        Some(Reading {
            start: DateTime::from_timestamp_millis(words.next()?.parse().ok()?)?,
            used: Count::try_from(words.next()?.parse::<u64>().ok()?).ok()?,
            stamp: Stamp::parse(words.next()?)?,
            given_back: words.next()?.parse().ok()?,
        })
    });
    Some(Answer {
        granted,
        replayed: true,
        readings: readings.collect::<Option<_>>()?,
    })
}

fn unsigned(value: &Value) -> Option<u64> {
    match value {
        Value::Int(number) => u64::try_from(*number).ok(),
        _ => None,
    }
}

/// Calls `open.lua`: starts a missing counter at zero, if that is certain.
pub(super) async fn open(
    link: &Link,
    keys: &Keys,
    counter: &CounterId,
    stamp: &Stamp,
    now: DateTime<Utc>,
    margin_ms: i64,
    expiry: Option<DateTime<Utc>>,
) -> Result<Opening, Error> {
    let mut call = OPEN.prepare_invoke();
    call.key(keys.generation(Shard::of(&counter.organization)))
        .key(keys.organization(&counter.organization))
        .key(keys.counter(counter))
        .arg(now.timestamp_millis())
        .arg(stamp.generation)
        .arg(stamp.version)
        .arg(counter.meter.as_str())
        .arg(stamp.to_string())
        .arg(counter.start.timestamp_millis())
        .arg(margin_ms)
        .arg(optional_ms(expiry))
        .arg(METERS_MAX);
    let word: String = link.invoke(metrics::Script::Open, &call).await?;
    if word == "opened" {
        link.metrics.counter_opened(Opened::AtZero);
    }
    Opening::parse(&word)
}

/// Calls `restore.lua`: writes what Postgres holds. `held` is the old content that was stored first.
pub(super) async fn restore(
    link: &Link,
    keys: &Keys,
    held: Option<&Snapshot>,
    snapshot: &Snapshot,
    meters: &[MeterId],
    policy_version: u64,
    expiry: Option<DateTime<Utc>>,
) -> Result<Opening, Error> {
    let counter = &snapshot.counter;
    let shard = Shard::of(&counter.organization);
    let meters: Vec<&str> = meters.iter().map(MeterId::as_str).collect();
    let mut call = RESTORE.prepare_invoke();
    call.key(keys.generation(shard))
        .key(keys.organization(&counter.organization))
        .key(keys.dirty(shard))
        .key(keys.counter(counter))
        .arg(snapshot.stamp.generation)
        .arg(policy_version)
        .arg(meters.join(" "))
        .arg(
            held.map(|held| format!("{} {}", held.sequence, held.stamp))
                .unwrap_or_default(),
        )
        .arg(snapshot.stamp.to_string())
        .arg(snapshot.used.get())
        .arg(snapshot.denied)
        .arg(snapshot.refunded)
        .arg(snapshot.sequence)
        .arg(optional_ms(expiry));
    for hour in &snapshot.hours {
        call.arg(hour.start.timestamp_millis())
            .arg(hour.used)
            .arg(hour.denied)
            .arg(hour.refunded);
    }
    let word: String = link.invoke(metrics::Script::Restore, &call).await?;
    if word == "restored" {
        link.metrics.counter_opened(Opened::FromPostgres);
    }
    Opening::parse(&word)
}

/// Calls `settle.lua` for counters of one shard; returns how many are clean now.
pub(super) async fn settle(
    link: &Link,
    keys: &Keys,
    shard: Shard,
    settlements: &[Settlement<'_>],
    read_at: DateTime<Utc>,
) -> Result<usize, Error> {
    let mut call = SETTLE.prepare_invoke();
    call.key(keys.dirty(shard))
        .key(keys.generation(shard))
        .arg(read_at.timestamp_millis());
    for settlement in settlements {
        call.key(keys.counter(settlement.counter));
        let Some(snapshot) = settlement.snapshot else {
            // No counter has generation 0, so that one which has come back is left alone.
            call.arg(0).arg(0).arg(0).arg("").arg(0).arg(0);
            continue;
        };
        let hours: Vec<_> = snapshot.unstored_hours().collect();
        let drops: Vec<_> = snapshot
            .hours
            .iter()
            .filter(|hour| hour.start < settlement.drop_hours_before)
            .collect();
        call.arg(snapshot.stamp.generation)
            .arg(snapshot.sequence)
            .arg(i32::from(settlement.stored))
            .arg(optional_ms(settlement.expiry))
            .arg(hours.len())
            .arg(drops.len());
        for hour in hours {
            call.arg(hour.start.timestamp_millis())
                .arg(hour.used)
                .arg(hour.denied)
                .arg(hour.refunded);
        }
        for hour in drops {
            call.arg(hour.start.timestamp_millis());
        }
    }
    link.invoke(metrics::Script::Settle, &call).await
}

/// Calls `configure.lua`: makes a policy known to Redis and to the named running counters.
/// Returns the version that Redis knows now and every meter counted.
pub(super) async fn configure(
    link: &Link,
    keys: &Keys,
    organization: &OrganizationId,
    version: u64,
    policy: &str,
    now: DateTime<Utc>,
    running: &[(CounterId, Stamp)],
) -> Result<(u64, Vec<MeterId>), Error> {
    let mut call = CONFIGURE.prepare_invoke();
    call.key(keys.organization(organization))
        .key(keys.dirty(Shard::of(organization)))
        .key(keys.generation(Shard::of(organization)))
        .arg(version)
        .arg(policy)
        .arg(now.timestamp_millis())
        .arg(UNCOUNTED_LIFETIME_MS);
    for (counter, stamp) in running {
        call.key(keys.counter(counter))
            .arg(stamp.without_generation());
    }
    let (known, meters): (u64, String) = link.invoke(metrics::Script::Configure, &call).await?;
    Ok((known, parse_meters(&meters)))
}

/// Calls `mirror.lua`: takes the mirror of the API keys on, unless somebody else has.
pub(super) async fn mirror(
    link: &Link,
    keys: &Keys,
    seen: u64,
    changes: &KeyChanges<'_>,
) -> Result<bool, Error> {
    let mut call = MIRROR.prepare_invoke();
    call.key(keys.api_keys())
        .arg(seen)
        .arg(changes.revision)
        .arg(if changes.replace { "replace" } else { "add" });
    for (id, record) in &changes.records {
        call.arg(id.as_str()).arg(record);
    }
    link.invoke(metrics::Script::Mirror, &call).await
}

/// Calls `generation.lua` for several shards at once, with a number drawn for each where there is one.
/// Notes the generations in the link and returns the shards that still need a number.
pub(super) async fn identify(
    link: &Link,
    keys: &Keys,
    shards: &[Unnumbered],
    number: Option<u64>,
    now: DateTime<Utc>,
    trust_restart: bool,
) -> Result<Vec<Unnumbered>, Error> {
    // Nothing repairs a script that is missing inside a pipeline, so it is loaded first.
    let mut pipeline = redis::pipe();
    pipeline
        .cmd("SCRIPT")
        .arg("LOAD")
        .arg(GENERATION_SOURCE)
        .ignore();
    for Unnumbered { shard, name } in shards {
        pipeline
            .cmd("EVALSHA")
            .arg(GENERATION.get_hash())
            .arg(1)
            .arg(keys.generation(*shard))
            .arg(&link.run_id)
            .arg(Uuid::new_v4().to_string())
            .arg(now.timestamp_millis())
            .arg(i32::from(trust_restart))
            .arg(number.map_or("", |_| name.as_str()))
            .arg(number.map(|number| number.to_string()).unwrap_or_default());
    }
    let begun = Instant::now();
    let replies: Vec<(String, String)> = link.run(&pipeline).await?;
    link.metrics
        .script_answered(metrics::Script::Generation, begun.elapsed());
    let mut unnumbered = Vec::new();
    for (Unnumbered { shard, .. }, (name, number)) in shards.iter().zip(replies) {
        link.set_generation(*shard, number.parse().ok());
        if number.is_empty() {
            unnumbered.push(Unnumbered {
                shard: *shard,
                name,
            });
        }
    }
    Ok(unnumbered)
}

/// The list of meters as the organization's hash holds it.
pub(super) fn parse_meters(text: &str) -> Vec<MeterId> {
    text.split_whitespace()
        .filter_map(|meter| meter.parse().ok())
        .collect()
}

fn optional_ms(instant: Option<DateTime<Utc>>) -> String {
    instant
        .map(|instant| instant.timestamp_millis().to_string())
        .unwrap_or_default()
}
