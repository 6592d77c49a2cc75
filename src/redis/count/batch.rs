//! One call of `count.lua`: operations in the form that the script takes.
//!
//! Charges on one counter share its key, and those with the same stamp and hour share a rule, so that a counter is read and
//! written once however many operations charge it. Consecutive equal operations on a counter are one for the script.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::Duration;

use ::redis::Cmd;
use chrono::{DateTime, Utc};
use foldhash::fast::RandomState;

use super::reply;
use super::types::{Charge, Operation, Outcome};
use crate::domain::counter::{CounterId, Stamp};
use crate::domain::decision;
use crate::domain::threshold::WatchedThresholds;
use crate::redis::codec::{Array, Items, size};
use crate::redis::keys::{KeyList, Keys};
use crate::redis::scripts::COUNT;
use crate::redis::shard::Shard;

/// How long a receipt is kept after its lane's last batch: longer than any packet is in flight.
pub(super) const RECEIPT_LIFETIME: Duration = Duration::from_millis(RECEIPT_LIFETIME_MS);

const RECEIPT_LIFETIME_MS: u64 = 3_600_000;

/// Keys of a call before those of its batch: the lane's receipt, and the data set that has it.
const LANE_KEYS: usize = 2;

/// Identifies a batch for its receipt.
#[derive(Debug)]
pub(super) struct Header<'a> {
    /// The name of the lane.
    pub(super) lane: &'a str,
    /// Grows from batch to batch of the lane.
    pub(super) number: u64,
    /// Whether it was sent before and its reply was lost.
    pub(super) again: bool,
    /// Of the lane's home, once its data set has a number.
    pub(super) generation: Option<u64>,
    /// The number of the last batch of which Redis must have the receipt, or 0.
    pub(super) acknowledged: u64,
    pub(super) now: DateTime<Utc>,
    pub(super) record_lifetime_ms: u64,
}

/// Operations as `count.lua` takes them. May be sent any number of times.
#[derive(Debug)]
pub(super) struct Batch {
    /// The shard that has the lane's receipt and the fences.
    home: Shard,
    /// Counters, idempotency records, and the dirty indexes of the counters' shards.
    keys: [KeyList; 3],
    /// The `MessagePack` array.
    body: Vec<u8>,
    entries: Vec<Entry>,
    /// For each operation, where its outcome is.
    shares: Vec<Share>,
}

/// An operation of the script, which stands for equal ones.
#[derive(Debug)]
struct Entry {
    /// The index of the first of them.
    operation: usize,
    times: u32,
    /// The index of its first charge in the list of all charges' rules.
    charges: usize,
}

/// Which part of an entry's outcome belongs to an operation.
#[derive(Debug)]
struct Share {
    entry: usize,
    /// How many equal ones come before it.
    before: u32,
}

impl Batch {
    pub(super) fn new(keys: &Keys, home: Shard, operations: &[&Operation]) -> Self {
        let mut layout = Layout {
            counters: HashMap::with_capacity_and_hasher(operations.len(), RandomState::default()),
            ..Layout::default()
        };
        let mut entries: Vec<Entry> = Vec::with_capacity(operations.len());
        let mut shares = Vec::with_capacity(operations.len());
        // For each charge, its rule.
        let mut rules = Vec::with_capacity(operations.len());
        for (index, operation) in operations.iter().enumerate() {
            let charges = rules.len();
            for charge in &operation.charges {
                rules.push(layout.rule(keys, charge));
            }
            let own = rules.get(charges..).unwrap_or_default();
            let equal = layout.last_entry(own).and_then(|entry| {
                let last = entries.get_mut(entry)?;
                let same = rules.get(last.charges) == own.first()
                    && can_join(operations.get(last.operation)?, operation);
                same.then_some((entry, last))
            });
            if let Some((entry, last)) = equal {
                shares.push(Share {
                    entry,
                    before: last.times,
                });
                last.times = last.times.saturating_add(operation.times);
                rules.truncate(charges);
            } else {
                let entry = entries.len();
                layout.set_last_entry(own, entry);
                shares.push(Share { entry, before: 0 });
                entries.push(Entry {
                    operation: index,
                    times: operation.times,
                    charges,
                });
            }
        }
        let mut body = Array::default();
        for entry in &entries {
            if let Some(operation) = operations.get(entry.operation) {
                let rules = rules.get(entry.charges..).unwrap_or_default();
                layout.write_operation(keys, operation, entry.times, rules, &mut body);
            }
        }
        layout.finish(home, entries, shares, body)
    }

