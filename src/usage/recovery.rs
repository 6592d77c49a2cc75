//! Brings counters that Redis does not know into its present data set: opened at zero where nothing can have
//! been counted, restored from Postgres, or begun where a reset closed the one before.
//!
//! What concurrent calls need opened travels in groups ([`groups`](crate::coalescer)), so that a thousand counters cost a
//! handful of round trips. Counts nothing and decides nothing about policies: where Redis knows a newer one, the caller
//! learns it.

use std::collections::BTreeSet;
use std::sync::Arc;

use chrono::{DateTime, Duration, Utc};
use tokio::sync::Mutex;

use crate::coalescer::Coalescer;
use crate::context::Context;
use crate::domain::counter::{CounterId, Snapshot, Stamp};
use crate::domain::ids::{MeterId, OrganizationId};
use crate::domain::period::Period;
use crate::domain::policy::Policy;
use crate::domain::retention;
use crate::domain::schedule::Reset;
use crate::domain::threshold::WatchedThresholds;
use crate::failure::Failure;
use crate::postgres;
use crate::postgres::adjustments::Pending;
use crate::postgres::usage::{self, Move, ThresholdEvents};
use crate::redis::{Connection, Correction, Missing, Moved, Next, RecoveryReply, Shard};

/// By so much a data set must be older than a period for a missing counter of that period to be zero:
/// [`EARLY_MAX`](retention::EARLY_MAX), and a minute by which the clocks of instances may differ.
const MARGIN: Duration = Duration::minutes(6);

/// Each half of the shards has its groups, so that one is with Redis while the other is with Postgres.
const HALVES: usize = 2;

/// How often something is tried with what the last attempt taught, before it is given up.
const ROUNDS_MAX: usize = 20;

/// The handle on opening; clones share everything.
#[derive(Debug, Clone)]
pub struct Recovery {
    ctx: Context,
    /// Callers that want the same counter share one opening, under the stamp of the first.
    groups: [Coalescer<CounterId, Wish, RecoveryReply, Failure>; HALVES],
    /// Held while a number is drawn, so that one instance draws one at a time. For economy only.
    numbering: Arc<Mutex<()>>,
}

/// A counter that is to be brought into the generation of its stamp.
#[derive(Debug, Clone)]
struct Wish {
    counter: CounterId,
    stamp: Stamp,
    /// The reset at which its period begins, if one does.
    begins_at: Option<Reset>,
    /// When it was asked for.
    now: DateTime<Utc>,
}

impl Wish {
    /// The counter that the reset closes, and what decides about it.
    fn closed(&self, reset: Reset) -> (CounterId, Stamp) {
        let counter = CounterId {
            start: reset.closed_start,
            ..self.counter.clone()
        };
        let stamp = Stamp {
            end: Some(reset.at),
            ..self.stamp
        };
        (counter, stamp)
    }
}

/// How far an opening came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recovered {
    /// The counter stands, in the generation that the caller named.
    Ready,
    /// Something was done or learned; look again.
    Again,
    /// Redis knows no policy of the organization, or a newer one; look again with that.
    OlderPolicy,
}

impl Recovery {
    /// A handle on these.
    pub fn new(ctx: Context) -> Self {
        Self {
            ctx,
            groups: Default::default(),
            numbering: Arc::default(),
        }
    }

    /// The same, with the connections to Postgres of another context.
    #[must_use]
    pub fn on(&self, ctx: Context) -> Self {
        Self {
            ctx,
            groups: Default::default(),
            ..self.clone()
        }
    }

