//! The page of an organization, and its forms.

mod feed;
mod forms;
mod history;
mod limits;
mod page;
mod read;
mod reset;
mod types;
mod usage;

use axum::Router;
use axum::extract::{Path, Query};
use axum::response::Response;
use axum::routing::{get, post};

use super::frame::Rendered;
use super::session::Viewer;
use super::state::Dashboard;
use history::Choice;
use page::{Page, page};

/// The routes of these pages.
pub(super) fn routes() -> Router<Dashboard> {
    let own = "/dashboard/organizations/{id}";
    Router::new()
        .route(own, get(show))
        .route(&format!("{own}/history.csv"), get(history::download))
        .route(&format!("{own}/limits"), post(forms::limit))
        .route(&format!("{own}/plan"), post(forms::plan))
        .route(&format!("{own}/adjust"), post(forms::adjust))
        .route(&format!("{own}/reset"), get(reset::show).post(reset::reset))
}

async fn show(
    viewer: Viewer,
    Path(id): Path<String>,
    Query(choice): Query<Choice>,
) -> Result<Rendered<Page>, Response> {
    let page = page(&viewer, id, choice, None).await;
    page.map(Rendered).map_err(viewer.fail())
}
