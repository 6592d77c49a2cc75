//! Calendars and schedules: every zone, every setting and every instant.

use chrono::{DateTime, TimeDelta, Utc};
use chrono_tz::TZ_VARIANTS;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;
use strum::VariantArray as _;
use tallyman::domain::calendar::Calendar;
use tallyman::domain::period::{ResetMode, ResetPeriod};
use tallyman::domain::schedule::{Activity, Schedule};

use super::fuzz;

const MILLISECOND: TimeDelta = TimeDelta::milliseconds(1);

/// All that chrono represents, most of them in the years that have calendars.
fn instants() -> impl Strategy<Value = DateTime<Utc>> + Clone {
    let all =
        DateTime::<Utc>::MIN_UTC.timestamp_millis()..=DateTime::<Utc>::MAX_UTC.timestamp_millis();
    let (year_1, year_10000) = (-62_135_596_800_000_i64, 253_402_300_800_000);
    let day = 86_400_000;
    prop_oneof![
        8 => 1_577_836_800_000..2_208_988_800_000_i64,
        4 => year_1..year_10000,
        2 => all,
        1 => (year_1 - 2 * day)..(year_1 + 400 * day),
        1 => (year_10000 - 400 * day)..(year_10000 + 2 * day),
    ]
    .prop_map(|ms| DateTime::from_timestamp_millis(ms).expect("chrono represents it"))
}

/// Any settings, valid or not.
fn settings() -> impl Strategy<Value = Settings> + Clone {
    (
        select(ResetPeriod::VARIANTS),
        option::of(prop_oneof![4 => 0..=31_u8, 1 => any::<u8>()]),
        option::of(prop_oneof![4 => 1..=12_u8, 1 => any::<u8>()]),
        option::of(instants()),
        select(&TZ_VARIANTS[..]),
    )
}

type Settings = (
    ResetPeriod,
    Option<u8>,
    Option<u8>,
    Option<DateTime<Utc>>,
    chrono_tz::Tz,
);

/// The calendar of these settings, without those that do not fit the others.
fn calendar((period, day, month, anchor, zone): Settings) -> Calendar {
    // Refused or not, it must not panic.
    let _ = Calendar::new(period, day, month, anchor, zone);
    [
        (day, month, anchor),
        (None, None, anchor),
        (day, month, None),
        (day, None, None),
    ]
    .into_iter()
    .find_map(|(day, month, anchor)| Calendar::new(period, day, month, anchor, zone).ok())
    .unwrap_or_else(|| Calendar::plain(period, zone))
}

#[test]
fn windows_contain_their_instants_and_touch_each_other() {
    fuzz(2000, &(settings(), instants()), |(settings, at)| {
        let calendar = calendar(settings);
        let (start, end) = calendar.window(at);
        prop_assert!(start <= at, "{start} > {at}");
        prop_assert!(at < end || end == DateTime::<Utc>::MAX_UTC, "{at} >= {end}");
        prop_assert_eq!(calendar.window(start), (start, end));
        if let Some(before) = start.checked_sub_signed(MILLISECOND) {
            prop_assert_eq!(calendar.window(before).1, start);
        }
        if end < DateTime::<Utc>::MAX_UTC {
            prop_assert_eq!(calendar.window(end).0, end);
            prop_assert_eq!(calendar.window(end - MILLISECOND), (start, end));
        }
        let json = serde_json::to_value(&calendar).unwrap();
        prop_assert_eq!(serde_json::from_value::<Calendar>(json).unwrap(), calendar);
        Ok(())
    });
}

/// A change: mode, calendar, milliseconds since the one before, and usage until then.
fn changes() -> impl Strategy<Value = Vec<(ResetMode, Settings, i64, Activity)>> {
    let usage = prop_oneof![
        4 => Just(Activity::Running),
        2 => instants().prop_map(Activity::LastPeriod),
        1 => Just(Activity::Never),
    ];
    let pause = prop_oneof![0..90_000_000_000_i64, 0..10_000_i64];
    vec(
        (select(ResetMode::VARIANTS), settings(), pause, usage),
        1..8,
    )
}

#[test]
fn periods_and_slots_tile_over_any_sequence_of_changes() {
    let inputs = (changes(), instants(), instants());
    fuzz(1000, &inputs, |(changes, at, first)| {
        let mut now = first;
        let mut schedule: Option<Schedule> = None;
        for (mode, settings, pause, activity) in changes {
            let Some(later) = now.checked_add_signed(TimeDelta::milliseconds(pause)) else {
                break;
            };
            now = later;
            schedule = Some(match schedule {
                None => Schedule::new(mode, calendar(settings)),
                Some(before) => before.changed(mode, calendar(settings), now, activity),
            });
        }
        let Some(schedule) = schedule else {
            return Ok(());
        };
        for at in [at, now] {
            let period = schedule.period(at);
            prop_assert!(
                period.contains(at) || at == DateTime::<Utc>::MAX_UTC,
                "{period:?} of {at}"
            );
            prop_assert_eq!(schedule.period(period.start), period);
            if let Some(before) = period.start.checked_sub_signed(MILLISECOND) {
                prop_assert_eq!(schedule.period(before).end, Some(period.start));
            }
            if let Some(end) = period.end.filter(|end| *end < DateTime::<Utc>::MAX_UTC) {
                prop_assert_eq!(schedule.period(end).start, end);
            }
            let slot = schedule.slot(at);
            prop_assert!(slot.start <= at && at < slot.end || slot.end == DateTime::<Utc>::MAX_UTC);
            prop_assert_eq!(schedule.slot(slot.start), slot);
            if let Some(before) = slot.start.checked_sub_signed(MILLISECOND) {
                prop_assert_eq!(schedule.slot(before).end, slot.start);
            }
        }
        let json = serde_json::to_value(&schedule).unwrap();
        prop_assert_eq!(serde_json::from_value::<Schedule>(json).unwrap(), schedule);
        Ok(())
    });
}