    /// Sees to it that the data set of a shard has a number.
    pub async fn number(&self, connection: &Connection, shard: Shard) -> Result<(), Failure> {
        let _one_at_a_time = self.numbering.lock().await;
        if connection.generation(shard).is_some() {
            return Ok(());
        }
        // All at once: after a restart of Redis every shard is in need.
        let nameless: Vec<Shard> = Shard::all()
            .filter(|shard| connection.generation(*shard).is_none())
            .collect();
        let unnumbered = self.ctx.redis.identify(connection, &nameless).await?;
        if !unnumbered.is_empty() {
            let number = self.ctx.postgres.draw_generation().await?;
            self.ctx.metrics.generation_drawn();
            self.ctx
                .redis
                .number(connection, &unnumbered, number)
                .await?;
        }
        Ok(())
    }

    /// Brings one counter of a running period, or of one that is over, into the generation of its stamp, or
    /// learns what keeps it from it. `policy` is what the stamp was made by.
    pub async fn open(
        &self,
        policy: &Policy,
        counter: &CounterId,
        stamp: &Stamp,
        now: DateTime<Utc>,
    ) -> Result<Recovered, Failure> {
        let reset = policy.schedule.resets.get(&counter.meter);
        let wish = Wish {
            counter: counter.clone(),
            stamp: *stamp,
            begins_at: reset.filter(|it| it.at == counter.start).copied(),
            now,
        };
        let half = Shard::of(&counter.organization).index() % HALVES;
        let groups = self.groups.get(half).ok_or(Failure::Contended)?;
        let opening = groups.process(counter.clone(), wish, self.clone(), Self::open_all);
        // What is refused is refused to a group of one; the halves of a larger one were tried apart.
        let opening = match opening.await {
            Err(Failure::Postgres(postgres::Error::NewerGeneration)) => {
                let shard = Shard::of(&counter.organization);
                let connection = self.ctx.redis.connection().await?;
                self.ctx.redis.identify(&connection, &[shard]).await?;
                RecoveryReply::Generation
            }
            Err(Failure::Postgres(postgres::Error::OlderPolicy)) => RecoveryReply::Policy,
            Err(Failure::Postgres(postgres::Error::TooManyMeters)) => RecoveryReply::TooManyMeters,
            other => other?,
        };
        // Here and not in the group, so that it carries the id of the request.
        tracing::debug!(org.id = %counter.organization, meter = %counter.meter, ?opening, "saw to an unknown counter");
        match opening {
            RecoveryReply::Ready => Ok(Recovered::Ready),
            RecoveryReply::Policy => Ok(Recovered::OlderPolicy),
            RecoveryReply::TooManyMeters => Err(Failure::TooManyMeters(counter.meter.clone())),
            RecoveryReply::Changed
            | RecoveryReply::Restore
            | RecoveryReply::RestoreClosed
            | RecoveryReply::Generation => Ok(Recovered::Again),
        }
    }

