//! `GET /v1/organizations/{id}/history` and `GET /v1/history`: a page as JSON, or everything as CSV or
//! newline-delimited JSON.

use std::collections::BTreeSet;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::State as Shared;
use axum::http::header::{ACCEPT, CONTENT_TYPE, VARY};
use axum::http::{HeaderMap, HeaderValue};
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, Utc};
use chrono_tz::Tz;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::{IntoParams, ToSchema};
use xxhash_rust::xxh3::xxh3_64;

use crate::domain::calendar::Zone;
use crate::domain::history::{Cursor, Granularity, Order, Position};
use crate::domain::ids::{MeterId, OrganizationId, PlanId};
use crate::domain::input::{nullable, parse_str};
use crate::domain::period::ResetMode;
use crate::domain::quantity::Count;
use crate::http::auth::{InOrganization, OrganizationParam, Read};
use crate::http::extract::{Query, instant};
use crate::http::failures::caused;
use crate::http::list::{List, PageSize};
use crate::http::openapi::problems::NeedsCounterStore;
use crate::http::path::Path;
use crate::http::problem::Error;
use crate::http::state::State;
use crate::usage::history::{self, Entry};

/// How many rows of a stream are read at once.
const STREAM_PAGE: usize = 1000;

/// The most organizations that one call may name.
const ORGANIZATIONS_MAX: usize = 100;

/// What one organization's history is asked with.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(in crate::http) struct OfOrganization {
    /// Only this meter.
    meter: Option<MeterId>,
    /// How much time a row covers; `day` unless said.
    #[param(inline)]
    granularity: Option<Granularity>,
    /// Rows that start at this instant or later. Without it, the range is the last 24 hours, 31 days, or all periods.
    #[serde(default, deserialize_with = "instant")]
    from: Option<DateTime<Utc>>,
    /// Rows that start before this instant.
    #[serde(default, deserialize_with = "instant")]
    to: Option<DateTime<Utc>>,
    /// Adds rows of zeros where nothing was counted, up to 50,000; for hours and days.
    #[param(inline)]
    fill: Option<Fill>,
    /// By start, then organization, then meter; `asc` unless said.
    #[param(inline)]
    order: Option<Order>,
    /// Days of another zone than the organization's: an IANA name.
    #[serde(default, deserialize_with = "nullable::<Zone, _, _>")]
    #[param(value_type = Option<String>, example = "Europe/Berlin")]
    time_zone: Option<Tz>,
    /// For JSON alone; other formats have no pages.
    #[param(inline)]
    page_size: Option<PageSize>,
    /// The `nextCursor` of the page before; everything else as it was asked then.
    #[serde(default, deserialize_with = "cursor")]
    #[param(value_type = Option<String>)]
    cursor: Option<Cursor>,
}

/// What the history of all is asked with: the same, and which organizations.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(in crate::http) struct OfAll {
    /// Only these organizations, 100 at most; the parameter is repeated.
    #[serde(default)]
    #[param(value_type = Vec<OrganizationId>, required = false, max_items = 100)]
    organization_id: Vec<OrganizationParam>,
    /// Only this meter.
    meter: Option<MeterId>,
    /// How much time a row covers; `day` unless said.
    #[param(inline)]
    granularity: Option<Granularity>,
    /// Rows that start at this instant or later. Without it, the range is the last 24 hours, 31 days, or all periods.
    #[serde(default, deserialize_with = "instant")]
    from: Option<DateTime<Utc>>,
    /// Rows that start before this instant.
    #[serde(default, deserialize_with = "instant")]
    to: Option<DateTime<Utc>>,
    /// Adds rows of zeros where nothing was counted, up to 50,000; for hours and days.
    #[param(inline)]
    fill: Option<Fill>,
    /// By start, then organization, then meter; `asc` unless said.
    #[param(inline)]
    order: Option<Order>,
    /// Days of another zone than the organization's: an IANA name.
    #[serde(default, deserialize_with = "nullable::<Zone, _, _>")]
    #[param(value_type = Option<String>, example = "Europe/Berlin")]
    time_zone: Option<Tz>,
    /// For JSON alone; other formats have no pages.
    #[param(inline)]
    page_size: Option<PageSize>,
    /// The `nextCursor` of the page before; everything else as it was asked then.
    #[serde(default, deserialize_with = "cursor")]
    #[param(value_type = Option<String>)]
    cursor: Option<Cursor>,
}

