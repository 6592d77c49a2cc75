//! History of usage, and events, from Postgres: behind the counters by at most one flush interval.
//!
//! Lists are read page by page; a caller that needs all rows reads all pages.

use std::cmp::{max, min};
use std::collections::HashMap;

use chrono::{DateTime, Duration, Utc};
use chrono_tz::Tz;

use super::error::{Error, FILLED_MAX};
use crate::context::Context;
use crate::domain::history::{
    Granularity, INSTANTS, Order, Position, Row, Window, fill_gaps, windows,
};
use crate::domain::ids::{MeterId, OrganizationId};
use crate::domain::period::ResetPeriod;
use crate::domain::schedule::ZoneSpan;
use crate::policies::Policies;
use crate::postgres::events::{self, Recorded};
use crate::postgres::history::{self, Filter, Page};
use crate::postgres::zoned_history::{self, Counted};
use crate::postgres::{past_limits, running_totals, usage};

/// The most windows, of all zones together, that one statement aggregates.
const WINDOWS_MAX: usize = 4096;

/// The resolution of clocks.
const MOMENT: Duration = Duration::milliseconds(1);

/// The handle on history.
#[derive(Debug, Clone)]
pub struct History {
    ctx: Context,
    policies: Policies,
}

/// A query: which rows, in which order.
#[derive(Debug, Clone)]
pub struct List {
    /// Only of these organizations; of all if none.
    pub organizations: Option<Vec<OrganizationId>>,
    /// Only of these meters; of all if none.
    pub meters: Option<Vec<MeterId>>,
    /// The interval of a row.
    pub granularity: Granularity,
    /// Rows start at or after this.
    pub from: DateTime<Utc>,
    /// Rows start before this.
    pub to: DateTime<Utc>,
    /// Whether calendar intervals without usage have a row; periods without usage never do.
    pub fill: bool,
    /// Whether calendar intervals tell their limit; periods always do.
    pub limits: bool,
    /// Whether rows tell the running total of the period.
    pub totals: bool,
    /// Ascending or descending.
    pub order: Order,
    /// The time zone of days, weeks and months; each organization's own if none.
    pub zone: Option<Tz>,
}

/// A row, and whether it is final.
#[derive(Debug, Clone)]
pub struct Entry {
    /// The usage.
    pub row: Row,
    /// Whether the interval still runs.
    pub open: bool,
    /// Whether late events can no longer change the row.
    pub settled: bool,
}

impl History {
    /// Creates a handle.
    pub fn new(ctx: Context, policies: Policies) -> Self {
        Self { ctx, policies }
    }

    /// Whether an organization was ever counted or configured.
    pub async fn exists(&self, organization: &OrganizationId) -> Result<bool, Error> {
        Ok(self.policies.exists(organization).await?)
    }

    /// When an organization first used a meter of a list: the start of the slot, or of the period if its slots are gone.
    pub async fn first_use(&self, list: &List) -> Result<Option<DateTime<Utc>>, Error> {
        Ok(history::first_use(&self.ctx.postgres, &list.filter()).await?)
    }

    /// Recorded events, newest first.
    pub async fn events(&self, listing: &events::Listing) -> Result<Vec<Recorded>, Error> {
        Ok(events::list(&self.ctx.postgres, listing).await?)
    }

    /// The default range where `from` or `to` is not given: up to now, and the last 24 hours, 31 days, 12 weeks, 12 months
    /// or, for periods, everything.
    pub fn range(
        &self,
        granularity: Granularity,
        from: Option<DateTime<Utc>>,
        to: Option<DateTime<Utc>>,
    ) -> (DateTime<Utc>, DateTime<Utc>) {
        let to = to.unwrap_or_else(|| max(self.ctx.clock.now() + MOMENT, from.unwrap_or_default()));
        let length = match granularity {
            Granularity::Hour => Some(Duration::hours(24)),
            Granularity::Day => Some(Duration::days(31)),
            Granularity::Week => Some(Duration::weeks(12)),
            Granularity::Month => Some(Duration::days(365)),
            Granularity::Period => None,
        };
        let earliest = *INSTANTS.start();
        let usual = length.and_then(|length| to.checked_sub_signed(length));
        let from = from.unwrap_or_else(|| max(usual.unwrap_or(earliest), earliest));
        (from, to)
    }

