//! Keeps the lists of organizations, and the list that Redis has of the meters of each, up to date with what is stored.
//!
//! Apart from the flush itself, because a list may lag by seconds and a flush must not wait for it. What was
//! stored is noted in memory and looked through soon after; what a crash has forgotten is found by walking
//! through all organizations, slowly, again and again. The walk finds meters as well that were stored for the first
//! time after Redis had lost them and another meter of their organization was restored.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::flush::rest_after;
use crate::context::Context;
use crate::domain::counter::CounterId;
use crate::domain::ids::{MeterId, OrganizationId};
use crate::failure::Failure;
use crate::policies::Policies;
use crate::postgres::{self, summaries, usage};
use crate::redis::Connection;
use crate::usage::recovery::Recovery;

/// Between two rounds; a list lags behind what is stored by as much, and by more where many have changed.
const INTERVAL: Duration = Duration::from_secs(2);

/// How many organizations one transaction looks through or takes off at most.
const BATCH_MAX: u32 = 2000;

/// How many it looks through beside calls that count, so that it keeps them waiting for short.
const BESIDE_MAX: usize = 100;

/// How many organizations a round looks through on its walk through all of them.
const WALK: u32 = 100;

/// The lists; clones share what is due.
#[derive(Debug, Clone)]
pub(super) struct Summaries {
    ctx: Context,
    policies: Policies,
    /// Brings back what Redis does not know of.
    recovery: Recovery,
    /// Whose counts were stored since they were last looked through.
    due: Arc<Mutex<BTreeSet<OrganizationId>>>,
}

impl Summaries {
    pub(super) fn new(ctx: Context, policies: Policies, recovery: Recovery) -> Self {
        Self {
            ctx,
            policies,
            recovery,
            due: Arc::default(),
        }
    }

    /// Notes whose counts were stored.
    pub(super) fn note<'a>(&self, organizations: impl Iterator<Item = &'a OrganizationId>) {
        let mut due = self.due.lock().unwrap_or_else(PoisonError::into_inner);
        for organization in organizations {
            if !due.contains(organization) {
                due.insert(organization.clone());
            }
        }
    }

    /// Brings the lists up to date with all that was noted.
    pub(super) async fn refresh(&self) -> Result<(), postgres::Error> {
        while self.refresh_some(BATCH_MAX as usize).await? {}
        Ok(())
    }

    /// Brings them up to date with some of that; whether there is more.
    async fn refresh_some(&self, count: usize) -> Result<bool, postgres::Error> {
        let some = self.take(count);
        if some.is_empty() {
            return Ok(false);
        }
        let refreshed = summaries::refresh(&self.ctx.postgres, &some, self.ctx.clock.now()).await;
        if let Err(error) = refreshed {
            self.note(some.iter());
            return Err(error);
        }
        Ok(some.len() == count)
    }

    /// Takes organizations whose period is over off the lists that they were full in; returns how many.
    pub(super) async fn age_once(&self) -> Result<u64, Failure> {
        Ok(summaries::age(&self.ctx.postgres, self.ctx.clock.now(), BATCH_MAX).await?)
    }

    /// Looks through some organizations, whether or not anything was stored; returns the last of them, behind which
    /// the next step goes on.
    pub(super) async fn repair_once(
        &self,
        after: Option<&OrganizationId>,
    ) -> Result<Option<OrganizationId>, Failure> {
        let mut some = summaries::some_after(&self.ctx.postgres, after, WALK).await?;
        summaries::refresh(&self.ctx.postgres, &some, self.ctx.clock.now()).await?;
        self.list_meters(&some).await?;
        Ok(some.pop())
    }

    /// Brings meters back that Postgres holds and that Redis does not list beside others of their organization.
    async fn list_meters(&self, organizations: &[OrganizationId]) -> Result<(), Failure> {
        let now = self.ctx.clock.now();
        let mut stored = usage::running_meters(&self.ctx.postgres, organizations, now).await?;
        let connection = self.ctx.redis.connection().await?;
        let ids: Vec<&OrganizationId> = organizations.iter().collect();
        let known = connection.organizations(&ids).await?;
        for (organization, known) in organizations.iter().zip(known) {
            // Where it lists none, whoever asks is told what Postgres holds.
            let listed = known.and_then(|known| known.meters);
            let (Some(listed), Some(stored)) = (listed, stored.remove(organization.as_str()))
            else {
                continue;
            };
            for meter in stored.iter().filter(|meter| !listed.contains(meter)) {
                // One that cannot be brought back must not keep the walk from the others.
                if let Err(error) = self.bring_back(&connection, organization, meter).await {
                    tracing::debug!(%error, org.id = %organization, %meter, "a meter could not be brought back");
                }
            }
        }
        Ok(())
    }

    async fn bring_back(
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
            .ready(connection, &policy, &counter, now)
            .await?;
        Ok(())
    }

    /// Does all of it every now and then, until `stop`.
    pub(super) async fn run(&self, stop: &CancellationToken) {
        let (mut reached, mut rest) = (None, INTERVAL);
        while stop
            .run_until_cancelled(tokio::time::sleep(rest))
            .await
            .is_some()
        {
            let begun = Instant::now();
            let more = self.round(&mut reached).await;
            rest = rest_after(begun.elapsed());
            if !matches!(more, Ok(true)) {
                rest = rest.max(INTERVAL);
            }
            // Nothing depends on it but the lists, and the flush reports an outage.
            if let Err(error) = more {
                tracing::debug!(%error, "the lists of organizations could not be brought up to date");
            }
        }
    }

    /// Whether there is more to be brought up to date, before anything else is looked at.
    async fn round(&self, reached: &mut Option<OrganizationId>) -> Result<bool, Failure> {
        if self.refresh_some(BESIDE_MAX).await? {
            return Ok(true);
        }
        while self.age_once().await? >= u64::from(BATCH_MAX) {}
        *reached = self.repair_once(reached.as_ref()).await?;
        Ok(false)
    }

    fn take(&self, count: usize) -> Vec<OrganizationId> {
        let mut due = self.due.lock().unwrap_or_else(PoisonError::into_inner);
        let mut some = Vec::new();
        while some.len() < count
            && let Some(organization) = due.pop_first()
        {
            some.push(organization);
        }
        some
    }
}
