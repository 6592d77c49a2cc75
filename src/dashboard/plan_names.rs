//! The display names of plans.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::api::{Failed, List};
use super::session::Viewer;

#[derive(Debug, Deserialize)]
struct Plan {
    id: String,
    name: String,
}

/// The names by id.
pub(super) async fn plan_names(viewer: &Viewer) -> Result<BTreeMap<String, String>, Failed> {
    let plans: List<Plan> = viewer.api.get("/v1/plans?pageSize=200").await?;
    let names = plans.data.into_iter().map(|plan| (plan.id, plan.name));
    Ok(names.collect())
}