    /// The call of the script. Assembled by hand with its capacity, because this is the hot path.
    pub(super) fn call(&self, keys: &Keys, header: &Header<'_>) -> Cmd {
        /// Arguments besides the keys of the batch.
        const ARGUMENTS: usize = 14;
        let key_count: usize = self.keys.iter().map(KeyList::len).sum();
        let key_bytes: usize = self.keys.iter().map(KeyList::size).sum();
        let mut call = Cmd::with_capacity(
            key_count.saturating_add(ARGUMENTS),
            key_bytes
                .saturating_add(self.body.len())
                .saturating_add(ARGUMENTS * 64),
        );
        call.arg("EVALSHA")
            .arg(&COUNT.hash)
            .arg(key_count.saturating_add(LANE_KEYS + 1))
            .arg(keys.receipt(self.home, header.lane))
            .arg(keys.generation(self.home));
        for key in self.keys.iter().flat_map(KeyList::iter) {
            call.arg(key);
        }
        call.arg(keys.fences(self.home))
            .arg(header.now.timestamp_millis())
            .arg(header.record_lifetime_ms)
            .arg(RECEIPT_LIFETIME_MS)
            .arg(header.number)
            .arg(i32::from(header.again));
        match header.generation {
            Some(number) => call.arg(number),
            None => call.arg(""),
        };
        call.arg(header.acknowledged).arg(self.body.as_slice());
        call
    }

    /// Decodes the reply: one outcome for each operation, in order. None if it is something else.
    pub(super) fn outcomes(&self, operations: &[&Operation], reply: &[u8]) -> Option<Vec<Outcome>> {
        let mut items = Items::new(reply);
        items.length()?;
        let mut outcomes = Vec::with_capacity(self.entries.len());
        for entry in &self.entries {
            let operation = operations.get(entry.operation)?;
            outcomes.push(Some(reply::outcome(operation, entry.times, &mut items)?));
        }
        if !items.is_empty() {
            return None;
        }
        let shares = self.shares.iter().zip(operations);
        shares
            .map(|(share, operation)| {
                let outcome = outcomes.get_mut(share.entry)?;
                if self.entries.get(share.entry)?.times == operation.times {
                    outcome.take()
                } else {
                    Some(reply::share(outcome.as_ref()?, operation, share.before))
                }
            })
            .collect()
    }
}

/// Whether two operations on the same counter are equal and can be decided as one.
fn can_join(first: &Operation, operation: &Operation) -> bool {
    let demand = |it: &Operation| it.charges.first().map(|charge| charge.demand);
    let plain = |it: &Operation| {
        let demands = it.charges.iter().map(|charge| charge.demand);
        it.kind.can_coalesce(it.idempotency.is_some(), demands)
    };
    plain(first)
        && plain(operation)
        && first.kind == operation.kind
        && demand(first) == demand(operation)
}

/// The counters, rules and records of a batch, each once.
#[derive(Debug, Default)]
struct Layout<'a> {
    keys: KeyList,
    /// By counter, the index of its first rule.
    counters: HashMap<&'a CounterId, usize, RandomState>,
    /// The dirty index of each shard.
    indexes: UniqueKeys<Shard>,
    /// By counter, its dirty index among these.
    index: Vec<usize>,
    /// By counter, the last entry that charges it.
    last_entry: Vec<Option<usize>>,
    rules: Vec<Rule<'a>>,
    /// The idempotency records, by their keys.
    records: UniqueKeys<String>,
}

/// A list of keys without duplicates.
#[derive(Debug)]
struct UniqueKeys<T> {
    keys: KeyList,
    indexes: HashMap<T, usize, RandomState>,
}

impl<T> Default for UniqueKeys<T> {
    fn default() -> Self {
        Self {
            keys: KeyList::default(),
            indexes: HashMap::default(),
        }
    }
}

