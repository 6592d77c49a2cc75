//! `POST /v1/batch`: many tracks and consumes in one request; each item succeeds or fails independently.

use std::collections::HashMap;

use axum::Json;
use axum::extract::{FromRequest, Request as HttpRequest, State as Shared};
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, Utc};
use foldhash::fast::RandomState;
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::time::timeout;
use tracing::Span;
use utoipa::{IntoParams, ToSchema};

use crate::domain::decision::{self, Operation};
use crate::domain::ids::ByMeter;
use crate::domain::ids::{IdempotencyKey, MeterId, OrganizationId};
use crate::domain::input::not_null;
use crate::domain::input::{Instant, optional};
use crate::domain::quantity::Amount;
use crate::http::auth::{Caller, Ingest, OrganizationParam};
use crate::http::body::{BATCH_BODY_MAX, Text, read};
use crate::http::charges::Charges;
use crate::http::extract::{MediaType, Object, Query, from_json};
use crate::http::idempotency::Idempotency;
use crate::http::openapi::problems::NeedsCounterStore;
use crate::http::parse;
use crate::http::problem::{Error, Problem};
use crate::http::state::State;
use crate::http::usage_result::UsageResult;
use crate::usage::{Decided, MeterUsage, Request};

/// The maximum number of items in a batch.
const ITEMS_MAX: usize = 10_000;

/// The maximum number of meters in all items of a batch together: an item costs as much as it has meters.
const CHARGES_MAX: usize = 20_000;

/// Bodies of at least this many bytes are processed on a blocking thread; below, the switch costs more than it saves.
const LARGE: usize = 16 * 1024;

const TOO_MANY_BATCHES: &str = "too many large batches of this caller are in flight, and none finished in time; nothing was counted";

/// What the response contains.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub(in crate::http) struct BatchQuery {
    /// The items in the response: all, those that were not counted, or none.
    #[param(inline, required = false)]
    results: Results,
}

/// Which items the response contains.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum Results {
    #[default]
    All,
    /// Those that were not counted, for any reason.
    Denied,
    None,
}

/// The body, not parsed yet.
#[derive(Debug)]
pub(in crate::http) struct Items {
    media_type: MediaType,
    body: Text,
}

/// A track or a consume, with the fields of that call.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Item {
    #[schema(inline)]
    op: Op,
    /// An unknown organization starts on the default plan.
    #[schema(value_type = OrganizationId)]
    organization_id: OrganizationParam,
    /// What is counted; `api` by default.
    #[serde(default, deserialize_with = "not_null")]
    #[schema(nullable = false)]
    meter: Option<MeterId>,
    /// How many units; 1 by default.
    #[serde(default, deserialize_with = "not_null")]
    #[schema(nullable = false)]
    amount: Option<Amount>,
    /// Units by meter; either all are charged or none.
    #[serde(default, deserialize_with = "not_null")]
    #[schema(value_type = BTreeMap<MeterId, Amount>, required = false)]
    meters: Option<ByMeter<Amount>>,
    /// Units by meter that must be available in addition, without being charged; consume only.
    #[serde(default, deserialize_with = "not_null")]
    #[schema(value_type = BTreeMap<MeterId, Amount>, required = false)]
    require: Option<ByMeter<Amount>>,
    /// When it happened; track only.
    #[serde(default, deserialize_with = "optional::<Instant, _>")]
    #[schema(nullable = false)]
    timestamp: Option<DateTime<Utc>>,
    /// Makes retrying this item safe; by default the key of the batch, a slash and the item's index.
    #[serde(default, deserialize_with = "not_null")]
    #[schema(nullable = false)]
    idempotency_key: Option<IdempotencyKey>,
}

#[derive(Debug, Clone, Copy, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum Op {
    Track,
    Consume,
}

/// The JSON body of a batch.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = Batch, bound = "T: ToSchema")]
struct ItemList<T> {
    /// Each item succeeds or fails independently.
    #[schema(max_items = 10_000)]
    items: Vec<T>,
}

