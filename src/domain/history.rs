//! What was used when: rows by hour, day and period, their order, and where a walk through them stands.
//!
//! A row belongs to the range in which it starts, and is then whole; so neighbouring ranges neither
//! share a row nor lose one. Rows are in the order of their [`Position`]: by start, then by
//! organization, then by meter. A [`Cursor`] names the last row that was given, never a number of
//! rows to skip, so that rows which appear meanwhile shift nothing.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chrono::{DateTime, Duration, Utc};
use chrono_tz::Tz;
use serde::Deserialize;
use utoipa::ToSchema;

use super::ids::{MeterId, OrganizationId, PlanId};
use super::period::{Calendar, ResetMode, ResetPeriod};
use super::quantity::Count;
use super::schedule::ZoneSpan;

/// How much time one row covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Granularity {
    /// An hour of the organization's wall clock.
    Hour,
    /// A calendar day, of the organization's time zone or of another.
    Day,
    /// What a limit applies to.
    Period,
}

/// Which row comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Order {
    /// The oldest.
    #[default]
    Asc,
    /// The newest.
    Desc,
}

impl Granularity {
    /// The windows of a zone that rows cover; none for periods.
    pub fn windows(self) -> Option<ResetPeriod> {
        match self {
            Self::Hour => Some(ResetPeriod::Hourly),
            Self::Day => Some(ResetPeriod::Daily),
            Self::Period => None,
        }
    }
}

impl Order {
    /// Sorts by position, in this order; equal ones stay as they are.
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

/// Where a row stands among all others; no two rows of one list have the same.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// When the row's interval begins.
    pub start: DateTime<Utc>,
    /// Whose row it is.
    pub organization: OrganizationId,
    /// What was counted.
    pub meter: MeterId,
}

/// What one meter of one organization counted in one interval.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// Whose, of what, since when.
    pub position: Position,
    /// The first instant that no longer counts; none while a period does not end by itself.
    pub end: Option<DateTime<Utc>>,
    /// Units counted, less those given back, and corrected; an hour or a day in which more was given back than
    /// counted is negative.
    pub used: i64,
    /// Units given back; `used + refunded - adjusted` is the gross.
    pub refunded: u64,
    /// What corrections have changed `used` by.
    pub adjusted: i64,
    /// Calls refused.
    pub denied: u64,
    /// Units that the period included; none for hours and days, which no limit applies to.
    pub limit: Option<Count>,
    /// The plan that the organization was on; none for hours and days.
    pub plan: Option<PlanId>,
    /// What ended the period; none for hours and days, and while nothing has.
    pub reset_type: Option<ResetMode>,
    /// Whether a reset has closed the period; no late event counts in it.
    pub closed: bool,
}

impl Row {
    /// A row of an interval in which nothing happened.
    pub fn zero(position: Position, end: DateTime<Utc>) -> Self {
        Self {
            position,
            end: Some(end),
            used: 0,
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

    /// Whether no event is accepted any more that would change the row, given how late one may come.
    pub fn is_final(&self, now: DateTime<Utc>, late: Duration) -> bool {
        let last = self.end.and_then(|end| end.checked_add_signed(late));
        self.closed || last.is_some_and(|last| last <= now)
    }
}

/// A half-open stretch of time, by the calendar of one zone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// The zone whose calendar this is.
    pub zone: Tz,
    /// The first instant.
    pub start: DateTime<Utc>,
    /// The first instant after it.
    pub end: DateTime<Utc>,
}

/// The windows of this length that start in `[from, to)`, in order: hours or days of the zone that was in force then, cut
/// where another took over.
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
    // One that starts before the range belongs to the range before.
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

/// The first `count` rows of `found` and `zeros` together, in `order`. What was found is preferred to
/// a zero in the same place.
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

/// Where a walk through one list stands.
///
/// As text it is opaque to callers: base64url of the parts below, none of which can hold a `:`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor {
    /// Tells the list from every other one, so that no cursor is used where it does not fit.
    pub list: u64,
    /// The range of the list as it was when the walk began.
    pub from: DateTime<Utc>,
    /// The end of that range.
    pub to: DateTime<Utc>,
    /// The last row that was given.
    pub last: Position,
}

