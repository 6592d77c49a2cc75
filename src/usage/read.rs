//! Usage of an organization: exact, from Redis, or as last flushed while Redis is down.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use futures::future::try_join_all;

use super::count::{ROUNDS_MAX, Usage};
use super::error::Error;
use super::types::MeterUsage;
use crate::domain::counter::{CounterId, Snapshot, Stamp};
use crate::domain::ids::{MeterId, OrganizationId};
use crate::domain::policy::Policy;
use crate::failure::Failure;
use crate::postgres::{organizations, usage};
use crate::redis::{Connection, Shard};

/// The usage of an organization in its running periods.
#[derive(Debug, Clone)]
pub struct OrganizationUsage {
    /// The effective policy.
    pub policy: Policy,
    /// Every meter that is limited or counted, by name.
    pub meters: Vec<MeterUsage>,
    /// Whether it was read from Redis; otherwise it is the last snapshot in Postgres.
    pub exact: bool,
    /// When the newest of the snapshots was stored, if it is not exact.
    pub snapshot_at: Option<DateTime<Utc>>,
}

impl OrganizationUsage {
    fn new(
        policy: Policy,
        snapshots: impl IntoIterator<Item = (MeterId, Option<Snapshot>)>,
        now: DateTime<Utc>,
        exact: bool,
    ) -> Self {
        let meters = snapshots
            .into_iter()
            .map(|(meter, snapshot)| MeterUsage::new(&policy, meter, snapshot, now));
        Self {
            meters: meters.collect(),
            policy,
            exact,
            snapshot_at: None,
        }
    }
}

impl Usage {
    /// The usage of an organization; none if it was never counted nor configured.
    pub async fn usage(
        &self,
        organization: &OrganizationId,
    ) -> Result<Option<OrganizationUsage>, Error> {
        match self.exact_usage(organization).await {
            Err(error) if error.is_counter_outage() => {
                let policy = self.stored_policy(organization).await?;
                let now = self.ctx.clock.now();
                self.stored_usage(organization, policy, now, false).await
            }
            other => other,
        }
    }

    /// The usage of an organization that does not exist yet: none.
    pub async fn usage_of_unknown(
        &self,
        organization: &OrganizationId,
    ) -> Result<OrganizationUsage, Error> {
        let policy = self.stored_policy(organization).await?;
        let now = self.ctx.clock.now();
        let meters = limited_or_counted(&policy, Vec::new()).into_iter();
        let unused = meters.map(|meter| (meter, None));
        Ok(OrganizationUsage::new(policy, unused, now, true))
    }

    async fn exact_usage(
        &self,
        organization: &OrganizationId,
    ) -> Result<Option<OrganizationUsage>, Error> {
        let shard = Shard::of(organization);
        for _ in 0..ROUNDS_MAX {
            let connection = self.ctx.redis.connection().await?;
            let generation = self.recovery.generation(&connection, shard).await?;
            let cached = self.policies.get(organization).await?;
            let in_redis = self.policies.in_redis(&connection, organization).await?;
            // Before anything is counted, no counter reveals that the cached policy is stale.
            let policy = match &in_redis {
                Some(in_redis) => self.policies.newer(organization, cached, in_redis),
                None => self.policies.refresh(organization, cached.version).await?,
            };
            let now = self.ctx.clock.now();
            let Some(counted) = in_redis.and_then(|it| it.meters) else {
                // Nothing was counted in this data set, so the snapshots are complete.
                let policy = Policy::clone(&policy);
                return self.stored_usage(organization, policy, now, true).await;
            };
            let meters = limited_or_counted(&policy, counted);
            let current =
                self.current_counters(&connection, organization, &policy, &meters, generation, now);
            if let Some(snapshots) = current.await? {
                let policy = Policy::clone(&policy);
                let snapshots = meters.into_iter().zip(snapshots);
                let usage = OrganizationUsage::new(policy, snapshots, now, true);
                return Ok(Some(usage));
            }
        }
        Err(Failure::Contended.into())
    }

    /// The running counters of some meters in this generation. None if one was not in it and has been recovered: a
    /// missing counter is unknown, never zero. Only a meter that cannot be counted, because the organization has the
    /// maximum number of meters, has no counter.
    async fn current_counters(
        &self,
        connection: &Connection,
        organization: &OrganizationId,
        policy: &Policy,
        meters: &[MeterId],
        generation: u64,
        now: DateTime<Utc>,
    ) -> Result<Option<Vec<Option<Snapshot>>>, Error> {
        let counters = meters.iter().map(|meter| {
            let start = policy.schedule.running(meter, now).start;
            CounterId::new(organization, meter, start)
        });
        let counters: Vec<CounterId> = counters.collect();
        let snapshots = connection.read(&counters).await?;
        let current = counters
            .iter()
            .zip(snapshots)
            .map(async |(counter, snapshot)| {
                if let Some(snapshot) = snapshot.filter(|it| it.stamp.generation == generation) {
                    return Ok(Some(Some(snapshot)));
                }
                let period = policy.schedule.running(&counter.meter, now);
                let stamp = Stamp::of(policy, &counter.meter, period, generation);
                match self.recover(policy, counter, &stamp, now).await {
                    Err(Error::Failure(Failure::TooManyMeters(_))) => Ok(Some(None)),
                    Err(error) => Err(error),
                    Ok(()) => Ok(None),
                }
            });
        Ok(try_join_all(current).await?.into_iter().collect())
    }

    async fn stored_usage(
        &self,
        organization: &OrganizationId,
        policy: Policy,
        now: DateTime<Utc>,
        exact: bool,
    ) -> Result<Option<OrganizationUsage>, Error> {
        let postgres = &self.ctx.postgres;
        if !organizations::exists(postgres, organization).await? {
            return Ok(None);
        }
        let running = |meter: &MeterId| policy.schedule.running(meter, now);
        let unfinished = usage::unfinished(postgres, organization, now).await?;
        let mut snapshots: BTreeMap<MeterId, Snapshot> = unfinished
            .into_iter()
            .filter(|it| it.counter.start == running(&it.counter.meter).start)
            .map(|it| (it.counter.meter.clone(), it))
            .collect();
        let meters = limited_or_counted(&policy, snapshots.keys().cloned().collect());
        let snapshots = meters.into_iter().map(|meter| {
            // A snapshot has the limit of its time; the effective one is the policy's.
            let snapshot = snapshots.remove(&meter).map(|it| Snapshot {
                stamp: Stamp::of(&policy, &meter, running(&meter), 0),
                ..it
            });
            (meter, snapshot)
        });
        let snapshots: Vec<_> = snapshots.collect();
        let snapshot_at = if exact {
            None
        } else {
            usage::last_stored(postgres, organization, now).await?
        };
        Ok(Some(OrganizationUsage {
            snapshot_at,
            ..OrganizationUsage::new(policy, snapshots, now, exact)
        }))
    }
}

/// Every meter that the policy limits or that was counted, by name.
fn limited_or_counted(policy: &Policy, mut counted: Vec<MeterId>) -> Vec<MeterId> {
    counted.extend(policy.limits.keys().cloned());
    counted.sort_unstable();
    counted.dedup();
    counted
}
