//! Counting: track, consume, check, and the exact reading of usage.
//!
//! The decision itself is made in Redis (`lua/count.lua`). This module says what to ask, with the
//! policy and the period that apply now, and resolves what Redis does not know: a missing counter is
//! opened where nothing can have been counted, or restored from Postgres; a newer policy is fetched.

mod batch;
mod effective;
pub mod history;
mod list;
mod read;
pub mod recovery;
pub mod verify;

use std::sync::Arc;

use chrono::{DateTime, Utc};
use futures::future::try_join_all;
use tokio::sync::Semaphore;
use xxhash_rust::xxh3::xxh3_64;

pub use list::{Entry, Page};
pub use read::OrganizationUsage;

use crate::context::Context;
use crate::domain::counter::{CounterId, Stamp};
use crate::domain::decision::{self, Demand};
use crate::domain::ids::{IdempotencyKey, MeterId, OrganizationId};
use crate::domain::limit::Rule;
use crate::domain::period::Period;
use crate::domain::policy::Policy;
use crate::domain::quantity::Count;
use crate::domain::retention::EARLY_MAX;
use crate::domain::retry::{DeniedMeter, earliest_grant};
use crate::domain::threshold::crossed;
use crate::failure::Failure;
use crate::metrics;
use crate::policies::{CachedPolicy, Policies, Window};
use crate::redis::{self, Answer, Attempt, Charge, Connection, Operation, Outcome, Reading, Shard};
use recovery::{Recovered, Recovery};

/// How often a call is repeated with what the last attempt taught, before it gives up. More than a few rounds are
/// needed only where policies or data sets keep changing.
const ROUNDS_MAX: usize = 80;

/// The handle on counting; clones share everything.
#[derive(Debug, Clone)]
pub struct Usage {
    ctx: Context,
    policies: Policies,
    recovery: Recovery,
    /// A permit for each charge of a batch that is on its way.
    room_for_batches: Arc<Semaphore>,
}

/// One call's wish.
#[derive(Debug, Clone)]
pub struct Request {
    /// Who is counted.
    pub organization: OrganizationId,
    /// Track, consume or check.
    pub kind: decision::Operation,
    /// Distinct meters, and what is wanted of each.
    pub demands: Vec<(MeterId, Demand)>,
    /// When it happened; now, unless it says otherwise.
    pub timestamp: Option<DateTime<Utc>>,
    /// Makes a repetition harmless.
    pub attempt: Option<Attempt>,
    /// How many equal calls this stands for; see [`Operation::times`].
    pub times: u32,
}

impl Request {
    /// Whether another request wants just the same of the same single counter, so that this one can stand for
    /// both.
    pub fn extends_to(&self, other: &Self) -> bool {
        let plain = |it: &Self| {
            let demands = it.demands.iter().map(|(_, demand)| *demand);
            it.kind.can_coalesce(it.attempt.is_some(), demands)
        };
        plain(self)
            && plain(other)
            && self.kind == other.kind
            && self.organization == other.organization
            && self.demands == other.demands
            && self.timestamp == other.timestamp
    }
}

/// What became of a request.
#[derive(Debug, Clone)]
pub struct Decided {
    /// Whether everything was granted; otherwise nothing was counted, of a single call.
    pub granted: bool,
    /// Of several equal calls, how many were granted; the first ones.
    pub times_granted: u32,
    /// Whether this is what an earlier attempt was told.
    pub replayed: bool,
    /// The state of each meter after the decision, in the order of the demands.
    pub meters: Vec<MeterUsage>,
    /// Of a refusal: from when on the same would be granted, if nobody else calls; none where waiting does not help.
    pub earliest_grant: Option<DateTime<Utc>>,
    /// What was decided by, as far as this instance knew.
    policy: Arc<CachedPolicy>,
    /// Whether a newer policy than that has decided.
    outdated: bool,
}

impl Decided {
    /// The percentages of a meter's limit that one granted call has crossed.
    pub fn crossed(&self, usage: &MeterUsage) -> Vec<u16> {
        let Some(limit) = self.policy.limits.get(&usage.meter) else {
            return Vec::new();
        };
        let before = usage.used.saturating_less(usage.demand.amount);
        crossed(before, usage.used, usage.rule.limit, &limit.warn_at)
    }
}

