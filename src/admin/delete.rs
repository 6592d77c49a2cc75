//! Deletion of an organization: effective at once, everywhere; the remaining data is erased afterwards.
//!
//! The transaction deletes the organization in Postgres and starts a new incarnation. Applying that to Redis, like any
//! change of a policy, erases the counters of the stale incarnation. What remains, old history and idempotency records,
//! is listed in Postgres until it is erased: by the caller as far as that is quick, otherwise by a background job.

use std::collections::BTreeMap;

use chrono::TimeDelta;

use super::{Admin, Error};
use crate::domain::ids::OrganizationId;
use crate::domain::precondition::Preconditions;
use crate::failure::Failure;
use crate::postgres::Actor;
use crate::postgres::deletions::{self, Deleted, Erasure};
use crate::redis::Connection;

/// How long the caller may work on the erasure before the background job takes it over.
const HEAD_START: TimeDelta = TimeDelta::seconds(5);

/// The most keys in Redis whose scan is short enough for a caller to wait for.
const SCAN_MAX: usize = 50_000;

/// How many chunks of old history a caller waits for.
const CHUNKS_MAX: usize = 10;

/// What a deletion did before its response.
#[derive(Debug, Clone, Copy)]
pub struct Deletion {
    /// Counters erased from Redis.
    pub counters: usize,
    /// Rows of history deleted from Postgres.
    pub history_rows: u64,
    /// Revoked keys that were bound to the organization.
    pub api_keys: usize,
    /// Whether the background job has something left to erase.
    pub background: bool,
}

impl Admin {
    /// Deletes an organization with its settings and counts. A later call starts from zero.
    pub async fn delete_organization(
        &self,
        organization: &OrganizationId,
        conditions: &Preconditions,
        actor: &Actor,
    ) -> Result<Deletion, Error> {
        let connection = self.writable(organization).await?;
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
        // The organization is deleted, even if one of these fails: background jobs repeat them.
        if !keys.is_empty() {
            self.mirror_revocation().await;
        }
        if let Err(error) = self.erase(&connection, organization, &mut deletion).await {
            tracing::warn!(%error, "the data of a deleted organization is erased later");
        }
        Ok(deletion)
    }

    /// Erases as much of the remaining data as a caller can wait for.
    async fn erase(
        &self,
        connection: &Connection,
        organization: &OrganizationId,
        deletion: &mut Deletion,
    ) -> Result<(), Failure> {
        let postgres = &self.ctx.postgres;
        let Some(erasure) = deletions::erasure_of(postgres, organization).await? else {
            return Ok(());
        };
        if self.erase_history(&erasure, deletion).await? && connection.size().await? <= SCAN_MAX {
            let incarnations = BTreeMap::from([(organization.clone(), erasure.incarnation)]);
            let erased = connection.erase_traces(&incarnations).await?;
            deletion.counters += erased.counters;
            deletions::finish(postgres, &erasure).await?;
            deletion.background = false;
        }
        Ok(())
    }

    /// Returns whether no history is left.
    async fn erase_history(
        &self,
        erasure: &Erasure,
        deletion: &mut Deletion,
    ) -> Result<bool, Failure> {
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
