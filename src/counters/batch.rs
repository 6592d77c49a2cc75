//! One call of `count.lua`: what it is asked, and what it answers.
//!
//! Charges on one counter share its keys, and those that one stamp decides in one hour share a rule, so
//! that a counter is read and written once however many operations charge it.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use foldhash::fast::RandomState;
use redis::Cmd;

use super::keys::{Keys, Shard};
use super::packed::{Array, Items};
use super::{Answer, Charge, Operation, Outcome, Reading};
use crate::domain::counter::{CounterId, Stamp};
use crate::domain::decision;
use crate::domain::quantity::Count;

/// Operations in the form that `count.lua` takes, to be sent any number of times.
#[derive(Debug)]
pub(super) struct Batch {
    /// Of each counter the shard's dirty index and its own; then the idempotency records.
    keys: Vec<String>,
    /// The `MessagePack` array.
    body: Vec<u8>,
}

impl Batch {
    /// Puts operations into that form.
    pub(super) fn new<'a>(
        keys: &Keys,
        operations: impl ExactSizeIterator<Item = &'a Operation>,
    ) -> Self {
        let mut layout = Layout::default();
        let count = operations.len();
        let mut asked = Array::default();
        for operation in operations {
            asked.push(kind(operation.kind)).push(operation.times);
            match &operation.attempt {
                Some(attempt) => {
                    let record = keys.idempotency(&operation.organization, &attempt.key);
                    asked
                        .push(layout.record(record))
                        .push_text(&attempt.fingerprint);
                }
                None => {
                    asked.push(0_u8);
                }
            }
            asked.push(size(operation.charges.len()));
            for charge in &operation.charges {
                asked
                    .push(layout.rule(keys, charge))
                    .push(charge.demand.amount)
                    .push(charge.demand.need);
            }
        }
        layout.finish(count, &asked)
    }

    /// How many keys it names.
    pub(super) fn key_count(&self) -> usize {
        self.keys.len()
    }

    /// Adds the keys to a command.
    pub(super) fn write_keys(&self, command: &mut Cmd) {
        for key in &self.keys {
            command.arg(key);
        }
    }

    /// The last argument.
    pub(super) fn body(&self) -> &[u8] {
        &self.body
    }
}

/// Which counters and rules a batch needs, each of them once.
#[derive(Debug, Default)]
struct Layout<'a> {
    keys: Vec<String>,
    /// Each counter's place, and its first rule.
    counters: HashMap<&'a CounterId, (u64, usize), RandomState>,
    rules: Vec<Rule>,
    records: HashMap<String, u64>,
}

#[derive(Debug)]
struct Rule {
    counter: u64,
    stamp: Stamp,
    hour: DateTime<Utc>,
    /// Another rule of the same counter.
    next: Option<usize>,
}

impl<'a> Layout<'a> {
    /// The place of a charge's rule, from 1.
    fn rule(&mut self, keys: &Keys, charge: &'a Charge) -> u64 {
        let new = self.rules.len();
        let place = size(self.counters.len()).saturating_add(1);
        let (counter, first) = *self.counters.entry(&charge.counter).or_insert((place, new));
        if first == new {
            let shard = Shard::of(&charge.counter.organization);
            self.keys.push(keys.dirty(shard));
            self.keys.push(keys.counter(&charge.counter));
        }
        let mut last = None;
        let mut next = Some(first);
        while let Some((at, rule)) = next.and_then(|at| Some((at, self.rules.get(at)?))) {
            if rule.stamp == charge.stamp && rule.hour == charge.hour {
                return size(at).saturating_add(1);
            }
            (last, next) = (Some(at), rule.next);
        }
        if let Some(last) = last.and_then(|last| self.rules.get_mut(last)) {
            last.next = Some(new);
        }
        self.rules.push(Rule {
            counter,
            stamp: charge.stamp,
            hour: charge.hour,
            next: None,
        });
        size(new).saturating_add(1)
    }

    /// The place of an idempotency record, from 1.
    fn record(&mut self, key: String) -> u64 {
        let place = size(self.records.len()).saturating_add(1);
        *self.records.entry(key).or_insert(place)
    }

