//! A policy, shared by every organization that has the same, with what it says about now worked out.

use std::ops::Deref;
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use chrono::{DateTime, Utc};

use crate::domain::period::Period;
use crate::domain::policy::Policy;
use crate::domain::slot::Slot;

/// A policy in force. Finding periods and slots in a calendar is dear, and almost every call asks for those
/// that contain now, so the last answer is kept.
#[derive(Debug)]
pub struct Resolved {
    policy: Policy,
    last: ArcSwapOption<Moment>,
}

/// A part of a period.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    /// The period that contains it.
    pub period: Period,
    /// The time slot in which usage is recorded.
    pub slot: Slot,
}

impl Resolved {
    pub(super) fn new(policy: Policy) -> Self {
        Self {
            policy,
            last: ArcSwapOption::empty(),
        }
    }

    /// The period and the slot that contain an instant.
    pub fn moment(&self, at: DateTime<Utc>) -> Moment {
        if let Some(last) = self.last.load().as_deref()
            && last.period.contains(at)
            && last.slot.contains(at)
        {
            return *last;
        }
        let moment = Moment {
            period: self.schedule.period(at),
            slot: self.schedule.slot(at),
        };
        self.last.store(Some(Arc::new(moment)));
        moment
    }
}

impl Deref for Resolved {
    type Target = Policy;

    fn deref(&self) -> &Policy {
        &self.policy
    }
}
