//! The thresholds that counters have crossed since their last snapshots.

use std::sync::Arc;

use futures::stream::{self, StreamExt as _, TryStreamExt as _};

use crate::domain::counter::Snapshot;
use crate::domain::threshold_events::MeterThresholdEvents;
use crate::failure::Failure;
use crate::policies::{CachedPolicy, Policies};
use crate::postgres::usage::ThresholdEvents;

/// The most policies that are looked up at once; almost all of them are cached.
const LOOK_UPS: usize = 64;

/// The threshold events of snapshots, by position. Policies are looked up only where a threshold may be crossed.
pub(super) async fn threshold_events(
    policies: &Policies,
    snapshots: &[Snapshot],
) -> Result<ThresholdEvents, Failure> {
    let mut look_ups = Vec::new();
    for (position, snapshot) in snapshots.iter().enumerate() {
        if snapshot.may_have_threshold_events() {
            look_ups.push(async move {
                let events = events_of(policies, snapshot).await?;
                Ok::<_, Failure>(events.map(|events| (position, events)))
            });
        }
    }
    let events: Vec<Option<(usize, MeterThresholdEvents)>> = stream::iter(look_ups)
        .buffer_unordered(LOOK_UPS)
        .try_collect()
        .await?;
    Ok(events.into_iter().flatten().collect())
}

async fn events_of(
    policies: &Policies,
    snapshot: &Snapshot,
) -> Result<Option<MeterThresholdEvents>, Failure> {
    let policy = policy_of(policies, snapshot).await?;
    let limit = policy.limits.get(&snapshot.counter.meter);
    Ok(snapshot.threshold_events(limit.map_or(&[][..], |limit| &limit.warn_at)))
}

/// The policy of a counter, at least as new as the one that last decided about it.
async fn policy_of(policies: &Policies, snapshot: &Snapshot) -> Result<Arc<CachedPolicy>, Failure> {
    let organization = &snapshot.counter.organization;
    let cached = policies.get(organization).await?;
    if cached.version >= snapshot.stamp.version {
        return Ok(cached);
    }
    policies.refresh(organization, cached.version).await
}
