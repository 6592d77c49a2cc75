//! The page that says what a reset will do, and the reset.

use std::collections::BTreeMap;

use askama::Template;
use axum::extract::Path;
use axum::http::Method;
use axum::response::Response;
use chrono::{DateTime, Utc};
use serde::Deserialize;
use serde_json::json;

use super::read::{api_path, page_path, settings};
use super::types::{Settings, Usage};
use crate::dashboard::api::Failed;
use crate::dashboard::filters;
use crate::dashboard::form::{Fields, Posted, see_other};
use crate::dashboard::form_view::{FormView, Refused, idempotency_key, titled};
use crate::dashboard::format::{TimeText, number, time_text};
use crate::dashboard::frame::{Frame, Rendered, Section, again};
use crate::dashboard::session::Viewer;

/// A meter that can be reset.
struct Row {
    meter: String,
    used: u64,
    limit: String,
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
    form: FormView,
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
    let page = page(&viewer, id, None).await;
    page.map(Rendered).map_err(viewer.fail())
}

async fn page(viewer: &Viewer, id: String, refused: Option<&Refused<'_>>) -> Result<Page, Failed> {
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
    let rows: Vec<Row> = dry_run
        .meters
        .keys()
        .filter_map(|meter| {
            let counted = usage.meters.get(meter)?;
            Some(Row {
                meter: meter.clone(),
                used: counted.current,
                limit: counted.limit.map_or("no limit".to_owned(), number),
            })
        })
        .collect();
    let counted = rows.iter().filter(|row| row.used > 0);
    let counted = counted.map(|row| row.meter.clone()).collect();
    let form = FormView::new("reset")
        .idempotent()
        .choices("meters", "Meters to reset", counted)
        .field("reason", "Reason", "");
    let name = settings.name().unwrap_or(&id).to_owned();
    Ok(Page {
        frame: viewer.frame(
            Section::Overview,
            titled(&format!("Reset {name}?"), refused),
        ),
        rows,
        since: first.map(|it| time_text(it.previous_period_start, now, zone)),
        resets: first
            .and_then(|it| it.reset_date)
            .map(|at| time_text(at, now, zone)),
        deliveries: dry_run.dry_run.webhook_deliveries,
        form: form.or_refused(refused),
        id,
        name,
    })
}

/// `POST …/reset`.
pub(super) async fn reset(Path(id): Path<String>, Posted(viewer, fields): Posted) -> Response {
    match send(&viewer, &id, &fields).await {
        Ok(()) => {
            let meters = fields.all("meters").join(", ");
            see_other(&page_path(&id), &format!("{meters} starts again at 0."))
        }
        Err(failed) => {
            let refused = Refused::new("reset", &fields, &failed);
            again(&viewer.look, &failed, page(&viewer, id, Some(&refused))).await
        }
    }
}

async fn send(viewer: &Viewer, id: &str, fields: &Fields) -> Result<(), Failed> {
    let meters = fields.all("meters");
    if meters.is_empty() {
        return Err(Failed::invalid("/meters", "choose at least one"));
    }
    let mut body = json!({ "meters": meters });
    if let Some(reason) = fields.given("reason") {
        body["reason"] = json!(reason);
    }
    let path = format!("{}/reset", api_path(id));
    let key = idempotency_key(fields);
    let api = &viewer.api;
    api.send(Method::POST, &path, &key, Some(&body)).await?;
    Ok(())
}
