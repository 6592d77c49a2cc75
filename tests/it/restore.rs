//! Loss and rollback of Redis: counters are restored exactly from Postgres, and none restarts at zero.

use chrono::{DateTime, Duration};
use serde_json::json;
use tallyman::app::App;
use tallyman::clock::Clock;
use tallyman::jobs::flush::Report;
use tallyman::postgres;
use tallyman::redis::{RecoveryReply, Redis, Shard};

use crate::support::{
    Instance, SlowRestore, World, assert_stored, at_once, counter_key, instant, redis_settings,
    row, rows, shard, sharded,
};

const PERIOD: &str = "2031-03-01T00:00:00Z";

#[tokio::test]
async fn a_counter_lost_in_mid_period_continues_from_its_snapshot() {
    let world = World::new().await;
    let services = [world.instance().await, world.instance().await];
    services[0].track("org_1", 10).await;
    world.clock.advance(Duration::hours(2));
    services[1].track("org_1", 5).await;
    services[0].flush().await;
    let before = row(&world.postgres().await, "org_1").await;
    // Never flushed, so that it is lost.
    services[0].track("org_1", 3).await;

    world.flush_redis().await;
    assert_eq!(services[1].track("org_1", 1).await, 16);
    assert_eq!(services[0].track("org_1", 1).await, 17);
    services[1].flush().await;
    let after = row(&world.postgres().await, "org_1").await;
    assert_eq!((after.used, after.hours_used), (17, 17));
    assert!(after.generation > before.generation, "{before:?} {after:?}");
}

#[tokio::test]
async fn a_hard_limit_that_was_reached_stays_reached_after_a_loss() {
    let world = World::new().await;
    let services = [world.instance().await, world.instance().await];
    assert_eq!(services[0].consume("org_1", 1).await, (true, 1));
    services[0].limit("org_1", 5).await;
    assert_eq!(services[0].consume("org_1", 4).await, (true, 5));
    services[0].flush().await;
    for _ in 0..3 {
        world.flush_redis().await;
        for service in &services {
            assert_eq!(service.consume("org_1", 1).await, (false, 5));
        }
    }
}

/// Half of the limit is used before the loss; 640 calls then compete for the other half.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixty_four_tasks_right_after_a_loss_are_granted_exactly_what_is_left() {
    let world = World::new().await;
    let services = [world.instance().await, world.instance().await];
    services[0].track("org_1", 500).await;
    services[0].flush().await;
    world.flush_redis().await;
    let callers = services.each_ref().map(|it| it.http.clone());
    let granted: Vec<usize> = at_once(64, |task| {
        let http = callers[task % 2].clone();
        async move {
            let mut granted = 0;
            for _ in 0..10 {
                let answer = http
                    .post("/v1/consume", json!({"organizationId": "org_1"}))
                    .await;
                assert!([200, 429].contains(&answer.status.as_u16()), "{answer:?}");
                granted += usize::from(answer.status == 200);
            }
            granted
        }
    })
    .await;
    assert_eq!(granted.iter().sum::<usize>(), 500);
    services[1].flush().await;
    let row = row(&world.postgres().await, "org_1").await;
    assert_eq!((row.used, row.denied), (1000, 140));
    assert_eq!((row.hours_used, row.hours_denied), (1000, 140));
}

/// Both instances restore each of forty counters at the same time, three times.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_instances_that_restore_at_once_count_exactly() {
    let world = World::new().await;
    let services = [world.instance().await, world.instance().await];
    let callers = services.each_ref().map(|it| it.http.clone());
    for loss in 1..=3 {
        at_once(80, |call| {
            let http = callers[call % 2].clone();
            async move {
                let body = json!({"organizationId": format!("org_{}", call / 2), "amount": 3});
                let answer = http.post("/v1/track", body).await;
                assert_eq!(answer.status, 200, "{answer:?}");
            }
        })
        .await;
        services[loss % 2].flush().await;
        let rows = rows(&world.postgres().await).await;
        let expected = i64::try_from(loss).unwrap() * 6;
        let stored: Vec<_> = rows.iter().map(|row| (row.used, row.hours_used)).collect();
        assert_eq!(stored, [(expected, expected); 40]);
        world.flush_redis().await;
    }
}

