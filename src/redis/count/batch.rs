//! One call of `count.lua`: what it is asked, and what it answers.
//!
//! Charges on one counter share its keys, and those that one stamp decides in one hour share a rule, so
//! that a counter is read and written once however many operations charge it. Equal operations that follow each other
//! on a counter are one for the script.

use std::collections::HashMap;
use std::hash::Hash;

use chrono::{DateTime, Utc};
use foldhash::fast::RandomState;
use redis::Cmd;

use crate::domain::counter::{CounterId, Stamp};
use crate::domain::decision;
use crate::domain::quantity::Count;
use crate::domain::threshold::Watched;
use crate::redis::codec::{Array, Items};
use crate::redis::keys::{KeyList, Keys, Shard};
use crate::redis::{Answer, Attempt, Charge, Operation, Outcome, Reading};

/// How many keys a call has before those of its batch: the lane's receipt, and the data set that holds it.
pub(in crate::redis) const LANE_KEYS: usize = 2;

/// Operations in the form that `count.lua` takes, to be sent any number of times.
#[derive(Debug)]
pub(in crate::redis) struct Batch {
    /// Of the counters, of the idempotency records, and of the dirty indexes of the counters' shards.
    keys: [KeyList; 3],
    /// The `MessagePack` array.
    body: Vec<u8>,
    asked: Vec<Asked>,
    parts: Vec<Part>,
}

/// What the script is asked: an operation, or several equal ones as one that stands for them.
#[derive(Debug)]
struct Asked {
    /// The place of the first of them.
    operation: usize,
    times: u32,
    /// The place of its first charge's rule among those of all charges.
    rules: usize,
}

/// Where the outcome of an operation will be.
#[derive(Debug)]
struct Part {
    asked: usize,
    /// How many equal ones come before.
    before: u32,
}

impl Batch {
    /// Puts operations into that form.
    pub(in crate::redis) fn new(keys: &Keys, operations: &[&Operation]) -> Self {
        let mut layout = Layout::default();
        let mut asked: Vec<Asked> = Vec::with_capacity(operations.len());
        let mut parts = Vec::with_capacity(operations.len());
        // The place of each charge's rule.
        let mut rules = Vec::with_capacity(operations.len());
        for (place, operation) in operations.iter().enumerate() {
            let own = rules.len();
            for charge in &operation.charges {
                rules.push(layout.rule(keys, charge));
            }
            let charged = rules.get(own..).unwrap_or_default();
            let equal = layout.asked_last(charged).and_then(|at| {
                let last = asked.get_mut(at)?;
                let same = rules.get(last.rules) == charged.first()
                    && extends(operations.get(last.operation)?, operation);
                same.then_some((at, last))
            });
            if let Some((at, last)) = equal {
                parts.push(Part {
                    asked: at,
                    before: last.times,
                });
                last.times = last.times.saturating_add(operation.times);
                rules.truncate(own);
            } else {
                layout.ask(charged, asked.len());
                parts.push(Part {
                    asked: asked.len(),
                    before: 0,
                });
                asked.push(Asked {
                    operation: place,
                    times: operation.times,
                    rules: own,
                });
            }
        }
        let mut body = Array::default();
        for it in &asked {
            let Some(operation) = operations.get(it.operation) else {
                continue;
            };
            body.push(kind(operation.kind)).push(it.times);
            match &operation.attempt {
                Some(attempt) => {
                    let record = keys.idempotency(&operation.organization, &attempt.key);
                    body.push(layout.record(record))
                        .push_text(&attempt.fingerprint);
                }
                None => {
                    body.push(0_u8);
                }
            }
            body.push(size(operation.charges.len()));
            let rules = rules.get(it.rules..).unwrap_or_default();
            for (charge, rule) in operation.charges.iter().zip(rules) {
                body.push(nth(*rule))
                    .push(charge.demand.amount)
                    .push(charge.demand.need);
            }
        }
        layout.finish(asked, parts, body)
    }

    /// How many keys it names.
    pub(in crate::redis) fn key_count(&self) -> usize {
        self.keys.iter().map(KeyList::len).sum()
    }

    /// How many bytes its keys and its body have together.
    pub(in crate::redis) fn size(&self) -> usize {
        let keys: usize = self.keys.iter().map(KeyList::size).sum();
        keys.saturating_add(self.body.len())
    }

    /// Adds the keys to a command.
    pub(in crate::redis) fn write_keys(&self, command: &mut Cmd) {
        for key in self.keys.iter().flat_map(KeyList::iter) {
            command.arg(key);
        }
    }

