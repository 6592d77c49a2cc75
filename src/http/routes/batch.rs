//! `POST /v1/batch`: many tracks and consumes in one request, each of which succeeds or fails on its own.

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

/// The most items of one batch.
const ITEMS_MAX: usize = 10_000;

/// The most meters that the items of one batch name together; what an item costs is its meters.
const CHARGES_MAX: usize = 20_000;

/// The smallest body that is dealt with aside, bytes: below, that costs more than it spares the others.
const LARGE: usize = 16 * 1024;

const TOO_MANY_BATCHES: &str = "this caller has as many large batches under way as one may, and none has ended in time; nothing was counted";

/// What the answer shall say.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub(in crate::http) struct Wish {
    /// The items to describe: all, those that were not counted for whatever reason, or none.
    #[param(inline, required = false)]
    results: Results,
}

/// Which items the answer describes.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum Results {
    #[default]
    All,
    /// Those that were not counted, for whatever reason.
    Denied,
    None,
}

/// The items as they came.
#[derive(Debug)]
pub(in crate::http) struct Items {
    media_type: MediaType,
    body: Text,
}

/// A track or a consume, with the fields that it takes alone.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Item {
    #[schema(inline)]
    op: Op,
    /// One that is unknown starts on the default plan.
    #[schema(value_type = OrganizationId)]
    organization_id: OrganizationParam,
    /// What is counted; `api` unless said.
    #[serde(default, deserialize_with = "not_null")]
    #[schema(nullable = false)]
    meter: Option<MeterId>,
    /// How many units; 1 unless said.
    #[serde(default, deserialize_with = "not_null")]
    #[schema(nullable = false)]
    amount: Option<Amount>,
    /// Units by meter: all of them are charged, or none.
    #[serde(default, deserialize_with = "not_null")]
    #[schema(value_type = BTreeMap<MeterId, Amount>, required = false)]
    meters: Option<ByMeter<Amount>>,
    /// Units by meter that must fit on top, and are not charged; of a consume.
    #[serde(default, deserialize_with = "not_null")]
    #[schema(value_type = BTreeMap<MeterId, Amount>, required = false)]
    require: Option<ByMeter<Amount>>,
    /// When it happened; of a track.
    #[serde(default, deserialize_with = "optional::<Instant, _>")]
    #[schema(nullable = false)]
    timestamp: Option<DateTime<Utc>>,
    /// Makes repeating this item harmless; otherwise it is that of the batch, a slash and the item's index.
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

/// The body of a batch that is JSON.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = Batch, bound = "T: ToSchema")]
struct ItemList<T> {
    /// Each of them succeeds or fails on its own.
    #[schema(max_items = 10_000)]
    items: Vec<T>,
}

/// What became of a batch.
#[derive(Debug, Default, Serialize, ToSchema)]
struct Summary {
    /// Items that were counted.
    counted: u64,
    /// Items that a limit refused.
    denied: u64,
    /// Items that could not be decided.
    failed: u64,
    /// Items that an earlier attempt had been answered, whatever that was; nothing was counted of them now.
    replayed: u64,
    results: Vec<ItemResult>,
}

