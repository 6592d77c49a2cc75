//! What the API says, as far as the overview shows it.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::Deserialize;

use crate::dashboard::format::{number, spark};

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Summary {
    pub(super) at: DateTime<Utc>,
    pub(super) organizations: Organizations,
    pub(super) calls_per_minute: u64,
    pub(super) calls: Vec<Minute>,
    pub(super) flush_lag_seconds: Option<f64>,
    pub(super) last_snapshot_at: Option<DateTime<Utc>>,
    pub(super) redis_away_since: Option<DateTime<Utc>>,
    pub(super) postgres_away_since: Option<DateTime<Utc>>,
}

impl Summary {
    pub(super) fn exceeded(&self) -> u64 {
        let by_state = &self.organizations.by_state;
        by_state.exceeded_soft + by_state.exceeded_hard
    }

    pub(super) fn warning(&self) -> u64 {
        let by_state = &self.organizations.by_state;
        by_state.warning + by_state.nearly_full
    }

    pub(super) fn spark(&self) -> String {
        let calls: Vec<u64> = self.calls.iter().map(|minute| minute.calls).collect();
        spark(&calls, 26.0)
    }

    pub(super) fn calls_range(&self) -> String {
        let calls = || self.calls.iter().map(|minute| minute.calls);
        let (least, most) = (calls().min().unwrap_or(0), calls().max().unwrap_or(0));
        format!("{} to {}", number(least), number(most))
    }

    pub(super) fn lag(&self) -> String {
        let lag = self.flush_lag_seconds;
        lag.map_or("unknown".to_owned(), |seconds| format!("{seconds:.1} s"))
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Organizations {
    pub(super) total: u64,
    pub(super) new_this_week: u64,
    pub(super) by_state: ByState,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ByState {
    pub(super) warning: u64,
    pub(super) nearly_full: u64,
    pub(super) exceeded_soft: u64,
    pub(super) exceeded_hard: u64,
}

#[derive(Debug, Deserialize)]
pub(super) struct Minute {
    pub(super) calls: u64,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Listed {
    pub(super) organization_id: String,
    pub(super) name: Option<String>,
    pub(super) plan_id: String,
    pub(super) state: String,
    pub(super) current: u64,
    pub(super) period_over: bool,
    pub(super) stored_at: Option<DateTime<Utc>>,
    pub(super) fullest: Option<Meter>,
    pub(super) exhausted: Option<Exhausted>,
    #[serde(default)]
    pub(super) meters: BTreeMap<String, Meter>,
}

#[expect(clippy::struct_field_names, reason = "the names of the API")]
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Meter {
    #[serde(default)]
    pub(super) meter: String,
    pub(super) current: u64,
    pub(super) limit: Option<u64>,
    pub(super) remaining: Option<u64>,
    pub(super) enforcement: String,
    pub(super) reset_date: Option<DateTime<Utc>>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Exhausted {
    pub(super) meter: String,
    pub(super) full_at: DateTime<Utc>,
    pub(super) last_day: u64,
    pub(super) usual_day: Option<u64>,
    pub(super) times_usual: Option<f64>,
}
