//! What the handlers of pages share.

use std::sync::Arc;

use axum::Router;
use tokio::sync::Semaphore;

use crate::http::state::State;

/// The most refused sign-ins that wait at once; further attempts are turned away.
const REFUSALS_MAX: usize = 32;

/// Shared handles; cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Dashboard {
    pub(super) state: State,
    /// The routes of the HTTP API, without the layers that this request has passed already.
    pub(super) api: Router,
    /// Held while a refused sign-in waits.
    pub(super) refusals: Arc<Semaphore>,
}

impl Dashboard {
    pub(super) fn new(state: State, api: Router) -> Self {
        Self {
            state,
            api,
            refusals: Arc::new(Semaphore::new(REFUSALS_MAX)),
        }
    }
}