/// What stands where nothing was counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum Fill {
    /// A row of zeros, instead of none.
    Zero,
}

type HistoryPage = List<HistoryRow>;

/// What one meter counted in one hour, day or period. CSV has the same columns, in this order.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(example = json!({
    "organizationId": "org_123", "meter": "api", "start": "2026-11-22T00:00:00Z", "end": "2026-11-23T00:00:00Z",
    "used": 40, "refunded": 2, "adjusted": 0, "denied": 1, "limit": null, "planId": null, "resetType": null, "open": false,
    "final": false
}))]
pub(in crate::http) struct HistoryRow {
    /// Only where rows of several organizations may meet.
    #[serde(skip_serializing_if = "Option::is_none")]
    organization_id: Option<OrganizationId>,
    meter: MeterId,
    start: DateTime<Utc>,
    /// Null while a period does not end by itself.
    #[schema(required)]
    end: Option<DateTime<Utc>>,
    /// What remains after refunds and corrections; an hour or a day may be negative.
    used: i64,
    /// Units given back; `used + refunded - adjusted` is the gross.
    refunded: u64,
    /// What corrections have changed `used` by.
    adjusted: i64,
    /// Calls refused.
    denied: u64,
    /// Units that the period included; null for hours and days, and where it was unlimited.
    #[schema(required)]
    limit: Option<Count>,
    /// The plan that the organization was on; null for hours and days.
    #[schema(required)]
    plan_id: Option<PlanId>,
    /// What ended the period; null for hours and days, and while nothing has.
    #[schema(required)]
    reset_type: Option<ResetMode>,
    /// The interval has not ended.
    open: bool,
    /// No event is accepted into its period any more.
    r#final: bool,
}

const COLUMNS: [&str; 13] = [
    "organizationId",
    "meter",
    "start",
    "end",
    "used",
    "refunded",
    "adjusted",
    "denied",
    "limit",
    "planId",
    "resetType",
    "open",
    "final",
];

/// One organization's history
///
/// Rows by hour, day or period; `Accept: text/csv` or `application/x-ndjson` streams the whole range.
/// Hours follow the wall clock of the organization's zone, so that hours add up to days and periods.
/// A row belongs to the range in which it starts, and is whole. History trails the counters by at most a flush interval.
#[utoipa::path(
    get,
    path = "/v1/organizations/{id}/history",
    operation_id = "getOrganizationHistory",
    tag = "History",
    security(("key" = ["read"]), ("token" = [])),
    params(Path<OrganizationId>, OfOrganization),
    responses(
        (status = 200,
         description = "A page of rows; as CSV or newline-delimited JSON all rows, with the columns of the JSON.",
         content(
            (HistoryPage = "application/json"),
            (String = "text/csv", example = "meter,start,end,used,refunded,denied,limit,open,final\r\n\
                api,2026-11-22T00:00:00Z,2026-11-23T00:00:00Z,40,2,1,,false,false\r\n"),
            (String = "application/x-ndjson", example = "{\"meter\":\"api\",\"start\":\"2026-11-22T00:00:00Z\",\
                \"end\":\"2026-11-23T00:00:00Z\",\"used\":40,\"refunded\":2,\"denied\":1,\"limit\":null,\
                \"open\":false,\"final\":false}\n"),
        )),
        NeedsCounterStore,
    )
)]
pub(in crate::http) async fn of_organization(
    Shared(state): Shared<State>,
    InOrganization(Read(caller), organization): InOrganization<Read>,
    headers: HeaderMap,
    Query(asked): Query<OfOrganization>,
) -> Result<Response, Error> {
    let request = Request::new(
        &state.history,
        Some(vec![organization.clone()]),
        asked,
        &headers,
    )?;
    if !caller.trusts_existence() && !state.history.exists(&organization).await? {
        return Err(Error::NotFound("there is no such organization"));
    }
    request.answer(state, false).await
}

