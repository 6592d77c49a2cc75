//! The page of an organization, and its forms.

mod feed;
mod forms;
mod history;
mod reset;
mod types;
mod usage;

use std::collections::BTreeMap;

use askama::Template;
use axum::Router;
use axum::extract::{Path, Query};
use axum::response::Response;
use axum::routing::{get, post};
use serde_json::Value;
use uuid::Uuid;

use super::api::{Api, Failed, encode};
use super::chart::{Kind, Line};
use super::filters;
use super::format::{TimeText, time_text};
use super::frame::{Frame, Rendered, Section};
use super::session::Viewer;
use super::state::Dashboard;
use feed::Item;
use forms::LimitRow;
use history::{Choice, History, Running};
use types::{Entry, Event, List, Settings, Usage};
use usage::Card;

/// The most meters that are cards; the others are rows.
const CARDS_MAX: usize = 6;

/// The routes of these pages.
pub(super) fn routes() -> Router<Dashboard> {
    let own = "/dashboard/organizations/{id}";
    Router::new()
        .route(own, get(show))
        .route(&format!("{own}/limits"), post(forms::limit))
        .route(&format!("{own}/plan"), post(forms::plan))
        .route(&format!("{own}/adjust"), post(forms::adjust))
        .route(&format!("{own}/reset"), get(reset::show).post(reset::reset))
}

/// The path of an organization in the API.
fn api_path(id: &str) -> String {
    format!("/v1/organizations/{}", encode(id))
}

/// The path of its page.
fn page_path(id: &str) -> String {
    format!("/dashboard/organizations/{}", encode(id))
}

/// A form that was not accepted.
#[derive(Debug, Default)]
struct Problem {
    /// The id of the field at fault; empty if it is none.
    field: String,
    detail: String,
    /// Whether somebody else has changed the organization meanwhile.
    is_conflict: bool,
    /// What was entered.
    entered: BTreeMap<String, String>,
}

#[derive(Template)]
#[template(path = "organization.html")]
struct Page {
    frame: Frame,
    id: String,
    settings: Settings,
    plans: BTreeMap<String, String>,
    now: TimeText,
    stale: Option<TimeText>,
    cards: Vec<Card>,
    others: Vec<Card>,
    history: Option<History>,
    limits: Vec<LimitRow>,
    edit: String,
    problem: Option<Problem>,
    idempotency_key: String,
    events: Vec<Item>,
    trail: Vec<Item>,
}

impl Page {
    fn name(&self) -> &str {
        self.settings.name().unwrap_or(&self.id)
    }

    fn path(&self) -> String {
        page_path(&self.id)
    }

    fn plan(&self) -> &str {
        self.plans
            .get(&self.settings.plan_id)
            .unwrap_or(&self.settings.plan_id)
    }

