//! Deliveries of events to webhooks: listed, requested, leased, and their results.

use chrono::{DateTime, Utc};
use serde_json::json;
use serde_json::value::RawValue;
use sqlx::postgres::PgRow;
use sqlx::{FromRow, PgConnection, Row as _};

use super::endpoints::lock;
use crate::domain::event::EventType;
use crate::domain::ids::{EventId, WebhookId};
use crate::domain::webhook::{
    Delivery, DeliveryStatus, DisabledReason, FAILING_MAX, Secret, Webhook,
};
use crate::postgres::audit::{self, Actor};
use crate::postgres::events::new_uuid;
use crate::postgres::pool::{Postgres, Result};
use crate::postgres::types::BindColumns as _;

/// Records a test event for this webhook alone; none if the webhook does not exist.
pub async fn test(
    db: &Postgres,
    id: &WebhookId,
    now: DateTime<Utc>,
    actor: &Actor,
) -> Result<Option<Delivery>> {
    let mut tx = db.pool().await?.begin().await?;
    let Some(webhook) = lock(&mut tx, id).await? else {
        return Ok(None);
    };
    let event: EventId = sqlx::query_scalar(
        "with recorded as (
             insert into events (id, at, type, data)
             values ($2, $3, $4, $5::json)
             returning id
         )
         insert into webhook_deliveries (webhook_id, event_id, next_at)
         select $1, recorded.id, $3 from recorded
         returning event_id",
    )
    .bind(id)
    .bind(format!("evt_{}", new_uuid(now, 0).simple()))
    .bind(now)
    .bind(EventType::WebhookTest)
    .bind(json!({"webhookId": id}).to_string())
    .fetch_one(&mut *tx)
    .await?;
    let (action, organization) = ("webhook.test", webhook.organization_id.as_ref());
    let is = json!({"webhookId": id, "deliveryId": event});
    audit::record(&mut tx, actor, action, organization, &(), &is).await?;
    let delivery = delivery(&mut tx, id, &event).await?;
    tx.commit().await?;
    Ok(delivery)
}

/// Restarts a delivery, whatever its status; none if it does not exist.
pub async fn redeliver(
    db: &Postgres,
    id: &WebhookId,
    event: &EventId,
    now: DateTime<Utc>,
    actor: &Actor,
) -> Result<Option<Delivery>> {
    let mut tx = db.pool().await?.begin().await?;
    let webhook = lock(&mut tx, id).await?;
    let before = delivery(&mut tx, id, event).await?;
    let (Some(webhook), Some(before)) = (webhook, before) else {
        return Ok(None);
    };
    sqlx::query(
        "update webhook_deliveries
         set status = 'pending', attempts = 0, next_at = $3
         where webhook_id = $1 and event_id = $2",
    )
    .bind(id)
    .bind(event)
    .bind(now)
    .execute(&mut *tx)
    .await?;
    let (action, organization) = ("webhook.redeliver", webhook.organization_id.as_ref());
    let was = json!({"status": before.status, "attempts": before.attempts});
    let is = json!({"webhookId": id, "deliveryId": event});
    audit::record(&mut tx, actor, action, organization, &was, &is).await?;
    let after = delivery(&mut tx, id, event).await?;
    tx.commit().await?;
    Ok(after)
}

async fn delivery(
    tx: &mut PgConnection,
    id: &WebhookId,
    event: &EventId,
) -> Result<Option<Delivery>> {
    Ok(sqlx::query_as(
        "select events.at, events.type, webhook_deliveries.*
         from webhook_deliveries
         join events on events.id = webhook_deliveries.event_id
         where webhook_id = $1 and event_id = $2",
    )
    .bind(id)
    .bind(event)
    .fetch_optional(tx)
    .await?)
}

/// Lists a webhook's deliveries, newest event first, starting after the event `before`.
pub async fn deliveries(
    db: &Postgres,
    id: &WebhookId,
    status: Option<DeliveryStatus>,
    before: Option<&EventId>,
    count: u32,
) -> Result<Vec<Delivery>> {
    Ok(sqlx::query_as(
        "select events.at, events.type, webhook_deliveries.*
         from webhook_deliveries
         join events on events.id = webhook_deliveries.event_id
         where webhook_id = $1
           and ($2::text is null or status = $2)
           and ($3::text is null or event_id < $3)
         order by event_id desc
         limit $4",
    )
    .bind(id)
    .bind(status)
    .bind(before)
    .bind(i64::from(count))
    .fetch_all(db.pool().await?)
    .await?)
}

