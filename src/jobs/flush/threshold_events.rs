//! What is to be told of snapshots: the thresholds that they have crossed since the last ones.

use std::sync::Arc;

use futures::stream::{self, StreamExt as _, TryStreamExt as _};

use super::Flusher;
use crate::domain::counter::Snapshot;
use crate::domain::threshold::MeterThresholdEvents;
use crate::failure::Failure;
use crate::policies::{CachedPolicy, Policies};
use crate::postgres::usage::ThresholdEvents;

/// How many policies are looked for at once; almost all of them are at hand.
const LOOKING_MAX: usize = 64;

impl Flusher {
    /// What is to be told of snapshots, by their places. Only what may have crossed something costs more than a glance.
    pub(super) async fn news(&self, snapshots: &[Snapshot]) -> Result<ThresholdEvents, Failure> {
        let mut looking = Vec::new();
        for (position, snapshot) in snapshots.iter().enumerate() {
            if snapshot.may_have_threshold_events() {
                looking.push(self.news_of(position, snapshot));
            }
        }
        let found: Vec<Option<(usize, MeterThresholdEvents)>> = stream::iter(looking)
            .buffer_unordered(LOOKING_MAX)
            .try_collect()
            .await?;
        Ok(found.into_iter().flatten().collect())
    }

    async fn news_of(
        &self,
        position: usize,
        snapshot: &Snapshot,
    ) -> Result<Option<(usize, MeterThresholdEvents)>, Failure> {
        let policy = policy_of(&self.policies, snapshot).await?;
        let limit = policy.limits.get(&snapshot.counter.meter);
        let warn_at = limit.map_or(&[][..], |limit| &limit.warn_at);
        Ok(snapshot
            .threshold_events(warn_at)
            .map(|news| (position, news)))
    }
}

/// The policy of a counter, not older than the one that last decided about it.
async fn policy_of(policies: &Policies, snapshot: &Snapshot) -> Result<Arc<CachedPolicy>, Failure> {
    let organization = &snapshot.counter.organization;
    let at_hand = policies.get(organization).await?;
    if at_hand.version >= snapshot.stamp.version {
        return Ok(at_hand);
    }
    Ok(policies.refresh(organization, at_hand.version).await?)
}