/// What is no cursor.
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
        let parts: Vec<&str> = text.split(':').collect();
        let [list, from, to, start, organization, meter] = parts[..] else {
            return Err(InvalidCursor);
        };
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

/// The instants that a range may begin and end at: years of four digits, which everything else here
/// can count with as well.
pub const INSTANTS: std::ops::RangeInclusive<DateTime<Utc>> =
    year_start(-62_135_596_800)..=year_start(253_402_300_800);

const fn year_start(seconds: i64) -> DateTime<Utc> {
    match DateTime::from_timestamp(seconds, 0) {
        Some(instant) => instant,
        None => DateTime::UNIX_EPOCH,
    }
}

fn instant(millis: &str) -> Result<DateTime<Utc>, InvalidCursor> {
    millis
        .parse()
        .ok()
        .and_then(DateTime::from_timestamp_millis)
        .filter(|instant| INSTANTS.contains(instant))
        .ok_or(InvalidCursor)
}

#[cfg(test)]
#[expect(
    clippy::arithmetic_side_effects,
    reason = "test data is small, and an overflow would fail the test"
)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;
    use proptest::sample::select;

    use super::*;

    const ZONES: [Tz; 7] = [
        Tz::UTC,
        Tz::Europe__Berlin,
        Tz::Asia__Kolkata,
        Tz::Asia__Kathmandu,
        Tz::Australia__Lord_Howe,
        Tz::America__Havana,
        Tz::Pacific__Apia,
    ];

    fn utc(text: &str) -> DateTime<Utc> {
        text.parse().expect("an instant")
    }

    fn at(millis: i64) -> DateTime<Utc> {
        DateTime::from_timestamp_millis(millis).expect("an instant")
    }

    fn hours(zone: Tz, from: DateTime<Utc>, to: DateTime<Utc>) -> Vec<Window> {
        windows(ResetPeriod::Hourly, &[ZoneSpan::always(zone)], from, to).collect()
    }

    fn days(zone: Tz, from: DateTime<Utc>, to: DateTime<Utc>) -> Vec<Window> {
        windows(ResetPeriod::Daily, &[ZoneSpan::always(zone)], from, to).collect()
    }

    /// 2026 to 2036.
    fn instants() -> impl Strategy<Value = DateTime<Utc>> {
        (1_767_225_600_000_i64..2_082_758_400_000).prop_map(at)
    }

    fn positions() -> impl Strategy<Value = Position> {
        // Few of each, so that some are equal.
        (0..4_i64, "[a-c]", "[a-c]").prop_map(|(hour, organization, meter)| Position {
            start: at(hour * 3_600_000),
            organization: organization.parse().expect("an id"),
            meter: meter.parse().expect("an id"),
        })
    }

    fn row(position: Position, used: i64) -> Row {
        Row {
            used,
            ..Row::zero(position, at(0))
        }
    }

    proptest! {
        #[test]
        fn a_cursor_is_what_its_text_says(
            list in any::<u64>(),
            (from, to, start) in (instants(), instants(), instants()),
            organization in "[A-Za-z0-9][A-Za-z0-9_.@-]{0,127}",
            meter in "[a-z][a-z0-9_.-]{0,63}",
        ) {
            let last = Position {
                start,
                organization: organization.parse().expect("an id"),
                meter: meter.parse().expect("an id"),
            };
            let cursor = Cursor { list, from, to, last };
            prop_assert_eq!(cursor.to_string().parse(), Ok(cursor));
        }

        #[test]
        fn any_text_is_parsed_or_refused(text in ".*", parts in "[0-9a-f:-]{0,60}") {
            let _: Result<Cursor, _> = text.parse();
            let _: Result<Cursor, _> = URL_SAFE_NO_PAD.encode(parts).parse();
        }

        #[test]
        fn the_hours_of_a_day_tile_it_in_every_zone(zone in select(&ZONES[..]), from in instants()) {
            for day in days(zone, from, from + Duration::days(5)) {
                let mut next = day.start;
                for hour in hours(zone, day.start, day.end) {
                    prop_assert_eq!(hour.start, next);
                    next = hour.end;
                }
                prop_assert_eq!(next, day.end);
            }
        }

        #[test]
        fn neighbouring_ranges_share_no_day_and_lose_none(
            zone in select(&ZONES[..]),
            from in instants(),
            minutes in (0..20_000_i64, 0..20_000_i64),
        ) {
            let middle = from + Duration::minutes(minutes.0);
            let to = middle + Duration::minutes(minutes.1);
            let apart = [days(zone, from, middle), days(zone, middle, to)].concat();
            prop_assert_eq!(apart, days(zone, from, to));
        }

        #[test]
        fn filling_keeps_every_place_once_and_prefers_what_was_found(
            found in proptest::collection::btree_set(positions(), 0..20),
            zeros in proptest::collection::btree_set(positions(), 0..20),
            descending in any::<bool>(),
            count in 0..40_usize,
        ) {
            let order = if descending { Order::Desc } else { Order::Asc };
            let rows = |positions: &BTreeSet<Position>, used| {
                positions.iter().cloned().map(|it| row(it, used)).collect::<Vec<_>>()
            };
            let all = fill_gaps(rows(&found, 1), rows(&zeros, 0), order, count);
            let mut expected: Vec<Position> = found.union(&zeros).cloned().collect();
            if descending {
                expected.reverse();
            }
            expected.truncate(count);
            prop_assert_eq!(all.iter().map(|it| it.position.clone()).collect::<Vec<_>>(), expected);
            for row in &all {
                prop_assert_eq!(row.used == 1, found.contains(&row.position));
            }
            for pair in all.windows(2) {
                prop_assert!(order.is_after(&pair[1].position, &pair[0].position));
            }
        }
    }

    #[test]
    fn days_have_23_and_25_hours_when_the_clocks_change() {
        let count = |day: &str| {
            let from = utc(day);
            let days = days(Tz::Europe__Berlin, from, from + Duration::hours(1));
            days.first()
                .map(|it| hours(it.zone, it.start, it.end).len())
        };
        assert_eq!(count("2031-03-29T23:00:00Z"), Some(23));
        assert_eq!(count("2031-10-25T22:00:00Z"), Some(25));
    }

    #[test]
    fn hours_and_days_are_cut_where_another_zone_took_over() {
        let change = utc("2031-03-15T15:50:00Z");
        let spans = [
            ZoneSpan {
                until: change,
                ..ZoneSpan::always(Tz::Asia__Kolkata)
            },
            ZoneSpan {
                since: change,
                ..ZoneSpan::always(Tz::UTC)
            },
        ];
        let starts = |length, from: &str, to: &str| -> Vec<_> {
            windows(length, &spans, utc(from), utc(to))
                .map(|it| it.start.format("%dT%H:%M").to_string())
                .collect()
        };
        assert_eq!(
            starts(
                ResetPeriod::Hourly,
                "2031-03-15T14:00:00Z",
                "2031-03-15T18:00:00Z"
            ),
            ["15T14:30", "15T15:30", "15T15:50", "15T16:00", "15T17:00"]
        );
        assert_eq!(
            starts(
                ResetPeriod::Daily,
                "2031-03-14T18:30:00Z",
                "2031-03-18T00:00:00Z"
            ),
            ["14T18:30", "15T15:50", "16T00:00", "17T00:00"]
        );
        assert_eq!(
            starts(
                ResetPeriod::Daily,
                "2031-03-15T15:51:00Z",
                "2031-03-16T00:00:00Z"
            ),
            [""; 0]
        );
    }

    #[test]
    fn a_row_is_open_until_its_end_and_final_when_the_grace_is_over() {
        let position = Position {
            start: utc("2031-03-15T12:00:00Z"),
            organization: "org_1".parse().expect("an id"),
            meter: "api".parse().expect("an id"),
        };
        let late = Duration::hours(48);
        let row = Row::zero(position, utc("2031-03-15T13:00:00Z"));
        let state = |now| (row.is_open(utc(now)), row.is_final(utc(now), late));
        assert_eq!(state("2031-03-15T12:59:59.999Z"), (true, false));
        assert_eq!(state("2031-03-15T13:00:00Z"), (false, false));
        assert_eq!(state("2031-03-17T12:59:59.999Z"), (false, false));
        assert_eq!(state("2031-03-17T13:00:00Z"), (false, true));
        let endless = Row { end: None, ..row };
        let now = utc("2099-01-01T00:00:00Z");
        assert!(endless.is_open(now) && !endless.is_final(now, late));
    }
}
