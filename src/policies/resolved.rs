//! A policy, shared by every organization that has the same, with what it says about now worked out.

use std::ops::Deref;
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use chrono::{DateTime, Utc};

use crate::domain::period::{Period, hour};
use crate::domain::policy::Policy;

/// A policy in force. Finding periods and hours in a calendar is dear, and almost every call asks for those
/// that contain now, so the last answer is kept.
#[derive(Debug)]
pub struct Resolved {
    policy: Policy,
    last: ArcSwapOption<Moment>,
}

/// An hour of a period.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    /// The period that contains it.
    pub period: Period,
    /// When the hour begins, by the organization's wall clock.
    pub hour: DateTime<Utc>,
    hour_end: DateTime<Utc>,
}

impl Resolved {
    pub(super) fn new(policy: Policy) -> Self {
        Self {
            policy,
            last: ArcSwapOption::empty(),
        }
    }

    /// The period and the hour that contain an instant.
    pub fn moment(&self, at: DateTime<Utc>) -> Moment {
        if let Some(last) = self.last.load().as_deref()
            && last.period.contains(at)
            && (last.hour..last.hour_end).contains(&at)
        {
            return *last;
        }
        let (hour, hour_end) = hour(self.schedule.calendar.time_zone(), at);
        let moment = Moment {
            period: self.schedule.period(at),
            hour,
            hour_end,
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
