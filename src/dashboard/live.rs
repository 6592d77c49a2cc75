//! Live figures of the overview and of an organization: the API's streams, whose events are passed on in the form that the
//! script expects: an object of texts by the `data-live` key of the element that shows them.
//!
//! So all viewers share the API's reader and its maximum of streams, and a stream ends when the API's does.

use std::time::Duration;

use axum::Router;
use axum::extract::{Path, State as Shared};
use axum::response::sse::{Event, Sse};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use futures::TryStreamExt as _;
use serde_json::{Map, Value};

use super::api::encode;
use super::format::{bar, number, percent};
use super::session::Viewer;
use super::state::Dashboard;

/// How long a browser waits before it connects again.
const RETRY: Duration = Duration::from_secs(5);

/// The state of figures that are live.
const LIVE: &str = "Live";

/// The routes of the streams.
pub(super) fn routes() -> Router<Dashboard> {
    Router::new()
        .route("/dashboard/live", get(overview))
        .route("/dashboard/organizations/{id}/live", get(organization))
}

async fn overview(dashboard: Shared<Dashboard>, viewer: Viewer) -> Response {
    stream(dashboard, &viewer, "/v1/live", summary).await
}

async fn organization(
    dashboard: Shared<Dashboard>,
    viewer: Viewer,
    Path(id): Path<String>,
) -> Response {
    let path = format!("/v1/organizations/{}/live", encode(&id));
    stream(dashboard, &viewer, &path, usage).await
}

/// The texts of an event's figures.
type Figures = fn(&Value) -> Map<String, Value>;

/// A stream of the API, as texts.
async fn stream(
    Shared(dashboard): Shared<Dashboard>,
    viewer: &Viewer,
    path: &str,
    figures: Figures,
) -> Response {
    let body = match viewer.api.open(path, "text/event-stream").await {
        Ok(body) => body,
        Err(failed) => return (failed.status, failed.detail()).into_response(),
    };
    let clock = dashboard.state.ctx.clock.clone();
    // Each frame of the API's body is one event.
    let events = body.into_data_stream().map_ok(move |frame| {
        let mut texts = texts(&String::from_utf8_lossy(&frame), figures);
        let at = clock.now().format("%H:%M:%S").to_string();
        texts.insert("at".to_owned(), at.into());
        let texts = Value::Object(texts).to_string();
        Event::default().retry(RETRY).data(texts)
    });
    ([("x-accel-buffering", "no")], Sse::new(events)).into_response()
}

/// The texts of an event. A comment has none; it says that what was sent before is still so.
fn texts(event: &str, figures: Figures) -> Map<String, Value> {
    let data = event.lines().find_map(|line| line.strip_prefix("data: "));
    let data = data.and_then(|data| serde_json::from_str(data).ok());
    data.as_ref().map(figures).unwrap_or_default()
}

fn summary(event: &Value) -> Map<String, Value> {
    let summary = &event["summary"];
    let organizations = &summary["organizations"];
    let count = |value: &Value| value.as_u64().unwrap_or(0);
    let state = |name: &str| count(&organizations["byState"][name]);
    let unknown = || "unknown".to_owned();
    let redis_away = summary["redisAwaySince"].as_str();
    let calls = number(count(&summary["callsPerMinute"]));
    let lag = summary["flushLagSeconds"].as_f64();
    let away = [
        ("Redis", redis_away),
        ("Postgres", summary["postgresAwaySince"].as_str()),
    ];
    let away: Vec<_> = away
        .into_iter()
        .filter_map(|(server, since)| since.map(|_| server))
        .collect();
    let figures = [
        (
            "state",
            if away.is_empty() {
                LIVE.to_owned()
            } else {
                format!("{} cannot be reached; reload for more", away.join(" and "))
            },
        ),
        ("orgs", number(count(&organizations["total"]))),
        ("cpm", redis_away.map_or(calls, |_| unknown())),
        ("warning", number(state("warning") + state("nearlyFull"))),
        (
            "exceeded",
            number(state("exceededSoft") + state("exceededHard")),
        ),
        (
            "lag",
            lag.map_or_else(unknown, |seconds| format!("{seconds:.1} s")),
        ),
    ];
    figures
        .into_iter()
        .map(|(name, text)| (name.to_owned(), text.into()))
        .collect()
}

/// The usage of the one organization of an event.
fn usage(event: &Value) -> Map<String, Value> {
    let mut figures = Map::new();
    for usage in event["organizations"]
        .as_object()
        .into_iter()
        .flat_map(Map::values)
    {
        let is_exact = usage["exact"].as_bool().unwrap_or_default();
        let state = if is_exact {
            LIVE
        } else {
            "Redis cannot be reached; counts as last stored"
        };
        figures.insert("state".to_owned(), state.into());
        for (meter, counted) in usage["meters"].as_object().into_iter().flatten() {
            let used = counted["current"].as_u64().unwrap_or(0);
            figures.insert(format!("{meter}.current"), number(used).into());
            if let Some(limit) = counted["limit"].as_u64().filter(|limit| *limit > 0) {
                figures.insert(format!("{meter}.pct"), percent(used, limit).into());
                figures.insert(format!("{meter}.bar"), bar(used, limit).width.into());
            }
        }
    }
    figures
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn figures_are_texts_by_the_key_of_their_element() {
        let meters =
            json!({"api": {"current": 1500, "limit": 2000}, "free": {"current": 3, "limit": null}});
        let event = |exact| {
            format!(
                "retry: 2000\ndata: {}\n\n",
                json!({"organizations": {"org_1": {"exact": exact, "meters": meters}}})
            )
        };
        let expected = json!({"state": "Live", "api.current": "1,500", "api.pct": "75.00%", "api.bar": "75.00%", "free.current": "3"});
        assert_eq!(Value::Object(texts(&event(true), usage)), expected);
        assert_ne!(texts(&event(false), usage)["state"], LIVE);
        assert!(texts(":\n\n", usage).is_empty());
    }

    #[test]
    fn the_state_names_the_servers_that_are_away() {
        let state = |redis: Option<&str>, postgres: Option<&str>| {
            let summary = json!({"redisAwaySince": redis, "postgresAwaySince": postgres, "callsPerMinute": 7});
            let texts = super::summary(&json!({"summary": summary}));
            [&texts["state"], &texts["cpm"]].map(|it| it.as_str().unwrap_or_default().to_owned())
        };
        let since = Some("2026-11-23T10:14:00Z");
        assert_eq!(state(None, None), ["Live", "7"]);
        assert_eq!(
            state(None, since),
            ["Postgres cannot be reached; reload for more", "7"]
        );
        assert_eq!(
            state(since, since),
            [
                "Redis and Postgres cannot be reached; reload for more",
                "unknown"
            ]
        );
    }
}
