//! Calendars: the window of a period that contains an instant.
//!
//! Reset days, anchors, month ends, time zones and their clock changes. Every boundary follows from the settings alone,
//! never from the clock or the boundary before, so periods neither drift nor merge. Start with [`Calendar::window`];
//! `schedule` puts calendars in a row.
//!
//! **Invariant:** windows tile. The window of an instant contains it, and the window of its end starts at that end.

use chrono::{DateTime, Datelike, NaiveDate, NaiveTime, Utc};
use chrono_tz::{TZ_VARIANTS, Tz};
use serde::{Deserialize, Serialize};

use super::input::{parse_str, read_as};
use super::instant::{EARLIEST, LATEST, from_millis};
use super::period::ResetPeriod;
use super::wall_clock::{
    HOUR_MS, first_instant, hour_window, in_calendar_years, local_millis, millis,
};

/// A valid calendar: length of periods, day or anchor at which they begin, and time zone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Settings", into = "Settings")]
pub struct Calendar {
    settings: Settings,
    /// Computed once from the settings, because `window` runs on every call.
    recurrence: Recurrence,
}

impl Calendar {
    /// Validates the settings of one organization.
    ///
    /// `reset_day` is 1–31 for monthly and yearly (1 if absent; clamped to the month's last day) and 0–6 for weekly
    /// (0 is Sunday; 1 if absent). `reset_month` is 1–12 for yearly (1 if absent). Periods begin at 00:00 in
    /// `time_zone`; with an `anchor`, which excludes the other two, at its day and time of day in that zone.
    /// The anchor is truncated to milliseconds and applies to the past as well.
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
        settings.anchor = anchor.map(|anchor| from_millis(millis(anchor)));
        Ok(Self::of(settings))
    }

    /// The calendar of this length without day, month or anchor, which is always valid.
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
            recurrence: valid.recurrence(),
            settings: valid,
        }
    }

    /// How long a period lasts.
    pub fn reset_period(&self) -> ResetPeriod {
        self.settings.reset_period
    }

    /// The configured day; `None` for the default.
    pub fn reset_day(&self) -> Option<u8> {
        self.settings.reset_day
    }

    /// The configured month; `None` for the default.
    pub fn reset_month(&self) -> Option<u8> {
        self.settings.reset_month
    }

    /// The instant whose local day and time of day start every period.
    pub fn anchor(&self) -> Option<DateTime<Utc>> {
        self.settings.anchor
    }

    /// The zone whose wall clock defines where periods begin.
    pub fn time_zone(&self) -> Tz {
        self.settings.time_zone
    }

    /// The calendar's half-open window that contains `at`.
    ///
    /// A start within a gap of the clock moves to the first instant after the gap; of a repeated local time the earlier
    /// instant counts. All time before the year 1 is a single window, and so is all time after 9999.
    pub fn window(&self, at: DateTime<Utc>) -> (DateTime<Utc>, DateTime<Utc>) {
        let zone = self.settings.time_zone;
        in_calendar_years(at, |at| match self.recurrence {
            Recurrence::Hours { anchor } => hour_window(zone, anchor, at),
            Recurrence::Cycles { cycle, time } => day_window(zone, cycle, time, at),
        })
    }
}

/// Parses an IANA name, such as `Europe/Berlin`.
pub fn parse_time_zone(name: &str) -> Result<Tz, InvalidCalendar> {
    name.parse().map_err(|_| {
        let mut known = TZ_VARIANTS.iter().map(|zone| zone.name());
        let similar = known.find(|it| it.eq_ignore_ascii_case(name));
        let example = similar.unwrap_or("Europe/Berlin");
        let detail = format!("must be the IANA name of a time zone, such as {example}");
        InvalidCalendar::new("timeZone", detail)
    })
}

read_as!(
    /// The name of a time zone.
    Zone(Tz),
    |deserializer| parse_str(
        deserializer,
        "the IANA name of a time zone, such as Europe/Berlin",
        |name| parse_time_zone(name).map_err(|error| error.detail)
    )
);

/// An invalid setting, or one that contradicts another.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field} {detail}")]
pub struct InvalidCalendar {
    /// The setting's name in the API: `resetDay`, `resetMonth`, `anchor` or `timeZone`.
    pub field: &'static str,
    /// What would be valid; continues a sentence that begins with the field.
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

/// The JSON form of a [`Calendar`], not validated.
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

    fn recurrence(&self) -> Recurrence {
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
                return Recurrence::Hours {
                    anchor: self.anchor.map(past_the_hour),
                };
            }
            ResetPeriod::Daily => Cycle::Day,
            ResetPeriod::Weekly => Cycle::Week { weekday },
            ResetPeriod::Monthly => Cycle::Month { day },
            ResetPeriod::Yearly => Cycle::Year { month, day },
        };
        Recurrence::Cycles { cycle, time }
    }
}

/// Where on the wall clock periods begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Recurrence {
    /// Every hour, `anchor` milliseconds past it; `None` for full hours of the wall clock.
    Hours { anchor: Option<i64> },
    /// At a time of day on the first day of every cycle.
    Cycles { cycle: Cycle, time: NaiveTime },
}

/// A numbering of local dates into days, weeks, months or years.
///
/// A boundary is computed from its number, never from the boundary before, so a period that starts on the 31st and was
/// clamped in February starts on the 31st again in March.
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
        // `in_calendar_years` keeps dates away from the ends of chrono's range.
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

/// The window of a cycle that starts at a time of day.
///
/// With B(n) for the first instant of cycle n, this is `[B(n), B(n + 1))` for the largest n with B(n) ≤ `at`. B never
/// decreases, so these windows tile. If the clocks skip a whole day, its empty window is never chosen.
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
        // After the clocks went back over a start, the local time is before it again although it has passed.
        if end > at {
            return (start, end);
        }
        start = end;
    }
}

#[cfg(test)]
mod tests;
