//! Changes of calendar: an instant belongs to the period of the calendar that was effective then.

use chrono::Duration;
use chrono_tz::Tz;
use serde_json::{Value, json};
use tallyman::domain::organization::DefaultCalendar;
use tallyman::domain::period::{ResetMode, ResetPeriod};

use crate::support::{Instance, World, at_once};

const HALF_PAST_THREE: &str = "2031-03-15T15:30:00Z";

async fn track(service: &Instance, amount: u64, at: &str) -> (String, u64) {
    let body = json!({"organizationId": "org_1", "amount": amount, "timestamp": at});
    let answer = service.http.post("/v1/track", body).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    (
        start(&answer.body),
        answer.body["current"].as_u64().unwrap(),
    )
}

fn start(body: &Value) -> String {
    body["periodStart"].as_str().unwrap().to_owned()
}

async fn periods(service: &Instance) -> Vec<Value> {
    let answer = service
        .http
        .get("/v1/organizations/org_1/history?granularity=period")
        .await;
    answer.body["data"].as_array().unwrap().clone()
}

fn hourly() -> impl FnOnce(&mut tallyman::config::Config) {
    |config| config.defaults.calendar.reset_period = ResetPeriod::Hourly
}

// --- defaults ---

#[tokio::test]
async fn other_defaults_keep_every_running_count() {
    let utc_monthly = DefaultCalendar {
        reset_mode: ResetMode::Lazy,
        reset_period: ResetPeriod::Monthly,
        time_zone: Tz::UTC,
    };
    let changes = [
        (
            DefaultCalendar {
                time_zone: Tz::Asia__Tokyo,
                ..utc_monthly
            },
            json!("2031-03-31T15:00:00Z"),
        ),
        (
            DefaultCalendar {
                reset_period: ResetPeriod::Daily,
                ..utc_monthly
            },
            json!("2031-03-16T00:00:00Z"),
        ),
        (
            DefaultCalendar {
                reset_mode: ResetMode::Manual,
                ..utc_monthly
            },
            Value::Null,
        ),
    ];
    for (calendar, end) in changes {
        let mut world = World::new().await;
        let before = world.instance().await;
        before.count("org_1", "api", 900).await;
        let metadata = json!({"metadata": {"name": "only that"}});
        before.settings("org_2", metadata).await;
        before.count("org_2", "api", 900).await;
        world.config.defaults.calendar = calendar;
        let after = world.instance().await;
        // The instance with the old settings also loads the new defaults.
        before.app.policies.learn().await.unwrap();
        for (service, organization) in [(&after, "org_1"), (&before, "org_1"), (&after, "org_2")] {
            let refused = service.try_consume(organization, "api", 900).await;
            assert_eq!(refused.status, 429, "{calendar} {}", refused.body);
            assert_eq!(refused.body["current"], 900);
            assert_eq!(start(&refused.body), "2031-03-01T00:00:00Z");
            assert_eq!(refused.body["resetDate"], end, "{calendar}");
        }
        after.app.periods.sweep_once().await.unwrap();
        after.flush().await;
        let rows = periods(&after).await;
        assert_eq!(rows.len(), 1, "{calendar} {rows:?}");
        assert_eq!((&rows[0]["open"], &rows[0]["end"]), (&json!(true), &end));
    }
}

#[tokio::test]
async fn a_changed_default_calendar_is_audited_with_how_many_inherit_it() {
    let mut world = World::new().await;
    let service = world.instance().await;
    service.count("org_1", "api", 1).await;
    let own = json!({"resetMode": "lazy", "resetPeriod": "daily", "timeZone": "UTC"});
    service.settings("org_2", own).await;
    service
        .settings("org_3", json!({"resetPeriod": "daily"}))
        .await;
    service.flush().await;
    world.config.defaults.calendar.time_zone = Tz::Asia__Tokyo;
    let service = world.instance().await;
    let audit = service.http.get("/v1/audit?action=defaults.publish").await;
    let newest = &audit.body["data"][0];
    assert_eq!(newest["before"]["timeZone"], "UTC");
    assert_eq!(newest["after"]["timeZone"], "Asia/Tokyo");
    assert_eq!(newest["after"]["calendarInheritedBy"], 2);
}

