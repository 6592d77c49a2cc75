//! Webhooks and their deliveries.
//!
//! A delivery is written in the statement that records its event. Whoever tries it moves `next_at` ahead first: that
//! is a lease, which ends by itself, and its value tells whether what is noted afterwards is still awaited.

use std::collections::BTreeSet;

use chrono::{DateTime, Utc};
use serde_json::value::RawValue;
use sqlx::types::Json;
use sqlx::{FromRow, PgConnection, Transaction};

use super::events::new_uuid;
use super::organizations::{corrupt_row, parse};
use super::{Actor, Error, Postgres, audit};
use crate::domain::event::EventType;
use crate::domain::ids::{EventId, OrganizationId, WebhookId};
use crate::domain::webhook::{
    Delivery, DeliveryStatus, DisabledReason, FAILING_MAX, NewWebhook, Secret, Webhook,
    WebhookChange,
};

/// Makes a webhook.
pub async fn create(
    postgres: &Postgres,
    wish: &NewWebhook,
    secret: &Secret,
    now: DateTime<Utc>,
    actor: &Actor,
) -> Result<Webhook, Error> {
    let mut transaction = postgres.pool.begin().await?;
    let row: WebhookRow = sqlx::query_as(
        "insert into webhooks (id, url, events, organization_id, secret, created_at)
         values ($1, $2, $3, $4, $5, $6)
         returning *",
    )
    .bind(format!("wh_{}", new_uuid(now, 0).simple()))
    .bind(&wish.url)
    .bind(wish.events.as_ref().map(words))
    .bind(wish.organization_id.as_ref().map(OrganizationId::as_str))
    .bind(secret.0.as_slice())
    .bind(now)
    .fetch_one(&mut *transaction)
    .await?;
    let webhook = row.shown()?;
    let of = webhook.organization_id.as_ref();
    audit::record(&mut transaction, actor, "webhook.create", of, &(), &webhook).await?;
    transaction.commit().await?;
    Ok(webhook)
}

/// Webhooks, newest first; those behind `after`.
pub async fn list(
    postgres: &Postgres,
    after: Option<&WebhookId>,
    count: u32,
) -> Result<Vec<Webhook>, Error> {
    let rows: Vec<WebhookRow> = sqlx::query_as(
        "select * from webhooks
         where $1::text is null or id < $1
         order by id desc
         limit $2",
    )
    .bind(after.map(WebhookId::as_str))
    .bind(i64::from(count))
    .fetch_all(&postgres.pool)
    .await?;
    rows.into_iter().map(WebhookRow::shown).collect()
}

/// One webhook; none if there is none.
pub async fn find(postgres: &Postgres, id: &WebhookId) -> Result<Option<Webhook>, Error> {
    let row: Option<WebhookRow> = sqlx::query_as("select * from webhooks where id = $1")
        .bind(id.as_str())
        .fetch_optional(&postgres.pool)
        .await?;
    row.map(WebhookRow::shown).transpose()
}

/// Changes a webhook; none if there is none. One that is enabled begins anew.
pub async fn change(
    postgres: &Postgres,
    id: &WebhookId,
    change: &WebhookChange,
    now: DateTime<Utc>,
    actor: &Actor,
) -> Result<Option<Webhook>, Error> {
    let mut transaction = postgres.pool.begin().await?;
    let Some(before) = lock(&mut transaction, id).await? else {
        return Ok(None);
    };
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
    sqlx::query(
        "update webhooks
         set url = $2, events = $3, organization_id = $4, failing_since = $5, disabled_at = $6, disabled_reason = $7
         where id = $1",
    )
    .bind(id.as_str())
    .bind(&after.url)
    .bind(after.events.as_ref().map(words))
    .bind(after.organization_id.as_ref().map(OrganizationId::as_str))
    .bind(after.failing_since)
    .bind(after.disabled_at)
    .bind(after.disabled_reason.map(|it| it.to_string()))
    .execute(&mut *transaction)
    .await?;
    let of = after.organization_id.as_ref();
    let action = "webhook.change";
    audit::record(&mut transaction, actor, action, of, &before, &after).await?;
    transaction.commit().await?;
    Ok(Some(after))
}

