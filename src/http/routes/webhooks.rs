//! `/v1/webhooks`: receivers of events, and their deliveries.

use axum::Json;
use axum::extract::State as Shared;
use axum::http::StatusCode;
use axum::http::header::CACHE_CONTROL;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::domain::ids::{EventId, WebhookId};
use crate::domain::webhook::{Delivery, DeliveryStatus, NewWebhook, Webhook, WebhookChange};
use crate::http::auth::Administrator;
use crate::http::extract::{Body, NoQuery, Query};
use crate::http::idempotency::Idempotency;
use crate::http::list::{List, Page, PageSize};
use crate::http::path::Path;
use crate::http::problem::Error;
use crate::http::state::State;
use crate::jobs::webhooks::Issued;
use crate::postgres::webhooks;

type Webhooks = List<Webhook, WebhookId>;
type Deliveries = List<Delivery, EventId>;

/// A webhook, with a new secret.
#[derive(Serialize, ToSchema)]
#[schema(as = IssuedWebhook)]
pub(in crate::http) struct WithSecret {
    #[serde(flatten)]
    webhook: Webhook,
    /// Verifies deliveries: `whsec_` and base64. Shown only once.
    secret: String,
}

impl IntoResponse for WithSecret {
    fn into_response(self) -> Response {
        ([(CACHE_CONTROL, "no-store")], Json(self)).into_response()
    }
}

impl From<Issued> for WithSecret {
    fn from(issued: Issued) -> Self {
        Self {
            webhook: issued.webhook,
            secret: issued.secret,
        }
    }
}

/// Which deliveries to list.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(in crate::http) struct DeliveryQuery {
    /// Only deliveries with this status.
    #[param(inline)]
    status: Option<DeliveryStatus>,
    #[serde(default)]
    #[param(inline)]
    page_size: PageSize,
    /// The `nextCursor` of the previous page.
    cursor: Option<EventId>,
}

fn no_webhook() -> Error {
    Error::NotFound("there is no such webhook")
}

fn no_delivery() -> Error {
    Error::NotFound("this webhook has no such delivery")
}

/// List webhooks
///
/// Newest first, without secrets.
#[utoipa::path(
    get,
    path = "/v1/webhooks",
    operation_id = "listWebhooks",
    tag = "Webhooks",
    security(("key" = ["admin"])),
    params(Page<WebhookId>),
    responses((status = 200, description = "A page of webhooks.", body = Webhooks))
)]
pub(in crate::http) async fn list_webhooks(
    Shared(state): Shared<State>,
    _: Administrator,
    Query(page): Query<Page<WebhookId>>,
) -> Result<Webhooks, Error> {
    let (postgres, size) = (&state.ctx.postgres, page.page_size);
    let found = webhooks::list(postgres, page.cursor.as_ref(), size.and_one()).await?;
    Ok(List::page(found, size, |it| it.id.clone()))
}

/// Create a webhook
///
/// It receives events from now on. The secret is shown only once, so `Idempotency-Key` is refused.
/// A URL in a private network is refused unless a setting allows it.
#[utoipa::path(
    post,
    path = "/v1/webhooks",
    operation_id = "createWebhook",
    tag = "Webhooks",
    security(("key" = ["admin"])),
    request_body = NewWebhook,
    responses(
        (status = 201, description = "The webhook, with its secret.", body = WithSecret,
            headers(("Cache-Control" = String, description = "`no-store`")),
            example = json!({
                "id": "wh_01a207e5f2407000a3f0c2d9e8b7a695", "url": "https://example.com/tallyman",
                "events": ["usage.warning", "usage.limit_exceeded"], "organizationId": null, "enabled": true,
                "disabledReason": null, "disabledAt": null, "failingSince": null, "willBeDisabledAt": null, "lastSuccessAt": null,
                "previousSecretUntil": null, "createdAt": "2026-11-23T10:14:00Z", "secret": "whsec_c2VjcmV0"
            }))
    )
)]
pub(in crate::http) async fn create_webhook(
    Shared(state): Shared<State>,
    Administrator(caller): Administrator,
    idempotency: Idempotency,
    Body(new): Body<NewWebhook>,
) -> Result<Response, Error> {
    idempotency.refuse()?;
    let created: WithSecret = state.webhooks.create(&new, &caller.actor()).await?.into();
    Ok((StatusCode::CREATED, created).into_response())
}

