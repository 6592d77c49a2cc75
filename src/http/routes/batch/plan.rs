//! What a batch executes, and the results of its items.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use foldhash::fast::RandomState;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::items::{Item, Items, Op};
use crate::domain::decision::{self, Operation};
use crate::domain::ids::{IdempotencyKey, MeterId, OrganizationId};
use crate::http::auth::Caller;
use crate::http::charges::Charges;
use crate::http::problem::{Error, Problem};
use crate::http::usage_result::UsageResult;
use crate::usage::{Decided, MeterUsage, Request};

/// The maximum number of meters in all items of a batch together: an item costs as much as it has meters.
const CHARGES_MAX: usize = 20_000;

/// What the response contains.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub(in crate::http) struct BatchQuery {
    /// The items in the response: all, those that were not counted, or none.
    #[param(inline, required = false)]
    pub(super) results: Results,
}

/// Which items the response contains.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum Results {
    #[default]
    All,
    /// Those that were not counted, for any reason.
    Denied,
    None,
}

/// The results of a batch.
#[derive(Debug, Default, Serialize, ToSchema)]
pub(super) struct Summary {
    /// Items that were counted.
    counted: u64,
    /// Items refused by a limit.
    denied: u64,
    /// Items that could not be decided.
    failed: u64,
    /// Items answered from an idempotency record; nothing was counted for them now.
    replayed: u64,
    results: Vec<ItemResult>,
}

/// The result of an item: the usage result with its status, or the problem that a single call would have got.
#[derive(Debug, Serialize, ToSchema)]
struct ItemResult {
    /// Position in the batch, from 0.
    index: usize,
    /// Present and true if the result comes from an idempotency record.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    #[schema(required = false)]
    replayed: bool,
    #[serde(flatten)]
    #[schema(value_type = Object)]
    body: ItemBody,
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
enum ItemBody {
    Counted {
        status: u16,
        #[serde(flatten)]
        usage: UsageResult,
    },
    Refused(Problem),
}

/// The requests of a batch. Consecutive equal items on one counter are one request, because a batch costs as much as it
/// has distinct counters.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// How many meters the items name in total.
    charges: usize,
    pub(super) requests: Vec<Request>,
    /// For each item in order, its part of a request.
    parts: Vec<Result<Part, Error>>,
    /// By organization, the last request that charges each of its meters.
    last: HashMap<OrganizationId, Vec<(MeterId, usize)>, RandomState>,
}

/// One of the equal calls that a request stands for.
#[derive(Debug, Clone, Copy)]
struct Part {
    request: usize,
    nth: u32,
    several: bool,
}

/// The result of one item that could be decided.
struct Answer<'a> {
    request: &'a Request,
    decided: Decided,
    several: bool,
}

impl Plan {
    /// Parses the items and merges equal ones.
    pub(super) fn of(
        caller: &Caller,
        key: Option<&IdempotencyKey>,
        items: &Items,
    ) -> Result<Self, Error> {
        let mut plan = Self::default();
        items.each(|item| {
            let index = plan.parts.len();
            plan.add(item.and_then(|item| request(caller, key, index, item)));
        })?;
        if plan.charges > CHARGES_MAX {
            return Err(Error::InvalidField {
                pointer: "/items".to_owned(),
                detail: format!(
                    "the items name {} meters together; a batch may name {CHARGES_MAX}, so send it as several",
                    plan.charges
                ),
            });
        }
        Ok(plan)
    }

    fn add(&mut self, item: Result<(Request, bool), Error>) {
        let part = item.map(|(request, several)| {
            self.charges += request.demands.len();
            let (request, nth) = self.place(request);
            Part {
                request,
                nth,
                several,
            }
        });
        self.parts.push(part);
    }

    fn place(&mut self, request: Request) -> (usize, u32) {
        let new = self.requests.len();
        let last = if let Some(last) = self.last.get_mut(&request.organization) {
            last
        } else {
            let organization = request.organization.clone();
            self.last.entry(organization).or_default()
        };
        for (meter, _) in &request.demands {
            let Some((_, last)) = last.iter_mut().find(|(known, _)| known == meter) else {
                last.push((meter.clone(), new));
                continue;
            };
            // Only requests on a single counter extend each other.
            if let Some(same) = self.requests.get_mut(*last)
                && same.extends_to(&request)
            {
                let nth = same.times;
                same.times = nth.saturating_add(1);
                return (*last, nth);
            }
            *last = new;
        }
        self.requests.push(request);
        (new, 0)
    }

