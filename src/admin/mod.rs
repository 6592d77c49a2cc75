//! What administrators change: organizations, their limits and counts, plans, and API keys.
//!
//! Every change is one Postgres transaction, with a row in the audit log. A change of a policy gets a version and is
//! applied to Redis before the caller gets a response (rule 7 of the protocol). If Redis fails after the commit, the sweep
//! of `policies` applies it.

mod adjust;
mod change;
mod delete;
mod keys;
mod limits;
mod organizations;
mod plans;
mod plugin;
mod reset;
mod reset_expired;

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::auth::Auth;
use crate::context::Context;
use crate::domain::api_key::InvalidApiKey;
use crate::domain::calendar::InvalidCalendar;
use crate::domain::ids::{MeterId, OrganizationId};
use crate::domain::limit::{LimitOverride, TemporaryLimit};
use crate::domain::patch::Change;
use crate::domain::precondition::PreconditionFailed;
use crate::domain::webhook::InvalidWebhook;
use crate::failure::Failure;
use crate::policies::Policies;
use crate::redis::Connection;
use crate::usage::drain::Drainer;
use crate::usage::recovery::Recovery;

pub use adjust::Adjustment;
pub use delete::Deletion;
pub use plans::PlanPreview;
pub use plugin::PluginUpdate;
pub use reset::{MeterReset, Reset, ResetPreview};
pub use reset_expired::Expired;

/// How often an operation is retried because of concurrent changes.
const ATTEMPTS_MAX: usize = 20;

/// The most organizations whose resets, or adjustments, one sweep finishes.
const UNFINISHED_MAX: u32 = 1000;

/// The handle on administration; clones share everything.
#[derive(Debug, Clone)]
pub struct Admin {
    ctx: Context,
    policies: Policies,
    recovery: Recovery,
    drainer: Drainer,
    auth: Auth,
}

/// Changes of limits by meter; none removes the organization's own limit.
pub type LimitChanges = BTreeMap<MeterId, Option<LimitChange>>;

/// A change of an organization's own limit on one meter; absent fields stay.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct LimitChange {
    /// The limit until it is changed again.
    pub lasting: LimitOverride,
    /// The temporary limit on top of it; unset ends it early.
    pub temporary: Change<TemporaryLimit>,
}

/// Why a change did not happen.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A field is invalid, or conflicts with another one.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// The organization was never counted or configured.
    #[error("there is no such organization")]
    NotFound,
    /// The plan does not exist.
    #[error("there is no such plan")]
    NoSuchPlan,
    /// Others depend on the present state.
    #[error("{0}")]
    Conflict(String),
    /// The state is not the one that the caller demands.
    #[error(transparent)]
    PreconditionFailed(#[from] PreconditionFailed),
    /// A failure that use cases share. If the change was committed before Redis failed, the sweep applies it.
    #[error(transparent)]
    Failure(Failure),
}

impl<E: Into<Failure>> From<E> for Error {
    fn from(failure: E) -> Self {
        Self::Failure(failure.into())
    }
}

/// An invalid field.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub struct Invalid {
    /// The field as a JSON pointer into the body.
    pub pointer: String,
    /// What is wrong with it.
    pub detail: String,
}

impl From<InvalidCalendar> for Invalid {
    fn from(invalid: InvalidCalendar) -> Self {
        Self {
            pointer: format!("/{}", invalid.field),
            detail: invalid.detail,
        }
    }
}

impl From<InvalidWebhook> for Invalid {
    fn from(invalid: InvalidWebhook) -> Self {
        Self {
            pointer: format!("/{}", invalid.field),
            detail: invalid.detail,
        }
    }
}

impl From<InvalidApiKey> for Invalid {
    fn from(invalid: InvalidApiKey) -> Self {
        Self {
            pointer: format!("/{}", invalid.field),
            detail: invalid.detail,
        }
    }
}

impl Admin {
    /// A handle for this service.
    pub fn new(ctx: Context, policies: Policies, recovery: Recovery, auth: Auth) -> Self {
        Self {
            drainer: Drainer::new(ctx.clone(), policies.clone(), recovery.clone()),
            ctx,
            policies,
            recovery,
            auth,
        }
    }

    /// A connection on which a change of an organization can be applied, after an interrupted earlier change is finished.
    /// Called before the commit, so that nothing is committed while Redis is down or full.
    async fn writable(&self, organization: &OrganizationId) -> Result<Arc<Connection>, Failure> {
        let connection = self.ctx.redis.connection().await?;
        connection.writable(organization).await?;
        self.policies.pass_fence(organization).await?;
        Ok(connection)
    }
}
