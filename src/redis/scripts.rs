//! One typed function for each script in `lua/`. No other file names a script, a key position or an
//! argument position; the scripts' own comments say what each does and keeps true.

use std::collections::HashMap;
use std::sync::LazyLock;

use chrono::{DateTime, Utc};
use redis::{Cmd, Script};
use uuid::Uuid;

use super::codec::Array;
use super::connection::Connection;
use super::count::batch::{self, Batch, LANE_KEYS, size};
use super::counter_value;
use super::error::Error;
use super::keys::{Keys, Shard};
use super::{
    Attempt, Configuration, Configured, Correction, KeyChanges, KnownOrganization, Missing, Moved,
    Next, Outcome, Settlement, Unnumbered,
};
use crate::domain::counter::CounterId;
use crate::domain::ids::{METERS_MAX, MeterId, OrganizationId};
use crate::domain::threshold::Told;
use crate::domain::verification::Counted;
use crate::metrics::{self, Recovered};

macro_rules! source {
    ($file:literal) => {
        include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/lua/", $file))
    };
}

/// A script, and its text for a Redis that does not have it.
struct Lua {
    script: Script,
    text: String,
}

impl Lua {
    fn new(text: &str) -> Self {
        Self {
            script: Script::new(text),
            text: text.to_owned(),
        }
    }

    /// A script with the parts that it needs.
    fn with(parts: &[&str], text: &str) -> Self {
        Self::new(&join(parts, text))
    }

    /// The beginning of a call.
    fn call(&self, key_count: usize) -> Cmd {
        let mut call = redis::cmd("EVALSHA");
        call.arg(self.script.get_hash()).arg(key_count);
        call
    }
}

/// Declares each script with the parts of `lua/` that it is joined with.
macro_rules! scripts {
    ($($name:ident = $file:literal + [$($part:literal),*];)+) => {
        $(static $name: LazyLock<Lua> =
            LazyLock::new(|| Lua::with(&[$(source!($part)),*], source!($file)));)+

        #[cfg(test)]
        static ALL: &[&LazyLock<Lua>] = &[$(&$name),+];
    };
}

scripts! {
    COUNT = "count.lua" + ["counter.lua", "batch.lua"];
    OPEN = "open.lua" + ["counter.lua", "organization.lua", "data_set.lua"];
    RESTORE = "restore.lua" + ["counter.lua", "organization.lua"];
    CLOSE = "close.lua" + ["counter.lua", "organization.lua", "data_set.lua"];
    ADJUST = "adjust.lua" + ["counter.lua", "organization.lua"];
    SETTLE = "settle.lua" + ["counter.lua"];
    CONFIGURE = "configure.lua" + ["counter.lua", "organization.lua"];
    POLICY = "policy.lua" + ["organization.lua"];
    ERASE = "erase.lua" + ["counter.lua"];
    GC_COUNTERS = "gc_counters.lua" + ["counter.lua"];
    GC_ORGANIZATIONS = "gc_organizations.lua" + ["organization.lua"];
    UNFENCE = "unfence.lua" + [];
    MIRROR = "mirror.lua" + [];
    GENERATION = "generation.lua" + [];
}

/// Joins a script with parts behind its first line, and replaces constants by their values: Lua 5.1 has none, and each call
/// would assign a local variable.
fn join(parts: &[&str], script: &str) -> String {
    let (shebang, rest) = script.split_once('\n').unwrap_or_default();
    let text = format!("{shebang}\n{}{rest}", parts.concat());
    let constants: HashMap<&str, &str> = text.lines().filter_map(constant).collect();
    let is_delimiter = |c: char| !c.is_ascii_alphanumeric() && c != '_';
    let mut joined = String::with_capacity(text.len());
    for line in text.lines().filter(|line| constant(line).is_none()) {
        for part in line.split_inclusive(is_delimiter) {
            let word = part.trim_end_matches(is_delimiter);
            joined.push_str(constants.get(word).copied().unwrap_or(word));
            joined.extend(part.chars().skip(word.chars().count()));
        }
        joined.push('\n');
    }
    joined
}