#[tokio::test]
async fn a_default_that_changes_back_and_forth_moves_no_period() {
    let mut world = World::new().await;
    let zones = [Tz::UTC, Tz::Asia__Tokyo, Tz::UTC, Tz::Asia__Kolkata];
    let mut counted = 0;
    for zone in zones {
        world.config.defaults.calendar.time_zone = zone;
        let service = world.instance().await;
        counted += 10;
        assert_eq!(service.count("org_1", "api", 10).await, counted, "{zone}");
        world.clock.advance(Duration::hours(1));
    }
    // From the next boundary on, the last default is effective.
    world.move_to("2031-03-31T18:30:00Z");
    let service = world.instance().await;
    let answer = service.try_consume("org_1", "api", 1).await;
    assert_eq!(start(&answer.body), "2031-03-31T18:30:00Z");
}

#[tokio::test]
async fn a_default_that_contradicts_an_organizations_reset_day_does_not_block_it() {
    let mut world = World::new().await;
    let service = world.instance().await;
    service.settings("org_1", json!({"resetDay": 10})).await;
    service.count("org_1", "api", 5).await;
    world.config.defaults.calendar.reset_period = ResetPeriod::Daily;
    let service = world.instance().await;
    assert_eq!(service.count("org_1", "api", 1).await, 6);
    let path = "/v1/organizations/org_1";
    let named = service
        .http
        .patch(path, json!({"metadata": {"name": "Acme"}}))
        .await;
    assert_eq!(named.status, 200, "{}", named.body);
    let answer = service.try_consume("org_1", "api", 1).await;
    assert_eq!(start(&answer.body), "2031-03-10T00:00:00Z");
    assert_eq!(answer.body["resetDate"], "2031-03-16T00:00:00Z");
    let refused = service.http.patch(path, json!({"resetDay": 11})).await;
    assert_eq!(refused.body["errors"][0]["pointer"], "/resetDay");
}

#[tokio::test]
async fn rows_of_idle_organizations_follow_a_changed_default() {
    let mut world = World::new().await;
    let service = world.instance().await;
    service.count("org_1", "api", 5).await;
    service.flush().await;
    world.config.defaults.calendar.reset_period = ResetPeriod::Daily;
    let service = world.instance().await;
    service.app.periods.sweep_once().await.unwrap();
    let rows = periods(&service).await;
    assert_eq!(rows[0]["end"], "2031-03-16T00:00:00Z");
    // The flush that first stores the next period therefore ends this one and records the event.
    world.move_to("2031-03-20T10:00:00Z");
    service.count("org_1", "api", 1).await;
    service.flush().await;
    let rows = periods(&service).await;
    assert_eq!(
        (&rows[0]["resetType"], &rows[0]["open"]),
        (&json!("lazy"), &json!(false))
    );
    assert_eq!(rows[1]["start"], "2031-03-20T00:00:00Z");
}

// --- changes of one organization's calendar ---

#[tokio::test]
async fn a_late_event_counts_in_the_period_of_the_calendar_effective_then() {
    let changes = [
        json!({"resetPeriod": "daily"}),
        json!({"resetMode": "manual"}),
        json!({"resetPeriod": "weekly", "timeZone": "Asia/Kolkata"}),
    ];
    for change in changes {
        let world = World::with(hourly()).await;
        let service = world.instance().await;
        world.move_to("2031-03-15T17:05:00Z");
        service.count("org_1", "api", 1).await;
        let of_hour = "2031-03-15T15:00:00Z".to_owned();
        assert_eq!(
            track(&service, 3, HALF_PAST_THREE).await,
            (of_hour.clone(), 3)
        );
        let path = "/v1/organizations/org_1";
        assert_eq!(service.http.patch(path, change.clone()).await.status, 200);
        assert_eq!(
            track(&service, 4, HALF_PAST_THREE).await,
            (of_hour, 7),
            "{change}"
        );
        let running = service.try_consume("org_1", "api", 1).await;
        assert_eq!(start(&running.body), "2031-03-15T17:00:00Z");
        assert_eq!(running.body["current"], 2);
        service.flush().await;
        let starts: Vec<_> = periods(&service)
            .await
            .iter()
            .map(|row| row["start"].clone())
            .collect();
        assert_eq!(starts, ["2031-03-15T15:00:00Z", "2031-03-15T17:00:00Z"]);
    }
}

