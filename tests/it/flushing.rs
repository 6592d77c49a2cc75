//! Flushing: every count is stored exactly, whichever flusher dies and however many run.

use chrono::Duration;
use serde_json::json;
use tallyman::app::App;
use tallyman::jobs::flush::{Batch, Report};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::support::{
    Http, Instance, World, assert_stored, at_once, counter_key, hours, instant, row, rows, shard,
    sharded,
};

const PERIOD: &str = "2031-03-01T00:00:00Z";

/// Rounds of counting over several hours, each with a flush that dies after its commit.
#[tokio::test]
async fn a_flush_that_dies_between_commit_and_settle_neither_loses_nor_doubles() {
    let world = World::new().await;
    let service = world.instance().await;
    let mut counted = 0;
    for round in 1..=6 {
        counted += track_twice(&service, round).await;
        let batch = service.app.flusher.read(&[shard("org_1")]).await.unwrap();
        let stored = service.app.flusher.store(&batch).await.unwrap();
        assert_eq!(stored, [true]);
        assert_stored(&world, "org_1", counted).await;
        drop(batch);
        if round % 2 == 0 {
            counted += track_twice(&service, round).await;
        }
        if round % 3 != 0 {
            service.flush().await;
            assert_stored(&world, "org_1", counted).await;
        }
        world.clock.advance(Duration::minutes(25));
    }
    assert_eq!(service.current("org_1", "api").await, u(counted));
}

#[tokio::test]
async fn a_flush_that_dies_between_read_and_commit_neither_loses_nor_doubles() {
    let world = World::new().await;
    let service = world.instance().await;
    let mut counted = 0;
    for round in 1..=6 {
        counted += track_twice(&service, round).await;
        let batch = service.app.flusher.read(&[shard("org_1")]).await.unwrap();
        assert_eq!(i(batch.snapshots[0].used.get()), counted);
        drop(batch);
        if round % 2 == 0 {
            counted += track_twice(&service, round).await;
        }
        if round % 3 != 0 {
            service.flush().await;
            assert_stored(&world, "org_1", counted).await;
        }
        world.clock.advance(Duration::minutes(25));
    }
    assert_eq!(service.current("org_1", "api").await, u(counted));
}

#[tokio::test]
async fn a_repeated_flush_finds_its_snapshots_in_postgres_and_settles() {
    let world = World::new().await;
    let service = world.instance().await;
    service.track("org_1", 5).await;
    let batch = service.app.flusher.read(&[shard("org_1")]).await.unwrap();
    assert_eq!(service.app.flusher.store(&batch).await.unwrap(), [true]);
    assert_eq!(
        service.flush().await,
        Report {
            read: 1,
            stored: 1,
            clean: 1
        }
    );
    assert_eq!(service.flush().await, Report::default());
}

#[tokio::test]
async fn hours_and_total_agree_when_a_counter_moves_on_between_reading_and_settling() {
    let world = World::new().await;
    let service = world.instance().await;
    let flusher = &service.app.flusher;
    service.track("org_1", 1).await;
    world.clock.advance(Duration::minutes(61));
    service.track("org_1", 2).await;
    let batch = flusher.read(&[shard("org_1")]).await.unwrap();
    // In the hour that was read, and in a later one.
    service.track("org_1", 4).await;
    world.clock.advance(Duration::minutes(61));
    service.track("org_1", 8).await;
    let stored = flusher.store(&batch).await.unwrap();
    assert_eq!(flusher.settle(&batch, &stored).await.unwrap(), 0);

    assert_stored(&world, "org_1", 3).await;
    let counter = world.counter("org_1", instant(PERIOD)).await;
    let oldest_unstored = instant("2031-03-15T13:00:00Z").timestamp_millis();
    assert_eq!(counter["oldest"], oldest_unstored.to_string());
    service.flush().await;
    assert_stored(&world, "org_1", 15).await;
    let expected = [
        ("03-15T12:00", 1, 0),
        ("03-15T13:00", 6, 0),
        ("03-15T14:00", 8, 0),
    ];
    assert_eq!(
        hours(&world.postgres().await, "org_1").await,
        expected.map(owned)
    );
}

/// A refusal is also counted by hour, and makes the counter dirty.
#[tokio::test]
async fn refusals_are_stored_by_hour() {
    let world = World::new().await;
    let service = world.instance().await;
    service.track("org_1", 1000).await;
    service.flush().await;
    for _ in 0..3 {
        assert_eq!(service.consume("org_1", 1).await, (false, 1000));
        world.clock.advance(Duration::minutes(40));
    }
    service.flush().await;
    let postgres = world.postgres().await;
    let row = row(&postgres, "org_1").await;
    assert_eq!((row.used, row.denied), (1000, 3));
    let expected = [("03-15T12:00", 1000, 2), ("03-15T13:00", 0, 1)];
    assert_eq!(hours(&postgres, "org_1").await, expected.map(owned));
}

