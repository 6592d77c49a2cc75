//! `GET /v1/organizations/{id}/history` and `GET /v1/history`: one page as JSON, or the whole range as a stream of CSV or
//! newline-delimited JSON.

mod query;
mod request;
mod rows;

use std::collections::BTreeSet;

use axum::extract::State as Shared;
use axum::http::HeaderMap;
use axum::response::Response;

use crate::domain::ids::OrganizationId;
use crate::http::auth::{InOrganization, Read};
use crate::http::extract::Query;
use crate::http::openapi::problems::NeedsCounterStore;
use crate::http::path::Path;
use crate::http::problem::Error;
use crate::http::state::State;
use query::{OfAll, OfOrganization};
pub(in crate::http::routes) use request::check_range;
use request::{HistoryPage, Request, invalid};

/// The maximum number of organizations in one call.
const ORGANIZATIONS_MAX: usize = 100;

/// Get an organization's history
///
/// Rows by hour, day, week, month or period; `Accept: text/csv` or `application/x-ndjson` streams the whole range.
/// Hours follow the wall clock of the organization's time zone, so hours add up to days, and days to weeks and months.
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
            (String = "text/csv", example = "meter,start,end,used,total,refunded,adjusted,denied,limit,\
                planId,resetType,open,final\r\n\
                api,2026-11-22T00:00:00Z,2026-11-23T00:00:00Z,40,,2,0,1,,,,false,false\r\n"),
            (String = "application/x-ndjson", example = "{\"meter\":\"api\",\"start\":\"2026-11-22T00:00:00Z\",\
                \"end\":\"2026-11-23T00:00:00Z\",\"used\":40,\"total\":null,\"refunded\":2,\"adjusted\":0,\"denied\":1,\
                \"limit\":null,\"planId\":null,\"resetType\":null,\"open\":false,\"final\":false}\n"),
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
    request.respond(state, &caller, false).await
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
            (String = "text/csv", example = "organizationId,meter,start,end,used,total,refunded,adjusted,denied,limit,\
                planId,resetType,open,final\r\n\
                org_123,api,2026-11-22T00:00:00Z,2026-11-23T00:00:00Z,40,,2,0,1,,,,false,false\r\n"),
            (String = "application/x-ndjson", example = "{\"organizationId\":\"org_123\",\"meter\":\"api\",\"start\":\"2026-11-22T00:00:00Z\",\
                \"end\":\"2026-11-23T00:00:00Z\",\"used\":40,\"total\":null,\"refunded\":2,\"adjusted\":0,\"denied\":1,\
                \"limit\":null,\"planId\":null,\"resetType\":null,\"open\":false,\"final\":false}\n"),
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
        limits,
        totals,
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
        limits,
        totals,
        order,
        time_zone,
        page_size,
        cursor,
    };
    Request::new(&state.history, named, query, &headers)?
        .respond(state, &caller, true)
        .await
}
