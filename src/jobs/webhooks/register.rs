//! Creating webhooks, changing them, and replacing their secrets.

use chrono::TimeDelta;
use uuid::Uuid;

use super::signature;
use super::targets::Targets;
use crate::admin::{Error, Invalid};
use crate::context::Context;
use crate::domain::ids::WebhookId;
use crate::domain::webhook::{NewWebhook, Secret, Webhook, WebhookChange, check_events};
use crate::failure::Failure;
use crate::postgres::{Actor, webhooks};

/// How long the previous secret still signs after a rotation.
const OVERLAP: TimeDelta = TimeDelta::hours(24);

/// The handle on webhooks, for requests.
#[derive(Debug, Clone)]
pub struct Webhooks {
    ctx: Context,
    targets: Targets,
}

/// A webhook with its secret, which is shown once.
#[expect(
    missing_debug_implementations,
    reason = "printing it would print the secret"
)]
pub struct Issued {
    /// What is shown of it from now on.
    pub webhook: Webhook,
    /// The secret as its owner needs it: `whsec_` and base64.
    pub secret: String,
}

impl Webhooks {
    /// A handle that accepts URLs of public addresses only, or of any.
    pub fn new(ctx: Context, allow_private: bool) -> Self {
        let targets = Targets::new(allow_private);
        Self { ctx, targets }
    }

    /// Creates a webhook.
    pub async fn create(&self, new: &NewWebhook, actor: &Actor) -> Result<Issued, Error> {
        check_events(new.events.as_ref()).map_err(Invalid::from)?;
        self.check_url(&new.url).await?;
        let (secret, now) = (new_secret(), self.ctx.clock.now());
        let webhook = webhooks::create(&self.ctx.postgres, new, &secret, now, actor).await?;
        Ok(issued(webhook, &secret))
    }

    /// Changes the named fields; none if there is no such webhook.
    pub async fn change(
        &self,
        id: &WebhookId,
        change: &WebhookChange,
        actor: &Actor,
    ) -> Result<Option<Webhook>, Error> {
        let events = change.events.as_ref().and_then(Option::as_ref);
        check_events(events).map_err(Invalid::from)?;
        if let Some(url) = &change.url {
            self.check_url(url).await?;
        }
        let now = self.ctx.clock.now();
        Ok(webhooks::change(&self.ctx.postgres, id, change, now, actor).await?)
    }

    async fn check_url(&self, url: &str) -> Result<(), Invalid> {
        Ok(self.targets.check(url).await?)
    }

    /// Replaces the secret; the previous one also signs for a day. None if there is no such webhook.
    pub async fn rotate_secret(
        &self,
        id: &WebhookId,
        actor: &Actor,
    ) -> Result<Option<Issued>, Failure> {
        let secret = new_secret();
        let until = self.ctx.clock.now() + OVERLAP;
        let webhook = webhooks::rotate(&self.ctx.postgres, id, &secret, until, actor).await?;
        Ok(webhook.map(|webhook| issued(webhook, &secret)))
    }
}

fn issued(webhook: Webhook, secret: &Secret) -> Issued {
    Issued {
        webhook,
        secret: signature::reveal(secret),
    }
}

fn new_secret() -> Secret {
    let mut bytes = [0; 32];
    for half in bytes.chunks_mut(16) {
        half.copy_from_slice(Uuid::new_v4().as_bytes());
    }
    Secret(bytes)
}
