//! Many requests at once: those of one shard travel together, and the shards side by side.
//!
//! They travel in small pieces, and of all batches together only a few are on their way at a time, so that a single call
//! waits behind that many and never behind a batch.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;

use futures::StreamExt as _;
use futures::future::join_all;
use futures::stream;
use tokio::sync::Semaphore;
use tokio::task::yield_now;

use super::{
    Asked, Conclusion, Decided, Error, Miss, ROUNDS_MAX, Request, Resolution, RetryState, Usage,
    told_before, uncounted,
};
use crate::coalescer::COALESCED_MAX;
use crate::failure::Failure;
use crate::policies::CachedPolicy;
use crate::redis::{Connection, Shard};

/// How many charges the operations that travel together have at most; more only where a single one has.
const PIECE_MAX: usize = 128;

/// How many charges of all batches are on their way: as many as keep Redis busy while the next are put together.
pub(super) const UNDER_WAY_MAX: usize = 4 * PIECE_MAX;

/// How many steps of a loop are taken before everybody else has a turn.
const TURN: usize = 128;

/// How many requests find out at the same time what nobody knew: enough for the groups to be full.
const FINDING_OUT_MAX: usize = 2 * COALESCED_MAX;

/// A request that is not decided yet.
struct Pending<'a> {
    /// Its place among all requests.
    place: usize,
    request: &'a Request,
    course: RetryState,
}

/// A request, with the policy of its organization.
type WithPolicy<'a> = (Pending<'a>, Result<Arc<CachedPolicy>, Error>);

/// One round of the requests of one shard.
struct Round<'a> {
    usage: &'a Usage,
    /// One permit for each request that finds something out.
    finding_out: &'a Semaphore,
    found: Found,
}

/// What that has come to, by the places of requests.
#[derive(Default)]
struct Found {
    decided: Vec<(usize, Result<Decided, Error>)>,
    unclear: Vec<(usize, Asked, Miss)>,
    /// Those that need another round.
    again: Vec<(usize, RetryState)>,
}

impl Usage {
    /// Decides requests, each on its own; one result for each, in order. Those of one organization are
    /// decided in their order, unless something about a counter must be found out first. An error means that
    /// nothing was counted at all.
    pub async fn decide_all(
        &self,
        requests: &[Request],
    ) -> Result<Vec<Result<Decided, Error>>, Error> {
        // Before anything else, so that an outage is one error and not thousands.
        self.ctx.redis.connection().await?;
        let mut results: Vec<Option<Result<Decided, Error>>> =
            requests.iter().map(|_| None).collect();
        let mut pending: Vec<(usize, RetryState)> = (0..requests.len())
            .map(|place| (place, RetryState::default()))
            .collect();
        for _ in 0..ROUNDS_MAX {
            if pending.is_empty() {
                break;
            }
            pending = self.round(requests, pending, &mut results).await;
        }
        let mut all = Loop::default();
        for (request, result) in requests.iter().zip(&mut results) {
            all.give_way(request.demands.len()).await;
            if let Some(Ok(refusal)) = result
                && !refusal.granted
            {
                self.look_ahead(request, refusal).await;
            }
        }
        let results = results.into_iter();
        Ok(results
            .map(|result| result.unwrap_or(Err(Failure::Contended.into())))
            .collect())
    }

