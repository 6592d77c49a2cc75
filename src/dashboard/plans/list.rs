//! The list of plans.

use askama::Template;
use axum::response::Response;
use serde_json::Value;

use super::types::Plan;
use crate::dashboard::api::List;
use crate::dashboard::filters;
use crate::dashboard::frame::{Frame, Rendered, Section};
use crate::dashboard::session::Viewer;

#[derive(Template)]
#[template(path = "plans.html")]
pub(super) struct Page {
    frame: Frame,
    /// With the number of organizations on each.
    plans: Vec<(Plan, u64)>,
}

pub(super) async fn list(viewer: Viewer) -> Result<Rendered<Page>, Response> {
    let read = async {
        futures::try_join!(
            viewer.api.get::<List<Plan>>("/v1/plans?pageSize=200"),
            viewer.api.get::<Value>("/v1/summary")
        )
    };
    let (plans, summary) = read.await.map_err(viewer.fail())?;
    let counted = |plan: Plan| {
        let count = &summary["organizations"]["byPlan"][plan.id.as_str()];
        let count = count.as_u64().unwrap_or(0);
        (plan, count)
    };
    Ok(Rendered(Page {
        frame: viewer.frame(Section::Plans, "Plans"),
        plans: plans.data.into_iter().map(counted).collect(),
    }))
}
