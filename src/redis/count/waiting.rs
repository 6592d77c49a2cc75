//! The calls that wait for their lane.

use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::BuildHasher as _;
use std::sync::Arc;
use std::time::Instant;

use foldhash::fast::RandomState;
use tokio::sync::oneshot;

use super::types::{Operation, Outcome};
use crate::redis::connection::Connection;
use crate::redis::error::Error;
use crate::redis::shard::Shard;

/// Counters of one batch at most, because Redis does nothing else in the meantime. The operations of one call are never
/// divided.
const COUNTERS_MAX: usize = 128;

/// Charges of one batch at most, for the same reason.
pub(super) const CHARGES_MAX: usize = 512;

/// Operations of one caller, who waits for all of them.
#[derive(Debug)]
pub(super) struct Call {
    /// The connection whose generations the operations were prepared for.
    pub(super) connection: Arc<Connection>,
    pub(super) operations: Vec<Operation>,
    pub(super) since: Instant,
    pub(super) reply: oneshot::Sender<Result<Option<Vec<Outcome>>, Error>>,
}

/// Answers calls of which nothing was executed, or whose outcome is unknown.
pub(super) fn refuse(calls: impl IntoIterator<Item = Call>, error: &Error) {
    for call in calls {
        let _ = call.reply.send(Err(error.clone()));
    }
}

/// The calls that have arrived, by shard, so that concurrent calls on one counter share a batch.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    by_shard: HashMap<Shard, VecDeque<Call>, RandomState>,
    /// The shards with calls, in turn.
    shards: VecDeque<Shard>,
}

impl Waiting {
    pub(super) fn is_empty(&self) -> bool {
        self.shards.is_empty()
    }

    /// Since when the call that has waited longest has done so.
    pub(super) fn oldest(&self) -> Option<Instant> {
        let fronts = self
            .shards
            .iter()
            .filter_map(|it| self.by_shard.get(it)?.front());
        fronts.map(|call| call.since).min()
    }

    pub(super) fn drain(&mut self) -> impl Iterator<Item = Call> {
        self.shards.clear();
        self.by_shard.drain().flat_map(|(_, calls)| calls)
    }

    pub(super) fn push(&mut self, call: Call) {
        let Some(first) = call.operations.first() else {
            return;
        };
        let shard = Shard::of(&first.organization);
        let calls = self.by_shard.entry(shard).or_default();
        if calls.is_empty() {
            self.shards.push_back(shard);
        }
        calls.push_back(call);
    }

    /// Takes as many calls as fit into one batch, and at least one; those whose callers have gone away are dropped. A shard
    /// with calls left goes to the end of the queue, so that no shard waits for all calls of another.
    pub(super) fn next_batch(&mut self) -> Vec<Call> {
        let (mut batch, mut total) = (Vec::new(), 0_usize);
        // By hash: a collision makes a batch one counter larger.
        let hasher = RandomState::default();
        let mut counters = HashSet::with_capacity_and_hasher(COUNTERS_MAX, RandomState::default());
        while let Some(shard) = self.shards.pop_front() {
            let calls = self.by_shard.entry(shard).or_default();
            while let Some(call) = calls.pop_front() {
                if call.reply.is_closed() {
                    continue;
                }
                let charges = call.operations.iter().flat_map(|it| &it.charges);
                let more = charges.clone().count();
                let known = counters.len();
                counters.extend(charges.map(|charge| hasher.hash_one(&charge.counter)));
                let fits =
                    counters.len() <= COUNTERS_MAX && total.saturating_add(more) <= CHARGES_MAX;
                if known > 0 && !fits {
                    calls.push_front(call);
                    self.shards.push_back(shard);
                    return batch;
                }
                total = total.saturating_add(more);
                batch.push(call);
            }
        }
        batch
    }
}
