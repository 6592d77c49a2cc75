//! Schedules over any sequence of changes, and the changes one by one.

#![expect(
    clippy::arithmetic_side_effects,
    reason = "test data is small, and an overflow would fail the test"
)]

use chrono::TimeDelta;
use proptest::prelude::*;
use proptest::sample::select;
use serde_json::json;
use strum::VariantArray as _;

use super::*;
use crate::domain::period::ResetPeriod;

const MOMENT: TimeDelta = TimeDelta::milliseconds(1);

/// Whole and fractional offsets, both hemispheres, clock changes at midnight, by half an hour, and none.
const ZONES: [Tz; 6] = [
    Tz::UTC,
    Tz::Europe__Berlin,
    Tz::Asia__Kolkata,
    Tz::Australia__Lord_Howe,
    Tz::America__Havana,
    Tz::Asia__Tokyo,
];

/// A change of the calendar, some hours after the one before.
type Change = (u32, ResetMode, Calendar, Activity);

// --- any sequence of changes ---

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn periods_tile_over_any_sequence_of_changes(changes in changes(), at in instants()) {
        let (schedule, _) = after(&changes);
        let period = schedule.period(at);
        prop_assert!(period.start < period.end.unwrap_or(DateTime::<Utc>::MAX_UTC));
        prop_assert!(period.contains(at), "{period:?} of {at}");
        prop_assert_eq!(schedule.period(period.start), period);
        prop_assert_eq!(schedule.period(period.start - MOMENT).end, Some(period.start));
        if let Some(end) = period.end {
            prop_assert_eq!(schedule.period(end - MOMENT), period);
            prop_assert_eq!(schedule.period(end).start, end);
        }
    }

    #[test]
    fn slots_tile_over_any_sequence_of_changes(changes in changes(), at in instants()) {
        let (schedule, _) = after(&changes);
        let slot = schedule.slot(at);
        prop_assert!(slot.contains(at));
        prop_assert!(slot.end - slot.start <= TimeDelta::hours(1));
        prop_assert_eq!(schedule.slot(slot.start), slot);
        prop_assert_eq!(schedule.slot(slot.end - MOMENT), slot);
        prop_assert_eq!(schedule.slot(slot.end).start, slot.end);
        prop_assert_eq!(schedule.slot(slot.start - MOMENT).end, slot.start);
    }

    #[test]
    fn zones_tile_and_differ_from_their_neighbours(changes in changes()) {
        let zones = after(&changes).0.zones();
        prop_assert_eq!(zones.first().map(|it| it.since), Some(DateTime::<Utc>::MIN_UTC));
        prop_assert_eq!(zones.last().map(|it| it.until), Some(DateTime::<Utc>::MAX_UTC));
        for pair in zones.windows(2) {
            prop_assert_eq!(pair[0].until, pair[1].since);
            prop_assert_ne!(pair[0].zone, pair[1].zone);
        }
    }

    #[test]
    fn no_change_moves_an_ended_period_with_usage(
        changes in changes(),
        next in change(),
        at in instants(),
    ) {
        let (before, now) = after(&changes);
        let now = now + TimeDelta::hours(next.0.into());
        let changed = apply(&before, now, next.clone());
        let counted_until = match next.3 {
            Activity::Never => return Ok(()),
            Activity::LastPeriod(start) => before.period(start).end.unwrap_or(now).min(now),
            Activity::Running => now,
        };
        let period = before.period(at);
        if period.end.is_some_and(|end| end <= counted_until) {
            prop_assert_eq!(changed.period(at), period);
        }
        if counted_until > before.period(now).start {
            prop_assert_eq!(changed.period(now).start, before.period(now).start);
        }
        // Past slots are stored and must not move.
        if at < before.slot(now).start {
            prop_assert_eq!(changed.slot(at).start, before.slot(at).start);
        }
    }

    #[test]
    fn a_running_period_ends_at_the_new_calendars_next_boundary(
        changes in changes(),
        next in change(),
        later in instants(),
    ) {
        let (before, now) = after(&changes);
        let (_, mode, calendar, activity) = next;
        // Equal settings change nothing, not even the end of the running period.
        prop_assume!((before.mode(), before.calendar()) != (mode, &calendar));
        let changed = before.changed(mode, calendar.clone(), now, activity);
        let running = changed.period(now);
        let boundary = calendar.window(now).1;
        prop_assert_eq!(running.end, (mode != ResetMode::Manual).then_some(boundary));
        let later = changed.period(later.max(now));
        prop_assert!(later == running || Some(later.start) >= running.end);
    }

    #[test]
    fn segments_out_of_reach_of_late_events_can_be_dropped(changes in changes(), at in instants(), reach in instants()) {
        let (schedule, _) = after(&changes);
        let short = schedule.clone().since(reach);
        prop_assert!(short.past.len() <= schedule.past.len());
        let at = at.max(reach);
        prop_assert_eq!(short.period(at), schedule.period(at));
        prop_assert_eq!(short.slot(at), schedule.slot(at));
    }

    #[test]
    fn the_periods_of_a_meter_tile_from_its_reset_on_and_contain_their_events(
        changes in changes(),
        reset in instants(),
        at in instants(),
    ) {
        let (schedule, _) = after(&changes);
        let api = MeterId::default();
        let cut = resetting(&schedule, &api, reset);
        let regular = schedule.period(reset);
        let begun = Period { start: reset, ..regular };
        prop_assert_eq!(cut.running(&api, reset), begun, "a reset does not move the end");
        let period = cut.running(&api, at);
        prop_assert_eq!(period, if regular.contains(at) { begun } else { schedule.period(at) });
        prop_assert_eq!(cut.running(&"tokens".parse().expect("a meter"), at), schedule.period(at));
    }

    #[test]
    fn a_change_after_a_reset_keeps_the_start(changes in changes(), next in change(), hours in 1..2000_i64) {
        let (before, now) = after(&changes);
        let reset = now + TimeDelta::hours(hours);
        let api = MeterId::default();
        let (_, mode, calendar, _) = next;
        let changed = resetting(&before, &api, reset).changed(mode, calendar, reset, Activity::Running);
        prop_assert_eq!(changed.running(&api, reset).start, reset);
    }

    #[test]
    fn a_schedule_round_trips_through_json(changes in changes()) {
        let (schedule, _) = after(&changes);
        let json = serde_json::to_string(&schedule).expect("a schedule is JSON");
        let read: Schedule = serde_json::from_str(&json).expect("its own JSON is valid");
        prop_assert_eq!(read, schedule);
    }
}

