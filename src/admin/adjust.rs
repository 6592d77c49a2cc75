//! Adjustments of counts.

use super::{ATTEMPTS_MAX, Admin, Error, UNFINISHED_MAX};
use crate::domain::counter::{CounterId, Snapshot};
use crate::domain::ids::OrganizationId;
use crate::failure::Failure;
use crate::postgres::Actor;
use crate::postgres::adjustments::{self, AdjustmentRequest, Finished, Outcome};
use crate::postgres::idempotency::{self, Replay};
use crate::usage::recovery::Recovered;

/// What an adjustment did.
#[derive(Debug, Clone)]
pub struct Adjustment {
    /// Whether this repeats the response of an earlier call with the same idempotency key.
    pub replayed: bool,
    /// The result.
    pub finished: Finished,
}

impl Admin {
    /// Adds units to the running count of a meter, or subtracts some.
    pub async fn adjust(
        &self,
        request: &AdjustmentRequest<'_>,
        actor: &Actor,
    ) -> Result<Adjustment, Error> {
        let organization = request.organization;
        let presence = self.policies.presence(organization).await?;
        if !presence.exists() {
            return Err(Error::NotFound);
        }
        for _ in 0..ATTEMPTS_MAX {
            // First, because a replay must succeed even if the adjustment would be refused now.
            match idempotency::replay(&self.ctx.postgres, request.idempotency).await? {
                Replay::New => {}
                Replay::KeyReused => return Err(Failure::KeyReused.into()),
                Replay::Response(id) => return self.adjusted(organization, id, true).await,
            }
            if !self.check_adjustment(request).await? {
                continue;
            }
            let (postgres, now) = (&self.ctx.postgres, self.ctx.clock.now());
            let exists = |sources: &_| presence.still_exists(sources);
            match adjustments::commit(postgres, request, actor, now, exists).await? {
                Outcome::Committed { id, replayed } => {
                    return self.adjusted(organization, id, replayed).await;
                }
                Outcome::Deleted => return Err(Error::NotFound),
                Outcome::Unfinished => {
                    self.finish_resets(organization).await?;
                    self.finish_adjustment(organization).await?;
                }
                Outcome::KeyReused => return Err(Failure::KeyReused.into()),
            }
        }
        Err(Failure::Contended.into())
    }

    /// Refuses an adjustment that could not be applied, before it is committed: one meter too many, or an overflow.
    /// False if Redis had an older policy, which is updated.
    async fn check_adjustment(&self, request: &AdjustmentRequest<'_>) -> Result<bool, Failure> {
        let (organization, now) = (request.organization, self.ctx.clock.now());
        let connection = self.writable(organization).await?;
        let sources = self.policies.stored(organization).await?;
        let policy = sources.resolve(now);
        let counter = CounterId {
            organization: organization.clone(),
            meter: request.meter.clone(),
            start: policy.schedule.running(request.meter, now).start,
        };
        let ready = self.recovery.recover(&connection, &policy, &counter, now);
        if ready.await? == Recovered::OlderPolicy {
            self.policies
                .apply(&connection, organization, &sources)
                .await?;
            return Ok(false);
        }
        let snapshots = connection.read(&[counter]).await?;
        let added = u64::try_from(request.amount).unwrap_or_default();
        let overflows = |it: Snapshot| it.used.checked_add(added).is_none();
        if snapshots.into_iter().flatten().any(overflows) {
            return Err(Failure::Overflow(request.meter.clone()));
        }
        Ok(true)
    }

    /// The result of a committed adjustment.
    async fn adjusted(
        &self,
        organization: &OrganizationId,
        id: u64,
        replayed: bool,
    ) -> Result<Adjustment, Error> {
        self.finish_adjustment(organization).await?;
        // Missing only if its organization was deleted.
        let finished = adjustments::finished(&self.ctx.postgres, id).await?;
        let finished = finished.ok_or(Error::NotFound)?;
        // Concurrent calls had raised the count so far that nothing could be applied.
        if finished.amount > 0 && finished.applied == 0 {
            return Err(Failure::Overflow(finished.meter).into());
        }
        Ok(Adjustment { replayed, finished })
    }

    /// Finishes every adjustment that is committed and may not have reached Redis; returns how many. One that fails does
    /// not stop the others.
    pub async fn finish_adjustments_once(&self) -> Result<usize, Failure> {
        let mut finished = 0;
        for organization in adjustments::unfinished(&self.ctx.postgres, UNFINISHED_MAX).await? {
            match self.finish_adjustment(&organization).await {
                Ok(()) => finished += 1,
                Err(error) => {
                    tracing::debug!(%error, org.id = %organization, "cannot finish an adjustment");
                }
            }
        }
        Ok(finished)
    }

    /// Applies the pending adjustment of an organization, if there is one.
    pub(super) async fn finish_adjustment(
        &self,
        organization: &OrganizationId,
    ) -> Result<(), Failure> {
        for _ in 0..ATTEMPTS_MAX {
            let now = self.ctx.clock.now();
            let connection = self.ctx.redis.connection().await?;
            // Read before the adjustment: one that a deletion has removed must not be applied under a newer policy.
            let sources = self.policies.stored(organization).await?;
            let pending = adjustments::pending(&self.ctx.postgres, organization).await?;
            let Some(pending) = pending else {
                return Ok(());
            };
            let policy = sources.resolve(now);
            let adjusted = self.recovery.adjust(&connection, &policy, &pending, now);
            if adjusted.await? == Recovered::OlderPolicy {
                self.policies
                    .apply(&connection, organization, &sources)
                    .await?;
            }
        }
        Err(Failure::Contended)
    }
}
