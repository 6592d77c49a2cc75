//! Recovery of many counters at once: coalesced into few round trips, with a result for each counter.

use chrono::Duration;
use serde_json::{Value, json};
use tallyman::clock::Clock;
use tallyman::domain::counter::{CounterId, Stamp};
use tallyman::domain::limit::Rule;
use tallyman::postgres::usage::{self, Move};
use tallyman::postgres::{self, Postgres};

use crate::support::{Answer, Instance, World, at_once, counter_key, instant, rows};

const PERIOD: &str = "2031-03-01T00:00:00Z";

fn track(organization: &str, meter: &str) -> Value {
    json!({"op": "track", "organizationId": organization, "meter": meter})
}

fn items(range: std::ops::Range<u32>) -> Vec<Value> {
    range
        .map(|it| track(&format!("org_{it:04}"), "api"))
        .collect()
}

async fn send(service: &Instance, items: &[Value]) -> Answer {
    let answer = service
        .http
        .post("/v1/batch", json!({"items": items}))
        .await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    answer
}

fn statuses(answer: &Answer) -> Vec<u64> {
    let results = answer.body["results"].as_array().unwrap().iter();
    results.map(|it| it["status"].as_u64().unwrap()).collect()
}

/// The number of transactions that wrote the current rows of `usage_history`.
async fn transactions(world: &World) -> u64 {
    let transactions = world
        .select("select count(distinct xmin::text)::text from usage_history")
        .await;
    transactions[0].parse().unwrap()
}

/// The number of calls of a script by an instance.
async fn calls(service: &Instance, script: &str) -> f64 {
    let metrics = service.http.get("/metrics").await.text;
    let sample = format!("tallyman_script_duration_seconds_count{{script=\"{script}\"}} ");
    let line = metrics.lines().find_map(|line| line.strip_prefix(&sample));
    line.unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_concurrent_first_calls_to_two_instances_count_once_each() {
    let world = World::new().await;
    let services = [world.instance().await, world.instance().await];
    let callers = services.each_ref().map(|it| it.http.clone());
    for loss in 1..=2 {
        at_once(104, |task| {
            let http = callers[task % 2].clone();
            async move {
                let answer = if task < 4 {
                    let items = json!({"items": items(0..1000)});
                    http.post("/v1/batch?results=none", items).await
                } else {
                    let organization = format!("org_{:04}", task * 7);
                    http.post("/v1/track", json!({"organizationId": organization}))
                        .await
                };
                assert_eq!(answer.status, 200, "{}", answer.text);
            }
        })
        .await;
        services[0].flush().await;
        let rows = rows(&world.postgres().await).await;
        assert_eq!(rows.len(), 1000);
        for (number, row) in rows.iter().enumerate() {
            let single = number % 7 == 0 && (4..104).contains(&(number / 7));
            let expected = loss * (4 + i64::from(single));
            assert_eq!((row.used, row.hours_used), (expected, expected), "{row:?}");
        }
        // In the second round the policies are cached, but no longer in Redis.
        world.flush_redis().await;
    }
}

#[tokio::test]
async fn recovering_a_thousand_counters_takes_a_handful_of_round_trips() {
    let world = World::new().await;
    let service = world.instance().await;
    for (first, lost) in [("a new organization", 0), ("a loss", 1000)] {
        let before = [
            calls(&service, "open").await,
            calls(&service, "restore").await,
        ];
        let answer = send(&service, &items(0..1000)).await;
        assert_eq!(answer.body["counted"], 1000, "{first}");
        assert!(transactions(&world).await <= 4, "{first}");
        let after = [
            calls(&service, "open").await,
            calls(&service, "restore").await,
        ];
        for (before, after) in before.into_iter().zip(after) {
            assert!(after - before <= 8.0, "{first}: {}", after - before);
        }
        assert!(calls(&service, "configure").await <= 8.0, "{lost}");
        service.flush().await;
        world.flush_redis().await;
    }
}

/// The batch has counters of an old generation, lost ones and new ones.
#[tokio::test]
async fn frozen_lost_and_new_counters_are_recovered_in_one_batch() {
    let mut world = World::new().await;
    let service = world.instance().await;
    send(&service, &items(0..30)).await;
    service.flush().await;
    // Not flushed, so that the old data set is ahead of Postgres.
    send(&service, &items(10..20)).await;
    let copy = world.copy_redis().await;
    send(&service, &items(20..40)).await;
    service.flush().await;
    world.restart_redis_from(&copy, &[&service]).await;
    let answer = send(&service, &items(0..50)).await;
    let current: Vec<u64> = answer.body["results"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| it["current"].as_u64().unwrap())
        .collect();
    let expected = |it| {
        if (10..30).contains(&it) {
            3
        } else if it < 40 {
            2
        } else {
            1
        }
    };
    assert_eq!(current, (0..50).map(expected).collect::<Vec<_>>());
    service.flush().await;
    for (row, used) in rows(&world.postgres().await).await.iter().zip(current) {
        assert_eq!(
            (row.used, row.hours_used),
            (used.cast_signed(), used.cast_signed())
        );
    }
}

#[tokio::test]
async fn one_bad_counter_does_not_fail_the_others_of_its_batch() {
    let world = World::new().await;
    let service = world.instance().await;
    send(&service, &items(0..1)).await;
    let number: String = world
        .redis_command(&[
            "HGET",
            &crate::support::sharded("org_0000", "gen"),
            "number",
        ])
        .await;
    // An unreadable counter, an organization hash that is no hash, and a counter of a newer generation.
    let unreadable = counter_key("org_0007", instant(PERIOD));
    let () = world.redis_command(&["SET", &unreadable, "many"]).await;
    let check = json!({"organizationId": "org_0008"});
    assert_eq!(service.http.post("/v1/check", check).await.status, 200);
    let counter = counter_key("org_0008", instant(PERIOD));
    let () = world.redis_command(&["DEL", &counter]).await;
    let organization = world.hash_of("org_0008").await.unwrap();
    let () = world.redis_command(&["SET", &organization, "none"]).await;
    world
        .select("insert into organizations (id) values ('org_0009') returning id")
        .await;
    world
        .select(
            "insert into usage_history (organization_id, meter, period_start, period_end, used, denied, refunded,
                                        limit_units, enforcement, policy_version, epoch, seq, stored_at)
             values ('org_0009', 'api', '2031-03-01T00:00:00Z', '2031-04-01T00:00:00Z', 7, 0, 0, 1000, 'hard', 0,
                     1000000, 1, now())
             returning meter",
        )
        .await;
    let answer = send(&service, &items(0..20)).await;
    let expected: Vec<u64> = (0..20)
        .map(|it| match it {
            7 | 8 => 500,
            9 => 503,
            _ => 200,
        })
        .collect();
    assert_eq!(statuses(&answer), expected, "{}", answer.text);
    assert!(number.parse::<u64>().unwrap() < 1_000_000);
    let left = world
        .select("select used || ' ' || epoch from usage_history where organization_id = 'org_0009'")
        .await;
    assert_eq!(left, ["7 1000000"]);
}