    /// The last argument.
    pub(in crate::redis) fn body(&self) -> &[u8] {
        &self.body
    }

    /// Reads what `count.lua` answered: one outcome for each operation, in order. None if it is something else.
    pub(in crate::redis) fn outcomes(
        &self,
        operations: &[&Operation],
        answer: &[u8],
    ) -> Option<Vec<Outcome>> {
        let mut items = Items::new(answer);
        items.length()?;
        let mut outcomes = Vec::with_capacity(self.asked.len());
        for asked in &self.asked {
            let operation = operations.get(asked.operation)?;
            outcomes.push(Some(outcome(operation, asked.times, &mut items)?));
        }
        if !items.is_empty() {
            return None;
        }
        let parts = self.parts.iter().zip(operations);
        parts
            .map(|(part, operation)| {
                let of_all = outcomes.get_mut(part.asked)?;
                if self.asked.get(part.asked)?.times == operation.times {
                    of_all.take()
                } else {
                    Some(part_of(of_all.as_ref()?, operation, part.before))
                }
            })
            .collect()
    }
}

/// Whether an operation wants just what the one before it wants of the same counter, so that they can be decided
/// together.
fn extends(first: &Operation, operation: &Operation) -> bool {
    let demand = |it: &Operation| it.charges.first().map(|charge| charge.demand);
    let plain = |it: &Operation| {
        let demands = it.charges.iter().map(|charge| charge.demand);
        it.kind.can_stand_for_several(it.attempt.is_some(), demands)
    };
    plain(first)
        && plain(operation)
        && first.kind == operation.kind
        && demand(first) == demand(operation)
}

/// What became of one of several equal operations, by what became of all of them.
fn part_of(all: &Outcome, operation: &Operation, before: u32) -> Outcome {
    let (Outcome::Some { granted, reading }, [charge]) = (all, operation.charges.as_slice()) else {
        return all.clone();
    };
    let share = decision::share(*granted, before, operation.times);
    let refused = before..before.saturating_add(operation.times);
    let reading = Reading {
        used: share.used(reading.used, charge.demand.amount),
        // Of all of them, the one behind those that were granted.
        refused_first: reading.refused_first && refused.contains(granted),
        ..*reading
    };
    if operation.times > 1 {
        Outcome::Some {
            granted: share.granted,
            reading,
        }
    } else if share.granted == 0 && !reading.stamp.rule.refuses(operation.kind) {
        Outcome::Overflow(0)
    } else {
        Outcome::Answered(Answer {
            granted: share.granted > 0,
            replayed: false,
            readings: vec![reading],
        })
    }
}

/// Which counters and rules a batch needs, each of them once.
#[derive(Debug, Default)]
struct Layout<'a> {
    keys: KeyList,
    /// The place of each counter's first rule.
    counters: HashMap<&'a CounterId, usize, RandomState>,
    /// The dirty index of each shard.
    indexes: Once<Shard>,
    /// By counter, the place of its dirty index among these.
    index: Vec<usize>,
    /// By counter, the place of what was last asked of it.
    last: Vec<Option<usize>>,
    rules: Vec<Rule<'a>>,
    /// The idempotency records, by their own keys.
    records: Once<String>,
}

/// Keys of which each is there once, by what it is the key of.
#[derive(Debug)]
struct Once<T> {
    keys: KeyList,
    places: HashMap<T, usize, RandomState>,
}

impl<T> Default for Once<T> {
    fn default() -> Self {
        Self {
            keys: KeyList::default(),
            places: HashMap::default(),
        }
    }
}

impl<T: Eq + Hash> Once<T> {
    /// The place of a key, which is written if it is new.
    fn place(&mut self, of: T, write: impl FnOnce(&T, &mut String)) -> usize {
        let keys = &mut self.keys;
        *self.places.entry(of).or_insert_with_key(|of| {
            keys.push(|key| write(of, key));
            keys.len() - 1
        })
    }
}

#[derive(Debug)]
struct Rule<'a> {
    counter: usize,
    stamp: Stamp,
    hour: DateTime<Utc>,
    watched: &'a Watched,
    /// Another rule of the same counter.
    next: Option<usize>,
}