/// One meter of an organization, as a decision or a reading saw it.
#[derive(Debug, Clone)]
pub struct MeterUsage {
    /// Which meter.
    pub meter: MeterId,
    /// What was wanted of it; nothing in a reading.
    pub demand: Demand,
    /// Units counted in the period.
    pub used: Count,
    /// How far it may go.
    pub rule: Rule,
    /// The period that `used` belongs to.
    pub period: Period,
    /// What a refund gave back.
    pub given_back: u64,
    /// How this meter has refused the demand, if it has.
    pub refused: Option<Refused>,
    /// When there may be more left of it, without anybody doing anything: its period ends, or a temporary limit.
    pub renews_at: Option<DateTime<Utc>>,
}

/// How a meter has refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused {
    /// Whether that was the first refusal of its period.
    pub first: bool,
}

impl MeterUsage {
    /// Units left; none when unlimited.
    pub fn remaining(&self) -> Option<Count> {
        self.rule.limit.map(|limit| limit.saturating_sub(self.used))
    }

    /// Units beyond the limit.
    pub fn overage(&self) -> Count {
        self.rule
            .limit
            .map_or(Count::ZERO, |limit| self.used.saturating_sub(limit))
    }
}

/// Why there is no decision.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// A failure that use cases share.
    #[error(transparent)]
    Failure(Failure),
    /// The reply to the counting itself did not come: it may have been counted.
    #[error("the counter store did not say whether it has counted: {0}")]
    OutcomeUnknown(String),
    /// The event is older than any period takes, or too far ahead.
    #[error("the timestamp must be at most {0} hours ago and 5 minutes ahead")]
    TimestampOutOfRange(i64),
}

impl<E: Into<Failure>> From<E> for Error {
    fn from(failure: E) -> Self {
        Self::Failure(failure.into())
    }
}

impl Error {
    /// Whether Redis is away, and nothing else is wrong.
    fn is_counter_outage(&self) -> bool {
        matches!(
            self,
            Self::Failure(Failure::Redis(
                redis::Error::Unavailable(_) | redis::Error::Unknown(_)
            ))
        )
    }
}

impl Usage {
    /// A handle on these.
    pub fn new(ctx: Context, policies: Policies, recovery: Recovery) -> Self {
        Self {
            ctx,
            policies,
            recovery,
            room_for_batches: Arc::new(Semaphore::new(batch::UNDER_WAY_MAX)),
        }
    }

    /// Decides a request, and counts if it is granted.
    pub async fn decide(&self, request: &Request) -> Result<Decided, Error> {
        let mut decided = self.find_decision(request).await;
        if let Ok(refusal) = &mut decided
            && !refusal.granted
        {
            Box::pin(self.look_ahead(request, refusal)).await;
        }
        self.note(request, &decided);
        decided
    }

    /// Finds out when what was refused would be granted.
    async fn look_ahead(&self, request: &Request, refusal: &mut Decided) {
        if refusal.outdated {
            match self.policies.get(&request.organization).await {
                Ok(newest) => refusal.policy = newest,
                // Better no answer than one by a policy that does not hold.
                Err(_) => return,
            }
            for usage in &mut refusal.meters {
                let relief = refusal.policy.relief(&usage.meter);
                usage.renews_at = usage.period.end.into_iter().chain(relief).min();
            }
        }
        let now = self.ctx.clock.now();
        let schedule = &refusal.policy.schedule;
        let runs = |usage: &MeterUsage| {
            usage.period.contains(now)
                && schedule.running(&usage.meter, now).start == usage.period.start
        };
        // What an earlier attempt was told says nothing of the periods that run now, nor of a key of its own.
        if refusal.replayed && !refusal.meters.iter().all(runs) {
            return;
        }
        let call: Vec<DeniedMeter<'_>> = refusal
            .meters
            .iter()
            .map(|usage| DeniedMeter {
                meter: &usage.meter,
                demand: usage.demand,
                used: usage.used,
                end: usage.period.end,
            })
            .collect();
        let earliest_grant = earliest_grant(&refusal.policy, &call, now);
        refusal.earliest_grant = earliest_grant.filter(|at| !refusal.replayed || *at > now);
    }

    async fn find_decision(&self, request: &Request) -> Result<Decided, Error> {
        let mut course = RetryState::default();
        for _ in 0..ROUNDS_MAX {
            let connection = self.ctx.redis.connection().await?;
            let shard = Shard::of(&request.organization);
            let Some(generation) = self.generation(&connection, shard).await? else {
                continue;
            };
            let policy = self.policies.get(&request.organization).await?;
            let now = self.ctx.clock.now();
            let asked = match self.ask(generation, Arc::clone(&policy), now, request, course) {
                Ok(asked) => asked,
                Err(too_late) => {
                    return Box::pin(self.repeat(&connection, request, &policy, too_late)).await;
                }
            };
            let operation = asked.operation(request);
            let outcomes = self.ctx.redis.count(&connection, vec![operation]).await;
            let Some(outcomes) = outcomes.map_err(|error| uncounted(request, error))? else {
                continue;
            };
            let outcome = outcomes.into_iter().next().ok_or(Failure::Contended)?;
            match self.conclude(request, &asked, outcome)? {
                Conclusion::Decided(decided) => return Ok(decided),
                // In a box, so that a call that is simply decided, which is nearly every one, does not carry this about.
                Conclusion::Miss(unclear) => {
                    match Box::pin(self.clear_up(request, &asked, unclear)).await? {
                        Resolution::Decided(decided) => return Ok(decided),
                        Resolution::Again(next) => course = next,
                    }
                }
            }
        }
        Err(Failure::Contended.into())
    }

