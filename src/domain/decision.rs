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
    /// Say what consume would say; count nothing.
    Check,
    /// Give back, as far as there is something to give back.
    Refund,
}

impl Operation {
    /// Whether a limit can refuse this.
    pub fn respects_limits(self) -> bool {
        matches!(self, Self::Consume | Self::Check)
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
/// Every charge is of another counter.
pub fn decide(operation: Operation, charges: &[(Rule, Count, Demand)]) -> Decision {
    let refused: Vec<usize> = charges
        .iter()
        .enumerate()
        .filter(|(_, (rule, used, demand))| {
            operation.respects_limits() && !rule.fits(*used, demand.need)
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

impl Rule {
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