/// The history of all organizations
///
/// Or of those that are named, which is all that a key reaches that is bound to one.
/// Otherwise as one organization's; each row has an `organizationId`.
#[utoipa::path(
    get,
    path = "/v1/history",
    operation_id = "getHistory",
    tag = "History",
    security(("key" = ["read"]), ("token" = [])),
    params(OfAll),
    responses(
        (status = 200,
         description = "A page of rows; as CSV or newline-delimited JSON all rows, with the columns of the JSON.",
         content(
            (HistoryPage = "application/json"),
            (String = "text/csv", example = "meter,start,end,used,refunded,denied,limit,open,final\r\n\
                api,2026-11-22T00:00:00Z,2026-11-23T00:00:00Z,40,2,1,,false,false\r\n"),
            (String = "application/x-ndjson", example = "{\"meter\":\"api\",\"start\":\"2026-11-22T00:00:00Z\",\
                \"end\":\"2026-11-23T00:00:00Z\",\"used\":40,\"refunded\":2,\"denied\":1,\"limit\":null,\
                \"open\":false,\"final\":false}\n"),
        )),
    )
)]
pub(in crate::http) async fn of_all(
    Shared(state): Shared<State>,
    Read(caller): Read,
    headers: HeaderMap,
    Query(asked): Query<OfAll>,
) -> Result<Response, Error> {
    let OfAll {
        organization_id: named,
        meter,
        granularity,
        from,
        to,
        fill,
        order,
        time_zone,
        page_size,
        cursor,
    } = asked;
    if named.len() > ORGANIZATIONS_MAX {
        return Err(invalid(
            "organizationId",
            format!(
                "must be given {ORGANIZATIONS_MAX} times at most, or be left out for all; got {}",
                named.len()
            ),
        ));
    }
    let named = if named.is_empty() {
        caller.authorize_all()?;
        None
    } else {
        let reached: Result<BTreeSet<_>, _> =
            named.iter().map(|one| caller.authorize(one)).collect();
        Some(reached?.into_iter().collect())
    };
    let asked = OfOrganization {
        meter,
        granularity,
        from,
        to,
        fill,
        order,
        time_zone,
        page_size,
        cursor,
    };
    Request::new(&state.history, named, asked, &headers)?
        .answer(state, true)
        .await
}

/// A request that makes sense.
struct Request {
    list: history::List,
    /// Tells this list from every other one.
    fingerprint: u64,
    after: Option<Position>,
    page_size: usize,
    format: Format,
}

impl Request {
    fn new(
        history: &history::History,
        organizations: Option<Vec<OrganizationId>>,
        asked: OfOrganization,
        headers: &HeaderMap,
    ) -> Result<Self, Error> {
        let format = Format::wanted(headers);
        let granularity = asked.granularity.unwrap_or(Granularity::Day);
        let fingerprint = fingerprint(organizations.as_deref(), &asked, granularity);
        if let (Some(from), Some(to)) = (asked.from, asked.to)
            && from > to
        {
            let detail = format!("must not be after to; got {from} and {to}");
            return Err(invalid("from", detail));
        }
        if asked.time_zone.is_some() && granularity != Granularity::Day {
            return Err(invalid(
                "timeZone",
                "is for granularity=day alone; leave it out otherwise",
            ));
        }
        if asked.fill.is_some() && granularity == Granularity::Period {
            return Err(invalid(
                "fill",
                "is for granularity=hour and day; a period without any usage has left no trace of its limit, so leave it out",
            ));
        }
        if format != Format::Json {
            let paging = [
                ("pageSize", asked.page_size.is_some()),
                ("cursor", asked.cursor.is_some()),
            ];
            if let Some((name, _)) = paging.into_iter().find(|(_, given)| *given) {
                return Err(invalid(
                    name,
                    "is for JSON alone; leave it out, other formats have no pages",
                ));
            }
        }
        let (from, to, after) = match asked.cursor {
            Some(cursor) if cursor.list == fingerprint => {
                (cursor.from, cursor.to, Some(cursor.last))
            }
            Some(_) => {
                return Err(invalid(
                    "cursor",
                    "was given for another list; ask as it was asked then",
                ));
            }
            None => {
                let (from, to) = history.range(granularity, asked.from, asked.to);
                (from, to, None)
            }
        };
        Ok(Self {
            list: history::List {
                organizations,
                meter: asked.meter,
                granularity,
                from,
                to,
                fill: asked.fill.is_some(),
                order: asked.order.unwrap_or_default(),
                zone: asked.time_zone,
            },
            fingerprint,
            after,
            page_size: asked.page_size.unwrap_or_default().get() as usize,
            format,
        })
    }

