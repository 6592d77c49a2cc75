//! Compares what Redis and Postgres hold of the counters that run, or ended a short while ago.
//!
//! Changes nothing, and does not disturb whoever counts.

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

/// The handle on comparing; clones share everything.
#[derive(Debug, Clone)]
pub struct Verifier {
    ctx: Context,
    policies: Policies,
}

/// What a comparison came to.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// How many counters were compared.
    pub counters: usize,
    /// What does not fit.
    pub differences: Vec<Difference>,
}

/// One counter, and one thing about it that does not fit.
#[derive(Debug, Clone)]
pub struct Difference {
    /// Which counter.
    pub counter: CounterId,
    /// What does not fit.
    pub mismatch: Mismatch,
    /// What the one place says.
    pub expected: Totals,
    /// What the other says.
    pub found: Totals,
}

impl Verifier {
    /// A handle on these.
    pub fn new(ctx: Context, policies: Policies) -> Self {
        Self { ctx, policies }
    }

    /// Whether an organization was ever counted or configured.
    pub async fn exists(&self, organization: &OrganizationId) -> Result<bool, Failure> {
        Ok(self.policies.exists(organization).await?)
    }

    /// At most `count` organizations in the order of their ids, from the one behind `after` on.
    pub async fn organizations_after(
        &self,
        after: Option<&OrganizationId>,
        count: u32,
    ) -> Result<Vec<OrganizationId>, Failure> {
        Ok(organizations::list(&self.ctx.postgres, after, count).await?)
    }

    /// Compares the counters of some organizations. What does not fit is looked at again, because a counter may have
    /// moved on between two looks in a way that only looks wrong.
    pub async fn verify(&self, organizations: &[OrganizationId]) -> Result<Report, Failure> {
        let mut report = self.look(organizations).await?;
        if report.differences.is_empty() {
            return Ok(report);
        }
        let suspects: BTreeSet<OrganizationId> = report
            .differences
            .iter()
            .map(|it| it.counter.organization.clone())
            .collect();
        let suspects: Vec<OrganizationId> = suspects.into_iter().collect();
        let again = self.look(&suspects).await?.differences;
        let before: BTreeSet<(CounterId, Mismatch)> =
            report.differences.iter().map(Difference::key).collect();
        report.differences = again
            .into_iter()
            .filter(|difference| before.contains(&difference.key()))
            .collect();
        Ok(report)
    }

    async fn look(&self, organizations: &[OrganizationId]) -> Result<Report, Failure> {
        let now = self.ctx.clock.now();
        // As long as a clean counter stays in Redis.
        let ends_after = now - self.ctx.late - TimeDelta::days(1);
        let counters = self.counters_of(organizations, ends_after, now).await?;
        let before = self.counted(&counters).await?;
        let held: Vec<_> = before.values().map(|it| &it.snapshot).collect();
        let stored =
            verification::stored(&self.ctx.postgres, organizations, ends_after, &held).await?;
        let after = self.counted(&counters).await?;
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

    /// Those that Postgres knows, and those that run, which it may not know yet.
    async fn counters_of(
        &self,
        organizations: &[OrganizationId],
        ends_after: DateTime<Utc>,
        now: DateTime<Utc>,
    ) -> Result<BTreeSet<CounterId>, Failure> {
        let known = verification::counters(&self.ctx.postgres, organizations, ends_after).await?;
        let mut counters = BTreeSet::from_iter(known);
        let connection = self.ctx.redis.connection().await?;
        for organization in organizations {
            let known = connection.organization(organization).await?;
            let meters = known.and_then(|known| known.meters).unwrap_or_default();
            if meters.is_empty() {
                continue;
            }
            let policy = self.policies.get(organization).await?;
            counters.extend(meters.into_iter().map(|meter| CounterId {
                organization: organization.clone(),
                start: policy.schedule.running(&meter, now).start,
                meter,
            }));
        }
        Ok(counters)
    }

    /// What Redis holds of these in the present data sets. One of another data set is frozen: it is compared when it
    /// is moved, before anything is counted in it.
    async fn counted(
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
