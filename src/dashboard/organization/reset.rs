//! The page that says what a reset will do, and the reset.

use std::collections::BTreeMap;

use askama::Template;
use axum::extract::Path;
use axum::http::Method;
use axum::response::Response;
use chrono::{DateTime, Utc};
use serde::Deserialize;
use serde_json::json;
use uuid::Uuid;

use super::read::{api_path, page_path, settings};
use super::types::{Settings, Usage};
use crate::dashboard::api::Failed;
use crate::dashboard::filters;
use crate::dashboard::form::{Posted, see_other};
use crate::dashboard::format::{TimeText, number, time_text};
use crate::dashboard::frame::{Frame, Rendered, Section};
use crate::dashboard::session::Viewer;

/// A meter that can be reset.
struct Row {
    meter: String,
    used: u64,
    limit: String,
    checked: bool,
}

/// The response of a dry run.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct DryRun {
    meters: BTreeMap<String, Ended>,
    dry_run: Effects,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Ended {
    previous_period_start: DateTime<Utc>,
    reset_date: Option<DateTime<Utc>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Effects {
    webhook_deliveries: u64,
}

#[derive(Template)]
#[template(path = "reset.html")]
pub(super) struct Page {
    frame: Frame,
    id: String,
    name: String,
    rows: Vec<Row>,
    since: Option<TimeText>,
    resets: Option<TimeText>,
    deliveries: u64,
    idempotency_key: String,
}

impl Page {
    fn path(&self) -> String {
        page_path(&self.id)
    }
}

/// `GET …/reset`.
pub(super) async fn show(
    viewer: Viewer,
    Path(id): Path<String>,
) -> Result<Rendered<Page>, Response> {
    page(&viewer, id).await.map(Rendered).map_err(viewer.fail())
}

async fn page(viewer: &Viewer, id: String) -> Result<Page, Failed> {
    let (api, path, now) = (&viewer.api, api_path(&id), viewer.look.now);
    let usage_path = format!("{path}/usage");
    let dry_run_path = format!("{path}/reset?dryRun=true");
    let body = json!({});
    let (settings, usage, dry_run): (Settings, Usage, _) = futures::try_join!(
        settings(viewer, &path),
        api.get(&usage_path),
        api.send(Method::POST, &dry_run_path, &[], Some(&body)),
    )?;
    let dry_run: DryRun = serde_json::from_value(dry_run.body).map_err(Failed::internal)?;
    let zone = settings.time_zone;
    let first = dry_run.meters.values().next();
    let rows = dry_run.meters.keys().filter_map(|meter| {
        let counted = usage.meters.get(meter)?;
        Some(Row {
            meter: meter.clone(),
            used: counted.current,
            limit: counted.limit.map_or("no limit".to_owned(), number),
            checked: counted.current > 0,
        })
    });
    let name = settings.name().unwrap_or(&id).to_owned();
    Ok(Page {
        frame: viewer.frame(Section::Overview, format!("Reset {name}?")),
        rows: rows.collect(),
        since: first.map(|it| time_text(it.previous_period_start, now, zone)),
        resets: first
            .and_then(|it| it.reset_date)
            .map(|at| time_text(at, now, zone)),
        deliveries: dry_run.dry_run.webhook_deliveries,
        idempotency_key: format!("dashboard-{}", Uuid::new_v4()),
        id,
        name,
    })
}

/// `POST …/reset`.
pub(super) async fn reset(Path(id): Path<String>, Posted(viewer, fields): Posted) -> Response {
    let meters = fields.all("meters");
    if meters.is_empty() {
        return see_other(
            &format!("{}/reset", page_path(&id)),
            "Nothing was reset: no meter was chosen.",
        );
    }
    let mut body = json!({ "meters": meters });
    if let Some(reason) = fields.given("reason") {
        body["reason"] = json!(reason);
    }
    let path = format!("{}/reset", api_path(&id));
    let key = [("idempotency-key", fields.text("idempotencyKey"))];
    match viewer
        .api
        .send(Method::POST, &path, &key, Some(&body))
        .await
    {
        Ok(_) => see_other(
            &page_path(&id),
            &format!("{} starts again at 0.", meters.join(", ")),
        ),
        Err(failed) => viewer.fail()(failed),
    }
}