/// Get a webhook
///
/// Including whether it is enabled, when a delivery last succeeded, since when deliveries fail, and when it is disabled if
/// they continue to.
#[utoipa::path(
    get,
    path = "/v1/webhooks/{id}",
    operation_id = "getWebhook",
    tag = "Webhooks",
    security(("key" = ["admin"])),
    params(Path<WebhookId>),
    responses((status = 200, description = "The webhook.", body = Webhook, example = json!({
        "id": "wh_01a207e5f2407000a3f0c2d9e8b7a695", "url": "https://example.com/tallyman", "events": null,
        "organizationId": null, "enabled": false, "disabledReason": "failing", "disabledAt": "2026-11-28T10:14:09Z",
        "failingSince": "2026-11-23T10:14:00Z", "willBeDisabledAt": null, "lastSuccessAt": "2026-11-23T10:13:00Z",
        "previousSecretUntil": null, "createdAt": "2026-11-01T09:30:00Z"
    })))
)]
pub(in crate::http) async fn get_webhook(
    Shared(state): Shared<State>,
    _: Administrator,
    Path(id): Path<WebhookId>,
    _: NoQuery,
) -> Result<Json<Webhook>, Error> {
    let found = webhooks::find(&state.ctx.postgres, &id).await?;
    found.map(Json).ok_or_else(no_webhook)
}

/// Change a webhook
///
/// Absent fields stay. A webhook that was disabled after failing for 5 days or a 410 is enabled again here.
#[utoipa::path(
    patch,
    path = "/v1/webhooks/{id}",
    operation_id = "changeWebhook",
    tag = "Webhooks",
    security(("key" = ["admin"])),
    params(Path<WebhookId>),
    request_body = WebhookChange,
    responses((status = 200, description = "The changed webhook.", body = Webhook, example = json!({
        "id": "wh_01a207e5f2407000a3f0c2d9e8b7a695", "url": "https://example.com/tallyman", "events": null,
        "organizationId": null, "enabled": true, "disabledReason": null, "disabledAt": null,
        "failingSince": null, "willBeDisabledAt": null, "lastSuccessAt": null, "previousSecretUntil": null,
        "createdAt": "2026-11-01T09:30:00Z"
    })))
)]
pub(in crate::http) async fn change_webhook(
    Shared(state): Shared<State>,
    Administrator(caller): Administrator,
    Path(id): Path<WebhookId>,
    Body(change): Body<WebhookChange>,
) -> Result<Json<Webhook>, Error> {
    let changed = state.webhooks.change(&id, &change, &caller.actor()).await?;
    changed.map(Json).ok_or_else(no_webhook)
}

/// Delete a webhook
///
/// With its pending and past deliveries.
#[utoipa::path(
    delete,
    path = "/v1/webhooks/{id}",
    operation_id = "deleteWebhook",
    tag = "Webhooks",
    security(("key" = ["admin"])),
    params(Path<WebhookId>),
    responses((status = 204, description = "The webhook is deleted."))
)]
pub(in crate::http) async fn delete_webhook(
    Shared(state): Shared<State>,
    Administrator(caller): Administrator,
    Path(id): Path<WebhookId>,
    _: NoQuery,
) -> Result<StatusCode, Error> {
    if webhooks::delete(&state.ctx.postgres, &id, &caller.actor()).await? {
        Ok(StatusCode::NO_CONTENT)
    } else {
        Err(no_webhook())
    }
}

/// Rotate a webhook's secret
///
/// The new secret is shown only once. For 24 hours deliveries are signed with both secrets, so that receivers can switch
/// without missing any.
#[utoipa::path(
    post,
    path = "/v1/webhooks/{id}/rotate-secret",
    operation_id = "rotateWebhookSecret",
    tag = "Webhooks",
    security(("key" = ["admin"])),
    params(Path<WebhookId>),
    responses(
        (status = 200, description = "The webhook, with its new secret.", body = WithSecret,
            headers(("Cache-Control" = String, description = "`no-store`")),
            example = json!({
                "id": "wh_01a207e5f2407000a3f0c2d9e8b7a695", "url": "https://example.com/tallyman", "events": null,
                "organizationId": null, "enabled": true, "disabledReason": null, "disabledAt": null, "failingSince": null,
                "willBeDisabledAt": null, "lastSuccessAt": "2026-11-23T10:13:00Z",
                "previousSecretUntil": "2026-11-24T10:14:00Z", "createdAt": "2026-11-01T09:30:00Z", "secret": "whsec_c2VjcmV0"
            }))
    )
)]
pub(in crate::http) async fn rotate_secret(
    Shared(state): Shared<State>,
    Administrator(caller): Administrator,
    Path(id): Path<WebhookId>,
    _: NoQuery,
    idempotency: Idempotency,
) -> Result<WithSecret, Error> {
    idempotency.refuse()?;
    let issued = state.webhooks.rotate_secret(&id, &caller.actor()).await?;
    issued.map(WithSecret::from).ok_or_else(no_webhook)
}