impl<T: Eq + Hash> UniqueKeys<T> {
    /// The index of a key, which is written if it is new.
    fn index(&mut self, of: T, write: impl FnOnce(&T, &mut String)) -> usize {
        let keys = &mut self.keys;
        *self.indexes.entry(of).or_insert_with_key(|of| {
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
    watched: &'a WatchedThresholds,
    /// Another rule of the same counter.
    next: Option<usize>,
}

impl<'a> Layout<'a> {
    /// The index of a charge's rule.
    fn rule(&mut self, keys: &Keys, charge: &'a Charge) -> usize {
        let new = self.rules.len();
        let first = *self.counters.entry(&charge.counter).or_insert(new);
        let (mut counter, mut last) = (self.last_entry.len(), None);
        let mut next = Some(first);
        while let Some((index, rule)) = next.and_then(|index| Some((index, self.rules.get(index)?)))
        {
            if rule.stamp == charge.stamp && rule.hour == charge.hour {
                return index;
            }
            counter = rule.counter;
            (last, next) = (Some(index), rule.next);
        }
        if let Some(last) = last.and_then(|last| self.rules.get_mut(last)) {
            last.next = Some(new);
        } else {
            let shard = Shard::of(&charge.counter.organization);
            self.keys
                .push(|key| keys.write_counter(shard, &charge.counter, key));
            let index = self
                .indexes
                .index(shard, |shard, key| keys.write_dirty(*shard, key));
            self.index.push(index);
            self.last_entry.push(None);
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

    /// The last entry that charges the counter of this rule, if there is only one rule.
    fn last_entry(&self, rules: &[usize]) -> Option<usize> {
        let [rule] = rules else { return None };
        *self.last_entry.get(self.rules.get(*rule)?.counter)?
    }

    fn set_last_entry(&mut self, rules: &[usize], entry: usize) {
        for rule in rules {
            let counter = self.rules.get(*rule).map(|rule| rule.counter);
            if let Some(last) = counter.and_then(|counter| self.last_entry.get_mut(counter)) {
                *last = Some(entry);
            }
        }
    }

    /// Writes an operation. All counters must have their index by now, because records follow them.
    fn write_operation(
        &mut self,
        keys: &Keys,
        operation: &Operation,
        times: u32,
        rules: &[usize],
        body: &mut Array,
    ) {
        body.push(kind(operation.kind)).push(times);
        match &operation.idempotency {
            Some(used) => {
                let key = keys.idempotency(&operation.organization, &used.key);
                let record = self.records.index(key, |key, text| text.push_str(key));
                body.push(lua_index(self.keys.len() + record))
                    .push_text(&used.fingerprint);
            }
            None => {
                body.push(0_u8);
            }
        }
        body.push(size(operation.charges.len()));
        for (charge, rule) in operation.charges.iter().zip(rules) {
            body.push(lua_index(*rule))
                .push(charge.demand.amount)
                .push(charge.demand.need);
        }
    }

    fn finish(
        self,
        home: Shard,
        entries: Vec<Entry>,
        shares: Vec<Share>,
        mut body: Array,
    ) -> Batch {
        let before = LANE_KEYS + self.keys.len() + self.records.keys.len();
        for index in &self.index {
            body.push(lua_index(before + index));
        }
        let mut array = Array::default();
        array
            .push(size(self.last_entry.len()))
            .push(size(self.records.keys.len()))
            .push(size(self.rules.len()))
            .push(size(entries.len()));
        // Formatted once for consecutive rules with the same stamp, which nearly all of a batch have.
        let mut stamp: Option<(Stamp, String)> = None;
        for rule in &self.rules {
            let (_, text) = match stamp.take().filter(|(stamp, _)| *stamp == rule.stamp) {
                Some(same) => stamp.insert(same),
                None => stamp.insert((rule.stamp, rule.stamp.to_string())),
            };
            array
                .push(lua_index(rule.counter))
                .push_optional(
                    rule.stamp
                        .rule
                        .cap()
                        .map(crate::domain::quantity::Count::get),
                )
                .push_text(text)
                .push_signed(rule.hour.timestamp_millis())
                .push_optional(rule.watched.lowest)
                .push_text(&rule.watched.percents);
        }
        Batch {
            home,
            keys: [self.keys, self.records.keys, self.indexes.keys],
            body: array.followed_by(&body),
            entries,
            shares,
        }
    }
}

/// Lua counts from 1.
fn lua_index(index: usize) -> u64 {
    size(index).saturating_add(1)
}

fn kind(operation: decision::Operation) -> u8 {
    match operation {
        decision::Operation::Track => 0,
        decision::Operation::Consume => 1,
        decision::Operation::Check => 2,
        decision::Operation::Refund => 3,
    }
}