impl<'a> Layout<'a> {
    /// The place of a charge's rule.
    fn rule(&mut self, keys: &Keys, charge: &'a Charge) -> usize {
        let new = self.rules.len();
        let first = *self.counters.entry(&charge.counter).or_insert(new);
        let (mut counter, mut last) = (self.last.len(), None);
        let mut next = Some(first);
        while let Some((at, rule)) = next.and_then(|at| Some((at, self.rules.get(at)?))) {
            if rule.stamp == charge.stamp && rule.hour == charge.hour {
                return at;
            }
            counter = rule.counter;
            (last, next) = (Some(at), rule.next);
        }
        if let Some(last) = last.and_then(|last| self.rules.get_mut(last)) {
            last.next = Some(new);
        } else {
            let shard = Shard::of(&charge.counter.organization);
            self.keys
                .push(|key| keys.write_counter(shard, &charge.counter, key));
            let index = self
                .indexes
                .place(shard, |shard, key| keys.write_dirty(*shard, key));
            self.index.push(index);
            self.last.push(None);
        }
        self.rules.push(Rule {
            counter,
            stamp: charge.stamp,
            hour: charge.hour,
            watched: &charge.watched,
            next: None,
        });
        new
    }

    /// The place of what was last asked of the counter of this rule, if it is only one.
    fn asked_last(&self, rules: &[usize]) -> Option<usize> {
        let [rule] = rules else { return None };
        *self.last.get(self.rules.get(*rule)?.counter)?
    }

    /// Notes what is asked of the counters of these rules.
    fn ask(&mut self, rules: &[usize], asked: usize) {
        for rule in rules {
            let counter = self.rules.get(*rule).map(|rule| rule.counter);
            if let Some(last) = counter.and_then(|counter| self.last.get_mut(counter)) {
                *last = Some(asked);
            }
        }
    }

    /// The place of an idempotency record behind the counters, once all of these have their own.
    fn record(&mut self, key: String) -> u64 {
        let place = self.records.place(key, |key, text| text.push_str(key));
        nth(self.keys.len() + place)
    }

    fn finish(self, asked: Vec<Asked>, parts: Vec<Part>, mut body: Array) -> Batch {
        let before = LANE_KEYS + self.keys.len() + self.records.keys.len();
        for index in &self.index {
            body.push(nth(before + index));
        }
        let mut array = Array::default();
        array
            .push(size(self.last.len()))
            .push(size(self.records.keys.len()))
            .push(size(self.rules.len()))
            .push(size(asked.len()));
        // Nearly all of a batch have the same.
        let mut stamp: Option<(Stamp, String)> = None;
        for rule in &self.rules {
            array.push(nth(rule.counter));
            match rule.stamp.rule.cap() {
                Some(cap) => array.push(cap.get()),
                None => array.push_nothing(),
            };
            let (_, text) = match stamp.take().filter(|(stamp, _)| *stamp == rule.stamp) {
                Some(same) => stamp.insert(same),
                None => stamp.insert((rule.stamp, rule.stamp.to_string())),
            };
            array
                .push_text(text)
                .push_signed(rule.hour.timestamp_millis());
            match rule.watched.from {
                Some(from) => array.push(from),
                None => array.push_nothing(),
            };
            array.push_text(&rule.watched.percents);
        }
        Batch {
            keys: [self.keys, self.records.keys, self.indexes.keys],
            body: array.followed_by(&body),
            asked,
            parts,
        }
    }
}

/// A place as Lua counts them, from 1.
fn nth(place: usize) -> u64 {
    size(place).saturating_add(1)
}

/// Lengths are those of lists in memory.
pub(in crate::redis) fn size(length: usize) -> u64 {
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

/// What became of an operation, or of so many equal ones.
fn outcome(operation: &Operation, times: u32, items: &mut Items<'_>) -> Option<Outcome> {
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
        9 => items.position().map(|_| Outcome::Fenced)?,
        8 if times > 1 => {
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

/// Reads what an attempt was answered before, or that another payload came under its key: `fingerprint|record`.
pub(in crate::redis) fn answered(attempt: &Attempt, value: &str) -> Option<Outcome> {
    let (fingerprint, record) = value.split_once('|')?;
    Some(if fingerprint == attempt.fingerprint {
        Outcome::Answered(replayed(record)?)
    } else {
        Outcome::KeyReused
    })
}

/// Reads an idempotency record: `status|start used stamp given-back|…`, with ` first` behind what refused the first call.
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
            refused_first: words.next() == Some("first"),
        })
    });
    Some(Answer {
        granted,
        replayed: true,
        readings: readings.collect::<Option<_>>()?,
    })
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
