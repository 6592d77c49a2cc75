//! Webhooks: registering them, and delivering events to them.
//!
//! An event is delivered at least once, as the Standard Webhooks specification describes, with the same `webhook-id` on
//! every try. Instances share the work by leases in Postgres; whoever dies with one leaves it to the others. Each webhook
//! is served by itself, so that one that is slow delays no other. Start reading at [`Webhooks::deliver_once`];
//! [`Webhooks::run`] loops.

mod sender;
mod signature;
mod targets;

use std::collections::HashSet;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use futures::StreamExt as _;
use futures::future::join_all;
use futures::stream::FuturesUnordered;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;
use xxhash_rust::xxh3::xxh3_64;

use crate::context::Context;
use crate::domain::ids::{EventId, WebhookId};
use crate::domain::webhook::{
    Delivery, DeliveryStatus, DisabledReason, InvalidWebhook, NewWebhook, Secret, Webhook,
    WebhookChange, check_events, retry_delay,
};
use crate::failure::Failure;
use crate::metrics::{DeliveryOutcome, Worker};
use crate::postgres::Actor;
use crate::postgres::webhooks::{self, Attempt, Claimed, Health, Message};
use sender::{Answer, Sender};
use targets::Targets;

/// Between two looks for what is to be delivered.
const INTERVAL: Duration = Duration::from_millis(500);

/// How many deliveries to one webhook an instance has on their way at once.
const BATCH: u32 = 32;

/// How long whoever has taken deliveries has for them: longer than any of them takes.
const LEASE: TimeDelta = TimeDelta::seconds(15);

/// How long the secret before the present one still signs.
const OVERLAP: TimeDelta = TimeDelta::hours(24);

/// The status of an endpoint that wants nothing any more.
const GONE: u16 = 410;

/// The handle on webhooks; clones share the connections.
#[derive(Debug, Clone)]
pub struct Webhooks {
    ctx: Context,
    targets: Targets,
    sender: Sender,
}

/// A webhook with its secret, which is shown once.
#[expect(
    missing_debug_implementations,
    reason = "printing it would print the secret"
)]
pub struct Issued {
    /// What will be shown of it from now on.
    pub webhook: Webhook,
    /// The secret as its owner needs it: `whsec_` and base64.
    pub secret: String,
}

/// What one round did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Report {
    /// Deliveries that arrived.
    pub succeeded: usize,
    /// Tries that did not.
    pub failed: usize,
}

/// Why a webhook is not made, or not changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A field does not do.
    #[error(transparent)]
    Invalid(#[from] InvalidWebhook),
    /// A failure that use cases share.
    #[error(transparent)]
    Failure(Failure),
}

impl<E: Into<Failure>> From<E> for Error {
    fn from(failure: E) -> Self {
        Self::Failure(failure.into())
    }
}

impl Webhooks {
    /// A handle that sends to public addresses alone, or to any.
    pub fn new(ctx: Context, allow_private: bool) -> Self {
        let targets = Targets::new(allow_private);
        Self {
            ctx,
            sender: Sender::new(targets),
            targets,
        }
    }

    /// The same, with the connections to Postgres of another context.
    #[must_use]
    pub fn on(&self, ctx: Context) -> Self {
        Self {
            ctx,
            ..self.clone()
        }
    }

    /// Makes a webhook.
    pub async fn create(&self, wish: &NewWebhook, actor: &Actor) -> Result<Issued, Error> {
        check_events(wish.events.as_ref())?;
        self.targets.check(&wish.url).await?;
        let secret = new_secret();
        let now = self.ctx.clock.now();
        Ok(Issued {
            webhook: webhooks::create(&self.ctx.postgres, wish, &secret, now, actor).await?,
            secret: signature::reveal(&secret),
        })
    }

    /// At most `count` webhooks, newest first.
    pub async fn list(&self, after: Option<&WebhookId>, count: u32) -> Result<Vec<Webhook>, Error> {
        Ok(webhooks::list(&self.ctx.postgres, after, count).await?)
    }

    /// One webhook; none if there is none.
    pub async fn find(&self, id: &WebhookId) -> Result<Option<Webhook>, Error> {
        Ok(webhooks::find(&self.ctx.postgres, id).await?)
    }