    async fn answer(self, state: State, name_organization: bool) -> Result<Response, Error> {
        let mut response = match self.format {
            Format::Json => self.page(&state, name_organization).await?,
            Format::Csv | Format::NdJson => self.stream(state, name_organization).await?,
        };
        let vary = HeaderValue::from_static("accept");
        response.headers_mut().append(VARY, vary);
        Ok(response)
    }

    async fn page(self, state: &State, name_organization: bool) -> Result<Response, Error> {
        // One more than is given, to learn whether there are more.
        let wanted = self.page_size.saturating_add(1);
        let mut entries = state
            .history
            .page(&self.list, self.after.as_ref(), wanted)
            .await?;
        let more = entries.len() > self.page_size;
        entries.truncate(self.page_size);
        let last = entries.last().filter(|_| more);
        let next_cursor = last.map(|last| Cursor {
            list: self.fingerprint,
            from: self.list.from,
            to: self.list.to,
            last: last.row.position.clone(),
        });
        let rows = entries
            .into_iter()
            .map(|entry| row(entry, name_organization));
        let page: HistoryPage = List::new(rows, next_cursor.map(|cursor| cursor.to_string()));
        Ok(Json(page).into_response())
    }

    /// Everything, a page at a time. The first page comes before the status, so that what goes wrong
    /// then is a problem; what goes wrong later breaks the connection off, and nobody takes a part
    /// for the whole.
    async fn stream(self, state: State, name_organization: bool) -> Result<Response, Error> {
        let Self { list, format, .. } = self;
        let first = state.history.page(&list, None, STREAM_PAGE).await?;
        let head = format.head(name_organization).map_err(broken)?;
        let pages = stream::try_unfold(Rest::Read(first), move |rest| {
            let (state, list) = (state.clone(), list.clone());
            async move {
                let entries = match rest {
                    Rest::Read(entries) => entries,
                    Rest::After(given) => {
                        state.history.page(&list, Some(&given), STREAM_PAGE).await?
                    }
                    Rest::Nothing => return Ok::<_, Error>(None),
                };
                let rest = match entries.last() {
                    Some(given) if entries.len() == STREAM_PAGE => {
                        Rest::After(given.row.position.clone())
                    }
                    _ => Rest::Nothing,
                };
                let rows: Vec<HistoryRow> = entries
                    .into_iter()
                    .map(|entry| row(entry, name_organization))
                    .collect();
                let text = format.rows(&rows).map_err(broken)?;
                Ok(Some((Bytes::from(text), rest)))
            }
        });
        let body = stream::once(async move { Ok(Bytes::from(head)) })
            .chain(pages)
            .map_err(|_| std::io::Error::other("the rest could not be read"));
        let content_type = HeaderValue::from_static(format.content_type());
        Ok(([(CONTENT_TYPE, content_type)], Body::from_stream(body)).into_response())
    }
}

/// What a stream still has to give.
enum Rest {
    /// These, and what is behind them.
    Read(Vec<Entry>),
    /// What is behind this.
    After(Position),
    Nothing,
}

