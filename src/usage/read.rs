//! What an organization has used: exact now, from Redis, or as last stored where Redis is away.

use chrono::{DateTime, Utc};
use futures::future::try_join_all;

use super::{Error, MeterUsage, ROUNDS_MAX, Usage};
use crate::domain::counter::{CounterId, Snapshot, Stamp};
use crate::domain::decision::Demand;
use crate::domain::ids::{MeterId, OrganizationId};
use crate::domain::policy::Policy;
use crate::domain::quantity::Count;
use crate::failure::Failure;
use crate::postgres::{organizations, usage};
use crate::redis::{Connection, Shard};

/// An organization's running periods.
#[derive(Debug, Clone)]
pub struct OrganizationUsage {
    /// What decides about it.
    pub policy: Policy,
    /// Every meter that has a limit or a count, by name.
    pub meters: Vec<MeterUsage>,
    /// Whether this is what Redis holds now, and not the last snapshot.
    pub exact: bool,
}

impl Usage {
    /// The usage of an organization; none if it was never counted nor configured.
    pub async fn usage(
        &self,
        organization: &OrganizationId,
    ) -> Result<Option<OrganizationUsage>, Error> {
        match self.exact_usage(organization).await {
            Err(error) if error.is_counter_outage() => self.stored_usage(organization).await,
            other => other,
        }
    }

    /// The usage of an organization of which nothing is known here.
    pub async fn usage_of_none(
        &self,
        organization: &OrganizationId,
    ) -> Result<OrganizationUsage, Error> {
        let now = self.ctx.clock.now();
        let policy = self.policies.stored(organization).await?.resolve(now);
        let meters = named(&policy, Vec::new()).into_iter();
        Ok(OrganizationUsage {
            meters: meters
                .map(|meter| seen(&policy, meter, None, now))
                .collect(),
            policy: policy.clone(),
            exact: true,
        })
    }

    async fn exact_usage(
        &self,
        organization: &OrganizationId,
    ) -> Result<Option<OrganizationUsage>, Error> {
        let shard = Shard::of(organization);
        for _ in 0..ROUNDS_MAX {
            let connection = self.ctx.redis.connection().await?;
            let Some(generation) = connection.generation(shard) else {
                self.recovery.number(&connection, shard).await?;
                continue;
            };
            let mut policy = self.policies.get(organization).await?;
            let known = self.policies.in_redis(&connection, organization).await?;
            // Where nothing was counted yet, no counter tells that the policy at hand is out of date.
            policy = match &known {
                Some(known) => self.policies.newer(organization, policy, known),
                None => self.policies.refresh(organization, policy.version).await?,
            };
            let now = self.ctx.clock.now();
            let Some(counted) = known.and_then(|known| known.meters) else {
                // Nothing was counted in this data set, so that the snapshots are all there is.
                return self
                    .stored_meters(organization, Policy::clone(&policy), now, true)
                    .await;
            };
            let meters = named(&policy, counted);
            let current = self
                .current(&connection, organization, &policy, &meters, generation, now)
                .await?;
            if let Some(snapshots) = current {
                let meters = meters
                    .into_iter()
                    .zip(snapshots)
                    .map(|(meter, snapshot)| seen(&policy, meter, snapshot, now));
                return Ok(Some(OrganizationUsage {
                    meters: meters.collect(),
                    policy: Policy::clone(&policy),
                    exact: true,
                }));
            }
        }
        Err(Failure::Contended.into())
    }

    /// The running counters of some meters in the present generation; none if any was not in it, and
    /// something was done about that: a missing counter is unknown, never zero. Only a meter that the
    /// policy limits and that has no place among those counted has no counter.
    async fn current(
        &self,
        connection: &Connection,
        organization: &OrganizationId,
        policy: &Policy,
        meters: &[MeterId],
        generation: u64,
        now: DateTime<Utc>,
    ) -> Result<Option<Vec<Option<Snapshot>>>, Error> {
        let counters: Vec<CounterId> = meters
            .iter()
            .map(|meter| CounterId {
                organization: organization.clone(),
                meter: meter.clone(),
                start: policy.schedule.running(meter, now).start,
            })
            .collect();
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
                match self.open(policy, counter, &stamp, now).await {
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
    ) -> Result<Option<OrganizationUsage>, Error> {
        let now = self.ctx.clock.now();
        let policy = self.policies.stored(organization).await?.resolve(now);
        self.stored_meters(organization, policy, now, false).await
    }

    async fn stored_meters(
        &self,
        organization: &OrganizationId,
        policy: Policy,
        now: DateTime<Utc>,
        exact: bool,
    ) -> Result<Option<OrganizationUsage>, Error> {
        if !organizations::exists(&self.ctx.postgres, organization).await? {
            return Ok(None);
        }
        let mut snapshots = usage::unfinished(&self.ctx.postgres, organization, now).await?;
        snapshots
            .retain(|it| it.counter.start == policy.schedule.running(&it.counter.meter, now).start);
        let counted = snapshots
            .iter()
            .map(|snapshot| snapshot.counter.meter.clone())
            .collect();
        let meters = named(&policy, counted).into_iter().map(|meter| {
            let snapshot = snapshots
                .iter()
                .find(|snapshot| snapshot.counter.meter == meter)
                .cloned();
            let period = policy.schedule.running(&meter, now);
            // A snapshot carries the limit of its time; the one in force is the policy's.
            let snapshot = snapshot.map(|it| Snapshot {
                stamp: Stamp::of(&policy, &meter, period, 0),
                ..it
            });
            seen(&policy, meter, snapshot, now)
        });
        Ok(Some(OrganizationUsage {
            meters: meters.collect(),
            policy: policy.clone(),
            exact,
        }))
    }
}

/// Every meter that the policy limits or that was counted, by name.
fn named(policy: &Policy, mut counted: Vec<MeterId>) -> Vec<MeterId> {
    counted.extend(policy.limits.keys().cloned());
    counted.sort_unstable();
    counted.dedup();
    counted
}

pub(super) fn seen(
    policy: &Policy,
    meter: MeterId,
    snapshot: Option<Snapshot>,
    now: DateTime<Utc>,
) -> MeterUsage {
    let mut period = policy.schedule.running(&meter, now);
    let mut rule = policy.rule(&meter);
    // Where the counter knows a newer policy than the cache, the counter is right.
    if let Some(newer) = snapshot
        .as_ref()
        .filter(|snapshot| snapshot.stamp.version > policy.version)
    {
        period.end = newer.stamp.end;
        rule = newer.stamp.rule;
    }
    let used = snapshot.map_or(Count::ZERO, |snapshot| snapshot.used);
    MeterUsage {
        renews_at: period.end.into_iter().chain(policy.relief(&meter)).min(),
        refused: None,
        meter,
        demand: Demand { amount: 0, need: 0 },
        used,
        rule,
        period,
        given_back: 0,
    }
}
