//! History: cursors, windows by zone, filled gaps, open and final rows.

#![expect(
    clippy::arithmetic_side_effects,
    reason = "test data is small, and an overflow would fail the test"
)]

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
    // Few values, so that some positions are equal.
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
    fn cursors_round_trip(
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
    fn parsing_any_text_does_not_panic(text in ".*", parts in "[0-9a-f:-]{0,60}") {
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
    fn adjacent_ranges_neither_share_nor_lose_a_day(
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
    fn filling_gaps_keeps_each_position_once_and_prefers_found_rows(
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
fn hours_and_days_are_cut_where_the_zone_changed() {
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
fn a_row_is_open_until_its_end_and_final_after_the_late_window() {
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
