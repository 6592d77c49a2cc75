//! `/embed/{token}`: a card of usage in a frame of another page, without a session.

use std::collections::BTreeMap;

use askama::Template;
use axum::Router;
use axum::extract::{Path, Request, State as Shared};
use axum::http::StatusCode;
use axum::http::header::CONTENT_SECURITY_POLICY;
use axum::response::{Html, IntoResponse as _, Response};
use axum::routing::get;
use chrono::{DateTime, Utc};
use chrono_tz::Tz;
use serde::Deserialize;

use super::api::{Api, Failed, encode};
use super::format::{Bar, Mark, TimeText, bar, has_warned, mark, number, percent, time_text};
use super::frame::Frame;
use super::look::Look;
use super::state::Dashboard;
use crate::auth::EmbedLink;
use crate::config::Origins;
use crate::http::LocalCaller;

const EXPIRED: &str = "This link has expired. Reload the page to see your usage.";
const AWAY: &str = "Your usage cannot be read right now. Reload the page in a moment.";

/// The route of this page.
pub(super) fn routes() -> Router<Dashboard> {
    Router::new().route("/embed/{token}", get(show))
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Usage {
    time_zone: Tz,
    meters: BTreeMap<String, Meter>,
    snapshot_at: Option<DateTime<Utc>>,
    exact: bool,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Meter {
    current: u64,
    limit: Option<u64>,
    remaining: Option<u64>,
    overage: u64,
    enforcement: String,
    reset_date: Option<DateTime<Utc>>,
    label: Option<String>,
    unit: Option<String>,
    projected: Option<Projected>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Projected {
    full_at: Option<DateTime<Utc>>,
}

#[derive(Debug, Deserialize)]
struct Limits {
    limits: BTreeMap<String, Limit>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Limit {
    #[serde(default)]
    warn_at: Vec<u64>,
}

/// A meter, as it is written.
struct Row {
    id: String,
    label: String,
    mark: Mark,
    bar: Option<Bar>,
    used: String,
    percent: String,
    fact: Option<String>,
}

impl Row {
    fn new(
        id: &str,
        meter: &Meter,
        limit: Option<&Limit>,
        (now, zone): (DateTime<Utc>, Tz),
    ) -> Self {
        let is_hard = meter.enforcement == "hard";
        let warn_at = limit.and_then(|limit| limit.warn_at.first().copied());
        let warns = has_warned(meter.current, meter.limit, warn_at);
        let limited = meter.limit.filter(|limit| *limit > 0);
        let unit = meter
            .unit
            .as_deref()
            .map_or(String::new(), |unit| format!(" {unit}"));
        let used = number(meter.current);
        Self {
            id: id.to_owned(),
            label: meter.label.clone().unwrap_or_else(|| id.to_owned()),
            mark: mark(meter.current, meter.limit, is_hard, warns),
            bar: limited.map(|limit| bar(meter.current, limit)),
            used: match meter.limit {
                Some(limit) => format!("{used} of {}{unit}", number(limit)),
                None => format!("{used}{unit}"),
            },
            percent: limited.map_or(String::new(), |limit| percent(meter.current, limit)),
            fact: fact(meter, now, zone),
        }
    }
}

/// What follows from the count.
fn fact(meter: &Meter, now: DateTime<Utc>, zone: Tz) -> Option<String> {
    if meter.overage > 0 {
        let overage = number(meter.overage);
        return Some(format!("{overage} more than included, counted as overage"));
    }
    let full_at = meter.projected.as_ref()?.full_at?;
    let left = number(meter.remaining?);
    let until = time_text(full_at, now, zone).absolute;
    Some(format!("{left} left. At this pace they last until {until}"))
}

#[derive(Template)]
#[template(path = "embed.html")]
struct Page {
    frame: Frame,
    message: Option<&'static str>,
    resets: Option<TimeText>,
    meters: Vec<Row>,
    is_exact: bool,
    /// While these are the last snapshots, when the newest was stored.
    snapshot: Option<TimeText>,
}

async fn show(
    Shared(dashboard): Shared<Dashboard>,
    Path(token): Path<String>,
    request: Request,
) -> Response {
    let (parts, _) = request.into_parts();
    let (auth, now) = (&dashboard.state.auth, dashboard.state.ctx.clock.now());
    let look = Look::new(&parts.headers, now);
    let mut page = Page {
        frame: Frame::outside(&look, "Usage"),
        message: None,
        resets: None,
        meters: Vec::new(),
        is_exact: true,
        snapshot: None,
    };
    let status = match auth.embed_link(&token, now) {
        None => Err((StatusCode::NOT_FOUND, EXPIRED)),
        Some(link) => {
            page.frame.theme = link.theme.map(Into::into);
            // The key may have been revoked since.
            match auth.known(&link.key).await {
                Ok(Some(key)) => match LocalCaller::new(key, &parts) {
                    Some(caller) => fill(
                        &mut page,
                        &link,
                        &Api::new(dashboard.api.clone(), caller),
                        now,
                    )
                    .await
                    .map_err(|failed| message(failed.status)),
                    None => Err((StatusCode::INTERNAL_SERVER_ERROR, AWAY)),
                },
                Ok(None) => Err((StatusCode::NOT_FOUND, EXPIRED)),
                Err(_) => Err((StatusCode::SERVICE_UNAVAILABLE, AWAY)),
            }
        }
    };
    let status = match status {
        Ok(()) => StatusCode::OK,
        Err((status, message)) => {
            page.message = Some(message);
            status
        }
    };
    let policy = policy(&dashboard.state.embed_origins);
    match page.render() {
        Ok(text) => (status, [(CONTENT_SECURITY_POLICY, policy)], Html(text)).into_response(),
        Err(error) => Failed::internal(error).status.into_response(),
    }
}

async fn fill(
    page: &mut Page,
    link: &EmbedLink,
    api: &Api,
    now: DateTime<Utc>,
) -> Result<(), Failed> {
    let path = format!("/v1/organizations/{}", encode(link.organization.as_str()));
    let (usage_path, limits_path) = (
        format!("{path}/usage?projected=true"),
        format!("{path}/limits"),
    );
    let (usage, limits) = futures::try_join!(
        api.get::<Usage>(&usage_path),
        api.get::<Limits>(&limits_path)
    )?;
    let is_shown =
        |id: &str| link.meters.is_empty() || link.meters.iter().any(|it| it.as_str() == id);
    let shown: Vec<_> = usage.meters.iter().filter(|(id, _)| is_shown(id)).collect();
    let zone = usage.time_zone;
    page.is_exact = usage.exact;
    page.snapshot = usage.snapshot_at.map(|at| time_text(at, now, zone));
    page.resets = shown
        .iter()
        .filter_map(|(_, meter)| meter.reset_date)
        .min()
        .map(|at| time_text(at, now, zone));
    page.meters = shown
        .into_iter()
        .map(|(id, meter)| Row::new(id, meter, limits.limits.get(id), (now, zone)))
        .collect();
    Ok(())
}

/// The status and the message for a failed read. A key that has lost its permission is reported as an expired link.
fn message(status: StatusCode) -> (StatusCode, &'static str) {
    if status.is_client_error() {
        (StatusCode::NOT_FOUND, EXPIRED)
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, AWAY)
    }
}

/// Only these origins may frame the card.
fn policy(origins: &Origins) -> String {
    let ancestors = match origins {
        Origins::Any => "*".to_owned(),
        Origins::Only(origins) if origins.is_empty() => "'none'".to_owned(),
        Origins::Only(origins) => origins.join(" "),
    };
    format!(
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; form-action 'none'; base-uri 'none'; \
         frame-ancestors {ancestors}"
    )
}