// --- changes one by one ---

#[test]
fn a_late_event_belongs_to_the_period_of_the_calendar_effective_then() {
    let hourly = plain(ResetPeriod::Hourly);
    let now = utc("2025-06-04T17:05:00Z");
    let event = utc("2025-06-04T15:30:00Z");
    let of_hour = period("2025-06-04T15:00:00Z", "2025-06-04T16:00:00Z");
    for (mode, end) in [
        (ResetMode::Lazy, Some(utc("2025-06-05T00:00:00Z"))),
        (ResetMode::Manual, None),
    ] {
        let daily = Calendar::plain(ResetPeriod::Daily, Tz::UTC);
        let changed = hourly.changed(mode, daily, now, Activity::Running);
        assert_eq!(changed.period(event), of_hour);
        let start = utc("2025-06-04T17:00:00Z");
        assert_eq!(changed.period(now), Period { start, end });
    }
}

#[test]
fn a_period_without_usage_follows_a_new_calendar_at_once() {
    let monthly = plain(ResetPeriod::Monthly);
    let now = utc("2025-11-29T12:00:00Z");
    let change = |to, activity| {
        let calendar = Calendar::plain(to, Tz::UTC);
        monthly.changed(ResetMode::Lazy, calendar, now, activity)
    };
    let october = Activity::LastPeriod(utc("2025-10-01T00:00:00Z"));
    let today = period("2025-11-29T00:00:00Z", "2025-11-30T00:00:00Z");
    for activity in [Activity::Never, october] {
        assert_eq!(change(ResetPeriod::Daily, activity).period(now), today);
    }
    // The usage of October ended there, so no year may begin before.
    let rest_of_year = period("2025-11-01T00:00:00Z", "2026-01-01T00:00:00Z");
    assert_eq!(
        change(ResetPeriod::Yearly, october).period(now),
        rest_of_year
    );
    let year = period("2025-01-01T00:00:00Z", "2026-01-01T00:00:00Z");
    let never = change(ResetPeriod::Yearly, Activity::Never);
    assert_eq!(never.period(now), year);
    assert_eq!(never, plain(ResetPeriod::Yearly));
}

