//! Counting: track, consume, check, and the exact reading of usage.
//!
//! The decision itself is made in Redis (`lua/count.lua`). This module says what to ask, with the
//! policy and the period that apply now, and resolves what Redis does not know: a missing counter is
//! opened where nothing can have been counted, or restored from Postgres; a newer policy is fetched.

mod directory;
mod in_force;
mod opening;
mod reading;

use std::sync::Arc;

use chrono::{DateTime, Duration, Utc};
use xxhash_rust::xxh3::xxh3_64;

pub use directory::{Entry, Page};
pub use reading::OrganizationUsage;

use crate::clock::Clock;
use crate::counters::{self, Answer, Attempt, Charge, Counters, Link, Operation, Outcome, Shard};
use crate::domain::counter::{CounterId, Stamp};
use crate::domain::decision::{self, Demand};
use crate::domain::ids::{IdempotencyKey, MeterId, OrganizationId};
use crate::domain::period::{Period, hour_start};
use crate::domain::policy::{Policy, Rule};
use crate::domain::quantity::Count;
use crate::metrics::{self, Metrics};
use crate::policies::{self, Policies};
use crate::store::{self, Store};
use opening::Locks;

/// How far ahead of the clock an event may be.
const EARLY: Duration = Duration::minutes(5);

/// By so much a data set must be older than a period for a missing counter of that period to be zero:
/// [`EARLY`], and a minute by which the clocks of instances may differ.
const MARGIN: Duration = Duration::minutes(6);

/// How often a call is repeated with what the last attempt taught, before it gives up. Each round
/// resolves one thing; an organization with every meter missing and a newer policy needs this many.
const ROUNDS_MAX: usize = 80;

/// The handle on counting; clones share everything.
#[derive(Debug, Clone)]
pub struct Metering {
    counters: Counters,
    store: Store,
    policies: Policies,
    clock: Clock,
    /// How long after its end a period takes late events.
    late: Duration,
    locks: Arc<Locks>,
    metrics: Metrics,
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
}

/// What became of a request.
#[derive(Debug, Clone)]
pub struct Decided {
    /// Whether everything was granted; otherwise nothing was counted.
    pub granted: bool,
    /// Whether this is what an earlier attempt was told.
    pub replayed: bool,
    /// The state of each meter after the decision, in the order of the demands.
    pub meters: Vec<MeterUsage>,
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

    /// Whether the demand fits on top of what was used.
    pub fn fits(&self) -> bool {
        self.rule.fits(self.used, self.demand.need)
    }
}

