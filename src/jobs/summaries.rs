//! Keeps the usage summaries of organizations in Postgres, and the lists of their meters in Redis, up to date with the
//! stored counts.
//!
//! Separate from the flush: a summary may lag by seconds, and a flush must not wait for it. The organizations of each
//! flush are queued in memory and refreshed soon after. What a crash has removed from the queue is found by an endless walk
//! over all organizations, which instances share. The walk also restores meters that Redis lost and that were stored for the
//! first time only after another meter of their organization had been restored. It has its own loop, because the queue of a
//! large service is never empty.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::driver::{Job, throttle};
use crate::context::Context;
use crate::domain::counter::CounterId;
use crate::domain::ids::{MeterId, OrganizationId};
use crate::domain::walk;
use crate::failure::Failure;
use crate::policies::Policies;
use crate::postgres::walk::{claim, give_back};
use crate::postgres::{self, summaries, usage};
use crate::redis::Connection;
use crate::usage::recovery::Recovery;

/// Between two rounds, and so how far summaries lag behind the stored counts, or more if many have changed.
const INTERVAL: Duration = Duration::from_secs(2);

/// The most organizations that one transaction refreshes or ages.
const BATCH_MAX: u32 = 2000;

/// The most that it refreshes while the service handles requests, so that these wait only briefly.
const THROTTLED_MAX: usize = 100;

/// The job that keeps summaries; clones share the queue.
#[derive(Debug, Clone)]
pub struct Summaries {
    ctx: Context,
    policies: Policies,
    recovery: Recovery,
    /// Organizations whose counts were stored since their summaries were refreshed.
    queue: Arc<Mutex<BTreeSet<OrganizationId>>>,
}

/// What a step of the walk did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Walked {
    /// How many organizations it visited.
    pub visited: usize,
    /// How many there are, as Postgres estimates.
    pub total: u64,
}

impl Summaries {
    pub(super) fn new(ctx: Context, policies: Policies, recovery: Recovery) -> Self {
        Self {
            ctx,
            policies,
            recovery,
            queue: Arc::default(),
        }
    }

