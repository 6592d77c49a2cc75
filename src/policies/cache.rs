//! A policy, shared by every organization that has the same, with what it says about now worked out.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use chrono::{DateTime, Utc};

use crate::domain::ids::MeterId;
use crate::domain::period::Period;
use crate::domain::policy::{MeterLimit, Policy};
use crate::domain::slot::Slot;
use crate::domain::threshold::WatchedThresholds;

/// A policy in force. Finding periods and slots in a calendar is dear, and almost every call asks for those
/// that contain now, so the last answer is kept.
#[derive(Debug)]
pub struct CachedPolicy {
    policy: Policy,
    /// By meter, what its counters are watched for.
    watched: BTreeMap<MeterId, Arc<WatchedThresholds>>,
    /// The same of a meter that it does not name.
    otherwise: Arc<WatchedThresholds>,
    last: ArcSwapOption<Window>,
}

/// A part of a period.
#[derive(Debug, Clone, Copy)]
pub struct Window {
    /// The period that contains it.
    pub period: Period,
    /// The time slot in which usage is recorded.
    pub slot: Slot,
}

impl CachedPolicy {
    pub(super) fn new(policy: Policy) -> Self {
        let limits = policy.limits.iter();
        let watched =
            limits.map(|(meter, limit)| (meter.clone(), Arc::new(WatchedThresholds::of(limit))));
        Self {
            watched: watched.collect(),
            otherwise: Arc::new(WatchedThresholds::of(&MeterLimit::default())),
            policy,
            last: ArcSwapOption::empty(),
        }
    }

    /// What the counters of a meter are watched for.
    pub fn watched(&self, meter: &MeterId) -> Arc<WatchedThresholds> {
        Arc::clone(self.watched.get(meter).unwrap_or(&self.otherwise))
    }

    /// The period and the slot that contain an instant.
    pub fn moment(&self, at: DateTime<Utc>) -> Window {
        if let Some(last) = self.last.load().as_deref()
            && last.period.contains(at)
            && last.slot.contains(at)
        {
            return *last;
        }
        let moment = Window {
            period: self.schedule.period(at),
            slot: self.schedule.slot(at),
        };
        self.last.store(Some(Arc::new(moment)));
        moment
    }
}

impl Deref for CachedPolicy {
    type Target = Policy;

    fn deref(&self) -> &Policy {
        &self.policy
    }
}
