//! Decides many requests: those of one shard are sent together, and the shards concurrently.
//!
//! They are sent in small pieces, and only a few pieces of all batches are in flight at a time, so a single call waits
//! for those few and never for a whole batch.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures::StreamExt as _;
use futures::future::join_all;
use futures::stream::{self, FuturesUnordered};
use tokio::sync::Semaphore;
use tokio::task::yield_now;

use super::count::{BATCH_CHARGES_MAX, ROUNDS_MAX, Usage, not_counted};
use super::error::Error;
use super::plan::{Plan, RetryState, event_time};
use super::types::{Decided, Request};
use crate::coalescer::COALESCED_MAX;
use crate::failure::Failure;
use crate::policies::CachedPolicy;
use crate::redis::{Connection, Miss, Shard};

/// The most charges in one piece; only a single request may have more.
const PIECE_MAX: usize = BATCH_CHARGES_MAX / 4;

/// How many steps of a loop run before other tasks get a turn.
const YIELD_AFTER: usize = 128;

/// How many requests are resolved concurrently: enough to fill the coalesced batches.
const RESOLVING_MAX: usize = 2 * COALESCED_MAX;

/// A request that is not decided yet.
#[derive(Clone, Copy)]
struct Item {
    /// Its index in the list of all requests.
    index: usize,
    retry: RetryState,
}

/// What one round did with a request.
enum Step {
    Decided(Decided),
    /// Redis lacked something.
    Missed(Plan, Miss),
    /// Try again with what is known.
    Retry,
}

type Steps = Vec<(Item, Result<Step, Error>)>;

type WithPolicy = (Item, Result<Arc<CachedPolicy>, Failure>);

impl Usage {
    /// Decides each request on its own; returns one result for each, in order. Requests of one organization are
    /// decided in order, unless something about a counter must be found out first. An error means that nothing was
    /// counted at all.
    pub async fn decide_all(
        &self,
        requests: &[Request],
    ) -> Result<Vec<Result<Decided, Error>>, Error> {
        // First, so that an outage is one error and not thousands.
        let mut results = match self.ctx.redis.connection().await {
            Ok(_) => self.try_decide_all(requests).await,
            Err(error) => requests.iter().map(|_| Err(error.clone().into())).collect(),
        };
        if results.iter().any(is_outage) {
            results = self.admit_all_in_outage(requests, results).await?;
        }
        let turn = Turn::default();
        for (request, result) in requests.iter().zip(&mut results) {
            turn.spend(request.demands.len()).await;
            if let Ok(refusal) = result
                && !refusal.granted
            {
                self.look_ahead(request, refusal).await;
            }
            self.record(request, result);
        }
        Ok(results)
    }

    /// Admits what was not sent because Redis is down, as far as its policies allow. An error if that leaves nothing.
    async fn admit_all_in_outage(
        &self,
        requests: &[Request],
        results: Vec<Result<Decided, Error>>,
    ) -> Result<Vec<Result<Decided, Error>>, Error> {
        let admitting = requests.iter().zip(results);
        let admitting = admitting.map(|(request, result)| self.admit_in_outage(request, result));
        let results = join_all(admitting).await;
        match results.first() {
            Some(Err(error)) if results.iter().all(is_outage) => Err(error.clone()),
            _ => Ok(results),
        }
    }

    async fn try_decide_all(&self, requests: &[Request]) -> Vec<Result<Decided, Error>> {
        let retry = RetryState::default();
        let (mut results, mut items) = (Vec::with_capacity(requests.len()), Vec::new());
        for (index, request) in requests.iter().enumerate() {
            let admitted = self.ctx.redis.admits(Shard::of(&request.organization));
            if admitted.is_ok() {
                items.push(Item { index, retry });
            }
            let undecided = admitted.map_or_else(Error::from, |()| Failure::Contended.into());
            results.push(Err(undecided));
        }
        for _ in 0..ROUNDS_MAX {
            if items.is_empty() {
                break;
            }
            items = self.round(requests, items, &mut results).await;
        }
        results
    }

