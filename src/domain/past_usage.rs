//! Usage that another system has counted, as periods of history. They are final: no call counts in them.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};

use super::calendar::Calendar;
use super::ids::{MeterId, OrganizationId};
use super::period::Period;
use super::quantity::Count;
use super::retention::LATE_MAX;
use super::schedule::Schedule;

/// The resolution of stored instants.
const MILLISECOND: TimeDelta = TimeDelta::milliseconds(1);

/// A count of another system, for a period that has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PastUsage {
    /// The line that it was read from.
    pub line: u64,
    /// Who used it.
    pub organization: OrganizationId,
    /// What was counted.
    pub meter: MeterId,
    /// When the period began; if unknown, where the one before it ended.
    pub start: Option<DateTime<Utc>>,
    /// When it ended.
    pub end: DateTime<Utc>,
    /// Units counted.
    pub used: Count,
}

/// A period to store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PastPeriod {
    /// Its first instant.
    pub start: DateTime<Utc>,
    /// The first instant after it.
    pub end: DateTime<Utc>,
    /// Units counted.
    pub used: Count,
}

/// Why a count is no period of history.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {field} {detail}")]
pub struct Rejected {
    /// The line that it was read from.
    pub line: u64,
    /// The field at fault, as in the file.
    pub field: &'static str,
    /// What is wrong with it.
    pub detail: String,
}

/// What is stored of one meter of one organization.
#[derive(Debug, Clone, Default)]
pub struct StoredUsage {
    /// Periods from other systems, by end.
    pub imported: BTreeMap<DateTime<Utc>, PastPeriod>,
    /// The starts of all other periods.
    pub starts: BTreeSet<DateTime<Utc>>,
    /// The end of the first hour in which the service counted.
    pub counted_from: Option<DateTime<Utc>>,
}

impl StoredUsage {
    /// Adds a count, after all older ones: the period to store, or none if it is stored already.
    pub fn add(
        &mut self,
        usage: &PastUsage,
        schedule: &Schedule,
        now: DateTime<Utc>,
    ) -> Result<Option<PastPeriod>, Rejected> {
        let rejected = |field, detail| Rejected {
            line: usage.line,
            field,
            detail,
        };
        let (end, used) = (usage.end, usage.used);
        if let Some(known) = self.imported.get(&end) {
            if known.used == used {
                return Ok(None);
            }
            let detail = format!(
                "must be {} as before for this organization, metricType and date; got {}",
                known.used.get(),
                used.get()
            );
            return Err(rejected("value", detail));
        }
        if end > now {
            let detail = format!("must not be in the future; got {}", text(end));
            return Err(rejected("date", detail));
        }
        if let Some(counted) = self.counted_from.filter(|counted| *counted < end) {
            let detail = format!(
                "must be {} at the latest, because Tallyman has counted this meter since then; got {}",
                text(counted),
                text(end)
            );
            return Err(rejected("date", detail));
        }
        let before = self.imported.range(..end).next_back().map(|(end, _)| *end);
        let start = usage.start.or(before);
        let start = start.unwrap_or_else(|| one_period_before(end, schedule));
        let start = self.unshared(start, &usage.meter, schedule, now);
        if start >= end {
            let detail = format!("must be before the date {}; got {}", text(end), text(start));
            return Err(rejected("periodStart", detail));
        }
        if let Some(before) = before.filter(|before| start < *before) {
            let detail = format!(
                "must not be before {}, when the period before ended; got {}",
                text(before),
                text(start)
            );
            return Err(rejected("periodStart", detail));
        }
        let after = self.imported.range(end..).next();
        if let Some((_, after)) = after.filter(|(_, after)| after.start < end) {
            let detail = format!(
                "must not be within the imported period from {} to {}; got {}",
                text(after.start),
                text(after.end),
                text(end)
            );
            return Err(rejected("date", detail));
        }
        let period = PastPeriod { start, end, used };
        self.imported.insert(end, period);
        Ok(Some(period))
    }

