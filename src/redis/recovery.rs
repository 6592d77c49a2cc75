//! Starting, restoring, closing and adjusting counters.

use ::redis::Cmd;
use chrono::{DateTime, Utc};

use super::connection::Connection;
use super::error::Error;
use super::scripts::{ADJUST, CLOSE, OPEN, RESTORE, Script};
use super::shard::Shard;
use crate::domain::counter::{CounterId, Snapshot, Stamp};
use crate::domain::ids::{METERS_MAX, MeterId};
use crate::domain::schedule::Reset;
use crate::domain::threshold::Notified;
use crate::metrics::Recovered;

/// A counter to start at zero.
#[derive(Debug, Clone, Copy)]
pub struct Missing<'a> {
    /// The counter.
    pub counter: &'a CounterId,
    /// What decides, in the generation that the caller expects.
    pub stamp: &'a Stamp,
}

/// A counter that Postgres has moved to the generation in the snapshot's stamp.
#[derive(Debug, Clone, Copy)]
pub struct Moved<'a> {
    /// The old value in Redis, which was stored before.
    pub held: Option<&'a Snapshot>,
    /// What Postgres has now.
    pub snapshot: &'a Snapshot,
    /// Every meter that Postgres has of the organization.
    pub meters: &'a [MeterId],
    /// Of the policy that the caller resolved.
    pub policy_version: u64,
}

impl Moved<'_> {
    /// Whether thresholds may have been crossed, and not notified, before the move or under another limit.
    fn may_have_threshold_events(&self) -> bool {
        let notified = &self.snapshot.thresholds.notified;
        let moved = self.held.is_some() || notified.since == self.snapshot.stamp.version;
        moved && self.snapshot.may_have_threshold_events()
    }
}

/// A counter that starts at a reset.
#[derive(Debug, Clone, Copy)]
pub struct Next<'a> {
    /// The counter.
    pub counter: &'a CounterId,
    /// The reset, which names the counter before it.
    pub reset: Reset,
    /// What decides.
    pub stamp: &'a Stamp,
}

/// An adjustment to apply to a counter.
#[derive(Debug, Clone, Copy)]
pub struct Correction<'a> {
    /// Its id; grows from one adjustment of a counter to the next.
    pub id: u64,
    /// The counter.
    pub counter: &'a CounterId,
    /// The generation that the caller expects.
    pub generation: u64,
    /// The policy version that the caller resolved before it read that the adjustment is pending.
    pub policy_version: u64,
    /// Units to add, or negative to give back.
    pub amount: i64,
    /// The start of the hour that it is counted in.
    pub hour: DateTime<Utc>,
    /// Thresholds in percent of the limit, separated by spaces.
    pub percents: &'a str,
}

/// The reply of `open.lua`, `restore.lua`, `close.lua` or `adjust.lua`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecoveryReply {
    /// The counter is there, in the generation that the caller expects, and the request is done.
    Ready,
    /// The shard has another generation, or none.
    Generation,
    /// Redis has no policy of the organization, or a newer one, or the organization is fenced.
    Policy,
    /// Unknown: the counter must be restored from Postgres.
    Restore,
    /// Unknown: the counter that the reset closes must be restored first.
    RestoreClosed,
    /// The old value is not the one that was stored; read it again.
    Changed,
    /// The organization has the maximum number of meters.
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
            _ => Err(Error::Inconsistent(format!("a script replied {word:?}"))),
        }
    }
}

