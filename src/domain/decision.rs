//! Whether a call fits: the executable specification of `lua/count.lua`.
//!
//! Lua decides in production, because only Redis sees every instance's calls in one order. This is
//! the same rule in Rust; a property test holds the two against each other, and the API uses it to
//! name the meters that refused.

use super::policy::Rule;
use super::quantity::Count;

/// What a call wants of its counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operation {
    /// Count, whatever the limit says.
    Track,
    /// Count if everything fits.
    Consume,
    /// Say whether consume would count; count nothing.
    Check,
    /// Give back, as far as there is something to give back.
    Refund,
}

impl Operation {
    /// Whether a limit can refuse this.
    pub fn respects_limits(self) -> bool {
        matches!(self, Self::Consume | Self::Check)
    }

    /// Whether one of these can stand for several equal ones: a track or a consume without an idempotency key that
    /// wants units of a single counter, and nothing beyond.
    pub fn can_stand_for_several(
        self,
        has_key: bool,
        demands: impl IntoIterator<Item = Demand>,
    ) -> bool {
        let mut demands = demands.into_iter();
        let alone = |demand: Demand| demand.amount == demand.need && demand.amount > 0;
        matches!(self, Self::Track | Self::Consume)
            && !has_key
            && demands.next().is_some_and(alone)
            && demands.next().is_none()
    }
}

/// What one operation wants of one counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Demand {
    /// Units counted if the operation is granted, or given back; 0 where a meter is only required.
    pub amount: u64,
    /// Units that must fit: the amount, and what is required beyond it.
    pub need: u64,
}

impl Demand {
    /// Whether it can be granted on top of what is used.
    pub fn fits(self, rule: Rule, used: Count) -> bool {
        rule.fits(used, self.need) && used.checked_add(self.amount).is_some()
    }
}

/// What became of an operation as a whole: all its charges, or none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Every charge fits; the counters now hold these (for a check: hold still).
    Granted(Vec<Count>),
    /// Nothing is counted; the positions of the charges that do not fit.
    Denied(Vec<usize>),
    /// Nothing is counted; this charge would pass [`COUNT_MAX`](super::quantity::COUNT_MAX).
    Overflow(usize),
}

/// Decides one operation, given each charge's rule, current count and demand, in order.
/// Every charge is of another counter. A check is denied where a consume would pass the ceiling of a counter.
pub fn decide(operation: Operation, charges: &[(Rule, Count, Demand)]) -> Decision {
    let refused: Vec<usize> = charges
        .iter()
        .enumerate()
        .filter(|(_, (rule, used, demand))| match operation {
            Operation::Track | Operation::Refund => false,
            Operation::Consume => !rule.fits(*used, demand.need),
            Operation::Check => !demand.fits(*rule, *used),
        })
        .map(|(position, _)| position)
        .collect();
    if !refused.is_empty() {
        return Decision::Denied(refused);
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

/// What some of several equal operations were granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// How many of them were.
    pub granted: u32,
    /// How many that come behind them were.
    pub granted_later: u32,
}

impl Share {
    /// The count after these, where all together have left `used`, and each that was granted is of `amount` units.
    pub fn used(&self, used: Count, amount: u64) -> Count {
        used.saturating_less(amount.saturating_mul(u64::from(self.granted_later)))
    }
}

/// Of equal operations of which the first so many were `granted`: the share of the `times` that come behind `before`
/// others.
pub fn share(granted: u32, before: u32, times: u32) -> Share {
    let left = granted.saturating_sub(before);
    Share {
        granted: left.min(times),
        granted_later: left.saturating_sub(times),
    }
}

impl Rule {
    /// Whether this can refuse an operation at all.
    pub fn refuses(&self, operation: Operation) -> bool {
        operation.respects_limits() && self.cap().is_some()
    }

    /// Whether `need` more units are within what this rule grants at all.
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
    use crate::domain::policy::Enforcement;
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
    fn a_soft_limit_and_a_track_never_refuse() {
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
    fn one_meter_that_does_not_fit_refuses_all_and_is_named() {
        let charges = [(hard(10), Count::ZERO, one(1)), (hard(5), count(5), one(1))];
        assert_eq!(
            decide(Operation::Consume, &charges),
            Decision::Denied(vec![1])
        );
    }

    #[test]
    fn what_is_required_must_fit_beyond_the_amount_and_is_not_counted() {
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
    fn a_counter_never_passes_its_ceiling() {
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
    fn a_check_at_the_ceiling_is_denied() {
        let charge = (Rule::default(), count(COUNT_MAX), one(1));
        assert_eq!(
            decide(Operation::Check, &[charge]),
            Decision::Denied(vec![0])
        );
    }

    #[test]
    fn of_equal_operations_the_first_are_granted() {
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
    fn a_check_leaves_the_count_alone() {
        assert_eq!(
            decide(Operation::Check, &[(hard(10), count(3), one(1))]),
            Decision::Granted(vec![count(3)])
        );
    }
}
