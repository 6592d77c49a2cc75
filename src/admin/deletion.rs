//! Deleting an organization: it ends at once, everywhere; what may take longer is erased afterwards.
//!
//! The transaction ends it in Postgres and gives it an incarnation. Applying that to Redis, as any change of a policy,
//! erases the counters of the former life. What is left then, old history and idempotency records, is
//! noted in Postgres until it is gone: whoever dies on the way, the sweep goes on.

use std::collections::BTreeMap;
use std::time::Duration;

use chrono::TimeDelta;
use tokio_util::sync::CancellationToken;

use super::{Admin, Error};
use crate::domain::ids::OrganizationId;
use crate::domain::precondition::Preconditions;
use crate::metrics::Worker;
use crate::postgres::Actor;
use crate::postgres::deletions::{self, Deleted, Erasure};
use crate::redis::Connection;

/// Between two looks for what is left of deleted organizations.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// After so long somebody else goes on with an erasure.
const LEASE: TimeDelta = TimeDelta::seconds(60);

/// How long whoever deletes an organization has for the rest before the sweep takes it on.
const HEAD_START: TimeDelta = TimeDelta::seconds(5);

/// How many erasures one walk through Redis serves at most.
const BATCH: u32 = 1000;

/// Of how many keys a walk is short enough for a caller to wait for.
const WALK_MAX: usize = 50_000;

/// How many pieces of old history a caller waits for.
const CHUNKS_MAX: usize = 10;

/// What a deletion did while its caller waited.
#[derive(Debug, Clone, Copy)]
pub struct Deletion {
    /// Counters erased from Redis.
    pub counters: usize,
    /// Rows of history in Postgres that are gone.
    pub history_rows: u64,
    /// Keys bound to the organization that are revoked.
    pub api_keys: usize,
    /// Whether something is left for the sweep.
    pub background: bool,
}

impl Admin {
    /// Deletes an organization and all that was counted and set. A later call starts afresh.
    pub async fn delete_organization(
        &self,
        organization: &OrganizationId,
        conditions: &Preconditions,
        actor: &Actor,
    ) -> Result<Deletion, Error> {
        let connection = self.prepared(organization).await?;
        self.policies.stored(organization).await?;
        let presence = self.policies.presence(organization).await?;
        let now = self.ctx.clock.now();
        let prepared = deletions::delete(
            &self.ctx.postgres,
            organization,
            actor,
            self.policies.oldest_end(now),
            now + HEAD_START,
            now,
            |before| {
                if !presence.still_exists(before) {
                    return Err(Error::NotFound);
                }
                Ok(conditions.check(Some(before.resolve(now).version))?)
            },
        );
        let prepared = prepared.await??;
        let version = prepared.version;
        connection.fence(organization, version).await?;
        let Deleted {
            sources,
            rows,
            keys,
        } = prepared.commit().await?;
        for key in &keys {
            self.auth.invalidate(key);
        }
        let counters = self
            .policies
            .apply(&connection, organization, &sources)
            .await?;
        connection.unfence(organization, version).await?;
        let mut deletion = Deletion {
            counters,
            history_rows: rows,
            api_keys: keys.len(),
            background: true,
        };
        // It is deleted, whatever comes now: the sweeps do what is left.
        if !keys.is_empty()
            && let Err(error) = self.auth.sweep_once().await
        {
            tracing::warn!(%error, "a revoked API key has not reached Redis yet");
        }
        if let Err(error) = self
            .erase_now(&connection, organization, &mut deletion)
            .await
        {
            tracing::warn!(%error, "what a deleted organization has left is erased later");
        }
        Ok(deletion)
    }

    /// Erases what is left of deleted organizations, as far as it is due; returns of how many.
    pub async fn erase_once(&self) -> Result<usize, Error> {
        let now = self.ctx.clock.now();
        let due = deletions::take_on(&self.ctx.postgres, now, now + LEASE, BATCH).await?;
        if due.is_empty() {
            return Ok(0);
        }
        let connection = self.ctx.redis.connection().await?;
        let incarnations: BTreeMap<OrganizationId, u64> = due
            .iter()
            .map(|it| (it.organization.clone(), it.incarnation))
            .collect();
        for erasure in &due {
            while deletions::erase_history(&self.ctx.postgres, erasure).await? > 0 {}
        }
        connection.erase_traces(&incarnations).await?;
        for erasure in &due {
            deletions::finish(&self.ctx.postgres, erasure).await?;
        }
        Ok(due.len())
    }

    /// Erases what is left of deleted organizations, until `stop`.
    pub async fn run(&self, stop: CancellationToken) {
        let mut failing = false;
        while stop
            .run_until_cancelled(tokio::time::sleep(SWEEP_INTERVAL))
            .await
            .is_some()
        {
            let erasing = self.ctx.metrics.timed(Worker::Erase, self.erase_once());
            match stop.run_until_cancelled(erasing).await {
                Some(Err(error)) if !failing => {
                    tracing::warn!(%error, "what deleted organizations have left cannot be erased");
                    failing = true;
                }
                Some(Ok(_)) => failing = false,
                Some(Err(_)) | None => {}
            }
        }
    }

    /// Erases as much as a caller can wait for.
    async fn erase_now(
        &self,
        connection: &Connection,
        organization: &OrganizationId,
        deletion: &mut Deletion,
    ) -> Result<(), Error> {
        let Some(erasure) = deletions::erasure_of(&self.ctx.postgres, organization).await? else {
            return Ok(());
        };
        if self.erase_some_history(&erasure, deletion).await?
            && connection.size().await? <= WALK_MAX
        {
            let whose = BTreeMap::from([(organization.clone(), erasure.incarnation)]);
            deletion.counters += connection.erase_traces(&whose).await?.counters;
            deletions::finish(&self.ctx.postgres, &erasure).await?;
            deletion.background = false;
        }
        Ok(())
    }

    /// Whether that was all.
    async fn erase_some_history(
        &self,
        erasure: &Erasure,
        deletion: &mut Deletion,
    ) -> Result<bool, Error> {
        for _ in 0..CHUNKS_MAX {
            let rows = deletions::erase_history(&self.ctx.postgres, erasure).await?;
            if rows == 0 {
                return Ok(true);
            }
            deletion.history_rows += rows;
        }
        Ok(false)
    }
}