#[tokio::test]
async fn a_loss_keeps_refusals_and_hours_of_every_meter() {
    let world = World::new().await;
    let service = world.instance().await;
    let body = json!({"organizationId": "org_1", "meters": {"api": 1000, "tokens": 70}});
    assert_eq!(service.http.post("/v1/consume", body).await.status, 200);
    world.clock.advance(Duration::hours(1));
    let body = json!({"organizationId": "org_1", "meters": {"api": 1, "tokens": 7}});
    assert_eq!(
        service.http.post("/v1/consume", body.clone()).await.status,
        429
    );
    service.flush().await;
    world.flush_redis().await;
    assert_eq!(service.current("org_1", "tokens").await, 70);
    assert_eq!(service.http.post("/v1/consume", body).await.status, 429);
    assert_eq!(service.current("org_1", "tokens").await, 70);
    service.flush().await;
    let rows = rows(&world.postgres().await).await;
    let stored: Vec<_> = rows
        .iter()
        .map(|row| {
            (
                row.meter.as_str(),
                row.used,
                row.denied,
                row.hours_used,
                row.hours_denied,
            )
        })
        .collect();
    assert_eq!(
        stored,
        [("api", 1000, 2, 1000, 2), ("tokens", 70, 0, 70, 0)]
    );
}

/// One instance has noticed the loss and restored one meter; the usage is read from the other.
#[tokio::test]
async fn an_instance_that_has_not_noticed_a_loss_never_reads_usage_as_zero() {
    let world = World::new().await;
    let services = [world.instance().await, world.instance().await];
    let body = json!({"organizationId": "org_1", "meters": {"api": 10, "tokens": 70}});
    for service in &services {
        let answer = service.http.post("/v1/track", body.clone()).await;
        assert_eq!(answer.status, 200, "{answer:?}");
    }
    services[0].flush().await;
    world.flush_redis().await;
    assert_eq!(services[0].track("org_1", 1).await, 21);
    let answer = services[1]
        .http
        .get("/v1/organizations/org_1/usage")
        .await
        .body;
    let current = |meter: &str| answer["meters"][meter]["current"].as_u64().unwrap();
    assert_eq!((current("api"), current("tokens")), (21, 140), "{answer}");
    assert_eq!(answer["exact"], true);
}

/// The other instance has an older policy cached.
#[tokio::test]
async fn an_instance_that_has_missed_a_new_limit_never_reads_usage_as_zero() {
    let world = World::new().await;
    let services = [world.instance().await, world.instance().await];
    let body = json!({"organizationId": "org_1", "meters": {"api": 10, "tokens": 70}});
    for service in &services {
        let answer = service.http.post("/v1/track", body.clone()).await;
        assert_eq!(answer.status, 200, "{answer:?}");
    }
    services[0].flush().await;
    world.flush_redis().await;
    // The second instance knows the new generation, but has the old policy cached.
    services[1].track("org_2", 1).await;
    services[0].limit("org_1", 77).await;
    services[0].track("org_1", 1).await;
    let answer = services[1]
        .http
        .get("/v1/organizations/org_1/usage")
        .await
        .body;
    let current = |meter: &str| answer["meters"][meter]["current"].as_u64().unwrap();
    assert_eq!((current("api"), current("tokens")), (21, 140), "{answer}");
}

/// A flush reads the first counts of a meter before Redis loses them, and stores them after another meter of the
/// organization was restored.
#[tokio::test]
async fn a_meter_stored_after_its_organization_was_restored_is_restored_as_well() {
    let world = World::new().await;
    let service = world.instance().await;
    service.track("org_1", 10).await;
    service.flush().await;
    let body = json!({"organizationId": "org_1", "meters": {"tokens": 70}});
    assert_eq!(service.http.post("/v1/track", body).await.status, 200);
    let flusher = &service.app.flusher;
    let batch = flusher.read(&[shard("org_1")]).await.unwrap();
    world.flush_redis().await;
    assert_eq!(service.track("org_1", 1).await, 11);
    assert_eq!(flusher.store(&batch).await.unwrap(), [true]);

    flusher.summaries.walk_once().await.unwrap();
    let path = "/v1/organizations/org_1/usage";
    let answer = service.http.get(path).await.body;
    let current = |meter: &str| answer["meters"][meter]["current"].as_u64();
    assert_eq!(
        (current("api"), current("tokens")),
        (Some(11), Some(70)),
        "{answer}"
    );
    assert_eq!(answer["exact"], true);
}