    /// Sends each request once, and resolves what Redis lacked, for all of them together. Returns those that need
    /// another round.
    async fn round(
        &self,
        requests: &[Request],
        items: Vec<Item>,
        results: &mut [Result<Decided, Error>],
    ) -> Vec<Item> {
        let mut by_shard: BTreeMap<Shard, Vec<Item>> = BTreeMap::new();
        for item in items {
            let shard = Shard::of(&requests[item.index].organization);
            by_shard.entry(shard).or_default().push(item);
        }
        let (lookups, turn) = (Semaphore::new(RESOLVING_MAX), Turn::default());
        let mut rounds: FuturesUnordered<_> = by_shard
            .into_iter()
            .map(|(shard, items)| self.shard_round(requests, shard, items, &lookups, &turn))
            .collect();
        let mut finish = |item: Item, result| results[item.index] = result;
        let (mut missed, mut retry) = (Vec::new(), Vec::new());
        let turn = Turn::default();
        while let Some(steps) = rounds.next().await {
            for (item, step) in steps {
                turn.spend(1).await;
                match step {
                    Ok(Step::Decided(decided)) => finish(item, Ok(decided)),
                    Ok(Step::Missed(plan, miss)) => missed.push((item, plan, miss)),
                    Ok(Step::Retry) => retry.push(item),
                    Err(error) => finish(item, Err(error)),
                }
            }
        }
        let resolving = stream::iter(missed).map(|(item, plan, miss)| async move {
            let request = &requests[item.index];
            (item, self.resolve(request, &plan, miss).await)
        });
        let mut resolving = pin!(resolving.buffer_unordered(RESOLVING_MAX));
        while let Some((item, resolved)) = resolving.next().await {
            match resolved {
                Ok(ControlFlow::Break(decided)) => finish(item, Ok(decided)),
                Ok(ControlFlow::Continue(retry_state)) => retry.push(Item {
                    retry: retry_state,
                    ..item
                }),
                Err(error) => finish(item, Err(error)),
            }
        }
        retry.sort_unstable_by_key(|item| item.index);
        retry
    }

    async fn shard_round(
        &self,
        requests: &[Request],
        shard: Shard,
        items: Vec<Item>,
        lookups: &Semaphore,
        turn: &Turn,
    ) -> Steps {
        // Other tasks get a turn, among them the lanes, which send what is queued.
        turn.spend(items.len()).await;
        let target = async {
            let connection = self.ctx.redis.connection().await?;
            let generation = self.recovery.generation(&connection, shard).await?;
            Ok((connection, generation))
        };
        let (connection, generation) = match target.await {
            Ok(target) => target,
            Err(error) => {
                let error: Error = error;
                let failed = items.into_iter().map(|item| (item, Err(error.clone())));
                return failed.collect();
            }
        };
        let items = self.with_policies(requests, items, lookups).await;
        let pieces = in_pieces(items, |(item, _)| requests[item.index].demands.len());
        let counting = pieces
            .into_iter()
            .map(|piece| self.count_piece(requests, &connection, generation, piece));
        join_all(counting).await.into_iter().flatten().collect()
    }

    /// Adds the policy of each organization; keeps the order.
    async fn with_policies(
        &self,
        requests: &[Request],
        items: Vec<Item>,
        lookups: &Semaphore,
    ) -> Vec<WithPolicy> {
        let now = self.ctx.clock.now();
        let (mut known, mut unknown) = (Vec::with_capacity(items.len()), Vec::new());
        let turn = Turn::default();
        for item in items {
            turn.spend(1).await;
            match self
                .policies
                .cached(&requests[item.index].organization, now)
            {
                Some(policy) => known.push((item, Ok(policy))),
                None => unknown.push(item),
            }
        }
        if !unknown.is_empty() {
            let looking_up = unknown.into_iter().map(|item| async move {
                let _permit = lookups.acquire().await;
                let policy = self
                    .policies
                    .fresh(&requests[item.index].organization)
                    .await;
                (item, policy)
            });
            known.extend(join_all(looking_up).await);
            known.sort_unstable_by_key(|(item, _)| item.index);
        }
        known
    }