/// Send a test event
///
/// Sends an event of type `webhook.test` to this webhook only, whatever its subscriptions. The list of deliveries shows the
/// result. A disabled webhook receives it once it is enabled.
#[utoipa::path(
    post,
    path = "/v1/webhooks/{id}/test",
    operation_id = "testWebhook",
    tag = "Webhooks",
    security(("key" = ["admin"])),
    params(Path<WebhookId>),
    responses((status = 202, description = "The delivery is queued.", body = Delivery, example = json!({
        "id": "evt_01a207e5f2407000a3f0c2d9e8b7a695", "type": "webhook.test", "timestamp": "2026-11-23T10:14:00Z",
        "status": "pending", "attempts": 0, "nextAttemptAt": "2026-11-23T10:14:00Z", "lastAttemptAt": null,
        "responseStatus": null, "latencyMs": null, "responseBody": null, "error": null
    })))
)]
pub(in crate::http) async fn test_webhook(
    Shared(state): Shared<State>,
    Administrator(caller): Administrator,
    Path(id): Path<WebhookId>,
    _: NoQuery,
) -> Result<Response, Error> {
    let (ctx, actor) = (&state.ctx, caller.actor());
    let delivery = webhooks::test(&ctx.postgres, &id, ctx.clock.now(), &actor).await?;
    let delivery = delivery.ok_or_else(no_webhook)?;
    Ok((StatusCode::ACCEPTED, Json(delivery)).into_response())
}

/// List deliveries
///
/// Of one webhook, newest event first, with the result of the last attempt and the time of the next.
#[utoipa::path(
    get,
    path = "/v1/webhooks/{id}/deliveries",
    operation_id = "listDeliveries",
    tag = "Webhooks",
    security(("key" = ["admin"])),
    params(Path<WebhookId>, DeliveryQuery),
    responses((status = 200, description = "A page of deliveries.", body = Deliveries))
)]
pub(in crate::http) async fn list_deliveries(
    Shared(state): Shared<State>,
    _: Administrator,
    Path(id): Path<WebhookId>,
    Query(query): Query<DeliveryQuery>,
) -> Result<Deliveries, Error> {
    let (postgres, size) = (&state.ctx.postgres, query.page_size);
    let (status, after) = (query.status, query.cursor.as_ref());
    let found = webhooks::deliveries(postgres, &id, status, after, size.and_one()).await?;
    if found.is_empty() && webhooks::find(postgres, &id).await?.is_none() {
        return Err(no_webhook());
    }
    Ok(List::page(found, size, |delivery| delivery.id.clone()))
}

/// Redeliver
///
/// Sends the event again now, whatever its status, with the retries of a new delivery.
#[utoipa::path(
    post,
    path = "/v1/webhooks/{id}/deliveries/{delivery}/redeliver",
    operation_id = "redeliver",
    tag = "Webhooks",
    security(("key" = ["admin"])),
    params(Path<WebhookId>, Path<EventId>),
    responses((status = 202, description = "The delivery is queued.", body = Delivery, example = json!({
        "id": "evt_01a207e5f2407000a3f0c2d9e8b7a695", "type": "usage.warning", "timestamp": "2026-11-23T10:14:00Z",
        "status": "pending", "attempts": 0, "nextAttemptAt": "2026-11-25T08:00:00Z",
        "lastAttemptAt": "2026-11-24T10:31:20Z", "responseStatus": null, "latencyMs": 10000, "responseBody": null,
        "error": "no response within 10 seconds"
    })))
)]
pub(in crate::http) async fn redeliver(
    Shared(state): Shared<State>,
    Administrator(caller): Administrator,
    Path(id): Path<WebhookId>,
    Path(event): Path<EventId>,
    _: NoQuery,
) -> Result<Response, Error> {
    let (ctx, actor) = (&state.ctx, caller.actor());
    let now = ctx.clock.now();
    let delivery = webhooks::redeliver(&ctx.postgres, &id, &event, now, &actor).await?;
    let delivery = delivery.ok_or_else(no_delivery)?;
    Ok((StatusCode::ACCEPTED, Json(delivery)).into_response())
}