#[tokio::test]
async fn without_postgres_a_missing_counter_is_unknown_and_nothing_is_counted() {
    let world = World::new().await;
    let postgres = world.postgres().await;
    let (servers, socket) = world.cuttable_postgres();
    let service = world.instance_with(servers).await;
    service.track("org_1", 5).await;
    service.flush().await;
    socket.cut(&postgres).await;
    // Counters in Redis still count; a missing one may exist in Postgres.
    assert_eq!(service.track("org_1", 1).await, 6);
    assert_database_needed(&service, "org_2").await;

    world.flush_redis().await;
    assert_database_needed(&service, "org_1").await;
    assert_database_needed(&service, "org_1").await;
    socket.restore().await;
    assert_eq!(service.track("org_1", 1).await, 6);
    service.flush().await;
    assert_eq!(row(&postgres, "org_1").await.used, 6);
}

#[tokio::test]
async fn a_period_that_begins_after_a_loss_needs_no_postgres() {
    let world = World::new().await;
    let postgres = world.postgres().await;
    let (servers, socket) = world.cuttable_postgres();
    let service = world.instance_with(servers).await;
    service.track("org_1", 5).await;
    world.flush_redis().await;
    service.track("org_1", 1).await;
    service.app.state.auth.sweep_once().await.unwrap();
    world.clock.advance(Duration::days(20));
    socket.cut(&postgres).await;
    assert_eq!(service.track("org_1", 1).await, 1);
    assert_eq!(service.track("org_1", 1).await, 2);
    socket.restore().await;
    service.flush().await;
    let rows = rows(&postgres).await;
    let used: Vec<_> = rows.iter().map(|row| (row.used, row.hours_used)).collect();
    assert_eq!(used, [(1, 1), (2, 2)]);
}

#[tokio::test]
async fn what_a_clock_that_is_an_hour_ahead_counted_in_the_next_period_survives_a_loss() {
    let world = World::new().await;
    let service = world.instance().await;
    let hour_before_end = instant("2031-03-31T23:02:00Z") - world.clock.now();
    world.clock.advance(hour_before_end);
    let ahead = Clock::manual(world.clock.now() + Duration::hours(1));
    let ahead = world.instance_at(ahead).await;
    assert_eq!(ahead.track("org_1", 5).await, 5);
    ahead.flush().await;
    world.flush_redis().await;
    assert_eq!(service.track("org_1", 1).await, 1);
    world.clock.advance(Duration::minutes(59));
    assert_eq!(service.track("org_1", 1).await, 6);
}

#[tokio::test]
async fn a_period_that_begins_within_the_hour_after_a_loss_needs_postgres() {
    let world = World::new().await;
    let postgres = world.postgres().await;
    let (servers, socket) = world.cuttable_postgres();
    let service = world.instance_with(servers).await;
    let before = instant("2031-03-31T22:55:00Z") - world.clock.now();
    world.clock.advance(before);
    service.track("org_1", 5).await;
    world.flush_redis().await;
    service.track("org_1", 1).await;
    world.clock.advance(Duration::minutes(66));
    socket.cut(&postgres).await;
    assert_database_needed(&service, "org_1").await;
    socket.restore().await;
    assert_eq!(service.track("org_1", 1).await, 1);
}

#[tokio::test]
async fn a_flush_from_before_the_loss_is_refused_after_it_and_settles_nothing() {
    let world = World::new().await;
    let service = world.instance().await;
    let flusher = &service.app.flusher;
    service.track("org_1", 5).await;
    service.flush().await;
    service.track("org_1", 4).await;
    let late = flusher.read(&[shard("org_1")]).await.unwrap();
    world.flush_redis().await;
    // As many changes as before the loss, so that the sequence numbers are equal.
    assert_eq!(service.track("org_1", 1).await, 6);
    let before = world.counter("org_1", instant(PERIOD)).await;
    assert_eq!(before["sequence"], late.snapshots[0].sequence.to_string());

    let stored = flusher.store(&late).await.unwrap();
    assert_eq!(stored, [false]);
    for stored in [stored, vec![true]] {
        assert_eq!(flusher.settle(&late, &stored).await.unwrap(), 0);
        assert_eq!(world.counter("org_1", instant(PERIOD)).await, before);
    }
    service.flush().await;
    let row = row(&world.postgres().await, "org_1").await;
    assert_eq!((row.used, row.hours_used), (6, 6));
}