    /// What becomes of a request that comes too late to be decided.
    async fn repeat(
        &self,
        connection: &Connection,
        request: &Request,
        policy: &Arc<CachedPolicy>,
        too_late: Error,
    ) -> Result<Decided, Error> {
        let Some(attempt) = &request.attempt else {
            return Err(too_late);
        };
        let attempts = [(&request.organization, attempt)];
        let answered = connection.answered(&attempts).await?;
        let answered = answered.into_iter().next().flatten();
        told_before(request, policy, answered, too_late)
    }

    fn note(&self, request: &Request, decided: &Result<Decided, Error>) {
        let times = u64::from(request.times);
        let (granted, otherwise) = match decided {
            Ok(decided) if decided.replayed => (0, metrics::Outcome::Replayed),
            Ok(decided) => (u64::from(decided.times_granted), metrics::Outcome::Denied),
            Err(_) => (0, metrics::Outcome::Failed),
        };
        for (meter, _) in &request.demands {
            for (outcome, calls) in [
                (metrics::Outcome::Granted, granted),
                (otherwise, times - granted),
            ] {
                if calls > 0 {
                    self.ctx
                        .metrics
                        .decided(request.kind, outcome, meter, calls);
                }
            }
        }
    }

    /// The generation of a shard; none if it had no number yet, and the connection is to be asked for again.
    async fn generation(
        &self,
        connection: &Connection,
        shard: Shard,
    ) -> Result<Option<u64>, Error> {
        let generation = connection.generation(shard);
        if generation.is_none() {
            Box::pin(self.recovery.number(connection, shard)).await?;
        }
        Ok(generation)
    }

    /// What to ask of the counters for a request, by what is known now.
    fn ask(
        &self,
        generation: u64,
        policy: Arc<CachedPolicy>,
        now: DateTime<Utc>,
        request: &Request,
        course: RetryState,
    ) -> Result<Asked, Error> {
        let at = self.time_of(request, now)?;
        let counts_at = if course.own_period_closed { now } else { at };
        Ok(Asked {
            moment: policy.window(counts_at),
            policy,
            generation,
            now,
            at,
            counts_at,
        })
    }

    /// What an outcome means for its request.
    fn conclude(
        &self,
        request: &Request,
        asked: &Asked,
        outcome: Outcome,
    ) -> Result<Conclusion, Error> {
        let policy = &asked.policy;
        let (times_granted, answer) = match outcome {
            Outcome::Answered(answer) => (u32::from(answer.granted), answer),
            Outcome::Some { granted, reading } => {
                let answer = Answer {
                    granted: granted == request.times,
                    replayed: false,
                    readings: vec![reading],
                };
                (granted, answer)
            }
            Outcome::KeyReused => return Err(Failure::KeyReused.into()),
            Outcome::Overflow(position) => {
                let demand = request.demands.get(position);
                let meter = demand.map(|(meter, _)| meter.clone());
                return Err(meter.map_or(Failure::Contended, Failure::Overflow).into());
            }
            Outcome::Missing(position) => {
                return Ok(Conclusion::Miss(Miss::Missing(position)));
            }
            Outcome::Frozen(position) => return Ok(Conclusion::Miss(Miss::Frozen(position))),
            Outcome::Closed(_) => return Ok(Conclusion::Miss(Miss::Closed)),
            Outcome::Fenced => return Ok(Conclusion::Miss(Miss::Fenced)),
        };
        let decided = decided(request, policy, &answer);
        if decided.outdated {
            self.policies.invalidate(&request.organization);
        }
        Ok(Conclusion::Decided(Decided {
            times_granted,
            ..decided
        }))
    }

