//! Recovery: brings counters that Redis lacks into its present data set, by opening, closing or restoring them.
//!
//! Concurrent recoveries are coalesced ([`coalescer`](crate::coalescer)): a thousand counters cost a few round trips.
//! Counts nothing, and decides nothing about policies: if Redis has a newer one, the caller has to look it up.

use std::sync::Arc;
use std::time::Instant;

use chrono::{DateTime, Utc};
use tokio::sync::Mutex;

use super::restore::{RecoveryRequest, recover_all};
use crate::coalescer::Coalescer;
use crate::context::Context;
use crate::domain::counter::{CounterId, Snapshot, Stamp};
use crate::domain::ids::{MeterId, OrganizationId};
use crate::domain::period::Period;
use crate::domain::policy::Policy;
use crate::domain::threshold::WatchedThresholds;
use crate::failure::Failure;
use crate::postgres;
use crate::postgres::adjustments::Pending;
use crate::postgres::deletions;
use crate::postgres::usage::{self, ThresholdEvents};
use crate::redis::{Connection, Correction, RecoveryReply, Shard};

/// Each half of the shards has a coalescer, so that one can use Redis while the other uses Postgres.
const HALVES: usize = 2;

/// The most attempts, each with what the previous one found out.
const ROUNDS_MAX: usize = 20;

/// The handle on recovery; clones share everything.
#[derive(Debug, Clone)]
pub struct Recovery {
    ctx: Context,
    /// Callers that need the same counter share one recovery, under the stamp of the first.
    coalescers: [Coalescer<CounterId, RecoveryRequest, RecoveryReply, Failure>; HALVES],
    /// Held while a generation is drawn, so that an instance draws one at a time, and waiting callers share the last
    /// failure.
    numbering: Arc<Mutex<Option<(Instant, Failure)>>>,
}

/// The result of a recovery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recovered {
    /// The counter is in the generation of the stamp.
    Ready,
    /// Something has changed; try again.
    Again,
    /// Redis has no policy of the organization, or a newer one; look it up and try again.
    OlderPolicy,
}

impl Recovery {
    /// Creates a handle.
    pub fn new(ctx: Context) -> Self {
        Self {
            ctx,
            coalescers: Default::default(),
            numbering: Arc::default(),
        }
    }

    /// The same handle, with the connections to Postgres of another context.
    #[must_use]
    pub fn on(&self, ctx: Context) -> Self {
        Self {
            ctx,
            coalescers: Default::default(),
            ..self.clone()
        }
    }

    /// The generation of a shard on this connection; draws one if the data set has none yet.
    pub async fn generation(&self, connection: &Connection, shard: Shard) -> Result<u64, Failure> {
        for _ in 0..ROUNDS_MAX {
            if let Some(generation) = connection.generation(shard) {
                return Ok(generation);
            }
            self.number(connection, shard).await?;
        }
        Err(Failure::Contended)
    }

    async fn number(&self, connection: &Connection, shard: Shard) -> Result<(), Failure> {
        connection.reach(shard)?;
        let asked = Instant::now();
        let mut last = self.numbering.lock().await;
        if connection.generation(shard).is_some() {
            return Ok(());
        }
        if let Some((at, failure)) = &*last
            && *at >= asked
        {
            return Err(failure.clone());
        }
        let numbered = self.number_all(connection).await;
        *last = numbered
            .clone()
            .err()
            .map(|failure| (Instant::now(), failure));
        numbered
    }

    async fn number_all(&self, connection: &Connection) -> Result<(), Failure> {
        // All at once: after a restart of Redis every shard needs a number.
        let unknown: Vec<Shard> = Shard::all()
            .filter(|it| connection.reach(*it).is_ok() && connection.generation(*it).is_none())
            .collect();
        let redis = &self.ctx.redis;
        let unnumbered = redis.identify(connection, &unknown).await?;
        if !unnumbered.is_empty() {
            let postgres = &self.ctx.postgres;
            // It may be an older copy, with idempotency records of organizations that were deleted since.
            let now = self.ctx.clock.now();
            deletions::schedule_again(postgres, self.ctx.idempotency, now).await?;
            let drawn = postgres.draw_generation().await?;
            self.ctx.metrics.generation_drawn();
            redis.number(connection, &unnumbered, drawn).await?;
        }
        Ok(())
    }

