//! Projections of an organization's meters, from its history of the last seven days.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};

use super::count::Usage;
use super::read::OrganizationUsage;
use super::types::MeterUsage;
use crate::domain::ids::{MeterId, OrganizationId};
use crate::domain::policy::Policy;
use crate::domain::projection::{Pace, Projection};
use crate::postgres::{self, usage};

impl Usage {
    /// What is expected of each meter, where its history is long enough to tell.
    pub async fn projections(
        &self,
        organization: &OrganizationId,
        read: &OrganizationUsage,
    ) -> Result<BTreeMap<MeterId, Projection>, postgres::Error> {
        let now = self.ctx.clock.now();
        let paces = usage::paces(&self.ctx.postgres, organization, now).await?;
        let projections = read.meters.iter().filter_map(|meter| {
            let pace = *paces.get(&meter.meter)?;
            let projection = project(meter, pace, &read.policy, now);
            Some((meter.meter.clone(), projection))
        });
        Ok(projections.collect())
    }
}

fn project(meter: &MeterUsage, pace: Pace, policy: &Policy, now: DateTime<Utc>) -> Projection {
    let end = meter.period.end;
    let full_at = full_at(meter, pace, policy, now);
    Projection {
        used: end.map(|end| pace.used_at(meter.used, end, now)),
        full_at: full_at.filter(|at| end.is_none_or(|end| *at < end)),
        pace,
    }
}

/// When a meter reaches the limit that applies then: after a temporary one, the one below it.
fn full_at(
    meter: &MeterUsage,
    pace: Pace,
    policy: &Policy,
    now: DateTime<Utc>,
) -> Option<DateTime<Utc>> {
    let limit = meter.rule.limit;
    if limit.is_some_and(|limit| limit <= meter.used) {
        return None;
    }
    let full_at = limit.and_then(|limit| pace.full_at(meter.used, limit, now));
    let until = policy.limits.get(&meter.meter).and_then(|it| it.until);
    let Some(until) = until.filter(|until| full_at.is_none_or(|at| at > *until)) else {
        return full_at;
    };
    let lasting = policy.rule_at(&meter.meter, until).limit?;
    if lasting <= meter.used {
        return Some(until);
    }
    let full_at = pace.full_at(meter.used, lasting, now);
    full_at.map(|at| at.max(until))
}
