//! Delivers events to webhooks.

use std::collections::HashSet;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use futures::StreamExt as _;
use futures::future::join_all;
use futures::stream::FuturesUnordered;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use xxhash_rust::xxh3::xxh3_64;

use super::sender::{self, Response, Sender};
use super::signature;
use super::targets::Targets;
use crate::context::Context;
use crate::domain::ids::WebhookId;
use crate::domain::webhook::{DeliveryStatus, DisabledReason, retry_delay};
use crate::jobs::driver::Job;
use crate::metrics::{DeliveryOutcome, Worker};
use crate::postgres;
use crate::postgres::webhooks::{self, Attempt, Claimed, Health, Message};

/// Between two queries for due deliveries.
const INTERVAL: Duration = Duration::from_millis(500);

/// The most concurrent deliveries of an instance to one webhook.
const BATCH: u32 = 32;

/// How long an instance may work on deliveries: longer than any of them takes.
const LEASE: TimeDelta = TimeDelta::seconds(15);

/// The status of an endpoint that wants no more events.
const GONE: u16 = 410;

/// The job that delivers; clones share the connections.
#[derive(Debug, Clone)]
pub struct Deliverer {
    ctx: Context,
    sender: Sender,
}

/// What one round did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Report {
    /// Deliveries that succeeded.
    pub succeeded: usize,
    /// Attempts that failed.
    pub failed: usize,
}

impl Deliverer {
    /// A job that connects to public addresses only, or to any.
    pub fn new(ctx: Context, allow_private: bool) -> Self {
        Self {
            ctx,
            sender: Sender::new(Targets::new(allow_private)),
        }
    }

    /// Delivers what is due until `stop`, then finishes the deliveries that are running.
    pub async fn run(self, stop: CancellationToken) {
        let mut job = Job::new(&self.ctx, Some(Worker::Deliver), "look for due deliveries");
        let mut ticks = tokio::time::interval(INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut serving = FuturesUnordered::new();
        let mut served = HashSet::new();
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                Some(id) = serving.next() => {
                    served.remove(&id);
                }
                _ = ticks.tick() => for id in job.round(self.due()).await.unwrap_or_default() {
                    if served.insert(id.clone()) {
                        serving.push(self.serve(id, &stop));
                    }
                },
            }
        }
        while serving.next().await.is_some() {}
    }

    /// Delivers what is due, at most a batch to each webhook.
    pub async fn deliver_once(&self) -> Result<Report, postgres::Error> {
        let due = self.due().await?;
        let batches = join_all(due.iter().map(|id| self.deliver(id))).await;
        let mut total = Report::default();
        for batch in batches {
            let batch = batch?;
            total.succeeded += batch.succeeded;
            total.failed += batch.failed;
        }
        Ok(total)
    }

    /// The webhooks with due deliveries; also measures for how long they have been due.
    async fn due(&self) -> Result<Vec<WebhookId>, postgres::Error> {
        let now = self.ctx.clock.now();
        let due = webhooks::due(&self.ctx.postgres, now).await?;
        let oldest = due.iter().map(|(_, since)| *since).min();
        let lag = oldest.map_or(TimeDelta::zero(), |since| now - since);
        let lag = lag.to_std().unwrap_or_default();
        self.ctx.metrics.set_delivery_lag(lag);
        Ok(due.into_iter().map(|(id, _)| id).collect())
    }

    /// Delivers to one webhook until nothing is due.
    async fn serve(&self, id: WebhookId, stop: &CancellationToken) -> WebhookId {
        while !stop.is_cancelled() {
            match self.deliver(&id).await {
                Ok(report) if report == Report::default() => break,
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!(webhook.id = %id, %error, "cannot record deliveries");
                    break;
                }
            }
        }
        id
    }

    /// Delivers one batch to one webhook.
    async fn deliver(&self, id: &WebhookId) -> Result<Report, postgres::Error> {
        let (postgres, now) = (&self.ctx.postgres, self.ctx.clock.now());
        let claimed = webhooks::claim(postgres, id, now, now + LEASE, BATCH).await?;
        let Some(claimed) = claimed.filter(|claimed| !claimed.messages.is_empty()) else {
            return Ok(Report::default());
        };
        let messages = claimed.messages.iter();
        let responses = join_all(messages.map(|message| self.send(&claimed, message))).await;
        let now = self.ctx.clock.now();
        let messages = claimed.messages.iter().zip(responses);
        let attempts: Vec<Attempt> = messages
            .map(|(message, response)| attempt(id, message, response, now))
            .collect();
        for attempt in &attempts {
            self.ctx.metrics.delivery_attempted(match attempt.status {
                DeliveryStatus::Succeeded => DeliveryOutcome::Succeeded,
                DeliveryStatus::Pending => DeliveryOutcome::Failed,
                DeliveryStatus::Failed => DeliveryOutcome::GivenUp,
            });
        }
        let statuses = attempts.iter().map(|it| it.status);
        let succeeded = statuses
            .filter(|it| *it == DeliveryStatus::Succeeded)
            .count();
        let health = if attempts.iter().any(|it| it.response_status == Some(GONE)) {
            Health::Gone
        } else if succeeded > 0 {
            Health::Healthy
        } else {
            Health::Failing
        };
        let disabled =
            webhooks::record(postgres, id, claimed.until, &attempts, health, now).await?;
        if let Some(reason) = disabled {
            let why = match reason {
                DisabledReason::Gone => "it responded with 410",
                _ => "no delivery has succeeded for 5 days",
            };
            tracing::warn!(webhook.id = %id, "disabled a webhook: {why}");
        }
        Ok(Report {
            succeeded,
            failed: attempts.len() - succeeded,
        })
    }

    async fn send(&self, claimed: &Claimed, message: &Message) -> Response {
        let payload = sender::payload(message);
        let at = self.ctx.clock.now().timestamp();
        let signatures = signature::sign(&claimed.secrets, &message.id, at, &payload);
        self.sender
            .post(&claimed.url, &message.id, at, &signatures, payload)
            .await
    }
}

fn attempt(id: &WebhookId, message: &Message, response: Response, now: DateTime<Utc>) -> Attempt {
    let jitter = xxh3_64(format!("{id}{}{}", message.id, message.attempts).as_bytes());
    let next_at = match response.status {
        Some(200..=299 | GONE) => None,
        _ => retry_delay(message.attempts.saturating_add(1), jitter).map(|delay| now + delay),
    };
    Attempt {
        id: message.id.clone(),
        status: match (response.status, next_at) {
            (Some(200..=299), _) => DeliveryStatus::Succeeded,
            (_, Some(_)) => DeliveryStatus::Pending,
            (_, None) => DeliveryStatus::Failed,
        },
        next_at,
        response_status: response.status,
        latency_ms: response.latency_ms,
        response_body: response.body,
        error: response.error,
    }
}