    /// Queues organizations whose counts were stored.
    pub(super) fn enqueue<'a>(&self, organizations: impl Iterator<Item = &'a OrganizationId>) {
        let mut queue = self.lock();
        for organization in organizations {
            if !queue.contains(organization) {
                queue.insert(organization.clone());
            }
        }
    }

    /// Refreshes the summaries of all queued organizations.
    pub(super) async fn refresh(&self) -> Result<(), postgres::Error> {
        while self.refresh_batch(BATCH_MAX as usize).await? {}
        Ok(())
    }

    /// Refreshes at most so many of them; returns whether there may be more.
    async fn refresh_batch(&self, max: usize) -> Result<bool, postgres::Error> {
        let batch = self.dequeue(max);
        if batch.is_empty() {
            return Ok(false);
        }
        let now = self.ctx.clock.now();
        let refreshed = summaries::refresh(&self.ctx.postgres, &batch, now).await;
        if refreshed.is_err() {
            self.enqueue(batch.iter());
        }
        refreshed.map(|()| batch.len() == max)
    }

    /// Marks organizations whose period has ended as no longer at their limit; returns how many.
    pub async fn age_once(&self) -> Result<u64, postgres::Error> {
        summaries::age(&self.ctx.postgres, self.ctx.clock.now(), BATCH_MAX).await
    }

    /// Queues organizations that were expected to be full by now.
    pub async fn review_once(&self) -> Result<(), postgres::Error> {
        let now = self.ctx.clock.now();
        let outlived = summaries::outlived(&self.ctx.postgres, now, BATCH_MAX).await?;
        self.enqueue(outlived.iter());
        Ok(())
    }

    /// Visits the organizations of the walk that are due now, of which another instance may visit others: refreshes their
    /// summaries and the lists of their meters. Returns how many were due, of how many.
    pub async fn walk_once(&self) -> Result<Walked, Failure> {
        let postgres = &self.ctx.postgres;
        let claim = claim(postgres, self.ctx.clock.now()).await?;
        if let Err(error) = self.visit(&claim.organizations).await {
            // Otherwise an outage of Redis would skip for a day what was claimed meanwhile. Fails if Postgres is down, which
            // skips one batch.
            let _ = give_back(postgres, &claim).await;
            return Err(error);
        }
        let visited = claim.organizations.len();
        self.ctx.metrics.organizations_walked(visited);
        Ok(Walked {
            visited,
            total: claim.total,
        })
    }

    async fn visit(&self, organizations: &[OrganizationId]) -> Result<(), Failure> {
        if organizations.is_empty() {
            return Ok(());
        }
        summaries::refresh(&self.ctx.postgres, organizations, self.ctx.clock.now()).await?;
        self.list_meters(organizations).await
    }

    /// Restores meters that Postgres holds and that Redis does not list, though it lists others of their organization.
    async fn list_meters(&self, organizations: &[OrganizationId]) -> Result<(), Failure> {
        let now = self.ctx.clock.now();
        let mut stored = usage::running_meters(&self.ctx.postgres, organizations, now).await?;
        let connection = self.ctx.redis.connection().await?;
        let ids: Vec<&OrganizationId> = organizations.iter().collect();
        let known = connection.organizations(&ids).await?;
        for (organization, known) in organizations.iter().zip(known) {
            // Where Redis lists none, readers get the meters that Postgres holds.
            let listed = known.and_then(|known| known.meters);
            let (Some(listed), Some(stored)) = (listed, stored.remove(organization)) else {
                continue;
            };
            for meter in stored.iter().filter(|meter| !listed.contains(meter)) {
                // A meter that cannot be restored must not stop the walk.
                if let Err(error) = self.restore(&connection, organization, meter).await {
                    tracing::debug!(%error, org.id = %organization, %meter, "cannot restore a meter");
                }
            }
        }
        Ok(())
    }

    async fn restore(
        &self,
        connection: &Connection,
        organization: &OrganizationId,
        meter: &MeterId,
    ) -> Result<(), Failure> {
        let (policy, now) = (self.policies.get(organization).await?, self.ctx.clock.now());
        let counter = CounterId {
            organization: organization.clone(),
            meter: meter.clone(),
            start: policy.schedule.running(meter, now).start,
        };
        self.recovery
            .recover(connection, &policy, &counter, now)
            .await?;
        Ok(())
    }

    /// Refreshes, ages and walks until `stop`.
    pub(super) async fn run(&self, stop: &CancellationToken) {
        let mut refresh = Job::new(&self.ctx, None, "refresh usage summaries");
        let mut walk = Job::new(&self.ctx, None, "repair usage summaries");
        tokio::join!(
            refresh.paced(INTERVAL, stop, || self.refresh_round()),
            walk.paced(INTERVAL, stop, || self.walk_round()),
        );
    }

    /// Returns how long to pause.
    async fn refresh_round(&self) -> Result<Duration, Failure> {
        let started = Instant::now();
        let more = self.refresh_batch(THROTTLED_MAX).await?;
        let pause = throttle(started.elapsed());
        Ok(if more { pause } else { pause.max(INTERVAL) })
    }

    /// Returns how long to pause.
    async fn walk_round(&self) -> Result<Duration, Failure> {
        let started = Instant::now();
        // A batch a round, because all of them are over at the end of a month. Until then they read as if they were blank.
        let more = self.age_once().await? >= u64::from(BATCH_MAX);
        self.review_once().await?;
        let walked = self.walk_once().await?;
        let pause = walk::pause(walked.total, started.elapsed());
        Ok(if more {
            pause.min(throttle(started.elapsed()))
        } else {
            pause
        })
    }

    fn dequeue(&self, max: usize) -> Vec<OrganizationId> {
        let mut queue = self.lock();
        std::iter::from_fn(|| queue.pop_first()).take(max).collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeSet<OrganizationId>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