#[test]
fn a_reverted_change_leaves_no_segment() {
    let before = plain(ResetPeriod::Monthly);
    let now = utc("2025-06-04T12:00:00Z");
    let to = |schedule: &Schedule, period| {
        let calendar = Calendar::plain(period, Tz::UTC);
        schedule.changed(ResetMode::Lazy, calendar, now, Activity::Running)
    };
    let daily = to(&before, ResetPeriod::Daily);
    assert_eq!(
        daily.period(now),
        period("2025-06-01T00:00:00Z", "2025-06-05T00:00:00Z")
    );
    assert_eq!(to(&daily, ResetPeriod::Monthly), before);
}

#[test]
fn a_schedule_changed_in_a_loop_stays_bounded() {
    let mut schedule = plain(ResetPeriod::Hourly);
    let mut now = utc("2025-06-04T12:00:00Z");
    for (zone, _) in [Tz::UTC, Tz::Asia__Kolkata]
        .iter()
        .cycle()
        .zip(0..SEGMENTS_MAX + 50)
    {
        now += TimeDelta::minutes(1);
        let calendar = Calendar::plain(ResetPeriod::Hourly, *zone);
        schedule = schedule.changed(ResetMode::Lazy, calendar, now, Activity::Running);
    }
    assert!(
        schedule.past.len() < SEGMENTS_MAX,
        "{}",
        schedule.past.len()
    );
    assert!(schedule.period(now).contains(now));
}

#[test]
fn a_manual_period_keeps_its_start_and_has_no_end_until_the_mode_changes() {
    let monthly = Calendar::plain(ResetPeriod::Monthly, Tz::UTC);
    let now = utc("2025-06-04T12:00:00Z");
    let lazy = Schedule::new(ResetMode::Lazy, monthly.clone());
    let manual = lazy.changed(ResetMode::Manual, monthly.clone(), now, Activity::Running);
    let endless = Period {
        start: utc("2025-06-01T00:00:00Z"),
        end: None,
    };
    assert_eq!(manual.period(now), endless);
    assert_eq!(manual.period(utc("2035-01-01T00:00:00Z")), endless);
    assert_eq!(
        manual.period(utc("2025-05-31T00:00:00Z")),
        period("2025-05-01T00:00:00Z", "2025-06-01T00:00:00Z")
    );
    let september = utc("2025-09-10T00:00:00Z");
    let again = manual.changed(ResetMode::Lazy, monthly, september, Activity::Running);
    assert_eq!(
        again.period(september),
        period("2025-06-01T00:00:00Z", "2025-10-01T00:00:00Z")
    );
}

#[test]
fn a_manual_schedule_that_was_never_changed_has_a_single_period() {
    let daily = Calendar::plain(ResetPeriod::Daily, Tz::UTC);
    let schedule = Schedule::new(ResetMode::Manual, daily);
    let always = Period {
        start: DateTime::UNIX_EPOCH,
        end: None,
    };
    assert_eq!(schedule.period(utc("2025-06-04T12:00:00Z")), always);
    assert_eq!(schedule.period(DateTime::UNIX_EPOCH), always);
}

