//! `?dryRun=true`: what a change would do.

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

/// The query of a change that can be tried.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct DryRun {
    /// Whether to change nothing, and to return what the change would do. It is refused where the change would be; an
    /// `Idempotency-Key` has no effect.
    #[serde(default)]
    pub(super) dry_run: bool,
}

/// What a change would reach.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(example = json!({"organizations": 1, "webhookDeliveries": 2}))]
pub(super) struct Reach {
    /// How many organizations it would affect.
    pub(super) organizations: u64,
    /// How many deliveries to webhooks it would cause at once.
    pub(super) webhook_deliveries: u64,
}
