//! The audit log.

use askama::Template;
use axum::Router;
use axum::extract::Query;
use axum::response::Response;
use axum::routing::get;
use chrono::{DateTime, NaiveDate, NaiveTime, TimeZone as _, Utc};
use chrono_tz::Tz;
use serde::Deserialize;
use serde_json::Value;

use super::api::{Failed, List, encode};
use super::changes::changes;
use super::format::{TimeText, time_text};
use super::frame::{Frame, Rendered, Section};
use super::session::Viewer;
use super::state::Dashboard;

/// How many entries a page has.
const PAGE_SIZE: usize = 50;

/// The route of this page.
pub(super) fn routes() -> Router<Dashboard> {
    Router::new().route("/dashboard/audit", get(show))
}

/// The filters of the list.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Filters {
    organization_id: String,
    actor: String,
    action: String,
    from: String,
    to: String,
    cursor: String,
}

impl Filters {
    /// The filters as a query, with this cursor. With a zone, days are the instants at which they begin in it.
    fn query(&self, cursor: &str, zone: Option<Tz>) -> String {
        let at = |date: &str| {
            let day: Option<NaiveDate> = date.parse().ok();
            let midnight = day.and_then(|day| Some(day.and_time(NaiveTime::MIN)).zip(zone));
            let begins = midnight.and_then(|(at, zone)| zone.from_local_datetime(&at).earliest());
            begins.map_or_else(|| date.to_owned(), |at| at.to_utc().to_rfc3339())
        };
        let pairs = [
            ("organizationId", self.organization_id.clone()),
            ("actor", self.actor.clone()),
            ("action", self.action.clone()),
            ("from", at(&self.from)),
            ("to", at(&self.to)),
            ("cursor", cursor.to_owned()),
        ];
        let given = pairs.iter().filter(|(_, value)| !value.is_empty());
        let given: Vec<String> = given
            .map(|(name, value)| format!("{name}={}", encode(value)))
            .collect();
        given.join("&")
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    at: DateTime<Utc>,
    actor: String,
    actor_name: Option<String>,
    action: String,
    organization_id: Option<String>,
    before: Value,
    after: Value,
    request_id: Option<String>,
}

impl Entry {
    fn changes(&self) -> String {
        changes(&self.before, &self.after).join(", ")
    }

    fn time_text(&self, zone: Tz) -> TimeText {
        time_text(self.at, self.at, zone)
    }

    fn path(&self) -> String {
        let id = self.organization_id.as_deref().unwrap_or_default();
        format!("/dashboard/organizations/{}", encode(id))
    }

    /// The whole entry, for the curious.
    fn whole(&self) -> String {
        let whole = serde_json::json!({"actor": self.actor, "requestId": self.request_id, "before": self.before, "after": self.after});
        serde_json::to_string_pretty(&whole).unwrap_or_default()
    }
}

#[derive(Template)]
#[template(path = "audit.html")]
struct Page {
    frame: Frame,
    zone: Tz,
    filters: Filters,
    entries: Vec<Entry>,
    next: Option<String>,
}

/// The zone of the organization whose changes are listed; UTC for all, and if it does not exist any more.
async fn zone(viewer: &Viewer, organization: &str) -> Tz {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Zoned {
        time_zone: Tz,
    }
    if organization.is_empty() {
        return Tz::UTC;
    }
    let path = format!("/v1/organizations/{}", encode(organization));
    let read: Result<Zoned, Failed> = viewer.api.get(&path).await;
    read.map_or(Tz::UTC, |it| it.time_zone)
}

async fn show(viewer: Viewer, Query(filters): Query<Filters>) -> Result<Rendered<Page>, Response> {
    let zone = zone(&viewer, &filters.organization_id).await;
    let query = filters.query(&filters.cursor, Some(zone));
    let listed: List<Entry> = viewer
        .api
        .get(&format!("/v1/audit?pageSize={PAGE_SIZE}&{query}"))
        .await
        .map_err(viewer.fail())?;
    let next = listed
        .next_cursor
        .map(|cursor| format!("/dashboard/audit?{}", filters.query(&cursor, None)));
    Ok(Rendered(Page {
        frame: viewer.frame(Section::Audit, "Audit"),
        zone,
        filters,
        entries: listed.data,
        next,
    }))
}
