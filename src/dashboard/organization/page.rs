//! The page of an organization.

use std::collections::BTreeMap;

use askama::Template;
use serde_json::Value;

use super::feed::Item;
use super::history::{self, Choice, History, Running};
use super::limits::{self, LimitRow};
use super::read::{api_path, page_path, settings};
use super::types::{Entry, Event, Meter, Settings, Usage};
use super::usage::Card;
use crate::dashboard::api::{Failed, List, encode, unless_away};
use crate::dashboard::chart::{Kind, Line};
use crate::dashboard::filters;
use crate::dashboard::form_view::{FormView, Refused, titled};
use crate::dashboard::format::{TimeText, time_text};
use crate::dashboard::frame::{Frame, Section};
use crate::dashboard::plan_names::plan_names;
use crate::dashboard::session::Viewer;

/// The most meters that are cards; the others are rows.
const CARDS_MAX: usize = 6;

/// How many events, and changes, are shown.
const FEED_MAX: usize = 6;

#[derive(Template)]
#[template(path = "organization.html")]
pub(super) struct Page {
    frame: Frame,
    id: String,
    settings: Settings,
    plans: BTreeMap<String, String>,
    now: TimeText,
    stale: Option<TimeText>,
    /// Whether Postgres is away, so that only what Redis has is shown.
    is_partial: bool,
    /// Since when the server is away that the page lacks; none if that was not observed yet.
    away_since: Option<TimeText>,
    cards: Vec<Card>,
    others: Vec<Card>,
    history: Option<History>,
    limits: Vec<LimitRow>,
    add: FormView,
    plan: FormView,
    adjust: FormView,
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

    fn plan_name(&self) -> &str {
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

    /// What an empty list says.
    fn without(&self, none: &'static str) -> &'static str {
        if self.is_partial {
            "Not known while Postgres is away."
        } else {
            none
        }
    }

    /// The form that was refused.
    fn refused(&self) -> Option<&FormView> {
        let others = [&self.add, &self.plan, &self.adjust];
        let rows = self.limits.iter().map(|row| &row.form);
        rows.chain(others).find(|form| form.is_refused())
    }
}

/// The form that moves to another plan.
fn plan_form(settings: &Settings, refused: Option<&Refused<'_>>) -> FormView {
    FormView::new("plan")
        .field("version", "", settings.version.to_string())
        .field("planId", "Move to another plan", settings.plan_id.clone())
        .or_refused(refused)
}

/// The form that corrects a count.
fn adjust_form(refused: Option<&Refused<'_>>) -> FormView {
    FormView::new("adjust")
        .idempotent()
        .field("meter", "Meter", "")
        .field("amount", "Units", "")
        .field("direction", "Direction", "back")
        .field("reason", "Reason", "")
        .or_refused(refused)
}

/// What the API says for the page.
struct Read {
    settings: Settings,
    usage: Usage,
    plans: BTreeMap<String, String>,
    /// None while Postgres is away.
    events: Option<Vec<Event>>,
    audit: Vec<Entry>,
}

async fn read(viewer: &Viewer, id: &str) -> Result<Read, Failed> {
    let (api, path, id) = (&viewer.api, api_path(id), encode(id));
    let usage = format!("{path}/usage?projected=true");
    let events = format!("/v1/events?organizationId={id}&pageSize={FEED_MAX}");
    let audit = format!("/v1/audit?organizationId={id}&pageSize={FEED_MAX}");
    let audit = async {
        // Only administrators may read it.
        if viewer.is_admin {
            unless_away(api.get::<List<Entry>>(&audit).await)
        } else {
            Ok(None)
        }
    };
    let (settings, usage, plans, events, audit) = futures::try_join!(
        settings(viewer, &path),
        api.get::<Usage>(&usage),
        async { unless_away(plan_names(viewer).await) },
        async { unless_away(api.get::<List<Event>>(&events).await) },
        audit,
    )?;
    Ok(Read {
        settings,
        usage,
        plans: plans.unwrap_or_default(),
        events: events.map(|events| events.data),
        audit: audit.map_or(Vec::new(), |audit| audit.data),
    })
}

/// Since when a server is away without which this was read.
async fn away_since(viewer: &Viewer, read: &Read) -> Option<TimeText> {
    let server = match (read.usage.exact, &read.events) {
        (false, _) => "redisAwaySince",
        (true, None) => "postgresAwaySince",
        (true, Some(_)) => return None,
    };
    let summary: Value = viewer.api.get("/v1/summary").await.ok()?;
    let since = serde_json::from_value(summary[server].clone()).ok()?;
    Some(time_text(since, viewer.look.now, chrono_tz::Tz::UTC))
}

/// The cards of all meters, fullest first.
fn cards(read: &Read, viewer: &Viewer) -> Vec<Card> {
    let (now, zone) = (viewer.look.now, read.settings.time_zone);
    let card = |(meter, counted): (&String, &Meter)| {
        let limit = read.settings.limits.get(meter);
        Card::new(meter, counted, limit, now, zone)
    };
    let mut cards: Vec<Card> = read.usage.meters.iter().map(card).collect();
    cards.sort_by(|one, other| {
        let fullest = other.fullness.cmp(&one.fullness);
        fullest.then(one.meter.cmp(&other.meter))
    });
    cards
}

/// Reads all that the page shows.
pub(super) async fn page(
    viewer: &Viewer,
    id: String,
    choice: Choice,
    refused: Option<&Refused<'_>>,
) -> Result<Page, Failed> {
    let now = viewer.look.now;
    // Boxed: keeps the futures of the forms, which show this page again, small.
    let read = Box::pin(read(viewer, &id)).await?;
    let zone = read.settings.time_zone;
    let mut cards = cards(&read, viewer);
    let fullest = cards
        .first()
        .map_or(String::new(), |card| card.meter.clone());
    let edit = choice.edit.clone();
    let is_known = read.usage.meters.contains_key(&choice.meter);
    let meter = if is_known {
        choice.meter.clone()
    } else {
        fullest
    };
    let running = read.usage.meters.get(&meter).map(|meter| Running {
        start: meter.period_start,
        end: meter.reset_date,
        limit: meter.limit,
    });
    let history = if let Some(running) = running.filter(|_| read.events.is_some()) {
        let choice = Choice { meter, ..choice };
        let (api, path) = (&viewer.api, api_path(&id));
        unless_away(history::read(api, &path, choice, Some(&running), (now, zone)).await)?
    } else {
        None
    };
    let others = cards.split_off(cards.len().min(CARDS_MAX));
    let title = read.settings.name().unwrap_or(&id);
    let title = titled(title, refused);
    let limits = limits::rows(&read.settings, &read.usage, now, &edit, refused);
    let adding = limits::of_added(&limits, refused);
    let snapshot_at = read.usage.snapshot_at.filter(|_| !read.usage.exact);
    let event = |event| Item::of_event(event, now, zone);
    let entry = |entry| Item::of_entry(entry, now, zone);
    Ok(Page {
        frame: viewer.frame(Section::Overview, title),
        now: time_text(now, now, chrono_tz::Tz::UTC),
        stale: snapshot_at.map(|at| time_text(at, now, zone)),
        is_partial: read.events.is_none(),
        away_since: Box::pin(away_since(viewer, &read)).await,
        events: read.events.iter().flatten().map(event).collect(),
        add: limits::add_form(read.settings.version, adding.as_ref().or(refused)),
        limits,
        plan: plan_form(&read.settings, refused),
        adjust: adjust_form(refused),
        trail: read.audit.iter().map(entry).collect(),
        id,
        settings: read.settings,
        plans: read.plans,
        cards,
        others,
        history,
    })
}
