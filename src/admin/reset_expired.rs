//! Ends expired periods of all organizations in scheduled mode.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::{Admin, Error};
use crate::domain::counter::{CounterId, Snapshot};
use crate::domain::ids::OrganizationId;
use crate::failure::Failure;
use crate::postgres::idempotency::{self, IdempotencyUse, Replay};
use crate::postgres::periods::{self, Ended};
use crate::postgres::usage::{self, ThresholdEvents};
use crate::postgres::{self, Actor};

/// The most organizations whose periods one transaction ends.
const BATCH_MAX: u32 = 1000;

/// The most organizations that a response lists.
const LISTED_MAX: usize = 1000;

/// What a call ended.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Expired {
    /// Whether this repeats the response of an earlier call with the same idempotency key.
    #[serde(skip)]
    pub replayed: bool,
    /// How many organizations were reset.
    pub count: usize,
    /// The first of them.
    pub organizations: Vec<OrganizationId>,
}

impl Admin {
    /// Ends the expired periods of every organization in scheduled mode, and starts the next ones. Concurrent and
    /// repeated calls are harmless.
    pub async fn reset_expired(
        &self,
        idempotency: Option<&IdempotencyUse>,
        actor: &Actor,
    ) -> Result<Expired, Error> {
        match idempotency::replay(&self.ctx.postgres, idempotency).await? {
            Replay::New => {}
            Replay::KeyReused => return Err(Failure::KeyReused.into()),
            Replay::Response(expired) => {
                return Ok(Expired {
                    replayed: true,
                    ..expired
                });
            }
        }
        let expired = self.end_expired(Some(actor)).await?;
        if expired.count > 0 {
            tracing::info!(resets = expired.count, actor = %actor.name, "ended expired periods");
        }
        let now = self.ctx.clock.now();
        idempotency::store(&self.ctx.postgres, idempotency, &expired, now).await?;
        Ok(expired)
    }

    /// The same, for the background job.
    pub async fn reset_expired_once(&self) -> Result<Expired, Failure> {
        self.end_expired(None).await
    }

    /// Deletes idempotency records that have expired.
    pub async fn delete_old_idempotency_records(&self) -> Result<(), Failure> {
        if let Some(before) = (self.ctx.clock.now()).checked_sub_signed(self.ctx.idempotency) {
            idempotency::delete_older(&self.ctx.postgres, before).await?;
        }
        Ok(())
    }

    async fn end_expired(&self, actor: Option<&Actor>) -> Result<Expired, Failure> {
        let mut expired = Expired::default();
        loop {
            let now = self.ctx.clock.now();
            let due = periods::due(&self.ctx.postgres, now, BATCH_MAX).await?;
            // The final row of a period must contain its last counts.
            self.store_counts(&due.counters, now).await?;
            let ended = periods::end(&self.ctx.postgres, &due.organizations, actor, now).await;
            let ended = match ended {
                Err(error) if is_defect(&error) => {
                    tracing::debug!(%error, "ending periods one by one");
                    self.end_one_by_one(&due.organizations, actor, now).await?
                }
                ended => ended?,
            };
            expired.count += ended.organizations.len();
            let room = LISTED_MAX.saturating_sub(expired.organizations.len());
            let listed = ended.organizations.into_iter().take(room);
            expired.organizations.extend(listed);
            // The rest, if any, is locked by other instances.
            if ended.examined == 0 {
                return Ok(expired);
            }
        }
    }

    /// One that fails does not stop the others.
    async fn end_one_by_one(
        &self,
        organizations: &[OrganizationId],
        actor: Option<&Actor>,
        now: DateTime<Utc>,
    ) -> Result<Ended, Failure> {
        let postgres = &self.ctx.postgres;
        let mut total = Ended::default();
        for organization in organizations {
            let ended = periods::end(postgres, std::slice::from_ref(organization), actor, now);
            match ended.await {
                Ok(ended) => {
                    total.examined += ended.examined;
                    total.organizations.extend(ended.organizations);
                }
                Err(error) if is_defect(&error) => {
                    tracing::error!(%error, org.id = %organization, "cannot end a period");
                    periods::postpone(postgres, organization, now).await?;
                    total.examined += 1;
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(total)
    }

    /// Stores the counters that are newer in Redis than in Postgres.
    async fn store_counts(
        &self,
        counters: &[(CounterId, (u64, u64))],
        now: DateTime<Utc>,
    ) -> Result<(), Failure> {
        let connection = self.ctx.redis.connection().await?;
        let ids: Vec<CounterId> = counters.iter().map(|(id, _)| id.clone()).collect();
        let snapshots = connection.read(&ids).await?.into_iter().zip(counters);
        let newer = snapshots.filter_map(|(snapshot, (_, stored))| {
            snapshot.filter(|it| (it.stamp.generation, it.sequence) > *stored)
        });
        let newer: Vec<Snapshot> = newer.collect();
        let hours = newer.iter().flat_map(Snapshot::unstored_hours);
        usage::ensure_partitions(&self.ctx.postgres, hours.map(|hour| hour.start)).await?;
        usage::store(&self.ctx.postgres, &newer, &ThresholdEvents::new(), now).await?;
        Ok(())
    }
}

/// Whether one organization may be the cause, rather than an outage.
fn is_defect(error: &postgres::Error) -> bool {
    matches!(
        error,
        postgres::Error::Other(_) | postgres::Error::Inconsistent(_)
    )
}