impl FromRow<'_, PgRow> for Delivery {
    fn from_row(row: &PgRow) -> sqlx::Result<Self> {
        let attempts: i16 = row.try_get("attempts")?;
        let response_status: Option<i16> = row.try_get("response_status")?;
        let latency_ms: Option<i32> = row.try_get("latency_ms")?;
        Ok(Self {
            id: row.try_get("event_id")?,
            r#type: row.try_get("type")?,
            timestamp: row.try_get("at")?,
            status: row.try_get("status")?,
            attempts: attempts.unsigned_abs(),
            next_attempt_at: row.try_get("next_at")?,
            last_attempt_at: row.try_get("attempted_at")?,
            response_status: response_status.map(i16::unsigned_abs),
            latency_ms: latency_ms.map(i32::unsigned_abs),
            response_body: row.try_get("response_body")?,
            error: row.try_get("error")?,
        })
    }
}

/// Lists the webhooks with due deliveries, each with the time since which the oldest is due.
pub async fn due(db: &Postgres, now: DateTime<Utc>) -> Result<Vec<(WebhookId, DateTime<Utc>)>> {
    Ok(sqlx::query_as(
        "select id, oldest.next_at
         from webhooks
         cross join lateral (
             select next_at from webhook_deliveries
             where webhook_id = webhooks.id and next_at <= $1
             order by next_at
             limit 1
         ) as oldest
         where disabled_at is null",
    )
    .bind(now)
    .fetch_all(db.pool().await?)
    .await?)
}

/// Leased deliveries of one webhook.
#[derive(Debug)]
pub struct Claimed {
    /// The URL of the webhook.
    pub url: String,
    /// The signing secrets; two for a while after a rotation.
    pub secrets: Vec<Secret>,
    /// The end of the lease.
    pub until: DateTime<Utc>,
    /// The messages to send.
    pub messages: Vec<Message>,
}

/// An event to be sent to a webhook.
#[derive(Debug, FromRow)]
pub struct Message {
    /// The event's id.
    #[sqlx(rename = "event_id")]
    pub id: EventId,
    /// When it was recorded.
    pub at: DateTime<Utc>,
    /// Its type.
    #[sqlx(rename = "type")]
    pub event_type: EventType,
    /// Its payload, as JSON.
    #[sqlx(json)]
    pub data: Box<RawValue>,
    /// The number of attempts so far.
    #[sqlx(try_from = "i16")]
    pub attempts: u16,
}

/// Leases at most `count` due deliveries of a webhook until `until`, oldest first; none if it is disabled.
pub async fn claim(
    db: &Postgres,
    id: &WebhookId,
    now: DateTime<Utc>,
    until: DateTime<Utc>,
    count: u32,
) -> Result<Option<Claimed>> {
    let target: Option<Target> = sqlx::query_as(
        "select url, secret, previous_secret, previous_secret_until
         from webhooks
         where id = $1 and disabled_at is null",
    )
    .bind(id)
    .fetch_optional(db.pool().await?)
    .await?;
    let Some(target) = target else {
        return Ok(None);
    };
    let messages = sqlx::query_as(
        "with due as (
             select event_id from webhook_deliveries
             where webhook_id = $1 and next_at <= $2
             order by next_at, event_id
             limit $4
             for no key update skip locked
         ), claimed as (
             update webhook_deliveries
             set next_at = $3
             from due
             where webhook_id = $1 and webhook_deliveries.event_id = due.event_id
             returning webhook_deliveries.event_id, webhook_deliveries.attempts
         )
         select claimed.event_id, claimed.attempts, events.at, events.type, events.data
         from claimed
         join events on events.id = claimed.event_id
         order by claimed.event_id",
    )
    .bind(id)
    .bind(now)
    .bind(until)
    .bind(i64::from(count))
    .fetch_all(db.pool().await?)
    .await?;
    Ok(Some(Claimed {
        secrets: target.secrets(now),
        url: target.url,
        until,
        messages,
    }))
}

#[derive(FromRow)]
struct Target {
    url: String,
    secret: [u8; 32],
    previous_secret: Option<[u8; 32]>,
    previous_secret_until: Option<DateTime<Utc>>,
}