/// The flush has the only copy of the counts, and the counter is not restored yet.
#[tokio::test]
async fn a_flush_from_before_the_loss_that_is_stored_before_the_restore_saves_what_it_read() {
    let world = World::new().await;
    let service = world.instance().await;
    let flusher = &service.app.flusher;
    service.track("org_1", 9).await;
    let late = flusher.read(&[shard("org_1")]).await.unwrap();
    service.track("org_1", 1).await;
    world.flush_redis().await;
    let stored = flusher.store(&late).await.unwrap();
    assert_eq!(stored, [true]);
    assert_eq!(service.track("org_1", 1).await, 10);
    let before = world.counter("org_1", instant(PERIOD)).await;
    assert_eq!(flusher.settle(&late, &stored).await.unwrap(), 0);
    assert_eq!(world.counter("org_1", instant(PERIOD)).await, before);
    service.flush().await;
    let row = row(&world.postgres().await, "org_1").await;
    assert_eq!((row.used, row.hours_used), (10, 10));
}

#[tokio::test]
async fn a_rollback_of_redis_lowers_no_count_in_postgres() {
    let mut world = World::new().await;
    let services = [world.instance().await, world.instance().await];
    let postgres = world.postgres().await;
    services[0].track("org_1", 5).await;
    // In the copy one counter is dirty, one clean and one missing.
    services[0].track("org_2", 5).await;
    services[0].flush().await;
    services[0].track("org_1", 5).await;
    let copy = world.copy_redis().await;
    for _ in 0..4 {
        services[1].track("org_1", 10).await;
        services[1].track("org_2", 10).await;
        services[1].track("org_3", 10).await;
        world.clock.advance(Duration::minutes(40));
    }
    services[0].flush().await;
    let before = rows(&postgres).await;

    world
        .restart_redis_from(&copy, &[&services[0], &services[1]])
        .await;
    services[0].flush().await;
    services[1].flush().await;
    assert_eq!(rows(&postgres).await, before);
    for (number, service) in services.iter().enumerate() {
        let more = u64::try_from(number).unwrap();
        assert_eq!(service.track("org_1", 1).await, 51 + more);
        assert_eq!(service.track("org_2", 1).await, 46 + more);
        assert_eq!(service.track("org_3", 1).await, 41 + more);
    }
    services[0].flush().await;
    let used: Vec<_> = rows(&postgres)
        .await
        .iter()
        .map(|row| (row.used, row.hours_used))
        .collect();
    assert_eq!(used, [(52, 52), (47, 47), (42, 42)]);
}

/// A new limit is a change too, but must not advance the sequence number of a frozen counter: it would
/// pass the newer counts in Postgres.
#[tokio::test]
async fn new_limits_after_a_rollback_lower_no_count_in_postgres() {
    let mut world = World::new().await;
    let service = world.instance().await;
    let postgres = world.postgres().await;
    service.track("org_1", 5).await;
    service.flush().await;
    let copy = world.copy_redis().await;
    service.track("org_1", 5).await;
    service.track("org_1", 5).await;
    service.flush().await;
    world.restart_redis_from(&copy, &[&service]).await;
    for limit in 100..105 {
        service.limit("org_1", limit).await;
        service.flush().await;
        let row = row(&postgres, "org_1").await;
        assert_eq!((row.used, row.hours_used), (15, 15), "{row:?}");
    }
    assert_eq!(service.track("org_1", 1).await, 16);
    service.flush().await;
    let row = row(&postgres, "org_1").await;
    assert_eq!((row.used, row.limit_units), (16, Some(104)));
}

/// Postgres has newer counts, so that the old counter has nothing to flush.
#[tokio::test]
async fn a_counter_that_a_rollback_left_behind_is_not_flushed_again_and_again() {
    let mut world = World::new().await;
    let service = world.instance().await;
    let postgres = world.postgres().await;
    service.track("org_1", 5).await;
    let copy = world.copy_redis().await;
    service.track("org_1", 5).await;
    service.flush().await;
    world.restart_redis_from(&copy, &[&service]).await;
    let report = service.flush().await;
    assert_eq!((report.read, report.stored, report.clean), (1, 0, 1));
    assert_eq!(service.flush().await, Report::default());
    assert_eq!(service.track("org_1", 1).await, 11);
    service.flush().await;
    assert_eq!(row(&postgres, "org_1").await.used, 11);
}