#[tokio::test]
async fn concurrent_new_meters_are_opened_up_to_the_maximum() {
    let world = World::new().await;
    let service = world.instance().await;
    let meters = |range: std::ops::Range<u32>| -> Vec<Value> {
        range
            .map(|it| track("org_1", &format!("m{it:02}")))
            .collect()
    };
    send(&service, &meters(0..30)).await;
    let mut batch = meters(28..36);
    batch.extend(items(0..5));
    let answer = send(&service, &batch).await;
    let mut expected = vec![200, 200, 200, 200, 422, 422, 422, 422];
    expected.extend([200; 5]);
    assert_eq!(statuses(&answer), expected, "{}", answer.text);
    assert_eq!(answer.body["results"][5]["code"], "too_many_meters");
    service.flush().await;
    let stored = world
        .select("select meter from usage_history where organization_id = 'org_1' order by meter")
        .await;
    assert_eq!(stored.len(), 32);
    assert_eq!(stored[31], "m31");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn policies_that_change_during_recovery_lose_no_count_and_are_effective() {
    let world = World::new().await;
    let services = [world.instance().await, world.instance().await];
    let callers = services.each_ref().map(|it| it.http.clone());
    let all = json!({"items": items(0..300)});
    send(&services[0], &items(0..300)).await;
    services[0].flush().await;
    world.flush_redis().await;
    at_once(6, |task| {
        let (http, all) = (callers[task % 2].clone(), all.clone());
        async move {
            if task == 0 {
                for organization in (0..300).step_by(20) {
                    let path = format!("/v1/organizations/org_{organization:04}/limits");
                    let limits = json!({"api": {"limit": 70}});
                    assert_eq!(http.patch(&path, limits).await.status, 200);
                }
            } else {
                let answer = http.post("/v1/batch", all).await;
                assert_eq!(answer.body["counted"], 300, "{}", answer.text);
            }
        }
    })
    .await;
    let answer = send(&services[1], &items(0..300)).await;
    for (organization, result) in answer.body["results"]
        .as_array()
        .unwrap()
        .iter()
        .enumerate()
    {
        let limit = if organization % 20 == 0 { 70 } else { 1000 };
        assert_eq!(
            (&result["current"], &result["limit"]),
            (&json!(7), &json!(limit))
        );
    }
}

#[tokio::test]
async fn a_deleted_organization_in_a_batch_starts_a_new_incarnation_and_the_others_are_recovered() {
    let world = World::new().await;
    let services = [world.instance().await, world.instance().await];
    send(&services[0], &items(0..40)).await;
    send(&services[1], &items(0..40)).await;
    services[0].flush().await;
    let deleted = services[0].http.delete("/v1/organizations/org_0007").await;
    assert_eq!(deleted.status, 200, "{}", deleted.text);
    world.flush_redis().await;
    // This instance has cached the policy of the old incarnation.
    let answer = send(&services[1], &items(0..40)).await;
    for (organization, result) in answer.body["results"]
        .as_array()
        .unwrap()
        .iter()
        .enumerate()
    {
        let expected = if organization == 7 { 1 } else { 3 };
        assert_eq!(result["current"], expected, "{organization}");
    }
}

#[tokio::test]
async fn if_postgres_refuses_one_counter_of_a_transaction_it_moves_none() {
    let world = World::new().await;
    let service = world.instance().await;
    send(&service, &items(0..3)).await;
    service.flush().await;
    let path = "/v1/organizations/org_0001";
    assert_eq!(service.http.delete(path).await.status, 200);
    let store = Postgres::new(&world.database_url, 1).unwrap();
    let (start, now) = (instant(PERIOD), world.clock.now());
    let counters: Vec<CounterId> = ["org_0000", "org_0001", "org_0002", "org_0003"]
        .map(|organization| CounterId {
            organization: organization.parse().unwrap(),
            meter: "api".parse().unwrap(),
            start,
        })
        .into();
    // With the policy version from before the deletion.
    let stamp = Stamp {
        generation: 1_000_000,
        version: 1,
        rule: Rule::default(),
        end: Some(instant("2031-04-01T00:00:00Z")),
        closed: false,
    };
    let moves: Vec<Move<'_>> = counters
        .iter()
        .map(|counter| Move {
            counter,
            held: None,
            stamp: &stamp,
        })
        .collect();
    let refused = usage::restore(&store, &moves, start, now).await;
    assert!(matches!(refused, Err(postgres::Error::OlderPolicy)));
    let rows = "select organization_id || ' ' || (epoch = 1000000) from usage_history order by 1";
    assert_eq!(
        world.select(rows).await,
        ["org_0000 false", "org_0002 false"]
    );
    let others = [moves[0], moves[2], moves[3]];
    let restored = usage::restore(&store, &others, start, now).await.unwrap();
    let used: Vec<u64> = restored.iter().map(|it| it.snapshot.used.get()).collect();
    assert_eq!(used, [1, 1, 0]);
    let expected = ["org_0000 true", "org_0002 true", "org_0003 true"];
    assert_eq!(world.select(rows).await, expected);
}

#[tokio::test]
async fn an_empty_redis_that_an_instance_with_a_late_clock_finds_first_loses_nothing_that_is_stored()
 {
    let world = World::new().await;
    let late = world.instance_at(Clock::Shifted(-Duration::hours(1))).await;
    let service = world.instance_at(Clock::System).await;
    service.track("org_1", 5).await;
    let reset = service
        .http
        .post("/v1/organizations/org_1/reset", json!({}))
        .await;
    assert_eq!(reset.status, 200, "{}", reset.text);
    assert_eq!(service.track("org_1", 2).await, 2);
    service.flush().await;
    let _: String = world.redis_command(&["FLUSHALL"]).await;
    // By the clock of this instance, the data set is older than the period.
    late.track("org_2", 1).await;
    assert_eq!(service.track("org_1", 1).await, 3);
}
