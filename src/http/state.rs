//! The handles that the HTTP faces share.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use crate::admin::Admin;
use crate::auth::Auth;
use crate::budget::{Budget, Turns};
use crate::config::Origins;
use crate::context::Context;
use crate::jobs::webhooks::Webhooks;
use crate::usage::Usage;
use crate::usage::history::History;
use crate::usage::verify::Verifier;

/// Everything that a handler may need; clones share it.
#[derive(Debug, Clone)]
pub struct State(Arc<Handles>);

/// The handles themselves.
#[derive(Debug)]
pub struct Handles {
    /// Who may call.
    pub auth: Auth,
    /// Counting and reading.
    pub usage: Usage,
    /// What was used when.
    pub history: History,
    /// Changing.
    pub admin: Admin,
    /// Comparing.
    pub verifier: Verifier,
    /// Notifying others.
    pub webhooks: Webhooks,
    /// Servers, clock and metrics.
    pub ctx: Context,
    /// Whether the metrics are told elsewhere than beside the API.
    pub metrics_apart: bool,
    /// Below which the Better Auth plugin's endpoints are.
    pub plugin_path: String,
    /// Whose pages may call from a browser.
    pub cors_origins: Origins,
    /// How long the body of a request may take to arrive.
    pub body_patience: Duration,
    /// The bytes of bodies that are under way.
    pub bodies: Budget,
    /// Whose large batches are under way.
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