    /// The start of a period that no counter has: a counter of the same start would continue the count. The next
    /// millisecond where the calendar has a period that begins there and may still be counted in.
    fn unshared(
        &self,
        start: DateTime<Utc>,
        meter: &MeterId,
        schedule: &Schedule,
        now: DateTime<Utc>,
    ) -> DateTime<Utc> {
        let over = |end: DateTime<Utc>| end.checked_add_signed(LATE_MAX).is_none_or(|it| it < now);
        let counts = |period: Period| period.start == start && !period.end.is_some_and(over);
        let periods = [schedule.period(start), schedule.running(meter, now)];
        if self.starts.contains(&start) || periods.into_iter().any(counts) {
            start.checked_add_signed(MILLISECOND).unwrap_or(start)
        } else {
            start
        }
    }
}

/// The start of a period that ended at an instant: by the calendar if it ends one there; otherwise one that is as long as
/// the calendar's.
fn one_period_before(end: DateTime<Utc>, schedule: &Schedule) -> DateTime<Utc> {
    let last = end.checked_sub_signed(MILLISECOND).unwrap_or(end);
    let regular = schedule.period(last);
    if regular.end == Some(end) {
        return regular.start;
    }
    let calendar = schedule.calendar();
    let (length, zone) = (calendar.reset_period(), calendar.time_zone());
    let anchored = Calendar::new(length, None, None, Some(end), zone);
    anchored.map_or(last, |calendar| calendar.window(last).0)
}

fn text(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::AutoSi, true)
}

#[cfg(test)]
mod tests {
    use chrono_tz::Tz;

    use super::*;
    use crate::domain::period::{ResetMode, ResetPeriod};

    const NOW: &str = "2031-03-15T12:00:00Z";

    fn at(text: &str) -> DateTime<Utc> {
        text.parse().unwrap()
    }

    fn usage(end: &str, used: u64) -> PastUsage {
        PastUsage {
            line: 7,
            organization: "org_1".parse().unwrap(),
            meter: MeterId::default(),
            start: None,
            end: at(end),
            used: Count::try_from(used).unwrap(),
        }
    }

    fn schedule(mode: ResetMode, period: ResetPeriod, zone: Tz) -> Schedule {
        Schedule::new(mode, Calendar::plain(period, zone))
    }

    fn monthly() -> Schedule {
        schedule(ResetMode::Lazy, ResetPeriod::Monthly, Tz::UTC)
    }

    fn add(stored: &mut StoredUsage, usage: &PastUsage) -> Result<Option<String>, Rejected> {
        let period = stored.add(usage, &monthly(), at(NOW))?;
        Ok(period.map(|it| text(it.start)))
    }

    #[test]
    fn a_period_begins_where_the_one_before_ended() {
        let mut stored = StoredUsage::default();
        for (end, start) in [
            ("2030-06-01T00:00:00Z", "2030-05-01T00:00:00Z"),
            ("2030-07-03T10:12:00Z", "2030-06-01T00:00:00Z"),
            ("2030-12-24T00:00:00Z", "2030-07-03T10:12:00Z"),
        ] {
            let added = add(&mut stored, &usage(end, 5));
            assert_eq!(added, Ok(Some(start.to_owned())), "{end}");
            assert_eq!(add(&mut stored, &usage(end, 5)), Ok(None), "{end}");
        }
    }

    #[test]
    fn the_first_period_is_as_long_as_one_of_the_calendar() {
        use ResetMode::{Lazy, Manual};
        let berlin = Tz::Europe__Berlin;
        for (mode, period, zone, end, start) in [
            (
                Lazy,
                ResetPeriod::Monthly,
                Tz::UTC,
                "2030-06-03T10:12:00Z",
                "2030-05-03T10:12:00Z",
            ),
            (
                Lazy,
                ResetPeriod::Monthly,
                Tz::UTC,
                "2030-03-31T01:00:00Z",
                "2030-02-28T01:00:00Z",
            ),
            (
                Lazy,
                ResetPeriod::Daily,
                berlin,
                "2030-03-31T22:00:00Z",
                "2030-03-30T23:00:00Z",
            ),
            (
                Lazy,
                ResetPeriod::Hourly,
                Tz::UTC,
                "2030-03-31T22:10:00Z",
                "2030-03-31T21:10:00Z",
            ),
            (
                Manual,
                ResetPeriod::Weekly,
                Tz::UTC,
                "2030-06-03T00:00:00Z",
                "2030-05-27T00:00:00Z",
            ),
            (
                Manual,
                ResetPeriod::Yearly,
                Tz::UTC,
                "2030-06-03T00:00:00Z",
                "2029-06-03T00:00:00Z",
            ),
        ] {
            let schedule = schedule(mode, period, zone);
            assert_eq!(
                text(one_period_before(at(end), &schedule)),
                start,
                "{period} {end}"
            );
        }
    }

