//! When an organization has counted anything: a change of its calendar keeps a running period that holds something.

use std::sync::Arc;

use chrono::TimeDelta;

use super::{Admin, Error};
use crate::counters::Link;
use crate::domain::counter::CounterId;
use crate::domain::ids::OrganizationId;
use crate::domain::schedule::Activity;
use crate::store::usage;

impl Admin {
    /// Whether, and in which period, an organization has counted anything last.
    pub(super) async fn activity(
        &self,
        link: &Arc<Link>,
        organization: &OrganizationId,
    ) -> Result<Activity, Error> {
        let now = self.clock.now();
        let schedule = self.policies.stored(organization).await?.policy().schedule;
        let known = self.counters.organization(link, organization).await?;
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
        let held = self.counters.read(link, &counters).await?;
        let counted = held
            .into_iter()
            .flatten()
            .filter(|it| it.used.get() > 0 || it.refunded > 0)
            .map(|it| it.counter.start);
        let stored = usage::last_counted(&self.store, organization).await?;
        Ok(match counted.chain(stored).max() {
            Some(start) => Activity::LastPeriod(start),
            None => Activity::Never,
        })
    }
}
