//! Periods over the API: a count restarts exactly at the boundary of the calendar.

use chrono::Duration;
use serde_json::{Value, json};
use tallyman::clock::Clock;

use crate::support::{Instance, World, at_once, instant};

/// Counts a unit; returns the start and the end of its period.
async fn period(service: &Instance, organization: &str) -> (String, String) {
    let answer = service
        .http
        .post("/v1/track", json!({"organizationId": organization}))
        .await;
    let text = |field: &str| answer.body[field].as_str().unwrap_or_default().to_owned();
    (text("periodStart"), text("resetDate"))
}

#[tokio::test]
async fn a_count_starts_again_exactly_at_the_boundary() {
    let world = World::new().await;
    let service = world.instance().await;
    service.count("org_1", "api", 1000).await;
    world.move_to("2031-03-31T23:59:59.999Z");
    assert_eq!(service.try_consume("org_1", "api", 1).await.status, 429);
    assert_eq!(service.current("org_1", "api").await, 1000);
    world.clock.advance(Duration::milliseconds(1));
    assert_eq!(service.current("org_1", "api").await, 0);
    let answer = service.try_consume("org_1", "api", 1).await;
    assert_eq!(
        (answer.status.as_u16(), &answer.body["current"]),
        (200, &json!(1))
    );
    assert_eq!(answer.body["periodStart"], "2031-04-01T00:00:00Z");
    assert_eq!(answer.body["resetDate"], "2031-05-01T00:00:00Z");
}

#[tokio::test]
async fn every_reset_period_has_its_own_boundaries() {
    let world = World::new().await;
    let service = world.instance().await;
    let day = |date: &str| format!("{date}T00:00:00Z");
    let cases = [
        (
            json!({"resetPeriod": "hourly"}),
            "2032-05-19T12:00:00Z".to_owned(),
            "2032-05-19T13:00:00Z".to_owned(),
        ),
        (
            json!({"resetPeriod": "daily"}),
            day("2032-05-19"),
            day("2032-05-20"),
        ),
        (
            json!({"resetPeriod": "weekly"}),
            day("2032-05-17"),
            day("2032-05-24"),
        ),
        (
            json!({"resetPeriod": "weekly", "resetDay": 0}),
            day("2032-05-16"),
            day("2032-05-23"),
        ),
        (
            json!({"resetPeriod": "monthly"}),
            day("2032-05-01"),
            day("2032-06-01"),
        ),
        (
            json!({"resetPeriod": "monthly", "resetDay": 19}),
            day("2032-05-19"),
            day("2032-06-19"),
        ),
        (
            json!({"resetPeriod": "monthly", "resetDay": 31}),
            day("2032-04-30"),
            day("2032-05-31"),
        ),
        (
            json!({"resetPeriod": "yearly"}),
            day("2032-01-01"),
            day("2033-01-01"),
        ),
        (
            json!({"resetPeriod": "yearly", "resetMonth": 7, "resetDay": 4}),
            day("2031-07-04"),
            day("2032-07-04"),
        ),
    ];
    for (number, (settings, ..)) in cases.iter().enumerate() {
        service
            .settings(&format!("org_{number}"), settings.clone())
            .await;
    }
    // Long after the periods in which the settings were made.
    world.move_to("2032-05-19T12:34:56.789Z");
    for (number, (settings, start, end)) in cases.into_iter().enumerate() {
        let running = period(&service, &format!("org_{number}")).await;
        assert_eq!(running, (start, end), "{settings}");
    }
}

#[tokio::test]
async fn periods_anchored_on_the_31st_end_with_short_months_and_come_back() {
    let world = World::new().await;
    let service = world.instance().await;
    service.settings("org_1", json!({"resetDay": 31})).await;
    let mut ends = Vec::new();
    for _ in 0..13 {
        let (_, end) = period(&service, "org_1").await;
        world.move_to(&end);
        assert_eq!(period(&service, "org_1").await.0, end);
        assert_eq!(service.current("org_1", "api").await, 1);
        ends.push(end[5..10].to_owned());
    }
    assert_eq!(
        ends,
        [
            "03-31", "04-30", "05-31", "06-30", "07-31", "08-31", "09-30", "10-31", "11-30",
            "12-31", "01-31", "02-29", "03-31"
        ]
    );
}

#[tokio::test]
async fn an_anchor_gives_every_period_its_day_and_time_of_day() {
    let world = World::new().await;
    let service = world.instance().await;
    service
        .settings("org_1", json!({"anchor": "2030-01-31T17:30:00Z"}))
        .await;
    for end in [
        "2031-03-31T17:30:00Z",
        "2031-04-30T17:30:00Z",
        "2031-05-31T17:30:00Z",
    ] {
        assert_eq!(period(&service, "org_1").await.1, end);
        world.move_to(end);
    }
}

