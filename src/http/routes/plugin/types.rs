//! Requests and responses in the plugin's format.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::domain::feature::{Feature, Features};
use crate::domain::history::Granularity;
use crate::domain::ids::{MeterId, OrganizationId, PlanId};
use crate::domain::input::{double_option, integer, not_null};
use crate::domain::limit::{Enforcement, Limit};
use crate::domain::period::{ResetMode, ResetPeriod};
use crate::domain::quantity::Count;
use crate::http::auth::OrganizationParam;
use crate::http::extract::instant;

/// Whose usage to return.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(in crate::http) struct UsageQuery {
    /// The organization; by default that of the JWT.
    #[param(value_type = Option<OrganizationId>)]
    pub(super) organization_id: Option<OrganizationParam>,
}

/// Whose history to return, and how many entries.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(in crate::http) struct HistoryQuery {
    /// The organization; by default that of the JWT.
    #[param(value_type = Option<OrganizationId>)]
    pub(super) organization_id: Option<OrganizationParam>,
    /// The maximum number of entries.
    #[serde(default)]
    #[param(value_type = u16, required = false, minimum = 1, maximum = 1000, default = 30)]
    pub(super) limit: HistoryLimit,
    /// How much time an entry covers; `period` by default.
    #[param(inline)]
    pub(super) granularity: Option<Granularity>,
    /// Entries that start at this instant or later. Without it, the last 24 hours, 31 days, or all periods.
    #[serde(default, deserialize_with = "instant")]
    pub(super) from: Option<DateTime<Utc>>,
    /// Entries that start before this instant.
    #[serde(default, deserialize_with = "instant")]
    pub(super) to: Option<DateTime<Utc>>,
}

/// The maximum number of entries: 1 to 1000, by default 30.
#[derive(Debug, Clone, Copy)]
pub(super) struct HistoryLimit(pub(super) u16);

impl Default for HistoryLimit {
    fn default() -> Self {
        Self(30)
    }
}

impl<'de> Deserialize<'de> for HistoryLimit {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let limit = integer(deserializer, 1..=1000, "an integer from 1 to 1000")?;
        Ok(Self(u16::try_from(limit).unwrap_or_default()))
    }
}

/// The usage of an organization.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(example = json!({
    "api": {"current": 5, "limit": 1000, "resetDate": "2026-12-01T00:00:00Z"},
    "features": {"sso": true}, "planId": "free", "resetMode": "lazy", "resetPeriod": "monthly"
}))]
pub(in crate::http) struct PluginUsage {
    pub(super) api: PluginMeter,
    /// Null if there are none.
    #[schema(value_type = Option<BTreeMap<String, Feature>>, required)]
    pub(super) features: Option<Features>,
    pub(super) plan_id: PlanId,
    pub(super) reset_mode: ResetMode,
    pub(super) reset_period: ResetPeriod,
}

/// The meter `api` in its running period.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct PluginMeter {
    pub(super) current: Count,
    /// Null if unlimited.
    #[schema(required)]
    pub(super) limit: Option<Count>,
    /// Null if the period does not end by itself.
    #[schema(required)]
    pub(super) reset_date: Option<DateTime<Utc>>,
}

/// Past periods, or hours or days, newest first.
#[derive(Debug, Serialize, ToSchema)]
#[schema(example = json!({
    "history": [{
        "id": "org_123:api:1793491200000", "organizationId": "org_123", "metricType": "api", "value": 450,
        "date": "2026-12-01T00:00:00Z", "createdAt": "2026-12-01T00:00:00Z"
    }]
}))]
pub(in crate::http) struct PluginHistory {
    pub(super) history: Vec<PluginEntry>,
}

/// One period that has ended or was reset, or one hour or day.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct PluginEntry {
    /// Stable for a period, an hour or a day.
    pub(super) id: String,
    pub(super) organization_id: OrganizationId,
    /// The meter.
    pub(super) metric_type: MeterId,
    /// Units counted in it.
    pub(super) value: i64,
    /// When the period ended, or when the hour or the day began.
    pub(super) date: DateTime<Utc>,
    /// Equal to `date`.
    pub(super) created_at: DateTime<Utc>,
}

/// What to reset.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schema(example = json!({"organizationId": "org_123", "resetApi": true}))]
pub(in crate::http) struct PluginReset {
    #[schema(value_type = OrganizationId)]
    pub(super) organization_id: OrganizationParam,
    /// False resets nothing.
    #[serde(default = "yes")]
    #[schema(default = true)]
    pub(super) reset_api: bool,
}

fn yes() -> bool {
    true
}

/// What to change; absent fields stay.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schema(example = json!({"organizationId": "org_123", "apiLimit": 5000, "resetMode": "lazy", "resetPeriod": "monthly"}))]
pub(in crate::http) struct PluginLimits {
    #[schema(value_type = OrganizationId)]
    pub(super) organization_id: OrganizationParam,
    /// The limit of the meter `api`; null is unlimited.
    #[serde(default, deserialize_with = "double_option")]
    #[schema(value_type = Option<Count>)]
    pub(super) api_limit: Option<Limit>,
    /// What happens beyond the limit.
    #[serde(default, deserialize_with = "not_null")]
    #[schema(value_type = Enforcement)]
    pub(super) enforcement: Option<Enforcement>,
    #[serde(default, deserialize_with = "not_null")]
    #[schema(value_type = ResetMode)]
    pub(super) reset_mode: Option<ResetMode>,
    #[serde(default, deserialize_with = "not_null")]
    #[schema(value_type = ResetPeriod)]
    pub(super) reset_period: Option<ResetPeriod>,
}

/// An API key in the body.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schema(example = json!({"apiKey": "tm_…"}))]
pub(in crate::http) struct KeyInBody {
    #[schema(value_type = String)]
    pub(super) api_key: Option<String>,
}

/// Success.
#[derive(Debug, Serialize, ToSchema)]
#[schema(example = json!({"success": true}))]
pub(in crate::http) struct PluginSuccess {
    pub(super) success: bool,
}

/// Which organizations were reset.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(example = json!({"success": true, "resetCount": 1, "organizations": ["org_123"]}))]
pub(in crate::http) struct PluginExpired {
    pub(super) success: bool,
    /// How many organizations were reset.
    pub(super) reset_count: usize,
    /// Their ids, at most 1,000.
    pub(super) organizations: Vec<OrganizationId>,
}