    #[test]
    fn a_period_never_has_the_start_of_one_that_may_be_counted() {
        let given = |start: &str, end: &str| PastUsage {
            start: Some(at(start)),
            ..usage(end, 5)
        };
        for (start, end, stored) in [
            // Of the running period, and of one that late events may still reach.
            (
                "2031-03-01T00:00:00Z",
                "2031-03-05T00:00:00Z",
                "2031-03-01T00:00:00.001Z",
            ),
            (
                "2031-02-01T00:00:00Z",
                "2031-03-01T00:00:00Z",
                "2031-02-01T00:00:00.001Z",
            ),
            (
                "2031-01-01T00:00:00Z",
                "2031-02-01T00:00:00Z",
                "2031-01-01T00:00:00Z",
            ),
            (
                "2031-02-01T00:00:00.002Z",
                "2031-03-01T00:00:00Z",
                "2031-02-01T00:00:00.002Z",
            ),
        ] {
            let added = add(&mut StoredUsage::default(), &given(start, end));
            assert_eq!(added, Ok(Some(stored.to_owned())));
        }
        let mut counted = StoredUsage {
            starts: BTreeSet::from([at("2030-01-01T00:00:00Z")]),
            ..StoredUsage::default()
        };
        let added = add(
            &mut counted,
            &given("2030-01-01T00:00:00Z", "2030-01-05T00:00:00Z"),
        );
        assert_eq!(added, Ok(Some("2030-01-01T00:00:00.001Z".to_owned())));
    }

    #[test]
    fn a_count_that_contradicts_what_is_stored_is_rejected_by_field() {
        let imported = PastPeriod {
            start: at("2030-05-01T00:00:00Z"),
            end: at("2030-06-01T00:00:00Z"),
            used: Count::try_from(5).unwrap(),
        };
        let stored = StoredUsage {
            imported: BTreeMap::from([(imported.end, imported)]),
            starts: BTreeSet::new(),
            counted_from: Some(at("2031-03-02T11:00:00Z")),
        };
        let given = |start: &str, end: &str| PastUsage {
            start: Some(at(start)),
            ..usage(end, 5)
        };
        for (usage, error) in [
            (
                usage("2030-06-01T00:00:00Z", 6),
                "value must be 5 as before",
            ),
            (
                usage("2031-03-15T12:00:00.001Z", 5),
                "date must not be in the future",
            ),
            (
                usage("2031-03-02T11:00:01Z", 5),
                "date must be 2031-03-02T11:00:00Z at the latest",
            ),
            (
                usage("2030-05-02T00:00:00Z", 5),
                "date must not be within the imported period",
            ),
            (
                given("2030-08-01T00:00:00Z", "2030-08-01T00:00:00Z"),
                "periodStart must be before the date",
            ),
            (
                given("2030-05-31T00:00:00Z", "2030-08-01T00:00:00Z"),
                "periodStart must not be before 2030-06-01T00:00:00Z",
            ),
        ] {
            let rejected = add(&mut stored.clone(), &usage).unwrap_err().to_string();
            assert!(
                rejected.starts_with(&format!("line 7: {error}")),
                "{rejected}"
            );
        }
        for end in ["2031-03-02T11:00:00Z", "2030-05-01T00:00:00Z"] {
            assert!(add(&mut stored.clone(), &usage(end, 5)).is_ok(), "{end}");
        }
    }
}