#[test]
fn equal_settings_change_nothing() {
    let monthly = plain(ResetPeriod::Monthly);
    let weekly = Calendar::plain(ResetPeriod::Weekly, Tz::UTC);
    let now = utc("2025-06-10T09:30:00Z");
    let weekly_now = monthly.changed(ResetMode::Lazy, weekly.clone(), now, Activity::Running);
    let later = utc("2025-07-05T00:00:00Z");
    let same = weekly_now.changed(ResetMode::Lazy, weekly, later, Activity::Running);
    assert_eq!(same, weekly_now);
}

#[test]
fn a_change_by_an_instance_with_a_slow_clock_is_applied_after_the_previous_one() {
    let monthly = plain(ResetPeriod::Monthly);
    let change = |schedule: &Schedule, to, at: &str| {
        let calendar = Calendar::plain(to, Tz::UTC);
        schedule.changed(ResetMode::Lazy, calendar, utc(at), Activity::Running)
    };
    let daily = change(&monthly, ResetPeriod::Daily, "2025-06-30T23:59:59Z");
    let weekly = change(&daily, ResetPeriod::Weekly, "2025-06-30T23:59:58Z");
    let takeover = weekly.present.takeover.expect("a change");
    assert_eq!(takeover.at, utc("2025-06-30T23:59:59Z"));
}

#[test]
fn an_event_before_a_reset_counts_in_the_running_period_unless_its_own_ended_without_reset() {
    let api = MeterId::default();
    let monthly = plain(ResetPeriod::Monthly);
    let schedule = resetting(&monthly, &api, utc("2025-06-10T09:30:00Z"));
    let now = utc("2025-06-11T00:00:00Z");
    let running = period("2025-06-10T09:30:00Z", "2025-07-01T00:00:00Z");
    let closed = utc("2025-06-09T00:00:00Z");
    assert_eq!(schedule.period_of(&api, closed, now), running);
    let over = utc("2025-05-31T23:00:00Z");
    let may = period("2025-05-01T00:00:00Z", "2025-06-01T00:00:00Z");
    assert_eq!(schedule.period_of(&api, over, now), may);
    let next = utc("2025-07-02T00:00:00Z");
    let july = period("2025-07-01T00:00:00Z", "2025-08-01T00:00:00Z");
    assert_eq!(schedule.period_of(&api, closed, next), july);
}

#[test]
fn periods_come_from_the_calendar_and_not_from_the_first_call() {
    let schedule = plain(ResetPeriod::Monthly);
    let february = schedule.period(utc("2025-02-01T00:00:00Z"));
    // The first call after half a year without calls is in the period of its own month, and so is the next.
    assert_eq!(
        schedule.period(utc("2025-08-31T23:59:59.999Z")),
        period("2025-08-01T00:00:00Z", "2025-09-01T00:00:00Z")
    );
    assert_eq!(
        schedule.period(utc("2025-09-01T00:00:00Z")),
        period("2025-09-01T00:00:00Z", "2025-10-01T00:00:00Z")
    );
    assert_eq!(schedule.period(utc("2025-02-28T23:00:00Z")), february);
}

#[test]
fn lazy_and_scheduled_define_the_same_periods() {
    let weekly = Calendar::plain(ResetPeriod::Weekly, Tz::Europe__Berlin);
    let lazy = Schedule::new(ResetMode::Lazy, weekly.clone());
    let scheduled = Schedule::new(ResetMode::Scheduled, weekly);
    let at = utc("2025-06-04T12:00:00Z");
    assert_eq!(lazy.period(at), scheduled.period(at));
}

#[test]
fn every_instant_has_a_period() {
    let now = utc("2025-06-04T12:00:00Z");
    let weekly = Calendar::plain(ResetPeriod::Weekly, Tz::Asia__Kolkata);
    let schedule =
        plain(ResetPeriod::Monthly).changed(ResetMode::Lazy, weekly, now, Activity::Running);
    for at in [DateTime::<Utc>::MIN_UTC, DateTime::<Utc>::MAX_UTC - MOMENT] {
        assert!(schedule.period(at).contains(at));
        assert!(schedule.slot(at).start <= at);
    }
}