    /// Changes what is named; none if there is no such webhook.
    pub async fn change(
        &self,
        id: &WebhookId,
        change: &WebhookChange,
        actor: &Actor,
    ) -> Result<Option<Webhook>, Error> {
        check_events(change.events.as_ref().and_then(Option::as_ref))?;
        if let Some(url) = &change.url {
            self.targets.check(url).await?;
        }
        let now = self.ctx.clock.now();
        Ok(webhooks::change(&self.ctx.postgres, id, change, now, actor).await?)
    }

    /// Deletes a webhook, and what was to be delivered to it; false if there is none.
    pub async fn delete(&self, id: &WebhookId, actor: &Actor) -> Result<bool, Error> {
        Ok(webhooks::delete(&self.ctx.postgres, id, actor).await?)
    }

    /// Gives a webhook another secret; the one before signs beside it for a day. None if there is no such webhook.
    pub async fn rotate_secret(
        &self,
        id: &WebhookId,
        actor: &Actor,
    ) -> Result<Option<Issued>, Error> {
        let secret = new_secret();
        let until = self.ctx.clock.now() + OVERLAP;
        let webhook = webhooks::rotate(&self.ctx.postgres, id, &secret, until, actor).await?;
        Ok(webhook.map(|webhook| Issued {
            webhook,
            secret: signature::reveal(&secret),
        }))
    }

    /// Sends an event to one webhook alone, so that people see what arrives; none if there is no such webhook.
    pub async fn test(&self, id: &WebhookId, actor: &Actor) -> Result<Option<Delivery>, Error> {
        Ok(webhooks::test(&self.ctx.postgres, id, self.ctx.clock.now(), actor).await?)
    }

    /// Tries a delivery again, from the beginning, whatever became of it; none if there is none.
    pub async fn redeliver(
        &self,
        id: &WebhookId,
        event: &EventId,
        actor: &Actor,
    ) -> Result<Option<Delivery>, Error> {
        Ok(webhooks::redeliver(&self.ctx.postgres, id, event, self.ctx.clock.now(), actor).await?)
    }

    /// Deliveries of a webhook, newest event first; none if there is no such webhook.
    pub async fn deliveries(
        &self,
        id: &WebhookId,
        status: Option<DeliveryStatus>,
        before: Option<&EventId>,
        count: u32,
    ) -> Result<Option<Vec<Delivery>>, Error> {
        let found = webhooks::deliveries(&self.ctx.postgres, id, status, before, count).await?;
        if found.is_empty() && self.find(id).await?.is_none() {
            return Ok(None);
        }
        Ok(Some(found))
    }