impl Target {
    fn secrets(&self, now: DateTime<Utc>) -> Vec<Secret> {
        let overlaps = self.previous_secret_until.is_some_and(|until| now < until);
        let previous = self.previous_secret.filter(|_| overlaps);
        [Some(self.secret), previous]
            .into_iter()
            .flatten()
            .map(Secret)
            .collect()
    }
}

/// The result of one delivery attempt.
#[derive(Debug)]
pub struct Attempt {
    /// The event.
    pub id: EventId,
    /// The status of the delivery after it.
    pub status: DeliveryStatus,
    /// When to retry, if the delivery is pending.
    pub next_at: Option<DateTime<Utc>>,
    /// The status of the response, if there was one.
    pub response_status: Option<u16>,
    /// Milliseconds until the response, or until the attempt was abandoned.
    pub latency_ms: u32,
    /// The first KiB of the response.
    pub response_body: Option<String>,
    /// Why there was no response.
    pub error: Option<String>,
}

/// The health of a webhook after some attempts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// An attempt has succeeded.
    Healthy,
    /// All attempts have failed.
    Failing,
    /// It has responded 410: it must not be called again.
    Gone,
}

/// Records the results of leased deliveries; those that another instance has leased since are skipped. Returns why the
/// webhook was disabled, if it was.
pub async fn record(
    db: &Postgres,
    id: &WebhookId,
    lease: DateTime<Utc>,
    attempts: &[Attempt],
    health: Health,
    now: DateTime<Utc>,
) -> Result<Option<DisabledReason>> {
    let mut tx = db.pool().await?.begin().await?;
    // Before the deliveries: every transaction locks a webhook before its deliveries.
    let disabled = match health {
        Health::Healthy => {
            succeed(&mut tx, id, now).await?;
            None
        }
        Health::Failing | Health::Gone => fail(&mut tx, id, health == Health::Gone, now).await?,
    };
    sqlx::query(
        "update webhook_deliveries
         set status = new.status, attempts = webhook_deliveries.attempts + 1, next_at = new.next_at, attempted_at = $3,
             response_status = new.response_status, latency_ms = new.latency_ms, response_body = new.response_body,
             error = new.error
         from unnest($4::text[], $5::text[], $6::timestamptz[], $7::smallint[], $8::integer[], $9::text[], $10::text[])
              as new (event_id, status, next_at, response_status, latency_ms, response_body, error)
         where webhook_id = $1 and webhook_deliveries.event_id = new.event_id and webhook_deliveries.next_at = $2",
    )
    .bind(id)
    .bind(lease)
    .bind(now)
    .column(attempts, |it| &it.id)
    .column(attempts, |it| it.status)
    .column(attempts, |it| it.next_at)
    .column(attempts, |it| it.response_status.and_then(|it| i16::try_from(it).ok()))
    .column(attempts, |it| i32::try_from(it.latency_ms).unwrap_or(i32::MAX))
    .column(attempts, |it| it.response_body.as_deref())
    .column(attempts, |it| it.error.as_deref())
    .execute(&mut *tx)
    .await?;
    tx.commit().await?;
    Ok(disabled)
}

/// Records a success.
async fn succeed(tx: &mut PgConnection, id: &WebhookId, now: DateTime<Utc>) -> Result<()> {
    sqlx::query("update webhooks set failing_since = null, last_success_at = $2 where id = $1")
        .bind(id)
        .bind(now)
        .execute(tx)
        .await?;
    Ok(())
}

/// Records a failure; returns why the webhook was disabled, if it was.
async fn fail(
    tx: &mut PgConnection,
    id: &WebhookId,
    gone: bool,
    now: DateTime<Utc>,
) -> Result<Option<DisabledReason>> {
    let Some(before) = lock(tx, id).await?.filter(|it| it.enabled) else {
        return Ok(None);
    };
    let after: Webhook = sqlx::query_as(
        "update webhooks
         set failing_since = coalesce(failing_since, $2),
             disabled_at = case when $3 or failing_since <= $4 then $2 end,
             disabled_reason = case when $3 then 'gone' when failing_since <= $4 then 'failing' end
         where id = $1
         returning *",
    )
    .bind(id)
    .bind(now)
    .bind(gone)
    .bind(now - FAILING_MAX)
    .fetch_one(&mut *tx)
    .await?;
    if after.disabled_reason.is_some() {
        let (action, organization) = ("webhook.disable", after.organization_id.as_ref());
        let actor = Actor::system();
        audit::record(tx, &actor, action, organization, &before, &after).await?;
    }
    Ok(after.disabled_reason)
}
