//! Retention: what is older is deleted, nothing that a count, a restore or a webhook still needs.

use chrono::Duration;
use serde_json::{Value, json};
use tallyman::jobs::retention::Deleted;
use tallyman::postgres::{Postgres, events};

use crate::support::{Instance, Receiver, World, at_once, hours, instant, row};

const DAY: std::time::Duration = std::time::Duration::from_hours(24);

/// When March has been over for longer than the retention of hours, and April has not.
const MARCH_EXPIRED: &str = "2031-05-20T12:00:00Z";

/// Hours are kept for 40 days, events for 10.
async fn world() -> World {
    World::with(|config| {
        config.hourly_retention = Some(40 * DAY);
        config.event_retention = Some(10 * DAY);
    })
    .await
}

fn months(months: usize) -> Deleted {
    Deleted { months, events: 0 }
}

impl Instance {
    async fn delete_expired(&self) -> Deleted {
        self.app.retention.delete_once().await.unwrap()
    }

    async fn read_json(&self, path: &str) -> Value {
        let answer = self.http.get(path).await;
        assert_eq!(answer.status, 200, "{}", answer.text);
        answer.body
    }

    /// Start, used and running total of each row of the history of `org_1`.
    async fn rows(&self, query: &str) -> Vec<(String, i64, Option<i64>)> {
        let path = format!("/v1/organizations/org_1/history?totals=true&pageSize=1000&{query}");
        let page = self.read_json(&path).await;
        let rows = page["data"].as_array().unwrap().iter();
        rows.map(|row| {
            let start = row["start"].as_str().unwrap().to_owned();
            (start, row["used"].as_i64().unwrap(), row["total"].as_i64())
        })
        .collect()
    }

    /// The types of all events, oldest first.
    async fn events(&self) -> Vec<String> {
        let page = self.read_json("/v1/events").await;
        let events = page["data"].as_array().unwrap().iter().rev();
        events
            .map(|event| event["type"].as_str().unwrap().to_owned())
            .collect()
    }

    async fn assert_verified(&self) {
        let found = self.read_json("/v1/verify").await;
        assert_eq!(found["data"], json!([]));
        assert_eq!(found["organizations"], 1);
    }

    async fn webhook(&self, url: &str) -> String {
        let answer = self.http.post("/v1/webhooks", json!({"url": url})).await;
        assert_eq!(answer.status, 201, "{}", answer.text);
        answer.body["id"].as_str().unwrap().to_owned()
    }

    async fn deliver(&self) {
        self.app.webhooks.deliver_once().await.unwrap();
    }

    fn metric(&self, name: &str) -> String {
        let text = self.app.state.ctx.metrics.to_text().unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap().trim().to_owned()
    }
}

async fn partitions(world: &World) -> Vec<String> {
    world
        .select(
            "select inhrelid::regclass::text from pg_inherits
             where inhparent = 'usage_hourly'::regclass order by 1",
        )
        .await
}

fn owned(row: (&str, i64, Option<i64>)) -> (String, i64, Option<i64>) {
    (row.0.to_owned(), row.1, row.2)
}

/// Counts 100 units of a period of a year, and 20 more when the hours of the first ones are older than the retention.
async fn count_a_year(world: &World, service: &Instance) {
    service
        .settings("org_1", json!({"resetPeriod": "yearly"}))
        .await;
    service.track("org_1", 100).await;
    service.flush().await;
    world.move_to(MARCH_EXPIRED);
    service.track("org_1", 20).await;
    service.flush().await;
}

#[tokio::test]
async fn nothing_is_deleted_by_default() {
    let world = World::new().await;
    let service = world.instance().await;
    service.limits("org_1", json!({"api": {"limit": 10}})).await;
    world.clock.advance(Duration::seconds(1));
    service.track("org_1", 9).await;
    service.flush().await;
    world.move_to("2045-01-01T00:00:00Z");
    assert_eq!(service.delete_expired().await, Deleted::default());
    assert_eq!(service.events().await, ["limits.updated", "usage.warning"]);
    assert_eq!(hours(&world.postgres().await, "org_1").await.len(), 1);
}