#[tokio::test]
async fn a_restart_that_loses_nothing_loses_nothing() {
    let mut world = World::new().await;
    let services = [world.instance().await, world.instance().await];
    let postgres = world.postgres().await;
    services[0].track("org_1", 5).await;
    services[0].flush().await;
    world.clock.advance(Duration::hours(3));
    services[1].track("org_1", 4).await;
    let before = row(&postgres, "org_1").await;
    assert_eq!(before.used, 5);
    let copy = world.copy_redis().await;
    world
        .restart_redis_from(&copy, &[&services[0], &services[1]])
        .await;

    // Connected instances and new ones continue exactly.
    assert_eq!(services[0].current("org_1", "api").await, 9);
    assert_eq!(services[0].track("org_1", 1).await, 10);
    assert_eq!(services[1].track("org_1", 1).await, 11);
    let new_instance = world.instance().await;
    assert_eq!(new_instance.track("org_1", 1).await, 12);
    services[1].flush().await;
    let after = row(&postgres, "org_1").await;
    assert_eq!((after.used, after.hours_used), (12, 12));
    assert!(after.generation > before.generation, "{before:?} {after:?}");
}

/// No call moves the counter to the new generation before the flush.
#[tokio::test]
async fn a_counter_of_an_older_generation_is_flushed_under_its_own() {
    let mut world = World::new().await;
    let service = world.instance().await;
    let postgres = world.postgres().await;
    service.track("org_1", 5).await;
    service.flush().await;
    service.track("org_1", 4).await;
    let before = row(&postgres, "org_1").await;
    let copy = world.copy_redis().await;
    world.restart_redis_from(&copy, &[&service]).await;
    let report = service.flush().await;
    assert_eq!((report.stored, report.clean), (1, 1));
    let flushed = row(&postgres, "org_1").await;
    assert_eq!((flushed.used, flushed.hours_used), (9, 9));
    assert_eq!(flushed.generation, before.generation);

    assert_eq!(service.track("org_1", 1).await, 10);
    service.flush().await;
    let moved = row(&postgres, "org_1").await;
    assert_eq!((moved.used, moved.hours_used), (10, 10));
    assert!(moved.generation > before.generation);
}

/// The unflushed counts of the old generation are stored before the counter moves.
#[tokio::test]
async fn a_counter_of_an_older_generation_is_stored_before_it_moves() {
    let mut world = World::new().await;
    let service = world.instance().await;
    let postgres = world.postgres().await;
    service.track("org_1", 5).await;
    service.flush().await;
    world.clock.advance(Duration::hours(1));
    service.track("org_1", 4).await;
    let late = service.app.flusher.read(&[shard("org_1")]).await.unwrap();
    let copy = world.copy_redis().await;
    world.restart_redis_from(&copy, &[&service]).await;
    assert_eq!(service.current("org_1", "api").await, 9);
    // The row has moved to the new generation, so that the older flush is refused.
    let moved = row(&postgres, "org_1").await;
    assert_eq!((moved.used, moved.hours_used), (9, 9));
    let stored = service.app.flusher.store(&late).await.unwrap();
    assert_eq!(stored, [false]);
    assert_eq!(service.app.flusher.settle(&late, &stored).await.unwrap(), 0);
    let counter = world.counter("org_1", instant(PERIOD)).await;
    assert_eq!(
        (&*counter["used"], &counter["sequence"]),
        ("9", &counter["stored"])
    );
}

#[tokio::test]
async fn without_postgres_a_restarted_redis_is_not_trusted() {
    let mut world = World::new().await;
    let postgres = world.postgres().await;
    let (servers, socket) = world.cuttable_postgres();
    let service = world.instance_with(servers).await;
    service.track("org_1", 5).await;
    let copy = world.copy_redis().await;
    service.track("org_1", 5).await;
    service.flush().await;
    socket.cut(&postgres).await;
    world.restart_redis_from(&copy, &[&service]).await;
    assert_database_needed(&service, "org_1").await;
    // The data set has a name by now, but no generation.
    assert_database_needed(&service, "org_1").await;
    socket.restore().await;
    assert_eq!(service.track("org_1", 1).await, 11);
}