/// Name and value of a line `local NAME <const> = value`, which a comment may follow.
fn constant(line: &str) -> Option<(&str, &str)> {
    let (name, value) = line.strip_prefix("local ")?.split_once(" <const> = ")?;
    Some((name, value.split("--").next()?.trim_end()))
}

/// How long a receipt is kept after its lane's last batch: longer than any packet is on its way.
const RECEIPT_LIFETIME_MS: u64 = 3_600_000;
/// Where `mirror.lua` keeps its mark; no id of a key looks like this.
pub(super) const MIRROR_MARK: &str = "mark";

/// What `open.lua`, `restore.lua`, `close.lua` and `adjust.lua` say of a counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecoveryReply {
    /// The counter stands, in the generation that the caller named, with what the caller wanted of it.
    Ready,
    /// The shard has another generation, or none.
    Generation,
    /// Redis knows no policy of the organization, or a newer one.
    Policy,
    /// Unknown: Postgres must be asked.
    Restore,
    /// The counter that the reset closes is unknown: Postgres must be asked for that first.
    RestoreClosed,
    /// What was stored is not what the counter held; read it again.
    Changed,
    /// The organization has as many meters as it may have.
    TooManyMeters,
}

impl RecoveryReply {
    fn parse(word: &str) -> Result<Self, Error> {
        match word {
            "opened" | "restored" | "exists" | "closed" | "adjusted" => Ok(Self::Ready),
            "generation" => Ok(Self::Generation),
            "policy" => Ok(Self::Policy),
            "restore" => Ok(Self::Restore),
            "restore_closed" => Ok(Self::RestoreClosed),
            "changed" => Ok(Self::Changed),
            "too_many_meters" => Ok(Self::TooManyMeters),
            _ => Err(Error::Inconsistent(format!("a script answered {word:?}"))),
        }
    }
}

/// A batch as its lane sends it.
pub(super) struct Sending<'a> {
    /// The lane's own name.
    pub(super) lane: &'a str,
    /// Grows from batch to batch.
    pub(super) number: u64,
    /// Whether it was sent before, and not answered.
    pub(super) again: bool,
    pub(super) batch: &'a Batch,
}

/// Calls `count.lua`; [`Batch::outcomes`] reads the answer. None if nobody can say
/// what became of a batch that was sent before.
pub(super) async fn count(
    connection: &Connection,
    keys: &Keys,
    sending: &Sending<'_>,
    now: DateTime<Utc>,
    record_lifetime_ms: u64,
) -> Result<Option<Vec<u8>>, Error> {
    /// Those that every call has.
    const ARGUMENTS: usize = 12;
    // Put together by hand, because an invocation of the library's copies every key and argument once more.
    let batch = sending.batch;
    let mut call = Cmd::with_capacity(
        batch.key_count().saturating_add(ARGUMENTS),
        batch.size().saturating_add(ARGUMENTS * 64),
    );
    call.arg("EVALSHA")
        .arg(COUNT.script.get_hash())
        .arg(batch.key_count().saturating_add(LANE_KEYS + 1))
        .arg(keys.receipt(sending.lane))
        .arg(keys.generation(Shard::OF_RECEIPTS));
    batch.write_keys(&mut call);
    call.arg(keys.fences())
        .arg(now.timestamp_millis())
        .arg(record_lifetime_ms)
        .arg(RECEIPT_LIFETIME_MS)
        .arg(sending.number)
        .arg(i32::from(sending.again))
        .arg(batch.body());
    connection.evaluate(&call, &COUNT.text).await
}