/// Why there is no decision.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Redis.
    #[error(transparent)]
    Counters(#[from] counters::Error),
    /// Postgres, which was needed because Redis did not know.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// Learning the policy.
    #[error(transparent)]
    Policies(#[from] policies::Error),
    /// The reply to the counting itself did not come: it may have been counted.
    #[error("the counter store did not say whether it has counted: {0}")]
    OutcomeUnknown(String),
    /// The idempotency key was used for another payload.
    #[error("this idempotency key was used for another request")]
    KeyReused,
    /// The counter would pass its ceiling.
    #[error("the counter of {0} would pass 2^53 - 1")]
    Overflow(MeterId),
    /// The event is older than any period takes, or too far ahead.
    #[error("the timestamp must be at most {0} hours ago and 5 minutes ahead")]
    TimestampOutOfRange(i64),
    /// The organization has as many meters as it may have.
    #[error("the organization has as many meters as it may have; {0} would be one more")]
    TooManyMeters(MeterId),
    /// The state kept changing under the call.
    #[error("the counters kept changing under the call")]
    Contended,
}

impl Error {
    /// Whether Redis is away, and nothing else is wrong.
    fn is_counter_outage(&self) -> bool {
        match self {
            Self::Counters(error) | Self::Policies(policies::Error::Counters(error)) => {
                matches!(
                    error,
                    counters::Error::Unavailable(_) | counters::Error::Unknown(_)
                )
            }
            _ => false,
        }
    }
}

impl Metering {
    /// A handle on these.
    pub fn new(
        counters: Counters,
        store: Store,
        policies: Policies,
        clock: Clock,
        late: Duration,
        metrics: Metrics,
    ) -> Self {
        Self {
            counters,
            store,
            policies,
            clock,
            late,
            locks: Arc::default(),
            metrics,
        }
    }

    /// Decides a request, and counts if it is granted.
    pub async fn decide(&self, request: &Request) -> Result<Decided, Error> {
        let decided = self.find_decision(request).await;
        let outcome = match &decided {
            Ok(decided) if decided.replayed => metrics::Outcome::Replayed,
            Ok(decided) if decided.granted => metrics::Outcome::Granted,
            Ok(_) => metrics::Outcome::Denied,
            Err(_) => metrics::Outcome::Failed,
        };
        for (meter, _) in &request.demands {
            self.metrics.decided(request.kind, outcome, meter);
        }
        decided
    }

    async fn find_decision(&self, request: &Request) -> Result<Decided, Error> {
        let organization = &request.organization;
        let shard = Shard::of(organization);
        // An event whose own period was closed by a reset counts in the one that runs.
        let mut own_period_closed = false;
        for _ in 0..ROUNDS_MAX {
            let link = self.counters.link().await?;
            let Some(generation) = link.generation(shard) else {
                self.number(&link, shard).await?;
                continue;
            };
            let policy = self.policies.get(&link, organization).await?;
            let now = self.clock.now();
            let at = self.time_of(request, now)?;
            let period = policy
                .schedule
                .period(if own_period_closed { now } else { at });
            let charges = charges(request, &policy, generation, period, at.max(period.start));
            let operation = Operation {
                organization: organization.clone(),
                kind: request.kind,
                charges: charges.clone(),
                attempt: request.attempt.clone(),
                times: 1,
            };
            let outcomes = match self.counters.count(&link, vec![operation]).await {
                Err(counters::Error::Unknown(cause))
                    if request.kind != decision::Operation::Check =>
                {
                    return Err(Error::OutcomeUnknown(cause));
                }
                outcomes => outcomes?,
            };
            let Some(mut outcomes) = outcomes else {
                continue;
            };
            match outcomes.pop() {
                Some(Outcome::Answered(answer)) => {
                    if answer
                        .readings
                        .iter()
                        .any(|reading| reading.stamp.version > policy.version)
                    {
                        self.policies.forget(organization);
                    }
                    return Ok(decided(request, &answer));
                }
                Some(Outcome::KeyReused) => return Err(Error::KeyReused),
                Some(Outcome::Overflow(position)) => {
                    let meter = charges
                        .get(position)
                        .map(|charge| charge.counter.meter.clone());
                    return Err(meter.map_or(Error::Contended, Error::Overflow));
                }
                Some(Outcome::Missing(_))
                    if request.kind == decision::Operation::Check
                        && !self.policies.exists(organization).await? =>
                {
                    return Ok(unheard_of(request, &policy, period));
                }
                Some(Outcome::Missing(position) | Outcome::Frozen(position)) => {
                    if let Some(charge) = charges.get(position) {
                        self.open(&link, &charge.counter, &charge.stamp, now)
                            .await?;
                    }
                }
                Some(Outcome::Closed(_)) => {
                    let newest = self
                        .policies
                        .refresh(&link, organization, policy.version)
                        .await?;
                    own_period_closed =
                        request.timestamp.is_some() && newest.version == policy.version;
                }
                Some(Outcome::Some { .. }) | None => return Err(Error::Contended),
            }
        }
        Err(Error::Contended)
    }

    /// When the event of a request happened, if that is not too long ago or too far ahead.
    fn time_of(&self, request: &Request, now: DateTime<Utc>) -> Result<DateTime<Utc>, Error> {
        let Some(at) = request.timestamp else {
            return Ok(now);
        };
        let age = now - at;
        if age > self.late || -age > EARLY {
            return Err(Error::TimestampOutOfRange(self.late.num_hours()));
        }
        Ok(at)
    }
}

/// An attempt under a caller's key. The fingerprint covers all that the caller asked for.
pub fn attempt(key: IdempotencyKey, payload: &str) -> Attempt {
    Attempt {
        key,
        fingerprint: format!("{:016x}", xxh3_64(payload.as_bytes())),
    }
}

fn charges(
    request: &Request,
    policy: &Policy,
    generation: u64,
    period: Period,
    at: DateTime<Utc>,
) -> Vec<Charge> {
    let hour = hour_start(policy.schedule.calendar.time_zone(), at);
    request
        .demands
        .iter()
        .map(|(meter, demand)| Charge {
            counter: CounterId {
                organization: request.organization.clone(),
                meter: meter.clone(),
                start: period.start,
            },
            demand: *demand,
            stamp: Stamp::of(policy, meter, period, generation),
            hour,
        })
        .collect()
}

/// What a check says of an organization that was never counted nor configured: nothing is used. It
/// leaves no trace, so that asking does not create organizations.
fn unheard_of(request: &Request, policy: &Policy, period: Period) -> Decided {
    let meters: Vec<MeterUsage> = request
        .demands
        .iter()
        .map(|(meter, demand)| MeterUsage {
            meter: meter.clone(),
            demand: *demand,
            used: Count::ZERO,
            rule: policy.rule(meter),
            period,
            given_back: 0,
        })
        .collect();
    Decided {
        granted: meters.iter().all(MeterUsage::fits),
        replayed: false,
        meters,
    }
}

fn decided(request: &Request, answer: &Answer) -> Decided {
    let meters = request
        .demands
        .iter()
        .zip(&answer.readings)
        .map(|((meter, demand), reading)| MeterUsage {
            meter: meter.clone(),
            demand: *demand,
            used: reading.used,
            rule: reading.stamp.rule,
            period: Period {
                start: reading.start,
                end: reading.stamp.end,
            },
            given_back: reading.given_back,
        });
    Decided {
        granted: answer.granted,
        replayed: answer.replayed,
        meters: meters.collect(),
    }
}

impl Metering {
    /// Sees to it that the data set of a shard has a number.
    async fn number(&self, link: &Link, shard: Shard) -> Result<(), Error> {
        let _one_at_a_time = self.locks.numbering.lock().await;
        if link.generation(shard).is_some() {
            return Ok(());
        }
        // All at once: after a restart of Redis every shard is in need.
        let nameless: Vec<Shard> = Shard::all()
            .filter(|shard| link.generation(*shard).is_none())
            .collect();
        let unnumbered = self.counters.identify(link, &nameless).await?;
        if !unnumbered.is_empty() {
            let number = self.store.draw_generation().await?;
            self.metrics.generation_drawn();
            self.counters.number(link, &unnumbered, number).await?;
        }
        Ok(())
    }
}
