//! Time slots: the rows of `usage_hourly`.
//!
//! A slot is an hour of a zone's wall clock, cut where a day of any zone begins within it. So slots add up to the hours and
//! days of their own zone, and to the days of every other zone. Most zones are whole hours off UTC; the days of the others
//! begin at [`DAY_STARTS`]. A day has 37 slots in most zones; quarters of an hour would also add up, but be 96.

use chrono::{DateTime, Timelike, Utc};
use chrono_tz::Tz;

use super::wall_clock::hour;

/// The minutes of the UTC day, other than full hours, at which a local day begins in some zone.
const DAY_STARTS: [u32; 13] = [
    2 * 60 + 30,
    3 * 60 + 30,
    9 * 60 + 30,
    10 * 60 + 15,
    11 * 60 + 15,
    13 * 60 + 30,
    14 * 60 + 30,
    15 * 60 + 15,
    17 * 60 + 30,
    18 * 60 + 15,
    18 * 60 + 30,
    19 * 60 + 30,
    20 * 60 + 30,
];

/// A half-open interval of at most an hour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// The first instant, which also identifies the slot.
    pub start: DateTime<Utc>,
    /// The first instant after it.
    pub end: DateTime<Utc>,
}

impl Slot {
    /// Whether `at` is recorded in this slot.
    pub fn contains(&self, at: DateTime<Utc>) -> bool {
        self.start <= at && at < self.end
    }
}

/// The slot of a zone that contains `at`.
pub fn of(zone: Tz, at: DateTime<Utc>) -> Slot {
    let (start, end) = hour(zone, at);
    let (utc_start, utc_end) = hour(Tz::UTC, at);
    let mut slot = Slot {
        start: start.max(utc_start),
        end: end.min(utc_end),
    };
    for minutes in DAY_STARTS {
        let (hour, minute) = (minutes / 60, minutes % 60);
        if hour != utc_start.hour() {
            continue;
        }
        // Cannot fail: the minute is below 60.
        let Some(cut) = utc_start.with_minute(minute) else {
            continue;
        };
        if cut <= at {
            slot.start = slot.start.max(cut);
        } else {
            slot.end = slot.end.min(cut);
        }
    }
    slot
}

#[cfg(test)]
#[expect(
    clippy::arithmetic_side_effects,
    reason = "test data is small, and an overflow would fail the test"
)]
mod tests {
    use std::collections::BTreeSet;

    use chrono::TimeDelta;
    use proptest::prelude::*;
    use proptest::sample::select;

    use super::*;
    use crate::domain::calendar::Calendar;
    use crate::domain::period::ResetPeriod;

    fn utc(text: &str) -> DateTime<Utc> {
        text.parse().expect("an instant")
    }

    fn is_boundary(zone: Tz, at: DateTime<Utc>) -> bool {
        of(zone, at).start == at
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn slots_tile_and_last_an_hour_at_most(
            zone in select(chrono_tz::TZ_VARIANTS.to_vec()),
            at in (1_577_836_800_000_i64..2_208_988_800_000)
                .prop_map(|millis| DateTime::from_timestamp_millis(millis).expect("an instant")),
        ) {
            let slot = of(zone, at);
            let moment = TimeDelta::milliseconds(1);
            prop_assert!(slot.contains(at));
            prop_assert!(slot.end - slot.start <= TimeDelta::hours(1));
            prop_assert_eq!(of(zone, slot.start), slot);
            prop_assert_eq!(of(zone, slot.end - moment), slot);
            prop_assert_eq!(of(zone, slot.end).start, slot.end);
        }
    }

    /// Fails when a new time zone database has a zone with a new offset, or an entry of [`DAY_STARTS`] is unused.
    #[test]
    fn every_day_of_every_zone_begins_with_a_slot_of_every_zone() {
        let mut needed = BTreeSet::new();
        for zone in chrono_tz::TZ_VARIANTS {
            let days = Calendar::plain(ResetPeriod::Daily, zone);
            let mut at = utc("2024-01-01T00:00:00Z");
            while at < utc("2038-01-01T00:00:00Z") {
                let (day, next) = days.window(at);
                let minutes = day.hour() * 60 + day.minute();
                assert_eq!(day.second(), 0, "{zone} {day}");
                if minutes % 60 != 0 {
                    needed.insert(minutes);
                }
                for other in [Tz::UTC, Tz::Asia__Kathmandu, zone] {
                    assert!(
                        is_boundary(other, day),
                        "{zone} begins {day} in a slot of {other}"
                    );
                }
                // Clocks change far less often than every other week.
                at = next + TimeDelta::days(13);
            }
        }
        assert_eq!(needed, BTreeSet::from(DAY_STARTS));
    }

    #[test]
    fn a_day_of_utc_has_37_slots() {
        let (mut at, mut count) = (utc("2031-03-15T00:00:00Z"), 0);
        while at < utc("2031-03-16T00:00:00Z") {
            (at, count) = (of(Tz::UTC, at).end, count + 1);
        }
        assert_eq!(count, 37);
    }

    #[test]
    fn an_hour_is_cut_where_a_day_of_another_zone_begins() {
        let slot = |start: &str, end: &str| Slot {
            start: utc(start),
            end: utc(end),
        };
        let of_utc = |at: &str| of(Tz::UTC, utc(at));
        let at = "2031-03-15T18:40:00Z";
        assert_eq!(
            of_utc(at),
            slot("2031-03-15T18:30:00Z", "2031-03-15T19:00:00Z")
        );
        let at = "2031-03-15T18:20:00Z";
        assert_eq!(
            of_utc(at),
            slot("2031-03-15T18:15:00Z", "2031-03-15T18:30:00Z")
        );
        let at = "2031-03-15T16:40:00Z";
        assert_eq!(
            of_utc(at),
            slot("2031-03-15T16:00:00Z", "2031-03-15T17:00:00Z")
        );
        let kolkata = of(Tz::Asia__Kolkata, utc("2031-03-15T16:40:00Z"));
        assert_eq!(
            kolkata,
            slot("2031-03-15T16:30:00Z", "2031-03-15T17:00:00Z")
        );
    }
}