/// Makes another secret the one that signs; the one that did signs beside it until then. None if there is none.
pub async fn rotate(
    postgres: &Postgres,
    id: &WebhookId,
    secret: &Secret,
    until: DateTime<Utc>,
    actor: &Actor,
) -> Result<Option<Webhook>, Error> {
    let mut transaction = postgres.pool.begin().await?;
    let Some(before) = lock(&mut transaction, id).await? else {
        return Ok(None);
    };
    let row: WebhookRow = sqlx::query_as(
        "update webhooks
         set secret = $2, previous_secret = secret, previous_secret_until = $3
         where id = $1
         returning *",
    )
    .bind(id.as_str())
    .bind(secret.0.as_slice())
    .bind(until)
    .fetch_one(&mut *transaction)
    .await?;
    let after = row.shown()?;
    let of = after.organization_id.as_ref();
    let action = "webhook.rotate_secret";
    audit::record(&mut transaction, actor, action, of, &before, &after).await?;
    transaction.commit().await?;
    Ok(Some(after))
}

/// Deletes a webhook and its deliveries; false if there is none.
pub async fn delete(postgres: &Postgres, id: &WebhookId, actor: &Actor) -> Result<bool, Error> {
    let mut transaction = postgres.pool.begin().await?;
    let Some(before) = lock(&mut transaction, id).await? else {
        return Ok(false);
    };
    sqlx::query("delete from webhooks where id = $1")
        .bind(id.as_str())
        .execute(&mut *transaction)
        .await?;
    let of = before.organization_id.as_ref();
    audit::record(&mut transaction, actor, "webhook.delete", of, &before, &()).await?;
    transaction.commit().await?;
    Ok(true)
}

/// Records an event that is for one webhook alone; none if there is none.
pub async fn test(
    postgres: &Postgres,
    id: &WebhookId,
    now: DateTime<Utc>,
    actor: &Actor,
) -> Result<Option<Delivery>, Error> {
    let mut transaction = postgres.pool.begin().await?;
    let Some(webhook) = lock(&mut transaction, id).await? else {
        return Ok(None);
    };
    let event = format!("evt_{}", new_uuid(now, 0).simple());
    let data = serde_json::json!({"webhookId": id}).to_string();
    sqlx::query(
        "with recorded as (
             insert into events (id, at, type, data)
             values ($2, $3, $4, $5::json)
             returning id
         )
         insert into webhook_deliveries (webhook_id, event_id, next_at)
         select $1, recorded.id, $3 from recorded",
    )
    .bind(id.as_str())
    .bind(&event)
    .bind(now)
    .bind(EventType::WebhookTest.to_string())
    .bind(data)
    .execute(&mut *transaction)
    .await?;
    let event = parse(&event)?;
    let of = webhook.organization_id.as_ref();
    let is = serde_json::json!({"webhookId": id, "deliveryId": event});
    audit::record(&mut transaction, actor, "webhook.test", of, &(), &is).await?;
    let delivery = delivery(&mut transaction, id, &event).await?;
    transaction.commit().await?;
    Ok(delivery)
}

/// Has a delivery tried again, from the beginning, whatever became of it; none if there is none.
pub async fn redeliver(
    postgres: &Postgres,
    id: &WebhookId,
    event: &EventId,
    now: DateTime<Utc>,
    actor: &Actor,
) -> Result<Option<Delivery>, Error> {
    let mut transaction = postgres.pool.begin().await?;
    let webhook = lock(&mut transaction, id).await?;
    let before = delivery(&mut transaction, id, event).await?;
    let (Some(webhook), Some(before)) = (webhook, before) else {
        return Ok(None);
    };
    sqlx::query(
        "update webhook_deliveries
         set status = 'pending', attempts = 0, next_at = $3
         where webhook_id = $1 and event_id = $2",
    )
    .bind(id.as_str())
    .bind(event.as_str())
    .bind(now)
    .execute(&mut *transaction)
    .await?;
    let of = webhook.organization_id.as_ref();
    let (was, is) = (
        serde_json::json!({"status": before.status, "attempts": before.attempts}),
        serde_json::json!({"webhookId": id, "deliveryId": event}),
    );
    audit::record(&mut transaction, actor, "webhook.redeliver", of, &was, &is).await?;
    let after = delivery(&mut transaction, id, event).await?;
    transaction.commit().await?;
    Ok(after)
}

