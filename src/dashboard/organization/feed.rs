//! Events and changes, as sentences.

use chrono::{DateTime, Utc};
use chrono_tz::Tz;
use serde_json::Value;

use super::types::{Entry, Event};
use crate::dashboard::changes::changes;
use crate::dashboard::format::{TimeText, number, time_text};

/// A line of a feed.
pub(super) struct Item {
    pub(super) at: TimeText,
    pub(super) title: String,
    pub(super) detail: String,
}

impl Item {
    pub(super) fn of_event(event: &Event, now: DateTime<Utc>, zone: Tz) -> Self {
        let data = &event.data;
        let meter = data["meter"].as_str().unwrap_or_default();
        let count = |name: &str| number(data[name].as_u64().unwrap_or(0));
        let threshold = data["threshold"].as_u64().unwrap_or(0);
        let (title, detail) = match event.r#type.as_str() {
            "usage.warning" => (
                format!("{meter} reached {threshold}%"),
                format!("{} of {}", count("current"), count("limit")),
            ),
            "usage.limit_exceeded" => (
                format!("{meter} reached its limit"),
                format!("{} of {}", count("current"), count("limit")),
            ),
            "usage.reset" => (
                "A new period began".to_owned(),
                format!("{meter} ended at {}", count("previousCount")),
            ),
            "limits.updated" => ("Limits changed".to_owned(), limits(&data["limits"])),
            other => (other.to_owned(), String::new()),
        };
        let detail = [event.r#type.as_str(), detail.as_str()];
        let detail: Vec<&str> = detail.into_iter().filter(|it| !it.is_empty()).collect();
        Self {
            at: time_text(event.timestamp, now, zone),
            title,
            detail: detail.join(" · "),
        }
    }

    pub(super) fn of_entry(entry: &Entry, now: DateTime<Utc>, zone: Tz) -> Self {
        let actor = entry.actor_name.as_ref().unwrap_or(&entry.actor);
        let what = match entry.action.as_str() {
            "organization.put" if entry.before.is_null() => "Created",
            "organization.put" | "organization.patch" => "Settings changed",
            "limits.patch" => "Limits changed",
            "limits.end" => "Temporary limit ended",
            "usage.reset" => "Reset",
            "usage.adjust" => "Count adjusted",
            other => other,
        };
        Self {
            at: time_text(entry.at, now, zone),
            title: format!("{what} by {actor}"),
            detail: changes(&entry.before, &entry.after).join(", "),
        }
    }
}

fn limits(limits: &Value) -> String {
    let all = limits.as_object().into_iter().flatten();
    let text = |(meter, limit): (&String, &Value)| {
        let units = limit["limit"]
            .as_u64()
            .map_or("unlimited".to_owned(), number);
        format!("{meter} {units}")
    };
    all.map(text).collect::<Vec<_>>().join(", ")
}
