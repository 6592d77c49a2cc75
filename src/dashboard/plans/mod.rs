//! Plans.

mod compare;
mod edit;
mod lines;
mod list;
mod types;

use axum::Router;
use axum::routing::get;

use super::state::Dashboard;

/// The routes of these pages.
pub(super) fn routes() -> Router<Dashboard> {
    Router::new()
        .route("/dashboard/plans", get(list::list))
        .route("/dashboard/plans/{id}", get(edit::show).post(edit::save))
}
