//! `GET /v1/organizations/{id}/history` and `GET /v1/history`: one page as JSON, or the whole range as a stream of CSV or
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

/// Rows of a stream that one query reads.
const STREAM_PAGE: usize = 1000;

/// The maximum number of organizations in one call.
const ORGANIZATIONS_MAX: usize = 100;

/// The query of one organization's history.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(in crate::http) struct OfOrganization {
    /// Only this meter.
    meter: Option<MeterId>,
    /// How much time a row covers; `day` by default.
    #[param(inline)]
    granularity: Option<Granularity>,
    /// Rows that start at this instant or later. Without it, the range is the last 24 hours, 31 days, or all periods.
    #[serde(default, deserialize_with = "instant")]
    from: Option<DateTime<Utc>>,
    /// Rows that start before this instant.
    #[serde(default, deserialize_with = "instant")]
    to: Option<DateTime<Utc>>,
    /// Adds rows of zeros where nothing was counted, up to 50,000; hours and days only.
    #[param(inline)]
    fill: Option<Fill>,
    /// By start, then organization, then meter; `asc` by default.
    #[param(inline)]
    order: Option<Order>,
    /// Days of this time zone (IANA name) instead of the organization's.
    #[serde(default, deserialize_with = "nullable::<Zone, _, _>")]
    #[param(value_type = Option<String>, example = "Europe/Berlin")]
    time_zone: Option<Tz>,
    /// JSON only; other formats have no pages.
    #[param(inline)]
    page_size: Option<PageSize>,
    /// The `nextCursor` of the previous page; the other parameters must not change.
    #[serde(default, deserialize_with = "cursor")]
    #[param(value_type = Option<String>)]
    cursor: Option<Cursor>,
}

/// The query of the history of all organizations.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(in crate::http) struct OfAll {
    /// Only these organizations, at most 100; repeat the parameter.
    #[serde(default)]
    #[param(value_type = Vec<OrganizationId>, required = false, max_items = 100)]
    organization_id: Vec<OrganizationParam>,
    /// Only this meter.
    meter: Option<MeterId>,
    /// How much time a row covers; `day` by default.
    #[param(inline)]
    granularity: Option<Granularity>,
    /// Rows that start at this instant or later. Without it, the range is the last 24 hours, 31 days, or all periods.
    #[serde(default, deserialize_with = "instant")]
    from: Option<DateTime<Utc>>,
    /// Rows that start before this instant.
    #[serde(default, deserialize_with = "instant")]
    to: Option<DateTime<Utc>>,
    /// Adds rows of zeros where nothing was counted, up to 50,000; hours and days only.
    #[param(inline)]
    fill: Option<Fill>,
    /// By start, then organization, then meter; `asc` by default.
    #[param(inline)]
    order: Option<Order>,
    /// Days of this time zone (IANA name) instead of the organization's.
    #[serde(default, deserialize_with = "nullable::<Zone, _, _>")]
    #[param(value_type = Option<String>, example = "Europe/Berlin")]
    time_zone: Option<Tz>,
    /// JSON only; other formats have no pages.
    #[param(inline)]
    page_size: Option<PageSize>,
    /// The `nextCursor` of the previous page; the other parameters must not change.
    #[serde(default, deserialize_with = "cursor")]
    #[param(value_type = Option<String>)]
    cursor: Option<Cursor>,
}

/// What fills ranges without counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum Fill {
    /// A row of zeros.
    Zero,
}

type HistoryPage = List<HistoryRow>;

