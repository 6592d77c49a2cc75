//! Periods: which half-open stretch of time an instant is counted in.
//!
//! Owns the calendar arithmetic: reset days, anchors, month ends, time zones and their clock changes. Never reads a
//! clock and never adds a period to "now": every boundary follows from the settings alone, so however late or how often
//! somebody asks, periods neither drift nor merge. Start with [`Calendar::window`]; `schedule` puts calendars in a row.
//!
//! **Invariant:** windows tile. The window of an instant contains it, and the window of its end starts at that end.

use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, Datelike, NaiveDate, NaiveDateTime, NaiveTime, Offset, TimeZone, Utc};
use chrono_tz::{GapInfo, TZ_VARIANTS, Tz};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What ends a period.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ResetMode {
    /// The first call after the end opens the next period.
    Lazy,
    /// A worker closes the period on time, whether or not anybody calls.
    Scheduled,
    /// Only an explicit reset.
    Manual,
}

impl ResetMode {
    /// Every mode, in the order in which messages list them.
    pub const ALL: [Self; 3] = [Self::Lazy, Self::Scheduled, Self::Manual];

    /// The name used in JSON and in the database.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Lazy => "lazy",
            Self::Scheduled => "scheduled",
            Self::Manual => "manual",
        }
    }
}

impl fmt::Display for ResetMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for ResetMode {
    type Err = InvalidCalendar;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|mode| mode.as_str() == name)
            .ok_or_else(|| InvalidCalendar::new("resetMode", "must be lazy, scheduled or manual"))
    }
}

/// How long a period lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ResetPeriod {
    /// An hour of the wall clock.
    Hourly,
    /// A local day: 23 or 25 hours when the clocks change.
    Daily,
    /// Seven local days.
    Weekly,
    /// From a day of the month to the same day of the next.
    Monthly,
    /// From a day of the year to the same day of the next.
    Yearly,
}

impl ResetPeriod {
    /// Every period, shortest first.
    pub const ALL: [Self; 5] = [
        Self::Hourly,
        Self::Daily,
        Self::Weekly,
        Self::Monthly,
        Self::Yearly,
    ];

    /// The name used in JSON and in the database.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Hourly => "hourly",
            Self::Daily => "daily",
            Self::Weekly => "weekly",
            Self::Monthly => "monthly",
            Self::Yearly => "yearly",
        }
    }
}

impl fmt::Display for ResetPeriod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for ResetPeriod {
    type Err = InvalidCalendar;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|period| period.as_str() == name)
            .ok_or_else(|| {
                InvalidCalendar::new(
                    "resetPeriod",
                    "must be hourly, daily, weekly, monthly or yearly",
                )
            })
    }
}

/// The half-open interval `[start, end)` that a count belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Period {
    /// The first instant that counts; also what identifies the count.
    pub start: DateTime<Utc>,
    /// The first instant that no longer counts; `None` when the period does not end by itself (manual mode).
    pub end: Option<DateTime<Utc>>,
}

impl Period {
    /// Whether `at` is counted in this period.
    pub fn contains(&self, at: DateTime<Utc>) -> bool {
        self.start <= at && self.end.is_none_or(|end| at < end)
    }
}

/// Where periods begin: a length, a day or an anchor, and the time zone in which both are meant. Always valid.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Settings", into = "Settings")]
pub struct Calendar {
    settings: Settings,
    /// Worked out once from the settings, because `window` runs on every call.
    beginning: Beginning,
}

impl Calendar {
    /// Checks the settings of one organization.
    ///
    /// `reset_day` is 1–31 for monthly and yearly (1 if absent; clamped to the month's last day) and 0–6 for weekly
    /// (0 is Sunday; 1 if absent). `reset_month` is 1–12 for yearly (1 if absent). Periods begin at 00:00 in
    /// `time_zone`; with an `anchor`, which excludes the other two, at its day and time of day in that zone.
    /// The anchor counts in whole milliseconds, as all instants do here, and reaches into the past as well.
    pub fn new(
        reset_period: ResetPeriod,
        reset_day: Option<u8>,
        reset_month: Option<u8>,
        anchor: Option<DateTime<Utc>>,
        time_zone: Tz,
    ) -> Result<Self, InvalidCalendar> {
        let mut settings = Settings {
            reset_period,
            reset_day,
            reset_month,
            anchor,
            time_zone,
        };
        settings.check()?;
        settings.anchor = anchor.map(|anchor| instant(millis(anchor)));
        Ok(Self::of(settings))
    }

    /// The calendar of this length that has no settings of its own, and so nothing that could be wrong with it.
    pub fn plain(reset_period: ResetPeriod, time_zone: Tz) -> Self {
        Self::of(Settings {
            reset_period,
            reset_day: None,
            reset_month: None,
            anchor: None,
            time_zone,
        })
    }

    fn of(valid: Settings) -> Self {
        Self {
            beginning: valid.beginning(),
            settings: valid,
        }
    }

    /// How long a period lasts.
    pub fn reset_period(&self) -> ResetPeriod {
        self.settings.reset_period
    }

    /// The day that was asked for: `None` if it was left to the default.
    pub fn reset_day(&self) -> Option<u8> {
        self.settings.reset_day
    }

    /// The month that was asked for: `None` if it was left to the default.
    pub fn reset_month(&self) -> Option<u8> {
        self.settings.reset_month
    }

    /// The instant whose local day and time of day every period begins at.
    pub fn anchor(&self) -> Option<DateTime<Utc>> {
        self.settings.anchor
    }

    /// The zone whose wall clock decides where periods begin.
    pub fn time_zone(&self) -> Tz {
        self.settings.time_zone
    }

    /// The calendar's half-open window that contains `at`.
    ///
    /// A beginning that the clocks skip is the first instant after the gap; one that they repeat is the earlier of the
    /// two. The time before the year 1 is a single window, and so is the time after 9999.
    pub fn window(&self, at: DateTime<Utc>) -> (DateTime<Utc>, DateTime<Utc>) {
        let zone = self.settings.time_zone;
        in_calendar_years(at, |at| match self.beginning {
            Beginning::InHour { anchor } => hour_window(zone, anchor, at),
            Beginning::OnDay { cycle, time } => day_window(zone, cycle, time, at),
        })
    }
}

