//! Decodes replies of `count.lua`, and idempotency records.

use chrono::DateTime;

use super::types::{Answer, Charge, IdempotencyUse, Miss, Operation, Outcome, Reading};
use crate::domain::counter::Stamp;
use crate::domain::decision;
use crate::domain::quantity::Count;
use crate::redis::codec::Items;

/// The outcome of an operation, or of so many equal ones; none if the items are something else.
pub(super) fn outcome(operation: &Operation, times: u32, items: &mut Items<'_>) -> Option<Outcome> {
    Some(match items.number()? {
        status @ (0 | 1) if times == 1 => Outcome::Answered(Answer {
            times_granted: u32::from(status == 0),
            replayed: false,
            readings: readings(operation, items)?,
        }),
        2 => Outcome::Answered(replayed(items.text()?)?),
        3 => Outcome::KeyReused,
        4 => Outcome::Miss(Miss::Missing(items.position()?)),
        5 => Outcome::Miss(Miss::Frozen(items.position()?)),
        6 => Outcome::Miss(Miss::Closed(items.position()?)),
        7 => Outcome::Overflow(items.position()?),
        8 if times > 1 => Outcome::Answered(Answer {
            times_granted: u32::try_from(items.number()?).ok()?,
            replayed: false,
            readings: vec![reading(items, operation.charges.first()?)?],
        }),
        9 => items.position().map(|_| Outcome::Miss(Miss::Fenced))?,
        _ => return None,
    })
}

/// The share of one operation in the outcome of several equal ones, of which so many come before it.
pub(super) fn share(all: &Outcome, operation: &Operation, before: u32) -> Outcome {
    let Outcome::Answered(Answer {
        times_granted,
        readings,
        ..
    }) = all
    else {
        return all.clone();
    };
    let ([reading], [charge]) = (readings.as_slice(), operation.charges.as_slice()) else {
        return all.clone();
    };
    let share = decision::share(*times_granted, before, operation.times);
    let rule = &reading.stamp.rule;
    if operation.times == 1 && share.granted == 0 && !rule.can_deny(operation.kind) {
        return Outcome::Overflow(0);
    }
    let own = before..before.saturating_add(operation.times);
    Outcome::Answered(Answer {
        times_granted: share.granted,
        replayed: false,
        readings: vec![Reading {
            used: share.used(reading.used, charge.demand.amount),
            // The first refused call follows those that were granted.
            refused_first: reading.refused_first && own.contains(times_granted),
            ..*reading
        }],
    })
}

/// The counts of a decision, followed, for a refund, by the units given back to each.
fn readings(operation: &Operation, items: &mut Items<'_>) -> Option<Vec<Reading>> {
    let counts = operation.charges.iter();
    let counts = counts.map(|charge| reading(items, charge));
    let mut readings: Vec<Reading> = counts.collect::<Option<_>>()?;
    if operation.kind == decision::Operation::Refund {
        for reading in &mut readings {
            reading.given_back = items.number()?;
        }
    }
    Some(readings)
}

/// A count, or `count stamp` where the counter's own stamp decided, or `count stamp first`.
fn reading(items: &mut Items<'_>, charge: &Charge) -> Option<Reading> {
    let (used, stamp, refused_first) = if items.is_text() {
        let mut words = items.text()?.split(' ');
        let (used, stamp) = (words.next()?.parse().ok()?, Stamp::parse(words.next()?)?);
        (used, stamp, words.next() == Some("first"))
    } else {
        (items.number()?, charge.stamp, false)
    };
    Some(Reading {
        start: charge.counter.start,
        used: Count::try_from(used).ok()?,
        stamp,
        given_back: 0,
        refused_first,
    })
}

/// Decodes an idempotency record: `fingerprint|decision`.
pub(in crate::redis) fn recorded(used: &IdempotencyUse, value: &str) -> Option<Outcome> {
    let (fingerprint, decision) = value.split_once('|')?;
    if fingerprint != used.fingerprint {
        return Some(Outcome::KeyReused);
    }
    replayed(decision).map(Outcome::Answered)
}

/// Decodes a recorded decision: `status|start used stamp returned|…`, with ` first` after a counter that refused its first
/// call.
fn replayed(decision: &str) -> Option<Answer> {
    let mut parts = decision.split('|');
    let times_granted = u32::from(parts.next()? == "0");
    let readings = parts.map(|part| {
        let mut words = part.split(' ');
        Some(Reading {
            start: DateTime::from_timestamp_millis(words.next()?.parse().ok()?)?,
            used: Count::try_from(words.next()?.parse::<u64>().ok()?).ok()?,
            stamp: Stamp::parse(words.next()?)?,
            given_back: words.next()?.parse().ok()?,
            refused_first: words.next() == Some("first"),
        })
    });
    Some(Answer {
        times_granted,
        replayed: true,
        readings: readings.collect::<Option<_>>()?,
    })
}
