//! What the flusher reads and writes: dirty counters, leases, and what Postgres has.

use ::redis::cmd;
use chrono::{DateTime, Utc};
use futures::try_join;

use super::codec::{Array, size};
use super::error::Error;
use super::routes::Routes;
use super::scripts::SETTLE;
use super::shard::Shard;
use crate::domain::counter::{CounterId, Snapshot};
use crate::domain::threshold::Notified;

/// A shard with dirty counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backlog {
    /// The shard.
    pub shard: Shard,
    /// How many of its counters are dirty.
    pub dirty: usize,
    /// When the first of them became dirty.
    pub since: DateTime<Utc>,
}

/// What a flush found out about a dirty counter.
#[derive(Debug, Clone)]
pub struct Settlement<'a> {
    /// The counter.
    pub counter: &'a CounterId,
    /// What was read; none if the counter was missing, and leaves the dirty index if it still is.
    pub snapshot: Option<&'a Snapshot>,
    /// Whether Postgres now has exactly that; otherwise it has something newer.
    pub stored: bool,
    /// The thresholds that were notified with it, if there are new ones.
    pub notified: Option<Notified>,
    /// No event can reach hours that start before this.
    pub drop_hours_before: DateTime<Utc>,
}

impl Routes {
    /// The shards that are reached and have dirty counters.
    pub async fn backlog(&self) -> Result<Vec<Backlog>, Error> {
        let (mut counts, mut oldest) = (Vec::new(), Vec::new());
        for shard in self.reached() {
            let dirty = self.keys.dirty(shard);
            let (mut count, mut first) = (cmd("ZCARD"), cmd("ZRANGE"));
            count.arg(&dirty);
            first.arg((dirty, 0, 0, "WITHSCORES"));
            counts.push((shard, count));
            oldest.push((shard, first));
        }
        let shards: Vec<Shard> = counts.iter().map(|(shard, _)| *shard).collect();
        let (counts, oldest) = try_join!(
            self.query_each::<usize>(counts),
            self.query_each::<Vec<(String, f64)>>(oldest)
        )?;
        let replies = shards.into_iter().zip(counts).zip(oldest);
        let backlogs = replies.filter_map(|((shard, dirty), oldest)| {
            let (_, since) = oldest.first()?;
            #[expect(
                clippy::cast_possible_truncation,
                reason = "scores are whole milliseconds"
            )]
            let since = DateTime::from_timestamp_millis(*since as i64).unwrap_or_default();
            Some(Backlog {
                shard,
                dirty,
                since,
            })
        });
        Ok(backlogs.collect())
    }

    /// Leases shards for `ms`; returns those that no other instance has. Saves work, nothing depends on it.
    pub async fn lease(&self, shards: &[Shard], ms: u64) -> Result<Vec<Shard>, Error> {
        let commands = shards.iter().map(|shard| {
            let mut command = cmd("SET");
            command.arg((self.keys.lease(*shard), "", "NX", "PX", ms));
            (*shard, command)
        });
        let taken: Vec<Option<String>> = self.query_each(commands).await?;
        let taken = shards.iter().zip(taken).filter(|(_, it)| it.is_some());
        Ok(taken.map(|(shard, _)| *shard).collect())
    }

    /// The counters that have been dirty for longest, of each shard at most so many.
    pub async fn dirty(&self, counts: &[(Shard, usize)]) -> Result<Vec<CounterId>, Error> {
        let commands = counts.iter().map(|(shard, count)| {
            let mut command = cmd("ZRANGE");
            command.arg((self.keys.dirty(*shard), 0, count.saturating_sub(1)));
            (*shard, command)
        });
        let members: Vec<Vec<String>> = self.query_each(commands).await?;
        let parse = |key: &String| {
            let parsed = self.keys.parse_counter(key);
            parsed.ok_or_else(|| Error::Inconsistent(format!("{key:?} in the dirty index")))
        };
        members.iter().flatten().map(parse).collect()
    }

    /// Records what Postgres has of some counters of one shard; returns how many are clean now.
    pub async fn settle(
        &self,
        shard: Shard,
        settlements: &[Settlement<'_>],
        read_at: DateTime<Utc>,
    ) -> Result<usize, Error> {
        let mut keys = vec![self.keys.dirty(shard), self.keys.generation(shard)];
        let mut batch = Array::default();
        for settlement in settlements {
            keys.push(self.keys.counter(settlement.counter));
            write_settlement(settlement, &mut batch);
        }
        let batch = Array::default().followed_by(&batch);
        let call = SETTLE.call(&keys, (read_at.timestamp_millis(), batch.as_slice()));
        self.invoke(shard, &SETTLE, &call).await
    }
}

fn write_settlement(settlement: &Settlement<'_>, batch: &mut Array) {
    let Some(snapshot) = settlement.snapshot else {
        // No counter has generation 0, so one that has come back is left alone.
        batch.push_text("0:0:").push(0_u8).push(0_u8);
        batch.push_text("").push_text("").push(0_u8).push(0_u8);
        return;
    };
    let hours = || snapshot.unstored_hours();
    let drops = || {
        let hours = snapshot.hours.iter();
        hours.filter(|hour| hour.start < settlement.drop_hours_before)
    };
    let stamp = &snapshot.stamp;
    let notified = settlement.notified.map(|notified| notified.to_string());
    batch
        .push_text(&format!("{}:{}:", stamp.generation, stamp.version))
        .push(snapshot.sequence)
        .push(u8::from(settlement.stored))
        .push_text(&notified.unwrap_or_default())
        .push_text(&snapshot.thresholds.crossed.to_string())
        .push(size(hours().count()))
        .push(size(drops().count()));
    for hour in hours() {
        batch
            .push_signed(hour.start.timestamp_millis())
            .push_signed(hour.used)
            .push(hour.denied)
            .push(hour.refunded);
    }
    for hour in drops() {
        batch.push_signed(hour.start.timestamp_millis());
    }
}