/// The results of a batch.
#[derive(Debug, Default, Serialize, ToSchema)]
struct Summary {
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

/// Track and consume in a batch
///
/// Each item succeeds or fails independently. All items together may name at most 20,000 meters. Items of one organization
/// are decided in order, unless a counter has to be recovered first. A batch costs as much as it has distinct counters.
#[utoipa::path(
    post,
    path = "/v1/batch",
    tag = "Counting",
    security(("key" = ["ingest"])),
    params(Idempotency, BatchQuery),
    request_body(description = "JSON, or one item per line.", content(
        (ItemList<Item> = "application/json", example = json!({"items": [
            {"op": "consume", "organizationId": "org_123", "amount": 2},
            {"op": "track", "organizationId": "org_456", "meter": "tokens", "amount": 1200},
        ]})),
        (String = "application/x-ndjson", example = "{\"op\":\"consume\",\"organizationId\":\"org_123\"}\n"),
    )),
    responses(
        (status = 200, description = "The results of the items.", body = Summary, example = json!({
            "counted": 1, "denied": 1, "failed": 0, "replayed": 0, "results": [
                {"index": 0, "status": 200, "allowed": true, "organizationId": "org_123", "meter": "api", "amount": 2,
                 "current": 1000, "limit": 1000, "remaining": 0, "overage": 0, "enforcement": "hard",
                 "periodStart": "2026-11-01T00:00:00Z", "resetDate": "2026-12-01T00:00:00Z"},
                {"index": 1, "type": "urn:tallyman:problem:limit_exceeded", "title": "Limit exceeded", "status": 429,
                 "detail": "the organization's limit does not allow this; nothing was counted", "code": "limit_exceeded",
                 "allowed": false, "organizationId": "org_123", "meter": "api", "amount": 2, "current": 1000,
                 "limit": 1000, "remaining": 0, "overage": 0, "enforcement": "hard",
                 "periodStart": "2026-11-01T00:00:00Z", "resetDate": "2026-12-01T00:00:00Z", "deniedBy": ["api"],
                 "first": true, "retryAt": "2026-12-01T00:00:00Z"}
            ]})),
        NeedsCounterStore,
    )
)]
pub(in crate::http) async fn batch(
    Shared(state): Shared<State>,
    Ingest(caller): Ingest,
    Idempotency(key): Idempotency,
    Query(query): Query<BatchQuery>,
    items: Items,
) -> Result<Response, Error> {
    let large = items.body.len() >= LARGE;
    let _turn = if large {
        let turn = timeout(state.body_patience, state.batches.turn(&caller.name())).await;
        Some(turn.map_err(|_| Error::Overloaded(TOO_MANY_BATCHES))?)
    } else {
        None
    };
    let plan = offload(large, move || Plan::of(&caller, key.as_ref(), &items)).await??;
    let decided = state.usage.decide_all(&plan.requests).await?;
    let now = state.ctx.clock.now();
    let span = Span::current();
    offload(large, move || {
        let decided: Vec<Result<Decided, Error>> = decided
            .into_iter()
            .map(|decided| decided.map_err(Error::from))
            .collect();
        let causes = decided.iter().filter_map(|it| it.as_ref().err()?.cause());
        if let Some(error) = causes.clone().next() {
            let requests = causes.count();
            tracing::warn!(parent: &span, error, requests, "items of a batch could not be decided");
        }
        Json(plan.summary(&decided, query.results, now)).into_response()
    })
    .await
}

/// Runs CPU-bound work, on a blocking thread if it is large, so that it delays no other request.
async fn offload<T: Send + 'static>(
    large: bool,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Error> {
    if large {
        let done = tokio::task::spawn_blocking(work).await;
        done.map_err(|_| Error::panicked())
    } else {
        Ok(work())
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

/// The requests of a batch. Consecutive equal items on one counter are one request, because a batch costs as much as it
/// has distinct counters.
#[derive(Debug, Default)]
struct Plan {
    /// How many meters the items name in total.
    charges: usize,
    requests: Vec<Request>,
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
    fn of(caller: &Caller, key: Option<&IdempotencyKey>, items: &Items) -> Result<Self, Error> {
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
    fn summary(
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

fn refuse_too_many(items: usize) -> Result<(), Error> {
    if items > ITEMS_MAX {
        return Err(Error::InvalidField {
            pointer: "/items".to_owned(),
            detail: format!("a batch has at most {ITEMS_MAX} items"),
        });
    }
    Ok(())
}

/// Why a body is not a list of items.
fn without_items(body: &[u8], error: &serde_json::Error) -> Error {
    match parse::json::<ItemList<IgnoredAny>>(body) {
        Err(problem) => problem,
        Ok(_) => Error::MalformedRequest(format!("the body is not a batch: {error}")),
    }
}

impl FromRequest<State> for Items {
    type Rejection = Error;

    async fn from_request(request: HttpRequest, state: &State) -> Result<Self, Error> {
        let media_type = MediaType::of(request.headers());
        let body = read(request, BATCH_BODY_MAX, state).await?;
        Ok(Self {
            media_type: media_type?,
            body,
        })
    }
}

impl Items {
    /// Calls `take` for each item, or with why it cannot be parsed.
    fn each(&self, mut take: impl FnMut(Result<Item, Error>)) -> Result<(), Error> {
        let body: &[u8] = &self.body;
        match self.media_type {
            MediaType::Json => {
                // Validates UTF-8 once, instead of for each string.
                let text = std::str::from_utf8(body).ok();
                let whole = text.and_then(|text| serde_json::from_str(text).ok());
                if let Some(Object(ItemList { items })) = whole {
                    refuse_too_many(items.len())?;
                    for Object(item) in items {
                        take(Ok(item));
                    }
                } else {
                    // Some item is invalid, and the others are counted anyway.
                    let Object(ItemList { items }) =
                        serde_json::from_slice::<Object<ItemList<&RawValue>>>(body)
                            .map_err(|error| without_items(body, &error))?;
                    refuse_too_many(items.len())?;
                    let items = items.into_iter().map(|item| item.get().as_bytes());
                    items.map(from_json).for_each(take);
                }
            }
            MediaType::NdJson => {
                let lines = body.split(|byte| *byte == b'\n');
                let lines = lines.filter(|line| !line.trim_ascii().is_empty());
                refuse_too_many(lines.clone().count())?;
                lines.map(from_json).for_each(take);
            }
            MediaType::Other => {
                return Err(Error::UnsupportedMediaType(
                    "send the items as Content-Type: application/json or application/x-ndjson",
                ));
            }
        }
        Ok(())
    }
}