#[tokio::test]
async fn late_events_find_their_period_after_redis_was_lost() {
    let world = World::with(hourly()).await;
    let service = world.instance().await;
    world.move_to("2031-03-15T17:05:00Z");
    service.count("org_1", "api", 1).await;
    track(&service, 3, HALF_PAST_THREE).await;
    service
        .settings("org_1", json!({"resetPeriod": "daily"}))
        .await;
    service.flush().await;
    let _: String = world.redis_command(&["FLUSHALL"]).await;
    let service = world.instance().await;
    let of_hour = "2031-03-15T15:00:00Z".to_owned();
    assert_eq!(track(&service, 4, HALF_PAST_THREE).await, (of_hour, 7));
}

#[tokio::test]
async fn a_new_organizations_first_period_is_one_of_its_own_calendar() {
    let world = World::new().await;
    let service = world.instance().await;
    let cases = [
        (json!({"resetPeriod": "daily"}), "2031-03-15T00:00:00Z"),
        (json!({"resetPeriod": "hourly"}), "2031-03-15T12:00:00Z"),
        (json!({"resetPeriod": "yearly"}), "2031-01-01T00:00:00Z"),
        (
            json!({"anchor": "2030-01-10T06:30:00Z"}),
            "2031-03-10T06:30:00Z",
        ),
        (json!({"timeZone": "Asia/Kolkata"}), "2031-02-28T18:30:00Z"),
    ];
    for (number, (settings, begins)) in cases.into_iter().enumerate() {
        let organization = format!("org_{number}");
        service.settings(&organization, settings.clone()).await;
        let answer = service.try_consume(&organization, "api", 1).await;
        assert_eq!(start(&answer.body), begins, "{settings}");
    }
    let body = json!({"organizationId": "org_plugin", "resetPeriod": "daily"});
    let path = "/api/auth/usage-tracking/update-limits";
    let answer = service.http.post(path, body).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    let answer = service.try_consume("org_plugin", "api", 1).await;
    assert_eq!(start(&answer.body), "2031-03-15T00:00:00Z");
}

#[tokio::test]
async fn an_organization_that_counted_nothing_in_the_running_period_takes_a_calendar_at_once() {
    let world = World::new().await;
    let service = world.instance().await;
    service.count("org_1", "api", 5).await;
    world.move_to("2031-04-10T12:00:00Z");
    // Reading creates the counter of April without counting.
    assert_eq!(service.current("org_1", "api").await, 0);
    service
        .settings("org_1", json!({"resetPeriod": "daily"}))
        .await;
    let answer = service.try_consume("org_1", "api", 1).await;
    assert_eq!(start(&answer.body), "2031-04-10T00:00:00Z");
    // The period of March has a count and stays.
    service
        .settings("org_1", json!({"resetPeriod": "yearly"}))
        .await;
    world.move_to("2031-04-12T12:00:00Z");
    service
        .settings("org_1", json!({"resetPeriod": "monthly"}))
        .await;
    service.flush().await;
    let starts: Vec<_> = periods(&service)
        .await
        .iter()
        .map(|row| row["start"].clone())
        .collect();
    assert_eq!(starts, ["2031-03-01T00:00:00Z", "2031-04-10T00:00:00Z"]);
}

/// The other instance has the old calendar cached, and nothing was counted yet in the counter that it found.
#[tokio::test]
async fn a_call_with_a_cached_calendar_counts_in_the_period_of_the_new_one() {
    let world = World::new().await;
    let (here, there) = (world.instance().await, world.instance().await);
    for (organization, changes_limit) in [("org_1", false), ("org_2", true)] {
        let body = json!({"organizationId": organization});
        let checked = there.http.post("/v1/check", body.clone()).await;
        assert_eq!(start(&checked.body), "2031-03-01T00:00:00Z");
        if changes_limit {
            // Changes the stamp of the counter, and counts nothing in it.
            let limit = json!({"api": {"limit": 5}});
            there.limits(organization, limit).await;
            there.http.post("/v1/check", body.clone()).await;
        }
        here.settings(organization, json!({"resetPeriod": "daily"}))
            .await;
        let counted = there.http.post("/v1/track", body).await;
        assert_eq!(start(&counted.body), "2031-03-15T00:00:00Z");
        here.flush().await;
        assert_eq!(here.current(organization, "api").await, 1);
    }
    assert_eq!(periods(&here).await.len(), 1);
}

