//! Many requests at once: those of one shard travel together, and the shards side by side.

use std::collections::BTreeMap;

use futures::stream::{self, FuturesUnordered};
use futures::{FutureExt as _, StreamExt as _};

use super::{Asked, Conclusion, Course, Decided, Error, Metering, ROUNDS_MAX, Request, uncounted};
use crate::counters::{Outcome, Shard};
use crate::groups::GROUP_MAX;

/// How many operations travel together at most.
const TOGETHER_MAX: usize = 128;

/// How many requests find out at the same time what nobody knew: enough for the groups to be full.
const FINDING_OUT_MAX: usize = 2 * GROUP_MAX;

/// A request that is not decided yet.
struct Pending {
    /// Its place among all requests.
    place: usize,
    course: Course,
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
        let mut pending: Vec<Pending> = (0..requests.len())
            .map(|place| Pending {
                place,
                course: Course::default(),
            })
            .collect();
        for _ in 0..ROUNDS_MAX {
            if pending.is_empty() {
                break;
            }
            let (decided, again) = self.round(requests, pending).await;
            for (place, result) in decided {
                if let Some(request) = requests.get(place) {
                    self.note(request, &result);
                }
                if let Some(slot) = results.get_mut(place) {
                    *slot = Some(result);
                }
            }
            pending = again;
        }
        let results = results.into_iter();
        Ok(results
            .map(|result| result.unwrap_or(Err(Error::Contended)))
            .collect())
    }

    /// What became of some requests, and those that need another round.
    async fn round(
        &self,
        requests: &[Request],
        pending: Vec<Pending>,
    ) -> (Vec<(usize, Result<Decided, Error>)>, Vec<Pending>) {
        let (mut done, mut again) = (Vec::with_capacity(pending.len()), Vec::new());
        let link = match self.counters.link().await {
            Ok(link) => link,
            Err(error) => {
                let failed = |it: Pending| (it.place, Err(error.clone().into()));
                return (pending.into_iter().map(failed).collect(), again);
            }
        };
        let mut by_shard: BTreeMap<usize, Vec<(Pending, Asked)>> = BTreeMap::new();
        let asking = pending.into_iter().filter_map(|it| {
            let request = requests.get(it.place)?;
            let asked = self.ask(&link, request, it.course);
            Some(asked.map(move |asked| (request, it, asked)))
        });
        let mut asking = stream::iter(asking).buffered(FINDING_OUT_MAX);
        while let Some((request, it, asked)) = asking.next().await {
            match asked {
                Ok(Some(asked)) => {
                    let shard = Shard::of(&request.organization).index();
                    by_shard.entry(shard).or_default().push((it, asked));
                }
                Ok(None) => again.push(it),
                Err(error) => done.push((it.place, Err(error))),
            }
        }
        let calls: FuturesUnordered<_> = by_shard
            .into_values()
            .flat_map(in_parts)
            .map(|part| async {
                let operations = part
                    .iter()
                    .filter_map(|(it, asked)| Some(asked.operation(requests.get(it.place)?)))
                    .collect();
                let outcomes = self.counters.count(&link, operations).await;
                (part, outcomes)
            })
            .collect();
        let answers: Vec<_> = calls.collect().await;
        let mut concluding = Vec::new();
        for (part, outcomes) in answers {
            match outcomes {
                Ok(Some(outcomes)) => concluding.extend(part.into_iter().zip(outcomes)),
                Ok(None) => again.extend(part.into_iter().map(|(it, _)| it)),
                Err(error) => done.extend(part.into_iter().filter_map(|(it, _)| {
                    let error = uncounted(requests.get(it.place)?, error.clone());
                    Some((it.place, Err(error)))
                })),
            }
        }
        let mut concluded = stream::iter(concluding)
            .map(|((it, asked), outcome)| self.settle(requests, it, asked, outcome))
            .buffer_unordered(FINDING_OUT_MAX);
        while let Some((it, conclusion)) = concluded.next().await {
            match conclusion {
                Ok(Conclusion::Decided(decided)) => done.push((it.place, Ok(decided))),
                Ok(Conclusion::Again(course)) => again.push(Pending { course, ..it }),
                Err(error) => done.push((it.place, Err(error))),
            }
        }
        again.sort_unstable_by_key(|it| it.place);
        (done, again)
    }

    async fn settle(
        &self,
        requests: &[Request],
        it: Pending,
        asked: Asked,
        outcome: Outcome,
    ) -> (Pending, Result<Conclusion, Error>) {
        let conclusion = match requests.get(it.place) {
            Some(request) => self.conclude(request, &asked, outcome).await,
            None => Err(Error::Contended),
        };
        (it, conclusion)
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
