//! API keys.

use askama::Template;
use axum::Router;
use axum::extract::Path;
use axum::http::Method;
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use chrono::{DateTime, Utc};
use chrono_tz::Tz;
use serde::Deserialize;
use serde_json::json;

use super::api::{Failed, List, encode};
use super::form::{Posted, see_other};
use super::form_view::{FormView, Refused, titled};
use super::format::{Mark, TimeText, time_text};
use super::frame::{Frame, Rendered, Section, again};
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
    form: FormView,
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
    refused: Option<&Refused<'_>>,
) -> Result<Page, Failed> {
    let keys: List<Key> = viewer.api.get("/v1/api-keys?pageSize=200").await?;
    let form = FormView::new("new-key")
        .field("name", "Name", "")
        .field("organizationId", "Only for the organization", "")
        .field("expiresAt", "Expires", "")
        .choices("scopes", "May", vec!["ingest".to_owned()]);
    Ok(Page {
        frame: viewer.frame(Section::Keys, titled("API keys", refused)),
        rows: keys
            .data
            .into_iter()
            .map(|key| Row::new(key, viewer.look.now))
            .collect(),
        created,
        form: form.or_refused(refused),
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
    match sent {
        // The secret is in this response only, which no cache stores, so it is not a redirect.
        Ok(answer) => {
            let secret = answer.body["key"].as_str().unwrap_or_default();
            let created = Some((fields.text("name").to_owned(), secret.to_owned()));
            let page = page(&viewer, created, None).await;
            page.map(Rendered).map_err(viewer.fail()).into_response()
        }
        Err(failed) => {
            let refused = Refused::new("new-key", &fields, &failed);
            again(&viewer.look, &failed, page(&viewer, None, Some(&refused))).await
        }
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