    /// Sees to what Redis did not know.
    async fn clear_up(
        &self,
        request: &Request,
        asked: &Asked,
        unclear: Miss,
    ) -> Result<Resolution, Error> {
        let organization = &request.organization;
        match unclear {
            Miss::Missing(_)
                if request.kind == decision::Operation::Check
                    && !self.policies.exists(organization).await? =>
            {
                Ok(Resolution::Decided(unheard_of(request, asked)))
            }
            Miss::Missing(position) | Miss::Frozen(position) => {
                match self.open_from(position, request, asked).await {
                    Err(Error::Failure(Failure::TooManyMeters(_)))
                        if request.kind == decision::Operation::Check =>
                    {
                        let decided = self.without_a_place(request, asked).await?;
                        Ok(Resolution::Decided(decided))
                    }
                    opened => opened.map(|()| Resolution::Again(RetryState::default())),
                }
            }
            Miss::Fenced => {
                self.policies.pass_fence(organization).await?;
                Ok(Resolution::Again(RetryState::default()))
            }
            Miss::Closed => {
                let version = asked.policy.version;
                let newest = self.policies.refresh(organization, version).await?;
                Ok(Resolution::Again(RetryState {
                    own_period_closed: request.timestamp.is_some() && newest.version == version,
                }))
            }
        }
    }

    /// What a check says of meters of which one is beyond those that the organization may have.
    async fn without_a_place(&self, request: &Request, asked: &Asked) -> Result<Decided, Error> {
        let charges = request
            .demands
            .iter()
            .map(|demand| asked.charge(&request.organization, demand));
        let counters: Vec<CounterId> = charges.map(|charge| charge.counter).collect();
        let connection = self.ctx.redis.connection().await?;
        let held = connection.read(&counters).await?;
        let meters = request.demands.iter().zip(held);
        let meters = meters.map(|((meter, demand), held)| {
            let has_place = held.is_some();
            let usage = read::seen(&asked.policy, meter.clone(), held, asked.now);
            let fits = has_place && demand.fits(usage.rule, usage.used);
            MeterUsage {
                demand: *demand,
                refused: (!fits).then_some(Refused { first: false }),
                ..usage
            }
        });
        Ok(Decided {
            granted: false,
            times_granted: 0,
            replayed: false,
            meters: meters.collect(),
            earliest_grant: None,
            policy: Arc::clone(&asked.policy),
            outdated: false,
        })
    }

    /// Opens the counters of a request from the first on that the script found unknown: it names one, and those
    /// behind it may be unknown as well.
    async fn open_from(
        &self,
        position: usize,
        request: &Request,
        asked: &Asked,
    ) -> Result<(), Error> {
        let unknown = request.demands.iter().skip(position).map(|demand| async {
            let Charge { counter, stamp, .. } = asked.charge(&request.organization, demand);
            self.open(&asked.policy, &counter, &stamp, asked.now).await
        });
        try_join_all(unknown).await?;
        Ok(())
    }

    /// Brings one counter into the present generation, or learns what keeps it from it (a newer
    /// policy, another generation). Either way the caller looks again.
    async fn open(
        &self,
        policy: &Policy,
        counter: &CounterId,
        stamp: &Stamp,
        now: DateTime<Utc>,
    ) -> Result<(), Error> {
        let opened = self.recovery.open(policy, counter, stamp, now).await?;
        if opened == Recovered::OlderPolicy {
            let organization = &counter.organization;
            self.policies.refresh(organization, stamp.version).await?;
        }
        Ok(())
    }

    /// When the event of a request happened, if that is not too long ago or too far ahead.
    fn time_of(&self, request: &Request, now: DateTime<Utc>) -> Result<DateTime<Utc>, Error> {
        let Some(at) = request.timestamp else {
            return Ok(now);
        };
        let age = now - at;
        if age > self.ctx.late || -age > EARLY_MAX {
            return Err(Error::TimestampOutOfRange(self.ctx.late.num_hours()));
        }
        Ok(at)
    }
}

/// Why a request was not counted, or that nobody knows whether it was.
fn uncounted(request: &Request, error: redis::Error) -> Error {
    match error {
        redis::Error::Unknown(cause) if request.kind != decision::Operation::Check => {
            Error::OutcomeUnknown(cause)
        }
        error => error.into(),
    }
}

/// An attempt under a caller's key. The fingerprint covers all that the caller asked for.
pub fn attempt(key: IdempotencyKey, payload: &str) -> Attempt {
    Attempt {
        key,
        fingerprint: format!("{:016x}", xxh3_64(payload.as_bytes())),
    }
}

/// What the rounds before have taught about a request.
#[derive(Debug, Clone, Copy, Default)]
struct RetryState {
    /// An event whose own period was closed by a reset counts in the one that runs.
    own_period_closed: bool,
}

