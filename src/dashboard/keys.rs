//! API keys.

use askama::Template;
use axum::Router;
use axum::extract::Path;
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use chrono::{DateTime, Utc};
use chrono_tz::Tz;
use serde::Deserialize;
use serde_json::json;

use super::api::{Failed, List, encode};
use super::form::{Posted, see_other};
use super::format::{Mark, TimeText, sentence, time_text};
use super::frame::{Frame, Rendered, Section};
use super::session::Viewer;
use super::state::Dashboard;

/// What a key may be permitted, and what that means.
const SCOPES: [(&str, &str); 6] = [
    ("ingest", "Count: track, consume, check"),
    ("refund", "Give back"),
    ("read", "See usage, history, limits"),
    ("reset", "End periods that are due"),
    ("provision", "Create organizations"),
    ("admin", "Everything, this dashboard too"),
];

/// The routes of this page.
pub(super) fn routes() -> Router<Dashboard> {
    Router::new()
        .route("/dashboard/keys", get(show).post(create))
        .route("/dashboard/keys/{id}/revoke", post(revoke))
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Key {
    id: String,
    name: String,
    scopes: Vec<String>,
    organization_id: Option<String>,
    created_at: DateTime<Utc>,
    expires_at: Option<DateTime<Utc>>,
    last_used_at: Option<DateTime<Utc>>,
    revoked_at: Option<DateTime<Utc>>,
}

/// A key, as it is written.
struct Row {
    key: Key,
    mark: Mark,
    is_active: bool,
    created: TimeText,
    expires: Option<TimeText>,
    last_used: Option<TimeText>,
}

impl Row {
    fn new(key: Key, now: DateTime<Utc>) -> Self {
        let utc = |at| time_text(at, now, Tz::UTC);
        let (is_expired, is_revoked) = (
            key.expires_at.is_some_and(|at| at <= now),
            key.revoked_at.is_some(),
        );
        let (class, icon, label) = match (is_revoked, is_expired) {
            (true, _) => ("", "i-none", "Revoked"),
            (_, true) => ("", "i-clock", "Expired"),
            _ => ("ok", "i-ok", "Active"),
        };
        Self {
            mark: Mark { class, icon, label },
            is_active: !is_revoked && !is_expired,
            created: utc(key.created_at),
            expires: key.expires_at.map(utc),
            last_used: key.last_used_at.map(utc),
            key,
        }
    }

    fn scopes(&self) -> String {
        self.key.scopes.join(", ")
    }
}

#[derive(Template)]
#[template(path = "keys.html")]
struct Page {
    frame: Frame,
    rows: Vec<Row>,
    /// The name and the secret of a key that was just created.
    created: Option<(String, String)>,
    error: Option<String>,
    scopes: [(&'static str, &'static str); 6],
}

async fn show(viewer: Viewer) -> Result<Rendered<Page>, Response> {
    page(&viewer, None, None)
        .await
        .map(Rendered)
        .map_err(viewer.fail())
}

async fn page(
    viewer: &Viewer,
    created: Option<(String, String)>,
    error: Option<String>,
) -> Result<Page, Failed> {
    let keys: List<Key> = viewer.api.get("/v1/api-keys?pageSize=200").await?;
    let title = if error.is_some() {
        "Error: API keys"
    } else {
        "API keys"
    };
    Ok(Page {
        frame: viewer.frame(Section::Keys, title),
        rows: keys
            .data
            .into_iter()
            .map(|key| Row::new(key, viewer.look.now))
            .collect(),
        created,
        error,
        scopes: SCOPES,
    })
}

async fn create(Posted(viewer, fields): Posted) -> Response {
    let mut body = json!({"name": fields.text("name"), "scopes": fields.all("scopes")});
    if let Some(organization) = fields.given("organizationId") {
        body["organizationId"] = json!(organization);
    }
    if let Some(expires) = fields.given("expiresAt") {
        let seconds = if expires.len() == 16 { ":00Z" } else { "Z" };
        body["expiresAt"] = json!(format!("{expires}{seconds}"));
    }
    let sent = viewer
        .api
        .send(Method::POST, "/v1/api-keys", &[], Some(&body))
        .await;
    // The secret is in this response only, which no cache stores, so it is not a redirect.
    let (status, created, error) = match sent {
        Ok(answer) => {
            let text = |name: &str| answer.body[name].as_str().unwrap_or_default().to_owned();
            (
                StatusCode::OK,
                Some((fields.text("name").to_owned(), text("key"))),
                None,
            )
        }
        Err(failed) if failed.is_refusal() => {
            (failed.status, None, Some(sentence(&failed.detail())))
        }
        Err(failed) => return viewer.fail()(failed),
    };
    match page(&viewer, created, error).await {
        Ok(page) => (status, Rendered(page)).into_response(),
        Err(failed) => viewer.fail()(failed),
    }
}

async fn revoke(Path(id): Path<String>, Posted(viewer, _): Posted) -> Response {
    let path = format!("/v1/api-keys/{}", encode(&id));
    match viewer.api.send(Method::DELETE, &path, &[], None).await {
        Ok(_) => see_other(
            "/dashboard/keys",
            "The key is revoked. It stops everywhere within 5 seconds.",
        ),
        Err(failed) => viewer.fail()(failed),
    }
}