fn row(entry: Entry, name_organization: bool) -> HistoryRow {
    let Entry { row, open, settled } = entry;
    HistoryRow {
        organization_id: name_organization.then_some(row.position.organization),
        meter: row.position.meter,
        start: row.position.start,
        end: row.end,
        used: row.used,
        refunded: row.refunded,
        adjusted: row.adjusted,
        denied: row.denied,
        limit: row.limit,
        plan_id: row.plan,
        reset_type: row.reset_type,
        open,
        r#final: settled,
    }
}

/// What rows are written as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Json,
    Csv,
    NdJson,
}

impl Format {
    /// The first that the caller accepts and there is; JSON where there is none.
    fn wanted(headers: &HeaderMap) -> Self {
        headers
            .get_all(ACCEPT)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .filter_map(|range| range.split(';').next())
            .find_map(|media_type| match media_type.trim() {
                "text/csv" => Some(Self::Csv),
                "application/x-ndjson" => Some(Self::NdJson),
                "application/json" | "*/*" => Some(Self::Json),
                _ => None,
            })
            .unwrap_or(Self::Json)
    }

    fn content_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Csv => "text/csv; charset=utf-8; header=present",
            Self::NdJson => "application/x-ndjson",
        }
    }

    /// What comes before the rows.
    fn head(self, name_organization: bool) -> Result<Vec<u8>, csv::Error> {
        match self {
            Self::Csv => {
                let skipped = usize::from(!name_organization);
                let mut csv = csv_writer();
                csv.write_record(COLUMNS.iter().skip(skipped))?;
                finish(csv)
            }
            Self::Json | Self::NdJson => Ok(Vec::new()),
        }
    }

    fn rows(self, rows: &[HistoryRow]) -> Result<Vec<u8>, csv::Error> {
        match self {
            Self::Csv => {
                let mut csv = csv_writer();
                for row in rows {
                    csv.serialize(row)?;
                }
                finish(csv)
            }
            Self::Json | Self::NdJson => {
                let mut text = Vec::new();
                for row in rows {
                    serde_json::to_writer(&mut text, row).map_err(std::io::Error::from)?;
                    text.push(b'\n');
                }
                Ok(text)
            }
        }
    }
}

fn csv_writer() -> csv::Writer<Vec<u8>> {
    csv::WriterBuilder::new()
        .has_headers(false)
        .terminator(csv::Terminator::CRLF)
        .from_writer(Vec::new())
}

fn finish(csv: csv::Writer<Vec<u8>>) -> Result<Vec<u8>, csv::Error> {
    csv.into_inner().map_err(|error| error.into_error().into())
}

/// All that makes one list another one than the next. The size of pages does not.
fn fingerprint(
    organizations: Option<&[OrganizationId]>,
    asked: &OfOrganization,
    granularity: Granularity,
) -> u64 {
    let organizations: Vec<&str> = organizations
        .unwrap_or_default()
        .iter()
        .map(OrganizationId::as_str)
        .collect();
    let instant = |instant: Option<DateTime<Utc>>| instant.map(|it| it.timestamp_millis());
    let zone = asked.time_zone.map(Tz::name);
    let text = format!(
        "{organizations:?} {:?} {granularity:?} {:?} {:?} {:?} {:?} {zone:?}",
        asked.meter.as_ref().map(MeterId::as_str),
        instant(asked.from),
        instant(asked.to),
        asked.fill,
        asked.order.unwrap_or_default(),
    );
    xxh3_64(text.as_bytes())
}

fn cursor<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Cursor>, D::Error> {
    parse_str(deserializer, "the nextCursor of a page", str::parse).map(Some)
}

fn invalid(parameter: &str, detail: impl Into<String>) -> Error {
    Error::InvalidField {
        pointer: format!("/{parameter}"),
        detail: detail.into(),
    }
}

/// Rows that cannot be written are a defect.
#[expect(clippy::needless_pass_by_value, reason = "what `map_err` calls")]
fn broken(error: csv::Error) -> Error {
    caused(Error::Internal, &error)
}