    /// Asks the counters once for each request, and finds out what they did not know, of all of them together.
    /// Returns those that need another round.
    async fn round(
        &self,
        requests: &[Request],
        pending: Vec<(usize, RetryState)>,
        results: &mut [Option<Result<Decided, Error>>],
    ) -> Vec<(usize, RetryState)> {
        let mut by_shard: BTreeMap<Shard, Vec<(usize, RetryState)>> = BTreeMap::new();
        for (place, course) in pending {
            if let Some(request) = requests.get(place) {
                let shard = Shard::of(&request.organization);
                by_shard.entry(shard).or_default().push((place, course));
            }
        }
        let finding_out = Semaphore::new(FINDING_OUT_MAX);
        let (shards, mut turn) = (by_shard.len().max(1), 0_usize);
        let rounds = stream::iter(by_shard)
            .then(|(shard, pending)| {
                turn = turn.saturating_add(pending.len());
                let over = turn >= TURN;
                turn = if over { 0 } else { turn };
                async move {
                    // Others have theirs, among them the lanes, which send what there is by now.
                    if over {
                        yield_now().await;
                    }
                    (shard, pending)
                }
            })
            .map(|(shard, pending)| {
                let round = Round {
                    usage: self,
                    finding_out: &finding_out,
                    found: Found::default(),
                };
                let pending = pending.into_iter().filter_map(|(place, course)| {
                    Some(Pending {
                        place,
                        request: requests.get(place)?,
                        course,
                    })
                });
                round.of_shard(shard, pending.collect())
            })
            .buffer_unordered(shards);
        let mut rounds = pin!(rounds);
        let mut decide = |place: usize, result| {
            if let Some((request, slot)) = requests.get(place).zip(results.get_mut(place)) {
                self.note(request, &result);
                *slot = Some(result);
            }
        };
        let (mut unclear, mut again) = (Vec::new(), Vec::new());
        let mut all = Loop::default();
        while let Some(found) = rounds.next().await {
            for (place, result) in found.decided {
                all.give_way(1).await;
                decide(place, result);
            }
            unclear.extend(found.unclear);
            again.extend(found.again);
        }
        let clearing_up = stream::iter(unclear).map(|(place, asked, why)| async move {
            let cleared_up = match requests.get(place) {
                Some(request) => self.clear_up(request, &asked, why).await,
                None => Err(Failure::Contended.into()),
            };
            (place, cleared_up)
        });
        let mut clearing_up = pin!(clearing_up.buffer_unordered(FINDING_OUT_MAX));
        while let Some((place, cleared_up)) = clearing_up.next().await {
            match cleared_up {
                Ok(Resolution::Decided(decided)) => decide(place, Ok(decided)),
                Ok(Resolution::Again(course)) => again.push((place, course)),
                Err(error) => decide(place, Err(error)),
            }
        }
        again.sort_unstable_by_key(|(place, _)| *place);
        again
    }
}

impl<'a> Round<'a> {
    async fn of_shard(mut self, shard: Shard, pending: Vec<Pending<'a>>) -> Found {
        match self.present(shard).await {
            Ok(Some((connection, generation))) => self.ask(&connection, generation, pending).await,
            Ok(None) => self.again(pending),
            Err(error) => {
                let failed = |it: Pending<'_>| (it.place, Err(error.clone()));
                self.found.decided.extend(pending.into_iter().map(failed));
            }
        }
        self.found
    }

    /// The connection and the shard's generation; none if it had none yet, and is to be asked again.
    async fn present(&self, shard: Shard) -> Result<Option<(Arc<Connection>, u64)>, Error> {
        let connection = self.usage.ctx.redis.connection().await?;
        let generation = self.usage.generation(&connection, shard).await?;
        Ok(generation.map(|generation| (connection, generation)))
    }

    fn again<'b>(&mut self, pending: impl IntoIterator<Item = Pending<'b>>) {
        let pending = pending.into_iter().map(|it| (it.place, it.course));
        self.found.again.extend(pending);
    }

    async fn ask(
        &mut self,
        connection: &Arc<Connection>,
        generation: u64,
        pending: Vec<Pending<'a>>,
    ) {
        let pending = self.with_policies(pending).await;
        let usage = self.usage;
        let pieces = in_pieces(pending, |(it, _)| it.request.demands.len());
        let asking = pieces
            .into_iter()
            .map(|piece| usage.ask_piece(connection, generation, piece));
        for found in join_all(asking).await {
            self.found.decided.extend(found.decided);
            self.found.unclear.extend(found.unclear);
            self.found.again.extend(found.again);
        }
    }

    /// Each with the policy of its organization, in their order.
    async fn with_policies(&self, pending: Vec<Pending<'a>>) -> Vec<WithPolicy<'a>> {
        let policies = &self.usage.policies;
        let now = self.usage.ctx.clock.now();
        let (mut found, mut unknown) = (Vec::with_capacity(pending.len()), Vec::new());
        let mut all = Loop::default();
        for it in pending {
            all.give_way(1).await;
            match policies.cached(&it.request.organization, now) {
                Some(policy) => found.push((it, Ok(policy))),
                None => unknown.push(it),
            }
        }
        if !unknown.is_empty() {
            let finding_out = unknown.into_iter().map(|it| async {
                let _permit = self.finding_out.acquire().await;
                let policy = policies.fresh(&it.request.organization).await;
                (it, policy.map_err(Error::from))
            });
            found.extend(join_all(finding_out).await);
            found.sort_unstable_by_key(|(it, _)| it.place);
        }
        found
    }
}