async fn delivery(
    connection: &mut PgConnection,
    id: &WebhookId,
    event: &EventId,
) -> Result<Option<Delivery>, Error> {
    let row: Option<DeliveryRow> = sqlx::query_as(
        "select events.at, events.type, webhook_deliveries.*
         from webhook_deliveries
         join events on events.id = webhook_deliveries.event_id
         where webhook_id = $1 and event_id = $2",
    )
    .bind(id.as_str())
    .bind(event.as_str())
    .fetch_optional(connection)
    .await?;
    row.map(DeliveryRow::shown).transpose()
}

/// A webhook's deliveries, newest event first; those behind `before`.
pub async fn deliveries(
    postgres: &Postgres,
    id: &WebhookId,
    status: Option<DeliveryStatus>,
    before: Option<&EventId>,
    count: u32,
) -> Result<Vec<Delivery>, Error> {
    let rows: Vec<DeliveryRow> = sqlx::query_as(
        "select events.at, events.type, webhook_deliveries.*
         from webhook_deliveries
         join events on events.id = webhook_deliveries.event_id
         where webhook_id = $1
           and ($2::text is null or status = $2)
           and ($3::text is null or event_id < $3)
         order by event_id desc
         limit $4",
    )
    .bind(id.as_str())
    .bind(status.map(|it| it.to_string()))
    .bind(before.map(EventId::as_str))
    .bind(i64::from(count))
    .fetch_all(&postgres.pool)
    .await?;
    rows.into_iter().map(DeliveryRow::shown).collect()
}