    /// Tries once to bring a counter of a running or past period into the generation of its stamp, which was made by
    /// `policy`.
    pub async fn recover_once(
        &self,
        policy: &Policy,
        counter: &CounterId,
        stamp: &Stamp,
        now: DateTime<Utc>,
    ) -> Result<Recovered, Failure> {
        use postgres::Error::{NewerGeneration, OlderPolicy, TooManyMeters};
        let shard = Shard::of(&counter.organization);
        let reset = policy.schedule.resets.get(&counter.meter);
        let request = RecoveryRequest {
            counter: counter.clone(),
            stamp: *stamp,
            reset: reset.filter(|it| it.at == counter.start).copied(),
            now,
        };
        let coalescer = self.coalescers.get(shard.index() % HALVES);
        let coalescer = coalescer.ok_or(Failure::Contended)?;
        let reply = coalescer.process(counter.clone(), request, self.ctx.clone(), recover_all);
        // A batch that Postgres refuses has been split until it has one request.
        let reply = match reply.await {
            Err(Failure::Postgres(NewerGeneration)) => {
                let connection = self.ctx.redis.connection().await?;
                self.ctx.redis.identify(&connection, &[shard]).await?;
                RecoveryReply::Generation
            }
            Err(Failure::Postgres(OlderPolicy)) => RecoveryReply::Policy,
            Err(Failure::Postgres(TooManyMeters)) => RecoveryReply::TooManyMeters,
            other => other?,
        };
        // Logged here, where the span has the id of the request.
        tracing::debug!(org.id = %counter.organization, meter = %counter.meter, ?reply, "recovered a counter");
        match reply {
            RecoveryReply::Ready => Ok(Recovered::Ready),
            RecoveryReply::Policy => Ok(Recovered::OlderPolicy),
            RecoveryReply::TooManyMeters => Err(Failure::TooManyMeters(counter.meter.clone())),
            RecoveryReply::Changed
            | RecoveryReply::Restore
            | RecoveryReply::RestoreClosed
            | RecoveryReply::Generation => Ok(Recovered::Again),
        }
    }

    /// Brings the counter of a period into the present data set.
    pub async fn recover(
        &self,
        connection: &Connection,
        policy: &Policy,
        counter: &CounterId,
        now: DateTime<Utc>,
    ) -> Result<Recovered, Failure> {
        let (schedule, meter) = (&policy.schedule, &counter.meter);
        let period = Period {
            start: counter.start,
            end: schedule.period_of(meter, counter.start, now).end,
        };
        for _ in 0..ROUNDS_MAX {
            let shard = Shard::of(&counter.organization);
            let generation = self.generation(connection, shard).await?;
            let stamp = Stamp::of(policy, meter, period, generation);
            let recovered = self.recover_once(policy, counter, &stamp, now).await?;
            if recovered != Recovered::Again {
                return Ok(recovered);
            }
        }
        Err(Failure::Contended)
    }

    /// Completes the last reset of a meter: closes the counter that it ended, starts the next one, and stores the
    /// closed one. Idempotent.
    pub async fn finish_reset(
        &self,
        connection: &Connection,
        policy: &Policy,
        organization: &OrganizationId,
        meter: &MeterId,
        now: DateTime<Utc>,
    ) -> Result<Recovered, Failure> {
        let Some(reset) = policy.schedule.resets.get(meter) else {
            return Ok(Recovered::OlderPolicy);
        };
        let next = CounterId::new(organization, meter, reset.at);
        let recovered = self.recover(connection, policy, &next, now).await?;
        if recovered == Recovered::Ready {
            let closed = CounterId::new(organization, meter, reset.closed_start);
            self.store(connection, &[closed], now).await?;
        }
        Ok(recovered)
    }

    /// Applies an adjustment to its counter, and stores the result. Idempotent.
    pub async fn adjust(
        &self,
        connection: &Connection,
        policy: &Policy,
        adjustment: &Pending,
        now: DateTime<Utc>,
    ) -> Result<Recovered, Failure> {
        let counter = &adjustment.counter;
        let shard = Shard::of(&counter.organization);
        // Never in an hour that the counter may have dropped, however long this took.
        let oldest = now.checked_sub_signed(self.ctx.late);
        let at = oldest.map_or(adjustment.at, |oldest| adjustment.at.max(oldest));
        let limit = policy.limits.get(&counter.meter).cloned();
        let watched = WatchedThresholds::of(&limit.unwrap_or_default());
        for _ in 0..ROUNDS_MAX {
            let correction = Correction {
                id: adjustment.id,
                counter,
                generation: self.generation(connection, shard).await?,
                policy_version: policy.version,
                amount: adjustment.amount,
                hour: policy.schedule.slot(at).start,
                percents: &watched.percents,
            };
            match connection.adjust(&correction, now).await? {
                RecoveryReply::Ready => {
                    self.store(connection, std::slice::from_ref(counter), now)
                        .await?;
                    return Ok(Recovered::Ready);
                }
                RecoveryReply::Policy => return Ok(Recovered::OlderPolicy),
                RecoveryReply::Generation => {
                    self.ctx.redis.identify(connection, &[shard]).await?;
                }
                _ => {
                    let recovered = self.recover(connection, policy, counter, now).await?;
                    if recovered == Recovered::OlderPolicy {
                        return Ok(recovered);
                    }
                }
            }
        }
        Err(Failure::Contended)
    }

    /// Stores counters in Postgres now. The flush will store them as well, and notify their thresholds.
    pub(super) async fn store(
        &self,
        connection: &Connection,
        counters: &[CounterId],
        now: DateTime<Utc>,
    ) -> Result<(), Failure> {
        let postgres = &self.ctx.postgres;
        let read = connection.read(counters).await?;
        let snapshots: Vec<Snapshot> = read.into_iter().flatten().collect();
        let hours = snapshots.iter().flat_map(Snapshot::unstored_hours);
        usage::ensure_partitions(postgres, hours.map(|hour| hour.start)).await?;
        usage::store(postgres, &snapshots, &ThresholdEvents::new(), now).await?;
        Ok(())
    }
}