/// Reads in one command what attempts were answered before; none where there is no record of one.
pub(super) async fn answered(
    connection: &Connection,
    keys: &Keys,
    attempts: &[(&OrganizationId, &Attempt)],
) -> Result<Vec<Option<Outcome>>, Error> {
    if attempts.is_empty() {
        return Ok(Vec::new());
    }
    let mut pipeline = redis::pipe();
    pipeline.cmd("MGET");
    for (organization, attempt) in attempts {
        pipeline.arg(keys.idempotency(organization, &attempt.key));
    }
    let (values,): (Vec<Option<String>>,) = connection.run(&pipeline).await?;
    let parse = |((_, attempt), value): (&(_, &Attempt), Option<String>)| {
        let Some(value) = value else { return Ok(None) };
        let outcome = batch::answered(attempt, &value);
        outcome.map(Some).ok_or_else(|| {
            let key = &attempt.key;
            Error::Inconsistent(format!("what is held of the idempotency key {key}"))
        })
    };
    attempts.iter().zip(values).map(parse).collect()
}

/// Reads counters in one command, each as it is held, in that order.
pub(super) async fn read(
    connection: &Connection,
    keys: &Keys,
    counters: &[CounterId],
) -> Result<Vec<Option<Counted>>, Error> {
    let held = read_each(connection, keys, counters).await?;
    held.into_iter().map(Option::transpose).collect()
}

/// The same, where one that cannot be read is no matter of the others.
pub(super) async fn read_each(
    connection: &Connection,
    keys: &Keys,
    counters: &[CounterId],
) -> Result<Vec<Option<Result<Counted, Error>>>, Error> {
    if counters.is_empty() {
        return Ok(Vec::new());
    }
    let mut pipeline = redis::pipe();
    pipeline.cmd("MGET");
    for counter in counters {
        pipeline.arg(keys.counter(counter));
    }
    let (values,): (Vec<Option<Vec<u8>>>,) = connection.run(&pipeline).await?;
    let parse =
        |(counter, value): (&CounterId, Option<Vec<u8>>)| {
            let counted = counter_value::parse(counter, &value?);
            Some(counted.ok_or_else(|| {
                Error::Inconsistent(format!("what is held of the counter {counter:?}"))
            }))
        };
    Ok(counters.iter().zip(values).map(parse).collect())
}