#[tokio::test]
async fn idle_months_are_neither_merged_nor_carried_over() {
    let world = World::new().await;
    let service = world.instance().await;
    service.count("org_1", "api", 900).await;
    world.move_to("2031-08-20T00:00:00Z");
    assert_eq!(service.current("org_1", "api").await, 0);
    let expected = (
        "2031-08-01T00:00:00Z".to_owned(),
        "2031-09-01T00:00:00Z".to_owned(),
    );
    assert_eq!(period(&service, "org_1").await, expected);
    assert_eq!(service.current("org_1", "api").await, 1);
    // The counter of March is unchanged.
    let march = world
        .snapshot_of("org_1", "api", "2031-03-01T00:00:00Z")
        .await;
    assert_eq!(march["used"], "900");
}

#[tokio::test]
async fn days_follow_the_organizations_zone_also_when_the_clocks_change() {
    let world = World::new().await;
    let service = world.instance().await;
    let settings = |zone: &str| json!({"resetPeriod": "daily", "timeZone": zone});
    service.settings("berlin", settings("Europe/Berlin")).await;
    service.settings("kolkata", settings("Asia/Kolkata")).await;
    // Daylight saving time starts in Berlin: the day has 23 hours.
    world.move_to("2031-03-30T12:00:00Z");
    let day = |start: &str, end: &str| (start.to_owned(), end.to_owned());
    assert_eq!(
        period(&service, "berlin").await,
        day("2031-03-29T23:00:00Z", "2031-03-30T22:00:00Z")
    );
    assert_eq!(
        period(&service, "kolkata").await,
        day("2031-03-29T18:30:00Z", "2031-03-30T18:30:00Z")
    );
    world.move_to("2031-03-30T18:30:00Z");
    assert_eq!(service.current("kolkata", "api").await, 0);
    assert_eq!(service.current("berlin", "api").await, 1);
}

#[tokio::test]
async fn a_manual_period_never_ends_by_itself() {
    let world = World::new().await;
    let service = world.instance().await;
    service
        .settings("org_1", json!({"resetMode": "manual"}))
        .await;
    service.count("org_1", "api", 3).await;
    world.move_to("2035-01-01T00:00:00Z");
    let answer = service.try_consume("org_1", "api", 1).await;
    assert_eq!(
        (&answer.body["current"], &answer.body["resetDate"]),
        (&json!(4), &Value::Null)
    );
}

#[tokio::test]
async fn a_scheduled_organization_never_counts_into_a_period_that_is_over() {
    let world = World::new().await;
    let service = world.instance().await;
    service
        .settings("org_1", json!({"resetMode": "scheduled"}))
        .await;
    service.count("org_1", "api", 3).await;
    world.move_to("2031-04-01T00:00:00Z");
    assert_eq!(service.count("org_1", "api", 1).await, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_first_calls_of_a_new_period_all_count() {
    let world = World::new().await;
    let instances = [world.instance().await, world.instance().await];
    instances[0].count("org_1", "api", 500).await;
    for month in ["2031-04-01T00:00:00Z", "2031-05-01T00:00:00Z"] {
        world.move_to(month);
        at_once(2, |task| {
            let http = instances[task].http.clone();
            async move {
                let answer = http
                    .post("/v1/consume", json!({"organizationId": "org_1"}))
                    .await;
                assert_eq!(answer.body["periodStart"], month);
            }
        })
        .await;
        assert_eq!(instances[0].current("org_1", "api").await, 2);
    }
}

/// A lagging instance counts into the period of its own clock.
#[tokio::test]
async fn an_instance_whose_clock_lags_cannot_touch_the_new_period() {
    let world = World::new().await;
    let service = world.instance().await;
    let lagging = Clock::manual(world.clock.now());
    let late = world.instance_at(lagging.clone()).await;
    late.count("org_1", "api", 10).await;
    world.move_to("2031-04-01T00:00:05Z");
    lagging.advance(instant("2031-03-31T23:59:58Z") - lagging.now());
    service.count("org_1", "api", 1).await;
    assert_eq!(late.count("org_1", "api", 10).await, 20);
    assert_eq!(service.current("org_1", "api").await, 1);
    lagging.advance(Duration::seconds(7));
    assert_eq!(late.count("org_1", "api", 10).await, 11);
}

#[tokio::test]
async fn each_slot_of_the_organizations_clock_is_counted_separately() {
    let world = World::new().await;
    let service = world.instance().await;
    service
        .settings("org_1", json!({"timeZone": "Asia/Kolkata"}))
        .await;
    world.move_to("2031-04-10T12:29:59.999Z");
    service.count("org_1", "api", 3).await;
    world.move_to("2031-04-10T12:30:00Z");
    service.count("org_1", "api", 4).await;
    let counter = world
        .snapshot_of("org_1", "api", "2031-03-31T18:30:00Z")
        .await;
    let slot =
        |start: &str| counter[&format!("used@{}", instant(start).timestamp_millis())].clone();
    // The hour starts at 11:30 in UTC, so that days of other zones need a slot that starts at 12:00.
    assert_eq!(slot("2031-04-10T12:00:00Z"), "3");
    assert_eq!(slot("2031-04-10T12:30:00Z"), "4");
}
