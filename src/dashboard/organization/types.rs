//! What the API says of an organization.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use chrono_tz::Tz;
use serde::Deserialize;
use serde_json::Value;

/// `GET /v1/organizations/{id}`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Settings {
    pub(super) plan_id: String,
    pub(super) features: BTreeMap<String, Value>,
    pub(super) reset_mode: String,
    pub(super) reset_period: String,
    pub(super) time_zone: Tz,
    pub(super) metadata: BTreeMap<String, Value>,
    pub(super) limits: BTreeMap<String, Limit>,
    pub(super) version: u64,
}

impl Settings {
    /// The display name; none if it is the id or missing.
    pub(super) fn name(&self) -> Option<&str> {
        self.metadata
            .get("name")?
            .as_str()
            .filter(|name| !name.is_empty())
    }
}

/// An effective limit.
#[expect(clippy::struct_field_names, reason = "the names of the API")]
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Limit {
    pub(super) limit: Option<u64>,
    pub(super) enforcement: String,
    #[serde(default)]
    pub(super) warn_at: Vec<u64>,
    pub(super) source: String,
    pub(super) until: Option<DateTime<Utc>>,
}

/// `GET /v1/organizations/{id}/usage`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Usage {
    pub(super) meters: BTreeMap<String, Meter>,
    pub(super) exact: bool,
    pub(super) snapshot_at: Option<DateTime<Utc>>,
}

/// A meter in its running period.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Meter {
    pub(super) current: u64,
    pub(super) limit: Option<u64>,
    pub(super) remaining: Option<u64>,
    pub(super) overage: u64,
    pub(super) enforcement: String,
    pub(super) period_start: DateTime<Utc>,
    pub(super) reset_date: Option<DateTime<Utc>>,
    #[serde(default)]
    pub(super) denied: u64,
    pub(super) projected: Option<Projected>,
}

/// What is expected of a meter.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Projected {
    pub(super) used: Option<u64>,
    pub(super) full_at: Option<DateTime<Utc>>,
}

/// A row of history.
#[derive(Debug, Deserialize)]
pub(super) struct Slot {
    pub(super) start: DateTime<Utc>,
    pub(super) end: Option<DateTime<Utc>>,
    pub(super) used: i64,
    pub(super) total: Option<i64>,
    pub(super) adjusted: i64,
    pub(super) denied: u64,
    pub(super) open: bool,
}

/// An event.
#[derive(Debug, Deserialize)]
pub(super) struct Event {
    pub(super) r#type: String,
    pub(super) timestamp: DateTime<Utc>,
    pub(super) data: Value,
}

/// An entry of the audit log.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Entry {
    pub(super) at: DateTime<Utc>,
    pub(super) actor: String,
    pub(super) actor_name: Option<String>,
    pub(super) action: String,
    pub(super) before: Value,
    pub(super) after: Value,
}
