//! The handles that the HTTP faces share.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use crate::access::Access;
use crate::admin::Admin;
use crate::budget::{Budget, Turns};
use crate::clock::Clock;
use crate::config::Origins;
use crate::counters::Counters;
use crate::history::History;
use crate::metering::Metering;
use crate::metrics::Metrics;
use crate::store::Store;
use crate::verifier::Verifier;
use crate::webhooks::Webhooks;

/// Everything that a handler may need; clones share it.
#[derive(Debug, Clone)]
pub struct State(Arc<Handles>);

/// The handles themselves.
#[derive(Debug)]
pub struct Handles {
    /// Who may call.
    pub access: Access,
    /// Counting and reading.
    pub metering: Metering,
    /// What was used when.
    pub history: History,
    /// Changing.
    pub admin: Admin,
    /// Comparing.
    pub verifier: Verifier,
    /// Telling others.
    pub webhooks: Webhooks,
    /// Asked for its health alone.
    pub counters: Counters,
    /// Asked for its health alone.
    pub store: Store,
    /// For `Retry-After`.
    pub clock: Clock,
    /// What is told of them all.
    pub metrics: Metrics,
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