/// The usage of one meter in one hour, day or period. CSV has the same columns in this order.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(example = json!({
    "organizationId": "org_123", "meter": "api", "start": "2026-11-22T00:00:00Z", "end": "2026-11-23T00:00:00Z",
    "used": 40, "refunded": 2, "adjusted": 0, "denied": 1, "limit": null, "planId": null, "resetType": null, "open": false,
    "final": false
}))]
pub(in crate::http) struct HistoryRow {
    /// Absent in the history of one organization.
    #[serde(skip_serializing_if = "Option::is_none")]
    organization_id: Option<OrganizationId>,
    meter: MeterId,
    start: DateTime<Utc>,
    /// Null if the period does not end by itself.
    #[schema(required)]
    end: Option<DateTime<Utc>>,
    /// Units after refunds and adjustments; negative in an hour or day with more refunded than counted.
    used: i64,
    /// Units refunded; `used + refunded - adjusted` is the gross.
    refunded: u64,
    /// The sum of adjustments contained in `used`.
    adjusted: i64,
    /// Calls refused.
    denied: u64,
    /// The limit of the period; null for hours and days, and if unlimited.
    #[schema(required)]
    limit: Option<Count>,
    /// The plan of the organization at that time; null for hours and days.
    #[schema(required)]
    plan_id: Option<PlanId>,
    /// What ended the period; null for hours and days, and while it runs.
    #[schema(required)]
    reset_type: Option<ResetMode>,
    /// Whether the interval has not ended.
    open: bool,
    /// Whether late events can no longer change it.
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

/// Get an organization's history
///
/// Rows by hour, day or period; `Accept: text/csv` or `application/x-ndjson` streams the whole range.
/// Hours follow the wall clock of the organization's time zone, so hours add up to days and periods.
/// A row belongs to the range in which it starts. History lags the counters by at most one flush interval.
#[utoipa::path(
    get,
    path = "/v1/organizations/{id}/history",
    operation_id = "getOrganizationHistory",
    tag = "History",
    security(("key" = ["read"]), ("token" = [])),
    params(Path<OrganizationId>, OfOrganization),
    responses(
        (status = 200,
         description = "A page of rows, or all rows as CSV or newline-delimited JSON with the same columns.",
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
    Query(query): Query<OfOrganization>,
) -> Result<Response, Error> {
    let request = Request::new(
        &state.history,
        Some(vec![organization.clone()]),
        query,
        &headers,
    )?;
    if !caller.trusts_existence() && !state.history.exists(&organization).await? {
        return Err(Error::NotFound("there is no such organization"));
    }
    request.respond(state, false).await
}

/// Get the history of all organizations
///
/// Or of the named ones; a key that is bound to an organization must name it. Each row has an `organizationId`;
/// everything else is as for one organization.
#[utoipa::path(
    get,
    path = "/v1/history",
    operation_id = "getHistory",
    tag = "History",
    security(("key" = ["read"]), ("token" = [])),
    params(OfAll),
    responses(
        (status = 200,
         description = "A page of rows, or all rows as CSV or newline-delimited JSON with the same columns.",
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
    Query(query): Query<OfAll>,
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
    } = query;
    if named.len() > ORGANIZATIONS_MAX {
        return Err(invalid(
            "organizationId",
            format!(
                "must be given at most {ORGANIZATIONS_MAX} times, or be left out for all organizations; got {}",
                named.len()
            ),
        ));
    }
    let named = if named.is_empty() {
        caller.authorize_all()?;
        None
    } else {
        let authorized: Result<BTreeSet<_>, _> =
            named.iter().map(|one| caller.authorize(one)).collect();
        Some(authorized?.into_iter().collect())
    };
    let query = OfOrganization {
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
    Request::new(&state.history, named, query, &headers)?
        .respond(state, true)
        .await
}

/// A valid request.
struct Request {
    list: history::List,
    /// Identifies the parameters, which must not change between pages.
    fingerprint: u64,
    after: Option<Position>,
    page_size: usize,
    format: Format,
}

impl Request {
    fn new(
        history: &history::History,
        organizations: Option<Vec<OrganizationId>>,
        query: OfOrganization,
        headers: &HeaderMap,
    ) -> Result<Self, Error> {
        let format = Format::accepted(headers);
        let granularity = query.granularity.unwrap_or(Granularity::Day);
        let fingerprint = fingerprint(organizations.as_deref(), &query, granularity);
        if let (Some(from), Some(to)) = (query.from, query.to)
            && from > to
        {
            let detail = format!("must not be after to; got {from} and {to}");
            return Err(invalid("from", detail));
        }
        if query.time_zone.is_some() && granularity != Granularity::Day {
            return Err(invalid(
                "timeZone",
                "applies to granularity=day only; leave it out otherwise",
            ));
        }
        if query.fill.is_some() && granularity == Granularity::Period {
            return Err(invalid(
                "fill",
                "applies to granularity=hour and day only; leave it out otherwise",
            ));
        }
        if format != Format::Json {
            let paging = [
                ("pageSize", query.page_size.is_some()),
                ("cursor", query.cursor.is_some()),
            ];
            if let Some((name, _)) = paging.into_iter().find(|(_, given)| *given) {
                return Err(invalid(
                    name,
                    "applies to JSON only, because other formats have no pages; leave it out",
                ));
            }
        }
        let (from, to, after) = match query.cursor {
            Some(cursor) if cursor.list == fingerprint => {
                (cursor.from, cursor.to, Some(cursor.last))
            }
            Some(_) => {
                return Err(invalid(
                    "cursor",
                    "belongs to a list with other parameters; repeat those of the first page",
                ));
            }
            None => {
                let (from, to) = history.range(granularity, query.from, query.to);
                (from, to, None)
            }
        };
        Ok(Self {
            list: history::List {
                organizations,
                meter: query.meter,
                granularity,
                from,
                to,
                fill: query.fill.is_some(),
                order: query.order.unwrap_or_default(),
                zone: query.time_zone,
            },
            fingerprint,
            after,
            page_size: query.page_size.unwrap_or_default().get() as usize,
            format,
        })
    }

    async fn respond(self, state: State, name_organization: bool) -> Result<Response, Error> {
        let mut response = match self.format {
            Format::Json => self.page(&state, name_organization).await?,
            Format::Csv | Format::NdJson => self.stream(state, name_organization).await?,
        };
        let vary = HeaderValue::from_static("accept");
        response.headers_mut().append(VARY, vary);
        Ok(response)
    }

    async fn page(self, state: &State, name_organization: bool) -> Result<Response, Error> {
        // One more than the page, to know whether it is the last.
        let count = self.page_size.saturating_add(1);
        let mut entries = state
            .history
            .page(&self.list, self.after.as_ref(), count)
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

    /// Streams every row, a page at a time. The first page is read before the status is sent, so that its failure is a
    /// problem; a later failure aborts the response, so that no client takes a part for the whole.
    async fn stream(self, state: State, name_organization: bool) -> Result<Response, Error> {
        let Self { list, format, .. } = self;
        let first = state.history.page(&list, None, STREAM_PAGE).await?;
        let head = format.head(name_organization).map_err(broken)?;
        let pages = stream::try_unfold(Rest::Read(first), move |rest| {
            let (state, list) = (state.clone(), list.clone());
            async move {
                let entries = match rest {
                    Rest::Read(entries) => entries,
                    Rest::After(last) => {
                        state.history.page(&list, Some(&last), STREAM_PAGE).await?
                    }
                    Rest::Nothing => return Ok::<_, Error>(None),
                };
                let rest = match entries.last() {
                    Some(last) if entries.len() == STREAM_PAGE => {
                        Rest::After(last.row.position.clone())
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
            .map_err(|_| std::io::Error::other("the remaining rows could not be read"));
        let content_type = HeaderValue::from_static(format.content_type());
        Ok(([(CONTENT_TYPE, content_type)], Body::from_stream(body)).into_response())
    }
}

/// What a stream has not sent yet.
enum Rest {
    /// These rows, and those after them.
    Read(Vec<Entry>),
    /// The rows after this position.
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

/// The format of the response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Json,
    Csv,
    NdJson,
}

impl Format {
    /// The first supported format that the client accepts, else JSON.
    fn accepted(headers: &HeaderMap) -> Self {
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

    /// What precedes the rows.
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

/// A hash of all parameters that must not change between pages; the page size may.
fn fingerprint(
    organizations: Option<&[OrganizationId]>,
    query: &OfOrganization,
    granularity: Granularity,
) -> u64 {
    let organizations: Vec<&str> = organizations
        .unwrap_or_default()
        .iter()
        .map(OrganizationId::as_str)
        .collect();
    let instant = |instant: Option<DateTime<Utc>>| instant.map(|it| it.timestamp_millis());
    let zone = query.time_zone.map(Tz::name);
    let text = format!(
        "{organizations:?} {:?} {granularity:?} {:?} {:?} {:?} {:?} {zone:?}",
        query.meter.as_ref().map(MeterId::as_str),
        instant(query.from),
        instant(query.to),
        query.fill,
        query.order.unwrap_or_default(),
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

/// A row that cannot be serialized is a bug.
#[expect(clippy::needless_pass_by_value, reason = "what `map_err` calls")]
fn broken(error: csv::Error) -> Error {
    caused(Error::Internal, &error)
}
