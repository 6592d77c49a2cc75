//! The list of organizations by state and usage, from the usage summaries, which lag by one flush.

use chrono::{DateTime, Utc};

use super::count::Usage;
use super::error::Error;
use super::types::MeterUsage;
use crate::domain::ids::{MeterId, OrganizationId, PlanId};
use crate::domain::quantity::Count;
use crate::domain::summary::State;
use crate::postgres::summaries::{self, Exhausted, Listed, Listing, Position};

/// One page of the list.
#[derive(Debug, Clone)]
pub struct Page {
    /// In the requested order.
    pub entries: Vec<Entry>,
    /// Where the next page starts, if there is one.
    pub next: Option<Position>,
}

/// One organization in the list.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Which organization.
    pub organization: OrganizationId,
    /// Its display name.
    pub name: Option<String>,
    /// Its plan.
    pub plan: PlanId,
    /// When its counts were last stored.
    pub stored_at: Option<DateTime<Utc>>,
    /// Whether it was counted, and has no running period with a stored count.
    pub period_over: bool,
    /// The state of its worst meter.
    pub state: State,
    /// Units of the default meter.
    pub current: Count,
    /// The fullest of its limited meters.
    pub fullest: Option<MeterId>,
    /// What is expected to be full first, before its period ends.
    pub exhausted: Option<Exhausted>,
    /// Every meter counted in a running period, by name.
    pub meters: Vec<MeterUsage>,
}

impl Usage {
    /// A page of all organizations that were ever counted or configured.
    pub async fn list(&self, listing: &Listing) -> Result<Page, Error> {
        let one_more = Listing {
            count: listing.count.saturating_add(1),
            ..listing.clone()
        };
        let mut listed =
            summaries::page(&self.ctx.postgres, &one_more, self.ctx.clock.now()).await?;
        let size = usize::try_from(listing.count).unwrap_or(usize::MAX);
        let more = listed.len() > size;
        listed.truncate(size);
        let last = listed.last().map(|it| it.position.clone());
        let default_meter = MeterId::default();
        let current = |it: &Listed| it.summary.current(&default_meter);
        let entries = listed.into_iter().map(|it| Entry {
            state: it.summary.state(),
            current: current(&it),
            fullest: it.summary.fullest().cloned(),
            exhausted: it.exhausted,
            name: it.name,
            stored_at: it.stored_at,
            period_over: it.period_over,
            organization: it.position.organization,
            plan: it.plan,
            meters: it
                .summary
                .meters
                .into_iter()
                .map(|(meter, it)| MeterUsage::read(meter, it.used, it.rule(), it.period(), it.end))
                .collect(),
        });
        Ok(Page {
            entries: entries.collect(),
            next: last.filter(|_| more),
        })
    }
}
