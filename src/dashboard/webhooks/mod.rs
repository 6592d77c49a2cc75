//! Webhooks and their deliveries.

mod types;

use askama::Template;
use axum::Router;
use axum::extract::{Path, Query};
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use serde::Deserialize;
use serde_json::{Value, json};

use super::api::{Failed, List, encode};
use super::filters;
use super::form::{Fields, Posted, see_other};
use super::format::sentence;
use super::frame::{Frame, Rendered, Section};
use super::session::Viewer;
use super::state::Dashboard;
use types::{Delivery, Webhook};

/// What a webhook can receive.
const EVENTS: [&str; 5] = [
    "usage.warning",
    "usage.limit_exceeded",
    "usage.reset",
    "limits.updated",
    "organization.deleted",
];

/// The routes of these pages.
pub(super) fn routes() -> Router<Dashboard> {
    Router::new()
        .route("/dashboard/webhooks", get(list).post(create))
        .route("/dashboard/webhooks/{id}", get(show).post(change))
        .route("/dashboard/webhooks/{id}/{action}", post(act))
        .route(
            "/dashboard/webhooks/{id}/deliveries/{delivery}",
            post(redeliver),
        )
}

/// A secret that is shown once.
type Shown = Option<(String, String)>;

#[derive(Template)]
#[template(path = "webhooks.html")]
struct ListPage {
    frame: Frame,
    webhooks: Vec<Webhook>,
    created: Shown,
    problem: Option<String>,
    events: [&'static str; 5],
    url: String,
}

async fn list(viewer: Viewer) -> Result<Rendered<ListPage>, Response> {
    list_page(&viewer, None, None, String::new())
        .await
        .map(Rendered)
        .map_err(viewer.fail())
}

async fn list_page(
    viewer: &Viewer,
    created: Shown,
    problem: Option<String>,
    url: String,
) -> Result<ListPage, Failed> {
    let webhooks: List<Webhook> = viewer.api.get("/v1/webhooks?pageSize=100").await?;
    let title = if problem.is_some() {
        "Error: Webhooks"
    } else {
        "Webhooks"
    };
    Ok(ListPage {
        frame: viewer.frame(Section::Webhooks, title),
        webhooks: webhooks.data,
        created,
        problem,
        events: EVENTS,
        url,
    })
}

/// The events and the organization of a form, as in the body of the API.
fn subscription(fields: &Fields) -> Value {
    let events = fields.all("events");
    json!({
        "url": fields.text("url"),
        "events": if events.is_empty() { Value::Null } else { json!(events) },
        "organizationId": fields.given("organizationId"),
    })
}

async fn create(Posted(viewer, fields): Posted) -> Response {
    let body = subscription(&fields);
    let sent = viewer
        .api
        .send(Method::POST, "/v1/webhooks", &[], Some(&body))
        .await;
    let (status, created, problem) = match sent {
        Ok(answer) => {
            let secret = answer.body["secret"]
                .as_str()
                .unwrap_or_default()
                .to_owned();
            (
                StatusCode::OK,
                Some((fields.text("url").to_owned(), secret)),
                None,
            )
        }
        Err(failed) if failed.is_refusal() => {
            (failed.status, None, Some(sentence(&failed.detail())))
        }
        Err(failed) => return viewer.fail()(failed),
    };
    let url = if problem.is_some() {
        fields.text("url").to_owned()
    } else {
        String::new()
    };
    match list_page(&viewer, created, problem, url).await {
        Ok(page) => (status, Rendered(page)).into_response(),
        Err(failed) => viewer.fail()(failed),
    }
}

#[derive(Template)]
#[template(path = "webhook.html")]
struct WebhookPage {
    frame: Frame,
    webhook: Webhook,
    deliveries: Vec<Delivery>,
    status: String,
    secret: Option<String>,
    problem: Option<String>,
    events: [&'static str; 5],
}

impl WebhookPage {
    fn receives(&self, event: &str) -> bool {
        self.webhook
            .events
            .as_ref()
            .is_some_and(|events| events.iter().any(|it| it == event))
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Filter {
    status: String,
}

fn api_path(id: &str) -> String {
    format!("/v1/webhooks/{}", encode(id))
}

async fn show(
    viewer: Viewer,
    Path(id): Path<String>,
    Query(filter): Query<Filter>,
) -> Result<Rendered<WebhookPage>, Response> {
    page(&viewer, &id, filter.status, None, None)
        .await
        .map(Rendered)
        .map_err(viewer.fail())
}

async fn page(
    viewer: &Viewer,
    id: &str,
    status: String,
    secret: Option<String>,
    problem: Option<String>,
) -> Result<WebhookPage, Failed> {
    let path = api_path(id);
    let filter = if status.is_empty() {
        String::new()
    } else {
        format!("&status={}", encode(&status))
    };
    let deliveries = format!("{path}/deliveries?pageSize=50{filter}");
    let (webhook, deliveries) = futures::try_join!(
        viewer.api.get::<Webhook>(&path),
        viewer.api.get::<List<Delivery>>(&deliveries)
    )?;
    Ok(WebhookPage {
        frame: viewer.frame(Section::Webhooks, format!("Webhook {}", webhook.url)),
        webhook,
        deliveries: deliveries.data,
        status,
        secret,
        problem,
        events: EVENTS,
    })
}

async fn change(Path(id): Path<String>, Posted(viewer, fields): Posted) -> Response {
    let body = subscription(&fields);
    match viewer
        .api
        .send(Method::PATCH, &api_path(&id), &[], Some(&body))
        .await
    {
        Ok(_) => see_other(
            &format!("/dashboard/webhooks/{}", encode(&id)),
            "The webhook is saved.",
        ),
        Err(failed) if failed.is_refusal() => {
            match page(
                &viewer,
                &id,
                String::new(),
                None,
                Some(sentence(&failed.detail())),
            )
            .await
            {
                Ok(page) => (failed.status, Rendered(page)).into_response(),
                Err(failed) => viewer.fail()(failed),
            }
        }
        Err(failed) => viewer.fail()(failed),
    }
}

/// Tests, enables, disables, rotates the secret, or deletes.
async fn act(Path((id, action)): Path<(String, String)>, Posted(viewer, _): Posted) -> Response {
    let (api, own) = (
        api_path(&id),
        format!("/dashboard/webhooks/{}", encode(&id)),
    );
    let empty = json!({});
    let (method, path, body, notice, to) = match action.as_str() {
        "test" => (
            Method::POST,
            format!("{api}/test"),
            Some(empty),
            "A test is sent.",
            own,
        ),
        "enable" => (
            Method::PATCH,
            api,
            Some(json!({"enabled": true})),
            "The webhook is enabled.",
            own,
        ),
        "disable" => (
            Method::PATCH,
            api,
            Some(json!({"enabled": false})),
            "The webhook is disabled.",
            own,
        ),
        "delete" => (
            Method::DELETE,
            api,
            None,
            "The webhook is deleted.",
            "/dashboard/webhooks".to_owned(),
        ),
        "rotate" => (
            Method::POST,
            format!("{api}/rotate-secret"),
            Some(empty),
            "",
            own,
        ),
        _ => return StatusCode::NOT_FOUND.into_response(),
    };
    match viewer.api.send(method, &path, &[], body.as_ref()).await {
        // The secret is in this response only, which no cache stores, so it is not a redirect.
        Ok(answer) if action == "rotate" => {
            let secret = answer.body["secret"].as_str().map(ToOwned::to_owned);
            match page(&viewer, &id, String::new(), secret, None).await {
                Ok(page) => Rendered(page).into_response(),
                Err(failed) => viewer.fail()(failed),
            }
        }
        Ok(_) => see_other(&to, notice),
        Err(failed) => viewer.fail()(failed),
    }
}

async fn redeliver(
    Path((id, delivery)): Path<(String, String)>,
    Posted(viewer, _): Posted,
) -> Response {
    let path = format!(
        "{}/deliveries/{}/redeliver",
        api_path(&id),
        encode(&delivery)
    );
    match viewer
        .api
        .send(Method::POST, &path, &[], Some(&json!({})))
        .await
    {
        Ok(_) => see_other(
            &format!("/dashboard/webhooks/{}", encode(&id)),
            "The event is sent again.",
        ),
        Err(failed) => viewer.fail()(failed),
    }
}