#[tokio::test]
async fn without_postgres_a_restarted_redis_that_is_trusted_counts() {
    let mut world = World::with(|config| config.trust_redis_restart = true).await;
    let postgres = world.postgres().await;
    let (servers, socket) = world.cuttable_postgres();
    let services = [
        world.instance_with(servers.clone()).await,
        world.instance_with(servers).await,
    ];
    services[0].track("org_1", 5).await;
    services[0].flush().await;
    services[1].track("org_1", 4).await;
    let before = row(&postgres, "org_1").await;
    socket.cut(&postgres).await;
    let copy = world.copy_redis().await;
    world
        .restart_redis_from(&copy, &[&services[0], &services[1]])
        .await;
    assert_eq!(services[0].track("org_1", 1).await, 10);
    assert_eq!(services[1].track("org_1", 1).await, 11);
    // An empty Redis still gets a new generation.
    socket.restore().await;
    services[0].flush().await;
    let after = row(&postgres, "org_1").await;
    assert_eq!((after.used, after.generation), (11, before.generation));
    world.flush_redis().await;
    assert_eq!(services[1].track("org_1", 1).await, 12);
    services[0].flush().await;
    assert!(row(&postgres, "org_1").await.generation > before.generation);
}

#[tokio::test]
async fn a_limit_set_before_a_loss_is_effective_after_it() {
    let world = World::new().await;
    let services = [world.instance().await, world.instance().await];
    for service in &services {
        service.track("org_1", 5).await;
    }
    services[0].flush().await;
    services[0].limit("org_1", 11).await;
    world.flush_redis().await;
    // This instance has the old limit cached.
    assert_eq!(services[1].consume("org_1", 1).await, (true, 11));
    assert_eq!(services[1].consume("org_1", 1).await, (false, 11));
    services[0].flush().await;
    assert_eq!(
        row(&world.postgres().await, "org_1").await.limit_units,
        Some(11)
    );
}

#[tokio::test]
async fn usage_shows_a_limit_that_was_set_before_a_loss() {
    let world = World::new().await;
    let services = [world.instance().await, world.instance().await];
    for service in &services {
        service.track("org_1", 5).await;
    }
    services[0].flush().await;
    services[0].limit("org_1", 11).await;
    world.flush_redis().await;
    let path = "/v1/organizations/org_1/usage";
    let answer = services[1].http.get(path).await;
    assert_eq!(answer.body["meters"]["api"]["limit"], 11, "{answer:?}");
    assert_eq!(answer.body["meters"]["api"]["current"], 10, "{answer:?}");
}

/// The second instance has the old limit cached, and counts first in the new period.
#[tokio::test]
async fn a_period_begins_under_the_newest_limit_on_every_instance() {
    let world = World::new().await;
    let services = [world.instance().await, world.instance().await];
    for service in &services {
        service.track("org_1", 5).await;
    }
    services[0].limit("org_1", 3).await;
    world.clock.advance(Duration::days(20));
    assert_eq!(services[1].consume("org_1", 4).await, (false, 0));
    assert_eq!(services[1].consume("org_1", 3).await, (true, 3));
}

/// Redis has no counter whose limit could change, and nothing is counted afterwards.
#[tokio::test]
async fn a_limit_that_is_set_while_the_counter_is_lost_is_in_its_snapshot() {
    let world = World::new().await;
    let service = world.instance().await;
    service.track("org_1", 5).await;
    service.flush().await;
    world.flush_redis().await;
    service.limit("org_1", 7).await;
    let body = json!({"organizationId": "org_1"});
    let answer = service.http.post("/v1/check", body).await;
    assert_eq!(answer.body["current"], 5, "{answer:?}");
    service.flush().await;
    let row = row(&world.postgres().await, "org_1").await;
    assert_eq!((row.used, row.limit_units), (5, Some(7)));
}

#[tokio::test]
async fn a_limit_that_a_rollback_reverted_is_effective_again_after_a_sweep() {
    let mut world = World::new().await;
    let service = world.instance().await;
    service.track("org_1", 5).await;
    service.flush().await;
    let copy = world.copy_redis().await;
    service.limit("org_1", 6).await;
    service.app.policies.sweep_once().await.unwrap();
    world.restart_redis_from(&copy, &[&service]).await;
    let new_instance = world.instance().await;
    new_instance.app.policies.sweep_once().await.unwrap();
    assert_eq!(new_instance.consume("org_1", 1).await, (true, 6));
    assert_eq!(new_instance.consume("org_1", 1).await, (false, 6));
    assert_eq!(service.consume("org_1", 1).await, (false, 6));
}