/// The hour that contains `at` on the wall clock of `zone`: its start and its end.
///
/// When the clocks change in mid-hour, a new hour starts there. A local midnight is therefore always the start of an
/// hour, and the hours of a local day tile it exactly, even in zones that are half an hour off.
pub fn hour(zone: Tz, at: DateTime<Utc>) -> (DateTime<Utc>, DateTime<Utc>) {
    in_calendar_years(at, |at| hour_window(zone, None, at))
}

/// Parses an IANA name, such as `Europe/Berlin`.
pub fn parse_time_zone(name: &str) -> Result<Tz, InvalidCalendar> {
    name.parse().map_err(|_| {
        let known = TZ_VARIANTS.iter().map(|zone| zone.name());
        let meant = known.into_iter().find(|it| it.eq_ignore_ascii_case(name));
        let example = meant.unwrap_or("Europe/Berlin");
        let detail = format!("must be the IANA name of a time zone, such as {example}");
        InvalidCalendar::new("timeZone", detail)
    })
}

/// A setting that is wrong, or that does not fit the others.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field} {detail}")]
pub struct InvalidCalendar {
    /// The setting's name in the API, so that it can be pointed at: `resetDay`, `resetMonth`, `anchor`, `timeZone`,
    /// `resetMode` or `resetPeriod`.
    pub field: &'static str,
    /// What would be right; reads on from the field's name.
    pub detail: String,
}

impl InvalidCalendar {
    fn new(field: &'static str, detail: impl Into<String>) -> Self {
        Self {
            field,
            detail: detail.into(),
        }
    }
}

/// A calendar as it is written in JSON; [`Calendar`] is the same thing checked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Settings {
    reset_period: ResetPeriod,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    reset_day: Option<u8>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    reset_month: Option<u8>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    anchor: Option<DateTime<Utc>>,
    time_zone: Tz,
}

impl TryFrom<Settings> for Calendar {
    type Error = InvalidCalendar;

    fn try_from(raw: Settings) -> Result<Self, Self::Error> {
        Self::new(
            raw.reset_period,
            raw.reset_day,
            raw.reset_month,
            raw.anchor,
            raw.time_zone,
        )
    }
}

impl From<Calendar> for Settings {
    fn from(calendar: Calendar) -> Self {
        calendar.settings
    }
}

impl Settings {
    fn check(&self) -> Result<(), InvalidCalendar> {
        let period = self.reset_period;
        if let Some(day) = self.reset_day {
            let (first, last) = match period {
                ResetPeriod::Monthly | ResetPeriod::Yearly => (1, 31),
                ResetPeriod::Weekly => (0, 6),
                ResetPeriod::Daily | ResetPeriod::Hourly => {
                    let detail =
                        format!("must be left out when resetPeriod is {period}; got {day}");
                    return Err(InvalidCalendar::new("resetDay", detail));
                }
            };
            if !(first..=last).contains(&day) {
                let detail =
                    format!("must be {first} to {last} when resetPeriod is {period}, not {day}");
                return Err(InvalidCalendar::new("resetDay", detail));
            }
        }
        if let Some(month) = self.reset_month {
            if period != ResetPeriod::Yearly {
                let detail = format!("must be left out when resetPeriod is {period}; got {month}");
                return Err(InvalidCalendar::new("resetMonth", detail));
            }
            if !(1..=12).contains(&month) {
                let detail = format!("must be 1 to 12, not {month}");
                return Err(InvalidCalendar::new("resetMonth", detail));
            }
        }
        if let Some(anchor) = self.anchor {
            if self.reset_day.is_some() || self.reset_month.is_some() {
                let detail = "must be left out where resetDay or resetMonth is given";
                return Err(InvalidCalendar::new("anchor", detail));
            }
            if !(EARLIEST..LATEST).contains(&anchor) {
                let detail = "must lie between the years 1 and 9999";
                return Err(InvalidCalendar::new("anchor", detail));
            }
        }
        Ok(())
    }

    fn beginning(&self) -> Beginning {
        let (month, day, weekday, time) = if let Some(anchor) = self.anchor {
            let local = anchor.with_timezone(&self.time_zone).naive_local();
            let weekday = local.weekday().num_days_from_sunday();
            (local.month(), local.day(), weekday, local.time())
        } else {
            let month = self.reset_month.map_or(1, u32::from);
            let day = self.reset_day.map_or(1, u32::from);
            (month, day, day, NaiveTime::MIN)
        };
        let cycle = match self.reset_period {
            ResetPeriod::Hourly => {
                let past_the_hour =
                    |anchor| local_millis(self.time_zone, anchor).rem_euclid(HOUR_MS);
                return Beginning::InHour {
                    anchor: self.anchor.map(past_the_hour),
                };
            }
            ResetPeriod::Daily => Cycle::Day,
            ResetPeriod::Weekly => Cycle::Week { weekday },
            ResetPeriod::Monthly => Cycle::Month { day },
            ResetPeriod::Yearly => Cycle::Year { month, day },
        };
        Beginning::OnDay { cycle, time }
    }
}

/// Where on the wall clock periods begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Beginning {
    /// So many milliseconds past every hour; `None` is the full hour of [`hour`].
    InHour { anchor: Option<i64> },
    /// At a time of day, on the first day of every cycle.
    OnDay { cycle: Cycle, time: NaiveTime },
}

/// A numbering of local dates into days, weeks, months or years.
///
/// Boundaries are computed from a number, never from the boundary before: that is why a period of the 31st, clamped in
/// February, is back on the 31st in March.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cycle {
    Day,
    /// 0 is Sunday.
    Week {
        weekday: u32,
    },
    Month {
        day: u32,
    },
    Year {
        month: u32,
        day: u32,
    },
}