    /// Counts the outcomes and lists the wanted results.
    pub(super) fn summary(
        &self,
        decided: &[Result<Decided, Error>],
        wanted: Results,
        now: DateTime<Utc>,
    ) -> Summary {
        let mut summary = Summary::default();
        for part in &self.parts {
            summary.failed += u64::from(part.is_err());
        }
        for (request, decided) in self.requests.iter().zip(decided) {
            let times = u64::from(request.times);
            match decided {
                Ok(decided) if decided.replayed => summary.replayed += times,
                Ok(decided) => {
                    let counted = u64::from(decided.times_granted);
                    summary.counted += counted;
                    if can_refuse(request, decided) {
                        summary.denied += times - counted;
                    } else {
                        summary.failed += times - counted;
                    }
                }
                Err(_) => summary.failed += times,
            }
        }
        if wanted != Results::None {
            for (index, part) in self.parts.iter().enumerate() {
                if wanted == Results::All || !is_counted(part, decided) {
                    let answer = self.answer(part, decided);
                    summary.results.push(describe(index, answer, now));
                }
            }
        }
        summary
    }

    fn answer(
        &self,
        part: &Result<Part, Error>,
        decided: &[Result<Decided, Error>],
    ) -> Result<Answer<'_>, Error> {
        let part = part.clone()?;
        let found = (self.requests.get(part.request), decided.get(part.request));
        let (Some(request), Some(decided)) = found else {
            return Err(Error::Internal);
        };
        let mut decided = decided.clone()?;
        if request.times > 1 {
            one_of_several(request, &mut decided, part.nth)?;
        }
        Ok(Answer {
            request,
            decided,
            several: part.several,
        })
    }
}

/// Whether an item was counted, now or by the call that left the idempotency record.
fn is_counted(part: &Result<Part, Error>, decided: &[Result<Decided, Error>]) -> bool {
    let Ok(part) = part else { return false };
    let decided = decided.get(part.request).and_then(|it| it.as_ref().ok());
    decided.is_some_and(|decided| part.nth < decided.times_granted)
}

/// Whether a limit refused what was not granted; otherwise the counter would have exceeded its maximum.
fn can_refuse(request: &Request, decided: &Decided) -> bool {
    let refuses = |usage: &MeterUsage| usage.rule.can_deny(request.kind);
    request.times == 1 || decided.meters.iter().any(refuses)
}

/// Narrows the result of several equal calls down to the nth: they count as if made one after the other.
fn one_of_several(request: &Request, decided: &mut Decided, nth: u32) -> Result<(), Error> {
    let share = decision::share(decided.times_granted, nth, 1);
    decided.granted = share.granted > 0;
    if !decided.granted && !can_refuse(request, decided) {
        let meters = decided.meters.iter().map(|usage| usage.meter.to_string());
        return Err(Error::CounterOverflow(meters.collect()));
    }
    for usage in &mut decided.meters {
        usage.used = share.used(usage.used, usage.demand.amount);
        // Only the first call after the granted ones.
        if let Some(refused) = &mut usage.refused {
            refused.first &= nth == decided.times_granted;
        }
    }
    Ok(())
}

fn describe(index: usize, answer: Result<Answer<'_>, Error>, now: DateTime<Utc>) -> ItemResult {
    let replayed = answer.as_ref().is_ok_and(|answer| answer.decided.replayed);
    let body = match answer {
        Ok(answer) => {
            let usage = UsageResult::new(answer.request, &answer.decided, answer.several);
            if answer.decided.granted {
                ItemBody::Counted { status: 200, usage }
            } else {
                ItemBody::Refused(Error::limit_exceeded(&answer.decided, usage, now).into_problem())
            }
        }
        Err(error) => ItemBody::Refused(error.into_problem()),
    };
    ItemResult {
        index,
        replayed,
        body,
    }
}

/// The request of one item, and whether it names `meters`.
fn request(
    caller: &Caller,
    key: Option<&IdempotencyKey>,
    index: usize,
    item: Item,
) -> Result<(Request, bool), Error> {
    let kind = match item.op {
        Op::Track => Operation::Track,
        Op::Consume => Operation::Consume,
    };
    let key = match (item.idempotency_key, key) {
        (Some(own), _) => Some(own),
        (None, Some(batch_key)) => {
            let numbered = format!("{batch_key}/{index}").parse();
            Some(numbered.map_err(|_| {
                let detail = "Idempotency-Key is too long to append the index of an item";
                Error::MalformedRequest(detail.to_owned())
            })?)
        }
        (None, None) => None,
    };
    let charges = Charges {
        organization_id: item.organization_id,
        meter: item.meter,
        amount: item.amount,
        meters: item.meters,
        require: item.require,
        timestamp: item.timestamp,
    };
    let several = charges.meters.is_some();
    Ok((charges.into_request(caller, kind, key)?, several))
}