/// What became of an item: the usage result with its status, or the problem that it alone would have been answered with.
#[derive(Debug, Serialize, ToSchema)]
struct ItemResult {
    /// Its place in the batch, from 0.
    index: usize,
    /// Whether an earlier attempt was answered so; absent where not.
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

/// Track and consume many times
///
/// Each item succeeds or fails on its own. The items name 20,000 meters together at most. Items of one organization are decided in their order, unless a counter had to be
/// opened or restored first. What a batch costs is its distinct counters.
#[utoipa::path(
    post,
    path = "/v1/batch",
    tag = "Counting",
    security(("key" = ["ingest"])),
    params(Idempotency, Wish),
    request_body(description = "JSON, or one item a line.", content(
        (ItemList<Item> = "application/json", example = json!({"items": [
            {"op": "consume", "organizationId": "org_123", "amount": 2},
            {"op": "track", "organizationId": "org_456", "meter": "tokens", "amount": 1200},
        ]})),
        (String = "application/x-ndjson", example = "{\"op\":\"consume\",\"organizationId\":\"org_123\"}\n"),
    )),
    responses(
        (status = 200, description = "What became of the items.", body = Summary, example = json!({
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
    Query(wish): Query<Wish>,
    items: Items,
) -> Result<Response, Error> {
    let large = items.body.len() >= LARGE;
    let _turn = if large {
        let turn = timeout(state.body_patience, state.batches.turn(&caller.name())).await;
        Some(turn.map_err(|_| Error::Overloaded(TOO_MANY_BATCHES))?)
    } else {
        None
    };
    let plan = aside(large, move || Plan::of(&caller, key.as_ref(), &items)).await??;
    let decided = state.usage.decide_all(&plan.requests).await?;
    let now = state.ctx.clock.now();
    let span = Span::current();
    aside(large, move || {
        let decided: Vec<Result<Decided, Error>> = decided
            .into_iter()
            .map(|decided| decided.map_err(Error::from))
            .collect();
        let causes = decided.iter().filter_map(|it| it.as_ref().err()?.cause());
        if let Some(error) = causes.clone().next() {
            let requests = causes.count();
            tracing::warn!(parent: &span, error, requests, "items of a batch could not be decided");
        }
        Json(plan.summary(&decided, wish.results, now)).into_response()
    })
    .await
}

/// Does work that takes long for many items; then on another thread, so that it keeps no other request waiting.
async fn aside<T: Send + 'static>(
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

/// What one item asks for, and whether it named `meters`.
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
        (None, Some(of_batch)) => {
            let numbered = format!("{of_batch}/{index}").parse();
            Some(numbered.map_err(|_| {
                let detail = "Idempotency-Key leaves no room for the number of an item";
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

/// What the items come to. Consecutive ones that want the same of one counter are one request, because what a
/// batch costs is its distinct counters.
#[derive(Debug, Default)]
struct Plan {
    /// How many meters the items name together.
    charges: usize,
    requests: Vec<Request>,
    /// For each item in order, where its answer will be.
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

/// What became of one item that could be decided.
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

    fn add(&mut self, asked: Result<(Request, bool), Error>) {
        let part = asked.map(|(request, several)| {
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
            // One that extends another charges a single counter.
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

    /// What the items came to.
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

/// Whether an item was counted, now or by an earlier attempt.
fn is_counted(part: &Result<Part, Error>, decided: &[Result<Decided, Error>]) -> bool {
    let Ok(part) = part else { return false };
    let decided = decided.get(part.request).and_then(|it| it.as_ref().ok());
    decided.is_some_and(|decided| part.nth < decided.times_granted)
}

/// Whether what was not granted was refused by a limit. Otherwise the counter would have passed its ceiling.
fn can_refuse(request: &Request, decided: &Decided) -> bool {
    let refuses = |usage: &MeterUsage| usage.rule.can_deny(request.kind);
    request.times == 1 || decided.meters.iter().any(refuses)
}

/// Narrows what became of several equal calls down to one of them: each was as good as counted after the other.
fn one_of_several(request: &Request, decided: &mut Decided, nth: u32) -> Result<(), Error> {
    let share = decision::share(decided.times_granted, nth, 1);
    decided.granted = share.granted > 0;
    if !decided.granted && !can_refuse(request, decided) {
        let meters = decided.meters.iter().map(|usage| usage.meter.to_string());
        return Err(Error::CounterOverflow(meters.collect()));
    }
    for usage in &mut decided.meters {
        usage.used = share.used(usage.used, usage.demand.amount);
        // Only the one behind those that were granted.
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

/// Why a body is no list of anything.
fn without_items(body: &[u8], error: &serde_json::Error) -> Error {
    match parse::json::<ItemList<IgnoredAny>>(body) {
        Err(problem) => problem,
        Ok(_) => Error::MalformedRequest(format!("the body is no batch: {error}")),
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
    /// Takes each of them, as far as it can be read.
    fn each(&self, mut take: impl FnMut(Result<Item, Error>)) -> Result<(), Error> {
        let body: &[u8] = &self.body;
        match self.media_type {
            MediaType::Json => {
                // Looked through once for what is no text, instead of each string by itself.
                let text = std::str::from_utf8(body).ok();
                let whole = text.and_then(|text| serde_json::from_str(text).ok());
                if let Some(Object(ItemList { items })) = whole {
                    refuse_too_many(items.len())?;
                    for Object(item) in items {
                        take(Ok(item));
                    }
                } else {
                    // One of them is wrong, and the others shall be counted all the same.
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
