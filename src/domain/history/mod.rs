//! Usage history: rows by hour, day, week, month and period, their order, and cursors.
//!
//! A row belongs entirely to the range in which it starts, so adjacent ranges neither share nor lose a row. Rows are
//! sorted by [`Position`]: start, organization, meter. A [`Cursor`] names the last row of a page, not an offset, so new
//! rows do not shift later pages.

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chrono::{DateTime, Duration, Utc};
use chrono_tz::Tz;
use serde::Deserialize;
use utoipa::ToSchema;

use super::calendar::Calendar;
use super::ids::{MeterId, OrganizationId, PlanId};
use super::instant::{EARLIEST, LATEST};
use super::period::{ResetMode, ResetPeriod};
use super::quantity::Count;
use super::schedule::ZoneSpan;
use super::text::fields;

/// The interval of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Granularity {
    /// An hour of the organization's wall clock.
    Hour,
    /// A calendar day, of the organization's time zone or another one.
    Day,
    /// A calendar week, from Monday on.
    Week,
    /// A calendar month.
    Month,
    /// A period, to which a limit applies.
    Period,
}

/// The sort order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Order {
    /// Oldest first.
    #[default]
    Asc,
    /// Newest first.
    Desc,
}

impl Granularity {
    /// The length of the calendar windows that rows cover; none for periods.
    pub fn windows(self) -> Option<ResetPeriod> {
        match self {
            Self::Hour => Some(ResetPeriod::Hourly),
            Self::Day => Some(ResetPeriod::Daily),
            Self::Week => Some(ResetPeriod::Weekly),
            Self::Month => Some(ResetPeriod::Monthly),
            Self::Period => None,
        }
    }
}

impl Order {
    /// A stable sort by position.
    fn sort(self, rows: &mut [Row]) {
        rows.sort_by(|one, other| {
            let ascending = one.position.cmp(&other.position);
            match self {
                Self::Asc => ascending,
                Self::Desc => ascending.reverse(),
            }
        });
    }

    /// Whether `later` comes after `earlier`.
    pub fn is_after(self, later: &Position, earlier: &Position) -> bool {
        match self {
            Self::Asc => later > earlier,
            Self::Desc => later < earlier,
        }
    }
}

/// The unique sort key of a row.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// The start of the interval.
    pub start: DateTime<Utc>,
    /// The organization.
    pub organization: OrganizationId,
    /// The meter.
    pub meter: MeterId,
}

/// The usage of one meter of one organization in one interval.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// Start, organization and meter.
    pub position: Position,
    /// The first instant after the interval; none for a period without end.
    pub end: Option<DateTime<Utc>>,
    /// Units counted, net of refunds and adjustments; negative for an hour or a day with more refunds than usage.
    pub used: i64,
    /// Units that the period had when the interval ended; none unless asked for.
    pub total: Option<i64>,
    /// Units refunded; `used + refunded - adjusted` is the gross usage.
    pub refunded: u64,
    /// The sum of adjustments.
    pub adjusted: i64,
    /// Calls denied.
    pub denied: u64,
    /// The limit when the interval ended; none if unlimited and, other than for periods, unless asked for.
    pub limit: Option<Count>,
    /// The plan of the organization in the period; none for calendar intervals.
    pub plan: Option<PlanId>,
    /// What ended the period; none for calendar intervals and open periods.
    pub reset_type: Option<ResetMode>,
    /// Whether a reset closed the period, which excludes late events.
    pub closed: bool,
}

impl Row {
    /// A row of an interval without usage.
    pub fn zero(position: Position, end: DateTime<Utc>) -> Self {
        Self {
            position,
            end: Some(end),
            used: 0,
            total: None,
            refunded: 0,
            adjusted: 0,
            denied: 0,
            limit: None,
            plan: None,
            reset_type: None,
            closed: false,
        }
    }

    /// Whether the interval has not ended yet.
    pub fn is_open(&self, now: DateTime<Utc>) -> bool {
        self.end.is_none_or(|end| now < end)
    }