#[tokio::test]
async fn a_restore_overtaken_by_another_changes_nothing() {
    let world = World::new().await;
    let service = world.instance().await;
    let slow = SlowRestore::new(&world).await;
    service.track("org_1", 5).await;
    service.flush().await;
    let stamp = slow.stamp().await;
    let moved = slow.move_in_postgres(&stamp).await.unwrap();
    assert_eq!(moved.snapshot.used.get(), 5);

    // Overtaken by another restore, after which units were counted.
    service.track("org_1", 1).await;
    let before = world.counter("org_1", instant(PERIOD)).await;
    assert_eq!(
        slow.write_to_redis(&moved, stamp.version).await,
        RecoveryReply::Ready
    );
    assert_eq!(world.counter("org_1", instant(PERIOD)).await, before);

    // Overtaken by a loss, before and after an instance notices it.
    service.flush().await;
    world.flush_redis().await;
    let refused = slow.write_to_redis(&moved, stamp.version).await;
    assert_eq!(refused, RecoveryReply::Generation);
    assert!(world.counter("org_1", instant(PERIOD)).await.is_empty());
    assert_eq!(service.track("org_1", 1).await, 7);
    let before = world.counter("org_1", instant(PERIOD)).await;
    let refused = slow.write_to_redis(&moved, stamp.version).await;
    assert_eq!(refused, RecoveryReply::Generation);
    assert_eq!(world.counter("org_1", instant(PERIOD)).await, before);

    // Postgres never goes back to an older generation.
    let moved = slow.move_in_postgres(&stamp).await;
    assert!(matches!(moved, Err(postgres::Error::NewerGeneration)));
}

#[tokio::test]
async fn a_restore_under_an_older_policy_or_over_an_unknown_counter_is_refused() {
    let world = World::new().await;
    let service = world.instance().await;
    let slow = SlowRestore::new(&world).await;
    service.track("org_1", 5).await;
    service.flush().await;
    let older = slow.stamp().await;
    service.limit("org_1", 7).await;
    service.flush().await;
    let stamp = slow.stamp().await;
    let moved = slow.move_in_postgres(&stamp).await.unwrap();
    let key = counter_key("org_1", instant(PERIOD));
    let () = world.redis_command(&["DEL", &key]).await;
    let refused = slow.write_to_redis(&moved, older.version).await;
    assert_eq!(refused, RecoveryReply::Policy);

    // A counter of another generation that was not flushed before the move.
    let frozen = [("used", "9"), ("sequence", "9"), ("stamp", "0:0:1000:h:")];
    world.overwrite(&key, &frozen).await;
    let refused = slow.write_to_redis(&moved, stamp.version).await;
    assert_eq!(refused, RecoveryReply::Changed);
    assert_eq!(world.counter("org_1", instant(PERIOD)).await["used"], "9");

    let () = world.redis_command(&["DEL", &key]).await;
    assert_eq!(
        slow.write_to_redis(&moved, stamp.version).await,
        RecoveryReply::Ready
    );
    assert_eq!(service.track("org_1", 1).await, 6);
}

/// A generation drawn for one data set must not be given to the next.
#[tokio::test]
async fn a_generation_drawn_before_a_loss_is_not_given_to_the_new_data_set() {
    let world = World::new().await;
    let [one, other] = [0, 1]
        .map(|_| Redis::new(redis_settings(&world), world.clock.clone(), world.metrics()).unwrap());
    let (connection, other_connection) = (
        one.connection().await.unwrap(),
        other.connection().await.unwrap(),
    );
    let shards: Vec<Shard> = Shard::all().take(2).collect();
    let identified = one.identify(&connection, &shards).await.unwrap();
    assert_eq!(identified.len(), 2);
    // Both instances see the same name, and the first number wins.
    assert_eq!(
        other.identify(&other_connection, &shards).await.unwrap(),
        identified
    );
    assert_eq!(
        other
            .number(&other_connection, &identified, (7, DateTime::UNIX_EPOCH))
            .await
            .unwrap(),
        []
    );
    assert_eq!(
        one.number(&connection, &identified, (8, DateTime::UNIX_EPOCH))
            .await
            .unwrap(),
        []
    );
    assert_eq!(connection.generation(shards[0]), Some(7));

    let () = world.redis_command(&["DEL", "tm:{00}:gen"]).await;
    let renamed = one
        .number(&connection, &identified, (9, DateTime::UNIX_EPOCH))
        .await
        .unwrap();
    assert_eq!(renamed.len(), 1);
    assert_ne!(renamed[0].name, identified[0].name);
    assert_eq!(connection.generation(shards[0]), None);
    assert_eq!(connection.generation(shards[1]), Some(7));
    assert_eq!(
        one.number(&connection, &renamed, (10, DateTime::UNIX_EPOCH))
            .await
            .unwrap(),
        []
    );
    assert_eq!(
        other.identify(&other_connection, &shards).await.unwrap(),
        []
    );
    assert_eq!(other_connection.generation(shards[0]), Some(10));
}

