//! Compares the counters in Redis and Postgres whose periods run or have ended recently.
//!
//! Changes nothing, and does not block counting.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, TimeDelta, Utc};

use crate::context::Context;
use crate::domain::counter::CounterId;
use crate::domain::ids::OrganizationId;
use crate::domain::verification::{LiveCounter, Mismatch, Totals, mismatches};
use crate::failure::Failure;
use crate::policies::Policies;
use crate::postgres::{organizations, verification};
use crate::redis::{READ_MAX, Shard};

/// The handle on verification; clones share everything.
#[derive(Debug, Clone)]
pub struct Verifier {
    ctx: Context,
    policies: Policies,
}

/// The result of a comparison.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// How many counters were compared.
    pub counters: usize,
    /// Every mismatch.
    pub differences: Vec<Difference>,
}

/// One mismatch of one counter.
#[derive(Debug, Clone)]
pub struct Difference {
    /// Which counter.
    pub counter: CounterId,
    /// What does not match.
    pub mismatch: Mismatch,
    /// The totals on one side.
    pub expected: Totals,
    /// The totals on the other side.
    pub found: Totals,
}

impl Verifier {
    /// Creates a handle.
    pub fn new(ctx: Context, policies: Policies) -> Self {
        Self { ctx, policies }
    }

    /// Whether an organization was ever counted or configured.
    pub async fn exists(&self, organization: &OrganizationId) -> Result<bool, Failure> {
        self.policies.exists(organization).await
    }

    /// At most `count` organizations, by id, after `after`.
    pub async fn organizations_after(
        &self,
        after: Option<&OrganizationId>,
        count: u32,
    ) -> Result<Vec<OrganizationId>, Failure> {
        Ok(organizations::list(&self.ctx.postgres, after, count).await?)
    }

    /// Compares the counters of some organizations. Mismatches are compared a second time, because a counter that
    /// changes during the comparison may look wrong once.
    pub async fn verify(&self, organizations: &[OrganizationId]) -> Result<Report, Failure> {
        let mut report = self.compare(organizations).await?;
        let first: BTreeSet<_> = report.differences.iter().map(Difference::key).collect();
        let suspects = first.iter().map(|(counter, _)| &counter.organization);
        let mut suspects: Vec<OrganizationId> = suspects.cloned().collect();
        suspects.dedup();
        if !suspects.is_empty() {
            let again = self.compare(&suspects).await?.differences.into_iter();
            report.differences = again.filter(|it| first.contains(&it.key())).collect();
        }
        Ok(report)
    }

    async fn compare(&self, organizations: &[OrganizationId]) -> Result<Report, Failure> {
        let now = self.ctx.clock.now();
        // As long as clean counters stay in Redis.
        let ends_after = now - self.ctx.late - TimeDelta::days(1);
        let counters = self.counters_of(organizations, ends_after, now).await?;
        let before = self.live_counters(&counters).await?;
        let held: Vec<_> = before.values().map(|it| &it.snapshot).collect();
        let stored =
            verification::stored(&self.ctx.postgres, organizations, ends_after, &held).await?;
        let after = self.live_counters(&counters).await?;
        let stored: BTreeMap<_, _> = stored.iter().map(|it| (&it.counter, it)).collect();
        let mut differences = Vec::new();
        for counter in &counters {
            let stored = stored.get(counter).copied();
            for (mismatch, expected, found) in
                mismatches(before.get(counter), stored, after.get(counter))
            {
                differences.push(Difference {
                    counter: counter.clone(),
                    mismatch,
                    expected,
                    found,
                });
            }
        }
        Ok(Report {
            counters: counters.len(),
            differences,
        })
    }

    /// Those in Postgres, and the running ones, which may not be in Postgres yet.
    async fn counters_of(
        &self,
        organizations: &[OrganizationId],
        ends_after: DateTime<Utc>,
        now: DateTime<Utc>,
    ) -> Result<BTreeSet<CounterId>, Failure> {
        let postgres = &self.ctx.postgres;
        let stored = verification::counters(postgres, organizations, ends_after).await?;
        let mut counters = BTreeSet::from_iter(stored);
        let connection = self.ctx.redis.connection().await?;
        for organization in organizations {
            let in_redis = connection.organization(organization).await?;
            let meters = in_redis.and_then(|it| it.meters).unwrap_or_default();
            if meters.is_empty() {
                continue;
            }
            let policy = self.policies.get(organization).await?;
            counters.extend(meters.iter().map(|meter| {
                let start = policy.schedule.running(meter, now).start;
                CounterId::new(organization, meter, start)
            }));
        }
        Ok(counters)
    }

    /// The counters that Redis has in the present data sets. A counter of another data set is frozen: moving it to the
    /// present one compares it.
    async fn live_counters(
        &self,
        counters: &BTreeSet<CounterId>,
    ) -> Result<BTreeMap<CounterId, LiveCounter>, Failure> {
        let connection = self.ctx.redis.connection().await?;
        let ids: Vec<CounterId> = counters.iter().cloned().collect();
        let found = connection.read_counted(&ids, READ_MAX).await?;
        Ok(found
            .into_iter()
            .flatten()
            .filter(|it| {
                let shard = Shard::of(&it.snapshot.counter.organization);
                connection.generation(shard) == Some(it.snapshot.stamp.generation)
            })
            .map(|it| (it.snapshot.counter.clone(), it))
            .collect())
    }
}

impl Difference {
    fn key(&self) -> (CounterId, Mismatch) {
        (self.counter.clone(), self.mismatch)
    }
}