impl Cycle {
    /// The number of a cycle that begins on or before `date`, or else later in the same month or year.
    fn number(self, date: NaiveDate) -> i64 {
        // Day 1 is 0001-01-01, a Monday, so that a multiple of seven is a Sunday.
        let day_number = i64::from(date.num_days_from_ce());
        let year = i64::from(date.year());
        match self {
            Self::Day => day_number,
            Self::Week { weekday } => day_number.saturating_sub(i64::from(weekday)).div_euclid(7),
            Self::Month { .. } => year
                .saturating_mul(12)
                .saturating_add(i64::from(date.month0())),
            Self::Year { .. } => year,
        }
    }

    /// The first day of the cycle with this number.
    fn first_day(self, number: i64) -> NaiveDate {
        let date = match self {
            Self::Day => from_day_number(number),
            Self::Week { weekday } => {
                from_day_number(number.saturating_mul(7).saturating_add(i64::from(weekday)))
            }
            Self::Month { day } => {
                let month0 = u32::try_from(number.rem_euclid(12)).unwrap_or_default();
                clamped_date(number.div_euclid(12), month0.saturating_add(1), day)
            }
            Self::Year { month, day } => clamped_date(number, month, day),
        };
        // `in_calendar_years` keeps all dates far away from the ends of chrono's range.
        date.unwrap_or(if number < 0 {
            NaiveDate::MIN
        } else {
            NaiveDate::MAX
        })
    }
}

fn from_day_number(number: i64) -> Option<NaiveDate> {
    NaiveDate::from_num_days_from_ce_opt(i32::try_from(number).ok()?)
}

/// This day of the month, or the month's last day if it is shorter.
fn clamped_date(year: i64, month: u32, day: u32) -> Option<NaiveDate> {
    let year = i32::try_from(year).ok()?;
    (1..=day)
        .rev()
        .find_map(|day| NaiveDate::from_ymd_opt(year, month, day))
}

/// The window of a calendar whose periods begin at a time of day.
///
/// With B(n) for the first instant of cycle n, this is `[B(n), B(n + 1))` for the largest n with B(n) ≤ `at`. B never
/// decreases, therefore these windows tile; where the clocks skip a whole day, its empty window is never chosen.
fn day_window(
    zone: Tz,
    cycle: Cycle,
    time: NaiveTime,
    at: DateTime<Utc>,
) -> (DateTime<Utc>, DateTime<Utc>) {
    let local = at.with_timezone(&zone).naive_local();
    let mut number = cycle.number(local.date());
    let mut begins = cycle.first_day(number).and_time(time);
    if begins > local {
        number = number.saturating_sub(1);
        begins = cycle.first_day(number).and_time(time);
    }
    let mut start = first_instant(zone, begins);
    loop {
        number = number.saturating_add(1);
        let end = first_instant(zone, cycle.first_day(number).and_time(time));
        // When the clocks go back over a beginning, the local time is before it once more though it has passed.
        if end > at {
            return (start, end);
        }
        start = end;
    }
}

/// The first instant at which the wall clock of `zone` shows `local` or, where it skips that, a later time.
fn first_instant(zone: Tz, local: NaiveDateTime) -> DateTime<Utc> {
    zone.from_local_datetime(&local)
        .earliest()
        .or_else(|| GapInfo::new(&local, &zone)?.end)
        // Every gap has an end, and `in_calendar_years` excludes what is out of chrono's range.
        .map_or_else(|| local.and_utc(), |instant| instant.to_utc())
}

const HOUR_MS: i64 = 3_600_000;

/// The window that begins so many milliseconds past the hour.
///
/// Without an anchor every clock change starts a new hour. With one, only those do that move the clock by a fraction of
/// an hour: the others leave the minutes alone, and a customer's hourly limit should hold for an hour, not for the
/// rest of one.
fn hour_window(zone: Tz, anchor: Option<i64>, at: DateTime<Utc>) -> (DateTime<Utc>, DateTime<Utc>) {
    let now = millis(at);
    let elapsed = local_millis(zone, at)
        .saturating_sub(anchor.unwrap_or_default())
        .rem_euclid(HOUR_MS);
    let start = now.saturating_sub(elapsed);
    let end = start.saturating_add(HOUR_MS);
    let cut = |from, to| {
        let jump = utc_offset(zone, instant(to)).saturating_sub(utc_offset(zone, instant(from)));
        let cuts = jump != 0 && (anchor.is_none() || jump % HOUR_MS != 0);
        cuts.then(|| clock_change(zone, from, to))
    };
    (
        instant(cut(start, now).unwrap_or(start)),
        instant(cut(now, end).unwrap_or(end)),
    )
}

/// When the clocks change, given that they do in `(from, to]`, in milliseconds.
///
/// A bisection, because chrono-tz does not tell its transitions. It needs at most one of them in the interval; no zone
/// has ever had two in an hour.
fn clock_change(zone: Tz, from: i64, to: i64) -> i64 {
    let offset_before = utc_offset(zone, instant(from));
    let (mut before, mut after) = (from, to);
    while after.saturating_sub(before) > 1 {
        let middle = before.midpoint(after);
        if utc_offset(zone, instant(middle)) == offset_before {
            before = middle;
        } else {
            after = middle;
        }
    }
    after
}

/// What the wall clock of `zone` shows at `at`, in milliseconds since its own 1970-01-01 00:00.
fn local_millis(zone: Tz, at: DateTime<Utc>) -> i64 {
    millis(at).saturating_add(utc_offset(zone, at))
}

/// How far the wall clock of `zone` is ahead of UTC, in milliseconds.
fn utc_offset(zone: Tz, at: DateTime<Utc>) -> i64 {
    let offset = zone.offset_from_utc_datetime(&at.naive_utc()).fix();
    i64::from(offset.local_minus_utc()).saturating_mul(1000)
}

/// The millisecond that contains `at`.
fn millis(at: DateTime<Utc>) -> i64 {
    // chrono keeps a leap second as the 1000th and later milliseconds of the second before it; it has to stay in its
    // own second here, or else it would lie before the start of its own window.
    let in_second = i64::from(at.timestamp_subsec_millis()).min(999);
    at.timestamp()
        .saturating_mul(1000)
        .saturating_add(in_second)
}

const fn instant(millis: i64) -> DateTime<Utc> {
    match DateTime::from_timestamp_millis(millis) {
        Some(instant) => instant,
        None if millis < 0 => DateTime::<Utc>::MIN_UTC,
        None => DateTime::<Utc>::MAX_UTC,
    }
}