/// A call before the new calendar is effective keeps the running period and is in its count.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_concurrent_with_a_change_of_calendar_are_all_in_the_running_count() {
    let world = World::new().await;
    let service = world.instance().await;
    for round in 0..10 {
        let organization = format!("org_{round}");
        service
            .settings(&organization, json!({"metadata": {}}))
            .await;
        at_once(12, |task| {
            let (http, organization) = (service.http.clone(), organization.clone());
            async move {
                if task == 6 {
                    let path = format!("/v1/organizations/{organization}");
                    let answer = http.patch(&path, json!({"resetPeriod": "daily"})).await;
                    assert_eq!(answer.status, 200, "{}", answer.body);
                } else {
                    let body = json!({"organizationId": organization});
                    let answer = http.post("/v1/track", body).await;
                    assert_eq!(answer.status, 200, "{}", answer.body);
                }
            }
        })
        .await;
        assert_eq!(service.current(&organization, "api").await, 11);
    }
}

/// Each change holds a connection while it waits for the lock; the one with the lock needs no second connection.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_concurrent_changes_of_calendar_than_connections_all_happen() {
    let world = World::with(|config| config.database_connections = 4).await;
    let service = world.instance().await;
    at_once(24, |task| {
        let http = service.http.clone();
        async move {
            let path = format!("/v1/organizations/org_{task}");
            let answer = http.put(&path, json!({"resetPeriod": "daily"})).await;
            assert_eq!(answer.status, 200, "{}", answer.body);
        }
    })
    .await;
}

#[tokio::test]
async fn units_that_were_not_stored_yet_keep_the_running_period() {
    let world = World::new().await;
    let service = world.instance().await;
    service.count("org_1", "api", 5).await;
    service
        .settings("org_1", json!({"resetPeriod": "daily"}))
        .await;
    let answer = service.try_consume("org_1", "api", 1).await;
    assert_eq!(start(&answer.body), "2031-03-01T00:00:00Z");
    assert_eq!(answer.body["current"], 6);
}

#[tokio::test]
async fn the_first_period_end_after_a_change_of_calendar_is_an_event_in_every_mode() {
    for mode in ["lazy", "scheduled"] {
        for redis_is_lost in [false, true] {
            let world = World::new().await;
            let mut service = world.instance().await;
            service.settings("org_1", json!({"resetMode": mode})).await;
            service.count("org_1", "api", 5).await;
            service.flush().await;
            let daily = json!({"resetMode": mode, "resetPeriod": "daily"});
            service.settings("org_1", daily).await;
            service.flush().await;
            if redis_is_lost {
                // The data set is then too young to prove that nothing was counted in the next period.
                world.move_to("2031-03-15T23:59:00Z");
                let _: String = world.redis_command(&["FLUSHALL"]).await;
                service = world.instance().await;
                assert_eq!(service.current("org_1", "api").await, 5);
            }
            world.move_to("2031-03-16T00:01:00Z");
            service.count("org_1", "api", 1).await;
            service.flush().await;
            service.app.periods.sweep_once().await.unwrap();
            let rows = periods(&service).await;
            assert_eq!(rows[0]["resetType"], mode, "{redis_is_lost} {rows:?}");
            assert_eq!(rows[0]["end"], "2031-03-16T00:00:00Z");
            let events = service.http.get("/v1/events?type=usage.reset").await;
            let resets: Vec<_> = events.body["data"].as_array().unwrap().iter().collect();
            assert_eq!(resets.len(), 1, "{mode} {resets:?}");
            assert_eq!(resets[0]["data"]["previousCount"], 5);
        }
    }
}

// --- hours and days ---

async fn rows(service: &Instance, query: &str) -> Vec<(String, String, i64)> {
    let path = format!("/v1/organizations/org_1/history?{query}");
    let answer = service.http.get(&path).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    let text = |row: &Value, field: &str| row[field].as_str().unwrap().to_owned();
    let rows = answer.body["data"].as_array().unwrap().iter();
    rows.map(|row| {
        (
            text(row, "start"),
            text(row, "end"),
            row["used"].as_i64().unwrap(),
        )
    })
    .collect()
}

