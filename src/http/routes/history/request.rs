//! A request for history: its parameters checked, and its response as a page or a stream.

use axum::Json;
use axum::body::{Body, Bytes};
use axum::http::header::{CONTENT_TYPE, VARY};
use axum::http::{HeaderMap, HeaderValue};
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, Utc};
use chrono_tz::Tz;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use serde::Serialize;
use utoipa::ToSchema;
use xxhash_rust::xxh3::xxh3_64;

use super::query::OfOrganization;
use super::rows::{Format, HistoryRow, row};
use crate::domain::history::{Cursor, Granularity, Position};
use crate::domain::ids::{MeterId, OrganizationId};
use crate::http::auth::Caller;
use crate::http::failures::caused;
use crate::http::problem::Error;
use crate::http::state::State;
use crate::usage::history::{self, Entry};

/// Rows of a stream that one query reads.
const STREAM_PAGE: usize = 10_000;

/// The most meters in one call.
const METERS_MAX: usize = 100;

/// A page of history.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(example = json!({
    "data": [{
        "meter": "api", "start": "2026-11-22T00:00:00Z", "end": "2026-11-23T00:00:00Z", "used": 40, "total": 640,
        "refunded": 2, "adjusted": 0, "denied": 1, "limit": 1000, "planId": null, "resetType": null, "open": false,
        "final": false
    }],
    "nextCursor": null, "firstUse": "2026-03-01T10:00:00Z"
}))]
pub(super) struct HistoryPage {
    data: Vec<HistoryRow>,
    /// Null on the last page.
    #[schema(required)]
    next_cursor: Option<String>,
    /// When the organization first used one of the meters: the start of that slot, which lasts at most an hour, or of the
    /// period if its slots are no longer stored; null before, and in the history of several organizations.
    #[schema(required)]
    first_use: Option<DateTime<Utc>>,
}

/// A valid request.
pub(super) struct Request {
    list: history::List,
    /// Identifies the parameters, which must not change between pages.
    fingerprint: u64,
    after: Option<Position>,
    page_size: usize,
    format: Format,
}

