//! Live figures: server-sent events for the overview and for an organization, in the form that the script expects: each
//! event is an object of texts by the `data-live` key of the element that shows them.
//!
//! A stream polls the API as its viewer. It ends when the service stops, and when the key is
//! revoked.

use std::convert::Infallible;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::Router;
use axum::extract::{Path, State as Shared};
use axum::http::StatusCode;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use futures::stream;
use serde_json::{Map, Value};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, sleep};

use super::api::{Failed, encode};
use super::format::{bar, number, percent};
use super::session::Viewer;
use super::state::Dashboard;

/// How often figures are sent.
const INTERVAL: Duration = Duration::from_secs(2);

/// How often a stream looks whether it must end.
const CHECK_INTERVAL: Duration = Duration::from_millis(250);

/// How long a browser waits before it connects again.
const RETRY: Duration = Duration::from_secs(5);

/// The routes of the streams.
pub(super) fn routes() -> Router<Dashboard> {
    Router::new()
        .route("/dashboard/live", get(overview))
        .route("/dashboard/organizations/{id}/live", get(organization))
}

async fn overview(Shared(dashboard): Shared<Dashboard>, viewer: Viewer) -> Response {
    stream(dashboard, viewer, None)
}

async fn organization(
    Shared(dashboard): Shared<Dashboard>,
    viewer: Viewer,
    Path(id): Path<String>,
) -> Response {
    stream(dashboard, viewer, Some(id))
}

/// An open stream.
struct Stream {
    dashboard: Dashboard,
    viewer: Viewer,
    organization: Option<String>,
    /// When the next figures are due.
    due: Instant,
    _place: OwnedSemaphorePermit,
}

fn stream(dashboard: Dashboard, viewer: Viewer, organization: Option<String>) -> Response {
    let Ok(place) = dashboard.streams.clone().try_acquire_owned() else {
        return (StatusCode::SERVICE_UNAVAILABLE, "too many pages are open").into_response();
    };
    let state = Stream {
        dashboard,
        viewer,
        organization,
        due: Instant::now(),
        _place: place,
    };
    let events = stream::unfold(state, |mut state| async move {
        let event = state.next().await?;
        Some((Ok::<_, Infallible>(event), state))
    });
    Sse::new(events)
        .keep_alive(KeepAlive::default())
        .into_response()
}

impl Stream {
    /// The next event; none at the end.
    async fn next(&mut self) -> Option<Event> {
        while Instant::now() < self.due {
            if self.dashboard.state.draining.load(Ordering::Acquire) {
                return None;
            }
            sleep(CHECK_INTERVAL.min(self.due - Instant::now())).await;
        }
        self.due = Instant::now() + INTERVAL;
        let auth = &self.dashboard.state.auth;
        auth.known(&self.viewer.key).await.ok()??;
        // Without figures the page says that it reconnects.
        let figures = self.figures().await.ok()?;
        Some(
            Event::default()
                .retry(RETRY)
                .data(Value::Object(figures).to_string()),
        )
    }

    async fn figures(&self) -> Result<Map<String, Value>, Failed> {
        let now = self.dashboard.state.ctx.clock.now();
        let mut figures = match &self.organization {
            None => summary(&self.viewer.api.get("/v1/summary").await?),
            Some(id) => {
                let path = format!("/v1/organizations/{}/usage", encode(id));
                usage(&self.viewer.api.get(&path).await?)
            }
        };
        figures.insert("at".to_owned(), now.format("%H:%M:%S").to_string().into());
        Ok(figures)
    }
}

fn summary(summary: &Value) -> Map<String, Value> {
    let organizations = &summary["organizations"];
    let count = |value: &Value| value.as_u64().unwrap_or(0);
    let state = |name: &str| count(&organizations["byState"][name]);
    let lag = summary["flushLagSeconds"].as_f64();
    let figures = [
        ("orgs", number(count(&organizations["total"]))),
        ("cpm", number(count(&summary["callsPerMinute"]))),
        ("warning", number(state("warning") + state("nearlyFull"))),
        (
            "exceeded",
            number(state("exceededSoft") + state("exceededHard")),
        ),
        (
            "lag",
            lag.map_or("unknown".to_owned(), |seconds| format!("{seconds:.1} s")),
        ),
    ];
    figures
        .into_iter()
        .map(|(name, text)| (name.to_owned(), text.into()))
        .collect()
}

fn usage(usage: &Value) -> Map<String, Value> {
    let meters = usage["meters"].as_object().into_iter().flatten();
    let mut figures = Map::new();
    for (meter, counted) in meters {
        let used = counted["current"].as_u64().unwrap_or(0);
        figures.insert(format!("{meter}.current"), number(used).into());
        if let Some(limit) = counted["limit"].as_u64().filter(|limit| *limit > 0) {
            figures.insert(format!("{meter}.pct"), percent(used, limit).into());
            figures.insert(format!("{meter}.bar"), bar(used, limit).width.into());
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
        let usage = usage(
            &json!({"meters": {"api": {"current": 1500, "limit": 2000}, "free": {"current": 3, "limit": null}}}),
        );
        let expected = json!({"api.current": "1,500", "api.pct": "75.00%", "api.bar": "75.00%", "free.current": "3"});
        assert_eq!(Value::Object(usage), expected);
    }
}