#[tokio::test]
async fn hours_and_days_tile_over_a_change_of_zone() {
    let world = World::new().await;
    let service = world.instance().await;
    service
        .settings("org_1", json!({"timeZone": "Asia/Kolkata"}))
        .await;
    world.move_to("2031-03-15T15:40:00Z");
    service.count("org_1", "api", 1).await;
    world.move_to("2031-03-15T15:50:00Z");
    service.settings("org_1", json!({"timeZone": "UTC"})).await;
    service.count("org_1", "api", 2).await;
    track(&service, 4, "2031-03-15T15:45:00Z").await;
    world.move_to("2031-03-15T17:10:00Z");
    service.count("org_1", "api", 8).await;
    service.flush().await;
    let hours = "granularity=hour&fill=zero&from=2031-03-15T14:30:00Z&to=2031-03-15T18:00:00Z";
    let row = |start: &str, end: &str, used: i64| {
        (
            format!("2031-03-{start}:00Z"),
            format!("2031-03-{end}:00Z"),
            used,
        )
    };
    assert_eq!(
        rows(&service, hours).await,
        [
            row("15T14:30", "15T15:30", 0),
            row("15T15:30", "15T15:50", 5),
            row("15T15:50", "15T16:00", 2),
            row("15T16:00", "15T17:00", 0),
            row("15T17:00", "15T18:00", 8),
        ]
    );
    let days = "granularity=day&fill=zero&from=2031-03-13T18:30:00Z&to=2031-03-16T00:00:00Z";
    assert_eq!(
        rows(&service, days).await,
        [
            row("13T18:30", "14T18:30", 0),
            row("14T18:30", "15T15:50", 5),
            row("15T15:50", "16T00:00", 10),
        ]
    );
}

#[tokio::test]
async fn days_of_any_zone_have_every_event_on_the_right_day() {
    let world = World::new().await;
    let service = world.instance().await;
    world.move_to("2031-03-15T18:40:00Z");
    service.count("org_1", "api", 1).await;
    world.move_to("2031-03-15T18:50:00Z");
    for (at, amount) in [("18:29", 2), ("18:14", 4), ("18:16", 8), ("17:59", 16)] {
        track(&service, amount, &format!("2031-03-15T{at}:00Z")).await;
    }
    service.flush().await;
    for (zone, before, since) in [
        ("Asia/Kolkata", 30, 1),
        ("Asia/Kathmandu", 20, 11),
        ("Asia/Tokyo", 0, 31),
        ("UTC", 0, 31),
    ] {
        let query = format!(
            "granularity=day&timeZone={zone}&from=2031-03-13T00:00:00Z&to=2031-03-18T00:00:00Z"
        );
        let used: Vec<i64> = rows(&service, &query)
            .await
            .iter()
            .map(|row| row.2)
            .collect();
        let expected: Vec<i64> = [before, since].into_iter().filter(|it| *it > 0).collect();
        assert_eq!(used, expected, "{zone}");
    }
    // An hour of the organization's zone is one row, even if it spans two stored slots.
    let hours = rows(&service, "granularity=hour").await;
    let used: Vec<i64> = hours.iter().map(|row| row.2).collect();
    assert_eq!(used, [16, 15]);
}

#[tokio::test]
async fn days_follow_a_changed_default_zone_from_the_change_on() {
    let mut world = World::new().await;
    let service = world.instance().await;
    service.count("org_1", "api", 1).await;
    service.flush().await;
    world.move_to("2031-03-15T14:10:00Z");
    world.config.defaults.calendar.time_zone = Tz::Asia__Tokyo;
    let service = world.instance().await;
    service.count("org_1", "api", 2).await;
    world.move_to("2031-03-15T15:10:00Z");
    service.count("org_1", "api", 4).await;
    service.flush().await;
    let row = |start: &str, end: &str, used: i64| {
        (
            format!("2031-03-{start}:00Z"),
            format!("2031-03-{end}:00Z"),
            used,
        )
    };
    assert_eq!(
        rows(&service, "granularity=day").await,
        [
            row("15T00:00", "15T14:10", 1),
            row("15T14:10", "15T15:00", 2),
            row("15T15:00", "16T15:00", 4),
        ]
    );
}