/// Two flushes of three steps each, either of which may stop after any step: all 69 interleavings,
/// with counts and 40 minutes between any two steps.
#[tokio::test]
async fn two_flushes_interleaved_and_interrupted_anywhere_store_every_count() {
    let world = World::new().await;
    let services = [world.instance().await, world.instance().await];
    let postgres = world.postgres().await;
    let mut schedules = Vec::new();
    interleavings(&mut Vec::new(), [3, 3], &mut schedules);
    assert_eq!(schedules.len(), 69);
    for (number, schedule) in schedules.iter().enumerate() {
        let organization = format!("org_{number}");
        let mut flushes = [FlushInSteps::Begun, FlushInSteps::Begun];
        services[0].track(&organization, 1).await;
        let mut counted = 1;
        for (step, flusher) in schedule.iter().enumerate() {
            flushes[*flusher]
                .step(&services[*flusher], &organization)
                .await;
            world.clock.advance(Duration::minutes(40));
            // A different power of two each, so that a wrong sum shows which count is missing.
            services[step % 2].track(&organization, 2 << step).await;
            counted += 2 << step;
            let row = row(&postgres, &organization).await;
            assert_eq!(row.used, row.hours_used, "{schedule:?}: {row:?}");
        }
        services[0].flush().await;
        let row = row(&postgres, &organization).await;
        assert_eq!(
            (row.used, row.hours_used),
            (counted, counted),
            "{schedule:?}: {row:?}"
        );
        let current = services[1].current(&organization, "api").await;
        assert_eq!(current, u(counted), "{schedule:?}");
        assert_eq!(services[1].flush().await, Report::default(), "{schedule:?}");
    }
}

enum FlushInSteps {
    Begun,
    Read(Batch),
    Stored(Batch, Vec<bool>),
    Ended,
}

impl FlushInSteps {
    async fn step(&mut self, service: &Instance, organization: &str) {
        let flusher = &service.app.flusher;
        *self = match std::mem::replace(self, Self::Ended) {
            Self::Begun => Self::Read(flusher.read(&[shard(organization)]).await.unwrap()),
            Self::Read(batch) => {
                let stored = flusher.store(&batch).await.unwrap();
                Self::Stored(batch, stored)
            }
            Self::Stored(batch, stored) => {
                flusher.settle(&batch, &stored).await.unwrap();
                Self::Ended
            }
            Self::Ended => Self::Ended,
        };
    }
}

