//! Many requests at once: those of one shard travel together, and the shards side by side.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;

use futures::StreamExt as _;
use futures::future::join_all;
use futures::stream;
use tokio::sync::Semaphore;
use tokio::task::yield_now;

use super::{
    Asked, ClearedUp, Conclusion, Course, Decided, Error, Metering, ROUNDS_MAX, Request, Unclear,
    told_before, uncounted,
};
use crate::counters::{Link, Shard};
use crate::groups::GROUP_MAX;
use crate::policies::Resolved;

/// How many operations travel together at most.
const TOGETHER_MAX: usize = 128;

/// How many requests are put together before everybody else has a turn.
const TURN: usize = 128;

/// How many requests find out at the same time what nobody knew: enough for the groups to be full.
const FINDING_OUT_MAX: usize = 2 * GROUP_MAX;

/// A request that is not decided yet.
struct Pending<'a> {
    /// Its place among all requests.
    place: usize,
    request: &'a Request,
    course: Course,
}

/// One round of the requests of one shard.
struct Round<'a> {
    metering: &'a Metering,
    /// One permit for each request that finds something out.
    finding_out: &'a Semaphore,
    found: Found,
}

/// What that has come to, by the places of requests.
#[derive(Default)]
struct Found {
    decided: Vec<(usize, Result<Decided, Error>)>,
    unclear: Vec<(usize, Asked, Unclear)>,
    /// Those that need another round.
    again: Vec<(usize, Course)>,
}

impl Metering {
    /// Decides requests, each on its own; one result for each, in order. Those of one organization are
    /// decided in their order, unless something about a counter must be found out first. An error means that
    /// nothing was counted at all.
    pub async fn decide_all(
        &self,
        requests: &[Request],
    ) -> Result<Vec<Result<Decided, Error>>, Error> {
        // Before anything else, so that an outage is one error and not thousands.
        self.counters.link().await?;
        let mut results: Vec<Option<Result<Decided, Error>>> =
            requests.iter().map(|_| None).collect();
        let mut pending: Vec<(usize, Course)> = (0..requests.len())
            .map(|place| (place, Course::default()))
            .collect();
        for _ in 0..ROUNDS_MAX {
            if pending.is_empty() {
                break;
            }
            pending = self.round(requests, pending, &mut results).await;
        }
        for (request, result) in requests.iter().zip(&mut results) {
            if let Some(Ok(refusal)) = result
                && !refusal.granted
            {
                self.look_ahead(request, refusal).await;
            }
        }
        let results = results.into_iter();
        Ok(results
            .map(|result| result.unwrap_or(Err(Error::Contended)))
            .collect())
    }

    /// Asks the counters once for each request, and finds out what they did not know, of all of them together.
    /// Returns those that need another round.
    async fn round(
        &self,
        requests: &[Request],
        pending: Vec<(usize, Course)>,
        results: &mut [Option<Result<Decided, Error>>],
    ) -> Vec<(usize, Course)> {
        let mut by_shard: BTreeMap<Shard, Vec<(usize, Course)>> = BTreeMap::new();
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
                    metering: self,
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
        while let Some(found) = rounds.next().await {
            for (place, result) in found.decided {
                decide(place, result);
            }
            unclear.extend(found.unclear);
            again.extend(found.again);
        }
        let clearing_up = stream::iter(unclear).map(|(place, asked, why)| async move {
            let cleared_up = match requests.get(place) {
                Some(request) => self.clear_up(request, &asked, why).await,
                None => Err(Error::Contended),
            };
            (place, cleared_up)
        });
        let mut clearing_up = pin!(clearing_up.buffer_unordered(FINDING_OUT_MAX));
        while let Some((place, cleared_up)) = clearing_up.next().await {
            match cleared_up {
                Ok(ClearedUp::Decided(decided)) => decide(place, Ok(decided)),
                Ok(ClearedUp::Again(course)) => again.push((place, course)),
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
            Ok(Some((link, generation))) => self.ask(&link, generation, pending).await,
            Ok(None) => self.again(pending),
            Err(error) => {
                let failed = |it: Pending<'_>| (it.place, Err(error.clone()));
                self.found.decided.extend(pending.into_iter().map(failed));
            }
        }
        self.found
    }

    /// The link and the shard's generation; none if it had none yet, and is to be asked again.
    async fn present(&self, shard: Shard) -> Result<Option<(Arc<Link>, u64)>, Error> {
        let link = self.metering.counters.link().await?;
        let generation = self.metering.generation(&link, shard).await?;
        Ok(generation.map(|generation| (link, generation)))
    }

    fn again<'b>(&mut self, pending: impl IntoIterator<Item = Pending<'b>>) {
        let pending = pending.into_iter().map(|it| (it.place, it.course));
        self.found.again.extend(pending);
    }