    /// Delivers what is due until `stop`, and ends what it has begun.
    pub async fn run(&self, stop: CancellationToken) {
        let mut ticks = tokio::time::interval(INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut serving = FuturesUnordered::new();
        let mut served = HashSet::new();
        let mut failing = false;
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                Some(id) = serving.next() => {
                    served.remove(&id);
                }
                _ = ticks.tick() => match self.ctx.metrics.timed(Worker::Deliver, self.due()).await {
                    Ok(due) => {
                        failing = false;
                        for id in due {
                            if served.insert(id.clone()) {
                                serving.push(self.serve(id, &stop));
                            }
                        }
                    }
                    Err(error) if !failing => {
                        tracing::warn!(%error, "webhooks cannot be looked for");
                        failing = true;
                    }
                    Err(_) => {}
                },
            }
        }
        while serving.next().await.is_some() {}
    }

    /// Delivers what is due, at most a batch to each webhook.
    pub async fn deliver_once(&self) -> Result<Report, Error> {
        let due = self.due().await?;
        let batches = join_all(due.iter().map(|id| self.deliver(id))).await;
        let mut all = Report::default();
        for batch in batches {
            let batch = batch?;
            all.succeeded += batch.succeeded;
            all.failed += batch.failed;
        }
        Ok(all)
    }

    /// The webhooks that something waits for; tells how long it has waited.
    async fn due(&self) -> Result<Vec<WebhookId>, Error> {
        let now = self.ctx.clock.now();
        let due = webhooks::due(&self.ctx.postgres, now).await?;
        let oldest = due.iter().map(|(_, since)| *since).min();
        let lag = oldest.map_or(TimeDelta::zero(), |since| now - since);
        self.ctx
            .metrics
            .set_delivery_lag(lag.to_std().unwrap_or_default());
        Ok(due.into_iter().map(|(id, _)| id).collect())
    }

    /// Delivers to one webhook until nothing is due to it.
    async fn serve(&self, id: WebhookId, stop: &CancellationToken) -> WebhookId {
        while !stop.is_cancelled() {
            match self.deliver(&id).await {
                Ok(report) if report == Report::default() => break,
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!(webhook.id = %id, %error, "what was delivered cannot be noted");
                    break;
                }
            }
        }
        id
    }

    /// Delivers one batch to one webhook.
    async fn deliver(&self, id: &WebhookId) -> Result<Report, Error> {
        let now = self.ctx.clock.now();
        let claimed = webhooks::claim(&self.ctx.postgres, id, now, now + LEASE, BATCH).await?;
        let Some(claimed) = claimed.filter(|claimed| !claimed.messages.is_empty()) else {
            return Ok(Report::default());
        };
        let messages = claimed.messages.iter();
        let answers = join_all(messages.map(|message| self.send(&claimed, message))).await;
        let now = self.ctx.clock.now();
        let attempts: Vec<Attempt> = claimed
            .messages
            .iter()
            .zip(answers)
            .map(|(message, answer)| attempt(id, message, answer, now))
            .collect();
        for attempt in &attempts {
            self.ctx.metrics.delivery_attempted(match attempt.status {
                DeliveryStatus::Succeeded => DeliveryOutcome::Succeeded,
                DeliveryStatus::Pending => DeliveryOutcome::Failed,
                DeliveryStatus::Failed => DeliveryOutcome::GivenUp,
            });
        }
        let arrived = |it: &&Attempt| it.status == DeliveryStatus::Succeeded;
        let succeeded = attempts.iter().filter(arrived).count();
        let health = if attempts.iter().any(|it| it.response_status == Some(GONE)) {
            Health::Gone
        } else if succeeded > 0 {
            Health::Arrives
        } else {
            Health::Fails
        };
        let disabled = webhooks::note(
            &self.ctx.postgres,
            id,
            claimed.until,
            &attempts,
            health,
            now,
        )
        .await?;
        match disabled {
            Some(DisabledReason::Gone) => {
                tracing::warn!(webhook.id = %id, "a webhook is disabled: it has answered 410");
            }
            Some(_) => {
                tracing::warn!(webhook.id = %id, "a webhook is disabled: nothing has arrived for 5 days");
            }
            None => {}
        }
        Ok(Report {
            succeeded,
            failed: attempts.len() - succeeded,
        })
    }

    async fn send(&self, claimed: &Claimed, message: &Message) -> Answer {
        let payload = sender::payload(message);
        let at = self.ctx.clock.now().timestamp();
        let signatures = signature::sign(&claimed.secrets, &message.id, at, &payload);
        self.sender
            .post(&claimed.url, &message.id, at, &signatures, payload)
            .await
    }
}

fn attempt(id: &WebhookId, message: &Message, answer: Answer, now: DateTime<Utc>) -> Attempt {
    let spread = xxh3_64(format!("{id}{}{}", message.id, message.attempts).as_bytes());
    let next_at = match answer.status {
        Some(200..=299 | GONE) => None,
        _ => retry_delay(message.attempts.saturating_add(1), spread).map(|pause| now + pause),
    };
    Attempt {
        id: message.id.clone(),
        status: match (answer.status, next_at) {
            (Some(200..=299), _) => DeliveryStatus::Succeeded,
            (_, Some(_)) => DeliveryStatus::Pending,
            (_, None) => DeliveryStatus::Failed,
        },
        next_at,
        response_status: answer.status,
        latency_ms: answer.latency_ms,
        response_body: answer.body,
        error: answer.error,
    }
}

fn new_secret() -> Secret {
    let mut bytes = [0; 32];
    for half in bytes.chunks_mut(16) {
        half.copy_from_slice(Uuid::new_v4().as_bytes());
    }
    Secret(bytes)
}
