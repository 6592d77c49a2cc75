//! A request to count or check usage, and its result.

use std::sync::Arc;

use chrono::{DateTime, Utc};

use crate::domain::counter::Snapshot;
use crate::domain::decision::{Demand, Operation};
use crate::domain::ids::{MeterId, OrganizationId};
use crate::domain::limit::Rule;
use crate::domain::period::Period;
use crate::domain::policy::Policy;
use crate::domain::quantity::Count;
use crate::domain::threshold::crossed;
use crate::policies::CachedPolicy;
use crate::redis::{Answer, Charge, IdempotencyUse};

/// A request to count or check.
#[derive(Debug, Clone)]
pub struct Request {
    /// The organization that is counted.
    pub organization: OrganizationId,
    /// Track, consume, check or refund.
    pub kind: Operation,
    /// Distinct meters, and the units requested of each.
    pub demands: Vec<(MeterId, Demand)>,
    /// When it happened; now by default.
    pub timestamp: Option<DateTime<Utc>>,
    /// Makes a retry harmless.
    pub idempotency: Option<IdempotencyUse>,
    /// How many equal calls this stands for; see [`Operation::times`](crate::redis::Operation::times).
    pub times: u32,
}

impl Request {
    /// Whether another request is equal and of a single counter, so that this one can stand for both.
    pub fn extends_to(&self, other: &Self) -> bool {
        let plain = |it: &Self| {
            let demands = it.demands.iter().map(|(_, demand)| *demand);
            it.kind.can_coalesce(it.idempotency.is_some(), demands)
        };
        plain(self)
            && plain(other)
            && self.kind == other.kind
            && self.organization == other.organization
            && self.demands == other.demands
            && self.timestamp == other.timestamp
    }
}

/// The result of a request.
#[derive(Debug, Clone)]
pub struct Decided {
    /// Whether everything was granted; otherwise nothing was counted, unless the request stands for several calls.
    pub granted: bool,
    /// How many of several equal calls were granted: the first ones.
    pub times_granted: u32,
    /// Whether it comes from an idempotency record.
    pub replayed: bool,
    /// Each meter after the decision, in the order of the demands.
    pub meters: Vec<MeterUsage>,
    /// Of a refusal: when the same request would be granted if nothing else is counted; none if waiting does not help.
    pub earliest_grant: Option<DateTime<Utc>>,
    /// Set if it was admitted without a decision, because Redis was down: then every count is unknown, and reads 0.
    pub degraded: Option<Degraded>,
    /// The policy that this instance used.
    pub(super) policy: Arc<CachedPolicy>,
    /// Whether a newer policy decided.
    pub(super) outdated: bool,
}

impl Decided {
    /// The result that Redis replied.
    pub(super) fn new(request: &Request, policy: &Arc<CachedPolicy>, answer: &Answer) -> Self {
        let granted = answer.times_granted == request.times;
        let demands = request.demands.iter().zip(&answer.readings);
        let meters = demands.map(|((meter, demand), reading)| {
            let (rule, end) = (reading.stamp.rule, reading.stamp.end);
            let refused = !granted && !demand.fits(rule, reading.used);
            let first = reading.refused_first;
            MeterUsage {
                meter: meter.clone(),
                demand: *demand,
                used: reading.used,
                denied: 0,
                rule,
                period: Period {
                    start: reading.start,
                    end,
                },
                given_back: reading.given_back,
                refused: refused.then_some(Refused { first }),
                renews_at: end.into_iter().chain(policy.relief(meter)).min(),
            }
        });
        let mut readings = answer.readings.iter();
        Self {
            granted,
            times_granted: answer.times_granted,
            replayed: answer.replayed,
            meters: meters.collect(),
            earliest_grant: None,
            degraded: None,
            policy: Arc::clone(policy),
            outdated: readings.any(|reading| reading.stamp.version > policy.version),
        }
    }

