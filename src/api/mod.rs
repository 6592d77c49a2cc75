//! HTTP and JSON: every route on this page, one file for each group of calls.
//!
//! Handlers translate; they decide nothing. Permission is a type in a handler's signature
//! ([`extract`]): one that takes none of `Ingest`, `Refund`, `Read` and `Administrator` is public.

mod adjustments;
mod admin;
mod audit;
mod batch;
mod body;
mod cors;
mod counting;
mod directory;
mod events;
mod extract;
mod history;
mod in_force;
mod instant;
mod keys;
mod observe;
mod openapi;
mod operations;
mod parse;
mod plans;
mod plugin;
mod problem;
mod rate_limit;
mod reading;
mod resets;
mod tagged;
mod verification;
mod webhooks;

use axum::Router;
use axum::response::IntoResponse;
use axum::routing::get;
use tower::ServiceBuilder;
use tower_http::catch_panic::CatchPanicLayer;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::config::PLUGIN_PATH;
use crate::state::State;
use observe::Observe;
use problem::Error;

pub use body::BATCH_BODY_MAX;
pub use operations::metrics_router;
pub use problem::refusal;

/// Every route, and its description. The metrics are beside the others unless they have an address of their own.
fn routes(with_metrics: bool, plugin_path: &str) -> OpenApiRouter<State> {
    let routes = OpenApiRouter::with_openapi(openapi::outline())
        .routes(routes!(counting::track))
        .routes(routes!(counting::consume))
        .routes(routes!(counting::check))
        .routes(routes!(counting::refund))
        .routes(routes!(batch::batch))
        .routes(routes!(reading::usage))
        .routes(routes!(history::of_organization))
        .routes(routes!(history::of_all))
        .routes(routes!(events::list_events))
        .routes(routes!(directory::organizations))
        .routes(routes!(
            admin::get_organization,
            admin::put_organization,
            admin::patch_organization,
            admin::delete_organization
        ))
        .routes(routes!(in_force::limits, admin::patch_limits))
        .routes(routes!(in_force::feature))
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
        .routes(routes!(audit::list_audit))
        .routes(routes!(verification::verify))
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
        .routes(routes!(operations::healthz))
        .routes(routes!(operations::readyz))
        .routes(routes!(openapi::openapi_json))
        .routes(routes!(openapi::docs::docs))
        .route("/docs/{file}", get(openapi::docs::file))
        .nest(plugin_path, plugin_routes());
    if with_metrics {
        routes.routes(routes!(operations::metrics))
    } else {
        routes
    }
}

/// The routes of the Better Auth plugin.
fn plugin_routes() -> OpenApiRouter<State> {
    OpenApiRouter::new()
        .routes(routes!(plugin::get_usage))
        .routes(routes!(plugin::get_usage_history))
        .routes(routes!(plugin::reset))
        .routes(routes!(plugin::update_limits))
        .routes(routes!(plugin::reset_expired))
}

/// The OpenAPI document of every route.
pub fn openapi() -> utoipa::openapi::OpenApi {
    openapi::complete(routes(true, PLUGIN_PATH).into_openapi())
}

/// Every route, with the layers that all of them share.
pub fn router(state: State) -> Router {
    let cors = cors::layer(&state.cors_origins);
    let (routes, _) = routes(!state.metrics_apart, &state.plugin_path).split_for_parts();
    routes
        .fallback(|| async { Error::NotFound("there is nothing at this path") })
        .method_not_allowed_fallback(|| async { Error::MethodNotAllowed })
        // As one layer, because the router puts every layer of its own into a box, for every request.
        .layer(
            ServiceBuilder::new()
                .layer(Observe::layer(state.metrics.clone()))
                .option_layer(cors)
                .layer(CatchPanicLayer::custom(|_| {
                    Error::panicked().into_response()
                })),
        )
        .with_state(state)
}
