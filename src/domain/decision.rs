//! Decisions: the executable specification of `lua/count.lua`.
//!
//! Lua decides in production, because only Redis orders the calls of all instances. A property test compares both, and the
//! API uses this one to name the meters that denied a call.

use strum::{IntoStaticStr, VariantArray};

use super::limit::Rule;
use super::quantity::Count;

/// What a call does to its counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "lowercase")]
pub enum Operation {
    /// Count without regard to limits.
    Track,
    /// Count if everything fits.
    Consume,
    /// Decide as consume does, without counting.
    Check,
    /// Subtract, down to zero.
    Refund,
}

impl Operation {
    /// Whether a limit can deny it.
    pub fn respects_limits(self) -> bool {
        matches!(self, Self::Consume | Self::Check)
    }

    /// Whether equal ones can be coalesced into one: a track or a consume of one counter, without idempotency key and
    /// without requirements beyond its amount.
    pub fn can_coalesce(self, has_key: bool, demands: impl IntoIterator<Item = Demand>) -> bool {
        let mut demands = demands.into_iter();
        let plain = |demand: Demand| demand.amount == demand.need && demand.amount > 0;
        matches!(self, Self::Track | Self::Consume)
            && !has_key
            && demands.next().is_some_and(plain)
            && demands.next().is_none()
    }
}

/// What one operation demands of one counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Demand {
    /// Units counted if granted, or refunded; 0 if the meter is only required.
    pub amount: u64,
    /// Units that must fit: the amount, and any required beyond it.
    pub need: u64,
}

impl Demand {
    /// Whether it fits on top of `used`.
    pub fn fits(self, rule: Rule, used: Count) -> bool {
        rule.fits(used, self.need) && used.checked_add(self.amount).is_some()
    }
}

/// The outcome of an operation: all its charges are counted, or none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Every charge fits; the resulting counts (for a check, the present ones).
    Granted(Vec<Count>),
    /// The positions of the charges that do not fit.
    Denied(Vec<usize>),
    /// The position of a charge that would exceed [`COUNT_MAX`](super::quantity::COUNT_MAX).
    Overflow(usize),
}

/// Decides one operation, given rule, count and demand of each charge. Every charge has another counter. A check is denied
/// where a consume would overflow a counter.
pub fn decide(operation: Operation, charges: &[(Rule, Count, Demand)]) -> Decision {
    let denied: Vec<usize> = charges
        .iter()
        .enumerate()
        .filter(|(_, (rule, used, demand))| match operation {
            Operation::Track | Operation::Refund => false,
            Operation::Consume => !rule.fits(*used, demand.need),
            Operation::Check => !demand.fits(*rule, *used),
        })
        .map(|(position, _)| position)
        .collect();
    if !denied.is_empty() {
        return Decision::Denied(denied);
    }
    let mut counts = Vec::with_capacity(charges.len());
    for (position, (_, used, demand)) in charges.iter().enumerate() {
        let count = match operation {
            Operation::Refund => Some(used.saturating_less(demand.amount)),
            _ => used.checked_add(demand.amount),
        };
        match count {
            None => return Decision::Overflow(position),
            Some(count) => counts.push(if operation == Operation::Check {
                *used
            } else {
                count
            }),
        }
    }
    Decision::Granted(counts)
}

/// The part of a coalesced operation that some of its calls get.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// How many of them were granted.
    pub granted: u32,
    /// How many of the later ones were granted.
    pub granted_later: u32,
}

impl Share {
    /// The count after these calls, given the count after all, and the amount of each.
    pub fn used(&self, used: Count, amount: u64) -> Count {
        used.saturating_less(amount.saturating_mul(u64::from(self.granted_later)))
    }
}

/// The share of `times` calls that follow `before` others, if the first `granted` calls were granted.
pub fn share(granted: u32, before: u32, times: u32) -> Share {
    let left = granted.saturating_sub(before);
    Share {
        granted: left.min(times),
        granted_later: left.saturating_sub(times),
    }
}

impl Rule {
    /// Whether it can deny an operation.
    pub fn can_deny(&self, operation: Operation) -> bool {
        operation.respects_limits() && self.cap().is_some()
    }

