//! Calendars: windows tile in every zone, and each kind of setting.

#![expect(
    clippy::arithmetic_side_effects,
    reason = "test data is small, and an overflow would fail the test"
)]

use std::ops::Range;

use chrono::TimeDelta;
use proptest::prelude::*;
use proptest::sample::select;
use serde_json::json;
use strum::VariantArray as _;

use super::*;
use crate::domain::wall_clock::{clock_change, hour, utc_offset};

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
    from_millis(1_577_836_800_000)..from_millis(2_208_988_800_000);

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
    fn every_instant_has_a_window(
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
        for &reset_period in ResetPeriod::VARIANTS {
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

/// Walks the days around every clock change of every zone of chrono-tz, beyond those in [`ZONES`].
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
                let change = from_millis(clock_change(zone, millis(at), millis(next)));
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
fn a_skipped_midnight_moves_to_the_first_instant_after_the_gap() {
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
fn of_a_repeated_midnight_the_earlier_counts() {
    // In Havana 01:00 on 2025-11-02 becomes 00:00.
    let havana = Calendar::plain(ResetPeriod::Daily, Tz::America__Havana);
    let day = window("2025-11-02T04:00:00Z", "2025-11-03T05:00:00Z");
    assert_eq!(havana.window(utc("2025-11-02T04:30:00Z")), day);
    assert_eq!(havana.window(utc("2025-11-02T05:30:00Z")), day);
}

#[test]
fn clocks_going_back_do_not_reopen_the_day_before() {
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
fn a_week_begins_on_monday_by_default() {
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
fn a_year_begins_on_the_first_of_january_by_default() {
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
fn the_calendar_covers_the_years_of_rfc_3339() {
    assert_eq!(EARLIEST, utc("0001-01-01T00:00:00Z"));
    assert_eq!(LATEST - MILLISECOND, utc("9999-12-31T23:59:59.999Z"));
    for zone in ZONES {
        for &period in ResetPeriod::VARIANTS {
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
    for &period in ResetPeriod::VARIANTS {
        assert_eq!(
            Calendar::new(period, None, None, None, Tz::Asia__Kolkata),
            Ok(Calendar::plain(period, Tz::Asia__Kolkata))
        );
    }
}

#[test]
fn invalid_settings_are_rejected_by_name() {
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
        let error = Calendar::new(period, day, month, anchor, Tz::UTC)
            .expect_err("the settings are invalid");
        assert_eq!(error.field, field, "{error}");
    }
}

#[test]
fn an_error_says_what_would_be_valid() {
    let error = Calendar::new(ResetPeriod::Weekly, Some(7), None, None, Tz::UTC)
        .expect_err("a week has no eighth day");
    assert_eq!(
        error.to_string(),
        "resetDay must be 0 to 6 when resetPeriod is weekly, not 7"
    );
}

#[test]
fn time_zones_parse_by_iana_name() {
    assert_eq!(
        parse_time_zone("America/New_York"),
        Ok(Tz::America__New_York)
    );
    for unknown in ["", "Berlin", "europe/berlin", "+02:00", "Mars/Olympus_Mons"] {
        let error = parse_time_zone(unknown).expect_err("the name is unknown");
        assert_eq!(error.field, "timeZone");
    }
}

#[test]
fn json_is_validated() {
    let json = json!({"resetPeriod": "weekly", "resetDay": 7, "timeZone": "UTC"});
    let error = serde_json::from_value::<Calendar>(json).expect_err("the day is invalid");
    assert!(error.to_string().starts_with("resetDay must be 0 to 6"));
}

// --- values and helpers ---

fn instants() -> impl Strategy<Value = DateTime<Utc>> + Clone {
    instants_in(TWENTY_YEARS)
}

/// All that chrono represents, with emphasis on the bounds of the calendar.
fn all_instants() -> impl Strategy<Value = DateTime<Utc>> {
    let last = DateTime::<Utc>::MAX_UTC - MILLISECOND;
    prop_oneof![
        instants_in(DateTime::<Utc>::MIN_UTC..last),
        instants_in(EARLIEST..LATEST),
        instants_in(DateTime::UNIX_EPOCH - TimeDelta::days(1)..from_millis(HOUR_MS)),
        instants_in(EARLIEST - TimeDelta::days(2)..EARLIEST + TimeDelta::days(400)),
        instants_in(LATEST - TimeDelta::days(400)..LATEST + TimeDelta::days(2)),
        Just(DateTime::<Utc>::MIN_UTC),
        Just(last),
    ]
}

fn instants_in(range: Range<DateTime<Utc>>) -> impl Strategy<Value = DateTime<Utc>> + Clone {
    (range.start.timestamp_millis()..range.end.timestamp_millis()).prop_map(from_millis)
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
    (select(ResetPeriod::VARIANTS), begins, select(&ZONES)).prop_map(
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
fn walk(calendar: &Calendar, span: Range<DateTime<Utc>>) -> Vec<(DateTime<Utc>, DateTime<Utc>)> {
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
