//! The list of organizations, by how full they are: as last stored, so that it lags by a flush.

use super::{Error, MeterUsage, Usage};
use crate::domain::decision::Demand;
use crate::domain::ids::{MeterId, OrganizationId, PlanId};
use crate::domain::quantity::Count;
use crate::domain::summary::State;
use crate::postgres::summaries::{self, Listed, Listing, Position};

/// One page of the list.
#[derive(Debug, Clone)]
pub struct Page {
    /// In the order that was asked for.
    pub entries: Vec<Entry>,
    /// Where the next page goes on, if there is one.
    pub next: Option<Position>,
}

/// One organization in the list.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Who.
    pub organization: OrganizationId,
    /// The plan that it is on.
    pub plan: PlanId,
    /// How its worst meter stands.
    pub state: State,
    /// Units of the meter that a call counts unless it names another.
    pub current: Count,
    /// Every meter counted in a period that runs, by name.
    pub meters: Vec<MeterUsage>,
}

impl Usage {
    /// A page of the list of all organizations that were ever counted or configured.
    pub async fn directory(&self, listing: &Listing) -> Result<Page, Error> {
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
        let counted_by_default = MeterId::default();
        let current = |it: &Listed| it.summary.current(&counted_by_default);
        let entries = listed.into_iter().map(|it| Entry {
            state: it.summary.state(),
            current: current(&it),
            organization: it.position.organization,
            plan: it.plan,
            meters: it
                .summary
                .meters
                .into_iter()
                .map(|(meter, summary)| MeterUsage {
                    meter,
                    demand: Demand { amount: 0, need: 0 },
                    used: summary.used,
                    rule: summary.rule(),
                    period: summary.period(),
                    given_back: 0,
                    refused: None,
                    renews_at: summary.end,
                })
                .collect(),
        });
        Ok(Page {
            entries: entries.collect(),
            next: last.filter(|_| more),
        })
    }
}