    async fn ask(&mut self, link: &Arc<Link>, generation: u64, pending: Vec<Pending<'a>>) {
        let metering = self.metering;
        let mut asking = Vec::with_capacity(pending.len());
        let pending = self.with_policies(pending).await;
        let now = metering.clock.now();
        let mut late = Vec::new();
        for (it, policy) in pending {
            let policy = match policy {
                Ok(policy) => policy,
                Err(error) => {
                    self.found.decided.push((it.place, Err(error)));
                    continue;
                }
            };
            match metering.ask(generation, Arc::clone(&policy), now, it.request, it.course) {
                Ok(asked) => asking.push((it, asked)),
                Err(too_late) => late.push((it, policy, too_late)),
            }
        }
        self.repeat(link, late).await;
        self.found.decided.reserve(asking.len());
        let calls = in_parts(asking).into_iter().map(|part| async {
            let operations = part.iter().map(|(it, asked)| asked.operation(it.request));
            let outcomes = metering.counters.count(link, operations.collect()).await;
            (part, outcomes)
        });
        for (part, outcomes) in join_all(calls).await {
            match outcomes {
                Ok(Some(outcomes)) => {
                    for ((it, asked), outcome) in part.into_iter().zip(outcomes) {
                        let Found {
                            decided, unclear, ..
                        } = &mut self.found;
                        match metering.conclude(it.request, &asked, outcome) {
                            Ok(Conclusion::Decided(it_is)) => decided.push((it.place, Ok(it_is))),
                            Ok(Conclusion::Unclear(why)) => unclear.push((it.place, asked, why)),
                            Err(error) => decided.push((it.place, Err(error))),
                        }
                    }
                }
                Ok(None) => self.again(part.into_iter().map(|(it, _)| it)),
                Err(error) => {
                    let failed = |(it, _): (Pending<'_>, Asked)| {
                        (it.place, Err(uncounted(it.request, error.clone())))
                    };
                    self.found.decided.extend(part.into_iter().map(failed));
                }
            }
        }
    }

    /// Of requests that come too late to be decided, what earlier attempts were told.
    async fn repeat(&mut self, link: &Link, late: Vec<(Pending<'a>, Arc<Resolved>, Error)>) {
        let attempts = late.iter().filter_map(|(it, ..)| {
            let attempt = it.request.attempt.as_ref()?;
            Some((&it.request.organization, attempt))
        });
        let attempts: Vec<_> = attempts.collect();
        let answered = self.metering.counters.answered(link, &attempts).await;
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
            self.found.decided.push((it.place, result));
        }
    }

    /// Each with the policy of its organization, in their order.
    async fn with_policies(
        &self,
        pending: Vec<Pending<'a>>,
    ) -> Vec<(Pending<'a>, Result<Arc<Resolved>, Error>)> {
        let policies = &self.metering.policies;
        let now = self.metering.clock.now();
        let (mut found, mut unknown) = (Vec::with_capacity(pending.len()), Vec::new());
        for it in pending {
            match policies.at_hand(&it.request.organization, now) {
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

fn in_parts<T>(mut all: Vec<T>) -> Vec<Vec<T>> {
    let mut parts = Vec::with_capacity(all.len().div_ceil(TOGETHER_MAX));
    while all.len() > TOGETHER_MAX {
        let rest = all.split_off(TOGETHER_MAX);
        parts.push(std::mem::replace(&mut all, rest));
    }
    parts.push(all);
    parts
}