impl Connection {
    /// Starts missing counters at zero, each if it is certain that nothing was counted in its period.
    pub async fn open(
        &self,
        missing: &[Missing<'_>],
        now: DateTime<Utc>,
        margin_ms: i64,
    ) -> Result<Vec<RecoveryReply>, Error> {
        let calls = missing.iter().map(|Missing { counter, stamp }| {
            let shard = Shard::of(&counter.organization);
            let [generation, organization, _, key] = self.recovery_keys(counter);
            let arguments = (
                now.timestamp_millis(),
                stamp.generation,
                stamp.version,
                counter.meter.as_str(),
                stamp.to_string(),
                counter.start.timestamp_millis(),
                margin_ms,
                METERS_MAX,
                counter.organization.as_str(),
            );
            let keys = [generation, organization, key, self.keys.fences(shard)];
            (shard, OPEN.call(&keys, arguments))
        });
        self.recover(&OPEN, calls).await
    }

    /// Writes counters that Postgres has moved.
    pub async fn restore(
        &self,
        moved: &[Moved<'_>],
        now: DateTime<Utc>,
    ) -> Result<Vec<RecoveryReply>, Error> {
        let calls = moved.iter().map(|moved| {
            let snapshot = moved.snapshot;
            let (counter, notified) = (&snapshot.counter, snapshot.thresholds.notified);
            let meters: Vec<&str> = moved.meters.iter().map(MeterId::as_str).collect();
            let held = moved.held.map(|it| format!("{} {}", it.sequence, it.stamp));
            let arguments = (
                snapshot.stamp.generation,
                moved.policy_version,
                meters.join(" "),
                held.unwrap_or_default(),
                snapshot.stamp.to_string(),
                snapshot.used.get(),
                snapshot.denied,
                snapshot.refunded,
                snapshot.sequence,
            );
            let dirty_since = moved
                .may_have_threshold_events()
                .then(|| now.timestamp_millis());
            let shard = Shard::of(&counter.organization);
            let [generation, organization, dirty, key] = self.recovery_keys(counter);
            let keys = [
                generation,
                organization,
                dirty,
                key,
                self.keys.fences(shard),
            ];
            let mut call = RESTORE.call(&keys, arguments);
            call.arg(text((notified != Notified::default()).then_some(notified)))
                .arg(text(snapshot.adjusted))
                .arg(text(dirty_since))
                .arg(snapshot.drained)
                .arg(counter.organization.as_str());
            for hour in &snapshot.hours {
                let start = hour.start.timestamp_millis();
                call.arg((start, hour.used, hour.denied, hour.refunded));
            }
            (shard, call)
        });
        self.recover(&RESTORE, calls).await
    }

    /// Closes counters that resets ended, and starts the next of each. Idempotent.
    pub async fn close(
        &self,
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
            let [generation, organization, dirty, key] = self.recovery_keys(counter);
            let closed = self.keys.counter(&closed);
            let arguments = (
                now.timestamp_millis(),
                stamp.generation,
                stamp.version,
                counter.meter.as_str(),
                stamp.to_string(),
                reset.closed_start.timestamp_millis(),
                reset.at.timestamp_millis(),
                margin_ms,
                counter.organization.as_str(),
            );
            let fences = self.keys.fences(shard);
            let keys = [generation, organization, dirty, closed, key, fences];
            (shard, CLOSE.call(&keys, arguments))
        });
        self.recover(&CLOSE, calls).await
    }

    /// Applies an adjustment to its counter. Idempotent.
    pub async fn adjust(
        &self,
        correction: &Correction<'_>,
        now: DateTime<Utc>,
    ) -> Result<RecoveryReply, Error> {
        let arguments = (
            now.timestamp_millis(),
            correction.generation,
            correction.policy_version,
            correction.id,
            correction.amount,
            correction.hour.timestamp_millis(),
            correction.counter.organization.as_str(),
            correction.percents,
        );
        let call = ADJUST.call(&self.recovery_keys(correction.counter), arguments);
        let shard = Shard::of(&correction.counter.organization);
        let word: String = self.invoke(shard, &ADJUST, &call).await?;
        RecoveryReply::parse(&word)
    }

    /// The shard's generation, the organization's hash, the dirty index, and the counter.
    fn recovery_keys(&self, counter: &CounterId) -> [String; 4] {
        let shard = Shard::of(&counter.organization);
        [
            self.keys.generation(shard),
            self.keys.organizations(&counter.organization),
            self.keys.dirty(shard),
            self.keys.counter(counter),
        ]
    }

    /// Calls one of these scripts for several counters; the replies, in order.
    async fn recover(
        &self,
        script: &Script,
        calls: impl Iterator<Item = (Shard, Cmd)>,
    ) -> Result<Vec<RecoveryReply>, Error> {
        let words: Vec<String> = self.invoke_each(script, calls).await?;
        for word in &words {
            match word.as_str() {
                "opened" => self.metrics().counter_recovered(Recovered::AtZero),
                "restored" => self.metrics().counter_recovered(Recovered::FromPostgres),
                _ => {}
            }
        }
        words
            .iter()
            .map(|word| RecoveryReply::parse(word))
            .collect()
    }
}

/// An optional argument, '' if there is none.
fn text(argument: Option<impl ToString>) -> String {
    argument.map(|it| it.to_string()).unwrap_or_default()
}