fn interleavings(steps: &mut Vec<usize>, left: [usize; 2], all: &mut Vec<Vec<usize>>) {
    all.push(steps.clone());
    for flusher in 0..2 {
        let mut left = left;
        if left[flusher] > 0 {
            left[flusher] -= 1;
            steps.push(flusher);
            interleavings(steps, left, all);
            steps.pop();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_instances_that_flush_concurrently_under_load_store_every_count() {
    let world = World::new().await;
    let services = [world.instance().await, world.instance().await];
    let done = CancellationToken::new();
    let flushing: Vec<_> = services
        .iter()
        .map(|service| {
            let (flusher, done) = (service.app.flusher.clone(), done.clone());
            tokio::spawn(async move {
                let mut reports = Vec::new();
                while !done.is_cancelled() {
                    reports.push(flusher.flush_all().await.unwrap());
                }
                reports
            })
        })
        .collect();
    let (callers, clock) = (services.each_ref().map(|it| it.http.clone()), &world.clock);
    at_once(8, |caller| {
        let (http, clock) = (callers[caller % 2].clone(), clock.clone());
        async move {
            for call in 0..60 {
                let organization = format!("org_{}", (caller + call) % 3);
                let body = json!({"organizationId": organization, "amount": 2});
                let answer = http.post("/v1/track", body).await;
                assert_eq!(answer.status, 200, "{answer:?}");
                // Four hours in total.
                clock.advance(Duration::seconds(30));
            }
        }
    })
    .await;
    done.cancel();
    let mut flushes = 0;
    for flushing in flushing {
        flushes += flushing.await.unwrap().len();
    }
    assert!(flushes >= 2);
    services[0].flush().await;
    let rows = rows(&world.postgres().await).await;
    let stored: Vec<_> = rows.iter().map(|row| (row.used, row.hours_used)).collect();
    assert_eq!(stored, [(320, 320); 3]);
    assert_eq!(services[1].flush().await, Report::default());
}

#[tokio::test]
async fn a_flush_that_comes_late_changes_nothing_and_settles_nothing() {
    let world = World::new().await;
    let [slow, quick] = [world.instance().await, world.instance().await];
    slow.track("org_1", 5).await;
    let late = slow.app.flusher.read(&[shard("org_1")]).await.unwrap();
    quick.track("org_1", 2).await;
    quick.flush().await;
    quick.track("org_1", 1).await;
    let before = world.counter("org_1", instant(PERIOD)).await;

    let stored = slow.app.flusher.store(&late).await.unwrap();
    assert_eq!(stored, [false]);
    assert_stored(&world, "org_1", 7).await;
    assert_eq!(slow.app.flusher.settle(&late, &stored).await.unwrap(), 0);
    assert_eq!(world.counter("org_1", instant(PERIOD)).await, before);
    slow.flush().await;
    assert_stored(&world, "org_1", 8).await;
}

/// The counts of the late flush were stored, and then replaced by a newer flush.
#[tokio::test]
async fn a_settlement_that_comes_after_a_newer_one_changes_nothing() {
    let world = World::new().await;
    let [slow, quick] = [world.instance().await, world.instance().await];
    slow.track("org_1", 5).await;
    let late = slow.app.flusher.read(&[shard("org_1")]).await.unwrap();
    let stored = slow.app.flusher.store(&late).await.unwrap();
    assert_eq!(stored, [true]);
    quick.track("org_1", 2).await;
    quick.flush().await;
    let clean = world.counter("org_1", instant(PERIOD)).await;
    assert_eq!(slow.app.flusher.settle(&late, &stored).await.unwrap(), 0);
    assert_eq!(world.counter("org_1", instant(PERIOD)).await, clean);

    quick.track("org_1", 1).await;
    let dirty = world.counter("org_1", instant(PERIOD)).await;
    assert_eq!(slow.app.flusher.settle(&late, &stored).await.unwrap(), 0);
    assert_eq!(world.counter("org_1", instant(PERIOD)).await, dirty);
    quick.flush().await;
    assert_stored(&world, "org_1", 8).await;
}

/// Leases outlast the test, so that each shard has an owner from the first flush on.
#[tokio::test]
async fn instances_share_the_shards_by_leases() {
    let world = World::with(|config| {
        config.flush_interval = std::time::Duration::from_hours(1);
    })
    .await;
    let services = [world.instance().await, world.instance().await];
    let count = || async {
        for number in 0..40 {
            services[0].track(&format!("org_{number}"), 1).await;
        }
    };
    count().await;
    let (one, other) = tokio::join!(
        services[0].app.flusher.flush_once(),
        services[1].app.flusher.flush_once()
    );
    let (one, other) = (one.unwrap(), other.unwrap());
    assert_eq!((one.read + other.read, one.clean + other.clean), (40, 40));

    // A leased shard is skipped; the last flush before a stop takes all shards.
    count().await;
    for service in &services {
        let report = service.app.flusher.flush_once().await.unwrap();
        assert_eq!(report, Report::default());
    }
    assert_eq!(services[1].flush().await.clean, 40);
}

#[tokio::test]
async fn a_service_that_stops_stores_every_count_a_last_time() {
    let world = World::with(|config| {
        config.flush_interval = std::time::Duration::from_hours(1);
    })
    .await;
    let app = App::build(world.config.clone(), world.servers(), world.clock.clone())
        .await
        .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let http = Http::new(
        format!("http://{}", listener.local_addr().unwrap()),
        &world.key,
    );
    let stop = CancellationToken::new();
    let serving = tokio::spawn(app.serve(listener, stop.clone()));
    for number in 0..10 {
        let body = json!({"organizationId": format!("org_{number}"), "amount": 7});
        assert_eq!(http.post("/v1/track", body).await.status, 200);
    }
    stop.cancel();
    serving.await.unwrap().unwrap();
    let stored: Vec<_> = rows(&world.postgres().await)
        .await
        .iter()
        .map(|row| (row.used, row.hours_used))
        .collect();
    assert_eq!(stored, [(7, 7); 10]);
}

#[tokio::test]
async fn a_snapshot_carries_the_limit_and_the_period_that_runs() {
    let world = World::new().await;
    let service = world.instance().await;
    service.track("org_1", 5).await;
    service.flush().await;
    let postgres = world.postgres().await;
    let first = row(&postgres, "org_1").await;
    assert_eq!(first.period_start, instant(PERIOD));
    assert_eq!(first.period_end, Some(instant("2031-04-01T00:00:00Z")));
    assert_eq!(
        (first.limit_units, &*first.enforcement),
        (Some(1000), "hard")
    );

    // A new limit makes the counter dirty without a count.
    let path = "/v1/organizations/org_1/limits";
    let change = json!({"api": {"limit": 7, "enforcement": "soft"}});
    assert_eq!(service.http.patch(path, change).await.status, 200);
    service.flush().await;
    let second = row(&postgres, "org_1").await;
    assert_eq!(
        (second.limit_units, &*second.enforcement),
        (Some(7), "soft")
    );
    assert!(second.policy_version > first.policy_version);

    let change = json!({"api": {"limit": null}});
    assert_eq!(service.http.patch(path, change).await.status, 200);
    service.flush().await;
    let third = row(&postgres, "org_1").await;
    assert_eq!((third.limit_units, third.used), (None, 5));

    // A changed calendar changes the end of the running period.
    let settings = json!({"resetPeriod": "yearly"});
    let answer = service.http.put("/v1/organizations/org_1", settings).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    service.flush().await;
    let fourth = row(&postgres, "org_1").await;
    assert_eq!(fourth.period_end, Some(instant("2032-01-01T00:00:00Z")));
    assert_eq!((fourth.period_start, fourth.used), (instant(PERIOD), 5));
}

/// A period starts without Postgres, so that the flusher may be the first to insert the organization.
#[tokio::test]
async fn the_flusher_creates_the_organizations_that_were_counted() {
    let world = World::new().await;
    let service = world.instance().await;
    // The data set is older than the next period.
    service.track("org_0", 1).await;
    world.clock.advance(Duration::days(20));
    service.track("org_1", 5).await;
    let postgres = world.postgres().await;
    let organizations = async || -> Vec<(String, i64)> {
        sqlx::query_as("select id, version from organizations where id > 'org_0' order by id")
            .fetch_all(&postgres)
            .await
            .unwrap()
    };
    assert_eq!(organizations().await, []);
    service.flush().await;
    assert_eq!(organizations().await, [("org_1".to_owned(), 0)]);
    let row = row(&postgres, "org_1").await;
    assert_eq!((row.used, row.hours_used), (5, 5));
    assert_eq!(row.period_start, instant("2031-04-01T00:00:00Z"));
}

#[tokio::test]
async fn partitions_are_made_ahead_and_for_every_hour_that_is_stored() {
    let world = World::new().await;
    let service = world.instance().await;
    let postgres = world.postgres().await;
    let partitions = async || -> Vec<String> {
        sqlx::query_scalar(
            "select inhrelid::regclass::text from pg_inherits
             where inhparent = 'usage_hourly'::regclass order by 1",
        )
        .fetch_all(&postgres)
        .await
        .unwrap()
    };
    service.flush().await;
    let ahead = [
        "usage_hourly_2031_03",
        "usage_hourly_2031_04",
        "usage_hourly_2031_05",
    ];
    assert_eq!(partitions().await, ahead);

    // Counted now, stored three years later.
    service.track("org_1", 5).await;
    world.clock.advance(Duration::days(3 * 365));
    let later = world.instance().await;
    later.flush().await;
    assert_eq!(row(&postgres, "org_1").await.hours_used, 5);
    assert!(partitions().await.starts_with(&ahead.map(str::to_owned)));
    assert!(
        partitions()
            .await
            .contains(&"usage_hourly_2034_03".to_owned())
    );
}

/// Without a lock, both would fail on tables that the other has created.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn instances_that_need_the_same_partition_concurrently_create_it_once() {
    let world = World::new().await;
    let mut flushers = Vec::new();
    for _ in 0..4 {
        flushers.push(world.instance().await.app.flusher);
    }
    for _ in 0..5 {
        world.clock.advance(Duration::days(100));
        at_once(4, |number| {
            let flusher = flushers[number].clone();
            async move { flusher.flush_all().await.unwrap() }
        })
        .await;
    }
}

#[tokio::test]
async fn stored_slots_that_no_event_can_reach_are_removed_from_redis() {
    let world = World::new().await;
    let service = world.instance().await;
    let start = instant(PERIOD);
    for _ in 0..3 {
        service.track("org_1", 1).await;
        world.clock.advance(Duration::hours(1));
    }
    // All hours are within the grace for late events.
    world.clock.advance(Duration::hours(47));
    service.track("org_1", 1).await;
    service.flush().await;
    assert_eq!(hours_in_redis(&world).await, 4);
    world.clock.advance(Duration::hours(1));
    service.track("org_1", 1).await;
    // An hour out of reach stays until it is stored.
    assert_eq!(hours_in_redis(&world).await, 5);
    service.flush().await;
    assert_eq!(hours_in_redis(&world).await, 4);
    world.clock.advance(Duration::hours(40));
    service.track("org_1", 1).await;
    service.flush().await;
    assert_eq!(hours_in_redis(&world).await, 3);
    assert_stored(&world, "org_1", 6).await;
    assert_eq!(world.counter("org_1", start).await["used"], "6");
}

/// A counter that changes during every flush is never clean, but its hours must still be removed.
#[tokio::test]
async fn a_constantly_dirty_counter_keeps_no_more_slots_than_an_idle_one() {
    let world = World::new().await;
    let service = world.instance().await;
    let flusher = &service.app.flusher;
    for counted in 1..=80 {
        service.track("org_1", 1).await;
        let batch = flusher.read(&[shard("org_1")]).await.unwrap();
        service.track("org_1", 1).await;
        let stored = flusher.store(&batch).await.unwrap();
        assert_eq!(flusher.settle(&batch, &stored).await.unwrap(), 0);
        assert_stored(&world, "org_1", 2 * counted - 1).await;
        world.clock.advance(Duration::hours(1));
    }
    let hours = hours_in_redis(&world).await;
    assert!(hours <= 52, "{hours} hours in Redis");
    service.flush().await;
    assert_stored(&world, "org_1", 160).await;
}

/// Half a year of unstored hours, as after a long outage of Postgres.
#[tokio::test]
async fn a_counter_with_very_many_hours_is_stored_and_settled() {
    let world = World::new().await;
    let service = world.instance().await;
    service.track("org_1", 1).await;
    let first_hour = instant("2030-01-01T00:00:00Z");
    let key = counter_key("org_1", instant(PERIOD));
    let oldest = first_hour.timestamp_millis().to_string();
    let mut fields = vec![("used", "5001"), ("denied", "5000"), ("oldest", &oldest)];
    let starts = (0..5000).map(|hour| (first_hour + Duration::hours(hour)).timestamp_millis());
    let names: Vec<String> = starts
        .flat_map(|start| ["used", "denied"].map(|name| format!("{name}@{start}")))
        .collect();
    fields.extend(names.iter().map(|name| (name.as_str(), "1")));
    world.overwrite(&key, &fields).await;
    let report = service.flush().await;
    assert_eq!((report.stored, report.clean), (1, 1));
    assert_stored(&world, "org_1", 5001).await;
    assert_eq!(hours_in_redis(&world).await, 1);
}

#[tokio::test]
async fn a_stored_counter_is_removed_from_the_dirty_index() {
    let world = World::new().await;
    let service = world.instance().await;
    let dirty = sharded("org_1", "dirty");
    let dirty_entries = async || -> Vec<(String, i64)> {
        world
            .redis_command(&["ZRANGE", &dirty, "0", "-1", "WITHSCORES"])
            .await
    };
    let key = counter_key("org_1", instant(PERIOD));
    let begun = world.clock.now().timestamp_millis();
    service.track("org_1", 1).await;
    world.clock.advance(Duration::seconds(1));
    service.track("org_1", 1).await;
    // The score is the time of the first unstored change.
    assert_eq!(dirty_entries().await, [(key.clone(), begun)]);

    // After a flush, the score of a counter that changed meanwhile is the time of the read.
    let batch = service.app.flusher.read(&[shard("org_1")]).await.unwrap();
    world.clock.advance(Duration::seconds(1));
    service.track("org_1", 1).await;
    let stored = service.app.flusher.store(&batch).await.unwrap();
    service.app.flusher.settle(&batch, &stored).await.unwrap();
    assert_eq!(dirty_entries().await, [(key, begun + 1000)]);
    service.flush().await;
    assert_eq!(dirty_entries().await, []);
}

/// The number of hours in Redis of `org_1` in the first period.
async fn hours_in_redis(world: &World) -> usize {
    let counter = world.counter("org_1", instant(PERIOD)).await;
    counter
        .keys()
        .filter(|field| field.starts_with("used@"))
        .count()
}

async fn track_twice(service: &Instance, round: u64) -> i64 {
    service.track("org_1", round).await;
    service.track("org_1", 10).await;
    i(round + 10)
}

fn owned((start, used, denied): (&str, i64, i64)) -> (String, i64, i64) {
    (start.to_owned(), used, denied)
}

fn i(count: u64) -> i64 {
    count.try_into().unwrap()
}

fn u(count: i64) -> u64 {
    count.try_into().unwrap()
}
