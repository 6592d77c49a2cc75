//! Corrections of counts.

use super::{Admin, Error};
use crate::domain::counter::{CounterId, Snapshot};
use crate::domain::ids::OrganizationId;
use crate::failure::Failure;
use crate::postgres::Actor;
use crate::postgres::adjustments::{self, Finished, Outcome, Wish};
use crate::postgres::idempotency::{self, Earlier};
use crate::usage::recovery;

/// How often something is tried while others change the same.
const ROUNDS_MAX: usize = 20;

/// How many organizations one sweep finishes at most.
const UNFINISHED_MAX: u32 = 1000;

/// What an adjustment did.
#[derive(Debug, Clone)]
pub struct Adjustment {
    /// Whether this is what an earlier attempt was told.
    pub replayed: bool,
    /// What came of it.
    pub finished: Finished,
}

impl Admin {
    /// Adds units to the running count of a meter, or gives some back.
    pub async fn adjust(&self, wish: &Wish<'_>, actor: &Actor) -> Result<Adjustment, Error> {
        let organization = wish.organization;
        let presence = self.policies.presence(organization).await?;
        if !presence.exists() {
            return Err(Error::NotFound);
        }
        for _ in 0..ROUNDS_MAX {
            // Before all that may have become impossible since.
            match idempotency::answered(&self.ctx.postgres, wish.attempt).await? {
                Earlier::Nothing => {}
                Earlier::Other => return Err(Failure::KeyReused.into()),
                Earlier::Answered(id) => return self.adjusted(organization, id, true).await,
            }
            let now = self.ctx.clock.now();
            let connection = self.prepared(organization).await?;
            let sources = self.policies.stored(organization).await?;
            let policy = sources.resolve(now);
            let period = policy.schedule.running(wish.meter, now);
            let counter = CounterId {
                organization: organization.clone(),
                meter: wish.meter.clone(),
                start: period.start,
            };
            // Before the commit: where there is one meter too many, nothing should be half done.
            let ready = self
                .recovery
                .ready(&connection, &policy, &counter, now)
                .await?;
            if ready == recovery::Recovered::OlderPolicy {
                self.policies
                    .apply(&connection, organization, &sources)
                    .await?;
                continue;
            }
            let held = connection.read(&[counter]).await?;
            let added = u64::try_from(wish.amount).unwrap_or_default();
            let overflows = |held: Snapshot| held.used.checked_add(added).is_none();
            if held.into_iter().flatten().any(overflows) {
                return Err(Failure::Overflow(wish.meter.clone()).into());
            }
            let exists = |sources: &_| presence.still_exists(sources);
            match adjustments::commit(&self.ctx.postgres, wish, actor, now, exists).await? {
                Outcome::Committed { id, replayed } => {
                    return self.adjusted(organization, id, replayed).await;
                }
                Outcome::Deleted => return Err(Error::NotFound),
                Outcome::Unfinished => {
                    self.finish_pending(organization).await?;
                    self.finish_adjustment(organization).await?;
                }
                Outcome::KeyReused => return Err(Failure::KeyReused.into()),
            }
        }
        Err(Failure::Contended.into())
    }

    /// What came of an adjustment that is committed.
    async fn adjusted(
        &self,
        organization: &OrganizationId,
        id: u64,
        replayed: bool,
    ) -> Result<Adjustment, Error> {
        self.finish_adjustment(organization).await?;
        // Gone only together with its organization.
        let finished = adjustments::finished(&self.ctx.postgres, id).await?;
        let finished = finished.ok_or(Error::NotFound)?;
        // Calls had brought the count so near to its ceiling meanwhile that nothing was applied.
        if finished.amount > 0 && finished.applied == 0 {
            return Err(Failure::Overflow(finished.meter).into());
        }
        Ok(Adjustment { replayed, finished })
    }

    /// Finishes every adjustment that is committed and may not have reached Redis; returns how many. One that cannot be
    /// finished keeps nothing else from it.
    pub async fn finish_adjustments_once(&self) -> Result<usize, Error> {
        let mut finished = 0;
        for organization in adjustments::unfinished(&self.ctx.postgres, UNFINISHED_MAX).await? {
            match self.finish_adjustment(&organization).await {
                Ok(()) => finished += 1,
                Err(error) => {
                    tracing::debug!(%error, org.id = %organization, "an adjustment cannot be finished");
                }
            }
        }
        Ok(finished)
    }

    /// Applies the pending adjustment of an organization, if there is one.
    pub(super) async fn finish_adjustment(
        &self,
        organization: &OrganizationId,
    ) -> Result<(), Error> {
        for _ in 0..ROUNDS_MAX {
            let now = self.ctx.clock.now();
            let connection = self.ctx.redis.connection().await?;
            // Before the adjustment: one that a deletion has taken with it must not be applied by a newer policy.
            let sources = self.policies.stored(organization).await?;
            let Some(pending) = adjustments::pending(&self.ctx.postgres, organization).await?
            else {
                return Ok(());
            };
            let policy = sources.resolve(now);
            let opened = self
                .recovery
                .adjust(&connection, &policy, &pending, now)
                .await?;
            if opened == recovery::Recovered::OlderPolicy {
                self.policies
                    .apply(&connection, organization, &sources)
                    .await?;
            }
        }
        Err(Failure::Contended.into())
    }
}
