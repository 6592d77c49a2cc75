//! The handles that HTTP handlers share.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use crate::admin::Admin;
use crate::auth::Auth;
use crate::budget::{Budget, Turns};
use crate::config::Origins;
use crate::context::Context;
use crate::jobs::activity::Activity;
use crate::jobs::live::Live;
use crate::jobs::webhooks::Webhooks;
use crate::usage::Usage;
use crate::usage::history::History;
use crate::usage::verify::Verifier;

/// Shared handles; cheap to clone.
#[derive(Debug, Clone)]
pub struct State(Arc<Handles>);

/// The handles.
#[derive(Debug)]
pub struct Handles {
    /// Authenticates callers.
    pub auth: Auth,
    /// Counts and reads usage.
    pub usage: Usage,
    /// Reads past usage.
    pub history: History,
    /// Administers organizations, plans and keys.
    pub admin: Admin,
    /// Compares Redis with Postgres.
    pub verifier: Verifier,
    /// Reads the overview of the service.
    pub activity: Activity,
    /// Reads for the streams of live figures.
    pub live: Live,
    /// Administers webhooks.
    pub webhooks: Webhooks,
    /// Servers, clock and metrics.
    pub ctx: Context,
    /// Whether `/metrics` has an address of its own.
    pub metrics_apart: bool,
    /// The path prefix of the Better Auth plugin's endpoints.
    pub plugin_path: String,
    /// Origins whose pages may call the API.
    pub cors_origins: Origins,
    /// Origins whose pages may embed usage cards.
    pub embed_origins: Origins,
    /// The timeout of receiving a body.
    pub body_patience: Duration,
    /// How long a request may take.
    pub request_timeout: Duration,
    /// The memory budget of bodies being received.
    pub bodies: Budget,
    /// Limits the large batches that a caller has processed at once.
    pub batches: Turns,
    /// Set when the service stops taking new work.
    pub draining: AtomicBool,
}

impl State {
    /// Shares these handles.
    pub fn new(handles: Handles) -> Self {
        Self(Arc::new(handles))
    }
}

impl std::ops::Deref for State {
    type Target = Handles;

    fn deref(&self) -> &Handles {
        &self.0
    }
}