    /// Sends a few requests in one call, once there is room for it.
    async fn count_piece(
        &self,
        requests: &[Request],
        connection: &Arc<Connection>,
        generation: u64,
        piece: Vec<WithPolicy>,
    ) -> Steps {
        let charges = piece.iter().map(|(it, _)| requests[it.index].demands.len());
        let charges: usize = charges.sum();
        let charges = u32::try_from(charges.min(BATCH_CHARGES_MAX)).unwrap_or(u32::MAX);
        let _room = self.batch_room.acquire_many(charges).await;
        let now = self.ctx.clock.now();
        let (mut steps, mut planned) = (Vec::with_capacity(piece.len()), Vec::new());
        let (mut late_items, mut late) = (Vec::new(), Vec::new());
        for (item, policy) in piece {
            let request = &requests[item.index];
            let policy = match policy {
                Ok(policy) => policy,
                Err(error) => {
                    steps.push((item, Err(error.into())));
                    continue;
                }
            };
            match event_time(&self.ctx, request, now) {
                Ok(at) => {
                    let plan = Plan::new(policy, generation, now, at, item.retry);
                    planned.push((item, plan));
                }
                Err(out_of_range) => {
                    late.push((request, policy, out_of_range));
                    late_items.push(item);
                }
            }
        }
        let replayed = self.replay(connection, late).await.into_iter();
        let replayed = replayed.map(|result| result.map(Step::Decided));
        steps.extend(late_items.into_iter().zip(replayed));
        let operations = planned
            .iter()
            .map(|(item, plan): &(Item, Plan)| plan.operation(&requests[item.index]));
        match self.ctx.redis.count(connection, operations.collect()).await {
            Ok(Some(outcomes)) => {
                for ((item, plan), outcome) in planned.into_iter().zip(outcomes) {
                    let interpreted = self.interpret(&requests[item.index], &plan, outcome);
                    let step = interpreted.map(|result| match result {
                        ControlFlow::Break(decided) => Step::Decided(decided),
                        ControlFlow::Continue(miss) => Step::Missed(plan, miss),
                    });
                    steps.push((item, step));
                }
            }
            Ok(None) => steps.extend(planned.into_iter().map(|(item, _)| (item, Ok(Step::Retry)))),
            Err(error) => {
                let failed = planned.into_iter().map(|(item, _)| {
                    let error = not_counted(&requests[item.index], error.clone());
                    (item, Err(error))
                });
                steps.extend(failed);
            }
        }
        steps
    }
}

fn is_outage(result: &Result<Decided, Error>) -> bool {
    matches!(result, Err(error) if error.is_counter_outage())
}

/// Yields to other tasks after every [`YIELD_AFTER`] steps of a loop.
#[derive(Default)]
struct Turn(AtomicUsize);

impl Turn {
    /// Before so many steps.
    async fn spend(&self, steps: usize) {
        let spent = self.0.load(Ordering::Relaxed).saturating_add(steps);
        let over = spent >= YIELD_AFTER;
        self.0
            .store(if over { 0 } else { spent }, Ordering::Relaxed);
        if over {
            yield_now().await;
        }
    }
}

/// Splits a list, in order, into pieces that weigh at most [`PIECE_MAX`] or have a single element.
fn in_pieces<T>(all: Vec<T>, weight: impl Fn(&T) -> usize) -> Vec<Vec<T>> {
    let mut pieces: Vec<Vec<T>> = Vec::new();
    let mut room = 0;
    for one in all {
        let weight = weight(&one);
        match pieces.last_mut() {
            Some(piece) if weight <= room => {
                piece.push(one);
                room -= weight;
            }
            _ => {
                pieces.push(vec![one]);
                room = PIECE_MAX.saturating_sub(weight);
            }
        }
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_keep_the_order_and_have_a_maximum_weight() {
        let weights: Vec<usize> = (0..500).map(|it| it * 7 % 40 + 1).chain([300, 1]).collect();
        let pieces = in_pieces(weights.clone(), |weight| *weight);
        for piece in &pieces {
            assert!(piece.len() == 1 || piece.iter().sum::<usize>() <= PIECE_MAX);
        }
        assert_eq!(pieces.concat(), weights);
        assert_eq!(in_pieces(vec![1; 10_000], |it| *it).len(), 79);
        assert!(in_pieces(Vec::<usize>::new(), |it| *it).is_empty());
    }
}
