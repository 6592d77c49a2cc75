//! The table of routes; each resource has a file.
//!
//! Handlers translate between HTTP and the use cases, without decisions of their own. Permission is a type in a
//! handler's signature ([`super::auth`]): a handler without one is public, but for those of [`counting`], whose
//! permission depends on the operation.

pub(super) mod adjustments;
pub(super) mod audit;
pub(super) mod batch;
pub(super) mod counting;
pub(super) mod docs;
pub(super) mod effective;
mod embed_links;
pub(super) mod events;
pub(super) mod health;
pub(super) mod history;
pub(super) mod keys;
pub(super) mod live;
pub(super) mod organization_list;
pub(super) mod organizations;
pub(super) mod patches;
pub(super) mod plans;
pub(super) mod plugin;
mod projections;
pub(super) mod resets;
pub(super) mod session;
pub(super) mod summary;
pub(super) mod usage;
pub(super) mod verify;
pub(super) mod webhooks;

use std::sync::LazyLock;

use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::routing::get;
use utoipa::OpenApi as _;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::extract::NoQuery;
use super::openapi::document;
use super::state::State;
use crate::config::PLUGIN_PATH;

/// Every route with its description; `/metrics` unless it has an address of its own.
pub(super) fn routes(with_metrics: bool, plugin_path: &str) -> OpenApiRouter<State> {
    let routes = OpenApiRouter::with_openapi(document::outline())
        .routes(routes!(counting::track))
        .routes(routes!(counting::consume))
        .routes(routes!(counting::check))
        .routes(routes!(counting::refund))
        .routes(routes!(batch::batch))
        .routes(routes!(usage::usage))
        .routes(routes!(summary::summary))
        .routes(routes!(live::of_all))
        .routes(routes!(live::of_organization))
        .routes(routes!(history::of_organization))
        .routes(routes!(history::of_all))
        .routes(routes!(events::list_events))
        .routes(routes!(organization_list::organizations))
        .routes(routes!(
            organizations::get_organization,
            organizations::put_organization,
            organizations::patch_organization,
            organizations::delete_organization
        ))
        .routes(routes!(effective::limits, organizations::patch_limits))
        .routes(routes!(effective::feature))
        .routes(routes!(embed_links::create_embed_link))
        .routes(routes!(resets::reset))
        .routes(routes!(plans::list_plans))
        .routes(routes!(
            plans::get_plan,
            plans::put_plan,
            plans::delete_plan
        ))
        .routes(routes!(resets::reset_expired))
        .routes(routes!(adjustments::adjust))
        .routes(routes!(keys::list_keys, keys::create_key))
        .routes(routes!(keys::revoke_key))
        .routes(routes!(session::session))
        .routes(routes!(audit::list_audit))
        .routes(routes!(verify::verify))
        .routes(routes!(webhooks::list_webhooks, webhooks::create_webhook))
        .routes(routes!(
            webhooks::get_webhook,
            webhooks::change_webhook,
            webhooks::delete_webhook
        ))
        .routes(routes!(webhooks::rotate_secret))
        .routes(routes!(webhooks::test_webhook))
        .routes(routes!(webhooks::list_deliveries))
        .routes(routes!(webhooks::redeliver))
        .routes(routes!(health::healthz))
        .routes(routes!(health::readyz))
        .routes(routes!(openapi_json))
        .routes(routes!(docs::docs))
        .route("/docs/{file}", get(docs::file))
        .nest(plugin_path, plugin_routes());
    if with_metrics {
        routes.routes(routes!(health::metrics))
    } else {
        routes
    }
}

/// The routes of the Better Auth plugin.
fn plugin_routes() -> OpenApiRouter<State> {
    OpenApiRouter::with_openapi(plugin::PluginSchemas::openapi())
        .routes(routes!(plugin::get_usage))
        .routes(routes!(plugin::get_usage_history))
        .routes(routes!(plugin::reset))
        .routes(routes!(plugin::update_limits))
        .routes(routes!(plugin::reset_expired))
}

/// The OpenAPI document of every route.
pub(super) fn openapi() -> utoipa::openapi::OpenApi {
    document::complete(routes(true, PLUGIN_PATH).into_openapi())
}

/// The OpenAPI document
///
/// OpenAPI 3.1, generated from the running program.
#[utoipa::path(
    get,
    path = "/openapi.json",
    operation_id = "getOpenapi",
    tag = "Operations",
    responses((status = 200, description = "This document.", body = Object))
)]
async fn openapi_json(_: NoQuery) -> impl IntoResponse {
    static TEXT: LazyLock<String> =
        LazyLock::new(|| serde_json::to_string(&openapi()).unwrap_or_default());
    ([(CONTENT_TYPE, "application/json")], TEXT.as_str())
}