    /// At most `count` rows of a list after `after`. Fewer than `count` means the end of the list.
    pub async fn page(
        &self,
        list: &List,
        after: Option<&Position>,
        count: usize,
    ) -> Result<Vec<Entry>, Error> {
        let now = self.ctx.clock.now();
        let list = &self.kept(list).await?;
        let page = Page {
            filter: list.filter(),
            from: list.from,
            to: list.to,
            after,
            order: list.order,
            count,
        };
        // First, so that a list that is too long is refused before anything is aggregated.
        let zeros = if list.fill {
            self.zeros(list, after, now).await?
        } else {
            Vec::new()
        };
        let found = match list.granularity.windows() {
            Some(length) => self.windows(list, length, &page).await?,
            None => history::periods(&self.ctx.postgres, &page).await?,
        };
        let mut rows = fill_gaps(found, zeros, list.order, count);
        if list.limits && list.granularity != Granularity::Period {
            past_limits::add(&self.ctx.postgres, &mut rows, now).await?;
        }
        if list.totals {
            running_totals::add(&self.ctx.postgres, &mut rows, list.granularity).await?;
        }
        Ok(rows
            .into_iter()
            .map(|row| Entry {
                open: row.is_open(now),
                settled: row.is_final(now, self.ctx.late),
                row,
            })
            .collect())
    }

    /// The part of a list whose rows are complete: none of their hours was dropped because of its age. So what is not known
    /// any more is not filled with zeros.
    async fn kept(&self, list: &List) -> Result<List, Error> {
        let mut kept = list.clone();
        if list.granularity != Granularity::Period
            && let Some(since) = usage::hours_kept_since(&self.ctx.postgres).await?
        {
            kept.from = max(list.from, since);
        }
        Ok(kept)
    }

    /// Aggregates slots to windows, in steps: few windows at first if all organizations are queried, because one
    /// day of a large service fills a page, and up to twice as many in each further step.
    async fn windows(
        &self,
        list: &List,
        length: ResetPeriod,
        page: &Page<'_>,
    ) -> Result<Vec<Row>, Error> {
        let Some((oldest, newest)) =
            history::slots_counted(&self.ctx.postgres, &page.filter).await?
        else {
            return Ok(Vec::new());
        };
        let zones = match list.zone {
            Some(zone) => vec![zone],
            None => zoned_history::zones(&self.ctx.postgres).await?,
        };
        let (unit, longest) = lengths(length);
        // No rows exist before the window of the first slot, nor after the last slot.
        let mut from = max(page.from, oldest - longest);
        let mut to = min(page.to, newest + MOMENT);
        match (page.order, page.after) {
            (Order::Asc, Some(after)) => from = max(from, after.start),
            (Order::Desc, Some(after)) => to = min(to, after.start + MOMENT),
            (_, None) => {}
        }
        let bound = |windows: usize| i32::try_from(windows).unwrap_or(i32::MAX).max(1);
        let widest = bound(WINDOWS_MAX / zones.len().max(1));
        let mut span = match &list.organizations {
            Some(named) => min(widest, bound(page.count / named.len().max(1))),
            None => 1,
        };
        let mut rows = Vec::new();
        while from < to && rows.len() < page.count {
            let step = unit * span;
            let (step_from, step_to) = match page.order {
                Order::Asc => {
                    let until = min(to, from + step);
                    (std::mem::replace(&mut from, until), until)
                }
                Order::Desc => {
                    let since = max(from, to - step);
                    (since, std::mem::replace(&mut to, since))
                }
            };
            let rest = Page {
                from: step_from,
                to: step_to,
                count: page.count - rows.len(),
                ..*page
            };
            let found = self.windows_between(length, &zones, &rest).await?;
            // As many windows as have the rows that are still missing, if they have as many each; twice as many where few
            // have any.
            let missing = rest.count.saturating_sub(found.len());
            let needed = match found.len() {
                0 => usize::MAX,
                rows => missing
                    .saturating_mul(usize::try_from(span).unwrap_or(1))
                    .div_ceil(rows),
            };
            span = bound(needed).min(span.saturating_mul(2)).min(widest);
            rows.extend(found);
        }
        Ok(rows)
    }