    fn features(&self) -> Vec<(String, String)> {
        let text = |value: &Value| match value {
            Value::Bool(true) => "On".to_owned(),
            Value::Bool(false) => "Off".to_owned(),
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        let all = self.settings.features.iter();
        all.map(|(name, value)| (name.clone(), text(value)))
            .collect()
    }

    fn meters(&self) -> impl Iterator<Item = &str> {
        self.cards
            .iter()
            .chain(&self.others)
            .map(|card| card.meter.as_str())
    }

    /// What was entered in a field before the form was refused.
    fn entered(&self, name: &str) -> &str {
        let entered = self
            .problem
            .as_ref()
            .and_then(|problem| problem.entered.get(name));
        entered.map_or("", String::as_str)
    }
}

async fn show(
    viewer: Viewer,
    Path(id): Path<String>,
    Query(choice): Query<Choice>,
) -> Result<Rendered<Page>, Response> {
    page(&viewer, id, choice, None)
        .await
        .map(Rendered)
        .map_err(viewer.fail())
}

/// Reads all that the page shows.
async fn page(
    viewer: &Viewer,
    id: String,
    choice: Choice,
    problem: Option<Problem>,
) -> Result<Page, Failed> {
    let (api, now, path) = (&viewer.api, viewer.look.now, api_path(&id));
    let usage = format!("{path}/usage?projected=true");
    let events = format!("/v1/events?organizationId={}&pageSize=6", encode(&id));
    let audit = format!("/v1/audit?organizationId={}&pageSize=6", encode(&id));
    let (settings, usage, plans, events, audit) = futures::try_join!(
        settings(viewer, &path),
        api.get::<Usage>(&usage),
        plans(api),
        api.get::<List<Event>>(&events),
        api.get::<List<Entry>>(&audit),
    )?;
    let zone = settings.time_zone;
    let mut cards: Vec<Card> = usage
        .meters
        .iter()
        .map(|(meter, counted)| Card::new(meter, counted, settings.limits.get(meter), now, zone))
        .collect();
    cards.sort_by(|one, other| {
        other
            .fullness
            .cmp(&one.fullness)
            .then(one.meter.cmp(&other.meter))
    });
    let choice = Choice {
        meter: if usage.meters.contains_key(&choice.meter) {
            choice.meter.clone()
        } else {
            cards
                .first()
                .map_or(String::new(), |card| card.meter.clone())
        },
        ..choice
    };
    let running = usage.meters.get(&choice.meter).map(|meter| Running {
        start: meter.period_start,
        end: meter.reset_date,
        limit: meter.limit,
    });
    let edit = choice.edit.clone();
    let history = if choice.meter.is_empty() {
        None
    } else {
        Some(history::read(api, &path, choice, running.as_ref(), (now, zone)).await?)
    };
    let others = cards.split_off(cards.len().min(CARDS_MAX));
    let title = settings.name().unwrap_or(&id).to_owned();
    let title = if problem.is_some() {
        format!("Error: {title}")
    } else {
        title
    };
    Ok(Page {
        frame: viewer.frame(Section::Overview, title),
        now: time_text(now, now, chrono_tz::Tz::UTC),
        stale: usage
            .snapshot_at
            .filter(|_| !usage.exact)
            .map(|at| time_text(at, now, zone)),
        limits: forms::rows(&settings, &usage, now),
        events: events
            .data
            .iter()
            .map(|event| Item::of_event(event, now, zone))
            .collect(),
        trail: audit
            .data
            .iter()
            .map(|entry| Item::of_entry(entry, now, zone))
            .collect(),
        idempotency_key: format!("dashboard-{}", Uuid::new_v4()),
        id,
        settings,
        plans,
        cards,
        others,
        history,
        edit,
        problem,
    })
}

/// The settings. A read key may not see all of them: it gets no zone and no metadata.
async fn settings(viewer: &Viewer, path: &str) -> Result<Settings, Failed> {
    if viewer.is_admin {
        return viewer.api.get(path).await;
    }
    let (usage, limits) = (format!("{path}/usage"), format!("{path}/limits"));
    let (mut seen, limits): (Value, Value) =
        futures::try_join!(viewer.api.get(&usage), viewer.api.get(&limits))?;
    for (name, value) in [
        ("limits", limits["limits"].clone()),
        ("version", limits["version"].clone()),
        ("timeZone", Value::from("UTC")),
        ("metadata", Value::Object(serde_json::Map::new())),
    ] {
        seen[name] = value;
    }
    serde_json::from_value(seen).map_err(Failed::internal)
}

/// The names of the plans by id.
async fn plans(api: &Api) -> Result<BTreeMap<String, String>, Failed> {
    #[derive(serde::Deserialize)]
    struct Plan {
        id: String,
        name: String,
    }
    let plans: List<Plan> = api.get("/v1/plans?pageSize=100").await?;
    Ok(plans
        .data
        .into_iter()
        .map(|plan| (plan.id, plan.name))
        .collect())
}