#[tokio::test]
async fn hours_are_dropped_by_whole_months_and_the_counts_of_periods_stay() {
    let world = world().await;
    let service = world.instance().await;
    service.track("org_1", 5).await;
    service.flush().await;
    world.move_to("2031-05-10T23:59:59Z");
    service.track("org_1", 7).await;
    service.flush().await;
    assert_eq!(service.delete_expired().await, months(0));
    world.clock.advance(Duration::seconds(1));
    assert_eq!(service.delete_expired().await, months(1));
    assert_eq!(service.delete_expired().await, months(0));
    assert_eq!(service.metric("tallyman_hourly_months_dropped_total"), "1");

    let from = "from=2031-01-01T00:00:00Z";
    let (march, may) = (
        owned(("2031-03-01T00:00:00Z", 5, Some(5))),
        owned(("2031-05-01T00:00:00Z", 7, Some(7))),
    );
    assert_eq!(
        service.rows(&format!("{from}&granularity=period")).await,
        [march, may.clone()]
    );
    let day = owned(("2031-05-10T00:00:00Z", 7, Some(7)));
    assert_eq!(service.rows(from).await, [day]);
    assert_eq!(
        service.rows(&format!("{from}&granularity=month")).await,
        [may]
    );
    // What is not known any more is not filled with zeros.
    let filled = service.rows(&format!("{from}&fill=zero")).await;
    assert_eq!(filled[0], owned(("2031-04-01T00:00:00Z", 0, Some(0))));
    assert_eq!(filled.len(), 41);
    let before = format!("{from}&to=2031-03-20T00:00:00Z&fill=zero");
    assert_eq!(service.rows(&before).await, []);
    let path = format!("/v1/history?{from}&granularity=hour");
    let csv = service
        .http
        .send(reqwest::Method::GET, &path, &[("accept", "text/csv")], None);
    let csv = csv.await;
    assert_eq!((csv.status.as_u16(), csv.text.lines().count()), (200, 2));
    service.assert_verified().await;
}

#[tokio::test]
async fn a_running_period_that_began_before_the_retention_keeps_its_count() {
    let world = world().await;
    let service = world.instance().await;
    count_a_year(&world, &service).await;
    assert_eq!(service.delete_expired().await, months(1));
    service.assert_verified().await;
    for _ in 0..2 {
        // Restored from its count, not from its hours.
        world.flush_redis().await;
        service.track("org_1", 1).await;
        service.assert_verified().await;
        service.flush().await;
        service.assert_verified().await;
    }
    let late = json!({"organizationId": "org_1", "amount": 3, "timestamp": "2031-05-19T12:00:00Z"});
    let answer = service.http.post("/v1/track", late).await;
    assert_eq!(answer.body["current"], 125, "{}", answer.text);
    service.flush().await;
    service.assert_verified().await;
    let row = row(&world.postgres().await, "org_1").await;
    assert_eq!((row.used, row.hours_used), (125, 25));

    // The running total contains what was dropped.
    assert_eq!(
        service.rows("from=2031-05-01T00:00:00Z").await,
        [
            owned(("2031-05-19T00:00:00Z", 3, Some(103))),
            owned(("2031-05-20T00:00:00Z", 22, Some(125)))
        ]
    );
    let history = service.read_json("/v1/organizations/org_1/history").await;
    assert_eq!(history["firstUse"], "2031-01-01T00:00:00Z");
}

#[tokio::test]
async fn verification_still_finds_a_count_that_differs_from_its_hours() {
    let world = world().await;
    let service = world.instance().await;
    count_a_year(&world, &service).await;
    assert_eq!(service.delete_expired().await, months(1));
    let key = crate::support::key_of("org_1", "api", "2031-01-01T00:00:00Z");
    let slot = instant(MARCH_EXPIRED).timestamp_millis();
    world.add(&key, &format!("used@{slot}"), 1).await;
    let found = service.read_json("/v1/verify").await;
    assert_eq!(found["data"][0]["mismatch"], "hours", "{found}");
}