#[test]
fn json_is_in_camel_case_and_omits_absent_fields() {
    let monthly = Calendar::plain(ResetPeriod::Monthly, Tz::Europe__Berlin);
    let schedule = plain(ResetPeriod::Daily).changed(
        ResetMode::Manual,
        monthly,
        utc("2025-06-10T09:30:00.500Z"),
        Activity::Running,
    );
    assert_eq!(
        json!(schedule),
        json!({
            "mode": "manual",
            "calendar": {"resetPeriod": "monthly", "timeZone": "Europe/Berlin"},
            "takeover": {"at": "2025-06-10T09:30:00.500Z", "from": "2025-06-10T00:00:00Z"},
            "past": [{"mode": "lazy", "calendar": {"resetPeriod": "daily", "timeZone": "UTC"}}],
        })
    );
}

// --- values and helpers ---

/// Three years around the changes.
fn instants() -> impl Strategy<Value = DateTime<Utc>> + Clone {
    let range = utc("2024-06-01T00:00:00Z").timestamp_millis()
        ..utc("2027-06-01T00:00:00Z").timestamp_millis();
    range.prop_map(|millis| DateTime::from_timestamp_millis(millis).expect("an instant"))
}

fn calendars() -> impl Strategy<Value = Calendar> + Clone {
    let anchor = prop_oneof![
        3 => Just(None),
        1 => instants().prop_map(Some)
    ];
    (select(ResetPeriod::VARIANTS), anchor, select(&ZONES)).prop_map(|(period, anchor, zone)| {
        Calendar::new(period, None, None, anchor, zone).expect("the settings are valid")
    })
}

fn activities() -> impl Strategy<Value = Activity> + Clone {
    prop_oneof![
        4 => Just(Activity::Running),
        2 => instants().prop_map(Activity::LastPeriod),
        1 => Just(Activity::Never),
    ]
}

fn change() -> impl Strategy<Value = Change> + Clone {
    (
        0..2000_u32,
        select(ResetMode::VARIANTS),
        calendars(),
        activities(),
    )
}

fn changes() -> impl Strategy<Value = Vec<Change>> {
    proptest::collection::vec(change(), 1..8)
}

/// The schedule after these changes, the first of which set its calendar, and the instant of the last.
fn after(changes: &[Change]) -> (Schedule, DateTime<Utc>) {
    let mut now = utc("2025-01-01T00:00:00Z");
    let mut schedule: Option<Schedule> = None;
    for change in changes {
        now += TimeDelta::hours(change.0.into());
        schedule = Some(match schedule {
            None => Schedule::new(change.1, change.2.clone()),
            Some(before) => apply(&before, now, change.clone()),
        });
    }
    (schedule.expect("at least one change"), now)
}

fn apply(before: &Schedule, now: DateTime<Utc>, change: Change) -> Schedule {
    let (_, mode, calendar, activity) = change;
    before.changed(mode, calendar, now, activity)
}

fn resetting(schedule: &Schedule, meter: &MeterId, at: DateTime<Utc>) -> Schedule {
    let reset = Reset {
        closed_start: schedule.period(at).start,
        at,
    };
    Schedule {
        resets: BTreeMap::from([(meter.clone(), reset)]),
        ..schedule.clone()
    }
}

fn plain(period: ResetPeriod) -> Schedule {
    Schedule::new(ResetMode::Lazy, Calendar::plain(period, Tz::UTC))
}

fn period(start: &str, end: &str) -> Period {
    Period {
        start: utc(start),
        end: Some(utc(end)),
    }
}

fn utc(text: &str) -> DateTime<Utc> {
    text.parse().expect("an RFC 3339 instant")
}