    /// Whether no late event can change the row any more.
    pub fn is_final(&self, now: DateTime<Utc>, late: Duration) -> bool {
        let last = self.end.and_then(|end| end.checked_add_signed(late));
        self.closed || last.is_some_and(|last| last <= now)
    }
}

/// A half-open interval of one zone's calendar.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// The zone.
    pub zone: Tz,
    /// The first instant.
    pub start: DateTime<Utc>,
    /// The first instant after it.
    pub end: DateTime<Utc>,
}

/// The windows of a length that start in `[from, to)`, in order: of the calendar of the zone effective then, cut where
/// the zone changed.
pub fn windows(
    length: ResetPeriod,
    spans: &[ZoneSpan],
    from: DateTime<Utc>,
    to: DateTime<Utc>,
) -> impl Iterator<Item = Window> {
    let spans = spans.iter().filter(move |it| from < it.until);
    spans.flat_map(move |span| windows_of(length, *span, from, to))
}

fn windows_of(
    length: ResetPeriod,
    span: ZoneSpan,
    from: DateTime<Utc>,
    to: DateTime<Utc>,
) -> impl Iterator<Item = Window> {
    let calendar = Calendar::plain(length, span.zone);
    let window = move |at| {
        let (start, end) = calendar.window(at);
        Window {
            zone: span.zone,
            start: start.max(span.since),
            end: end.min(span.until),
        }
    };
    let first = window(from.max(span.since));
    // A window that starts before the range belongs to the range before.
    let mut next = if first.start < from {
        first.end
    } else {
        first.start
    };
    std::iter::from_fn(move || {
        if next >= to || next >= span.until {
            return None;
        }
        let window = window(next);
        next = window.end;
        Some(window)
    })
}

/// The first `count` rows of `found` and `zeros`, in `order`. A found row replaces a zero at the same position.
pub fn fill_gaps(
    mut found: Vec<Row>,
    zeros: impl IntoIterator<Item = Row>,
    order: Order,
    count: usize,
) -> Vec<Row> {
    found.extend(zeros);
    order.sort(&mut found);
    found.dedup_by(|later, earlier| later.position == earlier.position);
    found.truncate(count);
    found
}

/// A position in a paged list. Opaque to clients: base64url of the fields below, none of which contains a `:`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor {
    /// A hash of the list's parameters, so that a cursor is rejected for another list.
    pub list: u64,
    /// The start of the range, as of the first page.
    pub from: DateTime<Utc>,
    /// The end of the range.
    pub to: DateTime<Utc>,
    /// The last row of the page.
    pub last: Position,
}

/// A text that is not a cursor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be the nextCursor of a page")]
pub struct InvalidCursor;

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = format!(
            "{:x}:{}:{}:{}:{}:{}",
            self.list,
            self.from.timestamp_millis(),
            self.to.timestamp_millis(),
            self.last.start.timestamp_millis(),
            self.last.organization,
            self.last.meter
        );
        f.write_str(&URL_SAFE_NO_PAD.encode(text))
    }
}

impl FromStr for Cursor {
    type Err = InvalidCursor;

    fn from_str(text: &str) -> Result<Self, InvalidCursor> {
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| InvalidCursor)?;
        let text = std::str::from_utf8(&bytes).map_err(|_| InvalidCursor)?;
        let [list, from, to, start, organization, meter] =
            fields(text).map_err(|_| InvalidCursor)?;
        Ok(Self {
            list: u64::from_str_radix(list, 16).map_err(|_| InvalidCursor)?,
            from: instant(from)?,
            to: instant(to)?,
            last: Position {
                start: instant(start)?,
                organization: organization.parse().map_err(|_| InvalidCursor)?,
                meter: meter.parse().map_err(|_| InvalidCursor)?,
            },
        })
    }
}

/// The instants at which a range may begin and end.
pub const INSTANTS: RangeInclusive<DateTime<Utc>> = EARLIEST..=LATEST;

fn instant(millis: &str) -> Result<DateTime<Utc>, InvalidCursor> {
    millis
        .parse()
        .ok()
        .and_then(DateTime::from_timestamp_millis)
        .filter(|instant| INSTANTS.contains(instant))
        .ok_or(InvalidCursor)
}

#[cfg(test)]
mod tests;
