//! What the handlers of pages share.

use std::sync::Arc;

use axum::Router;
use tokio::sync::Semaphore;

use crate::http::state::State;

/// The most refused sign-ins that wait at once; further attempts are turned away.
const REFUSALS_MAX: usize = 32;

/// The most streams of live figures at once.
const STREAMS_MAX: usize = 256;

/// Shared handles; cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Dashboard {
    pub(super) state: State,
    /// The routes of the HTTP API, without the layers that this request has passed already.
    pub(super) api: Router,
    /// Held while a refused sign-in waits.
    pub(super) refusals: Arc<Semaphore>,
    /// Held by each stream of live figures.
    pub(super) streams: Arc<Semaphore>,
}

impl Dashboard {
    pub(super) fn new(state: State, api: Router) -> Self {
        Self {
            state,
            api,
            refusals: Arc::new(Semaphore::new(REFUSALS_MAX)),
            streams: Arc::new(Semaphore::new(STREAMS_MAX)),
        }
    }
}