/// Calls `open.lua` for several counters: starts each that is missing at zero, if that is certain.
pub(super) async fn open(
    connection: &Connection,
    keys: &Keys,
    missing: &[Missing<'_>],
    now: DateTime<Utc>,
    margin_ms: i64,
) -> Result<Vec<RecoveryReply>, Error> {
    let calls = missing.iter().map(|it| {
        let (counter, stamp) = (it.counter, it.stamp);
        let mut call = OPEN.call(3);
        call.arg(keys.generation(Shard::of(&counter.organization)))
            .arg(keys.organizations(&counter.organization))
            .arg(keys.counter(counter))
            .arg(now.timestamp_millis())
            .arg(stamp.generation)
            .arg(stamp.version)
            .arg(counter.meter.as_str())
            .arg(stamp.to_string())
            .arg(counter.start.timestamp_millis())
            .arg(margin_ms)
            .arg(METERS_MAX)
            .arg(counter.organization.as_str());
        call
    });
    openings(
        connection,
        metrics::Script::Open,
        calls.collect(),
        &OPEN.text,
    )
    .await
}

/// Calls `restore.lua` for several counters: writes what Postgres holds of each. `now` is since when those are dirty
/// that may have something to be told.
pub(super) async fn restore(
    connection: &Connection,
    keys: &Keys,
    moved: &[Moved<'_>],
    now: DateTime<Utc>,
) -> Result<Vec<RecoveryReply>, Error> {
    let calls = moved.iter().map(|it| {
        let snapshot = it.snapshot;
        let counter = &snapshot.counter;
        let shard = Shard::of(&counter.organization);
        let meters: Vec<&str> = it.meters.iter().map(MeterId::as_str).collect();
        let held = it.held.map(|it| format!("{} {}", it.sequence, it.stamp));
        let adjusted = snapshot.adjusted.map(|it| it.to_string());
        let mut call = RESTORE.call(4);
        call.arg(keys.generation(shard))
            .arg(keys.organizations(&counter.organization))
            .arg(keys.dirty(shard))
            .arg(keys.counter(counter))
            .arg(snapshot.stamp.generation)
            .arg(it.policy_version)
            .arg(meters.join(" "))
            .arg(held.unwrap_or_default())
            .arg(snapshot.stamp.to_string())
            .arg(snapshot.used.get())
            .arg(snapshot.denied)
            .arg(snapshot.refunded)
            .arg(snapshot.sequence)
            .arg(told_text(&snapshot.thresholds.told))
            .arg(adjusted.unwrap_or_default())
            .arg(optional_ms(it.may_have_news().then_some(now)))
            .arg(counter.organization.as_str());
        for hour in &snapshot.hours {
            call.arg(hour.start.timestamp_millis())
                .arg(hour.used)
                .arg(hour.denied)
                .arg(hour.refunded);
        }
        call
    });
    openings(
        connection,
        metrics::Script::Restore,
        calls.collect(),
        &RESTORE.text,
    )
    .await
}

/// Calls `close.lua` for several resets: closes the counter that each ended, and begins the next.
pub(super) async fn close(
    connection: &Connection,
    keys: &Keys,
    next: &[Next<'_>],
    now: DateTime<Utc>,
    margin_ms: i64,
) -> Result<Vec<RecoveryReply>, Error> {
    let calls = next.iter().map(|it| {
        let (counter, stamp, reset) = (it.counter, it.stamp, it.reset);
        let closed = CounterId {
            start: reset.closed_start,
            ..counter.clone()
        };
        let shard = Shard::of(&counter.organization);
        let mut call = CLOSE.call(5);
        call.arg(keys.generation(shard))
            .arg(keys.organizations(&counter.organization))
            .arg(keys.dirty(shard))
            .arg(keys.counter(&closed))
            .arg(keys.counter(counter))
            .arg(now.timestamp_millis())
            .arg(stamp.generation)
            .arg(stamp.version)
            .arg(counter.meter.as_str())
            .arg(stamp.to_string())
            .arg(reset.closed_start.timestamp_millis())
            .arg(reset.at.timestamp_millis())
            .arg(margin_ms)
            .arg(counter.organization.as_str());
        call
    });
    openings(
        connection,
        metrics::Script::Close,
        calls.collect(),
        &CLOSE.text,
    )
    .await
}

/// Calls one of these scripts for several counters; what each was told, in order.
async fn openings(
    connection: &Connection,
    script: metrics::Script,
    calls: Vec<Cmd>,
    source: &str,
) -> Result<Vec<RecoveryReply>, Error> {
    let words: Vec<String> = connection.evaluate_all(script, calls, source).await?;
    for word in &words {
        match word.as_str() {
            "opened" => connection.metrics.counter_opened(Recovered::AtZero),
            "restored" => connection.metrics.counter_opened(Recovered::FromPostgres),
            _ => {}
        }
    }
    words
        .iter()
        .map(|word| RecoveryReply::parse(word))
        .collect()
}

/// Calls `adjust.lua`: applies an adjustment to its counter, once.
pub(super) async fn adjust(
    connection: &Connection,
    keys: &Keys,
    correction: &Correction<'_>,
    now: DateTime<Utc>,
) -> Result<RecoveryReply, Error> {
    let organization = &correction.counter.organization;
    let shard = Shard::of(organization);
    let mut call = ADJUST.call(4);
    call.arg(keys.generation(shard))
        .arg(keys.organizations(organization))
        .arg(keys.dirty(shard))
        .arg(keys.counter(correction.counter))
        .arg(now.timestamp_millis())
        .arg(correction.generation)
        .arg(correction.policy_version)
        .arg(correction.id)
        .arg(correction.amount)
        .arg(correction.hour.timestamp_millis())
        .arg(organization.as_str())
        .arg(correction.percents);
    let word: String = connection
        .invoke(metrics::Script::Adjust, &call, &ADJUST.text)
        .await?;
    RecoveryReply::parse(&word)
}

/// Calls `settle.lua` for counters of one shard; returns how many are clean now.
pub(super) async fn settle(
    connection: &Connection,
    keys: &Keys,
    shard: Shard,
    settlements: &[Settlement<'_>],
    read_at: DateTime<Utc>,
) -> Result<usize, Error> {
    let mut call = SETTLE.call(settlements.len().saturating_add(2));
    call.arg(keys.dirty(shard)).arg(keys.generation(shard));
    let mut read = Array::default();
    for settlement in settlements {
        call.arg(keys.counter(settlement.counter));
        let Some(snapshot) = settlement.snapshot else {
            // No counter has generation 0, so that one which has come back is left alone.
            read.push_text("0:0:").push(0_u8).push(0_u8);
            read.push_text("").push(0_u8).push(0_u8).push(0_u8);
            continue;
        };
        let hours = || snapshot.unstored_hours();
        let drops = || {
            let hours = snapshot.hours.iter();
            hours.filter(|hour| hour.start < settlement.drop_hours_before)
        };
        let stamp = &snapshot.stamp;
        read.push_text(&format!("{}:{}:", stamp.generation, stamp.version))
            .push(snapshot.sequence)
            .push(u8::from(settlement.stored));
        match settlement.told {
            Some(told) => read.push_text(&told.to_string()),
            None => read.push_text(""),
        };
        read.push(size(snapshot.thresholds.crossed.to_string().len()));
        read.push(size(hours().count())).push(size(drops().count()));
        for hour in hours() {
            read.push_signed(hour.start.timestamp_millis())
                .push_signed(hour.used)
                .push(hour.denied)
                .push(hour.refunded);
        }
        for hour in drops() {
            read.push_signed(hour.start.timestamp_millis());
        }
    }
    call.arg(read_at.timestamp_millis())
        .arg(Array::default().followed_by(&read));
    connection
        .invoke(metrics::Script::Settle, &call, &SETTLE.text)
        .await
}

/// Calls `configure.lua` for several organizations: makes the policy of each known to Redis and to the named running
/// counters. `erased` says that nothing is left of a life before the policy's incarnation.
pub(super) async fn configure(
    connection: &Connection,
    keys: &Keys,
    policies: &[Configuration<'_>],
    erased: bool,
    now: DateTime<Utc>,
) -> Result<Vec<Configured>, Error> {
    let calls = policies.iter().map(|it| {
        let shard = Shard::of(it.organization);
        let mut call = CONFIGURE.call(it.running.len().saturating_add(4));
        call.arg(keys.organizations(it.organization))
            .arg(keys.dirty(shard))
            .arg(keys.generation(shard))
            .arg(keys.policies(shard));
        for (counter, _) in it.running {
            call.arg(keys.counter(counter));
        }
        call.arg(it.policy.version)
            .arg(it.policy.json)
            .arg(now.timestamp_millis())
            .arg(it.organization.as_str())
            .arg(it.policy.incarnation)
            .arg(i32::from(erased));
        for (_, stamp) in it.running {
            call.arg(stamp.without_generation());
        }
        call
    });
    let replies: Vec<(String, String, Option<String>)> = connection
        .evaluate_all(metrics::Script::Configure, calls.collect(), &CONFIGURE.text)
        .await?;
    let configured = replies.into_iter().map(|(word, meters, stale)| {
        let meters = parse_meters(&meters);
        if let Some(policy) = stale {
            return Ok(Configured::Former { policy, meters });
        }
        let version = word.parse().map_err(|_| {
            Error::Inconsistent(format!("a script answered {word:?} in place of a version"))
        })?;
        Ok(Configured::Known { version, meters })
    });
    configured.collect()
}

/// Calls `policy.lua` for several organizations: what is known of each; none where the policy is not.
pub(super) async fn known(
    connection: &Connection,
    keys: &Keys,
    organizations: &[&OrganizationId],
) -> Result<Vec<Option<KnownOrganization>>, Error> {
    let calls = organizations.iter().map(|it| {
        let mut call = POLICY.call(2);
        call.arg(keys.organizations(it))
            .arg(keys.policies(Shard::of(it)))
            .arg(it.as_str());
        call
    });
    let answers: Vec<(Option<String>, Option<String>, u64)> = connection
        .evaluate_all(metrics::Script::Policy, calls.collect(), &POLICY.text)
        .await?;
    let known = answers.into_iter().map(|(policy, meters, incarnation)| {
        Some(KnownOrganization {
            policy: policy?,
            meters: meters.map(|meters| parse_meters(&meters)),
            incarnation,
        })
    });
    Ok(known.collect())
}

/// Calls `erase.lua`: erases what is of a life before `incarnation`; returns how many counters and how many
/// idempotency records. All are of one shard.
pub(super) async fn erase(
    connection: &Connection,
    keys: &Keys,
    shard: Shard,
    incarnation: u64,
    counters: &[&str],
    records: &[&str],
) -> Result<(usize, usize), Error> {
    let erased = counters.iter().chain(records);
    let mut call = ERASE.call(erased.clone().count().saturating_add(1));
    call.arg(keys.dirty(shard));
    for key in erased {
        call.arg(*key);
    }
    call.arg(incarnation).arg(counters.len());
    connection
        .invoke(metrics::Script::Erase, &call, &ERASE.text)
        .await
}

/// Calls `gc_counters.lua` for counters of one shard; returns how many were forgotten.
pub(super) async fn forget_counters(
    connection: &Connection,
    keys: &Keys,
    shard: Shard,
    counters: &[&CounterId],
    ended_before: DateTime<Utc>,
) -> Result<usize, Error> {
    let mut call = GC_COUNTERS.call(counters.len().saturating_add(1));
    call.arg(keys.generation(shard));
    for counter in counters {
        call.arg(keys.counter(counter));
    }
    call.arg(ended_before.timestamp_millis());
    connection
        .invoke(metrics::Script::ForgetCounters, &call, &GC_COUNTERS.text)
        .await
}

/// Calls `gc_organizations.lua` for several hashes, each with its shard; returns how many organizations were
/// forgotten.
pub(super) async fn forget_organizations(
    connection: &Connection,
    keys: &Keys,
    hashes: &[(Shard, &str)],
    written_before: DateTime<Utc>,
) -> Result<usize, Error> {
    let calls = hashes.iter().map(|(shard, hash)| {
        let mut call = GC_ORGANIZATIONS.call(2);
        call.arg(*hash)
            .arg(keys.policies(*shard))
            .arg(written_before.timestamp_millis());
        call
    });
    let forgotten: Vec<usize> = connection
        .evaluate_all(
            metrics::Script::ForgetOrganizations,
            calls.collect(),
            &GC_ORGANIZATIONS.text,
        )
        .await?;
    Ok(forgotten.into_iter().sum())
}

/// Calls `unfence.lua`: takes away the fence that stands for this version.
pub(super) async fn unfence(
    connection: &Connection,
    keys: &Keys,
    organization: &OrganizationId,
    version: u64,
) -> Result<(), Error> {
    let mut call = UNFENCE.call(1);
    call.arg(keys.fences())
        .arg(organization.as_str())
        .arg(version);
    let _: u64 = connection
        .invoke(metrics::Script::Unfence, &call, &UNFENCE.text)
        .await?;
    Ok(())
}

/// Calls `mirror.lua`: takes the mirror of the API keys on, unless somebody else has.
pub(super) async fn mirror(
    connection: &Connection,
    keys: &Keys,
    seen: Option<&str>,
    changes: &KeyChanges<'_>,
) -> Result<bool, Error> {
    let mut call = MIRROR.call(1);
    call.arg(keys.api_keys())
        .arg(seen.unwrap_or_default())
        .arg(&changes.mark)
        .arg(if changes.replace { "replace" } else { "add" });
    for (id, record) in &changes.records {
        call.arg(id.as_str()).arg(record);
    }
    connection
        .invoke(metrics::Script::Mirror, &call, &MIRROR.text)
        .await
}

/// Calls `generation.lua` for several shards at once, with a number drawn for each where there is one.
/// Notes the generations in the connection and returns the shards that still need a number.
pub(super) async fn identify(
    connection: &Connection,
    keys: &Keys,
    shards: &[Unnumbered],
    number: Option<u64>,
    now: DateTime<Utc>,
    trust_restart: bool,
) -> Result<Vec<Unnumbered>, Error> {
    let calls = shards.iter().map(|Unnumbered { shard, name }| {
        let mut call = GENERATION.call(1);
        call.arg(keys.generation(*shard))
            .arg(&connection.run_id)
            .arg(Uuid::new_v4().to_string())
            .arg(now.timestamp_millis())
            .arg(i32::from(trust_restart))
            .arg(number.map_or("", |_| name.as_str()))
            .arg(number.map(|number| number.to_string()).unwrap_or_default());
        call
    });
    let replies: Vec<(String, String)> = connection
        .evaluate_all(
            metrics::Script::Generation,
            calls.collect(),
            &GENERATION.text,
        )
        .await?;
    let mut unnumbered = Vec::new();
    for (Unnumbered { shard, .. }, (name, number)) in shards.iter().zip(replies) {
        connection.set_generation(*shard, number.parse().ok());
        if number.is_empty() {
            unnumbered.push(Unnumbered {
                shard: *shard,
                name,
            });
        }
    }
    Ok(unnumbered)
}

/// The list of meters as scripts hold it.
pub(super) fn parse_meters(text: &str) -> Vec<MeterId> {
    text.split_whitespace()
        .filter_map(|meter| meter.parse().ok())
        .collect()
}

/// What was told, as counters hold it; nothing where nothing was.
fn told_text(told: &Told) -> String {
    if *told == Told::default() {
        return String::new();
    }
    told.to_string()
}

fn optional_ms(instant: Option<DateTime<Utc>>) -> String {
    instant
        .map(|instant| instant.timestamp_millis().to_string())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constants_are_replaced_by_their_values_and_their_lines_removed() {
        let part = "local LAST <const> = 3\n";
        let script =
            "#!lua\nlocal LAST_USED <const> = 11  -- comment\nreturn counter[LAST_USED]+LAST\n";
        assert_eq!(join(&[part], script), "#!lua\nreturn counter[11]+3\n");
    }

    #[test]
    fn scripts_use_declared_constants_only() {
        for lua in ALL {
            let text = &lua.text;
            let (_, code) = text.split_once("\n").unwrap();
            let without_headers: String = code
                .split("--[[")
                .map(|part| part.rsplit("]]\n").next().unwrap())
                .collect();
            for line in without_headers.lines() {
                let line = line.split("--").next().unwrap();
                // Every second part is within quotes.
                for code in line.split('\'').step_by(2) {
                    let words = code.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
                    for word in words.filter(|word| word.len() > 1) {
                        let is_constant = !word.contains(|c: char| c.is_ascii_lowercase())
                            && word.contains(|c: char| c.is_ascii_uppercase());
                        assert!(
                            !is_constant || ["KEYS", "ARGV"].contains(&word),
                            "{word} in {line:?} is not declared"
                        );
                    }
                }
            }
        }
    }
}
