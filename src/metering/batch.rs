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
    Asked, ClearedUp, Conclusion, Course, Decided, Error, Metering, ROUNDS_MAX, Request, uncounted,
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

/// Requests of one shard.
struct OfShard<'a> {
    metering: &'a Metering,
    shard: Shard,
    /// One permit for each request that finds something out.
    finding_out: &'a Semaphore,
    decided: Vec<(usize, Result<Decided, Error>)>,
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
        let mut by_shard: BTreeMap<Shard, Vec<usize>> = BTreeMap::new();
        for (place, request) in requests.iter().enumerate() {
            let shard = Shard::of(&request.organization);
            by_shard.entry(shard).or_default().push(place);
        }
        let finding_out = Semaphore::new(FINDING_OUT_MAX);
        let (shards, mut turn) = (by_shard.len().max(1), 0_usize);
        let deciding = stream::iter(by_shard)
            .then(|(shard, places)| {
                turn = turn.saturating_add(places.len());
                let over = turn >= TURN;
                turn = if over { 0 } else { turn };
                async move {
                    // Others have theirs, among them the lanes, which send what there is by now.
                    if over {
                        yield_now().await;
                    }
                    (shard, places)
                }
            })
            .map(|(shard, places)| {
                let of_shard = OfShard {
                    metering: self,
                    shard,
                    finding_out: &finding_out,
                    decided: Vec::with_capacity(places.len()),
                };
                let pending = places.into_iter().filter_map(|place| {
                    Some(Pending {
                        place,
                        request: requests.get(place)?,
                        course: Course::default(),
                    })
                });
                of_shard.decide(pending.collect())
            })
            .buffer_unordered(shards);
        let mut deciding = pin!(deciding);
        let mut results: Vec<Option<Result<Decided, Error>>> =
            requests.iter().map(|_| None).collect();
        while let Some(decided) = deciding.next().await {
            for (place, result) in decided {
                if let Some((request, slot)) = requests.get(place).zip(results.get_mut(place)) {
                    self.note(request, &result);
                    *slot = Some(result);
                }
            }
        }
        let results = results.into_iter();
        Ok(results
            .map(|result| result.unwrap_or(Err(Error::Contended)))
            .collect())
    }
}

impl<'a> OfShard<'a> {
    async fn decide(
        mut self,
        mut pending: Vec<Pending<'a>>,
    ) -> Vec<(usize, Result<Decided, Error>)> {
        for _ in 0..ROUNDS_MAX {
            if pending.is_empty() {
                break;
            }
            pending = match self.present().await {
                Ok(Some((link, generation))) => self.round(&link, generation, pending).await,
                Ok(None) => pending,
                Err(error) => {
                    let failed = |it: Pending<'_>| (it.place, Err(error.clone()));
                    self.decided.extend(pending.into_iter().map(failed));
                    break;
                }
            };
        }
        // Those that no round has decided have no result.
        self.decided
    }

    /// The link and the shard's generation; none if it had none yet, and is to be asked again.
    async fn present(&self) -> Result<Option<(Arc<Link>, u64)>, Error> {
        let link = self.metering.counters.link().await?;
        let generation = self.metering.generation(&link, self.shard).await?;
        Ok(generation.map(|generation| (link, generation)))
    }

    /// Returns those that need another round.
    async fn round(
        &mut self,
        link: &Arc<Link>,
        generation: u64,
        pending: Vec<Pending<'a>>,
    ) -> Vec<Pending<'a>> {
        let (metering, finding_out) = (self.metering, self.finding_out);
        let mut asking = Vec::with_capacity(pending.len());
        let pending = self.with_policies(pending).await;
        let now = metering.clock.now();
        for (it, policy) in pending {
            let ask = |policy| metering.ask(generation, policy, now, it.request, it.course);
            match policy.and_then(ask) {
                Ok(asked) => asking.push((it, asked)),
                Err(error) => self.decided.push((it.place, Err(error))),
            }
        }
        let calls = in_parts(asking).into_iter().map(|part| async {
            let operations = part.iter().map(|(it, asked)| asked.operation(it.request));
            let outcomes = metering.counters.count(link, operations.collect()).await;
            (part, outcomes)
        });
        let (mut unclear, mut again) = (Vec::new(), Vec::new());
        for (part, outcomes) in join_all(calls).await {
            match outcomes {
                Ok(Some(outcomes)) => {
                    for ((it, asked), outcome) in part.into_iter().zip(outcomes) {
                        match metering.conclude(it.request, &asked, outcome) {
                            Ok(Conclusion::Decided(decided)) => {
                                self.decided.push((it.place, Ok(decided)));
                            }
                            Ok(Conclusion::Unclear(why)) => unclear.push((it, asked, why)),
                            Err(error) => self.decided.push((it.place, Err(error))),
                        }
                    }
                }
                Ok(None) => again.extend(part.into_iter().map(|(it, _)| it)),
                Err(error) => {
                    let failed = |(it, _): (Pending<'_>, Asked)| {
                        (it.place, Err(uncounted(it.request, error.clone())))
                    };
                    self.decided.extend(part.into_iter().map(failed));
                }
            }
        }
        let clearing_up = unclear.into_iter().map(|(it, asked, why)| async move {
            let _permit = finding_out.acquire().await;
            let cleared_up = metering.clear_up(it.request, &asked, why).await;
            (it, cleared_up)
        });
        for (it, cleared_up) in join_all(clearing_up).await {
            match cleared_up {
                Ok(ClearedUp::Decided(decided)) => self.decided.push((it.place, Ok(decided))),
                Ok(ClearedUp::Again(course)) => again.push(Pending { course, ..it }),
                Err(error) => self.decided.push((it.place, Err(error))),
            }
        }
        again.sort_unstable_by_key(|it| it.place);
        again
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
