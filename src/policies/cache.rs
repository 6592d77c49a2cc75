//! The policies cached in this process. Organizations with equal policies share one.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use chrono::{DateTime, TimeDelta, Utc};
use quick_cache::sync::Cache;

use super::min_versions::MinVersions;
use crate::domain::ids::{MeterId, OrganizationId};
use crate::domain::limit::MeterLimit;
use crate::domain::period::Period;
use crate::domain::policy::Policy;
use crate::domain::slot::Slot;
use crate::domain::threshold::WatchedThresholds;

/// How long a policy is used without reading Redis again. Matters only for changes that never reached Redis.
const LIFETIME: TimeDelta = TimeDelta::minutes(5);

/// How long a stale policy is used while Postgres is down.
const STALE_LIFETIME: TimeDelta = TimeDelta::seconds(1);

/// The most organizations in the cache, about 150 bytes each.
const ORGANIZATIONS_MAX: usize = 1_000_000;

/// The most distinct policies in the cache.
const POLICIES_MAX: usize = 100_000;

/// An effective policy. Computing periods and slots from a calendar is expensive, and almost every call needs the
/// current ones, so the last result is kept.
#[derive(Debug)]
pub struct CachedPolicy {
    policy: Policy,
    /// By meter, which thresholds `count.lua` watches for.
    watched: BTreeMap<MeterId, Arc<WatchedThresholds>>,
    /// The same for meters that the policy does not name.
    watched_by_default: Arc<WatchedThresholds>,
    last: ArcSwapOption<Window>,
}

/// The period and the slot that contain an instant.
#[derive(Debug, Clone, Copy)]
pub struct Window {
    /// The period, of meters that were never reset.
    pub period: Period,
    /// The time slot in which usage is recorded.
    pub slot: Slot,
}

impl CachedPolicy {
    /// A policy with nothing computed yet.
    pub fn new(policy: Policy) -> Self {
        let limits = policy.limits.iter();
        let watched =
            limits.map(|(meter, limit)| (meter.clone(), Arc::new(WatchedThresholds::of(limit))));
        Self {
            watched: watched.collect(),
            watched_by_default: Arc::new(WatchedThresholds::of(&MeterLimit::default())),
            policy,
            last: ArcSwapOption::empty(),
        }
    }

    /// Which thresholds `count.lua` watches for on a meter.
    pub fn watched(&self, meter: &MeterId) -> Arc<WatchedThresholds> {
        Arc::clone(self.watched.get(meter).unwrap_or(&self.watched_by_default))
    }

    /// The period and the slot that contain an instant.
    pub fn window(&self, at: DateTime<Utc>) -> Window {
        if let Some(last) = self.last.load().as_deref()
            && last.period.contains(at)
            && last.slot.contains(at)
        {
            return *last;
        }
        let window = Window {
            period: self.schedule.period(at),
            slot: self.schedule.slot(at),
        };
        self.last.store(Some(Arc::new(window)));
        window
    }
}

impl Deref for CachedPolicy {
    type Target = Policy;

    fn deref(&self) -> &Policy {
        &self.policy
    }
}

#[derive(Debug)]
pub(super) struct PolicyCache {
    organizations: Cache<OrganizationId, Entry>,
    /// By version and JSON, as Redis stores them.
    policies: Cache<Box<str>, Arc<CachedPolicy>>,
    pub(super) min_versions: MinVersions,
}

#[derive(Debug, Clone)]
struct Entry {
    policy: Arc<CachedPolicy>,
    since: DateTime<Utc>,
    until: DateTime<Utc>,
    /// Whether the policy was stale when it was cached, because Postgres was down.
    stale: bool,
}

impl Default for PolicyCache {
    fn default() -> Self {
        Self {
            organizations: Cache::new(ORGANIZATIONS_MAX),
            policies: Cache::new(POLICIES_MAX),
            min_versions: MinVersions::default(),
        }
    }
}

impl PolicyCache {
    /// The policy of an organization, if it is cached and usable at `now`.
    pub(super) fn get(
        &self,
        organization: &OrganizationId,
        now: DateTime<Utc>,
    ) -> Option<Arc<CachedPolicy>> {
        let entry = self.organizations.get(organization)?;
        // A clock that was set back must not extend a lifetime.
        let fresh = (entry.since..entry.until).contains(&now);
        let usable = fresh && (entry.stale || !self.is_stale(&entry.policy));
        usable.then_some(entry.policy)
    }

    pub(super) fn insert(
        &self,
        organization: &OrganizationId,
        policy: &Arc<CachedPolicy>,
        now: DateTime<Utc>,
    ) {
        let stale = self.is_stale(policy);
        let until = now + if stale { STALE_LIFETIME } else { LIFETIME };
        let entry = Entry {
            // A temporary limit may end earlier.
            until: policy.until.map_or(until, |ends| ends.min(until)),
            policy: Arc::clone(policy),
            since: now,
            stale,
        };
        self.organizations.insert(organization.clone(), entry);
    }

    pub(super) fn remove(&self, organization: &OrganizationId) {
        self.organizations.remove(organization);
    }

    /// Whether a policy was resolved from older defaults, or an older plan, than this instance knows of.
    pub(super) fn is_stale(&self, policy: &Policy) -> bool {
        policy.version < self.min_versions.of(&policy.plan_id)
    }

    /// The policy at `now` that a value from Redis describes.
    pub(super) fn parse(&self, text: &str, now: DateTime<Utc>) -> Option<Arc<CachedPolicy>> {
        self.policies
            .get(text)
            .or_else(|| Some(self.share(text, parse(text)?, now)))
    }

    /// The cached policy with this text, which is added if it is new.
    pub(super) fn share(
        &self,
        text: &str,
        policy: Policy,
        now: DateTime<Utc>,
    ) -> Arc<CachedPolicy> {
        if !policy.temporary.is_empty() {
            return Arc::new(CachedPolicy::new(policy.at(now)));
        }
        if let Some(equal) = self.policies.get(text) {
            return equal;
        }
        let policy = Arc::new(CachedPolicy::new(policy));
        self.policies.insert(text.into(), Arc::clone(&policy));
        policy
    }
}

/// Parses a policy from Redis: its version, a space, and its JSON. One that another release wrote and this release
/// cannot read counts as missing.
pub(super) fn parse(text: &str) -> Option<Policy> {
    let (version, json) = text.split_once(' ')?;
    Some(Policy {
        version: version.parse().ok()?,
        ..serde_json::from_str(json).ok()?
    })
}