    /// The result of a check that Redis cannot decide, by the counters that exist: where one is missing, nothing is
    /// used, and a demand fits only if `missing_fits`.
    pub(super) fn of_check(
        request: &Request,
        policy: &Arc<CachedPolicy>,
        snapshots: Vec<Option<Snapshot>>,
        missing_fits: bool,
        now: DateTime<Utc>,
    ) -> Self {
        let demands = request.demands.iter().zip(snapshots);
        let meters = demands.map(|((meter, demand), snapshot)| {
            let may_fit = missing_fits || snapshot.is_some();
            let usage = MeterUsage::new(policy, meter.clone(), snapshot, now);
            let fits = may_fit && demand.fits(usage.rule, usage.used);
            MeterUsage {
                demand: *demand,
                refused: (!fits).then_some(Refused { first: false }),
                ..usage
            }
        });
        let meters: Vec<MeterUsage> = meters.collect();
        let granted = missing_fits && meters.iter().all(|it| it.refused.is_none());
        Self {
            granted,
            times_granted: u32::from(granted),
            replayed: false,
            meters,
            earliest_grant: None,
            degraded: None,
            policy: Arc::clone(policy),
            outdated: false,
        }
    }

    /// The result of a request that is admitted without a decision, by the charges that it would make.
    pub(super) fn degraded(
        request: &Request,
        policy: &Arc<CachedPolicy>,
        charges: &[Charge],
        queued: bool,
    ) -> Self {
        let meters = charges.iter().map(|charge| {
            let (counter, stamp) = (&charge.counter, &charge.stamp);
            let period = Period {
                start: counter.start,
                end: stamp.end,
            };
            let meter = counter.meter.clone();
            MeterUsage {
                demand: charge.demand,
                ..MeterUsage::read(meter, Count::ZERO, stamp.rule, period, None)
            }
        });
        Self {
            granted: true,
            times_granted: request.times,
            replayed: false,
            meters: meters.collect(),
            earliest_grant: None,
            degraded: Some(Degraded { queued }),
            policy: Arc::clone(policy),
            outdated: false,
        }
    }

    /// The percentages of a meter's limit that one granted call has crossed.
    pub fn crossed(&self, usage: &MeterUsage) -> Vec<u16> {
        let limit = self.policy.limits.get(&usage.meter);
        let Some(limit) = limit.filter(|_| self.degraded.is_none()) else {
            return Vec::new();
        };
        let before = usage.used.saturating_less(usage.demand.amount);
        crossed(before, usage.used, usage.rule.limit, &limit.warn_at)
    }
}

/// How a request was admitted without a decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Degraded {
    /// Whether it is committed to Postgres, to be counted once Redis is back; a check counts nothing.
    pub queued: bool,
}

/// The usage of one meter after a decision, or when it was read.
#[derive(Debug, Clone)]
pub struct MeterUsage {
    /// Which meter.
    pub meter: MeterId,
    /// The units requested; none when it was only read.
    pub demand: Demand,
    /// Units counted in the period.
    pub used: Count,
    /// Calls denied in the period, as far as its counter was read.
    pub denied: u64,
    /// The limit and its enforcement.
    pub rule: Rule,
    /// The period that `used` belongs to.
    pub period: Period,
    /// Units that a refund gave back.
    pub given_back: u64,
    /// Set if this meter refused the request.
    pub refused: Option<Refused>,
    /// When more may become available by itself: at the end of the period, or of a temporary limit.
    pub renews_at: Option<DateTime<Utc>>,
}

/// How a meter refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused {
    /// Whether it is the first refusal in the period.
    pub first: bool,
}

impl MeterUsage {
    /// The usage in the running period, by the counter's snapshot if there is one.
    pub(super) fn new(
        policy: &Policy,
        meter: MeterId,
        snapshot: Option<Snapshot>,
        now: DateTime<Utc>,
    ) -> Self {
        let mut period = policy.schedule.running(&meter, now);
        let mut rule = policy.rule(&meter);
        // A counter with a newer policy than the cache decides by its own.
        let newer = snapshot
            .as_ref()
            .filter(|it| it.stamp.version > policy.version);
        if let Some(newer) = newer {
            period.end = newer.stamp.end;
            rule = newer.stamp.rule;
        }
        let (used, denied) = snapshot.map_or((Count::ZERO, 0), |it| (it.used, it.denied));
        let renews_at = period.end.into_iter().chain(policy.relief(&meter)).min();
        Self {
            denied,
            ..Self::read(meter, used, rule, period, renews_at)
        }
    }

    pub(super) fn read(
        meter: MeterId,
        used: Count,
        rule: Rule,
        period: Period,
        renews_at: Option<DateTime<Utc>>,
    ) -> Self {
        Self {
            meter,
            demand: Demand { amount: 0, need: 0 },
            used,
            denied: 0,
            rule,
            period,
            given_back: 0,
            refused: None,
            renews_at,
        }
    }

    /// Units left; none if unlimited.
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