impl Request {
    /// Fails with the first invalid parameter.
    pub(super) fn new(
        history: &history::History,
        organizations: Option<Vec<OrganizationId>>,
        query: OfOrganization,
        headers: &HeaderMap,
    ) -> Result<Self, Error> {
        let format = Format::accepted(headers);
        let granularity = query.granularity.unwrap_or(Granularity::Day);
        let fingerprint = fingerprint(organizations.as_deref(), &query, granularity);
        check(&query, granularity, format)?;
        let meters = (!query.meter.is_empty()).then_some(query.meter);
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
                meters,
                granularity,
                from,
                to,
                fill: query.fill.is_some(),
                limits: query.limits,
                totals: query.totals,
                order: query.order.unwrap_or_default(),
                zone: query.time_zone,
            },
            fingerprint,
            after,
            page_size: query.page_size.unwrap_or_default().get() as usize,
            format,
        })
    }

    /// A page as JSON, or everything as a stream.
    pub(super) async fn respond(
        self,
        state: State,
        caller: &Caller,
        name_organization: bool,
    ) -> Result<Response, Error> {
        let mut response = match self.format {
            Format::Json => self.page(&state, name_organization).await?,
            Format::Csv | Format::NdJson => {
                caller.take_time();
                self.stream(state, name_organization).await?
            }
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
        let first_use = if name_organization {
            None
        } else {
            state.history.first_use(&self.list).await?
        };
        let page = HistoryPage {
            data: entries
                .into_iter()
                .map(|entry| row(entry, name_organization))
                .collect(),
            next_cursor: next_cursor.map(|cursor| cursor.to_string()),
            first_use,
        };
        Ok(Json(page).into_response())
    }

    /// Streams every row, a page at a time, of which one is read while the one before is written. The first page is read
    /// before the status is sent, so that its failure is a problem; a later failure aborts the response, so that no
    /// client takes a part for the whole.
    async fn stream(self, state: State, name_organization: bool) -> Result<Response, Error> {
        let Self { list, format, .. } = self;
        let first = state.history.page(&list, None, STREAM_PAGE).await?;
        let head = format.head(name_organization).map_err(broken)?;
        let pages = stream::try_unfold(Rest::Read(first), move |rest| {
            let (state, list) = (state.clone(), list.clone());
            async move {
                let entries = match rest {
                    Rest::Read(entries) => entries,
                    Rest::After(position) => {
                        state
                            .history
                            .page(&list, Some(&position), STREAM_PAGE)
                            .await?
                    }
                    Rest::Nothing => return Ok::<_, Error>(None),
                };
                let rest = match entries.last() {
                    Some(entry) if entries.len() == STREAM_PAGE => {
                        Rest::After(entry.row.position.clone())
                    }
                    _ => Rest::Nothing,
                };
                Ok(Some((entries, rest)))
            }
        });
        let write = move |entries: Vec<Entry>| {
            let rows = entries
                .into_iter()
                .map(|entry| row(entry, name_organization));
            format.rows(&rows.collect::<Vec<HistoryRow>>())
        };
        let texts = pages
            .map_ok(move |entries| async move {
                let written = tokio::task::spawn_blocking(move || write(entries)).await;
                let text = written.map_err(|_| Error::panicked())?.map_err(broken)?;
                Ok(Bytes::from(text))
            })
            .try_buffered(2);
        let body = stream::once(async move { Ok(Bytes::from(head)) })
            .chain(texts)
            .map_err(|_| std::io::Error::other("the remaining rows could not be read"));
        let content_type = HeaderValue::from_static(format.content_type());
        Ok(([(CONTENT_TYPE, content_type)], Body::from_stream(body)).into_response())
    }
}

/// Refuses a range that ends before it begins.
pub(in crate::http::routes) fn check_range(
    from: Option<DateTime<Utc>>,
    to: Option<DateTime<Utc>>,
) -> Result<(), Error> {
    match (from, to) {
        (Some(from), Some(to)) if from > to => {
            let detail = format!("must not be after to; got {from} and {to}");
            Err(invalid("from", detail))
        }
        _ => Ok(()),
    }
}

/// Refuses parameters that contradict each other.
fn check(query: &OfOrganization, granularity: Granularity, format: Format) -> Result<(), Error> {
    check_range(query.from, query.to)?;
    if query.meter.len() > METERS_MAX {
        let given = query.meter.len();
        return Err(invalid(
            "meter",
            format!(
                "must be given at most {METERS_MAX} times, or be left out for all meters; got {given}"
            ),
        ));
    }
    if query.time_zone.is_some() && matches!(granularity, Granularity::Hour | Granularity::Period) {
        return Err(invalid(
            "timeZone",
            "applies to granularity=day, week and month only; leave it out otherwise",
        ));
    }
    if query.fill.is_some() && granularity == Granularity::Period {
        return Err(invalid(
            "fill",
            "applies to granularity=hour, day, week and month only; leave it out otherwise",
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
    Ok(())
}

/// What a stream has not sent yet.
enum Rest {
    /// These rows, and those after them.
    Read(Vec<Entry>),
    /// The rows after this position.
    After(Position),
    Nothing,
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
    let meters: Vec<&str> = query.meter.iter().map(MeterId::as_str).collect();
    let text = format!(
        "{organizations:?} {meters:?} {granularity:?} {:?} {:?} {:?} {:?} {:?} {:?} {zone:?}",
        instant(query.from),
        instant(query.to),
        query.fill,
        query.limits,
        query.totals,
        query.order.unwrap_or_default(),
    );
    xxh3_64(text.as_bytes())
}

/// Refuses a query parameter.
pub(super) fn invalid(parameter: &str, detail: impl Into<String>) -> Error {
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