    /// Aggregates slots to the windows of a page, which is short.
    async fn windows_between(
        &self,
        length: ResetPeriod,
        zones: &[Tz],
        page: &Page<'_>,
    ) -> Result<Vec<Row>, Error> {
        let windows_of = |zone: &Tz, from| {
            let always = [ZoneSpan::always(*zone)];
            windows(length, &always, from, page.to).collect::<Vec<_>>()
        };
        if let [zone] = zones {
            let windows = windows_of(zone, page.from);
            return Ok(history::windows(&self.ctx.postgres, page, &windows).await?);
        }
        // A window that begins before the page may be cut within it, where another zone takes over.
        let (_, longest) = lengths(length);
        let all = zones.iter();
        let all = all.flat_map(|zone| windows_of(zone, page.from - longest));
        let cut: Vec<Window> = all.filter(|window| page.from < window.end).collect();
        Ok(zoned_history::windows(&self.ctx.postgres, page, &cut).await?)
    }

    /// A zero row for every interval that has begun, and every meter that could have been counted in it.
    async fn zeros(
        &self,
        list: &List,
        after: Option<&Position>,
        now: DateTime<Utc>,
    ) -> Result<Vec<Row>, Error> {
        let to = min(list.to, now + MOMENT);
        let Some(length) = list.granularity.windows() else {
            return Ok(Vec::new());
        };
        // Each meter has at least this many rows, so a list that is far too long is refused without reading it.
        let (_, longest) = lengths(length);
        let least = (to - list.from).num_hours() / longest.num_hours();
        let most = FILLED_MAX / usize::try_from(least).unwrap_or(0).max(1);
        let counted = zoned_history::counted(&self.ctx.postgres, &list.filter(), most + 1).await?;
        if counted.len() > most {
            return Err(Error::TooManyRows);
        }
        let spans_of = |counted: &Counted| match list.zone {
            Some(zone) => vec![ZoneSpan::always(zone)],
            None => counted.zones.clone(),
        };
        let mut by_spans: HashMap<Vec<ZoneSpan>, Vec<Window>> = HashMap::new();
        let mut total = 0;
        for it in &counted {
            let spans = spans_of(it);
            let of_spans = by_spans.entry(spans.clone()).or_insert_with(|| {
                windows(length, &spans, list.from, to)
                    .take(FILLED_MAX + 1)
                    .collect()
            });
            total += of_spans.len();
            if total > FILLED_MAX {
                return Err(Error::TooManyRows);
            }
        }
        let mut zeros = Vec::new();
        for it in &counted {
            for window in by_spans.get(&spans_of(it)).into_iter().flatten() {
                let position = Position {
                    start: window.start,
                    organization: it.organization.clone(),
                    meter: it.meter.clone(),
                };
                if after.is_none_or(|after| list.order.is_after(&position, after)) {
                    zeros.push(Row::zero(position, window.end));
                }
            }
        }
        Ok(zeros)
    }
}

impl List {
    fn filter(&self) -> Filter<'_> {
        Filter {
            organizations: self.organizations.as_deref(),
            meters: self.meters.as_deref(),
        }
    }
}

/// The usual length of a calendar's windows, and one that none exceeds, whatever clocks and zones do.
fn lengths(length: ResetPeriod) -> (Duration, Duration) {
    match length {
        ResetPeriod::Hourly => (Duration::hours(1), Duration::hours(2)),
        ResetPeriod::Daily => (Duration::days(1), Duration::days(2)),
        ResetPeriod::Weekly => (Duration::weeks(1), Duration::days(8)),
        ResetPeriod::Monthly => (Duration::days(30), Duration::days(32)),
        ResetPeriod::Yearly => (Duration::days(365), Duration::days(367)),
    }
}