    /// Finishes the last reset of a meter: closes the counter that it ended, begins the next, and stores what the
    /// closed one holds. Doing it twice is harmless.
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
        let shard = Shard::of(organization);
        let counter_since = |start| CounterId {
            organization: organization.clone(),
            meter: meter.clone(),
            start,
        };
        let begun = policy.schedule.period_of(meter, reset.at, now);
        for _ in 0..ROUNDS_MAX {
            let Some(generation) = connection.generation(shard) else {
                self.number(connection, shard).await?;
                continue;
            };
            let stamp = Stamp::of(policy, meter, begun, generation);
            let opened = self
                .open(policy, &counter_since(begun.start), &stamp, now)
                .await?;
            match opened {
                Recovered::Again => {}
                Recovered::OlderPolicy => return Ok(opened),
                Recovered::Ready => {
                    let closed = [counter_since(reset.closed_start)];
                    let read = connection.read(&closed).await?;
                    self.store(read.into_iter().flatten().collect(), now)
                        .await?;
                    return Ok(opened);
                }
            }
        }
        Err(Failure::Contended)
    }

    /// Brings the counter of a period into the present data set.
    pub async fn ready(
        &self,
        connection: &Connection,
        policy: &Policy,
        counter: &CounterId,
        now: DateTime<Utc>,
    ) -> Result<Recovered, Failure> {
        let shard = Shard::of(&counter.organization);
        let schedule = &policy.schedule;
        let period = Period {
            start: counter.start,
            end: schedule.period_of(&counter.meter, counter.start, now).end,
        };
        for _ in 0..ROUNDS_MAX {
            let Some(generation) = connection.generation(shard) else {
                self.number(connection, shard).await?;
                continue;
            };
            let stamp = Stamp::of(policy, &counter.meter, period, generation);
            match self.open(policy, counter, &stamp, now).await? {
                Recovered::Again => {}
                opened => return Ok(opened),
            }
        }
        Err(Failure::Contended)
    }

    /// Applies an adjustment to its counter, and stores what that holds then. Doing it twice is harmless.
    pub async fn adjust(
        &self,
        connection: &Connection,
        policy: &Policy,
        adjustment: &Pending,
        now: DateTime<Utc>,
    ) -> Result<Recovered, Failure> {
        let counter = &adjustment.counter;
        let shard = Shard::of(&counter.organization);
        // Not in an hour that the counter may have dropped, however long this took.
        let at = now
            .checked_sub_signed(self.ctx.late)
            .map_or(adjustment.at, |oldest| adjustment.at.max(oldest));
        let hour = policy.schedule.slot(at).start;
        let limit = policy.limits.get(&counter.meter).cloned();
        let watched = WatchedThresholds::of(&limit.unwrap_or_default());
        for _ in 0..ROUNDS_MAX {
            let Some(generation) = connection.generation(shard) else {
                self.number(connection, shard).await?;
                continue;
            };
            let correction = Correction {
                id: adjustment.id,
                counter,
                generation,
                policy_version: policy.version,
                amount: adjustment.amount,
                hour,
                percents: &watched.percents,
            };
            match connection.adjust(&correction, now).await? {
                RecoveryReply::Ready => {
                    let read = connection.read(std::slice::from_ref(counter));
                    self.store(read.await?.into_iter().flatten().collect(), now)
                        .await?;
                    return Ok(Recovered::Ready);
                }
                RecoveryReply::Policy => return Ok(Recovered::OlderPolicy),
                RecoveryReply::Generation => {
                    self.ctx.redis.identify(connection, &[shard]).await?;
                }
                _ => {
                    let opened = self.ready(connection, policy, counter, now).await?;
                    if opened == Recovered::OlderPolicy {
                        return Ok(opened);
                    }
                }
            }
        }
        Err(Failure::Contended)
    }

    async fn store(&self, snapshots: Vec<Snapshot>, now: DateTime<Utc>) -> Result<(), Failure> {
        let hours = snapshots
            .iter()
            .flat_map(Snapshot::unstored_hours)
            .map(|hour| hour.start);
        usage::ensure_partitions(&self.ctx.postgres, hours).await?;
        // The flusher has them to store as well, and tells what is to be told.
        usage::store(&self.ctx.postgres, &snapshots, &ThresholdEvents::new(), now).await?;
        Ok(())
    }

    /// Brings different counters into the generations of their stamps; says how far each came.
    async fn open_all(self, wishes: Vec<Wish>) -> Result<Vec<RecoveryReply>, Failure> {
        let Some(now) = wishes.iter().map(|wish| wish.now).max() else {
            return Ok(Vec::new());
        };
        let connection = self.ctx.redis.connection().await?;
        let mut openings = self.begin_all(&connection, &wishes, now).await?;
        // What Postgres must be asked for; of a counter that begins at a reset, first the one before.
        let (mut unknown, mut places) = (Vec::new(), Vec::new());
        for (wish, opening) in wishes.iter().zip(&mut openings) {
            unknown.push(match (*opening, wish.begins_at) {
                (RecoveryReply::Restore, _) => (wish.counter.clone(), wish.stamp),
                (RecoveryReply::RestoreClosed, Some(reset)) => wish.closed(reset),
                _ => continue,
            });
            places.push(opening);
        }
        let restored = self.restore_all(&connection, &unknown, now).await?;
        for (place, restored) in places.into_iter().zip(restored) {
            *place = match (*place, restored) {
                // That was the one before.
                (RecoveryReply::RestoreClosed, RecoveryReply::Ready) => RecoveryReply::Changed,
                (_, restored) => restored,
            };
        }
        let outdated: BTreeSet<Shard> = wishes
            .iter()
            .zip(&openings)
            .filter(|(_, opening)| **opening == RecoveryReply::Generation)
            .map(|(wish, _)| Shard::of(&wish.counter.organization))
            .collect();
        if !outdated.is_empty() {
            let outdated: Vec<Shard> = outdated.into_iter().collect();
            self.ctx.redis.identify(&connection, &outdated).await?;
        }
        Ok(openings)
    }

    /// What Redis can do by itself. A period that begins at a reset is never opened by itself: the one before must
    /// be closed in the same step.
    async fn begin_all(
        &self,
        connection: &Connection,
        wishes: &[Wish],
        now: DateTime<Utc>,
    ) -> Result<Vec<RecoveryReply>, Failure> {
        let (mut missing, mut next) = (Vec::with_capacity(wishes.len()), Vec::new());
        for wish in wishes {
            let (counter, stamp) = (&wish.counter, &wish.stamp);
            match wish.begins_at {
                Some(reset) => next.push(Next {
                    counter,
                    reset,
                    stamp,
                }),
                None => missing.push(Missing { counter, stamp }),
            }
        }
        let margin = MARGIN.num_milliseconds();
        let opened = connection.open(&missing, now, margin).await?;
        let closed = connection.close(&next, now, margin).await?;
        let (mut opened, mut closed) = (opened.into_iter(), closed.into_iter());
        let openings = wishes.iter().filter_map(|wish| match wish.begins_at {
            Some(_) => closed.next(),
            None => opened.next(),
        });
        Ok(openings.collect())
    }

    /// Has Postgres move counters, and writes what it holds of them.
    async fn restore_all(
        &self,
        connection: &Connection,
        unknown: &[(CounterId, Stamp)],
        now: DateTime<Utc>,
    ) -> Result<Vec<RecoveryReply>, Failure> {
        let counters: Vec<CounterId> = unknown.iter().map(|(it, _)| it.clone()).collect();
        let held = connection.read(&counters).await?;
        // What somebody else has brought back meanwhile is ready.
        let mut openings = vec![RecoveryReply::Ready; unknown.len()];
        let (mut places, mut moves, mut named) = (Vec::new(), Vec::new(), BTreeSet::new());
        for ((opening, (counter, stamp)), held) in openings.iter_mut().zip(unknown).zip(&held) {
            if held
                .as_ref()
                .is_some_and(|held| held.stamp.generation == stamp.generation)
            {
                continue;
            }
            if !named.insert(counter) {
                // Late events want it, and so does the reset that closes it.
                *opening = RecoveryReply::Changed;
                continue;
            }
            places.push(opening);
            let held = held.as_ref();
            moves.push(Move {
                counter,
                held,
                stamp,
            });
        }
        if moves.is_empty() {
            return Ok(openings);
        }
        let hours = held.iter().flatten().flat_map(|held| &held.hours);
        usage::ensure_partitions(&self.ctx.postgres, hours.map(|hour| hour.start)).await?;
        let hours_from = retention::oldest_hour(now, self.ctx.late);
        let restored = usage::restore(&self.ctx.postgres, &moves, hours_from, now).await?;
        let to_write: Vec<Moved<'_>> = moves
            .iter()
            .zip(&restored)
            .map(|(it, restored)| Moved {
                held: it.held,
                snapshot: &restored.snapshot,
                meters: &restored.meters,
                policy_version: it.stamp.version,
            })
            .collect();
        let answers = connection.restore(&to_write, now).await?;
        for (place, opening) in places.into_iter().zip(answers) {
            *place = opening;
        }
        Ok(openings)
    }
}
