//! Keeps this instance, and Redis, up to date with Postgres: sweeps, and listens to announcements.

use std::time::Duration;

use futures::{StreamExt as _, TryStreamExt as _, stream};
use tokio_util::sync::CancellationToken;

use super::Policies;
use crate::domain::ids::OrganizationId;
use crate::failure::Failure;
use crate::postgres::organizations::{self, Sources};
use crate::postgres::{self, Actor, plans};
use crate::redis::{Announcement, Shard};

/// Between two attempts to subscribe to announcements.
const RECONNECT_PAUSE: Duration = Duration::from_secs(1);

/// The most changes that one sweep applies.
const SWEEP_BATCH: u32 = 1000;

/// How many of them it applies at once: after a loss of Redis these are all organizations that were ever configured.
const SWEEP_CONCURRENCY: usize = 3;

/// What a sweep did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Swept {
    /// How many changes of organizations it applied.
    pub applied: usize,
    /// Whether more changes follow.
    pub more: bool,
}

impl Policies {
    /// Publishes this instance's settings as defaults, once, and loads which plans have changed.
    pub async fn learn(&self) -> Result<(), postgres::Error> {
        let versions = &self.cache.min_versions;
        if versions.defaults() == 0 {
            self.publish_defaults().await?;
        }
        let changes = plans::versions_since(&self.ctx.postgres, versions.swept()).await?;
        versions.sweep(&changes);
        Ok(())
    }

    /// Loads which plans have changed, removes temporary limits that have ended, resolves fences, and applies every
    /// committed change of an organization that may not have reached Redis, up to a thousand.
    pub async fn sweep_once(&self) -> Result<Swept, Failure> {
        let postgres = &self.ctx.postgres;
        self.learn().await?;
        self.end_limits().await?;
        let connection = self.ctx.redis.connection().await?;
        for organization in connection.fenced().await? {
            // One that cannot be resolved must not keep the others from being applied.
            if let Err(error) = self.pass_fence(&organization).await {
                tracing::debug!(%error, org.id = %organization, "cannot resolve a fence");
            }
        }
        // A watermark is part of its data set, so a rollback of Redis takes it back as well.
        let mut watermarks = connection.watermarks().await?;
        let lowest = watermarks.iter().map(|it| it.version.unwrap_or_default());
        let lowest = lowest.min().unwrap_or_default();
        let changes = organizations::changes_since(postgres, lowest, SWEEP_BATCH).await?;
        let versions = &self.cache.min_versions;
        versions.raise_defaults(changes.defaults_version);
        watermarks.retain(|it| it.version.unwrap_or_default() < changes.version);
        let lags = |organization: &&OrganizationId| {
            let shard = Shard::of(organization);
            watermarks.iter().any(|it| it.shard == shard)
        };
        let lagging: Vec<&OrganizationId> = changes.organizations.iter().filter(lags).collect();
        stream::iter(lagging.iter().map(Ok))
            .try_for_each_concurrent(SWEEP_CONCURRENCY, async |organization| {
                let sources = self.stored(organization).await?;
                self.apply(&connection, organization, &sources).await?;
                Ok::<_, Failure>(())
            })
            .await?;
        connection.advance(&watermarks, changes.version).await?;
        Ok(Swept {
            applied: lagging.len(),
            more: changes.organizations.len() >= SWEEP_BATCH as usize,
        })
    }

    /// Listens to the announcements of other instances until `stop`.
    pub async fn listen(&self, stop: &CancellationToken) {
        let receive = async {
            loop {
                if let Ok(mut announcements) = self.ctx.redis.announcements().await {
                    while let Some(announcement) = announcements.next().await {
                        match announcement {
                            Announcement::Organization(id) => self.invalidate(&id),
                            Announcement::Plan(id, version) => {
                                self.cache.min_versions.raise_plan(&id, version);
                            }
                        }
                    }
                }
                tokio::time::sleep(RECONNECT_PAUSE).await;
            }
        };
        let _ = stop.run_until_cancelled(receive).await;
    }

    /// Removes temporary limits that have ended. They are not effective any more in either case; this records their
    /// end in the audit log, and updates idle counters.
    async fn end_limits(&self) -> Result<(), postgres::Error> {
        let now = self.ctx.clock.now();
        let postgres = &self.ctx.postgres;
        for organization in organizations::with_expired_limits(postgres, now, SWEEP_BATCH).await? {
            self.end_limits_of(&organization).await?;
        }
        Ok(())
    }

    /// Removes those of one organization, unless another instance has done so meanwhile.
    pub async fn end_limits_of(
        &self,
        organization: &OrganizationId,
    ) -> Result<(), postgres::Error> {
        let now = self.ctx.clock.now();
        let end = |before: &Sources| {
            let mut after = before.organization.clone().ok_or(())?;
            let count = after.temporary.len();
            after.temporary.retain(|_, it| it.until > now);
            (after.temporary.len() < count).then_some(after).ok_or(())
        };
        let (postgres, actor) = (&self.ctx.postgres, Actor::system());
        // Refused if nothing is left to remove.
        let _ =
            organizations::change(postgres, organization, &actor, "limits.end", now, end).await?;
        Ok(())
    }
}
