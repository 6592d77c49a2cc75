//! Webhooks: where events are sent to.

use std::collections::BTreeSet;

use chrono::{DateTime, Utc};
use sqlx::postgres::PgRow;
use sqlx::{FromRow, PgConnection, Row as _};

use crate::domain::event::EventType;
use crate::domain::ids::{OrganizationId, WebhookId};
use crate::domain::webhook::{
    DisabledReason, NewWebhook, Secret, Webhook, WebhookChange, will_be_disabled_at,
};
use crate::postgres::audit::{self, Actor};
use crate::postgres::events::new_uuid;
use crate::postgres::pool::{Postgres, Result, execute};
use crate::postgres::types::BigInt;

/// Creates a webhook.
pub async fn create(
    db: &Postgres,
    request: &NewWebhook,
    secret: &Secret,
    now: DateTime<Utc>,
    actor: &Actor,
) -> Result<Webhook> {
    let mut tx = db.pool().await?.begin().await?;
    let webhook: Webhook = sqlx::query_as(
        "insert into webhooks (id, url, events, organization_id, secret, created_at)
         values ($1, $2, $3, $4, $5, $6)
         returning *",
    )
    .bind(format!("wh_{}", new_uuid(now, 0).simple()))
    .bind(&request.url)
    .bind(array(request.events.as_ref()))
    .bind(&request.organization_id)
    .bind(secret.0)
    .bind(now)
    .fetch_one(&mut *tx)
    .await?;
    let (action, organization) = ("webhook.create", webhook.organization_id.as_ref());
    audit::record(&mut tx, actor, action, organization, &(), &webhook).await?;
    tx.commit().await?;
    Ok(webhook)
}

/// Lists webhooks, newest first, starting after `after`.
pub async fn list(db: &Postgres, after: Option<&WebhookId>, count: u32) -> Result<Vec<Webhook>> {
    Ok(sqlx::query_as(
        "select * from webhooks
         where $1::text is null or id < $1
         order by id desc
         limit $2",
    )
    .bind(after)
    .bind(i64::from(count))
    .fetch_all(db.pool().await?)
    .await?)
}

/// Finds a webhook.
pub async fn find(db: &Postgres, id: &WebhookId) -> Result<Option<Webhook>> {
    Ok(sqlx::query_as("select * from webhooks where id = $1")
        .bind(id)
        .fetch_optional(db.pool().await?)
        .await?)
}

/// Changes a webhook; none if it does not exist. Enabling it resets its failures.
pub async fn change(
    db: &Postgres,
    id: &WebhookId,
    change: &WebhookChange,
    now: DateTime<Utc>,
    actor: &Actor,
) -> Result<Option<Webhook>> {
    let mut tx = db.pool().await?.begin().await?;
    let Some(before) = lock(&mut tx, id).await? else {
        return Ok(None);
    };
    let after = changed(&before, change, now);
    sqlx::query(
        "update webhooks
         set url = $2, events = $3, organization_id = $4, failing_since = $5, disabled_at = $6, disabled_reason = $7
         where id = $1",
    )
    .bind(id)
    .bind(&after.url)
    .bind(array(after.events.as_ref()))
    .bind(&after.organization_id)
    .bind(after.failing_since)
    .bind(after.disabled_at)
    .bind(after.disabled_reason)
    .execute(&mut *tx)
    .await?;
    let (action, organization) = ("webhook.change", after.organization_id.as_ref());
    let (was, is) = (&before, &after);
    audit::record(&mut tx, actor, action, organization, was, is).await?;
    tx.commit().await?;
    Ok(Some(after))
}

fn changed(before: &Webhook, change: &WebhookChange, now: DateTime<Utc>) -> Webhook {
    let mut after = before.clone();
    if let Some(url) = &change.url {
        after.url.clone_from(url);
    }
    if let Some(events) = &change.events {
        after.events.clone_from(events);
    }
    if let Some(organization) = &change.organization_id {
        after.organization_id.clone_from(organization);
    }
    match change.enabled {
        Some(true) if !before.enabled => {
            (after.enabled, after.failing_since) = (true, None);
            (after.disabled_at, after.disabled_reason) = (None, None);
        }
        Some(false) if before.enabled => {
            after.enabled = false;
            (after.disabled_at, after.disabled_reason) = (Some(now), Some(DisabledReason::Asked));
        }
        _ => {}
    }
    after.will_be_disabled_at = will_be_disabled_at(after.enabled, after.failing_since);
    after
}

