//! What one round of a request is based on.

use std::sync::Arc;

use chrono::{DateTime, Utc};

use super::error::Error;
use super::types::Request;
use crate::context::Context;
use crate::domain::counter::{CounterId, Stamp};
use crate::domain::period::Period;
use crate::domain::retention::EARLY_MAX;
use crate::policies::{CachedPolicy, Window};
use crate::redis::{Charge, Operation};

/// What earlier rounds have found out about a request.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct RetryState {
    /// A reset has closed the period of the event, so it counts in the running period.
    pub(super) own_period_closed: bool,
}

/// The policy, the data set and the times of one round.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) policy: Arc<CachedPolicy>,
    generation: u64,
    pub(super) now: DateTime<Utc>,
    /// When the event happened.
    at: DateTime<Utc>,
    /// An instant of the period that it counts in.
    counts_at: DateTime<Utc>,
    /// The period and the slot of that instant, of meters that were never reset.
    window: Window,
}

impl Plan {
    pub(super) fn new(
        policy: Arc<CachedPolicy>,
        generation: u64,
        now: DateTime<Utc>,
        at: DateTime<Utc>,
        retry: RetryState,
    ) -> Self {
        let counts_at = if retry.own_period_closed { now } else { at };
        Self {
            window: policy.window(counts_at),
            policy,
            generation,
            now,
            at,
            counts_at,
        }
    }

    pub(super) fn operation(&self, request: &Request) -> Operation {
        Operation {
            organization: request.organization.clone(),
            kind: request.kind,
            charges: self.charges(request).collect(),
            idempotency: request.idempotency.clone(),
            times: request.times,
        }
    }

    /// One for each demand, in order.
    pub(super) fn charges(&self, request: &Request) -> impl Iterator<Item = Charge> {
        request.demands.iter().map(|(meter, demand)| {
            let schedule = &self.policy.schedule;
            let period = if schedule.resets.contains_key(meter) {
                schedule.period_of(meter, self.counts_at, self.now)
            } else {
                self.window.period
            };
            Charge {
                counter: CounterId::new(&request.organization, meter, period.start),
                demand: *demand,
                stamp: Stamp::of(&self.policy, meter, period, self.generation),
                hour: self.slot_start(period),
                watched: self.policy.watched(meter),
            }
        })
    }

    /// The start of the slot that the units belong to: the event's slot, unless its period is closed.
    fn slot_start(&self, period: Period) -> DateTime<Utc> {
        if self.counts_at == self.at && period.start <= self.at {
            self.window.slot.start
        } else {
            self.policy.window(self.at.max(period.start)).slot.start
        }
    }
}

/// When the event of a request happened, if that is within the accepted range.
pub(super) fn event_time(
    ctx: &Context,
    request: &Request,
    now: DateTime<Utc>,
) -> Result<DateTime<Utc>, Error> {
    let at = request.timestamp.unwrap_or(now);
    let (age, late) = (now - at, ctx.late);
    if age > late || -age > EARLY_MAX {
        return Err(Error::TimestampOutOfRange(late.num_hours()));
    }
    Ok(at)
}
