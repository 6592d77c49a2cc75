//! What the handlers of pages share.

use axum::Router;

use crate::http::state::State;

/// Shared handles; cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Dashboard {
    pub(super) state: State,
    /// The routes of the HTTP API, without the layers that this request has passed already.
    pub(super) api: Router,
}

impl Dashboard {
    pub(super) fn new(state: State, api: Router) -> Self {
        Self { state, api }
    }
}
