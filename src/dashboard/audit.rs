//! The audit log.

use askama::Template;
use axum::Router;
use axum::extract::Query;
use axum::response::Response;
use axum::routing::get;
use chrono::{DateTime, Utc};
use chrono_tz::Tz;
use serde::Deserialize;
use serde_json::Value;

use super::api::{List, encode};
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
    /// The filters as a query, with this cursor.
    fn query(&self, cursor: &str, midnight: &str) -> String {
        let at = |date: &str| {
            if date.is_empty() {
                String::new()
            } else {
                format!("{date}{midnight}")
            }
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

    fn time_text(&self) -> TimeText {
        time_text(self.at, self.at, Tz::UTC)
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
    filters: Filters,
    entries: Vec<Entry>,
    next: Option<String>,
}

async fn show(viewer: Viewer, Query(filters): Query<Filters>) -> Result<Rendered<Page>, Response> {
    let query = filters.query(&filters.cursor, "T00:00:00Z");
    let listed: List<Entry> = viewer
        .api
        .get(&format!("/v1/audit?pageSize={PAGE_SIZE}&{query}"))
        .await
        .map_err(viewer.fail())?;
    let next = listed
        .next_cursor
        .map(|cursor| format!("/dashboard/audit?{}", filters.query(&cursor, "")));
    Ok(Rendered(Page {
        frame: viewer.frame(Section::Audit, "Audit"),
        filters,
        entries: listed.data,
        next,
    }))
}