/// 0001-01-01T00:00:00Z
const EARLIEST: DateTime<Utc> = instant(-62_135_596_800_000);
/// 10000-01-01T00:00:00Z
const LATEST: DateTime<Utc> = instant(253_402_300_800_000);

/// Applies `window` to instants with a four-digit year, and makes one window of all time before them and one of all
/// after.
///
/// chrono's arithmetic panics or gives up at the ends of its range. Instants come from users, so nothing may get
/// near them.
fn in_calendar_years(
    at: DateTime<Utc>,
    window: impl FnOnce(DateTime<Utc>) -> (DateTime<Utc>, DateTime<Utc>),
) -> (DateTime<Utc>, DateTime<Utc>) {
    if at < EARLIEST {
        return (DateTime::<Utc>::MIN_UTC, EARLIEST);
    }
    if at >= LATEST {
        return (LATEST, DateTime::<Utc>::MAX_UTC);
    }
    let (start, end) = window(at);
    (start.max(EARLIEST), end.min(LATEST))
}

#[cfg(test)]
#[expect(
    clippy::arithmetic_side_effects,
    reason = "test data is small, and an overflow would fail the test"
)]
mod tests {
    use std::ops::Range;

    use chrono::TimeDelta;
    use proptest::prelude::*;
    use proptest::sample::select;
    use serde_json::json;

    use super::*;

    /// Whole and fractional offsets, both hemispheres, clock changes at midnight, by half an hour, and none.
    const ZONES: [Tz; 11] = [
        Tz::UTC,
        Tz::Europe__Berlin,
        Tz::America__New_York,
        Tz::Asia__Kolkata,
        Tz::Asia__Kathmandu,
        Tz::Australia__Lord_Howe,
        Tz::America__Sao_Paulo,
        Tz::America__Havana,
        Tz::Africa__Cairo,
        Tz::Asia__Beirut,
        Tz::Pacific__Apia,
    ];

    const TWENTY_YEARS: Range<DateTime<Utc>> =
        instant(1_577_836_800_000)..instant(2_208_988_800_000);

    const MILLISECOND: TimeDelta = TimeDelta::milliseconds(1);

    fn hour_start(zone: Tz, at: DateTime<Utc>) -> DateTime<Utc> {
        hour(zone, at).0
    }

    // --- the algebra, in all zones ---

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn the_window_of_an_instant_contains_it_and_its_neighbours_touch_it(
            calendar in calendars(),
            at in instants(),
        ) {
            let (start, end) = calendar.window(at);
            prop_assert!(start <= at && at < end);
            prop_assert_eq!(calendar.window(start), (start, end));
            prop_assert_eq!(calendar.window(end - MILLISECOND), (start, end));
            prop_assert_eq!(calendar.window(end).0, end);
            prop_assert_eq!(calendar.window(start - MILLISECOND).1, start);
        }

        #[test]
        fn a_later_instant_is_never_in_an_earlier_window(
            calendar in calendars(),
            one in instants(),
            other in instants(),
        ) {
            let early = calendar.window(one.min(other));
            let late = calendar.window(one.max(other));
            prop_assert!(early == late || early.1 <= late.0);
        }

        #[test]
        fn the_hour_of_an_instant_contains_it_and_lasts_at_most_an_hour(
            zone in select(&ZONES),
            at in instants(),
        ) {
            let start = hour_start(zone, at);
            prop_assert!(start <= at && at - start < TimeDelta::hours(1));
            prop_assert_eq!(hour_start(zone, start), start);
        }

        #[test]
        fn an_hourly_period_without_an_anchor_is_an_hour_of_the_wall_clock(
            zone in select(&ZONES),
            at in instants(),
        ) {
            let hours = Calendar::plain(ResetPeriod::Hourly, zone);
            prop_assert_eq!(hour_start(zone, at), hours.window(at).0);
        }

        #[test]
        fn the_first_instant_of_a_local_time_is_the_first_that_shows_it_or_a_later_one(
            zone in select(&ZONES),
            at in instants(),
        ) {
            let local = at.naive_utc();
            let first = first_instant(zone, local);
            let shown = |at: DateTime<Utc>| at.with_timezone(&zone).naive_local();
            prop_assert!(shown(first) >= local);
            prop_assert!(shown(first - MILLISECOND) < local);
        }

