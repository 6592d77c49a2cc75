//! What administrators change: organizations, their limits, their counts, plans, and API keys; and who has changed what.
//!
//! Every change is one Postgres transaction with a row in the audit log. One of a policy has a version and is
//! then applied to Redis before the caller hears of it (rule 7 of the protocol). If Redis is away
//! after the commit, the sweep of `policies` applies it.

mod activity;
mod adjustments;
mod audit;
mod deletion;
mod keys;
mod limits;
mod organizations;
mod plans;
mod plugin;
mod resets;

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::auth::Auth;
use crate::context::Context;
use crate::domain::api_key::InvalidApiKey;
use crate::domain::ids::{MeterId, OrganizationId};
use crate::domain::patch::Change;
use crate::domain::period::InvalidCalendar;
use crate::domain::policy::{LimitOverride, Organization, TemporaryLimit};
use crate::domain::precondition::{PreconditionFailed, Preconditions};
use crate::domain::schedule::Activity;
use crate::failure::Failure;
use crate::policies::Policies;
use crate::postgres::organizations::{Changed, Sources};
use crate::postgres::{self, Actor};
use crate::redis::Connection;
use crate::usage::recovery::Recovery;

pub use adjustments::Adjustment;
pub use deletion::Deletion;
pub use plugin::PluginUpdate;
pub use resets::{Expired, MeterReset, Reset};

/// How often a change is tried anew because something was counted meanwhile that it depends on.
const ROUNDS_MAX: u32 = 5;

/// The handle on administration; clones share everything.
#[derive(Debug, Clone)]
pub struct Admin {
    ctx: Context,
    policies: Policies,
    recovery: Recovery,
    auth: Auth,
}

/// Which organizations a change is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Whom {
    /// Those that there are.
    Existing,
    /// Any: one that there is not is created.
    Anybody,
}

/// Changes of limits by meter; none removes all that is the organization's own.
pub type LimitChanges = BTreeMap<MeterId, Option<LimitChange>>;

/// A change of an organization's own limit on one meter; what is absent stays.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct LimitChange {
    /// What holds until somebody changes it.
    pub lasting: LimitOverride,
    /// What lies on top of it for a time; unset, that ends early.
    pub temporary: Change<TemporaryLimit>,
}

/// Why a change did not happen.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A setting does not fit the others.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// Nobody has counted or configured this organization.
    #[error("there is no such organization")]
    NotFound,
    /// Nobody has made this plan.
    #[error("there is no such plan")]
    NoSuchPlan,
    /// Others depend on its being as it is.
    #[error("{0}")]
    Conflict(String),
    /// It is in another state than the caller demands.
    #[error(transparent)]
    PreconditionFailed(#[from] PreconditionFailed),
    /// A failure that use cases share.
    #[error(transparent)]
    Failure(Failure),
}

impl<E: Into<Failure>> From<E> for Error {
    fn from(failure: E) -> Self {
        Self::Failure(failure.into())
    }
}

/// A setting that does not fit the others.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub struct Invalid {
    /// The setting as a JSON pointer into the body.
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

impl From<InvalidApiKey> for Invalid {
    fn from(invalid: InvalidApiKey) -> Self {
        Self {
            pointer: format!("/{}", invalid.field),
            detail: invalid.detail,
        }
    }
}

impl Admin {
    /// A handle on these.
    pub fn new(ctx: Context, policies: Policies, recovery: Recovery, auth: Auth) -> Self {
        Self {
            ctx,
            policies,
            recovery,
            auth,
        }
    }

    /// A connection over which a change of an organization can be put in force, after what an earlier one has left to be done.
    /// Asked for before the commit: while Redis is away or full, nothing should be half done.
    async fn prepared(&self, organization: &OrganizationId) -> Result<Arc<Connection>, Error> {
        let connection = self.ctx.redis.connection().await?;
        connection.writable().await?;
        self.policies.pass_fence(organization).await?;
        Ok(connection)
    }

    /// Commits a change of an organization that is in the state that the caller demands, and puts it in force
    /// everywhere.
    async fn change(
        &self,
        organization: &OrganizationId,
        whom: Whom,
        conditions: &Preconditions,
        actor: &Actor,
        action: &str,
        change: impl Fn(&Sources, Activity) -> Result<Organization, Error>,
    ) -> Result<Sources, Error> {
        for _ in 0..ROUNDS_MAX {
            let changed = self
                .try_change(organization, whom, conditions, actor, action, &change)
                .await?;
            if let Some(sources) = changed {
                return Ok(sources);
            }
        }
        Err(Failure::Contended.into())
    }

    /// The same, unless something was counted meanwhile that the change depends on.
    async fn try_change(
        &self,
        organization: &OrganizationId,
        whom: Whom,
        conditions: &Preconditions,
        actor: &Actor,
        action: &str,
        change: impl Fn(&Sources, Activity) -> Result<Organization, Error>,
    ) -> Result<Option<Sources>, Error> {
        let connection = self.prepared(organization).await?;
        // The first change of all may come before the defaults were published.
        let stored = self.policies.stored(organization).await?;
        let presence = self.policies.presence(organization).await?;
        let schedule = stored.policy().schedule;
        let in_redis = self
            .counted_in_redis(&connection, organization, &schedule)
            .await?;
        let in_postgres = postgres::usage::last_counted(&self.ctx.postgres, organization).await?;
        let activity = in_redis
            .max(in_postgres)
            .map_or(Activity::Never, Activity::LastPeriod);
        let now = self.ctx.clock.now();
        let change = |before: &Sources| {
            let exists = presence.still_exists(before);
            if !exists && whom == Whom::Existing {
                return Err(Error::NotFound);
            }
            conditions.check(exists.then(|| before.resolve(now).version))?;
            change(before, activity)
        };
        let prepared = postgres::organizations::prepare(
            &self.ctx.postgres,
            organization,
            actor,
            action,
            now,
            change,
        )
        .await??;
        let Changed { before, after } = &prepared.outcome;
        // Under another calendar a call may belong to another counter.
        let fence =
            (before.policy().schedule != after.policy().schedule).then_some(prepared.version);
        if let Some(version) = fence {
            connection.fence(organization, version).await?;
            // Nothing is counted from here on, so that this is what the new calendar begins with.
            let schedule = before.policy().schedule;
            let counted = self
                .counted_in_redis(&connection, organization, &schedule)
                .await?;
            if counted != in_redis {
                drop(prepared);
                connection.unfence(organization, version).await?;
                return Ok(None);
            }
        }
        let sources = prepared.commit().await?.after;
        self.policies
            .apply(&connection, organization, &sources)
            .await?;
        if let Some(version) = fence {
            connection.unfence(organization, version).await?;
        }
        // A counter whose reset is pending still counts, and is none of the running ones.
        self.finish_pending(organization).await?;
        Ok(Some(sources))
    }
}
