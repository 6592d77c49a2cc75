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

/// The names by id. Only administrators may read plans: for others it is empty, and ids are shown.
pub(super) async fn plan_names(viewer: &Viewer) -> Result<BTreeMap<String, String>, Failed> {
    if !viewer.is_admin {
        return Ok(BTreeMap::new());
    }
    let plans: List<Plan> = viewer.api.get("/v1/plans?pageSize=200").await?;
    let names = plans.data.into_iter().map(|plan| (plan.id, plan.name));
    Ok(names.collect())
}