        #[test]
        fn no_instant_is_too_far_away(
            calendar in calendars(),
            at in all_instants(),
        ) {
            let zone = calendar.time_zone();
            prop_assert!(hour_start(zone, at) <= at);
            let (start, end) = calendar.window(at);
            prop_assert!(start <= at && at < end);
            if let Ok(anchored) = Calendar::new(calendar.reset_period(), None, None, Some(at), zone) {
                prop_assert!(anchored.window(at).0 <= at);
            }
        }
    }

    #[test]
    fn windows_tile_from_2020_to_2040_for_every_reset_period_with_and_without_an_anchor() {
        let walk_calendars_of = |zone| {
            for reset_period in ResetPeriod::ALL {
                let windows = match reset_period {
                    ResetPeriod::Hourly => 175_320,
                    ResetPeriod::Daily => 7_305,
                    ResetPeriod::Weekly => 1_043,
                    ResetPeriod::Monthly => 240,
                    ResetPeriod::Yearly => 20,
                };
                let anchor = anchored(reset_period, "2024-01-31T10:15:30.250Z", zone);
                for calendar in [Calendar::plain(reset_period, zone), anchor] {
                    let walked = walk(&calendar, TWENTY_YEARS).len();
                    // The first and the last are cut by the span, and a clock that moves by half an hour makes two
                    // windows a year more. A drift would add up to a different number.
                    let about = windows..=windows + 2 + windows / 2_000;
                    assert!(about.contains(&walked), "{walked} windows in {calendar:?}");
                }
            }
        };
        // Millions of windows: a thread for each zone keeps this test down to seconds.
        std::thread::scope(|scope| {
            for zone in ZONES {
                scope.spawn(move || walk_calendars_of(zone));
            }
        });
    }

    #[test]
    fn the_hours_of_a_local_day_tile_it_from_2020_to_2040() {
        for zone in ZONES {
            let days = Calendar::plain(ResetPeriod::Daily, zone);
            let hours = Calendar::plain(ResetPeriod::Hourly, zone);
            for (start, end) in walk(&days, TWENTY_YEARS) {
                assert_eq!(hours.window(start).0, start, "{zone}");
                assert_eq!(hours.window(end - MILLISECOND).1, end, "{zone}");
                if end - start != TimeDelta::hours(24) {
                    assert_eq!(
                        walk(&hours, start..end).last().map(|hour| hour.1),
                        Some(end)
                    );
                }
            }
        }
    }

    /// Walks the days around every clock change of every zone that chrono-tz knows, also those too odd to be in
    /// [`ZONES`].
    #[test]
    fn hours_and_days_tile_around_every_clock_change_of_every_zone() {
        for zone in chrono_tz::TZ_VARIANTS {
            let hours = Calendar::plain(ResetPeriod::Hourly, zone);
            let quarter_past = Calendar::new(
                ResetPeriod::Hourly,
                None,
                None,
                Some(utc("2024-01-01T00:15:00Z")),
                zone,
            )
            .expect("the settings are valid");
            let days = Calendar::plain(ResetPeriod::Daily, zone);
            let mut at = utc("2007-01-01T00:00:00Z");
            while at < utc("2030-01-01T00:00:00Z") {
                let next = at + TimeDelta::days(5);
                if utc_offset(zone, at) != utc_offset(zone, next) {
                    for (start, end) in walk(&days, at..next) {
                        assert_eq!(hours.window(start).0, start, "{zone}");
                        assert_eq!(hours.window(end - MILLISECOND).1, end, "{zone}");
                    }
                    let change = instant(clock_change(zone, millis(at), millis(next)));
                    let around = change - TimeDelta::hours(3)..change + TimeDelta::hours(3);
                    walk(&hours, around.clone());
                    walk(&quarter_past, around);
                }
                at = next;
            }
        }
    }

    // --- hours and days when the clocks change ---

    #[test]
    fn a_day_has_23_hours_when_the_clocks_go_forward_and_25_when_they_go_back() {
        let berlin = Calendar::plain(ResetPeriod::Daily, Tz::Europe__Berlin);
        assert_eq!(
            berlin.window(utc("2025-03-30T12:00:00Z")),
            window("2025-03-29T23:00:00Z", "2025-03-30T22:00:00Z")
        );
        assert_eq!(
            berlin.window(utc("2025-10-26T12:00:00Z")),
            window("2025-10-25T22:00:00Z", "2025-10-26T23:00:00Z")
        );
    }

    #[test]
    fn a_repeated_hour_is_an_hour_of_its_own() {
        let hours = Calendar::plain(ResetPeriod::Hourly, Tz::Europe__Berlin);
        let day = utc("2025-10-25T22:00:00Z")..utc("2025-10-26T23:00:00Z");
        let lengths = lengths_in_minutes(&hours, day);
        assert_eq!(lengths, [60; 25]);
    }

    #[test]
    fn a_half_hour_clock_change_makes_one_half_hour() {
        let hours = Calendar::plain(ResetPeriod::Hourly, Tz::Australia__Lord_Howe);
        // 02:00 at +11 becomes 01:30 at +10:30, and 02:00 becomes 02:30 in October.
        assert_eq!(
            walk(
                &hours,
                utc("2025-04-05T14:00:00Z")..utc("2025-04-05T16:00:00Z")
            ),
            [
                window("2025-04-05T14:00:00Z", "2025-04-05T15:00:00Z"),
                window("2025-04-05T15:00:00Z", "2025-04-05T15:30:00Z"),
                window("2025-04-05T15:30:00Z", "2025-04-05T16:30:00Z"),
            ]
        );
        assert_eq!(
            walk(
                &hours,
                utc("2025-10-04T15:00:00Z")..utc("2025-10-04T16:30:00Z")
            ),
            [
                window("2025-10-04T14:30:00Z", "2025-10-04T15:30:00Z"),
                window("2025-10-04T15:30:00Z", "2025-10-04T16:00:00Z"),
                window("2025-10-04T16:00:00Z", "2025-10-04T17:00:00Z"),
            ]
        );
        let days = Calendar::plain(ResetPeriod::Daily, Tz::Australia__Lord_Howe);
        let (start, end) = days.window(utc("2025-04-05T16:00:00Z"));
        assert_eq!(end - start, TimeDelta::minutes(24 * 60 + 30));
    }

    #[test]
    fn a_clock_change_in_mid_hour_starts_a_new_hour() {
        // In Newfoundland 2010-11-07 00:01 became 2010-11-06 23:01: midnight came twice, the first time for a minute.
        let hours = Calendar::plain(ResetPeriod::Hourly, Tz::America__St_Johns);
        let midnight = utc("2010-11-07T02:30:00Z");
        assert_eq!(
            lengths_in_minutes(&hours, midnight..midnight + TimeDelta::hours(2)),
            [1, 59, 60]
        );
        assert_eq!(
            hour_start(Tz::America__St_Johns, utc("2010-11-07T03:00:00Z")),
            utc("2010-11-07T02:31:00Z")
        );
    }

    #[test]
    fn hours_follow_the_wall_clock_of_zones_with_fractional_offsets() {
        let at = utc("2025-06-01T10:20:00Z");
        assert_eq!(
            hour_start(Tz::Asia__Kolkata, at),
            utc("2025-06-01T09:30:00Z")
        );
        assert_eq!(
            hour_start(Tz::Asia__Kathmandu, at),
            utc("2025-06-01T10:15:00Z")
        );
    }

    #[test]
    fn an_hourly_anchor_fixes_the_minutes_and_its_hours_stay_whole_when_the_clocks_change() {
        let calendar = anchored(
            ResetPeriod::Hourly,
            "2024-01-31T10:15:30Z",
            Tz::Europe__Berlin,
        );
        assert_eq!(
            calendar.window(utc("2025-06-01T10:15:29.999Z")),
            window("2025-06-01T09:15:30Z", "2025-06-01T10:15:30Z")
        );
        for day in ["2025-03-30", "2025-10-26"] {
            let start = utc(&format!("{day}T00:15:30Z"));
            assert_eq!(
                lengths_in_minutes(&calendar, start..start + TimeDelta::hours(4)),
                [60; 4]
            );
        }
        let nepal = anchored(
            ResetPeriod::Hourly,
            "2024-01-31T10:15:00Z",
            Tz::Asia__Kathmandu,
        );
        assert_eq!(
            nepal.window(utc("2025-06-01T10:20:00Z")).0,
            utc("2025-06-01T10:15:00Z")
        );
    }

    #[test]
    fn a_midnight_that_the_clocks_skip_is_the_first_instant_after_it() {
        // In Cairo the clocks go from 2025-04-25 00:00 to 01:00, in Beirut on 2025-03-30.
        let cairo = Calendar::plain(ResetPeriod::Daily, Tz::Africa__Cairo);
        assert_eq!(
            cairo.window(utc("2025-04-25T12:00:00Z")),
            window("2025-04-24T22:00:00Z", "2025-04-25T21:00:00Z")
        );
        let beirut = Calendar::plain(ResetPeriod::Daily, Tz::Asia__Beirut);
        assert_eq!(
            beirut.window(utc("2025-03-30T12:00:00Z")),
            window("2025-03-29T22:00:00Z", "2025-03-30T21:00:00Z")
        );
    }

    #[test]
    fn a_midnight_that_the_clocks_repeat_is_the_earlier_one() {
        // In Havana 01:00 on 2025-11-02 becomes 00:00.
        let havana = Calendar::plain(ResetPeriod::Daily, Tz::America__Havana);
        let day = window("2025-11-02T04:00:00Z", "2025-11-03T05:00:00Z");
        assert_eq!(havana.window(utc("2025-11-02T04:30:00Z")), day);
        assert_eq!(havana.window(utc("2025-11-02T05:30:00Z")), day);
    }

    #[test]
    fn clocks_that_go_back_into_the_day_before_do_not_reopen_it() {
        // In Cairo 2025-10-31 00:00 becomes 2025-10-30 23:00; an anchor at 23:30 has then passed once.
        let calendar = anchored(
            ResetPeriod::Daily,
            "2025-06-01T20:30:00Z",
            Tz::Africa__Cairo,
        );
        let day = window("2025-10-30T20:30:00Z", "2025-10-31T21:30:00Z");
        assert_eq!(calendar.window(utc("2025-10-30T20:45:00Z")), day);
        assert_eq!(calendar.window(utc("2025-10-30T21:15:00Z")), day);
        assert_eq!(calendar.window(utc("2025-10-30T21:45:00Z")), day);
    }

    #[test]
    fn a_day_that_the_calendar_skips_has_no_window() {
        // Samoa went from 2011-12-29 24:00 straight to 2011-12-31 00:00.
        let days = Calendar::plain(ResetPeriod::Daily, Tz::Pacific__Apia);
        let skip = utc("2011-12-30T10:00:00Z");
        assert_eq!(
            days.window(skip - MILLISECOND),
            (skip - TimeDelta::days(1), skip)
        );
        assert_eq!(days.window(skip), (skip, skip + TimeDelta::days(1)));
        let skipped_day = Calendar::new(
            ResetPeriod::Monthly,
            Some(30),
            None,
            None,
            Tz::Pacific__Apia,
        )
        .expect("the settings are valid");
        assert_eq!(skipped_day.window(skip).0, skip);
    }

    // --- reset days, months and anchors ---

    #[test]
    fn a_period_anchored_on_the_31st_never_drifts() {
        let calendar = anchored(ResetPeriod::Monthly, "2024-01-31T10:15:30.250Z", Tz::UTC);
        assert_eq!(
            starts(
                &calendar,
                utc("2024-01-31T12:00:00Z")..utc("2025-05-01T00:00:00Z")
            ),
            [
                "2024-01-31",
                "2024-02-29",
                "2024-03-31",
                "2024-04-30",
                "2024-05-31",
                "2024-06-30",
                "2024-07-31",
                "2024-08-31",
                "2024-09-30",
                "2024-10-31",
                "2024-11-30",
                "2024-12-31",
                "2025-01-31",
                "2025-02-28",
                "2025-03-31",
                "2025-04-30",
            ]
            .map(|day| format!("{day}T10:15:30.250Z"))
        );
    }

    #[test]
    fn a_reset_day_beyond_the_end_of_a_month_is_its_last_day_in_the_zone() {
        let calendar = Calendar::new(
            ResetPeriod::Monthly,
            Some(31),
            None,
            None,
            Tz::America__New_York,
        )
        .expect("the settings are valid");
        assert_eq!(
            starts(
                &calendar,
                utc("2025-02-01T00:00:00Z")..utc("2025-05-01T00:00:00Z")
            ),
            [
                "2025-01-31T05:00:00Z",
                "2025-02-28T05:00:00Z",
                "2025-03-31T04:00:00Z",
                "2025-04-30T04:00:00Z",
            ]
        );
    }

    #[test]
    fn a_year_anchored_on_the_29th_of_february_begins_on_the_28th_in_common_years() {
        let calendar = anchored(
            ResetPeriod::Yearly,
            "2024-02-29T08:00:00Z",
            Tz::Asia__Kolkata,
        );
        assert_eq!(
            starts(
                &calendar,
                utc("2023-06-01T00:00:00Z")..utc("2028-06-01T00:00:00Z")
            ),
            [
                "2023-02-28T08:00:00Z",
                "2024-02-29T08:00:00Z",
                "2025-02-28T08:00:00Z",
                "2026-02-28T08:00:00Z",
                "2027-02-28T08:00:00Z",
                "2028-02-29T08:00:00Z",
            ]
        );
    }

    #[test]
    fn an_anchor_means_the_day_and_the_time_of_day_in_its_zone() {
        // 01:30 on Sunday the 1st in Berlin, still Saturday the 31st in UTC.
        let anchor = "2025-05-31T23:30:00Z";
        let at = utc("2025-12-24T12:00:00Z");
        let window_of = |period| anchored(period, anchor, Tz::Europe__Berlin).window(at);
        assert_eq!(
            window_of(ResetPeriod::Weekly),
            window("2025-12-21T00:30:00Z", "2025-12-28T00:30:00Z")
        );
        assert_eq!(
            window_of(ResetPeriod::Monthly),
            window("2025-12-01T00:30:00Z", "2026-01-01T00:30:00Z")
        );
        assert_eq!(
            window_of(ResetPeriod::Yearly),
            window("2025-05-31T23:30:00Z", "2026-05-31T23:30:00Z")
        );
        assert_eq!(
            window_of(ResetPeriod::Daily),
            window("2025-12-24T00:30:00Z", "2025-12-25T00:30:00Z")
        );
    }

    #[test]
    fn an_anchor_reaches_into_the_past() {
        let calendar = anchored(ResetPeriod::Monthly, "2024-01-31T10:00:00Z", Tz::UTC);
        assert_eq!(
            calendar.window(utc("1999-03-01T00:00:00Z")),
            window("1999-02-28T10:00:00Z", "1999-03-31T10:00:00Z")
        );
    }

    #[test]
    fn an_anchor_counts_in_whole_milliseconds() {
        let calendar = anchored(
            ResetPeriod::Daily,
            "2024-01-31T10:00:00.123456789Z",
            Tz::UTC,
        );
        assert_eq!(calendar.anchor(), Some(utc("2024-01-31T10:00:00.123Z")));
        assert_eq!(
            calendar.window(utc("2025-01-01T12:00:00Z")).0,
            utc("2025-01-01T10:00:00.123Z")
        );
    }

    #[test]
    fn a_week_begins_on_monday_unless_said_otherwise() {
        // 2025-06-04 is a Wednesday.
        let at = utc("2025-06-04T12:00:00Z");
        let begins = |day| {
            Calendar::new(ResetPeriod::Weekly, day, None, None, Tz::UTC)
                .expect("the settings are valid")
                .window(at)
                .0
        };
        assert_eq!(begins(None), utc("2025-06-02T00:00:00Z"));
        assert_eq!(begins(Some(0)), utc("2025-06-01T00:00:00Z"));
        assert_eq!(begins(Some(3)), utc("2025-06-04T00:00:00Z"));
        assert_eq!(begins(Some(4)), utc("2025-05-29T00:00:00Z"));
    }

    #[test]
    fn a_year_begins_on_the_first_of_january_unless_said_otherwise() {
        let begins = |day, month| {
            Calendar::new(ResetPeriod::Yearly, day, month, None, Tz::UTC)
                .expect("the settings are valid")
                .window(utc("2025-06-04T12:00:00Z"))
                .0
        };
        assert_eq!(begins(None, None), utc("2025-01-01T00:00:00Z"));
        assert_eq!(begins(Some(15), None), utc("2025-01-15T00:00:00Z"));
        assert_eq!(begins(None, Some(4)), utc("2025-04-01T00:00:00Z"));
        assert_eq!(begins(Some(31), Some(6)), utc("2024-06-30T00:00:00Z"));
    }

    #[test]
    fn a_leap_second_belongs_to_the_day_that_it_ends() {
        let leap = utc("2016-12-31T23:59:60.5Z");
        for period in [ResetPeriod::Hourly, ResetPeriod::Daily] {
            let (start, end) = Calendar::plain(period, Tz::UTC).window(leap);
            assert!(start <= leap && leap < end);
            assert_eq!(end, utc("2017-01-01T00:00:00Z"));
        }
    }

    #[test]
    fn the_limits_of_the_calendar_are_the_years_that_rfc_3339_can_write() {
        assert_eq!(EARLIEST, utc("0001-01-01T00:00:00Z"));
        assert_eq!(LATEST - MILLISECOND, utc("9999-12-31T23:59:59.999Z"));
        for zone in ZONES {
            for period in ResetPeriod::ALL {
                let calendar = Calendar::plain(period, zone);
                assert_eq!(
                    calendar.window(EARLIEST - MILLISECOND),
                    (DateTime::<Utc>::MIN_UTC, EARLIEST)
                );
                assert_eq!(calendar.window(EARLIEST).0, EARLIEST);
                assert_eq!(calendar.window(LATEST - MILLISECOND).1, LATEST);
                assert_eq!(calendar.window(LATEST), (LATEST, DateTime::<Utc>::MAX_UTC));
            }
        }
    }

    // --- settings ---

    #[test]
    fn the_plain_calendar_is_the_one_without_settings() {
        for period in ResetPeriod::ALL {
            assert_eq!(
                Calendar::new(period, None, None, None, Tz::Asia__Kolkata),
                Ok(Calendar::plain(period, Tz::Asia__Kolkata))
            );
        }
    }

    #[test]
    fn settings_that_do_not_fit_are_refused_by_name() {
        use ResetPeriod::{Daily, Hourly, Monthly, Weekly, Yearly};
        let anchor = Some(utc("2024-01-31T10:00:00Z"));
        let too_early = Some(EARLIEST - MILLISECOND);
        let cases = [
            (Hourly, Some(1), None, None, "resetDay"),
            (Daily, Some(1), None, None, "resetDay"),
            (Weekly, Some(7), None, None, "resetDay"),
            (Monthly, Some(0), None, None, "resetDay"),
            (Monthly, Some(32), None, None, "resetDay"),
            (Yearly, Some(0), None, None, "resetDay"),
            (Yearly, Some(32), Some(1), None, "resetDay"),
            (Hourly, None, Some(1), None, "resetMonth"),
            (Daily, None, Some(1), None, "resetMonth"),
            (Weekly, None, Some(1), None, "resetMonth"),
            (Monthly, Some(1), Some(1), None, "resetMonth"),
            (Yearly, None, Some(0), None, "resetMonth"),
            (Yearly, None, Some(13), None, "resetMonth"),
            (Monthly, Some(1), None, anchor, "anchor"),
            (Yearly, None, Some(1), anchor, "anchor"),
            (Daily, None, None, too_early, "anchor"),
            (Daily, None, None, Some(LATEST), "anchor"),
        ];
        for (period, day, month, anchor, field) in cases {
            let refused = Calendar::new(period, day, month, anchor, Tz::UTC)
                .expect_err("the settings are invalid");
            assert_eq!(refused.field, field, "{refused}");
        }
    }

    #[test]
    fn a_refusal_says_what_would_be_right() {
        let refused = Calendar::new(ResetPeriod::Weekly, Some(7), None, None, Tz::UTC)
            .expect_err("a week has no eighth day");
        assert_eq!(
            refused.to_string(),
            "resetDay must be 0 to 6 when resetPeriod is weekly, not 7"
        );
    }

    #[test]
    fn time_zones_are_known_by_their_iana_names() {
        assert_eq!(
            parse_time_zone("America/New_York"),
            Ok(Tz::America__New_York)
        );
        for unknown in ["", "Berlin", "europe/berlin", "+02:00", "Mars/Olympus_Mons"] {
            let refused = parse_time_zone(unknown).expect_err("the name is unknown");
            assert_eq!(refused.field, "timeZone");
        }
    }

    #[test]
    fn modes_and_periods_are_what_they_are_called() {
        for mode in ResetMode::ALL {
            assert_eq!(mode.to_string().parse(), Ok(mode));
            assert_eq!(json!(mode), json!(mode.as_str()));
        }
        for period in ResetPeriod::ALL {
            assert_eq!(period.to_string().parse(), Ok(period));
            assert_eq!(json!(period), json!(period.as_str()));
        }
        let refused = "fortnightly".parse::<ResetPeriod>();
        assert_eq!(refused.map_err(|refused| refused.field), Err("resetPeriod"));
        let refused = "Lazy".parse::<ResetMode>();
        assert_eq!(refused.map_err(|refused| refused.field), Err("resetMode"));
    }

    #[test]
    fn a_calendar_read_from_json_is_checked_as_well() {
        let json = json!({"resetPeriod": "weekly", "resetDay": 7, "timeZone": "UTC"});
        let refused = serde_json::from_value::<Calendar>(json).expect_err("the day is invalid");
        assert!(refused.to_string().starts_with("resetDay must be 0 to 6"));
    }

    // --- values and helpers ---

    fn instants() -> impl Strategy<Value = DateTime<Utc>> + Clone {
        instants_in(TWENTY_YEARS)
    }

    /// From the beginning to the end of what chrono can represent, and the borders of what the calendar does.
    fn all_instants() -> impl Strategy<Value = DateTime<Utc>> {
        let last = DateTime::<Utc>::MAX_UTC - MILLISECOND;
        prop_oneof![
            instants_in(DateTime::<Utc>::MIN_UTC..last),
            instants_in(EARLIEST..LATEST),
            instants_in(DateTime::UNIX_EPOCH - TimeDelta::days(1)..instant(HOUR_MS)),
            instants_in(EARLIEST - TimeDelta::days(2)..EARLIEST + TimeDelta::days(400)),
            instants_in(LATEST - TimeDelta::days(400)..LATEST + TimeDelta::days(2)),
            Just(DateTime::<Utc>::MIN_UTC),
            Just(last),
        ]
    }

    fn instants_in(range: Range<DateTime<Utc>>) -> impl Strategy<Value = DateTime<Utc>> + Clone {
        (range.start.timestamp_millis()..range.end.timestamp_millis()).prop_map(instant)
    }

    fn calendars() -> impl Strategy<Value = Calendar> + Clone {
        let begins = prop_oneof![
            (
                proptest::option::of(0..=31_u8),
                proptest::option::of(1..=12_u8)
            )
                .prop_map(|(day, month)| (day, month, None)),
            instants().prop_map(|anchor| (None, None, Some(anchor))),
        ];
        (select(&ResetPeriod::ALL), begins, select(&ZONES)).prop_map(
            |(period, (day, month, anchor), zone)| {
                let day = match period {
                    ResetPeriod::Hourly | ResetPeriod::Daily => None,
                    ResetPeriod::Weekly => day.map(|day| day % 7),
                    ResetPeriod::Monthly | ResetPeriod::Yearly => day.map(|day| day.max(1)),
                };
                let month = month.filter(|_| period == ResetPeriod::Yearly);
                Calendar::new(period, day, month, anchor, zone).expect("the settings are valid")
            },
        )
    }

    /// The windows from the one that contains the start of `span` to the last that begins in it, each checked to begin
    /// where the one before ends and to contain both of its ends.
    fn walk(
        calendar: &Calendar,
        span: Range<DateTime<Utc>>,
    ) -> Vec<(DateTime<Utc>, DateTime<Utc>)> {
        let mut windows = vec![calendar.window(span.start)];
        while let Some(&(start, end)) = windows.last() {
            assert!(start < end, "an empty window at {start} in {calendar:?}");
            assert_eq!(
                calendar.window(end - MILLISECOND),
                (start, end),
                "{calendar:?}"
            );
            if end >= span.end {
                break;
            }
            let next = calendar.window(end);
            assert_eq!(next.0, end, "a seam in {calendar:?}");
            windows.push(next);
        }
        windows
    }

    fn starts(calendar: &Calendar, span: Range<DateTime<Utc>>) -> Vec<String> {
        walk(calendar, span)
            .into_iter()
            .map(|(start, _)| start.to_rfc3339_opts(chrono::SecondsFormat::AutoSi, true))
            .collect()
    }

    fn lengths_in_minutes(calendar: &Calendar, span: Range<DateTime<Utc>>) -> Vec<i64> {
        walk(calendar, span)
            .into_iter()
            .map(|(start, end)| (end - start).num_minutes())
            .collect()
    }

    fn anchored(period: ResetPeriod, anchor: &str, zone: Tz) -> Calendar {
        Calendar::new(period, None, None, Some(utc(anchor)), zone).expect("an anchor is valid")
    }

    fn window(start: &str, end: &str) -> (DateTime<Utc>, DateTime<Utc>) {
        (utc(start), utc(end))
    }

    fn utc(text: &str) -> DateTime<Utc> {
        text.parse().expect("an RFC 3339 instant")
    }
}