/// What a round goes by.
#[derive(Debug)]
struct Asked {
    policy: Arc<CachedPolicy>,
    generation: u64,
    now: DateTime<Utc>,
    /// When it happened.
    at: DateTime<Utc>,
    /// An instant of the period that it counts in.
    counts_at: DateTime<Utc>,
    /// The period and the hour of that, as far as no meter was reset.
    moment: Window,
}

/// What an outcome means.
enum Conclusion {
    Decided(Decided),
    Miss(Miss),
}

/// What kept a request from being decided; see [`Outcome`].
#[derive(Debug, Clone, Copy)]
enum Miss {
    Missing(usize),
    Frozen(usize),
    Closed,
    Fenced,
}

/// What came of clearing that up.
enum Resolution {
    Decided(Decided),
    /// Another round may find what this one did not.
    Again(RetryState),
}

impl Asked {
    fn operation(&self, request: &Request) -> Operation {
        let organization = &request.organization;
        Operation {
            organization: organization.clone(),
            kind: request.kind,
            charges: request
                .demands
                .iter()
                .map(|demand| self.charge(organization, demand))
                .collect(),
            attempt: request.attempt.clone(),
            times: request.times,
        }
    }

    fn charge(&self, organization: &OrganizationId, (meter, demand): &(MeterId, Demand)) -> Charge {
        let period = self.period(meter);
        Charge {
            counter: CounterId {
                organization: organization.clone(),
                meter: meter.clone(),
                start: period.start,
            },
            demand: *demand,
            stamp: Stamp::of(&self.policy, meter, period, self.generation),
            hour: self.hour(period),
            watched: self.policy.watched(meter),
        }
    }

    /// The period that a meter is counted in.
    fn period(&self, meter: &MeterId) -> Period {
        let schedule = &self.policy.schedule;
        if schedule.resets.contains_key(meter) {
            schedule.period_of(meter, self.counts_at, self.now)
        } else {
            self.moment.period
        }
    }

    /// The start of the slot that the units belong to: of the event, unless its own period was closed.
    fn hour(&self, period: Period) -> DateTime<Utc> {
        if self.counts_at == self.at && period.start <= self.at {
            self.moment.slot.start
        } else {
            self.policy.window(self.at.max(period.start)).slot.start
        }
    }
}

/// What a check says of an organization that was never counted nor configured: nothing is used. It
/// leaves no trace, so that asking does not create organizations.
fn unheard_of(request: &Request, asked: &Asked) -> Decided {
    let readings = request.demands.iter().map(|demand| {
        let charge = asked.charge(&request.organization, demand);
        Reading {
            start: charge.counter.start,
            used: Count::ZERO,
            stamp: charge.stamp,
            given_back: 0,
            refused_first: false,
        }
    });
    let readings: Vec<Reading> = readings.collect();
    let fits = |((_, demand), reading): (&(_, Demand), &Reading)| {
        demand.fits(reading.stamp.rule, reading.used)
    };
    let answer = Answer {
        granted: request.demands.iter().zip(&readings).all(fits),
        replayed: false,
        readings,
    };
    decided(request, &asked.policy, &answer)
}

/// What becomes of a request that comes too late to be decided: what an earlier attempt was told, if there was one.
fn told_before(
    request: &Request,
    policy: &Arc<CachedPolicy>,
    answered: Option<Outcome>,
    too_late: Error,
) -> Result<Decided, Error> {
    match answered {
        Some(Outcome::Answered(answer)) => Ok(decided(request, policy, &answer)),
        Some(Outcome::KeyReused) => Err(Failure::KeyReused.into()),
        _ => Err(too_late),
    }
}

fn decided(request: &Request, policy: &Arc<CachedPolicy>, answer: &Answer) -> Decided {
    let meters = request
        .demands
        .iter()
        .zip(&answer.readings)
        .map(|((meter, demand), reading)| {
            let (rule, end) = (reading.stamp.rule, reading.stamp.end);
            let refused = !answer.granted && !demand.fits(rule, reading.used);
            let first = reading.refused_first;
            let relief = policy.relief(meter);
            MeterUsage {
                meter: meter.clone(),
                demand: *demand,
                used: reading.used,
                rule,
                period: Period {
                    start: reading.start,
                    end,
                },
                given_back: reading.given_back,
                refused: refused.then_some(Refused { first }),
                renews_at: end.into_iter().chain(relief).min(),
            }
        });
    let newer = |reading: &Reading| reading.stamp.version > policy.version;
    Decided {
        granted: answer.granted,
        times_granted: u32::from(answer.granted),
        replayed: answer.replayed,
        meters: meters.collect(),
        earliest_grant: None,
        policy: Arc::clone(policy),
        outdated: answer.readings.iter().any(newer),
    }
}
