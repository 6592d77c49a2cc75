//! When an organization has counted anything: a change of its calendar keeps a running period that holds something.

use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};

use super::{Admin, Error};
use crate::domain::counter::CounterId;
use crate::domain::ids::OrganizationId;
use crate::domain::schedule::Schedule;
use crate::redis::Connection;

impl Admin {
    /// The start of the last period in which Redis has anything counted of an organization. Asks nothing of Postgres, so
    /// that whoever holds the lock of changes waits for no further connection.
    pub(super) async fn counted_in_redis(
        &self,
        connection: &Arc<Connection>,
        organization: &OrganizationId,
        schedule: &Schedule,
    ) -> Result<Option<DateTime<Utc>>, Error> {
        let now = self.ctx.clock.now();
        let known = connection.organization(organization).await?;
        let meters = known.and_then(|known| known.meters).unwrap_or_default();
        // What Postgres does not have yet was counted in one of the last two periods.
        let counters: Vec<CounterId> = meters
            .iter()
            .flat_map(|meter| {
                let running = schedule.running(meter, now).start;
                let before = running
                    .checked_sub_signed(TimeDelta::milliseconds(1))
                    .map(|at| schedule.period(at).start);
                [Some(running), before]
                    .into_iter()
                    .flatten()
                    .map(|start| CounterId {
                        organization: organization.clone(),
                        meter: meter.clone(),
                        start,
                    })
            })
            .collect();
        let held = connection.read(&counters).await?;
        Ok(held
            .into_iter()
            .flatten()
            .filter(|it| it.used.get() > 0 || it.refunded > 0)
            .map(|it| it.counter.start)
            .max())
    }
}
