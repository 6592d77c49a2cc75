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
use super::form_view::{FormView, Refused, titled};
use super::frame::{Frame, Rendered, Section, again};
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

/// The id of the form of a webhook.
const FORM: &str = "webhook";

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
    form: FormView,
    events: [&'static str; 5],
}

async fn list(viewer: Viewer) -> Result<Rendered<ListPage>, Response> {
    let page = list_page(&viewer, None, None).await;
    page.map(Rendered).map_err(viewer.fail())
}

async fn list_page(
    viewer: &Viewer,
    created: Shown,
    refused: Option<&Refused<'_>>,
) -> Result<ListPage, Failed> {
    let webhooks: List<Webhook> = viewer.api.get("/v1/webhooks?pageSize=100").await?;
    Ok(ListPage {
        frame: viewer.frame(Section::Webhooks, titled("Webhooks", refused)),
        webhooks: webhooks.data,
        created,
        form: form("", None, Vec::new()).or_refused(refused),
        events: EVENTS,
    })
}

/// The form of a webhook.
fn form(url: &str, organization: Option<&str>, events: Vec<String>) -> FormView {
    FormView::new(FORM)
        .field("url", "Send to", url)
        .field(
            "organizationId",
            "Only for the organization",
            organization.unwrap_or_default(),
        )
        .choices("events", "Events", events)
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
    match sent {
        // The secret is in this response only, which no cache stores, so it is not a redirect.
        Ok(answer) => {
            let secret = answer.body["secret"].as_str().unwrap_or_default();
            let created = Some((fields.text("url").to_owned(), secret.to_owned()));
            let page = list_page(&viewer, created, None).await;
            page.map(Rendered).map_err(viewer.fail()).into_response()
        }
        Err(failed) => {
            let refused = Refused::new(FORM, &fields, &failed);
            let page = list_page(&viewer, None, Some(&refused));
            again(&viewer.look, &failed, page).await
        }
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
    form: FormView,
    events: [&'static str; 5],
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
    let page = page(&viewer, &id, filter.status, None, None).await;
    page.map(Rendered).map_err(viewer.fail())
}

async fn page(
    viewer: &Viewer,
    id: &str,
    status: String,
    secret: Option<String>,
    refused: Option<&Refused<'_>>,
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
    let title = titled(&format!("Webhook {}", webhook.url), refused);
    let form = form(
        &webhook.url,
        webhook.organization_id.as_deref(),
        webhook.events.clone().unwrap_or_default(),
    );
    Ok(WebhookPage {
        frame: viewer.frame(Section::Webhooks, title),
        webhook,
        deliveries: deliveries.data,
        status,
        secret,
        form: form.or_refused(refused),
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
        Err(failed) => {
            let refused = Refused::new(FORM, &fields, &failed);
            let page = page(&viewer, &id, String::new(), None, Some(&refused));
            again(&viewer.look, &failed, page).await
        }
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