/// Replaces the signing secret; the previous one signs as well until `until`. None if the webhook does not exist.
pub async fn rotate(
    db: &Postgres,
    id: &WebhookId,
    secret: &Secret,
    until: DateTime<Utc>,
    actor: &Actor,
) -> Result<Option<Webhook>> {
    let mut tx = db.pool().await?.begin().await?;
    let Some(before) = lock(&mut tx, id).await? else {
        return Ok(None);
    };
    let after: Webhook = sqlx::query_as(
        "update webhooks
         set secret = $2, previous_secret = secret, previous_secret_until = $3
         where id = $1
         returning *",
    )
    .bind(id)
    .bind(secret.0)
    .bind(until)
    .fetch_one(&mut *tx)
    .await?;
    let (action, organization) = ("webhook.rotate_secret", after.organization_id.as_ref());
    let (was, is) = (&before, &after);
    audit::record(&mut tx, actor, action, organization, was, is).await?;
    tx.commit().await?;
    Ok(Some(after))
}

/// Deletes a webhook and its deliveries; false if it does not exist.
pub async fn delete(db: &Postgres, id: &WebhookId, actor: &Actor) -> Result<bool> {
    let mut tx = db.pool().await?.begin().await?;
    let Some(before) = lock(&mut tx, id).await? else {
        return Ok(false);
    };
    execute(&mut *tx, "delete from webhooks where id = $1", id).await?;
    let (action, organization) = ("webhook.delete", before.organization_id.as_ref());
    audit::record(&mut tx, actor, action, organization, &before, &()).await?;
    tx.commit().await?;
    Ok(true)
}

/// Finds a webhook and locks its row.
pub(super) async fn lock(tx: &mut PgConnection, id: &WebhookId) -> Result<Option<Webhook>> {
    Ok(
        sqlx::query_as("select * from webhooks where id = $1 for update")
            .bind(id)
            .fetch_optional(tx)
            .await?,
    )
}

/// Counts the webhooks that an event of this type about an organization is sent to.
pub async fn subscribed(
    db: &Postgres,
    event_type: EventType,
    organization: &OrganizationId,
) -> Result<u64> {
    let BigInt(count) = sqlx::query_scalar(
        "select count(*) from webhooks
         where disabled_at is null
           and (events is null or $1 = any(events))
           and (organization_id is null or organization_id = $2)",
    )
    .bind(event_type)
    .bind(organization)
    .fetch_one(db.pool().await?)
    .await?;
    Ok(count)
}

fn array(types: Option<&BTreeSet<EventType>>) -> Option<Vec<EventType>> {
    types.map(|types| types.iter().copied().collect())
}

impl FromRow<'_, PgRow> for Webhook {
    fn from_row(row: &PgRow) -> sqlx::Result<Self> {
        let events: Option<Vec<EventType>> = row.try_get("events")?;
        let disabled_at: Option<DateTime<Utc>> = row.try_get("disabled_at")?;
        let failing_since: Option<DateTime<Utc>> = row.try_get("failing_since")?;
        Ok(Self {
            id: row.try_get("id")?,
            url: row.try_get("url")?,
            events: events.map(|types| types.into_iter().collect()),
            organization_id: row.try_get("organization_id")?,
            enabled: disabled_at.is_none(),
            disabled_reason: row.try_get("disabled_reason")?,
            disabled_at,
            failing_since,
            will_be_disabled_at: will_be_disabled_at(disabled_at.is_none(), failing_since),
            last_success_at: row.try_get("last_success_at")?,
            previous_secret_until: row.try_get("previous_secret_until")?,
            created_at: row.try_get("created_at")?,
        })
    }
}