    /// Whether `need` more units fit.
    pub fn fits(&self, used: Count, need: u64) -> bool {
        match self.cap() {
            None => true,
            Some(cap) => used.get().saturating_add(need) <= cap.get(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::limit::Enforcement;
    use crate::domain::quantity::COUNT_MAX;

    fn hard(limit: u64) -> Rule {
        Rule {
            limit: Some(count(limit)),
            enforcement: Enforcement::Hard,
        }
    }

    fn count(units: u64) -> Count {
        Count::try_from(units).unwrap()
    }

    fn one(units: u64) -> Demand {
        Demand {
            amount: units,
            need: units,
        }
    }

    #[test]
    fn a_consume_that_reaches_the_limit_exactly_is_granted_and_the_next_is_not() {
        assert_eq!(
            decide(Operation::Consume, &[(hard(10), count(9), one(1))]),
            Decision::Granted(vec![count(10)])
        );
        assert_eq!(
            decide(Operation::Consume, &[(hard(10), count(10), one(1))]),
            Decision::Denied(vec![0])
        );
    }

    #[test]
    fn a_limit_of_zero_includes_nothing() {
        assert_eq!(
            decide(Operation::Consume, &[(hard(0), Count::ZERO, one(1))]),
            Decision::Denied(vec![0])
        );
    }

    #[test]
    fn a_soft_limit_and_a_track_never_deny() {
        let soft = Rule {
            enforcement: Enforcement::Soft,
            ..hard(1)
        };
        assert_eq!(
            decide(Operation::Consume, &[(soft, count(5), one(1))]),
            Decision::Granted(vec![count(6)])
        );
        assert_eq!(
            decide(Operation::Track, &[(hard(1), count(5), one(1))]),
            Decision::Granted(vec![count(6)])
        );
    }

    #[test]
    fn one_meter_that_does_not_fit_denies_all_and_is_named() {
        let charges = [(hard(10), Count::ZERO, one(1)), (hard(5), count(5), one(1))];
        assert_eq!(
            decide(Operation::Consume, &charges),
            Decision::Denied(vec![1])
        );
    }

    #[test]
    fn requirements_must_fit_beyond_the_amount_and_are_not_counted() {
        let demand = Demand { amount: 2, need: 5 };
        assert_eq!(
            decide(Operation::Consume, &[(hard(10), count(6), demand)]),
            Decision::Denied(vec![0])
        );
        assert_eq!(
            decide(Operation::Consume, &[(hard(10), count(5), demand)]),
            Decision::Granted(vec![count(7)])
        );
    }

    #[test]
    fn a_counter_never_exceeds_its_maximum() {
        let unlimited = Rule {
            limit: None,
            enforcement: Enforcement::Hard,
        };
        assert_eq!(
            decide(Operation::Track, &[(unlimited, count(COUNT_MAX), one(1))]),
            Decision::Overflow(0)
        );
    }

    #[test]
    fn a_check_at_the_maximum_is_denied() {
        let charge = (Rule::default(), count(COUNT_MAX), one(1));
        assert_eq!(
            decide(Operation::Check, &[charge]),
            Decision::Denied(vec![0])
        );
    }

    #[test]
    fn of_coalesced_calls_the_first_are_granted() {
        let shares =
            |granted| [(0, 1), (1, 2), (3, 4)].map(|(before, times)| share(granted, before, times));
        let of = |granted, granted_later| Share {
            granted,
            granted_later,
        };
        assert_eq!(shares(0), [of(0, 0), of(0, 0), of(0, 0)]);
        assert_eq!(shares(2), [of(1, 1), of(1, 0), of(0, 0)]);
        assert_eq!(shares(5), [of(1, 4), of(2, 2), of(2, 0)]);
        assert_eq!(shares(7), [of(1, 6), of(2, 4), of(4, 0)]);
    }

    #[test]
    fn a_refund_stops_at_zero() {
        assert_eq!(
            decide(Operation::Refund, &[(hard(10), count(3), one(5))]),
            Decision::Granted(vec![Count::ZERO])
        );
    }

    #[test]
    fn a_check_does_not_count() {
        assert_eq!(
            decide(Operation::Check, &[(hard(10), count(3), one(1))]),
            Decision::Granted(vec![count(3)])
        );
    }
}