impl Usage {
    /// Asks the counters of a few requests, in one call, once there is room for it.
    async fn ask_piece(
        &self,
        connection: &Arc<Connection>,
        generation: u64,
        piece: Vec<WithPolicy<'_>>,
    ) -> Found {
        let charges: usize = piece.iter().map(|(it, _)| it.request.demands.len()).sum();
        let charges = u32::try_from(charges.min(UNDER_WAY_MAX)).unwrap_or(u32::MAX);
        let _room = self.room_for_batches.acquire_many(charges).await;
        let mut found = Found::default();
        let mut asking = Vec::with_capacity(piece.len());
        let now = self.ctx.clock.now();
        let mut late = Vec::new();
        for (it, policy) in piece {
            let policy = match policy {
                Ok(policy) => policy,
                Err(error) => {
                    found.decided.push((it.place, Err(error)));
                    continue;
                }
            };
            match self.ask(generation, Arc::clone(&policy), now, it.request, it.course) {
                Ok(asked) => asking.push((it, asked)),
                Err(too_late) => late.push((it, policy, too_late)),
            }
        }
        self.repeat_all(connection, late, &mut found.decided).await;
        let operations = asking.iter().map(|(it, asked)| asked.operation(it.request));
        match self.ctx.redis.count(connection, operations.collect()).await {
            Ok(Some(outcomes)) => {
                for ((it, asked), outcome) in asking.into_iter().zip(outcomes) {
                    match self.conclude(it.request, &asked, outcome) {
                        Ok(Conclusion::Decided(it_is)) => found.decided.push((it.place, Ok(it_is))),
                        Ok(Conclusion::Miss(why)) => found.unclear.push((it.place, asked, why)),
                        Err(error) => found.decided.push((it.place, Err(error))),
                    }
                }
            }
            Ok(None) => {
                let again = asking.into_iter().map(|(it, _)| (it.place, it.course));
                found.again.extend(again);
            }
            Err(error) => {
                let failed = |(it, _): (Pending<'_>, Asked)| {
                    (it.place, Err(uncounted(it.request, error.clone())))
                };
                found.decided.extend(asking.into_iter().map(failed));
            }
        }
        found
    }

    /// Of requests that come too late to be decided, what earlier attempts were told.
    async fn repeat_all(
        &self,
        connection: &Connection,
        late: Vec<(Pending<'_>, Arc<CachedPolicy>, Error)>,
        decided: &mut Vec<(usize, Result<Decided, Error>)>,
    ) {
        let attempts = late.iter().filter_map(|(it, ..)| {
            let attempt = it.request.attempt.as_ref()?;
            Some((&it.request.organization, attempt))
        });
        let attempts: Vec<_> = attempts.collect();
        let answered = connection.answered(&attempts).await;
        let (mut answered, failed) = match answered {
            Ok(answered) => (answered.into_iter(), None),
            Err(error) => (Vec::new().into_iter(), Some(error)),
        };
        for (it, policy, too_late) in late {
            let result = match (&it.request.attempt, &failed) {
                (None, _) => Err(too_late),
                (Some(_), Some(error)) => Err(error.clone().into()),
                (Some(_), None) => {
                    let answered = answered.next().flatten();
                    told_before(it.request, &policy, answered, too_late)
                }
            };
            decided.push((it.place, result));
        }
    }
}

/// A loop over many, in which everybody else has a turn now and then.
#[derive(Default)]
struct Loop(usize);

impl Loop {
    /// Before something that takes so many steps.
    async fn give_way(&mut self, steps: usize) {
        self.0 = self.0.saturating_add(steps);
        if self.0 >= TURN {
            self.0 = 0;
            yield_now().await;
        }
    }
}

/// Divides a list, in its order, into pieces that weigh [`PIECE_MAX`] at most, or are a single one.
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
    fn pieces_keep_the_order_and_weigh_no_more_than_one_may() {
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
