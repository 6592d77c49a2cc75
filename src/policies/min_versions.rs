//! Minimum versions: a policy below them is stale, because the defaults or its plan have changed since.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;
use foldhash::fast::RandomState;

use crate::domain::ids::PlanId;

/// The newest versions that this instance knows of; they only grow.
#[derive(Debug, Default)]
pub(super) struct MinVersions {
    /// 0 until the defaults have been published.
    defaults: AtomicU64,
    /// Only plans that were ever changed.
    plans: ArcSwap<HashMap<PlanId, u64, RandomState>>,
    /// Every change of a plan up to this version is in `plans`. Announced changes may be newer.
    swept: AtomicU64,
}

impl MinVersions {
    /// The minimum version of policies on this plan.
    pub(super) fn of(&self, plan: &PlanId) -> u64 {
        let of_plan = self.plans.load().get(plan).copied().unwrap_or(0);
        self.defaults().max(of_plan)
    }

    pub(super) fn defaults(&self) -> u64 {
        self.defaults.load(Ordering::Acquire)
    }

    pub(super) fn raise_defaults(&self, version: u64) {
        self.defaults.fetch_max(version, Ordering::AcqRel);
    }

    pub(super) fn raise_plan(&self, plan: &PlanId, version: u64) {
        if self.plans.load().get(plan).is_some_and(|it| *it >= version) {
            return;
        }
        self.plans.rcu(|plans| {
            let mut plans = HashMap::clone(plans);
            let newest = plans.entry(plan.clone()).or_default();
            *newest = version.max(*newest);
            plans
        });
    }

    pub(super) fn swept(&self) -> u64 {
        self.swept.load(Ordering::Acquire)
    }

    /// Adds every change of a plan since [`MinVersions::swept`], oldest first.
    pub(super) fn sweep(&self, changes: &[(PlanId, u64)]) {
        for (plan, version) in changes {
            self.raise_plan(plan, *version);
        }
        if let Some((_, newest)) = changes.last() {
            self.swept.fetch_max(*newest, Ordering::AcqRel);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(id: &str) -> PlanId {
        id.parse().unwrap()
    }

    #[test]
    fn a_policy_must_be_as_new_as_the_defaults_and_as_its_plan() {
        let versions = MinVersions::default();
        versions.raise_defaults(5);
        versions.raise_plan(&plan("pro"), 9);
        versions.raise_plan(&plan("pro"), 7);
        assert_eq!(
            (versions.of(&plan("pro")), versions.of(&plan("free"))),
            (9, 5)
        );
        versions.raise_defaults(12);
        assert_eq!(
            (versions.of(&plan("pro")), versions.of(&plan("free"))),
            (12, 12)
        );
    }

    #[test]
    fn an_announced_plan_does_not_hide_an_older_change_of_another_plan_from_the_sweep() {
        let versions = MinVersions::default();
        versions.raise_plan(&plan("pro"), 9);
        assert_eq!(versions.swept(), 0);
        versions.sweep(&[(plan("team"), 8), (plan("pro"), 9)]);
        assert_eq!((versions.of(&plan("team")), versions.swept()), (8, 9));
    }
}