/// Postgres, or the service, was away for longer than the retention.
#[tokio::test]
async fn a_count_that_waited_longer_than_the_retention_is_stored_without_its_hours() {
    let world = world().await;
    let service = world.instance().await;
    service
        .settings("org_1", json!({"resetPeriod": "yearly"}))
        .await;
    service.flush().await;
    service.track("org_1", 5).await;
    world.move_to(MARCH_EXPIRED);
    assert_eq!(service.delete_expired().await, months(1));
    let kept = partitions(&world).await;
    assert_eq!(kept, ["usage_hourly_2031_04", "usage_hourly_2031_05"]);
    // One instance knows the partition from before, the other one does not.
    let other = world.instance().await;
    for (instance, used) in [(&service, 5), (&other, 6)] {
        let report = instance.flush().await;
        assert_eq!((report.stored, report.clean), (1, 1));
        let row = row(&world.postgres().await, "org_1").await;
        assert_eq!((row.used, row.hours_used), (used, used - 5));
        instance.assert_verified().await;
        assert!(
            !partitions(&world)
                .await
                .contains(&"usage_hourly_2031_03".to_owned())
        );
        service.track("org_1", 1).await;
    }
}

#[tokio::test]
async fn a_month_that_is_in_use_is_dropped_later_and_delays_no_flush() {
    let world = world().await;
    let service = world.instance().await;
    service.track("org_1", 5).await;
    service.flush().await;
    world.move_to(MARCH_EXPIRED);
    service.track("org_1", 7).await;
    let postgres = world.postgres().await;
    let mut reader = postgres.begin().await.unwrap();
    sqlx::query("select count(*) from usage_hourly")
        .execute(&mut *reader)
        .await
        .unwrap();
    let (deleted, flushed) = tokio::join!(service.delete_expired(), service.flush());
    assert_eq!((deleted, flushed.stored), (months(0), 1));
    assert_eq!(service.metric("tallyman_hourly_months_expired"), "1");
    // Nothing is given up of a month that stays.
    assert_eq!(service.rows("from=2031-03-01T00:00:00Z").await.len(), 2);
    reader.rollback().await.unwrap();
    assert_eq!(service.delete_expired().await, months(1));
    assert_eq!(service.metric("tallyman_hourly_months_expired"), "0");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn instances_that_delete_concurrently_delete_everything_once() {
    let world = world().await;
    let mut jobs = Vec::new();
    for _ in 0..4 {
        jobs.push(world.instance().await.app.retention);
    }
    let service = world.instance().await;
    service.flush().await;
    for limit in 1..=20 {
        let limits = json!({"api": {"limit": limit}});
        service.limits("org_1", limits).await;
    }
    world.move_to("2031-07-20T00:00:00Z");
    let mut deleted = Deleted::default();
    // One of them is turned away where another one is working.
    for _ in 0..3 {
        let each = at_once(4, |number| {
            let job = jobs[number].clone();
            async move { job.delete_once().await.unwrap() }
        });
        for it in each.await {
            deleted.months += it.months;
            deleted.events += it.events;
        }
    }
    let (months, events) = (3, 20);
    assert_eq!(deleted, Deleted { months, events });
    assert_eq!(partitions(&world).await, [""; 0]);
}

#[tokio::test]
async fn a_local_day_is_shown_only_if_all_of_its_hours_are_kept() {
    let world = world().await;
    let service = world.instance().await;
    service
        .settings("org_1", json!({"timeZone": "America/New_York"}))
        .await;
    service.flush().await;
    for at in ["2031-04-01T02:00:00Z", "2031-04-02T02:00:00Z"] {
        world.move_to(at);
        service.track("org_1", 1).await;
        service.flush().await;
    }
    world.move_to(MARCH_EXPIRED);
    let days = "select day::text from analytics.usage_by_day order by day";
    assert_eq!(world.select(days).await, ["2031-03-31", "2031-04-01"]);
    assert_eq!(service.rows("from=2031-03-01T00:00:00Z").await.len(), 2);
    assert_eq!(service.delete_expired().await.months, 1);
    // The evening of the 31st is kept, but not the hours before it.
    assert_eq!(world.select(days).await, ["2031-04-01"]);
    let day = owned(("2031-04-01T04:00:00Z", 1, Some(1)));
    assert_eq!(service.rows("from=2031-03-01T00:00:00Z").await, [day]);
}

#[tokio::test]
async fn old_events_are_deleted_with_their_finished_deliveries() {
    let world = world().await;
    let service = world.instance().await;
    let receiver = Receiver::new().await;
    let webhook = service.webhook(&receiver.url).await;
    service.limits("org_1", json!({"api": {"limit": 10}})).await;
    service.deliver().await;
    world.clock.advance(Duration::days(5));
    service.limits("org_1", json!({"api": {"limit": 20}})).await;
    service.deliver().await;
    world.clock.advance(Duration::days(5));
    assert_eq!(service.delete_expired().await, Deleted::default());
    world.clock.advance(Duration::milliseconds(1));
    let one = Deleted {
        months: 0,
        events: 1,
    };
    assert_eq!(service.delete_expired().await, one);
    assert_eq!(service.events().await, ["limits.updated"]);
    let path = format!("/v1/webhooks/{webhook}/deliveries");
    let left = service.read_json(&path).await;
    assert_eq!(left["data"].as_array().unwrap().len(), 1, "{left}");
    assert_eq!(service.metric("tallyman_events_deleted_total"), "1");
    // The oldest change that is known tells the limit before it.
    let limits = "select limit_units::text from analytics.limits_over_time order by since";
    assert_eq!(world.select(limits).await, ["20"]);
}

#[tokio::test]
async fn an_event_stays_until_each_of_its_deliveries_is_finished_or_given_up() {
    let world = world().await;
    let service = world.instance().await;
    let receiver = Receiver::new().await;
    let (enabled, disabled) = (
        service.webhook(&receiver.url).await,
        service.webhook(&receiver.url).await,
    );
    service.limits("org_1", json!({"api": {"limit": 10}})).await;
    world.clock.advance(Duration::days(1));
    let path = format!("/v1/webhooks/{disabled}");
    service.http.patch(&path, json!({"enabled": false})).await;
    world.clock.advance(Duration::days(10));
    // Of this one nothing was sent yet, and the other one may be enabled again.
    assert_eq!(service.delete_expired().await.events, 0);
    service.deliver().await;
    assert_eq!(receiver.received().len(), 1);
    assert_eq!(service.delete_expired().await.events, 0);
    let path = format!("/v1/webhooks/{enabled}/deliveries");
    assert_eq!(service.read_json(&path).await["data"], json!([]));
    world.clock.advance(Duration::milliseconds(1));
    assert_eq!(service.delete_expired().await.events, 1);
}

#[tokio::test]
async fn events_are_deleted_oldest_first_in_steps_past_those_that_stay() {
    let world = world().await;
    let service = world.instance().await;
    let receiver = Receiver::new().await;
    for limit in 1..=5 {
        if limit == 3 {
            service.webhook(&receiver.url).await;
        }
        let limits = json!({"api": {"limit": limit}});
        service.limits("org_1", limits).await;
        world.clock.advance(Duration::milliseconds(1));
    }
    let store = Postgres::new(&world.database_url, 1).unwrap();
    let (mut after, mut steps) = (None, Vec::new());
    loop {
        let step = events::delete_older(&store, world.clock.now(), after.as_ref(), 2);
        let step = step.await.unwrap().expect("nobody else deletes");
        steps.push(step.deleted);
        after = step.last;
        if after.is_none() {
            break;
        }
    }
    assert_eq!(steps, [2, 0, 0]);
    assert_eq!(service.events().await.len(), 3);
}

#[tokio::test]
async fn a_threshold_is_not_notified_again_after_its_event_is_deleted() {
    let world = world().await;
    let service = world.instance().await;
    service
        .settings("org_1", json!({"resetPeriod": "yearly"}))
        .await;
    service.track("org_1", 850).await;
    service.flush().await;
    assert_eq!(service.events().await, ["usage.warning"]);
    world.clock.advance(Duration::days(11));
    assert_eq!(service.delete_expired().await.events, 1);
    for _ in 0..2 {
        service.track("org_1", 10).await;
        service.flush().await;
        assert_eq!(service.events().await, [""; 0]);
        world.flush_redis().await;
    }
}