/// Eight instances find an empty Redis concurrently, and again after each loss.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn instances_that_find_an_empty_redis_concurrently_agree_on_its_generation() {
    let world = World::new().await;
    let mut services = Vec::new();
    for _ in 0..8 {
        services.push(world.instance().await);
    }
    let callers: Vec<_> = services.iter().map(|it| it.http.clone()).collect();
    for round in 1..=4 {
        at_once(16, |call| {
            let http = callers[call % 8].clone();
            async move {
                let body = json!({"organizationId": "org_1"});
                let answer = http.post("/v1/track", body).await;
                assert_eq!(answer.status, 200, "{answer:?}");
            }
        })
        .await;
        services[round % 8].flush().await;
        let row = row(&world.postgres().await, "org_1").await;
        assert_eq!(row.used, 16 * i64::try_from(round).unwrap());
        let number: String = world
            .redis_command(&["HGET", &sharded("org_1", "gen"), "number"])
            .await;
        assert_eq!(number, row.generation.to_string());
        world.flush_redis().await;
    }
}

#[tokio::test]
async fn a_redis_with_an_evicting_policy_is_refused() {
    let world = World::new().await;
    let () = world
        .redis_command(&["CONFIG", "SET", "maxmemory-policy", "allkeys-lru"])
        .await;
    let refused = refusal(&world).await;
    assert!(refused.contains("allkeys-lru"), "{refused}");
    assert!(refused.contains("noeviction"), "{refused}");
}

#[tokio::test]
async fn a_redis_with_another_key_layout_is_refused() {
    let world = World::new().await;
    let () = world
        .redis_command(&["SET", "tm:{00}:layout", "0 crc16 16"])
        .await;
    let refused = refusal(&world).await;
    assert!(refused.contains("0 crc16 16"), "{refused}");
    // The data is left unchanged.
    let keys: Vec<String> = world.redis_command(&["KEYS", "*"]).await;
    assert_eq!(keys, ["tm:{00}:layout"]);
}

/// Layout 3 has the same counters; other are the keys that no organization owns, and the mark of a data set.
#[tokio::test]
async fn counts_of_the_previous_layout_go_on() {
    let world = World::new().await;
    let before = world.instance().await;
    assert_eq!(before.track("org_1", 5).await, 5);
    before.flush().await;
    assert_eq!(before.track("org_1", 2).await, 7);
    before.limits("org_2", json!({"api": {"limit": 3}})).await;
    drop(before);
    let layout = ["SET", "tm:layout", "3 xxh3_64 256 64"];
    let () = world.redis_command(&layout).await;
    let () = world.redis_command(&["SET", "tm:applied", "9"]).await;
    let _: u64 = world.redis_command(&["DEL", "tm:{00}:layout"]).await;
    for organization in ["org_1", "org_2"] {
        let key = sharded(organization, "gen");
        let identity: String = world.redis_command(&["HGET", &key, "identity"]).await;
        let (run, _) = identity.split_once('/').unwrap();
        let _: u64 = world.redis_command(&["HSET", &key, "run", run]).await;
        let gone = ["HDEL", key.as_str(), "identity", "applied"];
        let _: u64 = world.redis_command(&gone).await;
    }
    let after = world.instance().await;
    // What was not stored before is.
    assert_eq!(after.track("org_1", 1).await, 8);
    assert_eq!(after.try_consume("org_2", "api", 4).await.status, 429);
    after.app.policies.sweep_once().await.unwrap();
    after.flush().await;
    assert_stored(&world, "org_1", 8).await;
}

/// The error with which the service fails to start.
async fn refusal(world: &World) -> String {
    let built = App::build(world.config.clone(), world.servers(), world.clock.clone()).await;
    built.map(|_| ()).unwrap_err().to_string()
}

/// Asserts that calls fail because they need the database.
async fn assert_database_needed(service: &Instance, organization: &str) {
    let body = json!({"organizationId": organization});
    for path in ["/v1/track", "/v1/consume", "/v1/check"] {
        let answer = service.http.post(path, body.clone()).await;
        assert_eq!(
            (answer.status.as_u16(), answer.code()),
            (503, "database_unavailable"),
            "{answer:?}"
        );
    }
}
