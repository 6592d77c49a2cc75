//! Changes of an organization's settings and limits.

use chrono::{DateTime, TimeDelta, Utc};

use super::{Admin, Error};
use crate::domain::counter::CounterId;
use crate::domain::ids::OrganizationId;
use crate::domain::organization::Organization;
use crate::domain::precondition::Preconditions;
use crate::domain::schedule::{Activity, Schedule};
use crate::failure::Failure;
use crate::postgres::organizations::{self, Changed, Sources};
use crate::postgres::{Actor, usage};
use crate::redis::Connection;

/// How often a change is retried because something was counted on which it depends.
const ATTEMPTS_MAX: u32 = 5;

/// A change of one organization.
pub(super) struct Change<'a> {
    pub(super) organization: &'a OrganizationId,
    /// Whether it creates an organization that does not exist.
    pub(super) creates: bool,
    pub(super) conditions: &'a Preconditions,
    pub(super) actor: &'a Actor,
    /// Its name in the audit log.
    pub(super) action: &'static str,
}

impl Admin {
    /// Commits a change and makes it effective everywhere. `edit` returns the new state; it may be called repeatedly.
    pub(super) async fn change(
        &self,
        change: Change<'_>,
        edit: impl Fn(&Sources, Activity) -> Result<Organization, Error>,
    ) -> Result<Sources, Error> {
        for _ in 0..ATTEMPTS_MAX {
            match self.try_change(&change, &edit).await {
                Ok(Some(sources)) => return Ok(sources),
                Ok(None) => {}
                Err(error @ Error::PreconditionFailed(_))
                    if change.conditions.require_absence() =>
                {
                    // The change that created the organization may not have reached Redis yet, and this caller counts next.
                    self.apply_stored(change.organization).await?;
                    return Err(error);
                }
                Err(error) => return Err(error),
            }
        }
        Err(Failure::Contended.into())
    }

    /// Applies what is committed of an organization.
    async fn apply_stored(&self, organization: &OrganizationId) -> Result<(), Failure> {
        let connection = self.ctx.redis.connection().await?;
        let sources = self.policies.stored(organization).await?;
        self.policies
            .apply(&connection, organization, &sources)
            .await?;
        Ok(())
    }

    /// The same, once; none if something was counted meanwhile on which the change depends.
    async fn try_change(
        &self,
        change: &Change<'_>,
        edit: impl Fn(&Sources, Activity) -> Result<Organization, Error>,
    ) -> Result<Option<Sources>, Error> {
        let (postgres, organization) = (&self.ctx.postgres, change.organization);
        let connection = self.writable(organization).await?;
        // Publishes the defaults if this is the first change of all.
        let stored = self.policies.stored(organization).await?;
        let presence = self.policies.presence(organization).await?;
        let schedule = stored.policy().schedule;
        let in_redis = self
            .last_counted_in_redis(&connection, organization, &schedule)
            .await?;
        let in_postgres = usage::last_counted(postgres, organization).await?;
        let activity = in_redis
            .max(in_postgres)
            .map_or(Activity::Never, Activity::LastPeriod);
        let now = self.ctx.clock.now();
        let edit = |before: &Sources| {
            let exists = presence.still_exists(before);
            if !exists && !change.creates {
                return Err(Error::NotFound);
            }
            let version = exists.then(|| before.resolve(now).version);
            change.conditions.check(version)?;
            edit(before, activity)
        };
        let (actor, action) = (change.actor, change.action);
        let prepared =
            organizations::prepare(postgres, organization, actor, action, now, edit).await??;
        let Changed {
            before,
            after,
            has_increments,
        } = &prepared.outcome;
        let schedule = before.policy().schedule;
        // With another calendar, a call may belong to another counter.
        let fence = (schedule != after.policy().schedule).then_some(prepared.version);
        if fence.is_some() && *has_increments {
            drop(prepared);
            self.drainer.drain(organization).await?;
            return Ok(None);
        }
        if let Some(version) = fence {
            connection.fence(organization, version).await?;
            // Nothing is counted while the fence stands, so this is the state in which the new calendar starts.
            let fenced = self
                .last_counted_in_redis(&connection, organization, &schedule)
                .await?;
            if fenced != in_redis {
                drop(prepared);
                connection.unfence(organization, version).await?;
                return Ok(None);
            }
            self.policies
                .discard_unused(&connection, organization, &schedule)
                .await?;
        }
        let sources = prepared.commit().await?.after;
        self.policies
            .apply(&connection, organization, &sources)
            .await?;
        if let Some(version) = fence {
            connection.unfence(organization, version).await?;
        }
        // A counter whose reset is pending still counts, and is not among the running ones that were updated.
        self.finish_resets(organization).await?;
        Ok(Some(sources))
    }

    /// The start of the last period in Redis with counts, denials or an adjustment; a change of the calendar keeps such a
    /// period. Does not use
    /// Postgres, because it is called while the lock of changes is held, which must not wait for another connection.
    async fn last_counted_in_redis(
        &self,
        connection: &Connection,
        organization: &OrganizationId,
        schedule: &Schedule,
    ) -> Result<Option<DateTime<Utc>>, Failure> {
        let now = self.ctx.clock.now();
        let known = connection.organization(organization).await?;
        let meters = known.and_then(|known| known.meters).unwrap_or_default();
        // Counts that are not in Postgres yet belong to one of the last two periods.
        let mut counters = Vec::new();
        for meter in meters {
            let running = schedule.running(&meter, now).start;
            let before = running.checked_sub_signed(TimeDelta::milliseconds(1));
            let previous = before.map(|at| schedule.period(at).start);
            counters.extend(
                previous
                    .into_iter()
                    .chain([running])
                    .map(|start| CounterId {
                        organization: organization.clone(),
                        meter: meter.clone(),
                        start,
                    }),
            );
        }
        let snapshots = connection.read(&counters).await?;
        Ok(snapshots
            .into_iter()
            .flatten()
            .filter(|it| it.sequence > 0)
            .map(|it| it.counter.start)
            .max())
    }
}
