//! The items of a batch, as JSON or newline-delimited JSON.

use axum::extract::{FromRequest, Request};
use chrono::{DateTime, Utc};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;
use utoipa::ToSchema;

use crate::domain::ids::{ByMeter, IdempotencyKey, MeterId, OrganizationId};
use crate::domain::input::{Instant, not_null, optional};
use crate::domain::quantity::Amount;
use crate::http::auth::OrganizationParam;
use crate::http::body::{BATCH_BODY_MAX, Text, read};
use crate::http::extract::{MediaType, Object, from_json};
use crate::http::parse;
use crate::http::problem::Error;
use crate::http::state::State;

/// The maximum number of items in a batch.
const ITEMS_MAX: usize = 10_000;

/// The body, not parsed yet.
#[derive(Debug)]
pub(in crate::http) struct Items {
    media_type: MediaType,
    body: Text,
}

/// A track or a consume, with the fields of that call.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Item {
    #[schema(inline)]
    pub(super) op: Op,
    /// An unknown organization starts on the default plan.
    #[schema(value_type = OrganizationId)]
    pub(super) organization_id: OrganizationParam,
    /// What is counted; `api` by default.
    #[serde(default, deserialize_with = "not_null")]
    #[schema(nullable = false)]
    pub(super) meter: Option<MeterId>,
    /// How many units; 1 by default.
    #[serde(default, deserialize_with = "not_null")]
    #[schema(nullable = false)]
    pub(super) amount: Option<Amount>,
    /// Units by meter; either all are charged or none.
    #[serde(default, deserialize_with = "not_null")]
    #[schema(value_type = BTreeMap<MeterId, Amount>, required = false)]
    pub(super) meters: Option<ByMeter<Amount>>,
    /// Units by meter that must be available in addition, without being charged; consume only.
    #[serde(default, deserialize_with = "not_null")]
    #[schema(value_type = BTreeMap<MeterId, Amount>, required = false)]
    pub(super) require: Option<ByMeter<Amount>>,
    /// When it happened; track only.
    #[serde(default, deserialize_with = "optional::<Instant, _>")]
    #[schema(nullable = false)]
    pub(super) timestamp: Option<DateTime<Utc>>,
    /// Makes retrying this item safe; by default the key of the batch, a slash and the item's index.
    #[serde(default, deserialize_with = "not_null")]
    #[schema(nullable = false)]
    pub(super) idempotency_key: Option<IdempotencyKey>,
}

#[derive(Debug, Clone, Copy, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum Op {
    Track,
    Consume,
}

/// The JSON body of a batch.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = Batch, bound = "T: ToSchema")]
pub(super) struct ItemList<T> {
    /// Each item succeeds or fails independently.
    #[schema(max_items = 10_000)]
    items: Vec<T>,
}

impl FromRequest<State> for Items {
    type Rejection = Error;

    async fn from_request(request: Request, state: &State) -> Result<Self, Error> {
        let media_type = MediaType::of(request.headers());
        let (parts, body) = request.into_parts();
        let body = read(&parts, body, BATCH_BODY_MAX, state).await?;
        Ok(Self {
            media_type: media_type?,
            body,
        })
    }
}

impl Items {
    /// Bytes of the body.
    pub(super) fn len(&self) -> usize {
        self.body.len()
    }

    /// Calls `take` for each item, or with why it cannot be parsed.
    pub(super) fn each(&self, mut take: impl FnMut(Result<Item, Error>)) -> Result<(), Error> {
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
