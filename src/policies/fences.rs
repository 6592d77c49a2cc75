//! Resolves fences: finds out whether the fenced change was committed, applies it, and removes the fence.
//!
//! A fence is written under the lock of all changes, which is held until its change is committed or abandoned. Taking
//! that lock after reading the fence therefore tells which; any number of callers may do so.

use std::sync::Arc;

use super::Policies;
use super::incarnation::reachable;
use crate::domain::ids::OrganizationId;
use crate::domain::schedule::Schedule;
use crate::failure::Failure;
use crate::postgres::organizations::{self, Sources};
use crate::redis::{Connection, KnownOrganization};

/// Where an organization exists.
#[derive(Debug, Clone, Copy)]
pub struct Presence {
    /// In Postgres.
    stored: bool,
    /// Only in Redis: something was counted, and not flushed yet.
    counted: bool,
    /// The policy version of its last deletion; 0 if it was never deleted.
    incarnation: u64,
}

impl Presence {
    /// Whether it exists at all.
    pub fn exists(&self) -> bool {
        self.stored || self.counted
    }

    /// The policy version of its last deletion; 0 if it was never deleted.
    pub fn incarnation(&self) -> u64 {
        self.incarnation
    }

    /// Whether it still exists, by what Postgres returns later, under the lock of all changes.
    pub fn still_exists(&self, sources: &Sources) -> bool {
        let counted = self.counted && sources.incarnation == self.incarnation;
        counted || sources.organization.is_some()
    }
}

impl Policies {
    /// Whether an organization was ever counted or configured, and not deleted since.
    pub async fn exists(&self, organization: &OrganizationId) -> Result<bool, Failure> {
        Ok(self.presence(organization).await?.exists())
    }

    /// Looks for an organization in Postgres and, if it is missing there, in Redis.
    pub async fn presence(&self, organization: &OrganizationId) -> Result<Presence, Failure> {
        let stored = organizations::presence(&self.ctx.postgres, organization).await?;
        let mut presence = Presence {
            stored: stored.exists,
            counted: false,
            incarnation: stored.incarnation,
        };
        if presence.stored {
            return Ok(presence);
        }
        let connection = self.ctx.redis.connection().await?;
        if let Some(in_redis) = self.in_redis(&connection, organization).await? {
            // A deletion that has not reached Redis yet counts all the same.
            let stale = in_redis.incarnation < presence.incarnation;
            presence.counted = in_redis.meters.is_some() && !stale;
            if stale {
                let sources = self.stored(organization).await?;
                self.apply(&connection, organization, &sources).await?;
            }
        }
        Ok(presence)
    }

    /// What Redis has of an organization, once no pending change affects which counters that is.
    pub async fn in_redis(
        &self,
        connection: &Arc<Connection>,
        organization: &OrganizationId,
    ) -> Result<Option<KnownOrganization>, Failure> {
        let in_redis = connection.organization(organization);
        let fence = connection.fence_of(organization);
        let (in_redis, fence) = futures::try_join!(in_redis, fence)?;
        if fence.is_none() {
            return Ok(in_redis);
        }
        self.pass_fence(organization).await?;
        Ok(connection.organization(organization).await?)
    }

    /// Resolves the fence of an organization, if it has one. Concurrent callers share the query to Postgres.
    pub async fn pass_fence(&self, organization: &OrganizationId) -> Result<(), Failure> {
        let (key, request) = (organization.clone(), organization.clone());
        self.fenced
            .process(key, request, self.clone(), Self::resolve_fences)
            .await
    }

    /// Discards the counters of a fenced organization that calls under its present schedule can reach, and in which nothing
    /// was ever counted. A call with a cached policy would find such a counter in the stamp of that policy, and would count in
    /// it although the new calendar has abandoned its period. A missing counter makes the call look up the policy.
    pub async fn discard_unused(
        &self,
        connection: &Connection,
        organization: &OrganizationId,
        schedule: &Schedule,
    ) -> Result<(), Failure> {
        let known = connection.organization(organization).await?;
        let meters = known.and_then(|known| known.meters).unwrap_or_default();
        let (now, late) = (self.ctx.clock.now(), self.ctx.late);
        let counters = reachable(organization, [schedule].into_iter(), &meters, now, late);
        Ok(connection.discard_unused(organization, &counters).await?)
    }

    async fn resolve_fences(self, organizations: Vec<OrganizationId>) -> Result<Vec<()>, Failure> {
        let connection = self.ctx.redis.connection().await?;
        for id in &organizations {
            if let Some(version) = connection.fence_of(id).await? {
                let sources = organizations::settled(&self.ctx.postgres, id).await?;
                self.apply(&connection, id, &sources).await?;
                connection.unfence(id, version).await?;
            }
        }
        Ok(vec![(); organizations.len()])
    }
}