/// The webhooks that something waits for, each with the time since which the oldest does.
pub async fn due(
    postgres: &Postgres,
    now: DateTime<Utc>,
) -> Result<Vec<(WebhookId, DateTime<Utc>)>, Error> {
    let rows: Vec<(String, DateTime<Utc>)> = sqlx::query_as(
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
    .fetch_all(&postgres.pool)
    .await?;
    rows.into_iter()
        .map(|(id, since)| Ok((parse(&id)?, since)))
        .collect()
}

/// Deliveries of one webhook that nobody else tries at the moment.
#[derive(Debug)]
pub struct Claimed {
    /// Where they go.
    pub url: String,
    /// What signs them; more than one for a while after a rotation.
    pub secrets: Vec<Secret>,
    /// The end of the lease.
    pub until: DateTime<Utc>,
    /// What is to be sent.
    pub messages: Vec<Message>,
}

/// An event on its way to a webhook.
#[derive(Debug)]
pub struct Message {
    /// The event.
    pub id: EventId,
    /// When it was recorded.
    pub at: DateTime<Utc>,
    /// What kind it is.
    pub event_type: EventType,
    /// What is told of it, as JSON.
    pub data: Box<RawValue>,
    /// How often it was tried already.
    pub attempts: u16,
}

/// Takes what waits for a webhook, the oldest first, until somebody notes what became of it, or the lease ends.
pub async fn claim(
    postgres: &Postgres,
    id: &WebhookId,
    now: DateTime<Utc>,
    until: DateTime<Utc>,
    count: u32,
) -> Result<Option<Claimed>, Error> {
    let target: Option<TargetRow> = sqlx::query_as(
        "select url, secret, previous_secret, previous_secret_until
         from webhooks
         where id = $1 and disabled_at is null",
    )
    .bind(id.as_str())
    .fetch_optional(&postgres.pool)
    .await?;
    let Some(target) = target else {
        return Ok(None);
    };
    let rows: Vec<MessageRow> = sqlx::query_as(
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
    .bind(id.as_str())
    .bind(now)
    .bind(until)
    .bind(i64::from(count))
    .fetch_all(&postgres.pool)
    .await?;
    Ok(Some(Claimed {
        secrets: target.secrets(now)?,
        url: target.url,
        until,
        messages: rows
            .into_iter()
            .map(MessageRow::message)
            .collect::<Result<_, _>>()?,
    }))
}

/// What became of one try.
#[derive(Debug)]
pub struct Attempt {
    /// The event.
    pub id: EventId,
    /// How the delivery stands now.
    pub status: DeliveryStatus,
    /// When to try again, if it is pending.
    pub next_at: Option<DateTime<Utc>>,
    /// The status of the answer, if there was one.
    pub response_status: Option<u16>,
    /// Milliseconds until it came, or until nobody waited any longer.
    pub latency_ms: u32,
    /// Its first KiB.
    pub response_body: Option<String>,
    /// Why there was none.
    pub error: Option<String>,
}

/// How a webhook stands after some tries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// Something has arrived.
    Arrives,
    /// Nothing has.
    Fails,
    /// It wants nothing any more.
    Gone,
}

/// Notes what became of deliveries under a lease; those that somebody else has taken meanwhile are left to them.
/// Returns why the webhook is disabled, if it is from now on.
pub async fn note(
    postgres: &Postgres,
    id: &WebhookId,
    lease: DateTime<Utc>,
    attempts: &[Attempt],
    health: Health,
    now: DateTime<Utc>,
) -> Result<Option<DisabledReason>, Error> {
    let mut transaction = postgres.pool.begin().await?;
    sqlx::query(
        "update webhook_deliveries
         set status = new.status, attempts = webhook_deliveries.attempts + 1, next_at = new.next_at, attempted_at = $3,
             response_status = new.response_status, latency_ms = new.latency_ms, response_body = new.response_body,
             error = new.error
         from unnest($4::text[], $5::text[], $6::timestamptz[], $7::smallint[], $8::integer[], $9::text[], $10::text[])
              as new (event_id, status, next_at, response_status, latency_ms, response_body, error)
         where webhook_id = $1 and webhook_deliveries.event_id = new.event_id and webhook_deliveries.next_at = $2",
    )
    .bind(id.as_str())
    .bind(lease)
    .bind(now)
    .bind(attempts.iter().map(|it| it.id.as_str()).collect::<Vec<_>>())
    .bind(attempts.iter().map(|it| it.status.to_string()).collect::<Vec<_>>())
    .bind(attempts.iter().map(|it| it.next_at).collect::<Vec<_>>())
    .bind(attempts.iter().map(|it| it.response_status.and_then(|it| i16::try_from(it).ok())).collect::<Vec<_>>())
    .bind(attempts.iter().map(|it| i32::try_from(it.latency_ms).unwrap_or(i32::MAX)).collect::<Vec<_>>())
    .bind(attempts.iter().map(|it| it.response_body.as_deref()).collect::<Vec<_>>())
    .bind(attempts.iter().map(|it| it.error.as_deref()).collect::<Vec<_>>())
    .execute(&mut *transaction)
    .await?;
    let disabled = match health {
        Health::Arrives => {
            sqlx::query(
                "update webhooks set failing_since = null where id = $1 and failing_since is not null",
            )
            .bind(id.as_str())
            .execute(&mut *transaction)
            .await?;
            None
        }
        Health::Fails | Health::Gone => {
            fail(&mut transaction, id, health == Health::Gone, now).await?
        }
    };
    transaction.commit().await?;
    Ok(disabled)
}

/// Notes that nothing has arrived; returns why the webhook is disabled, if it is from now on.
async fn fail(
    transaction: &mut Transaction<'static, sqlx::Postgres>,
    id: &WebhookId,
    gone: bool,
    now: DateTime<Utc>,
) -> Result<Option<DisabledReason>, Error> {
    let Some(before) = lock(transaction, id).await?.filter(|it| it.enabled) else {
        return Ok(None);
    };
    let row: WebhookRow = sqlx::query_as(
        "update webhooks
         set failing_since = coalesce(failing_since, $2),
             disabled_at = case when $3 or failing_since <= $4 then $2 end,
             disabled_reason = case when $3 then 'gone' when failing_since <= $4 then 'failing' end
         where id = $1
         returning *",
    )
    .bind(id.as_str())
    .bind(now)
    .bind(gone)
    .bind(now - FAILING_MAX)
    .fetch_one(&mut **transaction)
    .await?;
    let after = row.shown()?;
    if after.disabled_reason.is_some() {
        let (actor, of) = (Actor::system(), after.organization_id.as_ref());
        audit::record(transaction, &actor, "webhook.disable", of, &before, &after).await?;
    }
    Ok(after.disabled_reason)
}

async fn lock(
    transaction: &mut Transaction<'static, sqlx::Postgres>,
    id: &WebhookId,
) -> Result<Option<Webhook>, Error> {
    let row: Option<WebhookRow> = sqlx::query_as("select * from webhooks where id = $1 for update")
        .bind(id.as_str())
        .fetch_optional(&mut **transaction)
        .await?;
    row.map(WebhookRow::shown).transpose()
}

fn words(types: &BTreeSet<EventType>) -> Vec<String> {
    types.iter().map(ToString::to_string).collect()
}

fn secret_of(bytes: &[u8]) -> Result<Secret, Error> {
    bytes
        .try_into()
        .map(Secret)
        .map_err(|_| corrupt_row("a secret of a webhook"))
}

/// Where deliveries go, and what signs them.
#[derive(FromRow)]
struct TargetRow {
    url: String,
    secret: Vec<u8>,
    previous_secret: Option<Vec<u8>>,
    previous_secret_until: Option<DateTime<Utc>>,
}

impl TargetRow {
    fn secrets(&self, now: DateTime<Utc>) -> Result<Vec<Secret>, Error> {
        let overlaps = self.previous_secret_until.is_some_and(|until| now < until);
        let previous = self.previous_secret.iter().filter(|_| overlaps);
        std::iter::once(&self.secret)
            .chain(previous)
            .map(|bytes| secret_of(bytes))
            .collect()
    }
}

#[derive(FromRow)]
struct MessageRow {
    event_id: String,
    attempts: i16,
    at: DateTime<Utc>,
    r#type: String,
    data: Json<Box<RawValue>>,
}

impl MessageRow {
    fn message(self) -> Result<Message, Error> {
        Ok(Message {
            id: parse(&self.event_id)?,
            at: self.at,
            event_type: parse(&self.r#type)?,
            data: self.data.0,
            attempts: self.attempts.unsigned_abs(),
        })
    }
}

#[derive(FromRow)]
struct WebhookRow {
    id: String,
    url: String,
    events: Option<Vec<String>>,
    organization_id: Option<String>,
    previous_secret_until: Option<DateTime<Utc>>,
    failing_since: Option<DateTime<Utc>>,
    disabled_at: Option<DateTime<Utc>>,
    disabled_reason: Option<String>,
    created_at: DateTime<Utc>,
}

impl WebhookRow {
    fn shown(self) -> Result<Webhook, Error> {
        let types = |words: Vec<String>| words.iter().map(|word| parse(word)).collect();
        Ok(Webhook {
            id: parse(&self.id)?,
            url: self.url,
            events: self.events.map(types).transpose()?,
            organization_id: self.organization_id.as_deref().map(parse).transpose()?,
            enabled: self.disabled_at.is_none(),
            disabled_reason: self.disabled_reason.as_deref().map(parse).transpose()?,
            disabled_at: self.disabled_at,
            failing_since: self.failing_since,
            previous_secret_until: self.previous_secret_until,
            created_at: self.created_at,
        })
    }
}

#[derive(FromRow)]
struct DeliveryRow {
    event_id: String,
    r#type: String,
    at: DateTime<Utc>,
    status: String,
    attempts: i16,
    next_at: Option<DateTime<Utc>>,
    attempted_at: Option<DateTime<Utc>>,
    response_status: Option<i16>,
    latency_ms: Option<i32>,
    response_body: Option<String>,
    error: Option<String>,
}

impl DeliveryRow {
    fn shown(self) -> Result<Delivery, Error> {
        Ok(Delivery {
            id: parse(&self.event_id)?,
            r#type: parse(&self.r#type)?,
            timestamp: self.at,
            status: parse(&self.status)?,
            attempts: self.attempts.unsigned_abs(),
            next_attempt_at: self.next_at,
            last_attempt_at: self.attempted_at,
            response_status: self.response_status.map(i16::unsigned_abs),
            latency_ms: self.latency_ms.map(i32::unsigned_abs),
            response_body: self.response_body,
            error: self.error,
        })
    }
}