    fn finish(self, operations: usize, asked: &Array) -> Batch {
        let mut array = Array::default();
        array
            .push(size(self.counters.len()))
            .push(size(self.rules.len()))
            .push(size(operations));
        for rule in &self.rules {
            array.push(rule.counter);
            match rule.stamp.rule.cap() {
                Some(cap) => array.push(cap.get()),
                None => array.push_nothing(),
            };
            array
                .push_text(&rule.stamp.to_string())
                .push_text(itoa::Buffer::new().format(rule.hour.timestamp_millis()));
        }
        let mut records: Vec<_> = self.records.into_iter().collect();
        records.sort_unstable_by_key(|(_, place)| *place);
        let mut keys = self.keys;
        keys.extend(records.into_iter().map(|(key, _)| key));
        Batch {
            keys,
            body: array.followed_by(asked),
        }
    }
}

/// Lengths are those of lists in memory.
fn size(length: usize) -> u64 {
    u64::try_from(length).unwrap_or(u64::MAX)
}

fn kind(operation: decision::Operation) -> u8 {
    match operation {
        decision::Operation::Track => 0,
        decision::Operation::Consume => 1,
        decision::Operation::Check => 2,
        decision::Operation::Refund => 3,
    }
}

/// Reads what `count.lua` answered: one outcome for each operation, in order. None if it is something else.
pub(super) fn outcomes<'a>(
    operations: impl ExactSizeIterator<Item = &'a Operation>,
    answer: &[u8],
) -> Option<Vec<Outcome>> {
    let mut items = Items::new(answer);
    items.length()?;
    let outcomes: Option<Vec<_>> = operations
        .map(|operation| outcome(operation, &mut items))
        .collect();
    outcomes.filter(|_| items.is_empty())
}

fn outcome(operation: &Operation, items: &mut Items<'_>) -> Option<Outcome> {
    Some(match items.number()? {
        status @ (0 | 1) => Outcome::Answered(Answer {
            granted: status == 0,
            replayed: false,
            readings: readings(operation, items)?,
        }),
        2 => Outcome::Answered(replayed(items.text()?)?),
        3 => Outcome::KeyReused,
        4 => Outcome::Missing(items.position()?),
        5 => Outcome::Frozen(items.position()?),
        6 => Outcome::Closed(items.position()?),
        7 => Outcome::Overflow(items.position()?),
        8 => {
            let granted = u32::try_from(items.number()?).ok()?;
            let reading = reading(items, operation.charges.first()?)?;
            Outcome::Some { granted, reading }
        }
        _ => return None,
    })
}

/// The counts of a decision, and behind them, for a refund, what was given back of each.
fn readings(operation: &Operation, items: &mut Items<'_>) -> Option<Vec<Reading>> {
    let counts = operation
        .charges
        .iter()
        .map(|charge| reading(items, charge));
    let mut readings: Vec<Reading> = counts.collect::<Option<_>>()?;
    if operation.kind == decision::Operation::Refund {
        for reading in &mut readings {
            reading.given_back = items.number()?;
        }
    }
    Some(readings)
}

/// Reads an idempotency record: `status|start used stamp given-back|…`.
fn replayed(record: &str) -> Option<Answer> {
    let mut parts = record.split('|');
    let granted = parts.next()? == "0";
    let readings = parts.map(|part| {
        let mut words = part.split(' ');
        Some(Reading {
            start: DateTime::from_timestamp_millis(words.next()?.parse().ok()?)?,
            used: Count::try_from(words.next()?.parse::<u64>().ok()?).ok()?,
            stamp: Stamp::parse(words.next()?)?,
            given_back: words.next()?.parse().ok()?,
        })
    });
    Some(Answer {
        granted,
        replayed: true,
        readings: readings.collect::<Option<_>>()?,
    })
}

/// A count, or `count stamp` where the counter's own stamp decided.
fn reading(items: &mut Items<'_>, charge: &Charge) -> Option<Reading> {
    let (used, stamp) = if items.is_text() {
        let (used, stamp) = items.text()?.split_once(' ')?;
        (used.parse().ok()?, Stamp::parse(stamp)?)
    } else {
        (items.number()?, charge.stamp)
    };
    Some(Reading {
        start: charge.counter.start,
        used: Count::try_from(used).ok()?,
        stamp,
        given_back: 0,
    })
}
