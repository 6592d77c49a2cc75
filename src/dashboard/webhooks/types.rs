//! Webhooks and deliveries, as the API says.

use chrono::{DateTime, Utc};
use chrono_tz::Tz;
use serde::Deserialize;

use crate::dashboard::api::encode;
use crate::dashboard::format::{Mark, TimeText, time_text};

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Webhook {
    pub(super) id: String,
    pub(super) url: String,
    pub(super) events: Option<Vec<String>>,
    pub(super) organization_id: Option<String>,
    pub(super) enabled: bool,
    pub(super) disabled_reason: Option<String>,
    pub(super) disabled_at: Option<DateTime<Utc>>,
    pub(super) failing_since: Option<DateTime<Utc>>,
    pub(super) will_be_disabled_at: Option<DateTime<Utc>>,
    pub(super) last_success_at: Option<DateTime<Utc>>,
    pub(super) created_at: DateTime<Utc>,
}

impl Webhook {
    pub(super) fn mark(&self) -> Mark {
        let (class, icon, label) = match (self.enabled, self.failing_since) {
            (false, _) => ("over", "i-over", "Disabled"),
            (true, Some(_)) => ("warn", "i-warn", "Failing"),
            _ => ("ok", "i-ok", "Delivering"),
        };
        Mark { class, icon, label }
    }

    pub(super) fn events_text(&self) -> String {
        self.events
            .as_ref()
            .map_or("All".to_owned(), |events| events.join(", "))
    }

    pub(super) fn path(&self) -> String {
        format!("/dashboard/webhooks/{}", encode(&self.id))
    }

    /// What is wrong with it; none if nothing is.
    pub(super) fn trouble(&self) -> Option<String> {
        let utc = |at: DateTime<Utc>| time_text(at, at, Tz::UTC).absolute;
        if let Some(at) = self.disabled_at {
            let why = match self.disabled_reason.as_deref() {
                Some("asked") => "an administrator disabled it".to_owned(),
                Some(reason) => reason.to_owned(),
                None => "it failed".to_owned(),
            };
            return Some(format!("Disabled since {}: {why}", utc(at)));
        }
        let since = utc(self.failing_since?);
        let disabled = self.will_be_disabled_at.map(utc);
        let end = disabled.map_or(String::new(), |at| {
            format!("; it will be disabled at {at} unless a delivery succeeds before")
        });
        Some(format!("Nothing has arrived since {since}{end}"))
    }

    pub(super) fn created(&self) -> String {
        time_text(self.created_at, self.created_at, Tz::UTC).absolute
    }

    pub(super) fn last_success(&self) -> String {
        self.last_success_at
            .map_or("nothing has arrived yet".to_owned(), |at| {
                format!("last arrived {}", time_text(at, at, Tz::UTC).absolute)
            })
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Delivery {
    pub(super) id: String,
    pub(super) r#type: String,
    pub(super) timestamp: DateTime<Utc>,
    pub(super) status: String,
    pub(super) attempts: u64,
    pub(super) next_attempt_at: Option<DateTime<Utc>>,
    pub(super) response_status: Option<u64>,
    pub(super) latency_ms: Option<u64>,
    pub(super) response_body: Option<String>,
    pub(super) error: Option<String>,
}

impl Delivery {
    pub(super) fn at(&self) -> TimeText {
        time_text(self.timestamp, self.timestamp, Tz::UTC)
    }

    pub(super) fn mark(&self) -> Mark {
        let (class, icon, label) = match self.status.as_str() {
            "succeeded" => ("ok", "i-ok", "Succeeded"),
            "failed" => ("over", "i-over", "Failed"),
            _ => ("", "i-clock", "Pending"),
        };
        Mark { class, icon, label }
    }

    pub(super) fn answer(&self) -> String {
        match (self.response_status, &self.error) {
            (Some(status), _) => format!("{status} after {} ms", self.latency_ms.unwrap_or(0)),
            (None, Some(error)) => error.clone(),
            (None, None) => "–".to_owned(),
        }
    }

    pub(super) fn next(&self) -> Option<String> {
        self.next_attempt_at
            .map(|at| time_text(at, at, Tz::UTC).absolute)
    }
}
