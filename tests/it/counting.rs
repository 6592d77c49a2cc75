//! Track, consume and check: exact under concurrency, and atomic over several meters.

use serde_json::{Value, json};
use tallyman::domain::quantity::{AMOUNT_MAX, COUNT_MAX};

use crate::support::{World, at_once, key_of};

/// Start of the period in which every world begins.
const MARCH: &str = "2031-03-01T00:00:00Z";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixty_four_concurrent_tasks_against_a_limit_are_granted_exactly_the_limit() {
    let world = World::new().await;
    let service = world.instance().await;
    let http = service.http.clone();
    let statuses: Vec<Vec<u16>> = at_once(64, |_| {
        let http = http.clone();
        async move {
            let mut statuses = Vec::new();
            for _ in 0..25 {
                let answer = http
                    .post("/v1/consume", json!({"organizationId": "org_1"}))
                    .await;
                statuses.push(answer.status.as_u16());
            }
            statuses
        }
    })
    .await;
    let count = |status| {
        statuses
            .iter()
            .flatten()
            .filter(|it| **it == status)
            .count()
    };
    assert_eq!((count(200), count(429)), (1000, 600));
    assert_eq!(service.current("org_1", "api").await, 1000);
}

/// Each task consumes until it is refused; the tasks with amount 1 fill the last gap.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn weighted_amounts_through_two_instances_add_up_to_the_limit_and_to_the_count() {
    let world = World::new().await;
    let instances = [world.instance().await, world.instance().await];
    let granted: Vec<u64> = at_once(64, |task| {
        let http = instances[task % 2].http.clone();
        async move {
            let amount = task as u64 % 7 + 1;
            let body = json!({"organizationId": "org_1", "amount": amount});
            let mut granted = 0;
            loop {
                let answer = http.post("/v1/consume", body.clone()).await;
                let current = answer.body["current"].as_u64().unwrap();
                if answer.status == 429 {
                    assert!(current + amount > 1000, "{amount} would fit on {current}");
                    return granted;
                }
                assert!(current <= 1000, "{current}");
                granted += amount;
            }
        }
    })
    .await;
    assert_eq!(granted.iter().sum::<u64>(), 1000);
    for service in &instances {
        assert_eq!(service.current("org_1", "api").await, 1000);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_calls_of_an_organization_all_count_though_none_finds_a_counter() {
    let world = World::new().await;
    let instances = [world.instance().await, world.instance().await];
    at_once(64, |task| {
        let http = instances[task % 2].http.clone();
        async move {
            let meters = json!({"api": 1, "tokens": 10, "storage": 100});
            let body = json!({"organizationId": "org_1", "meters": meters});
            assert_eq!(http.post("/v1/track", body).await.status, 200);
        }
    })
    .await;
    for (meter, count) in [("api", 64), ("tokens", 640), ("storage", 6400)] {
        assert_eq!(instances[0].current("org_1", meter).await, count);
    }
}

#[tokio::test]
async fn a_result_matches_the_contract() {
    let world = World::new().await;
    let service = world.instance().await;
    service.count("org_123", "api", 500).await;
    let answer = service.try_consume("org_123", "api", 1).await;
    assert_eq!(answer.status, 200);
    assert_eq!(
        answer.body,
        json!({"allowed": true, "organizationId": "org_123", "meter": "api", "amount": 1, "current": 501,
               "limit": 1000, "remaining": 499, "overage": 0, "enforcement": "hard",
               "periodStart": "2031-03-01T00:00:00Z", "resetDate": "2031-04-01T00:00:00Z"})
    );
}

#[tokio::test]
async fn a_refusal_counts_nothing_names_the_meter_and_carries_the_result() {
    let world = World::new().await;
    let service = world.instance().await;
    service.count("org_1", "api", 998).await;
    let answer = service.try_consume("org_1", "api", 3).await;
    assert_eq!(
        (answer.status.as_u16(), answer.code()),
        (429, "limit_exceeded")
    );
    assert_eq!(answer.body["allowed"], false);
    assert_eq!(answer.body["current"], 998);
    assert_eq!(answer.body["remaining"], 2);
    assert_eq!(answer.body["deniedBy"], json!(["api"]));
    assert_eq!(service.current("org_1", "api").await, 998);
    assert_eq!(service.try_consume("org_1", "api", 2).await.status, 200);
}

#[tokio::test]
async fn a_refused_call_is_recorded_without_being_counted() {
    let world = World::new().await;
    let service = world.instance().await;
    service.count("org_1", "api", 1000).await;
    for _ in 0..3 {
        service.try_consume("org_1", "api", 5).await;
    }
    let counter = world.snapshot_of("org_1", "api", MARCH).await;
    let hour = crate::support::instant(crate::support::BEGINNING).timestamp_millis();
    assert_eq!(counter["used"], "1000");
    assert_eq!(counter["denied"], "3");
    assert_eq!(counter[&format!("used@{hour}")], "1000");
    assert_eq!(counter[&format!("denied@{hour}")], "3");
    // A check counts no refusal either.
    let body = json!({"organizationId": "org_1"});
    assert_eq!(
        service.http.post("/v1/check", body).await.body["allowed"],
        false
    );
    assert_eq!(world.snapshot_of("org_1", "api", MARCH).await, counter);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_concurrent_refusals_exactly_one_is_marked_first() {
    let world = World::new().await;
    let instances = [world.instance().await, world.instance().await];
    instances[0].count("org_1", "api", 999).await;
    let firsts: Vec<usize> = at_once(32, |task| {
        let http = instances[task % 2].http.clone();
        async move {
            let mut firsts = 0;
            for call in 0..4 {
                let body = json!({"organizationId": "org_1", "amount": 2 + (task + call) % 3});
                let answer = http.post("/v1/consume", body).await;
                assert_eq!(answer.status, 429);
                firsts += usize::from(answer.body["first"] == true);
            }
            firsts
        }
    })
    .await;
    assert_eq!(firsts.iter().sum::<usize>(), 1);
    let again = instances[0].try_consume("org_1", "api", 2).await;
    assert_eq!(again.body["first"], Value::Null);
    // A new period marks its own first refusal.
    world.move_to("2031-04-02T00:00:00Z");
    let refused = instances[1].try_consume("org_1", "api", 1001).await;
    assert_eq!(refused.body["first"], true);
    let refused = instances[0].try_consume("org_1", "api", 1001).await;
    assert_eq!(refused.body["first"], Value::Null);
}

#[tokio::test]
async fn first_is_set_per_meter_and_replayed_with_its_idempotency_key() {
    let world = World::new().await;
    let service = world.instance().await;
    let limits = json!({"tokens": {"limit": 5}, "storage": {"limit": 5}});
    service.limits("org_1", limits).await;
    let consume = |key: &'static str, meters: Value| {
        let body = json!({"organizationId": "org_1", "meters": meters});
        service.http.post_once("/v1/consume", key, body)
    };
    // A negative check is not a refusal.
    let body = json!({"organizationId": "org_1", "meter": "tokens", "amount": 6});
    let check = service.http.post("/v1/check", body).await.body;
    assert_eq!(
        (&check["allowed"], &check["first"]),
        (&json!(false), &Value::Null)
    );
    let first = consume("a", json!({"tokens": 6, "storage": 1})).await;
    assert_eq!(first.body["first"], true);
    assert_eq!(first.body["meters"]["tokens"]["first"], true);
    assert_eq!(first.body["meters"]["storage"]["first"], Value::Null);
    let second = consume("b", json!({"tokens": 6, "storage": 6})).await;
    assert_eq!(second.body["first"], true);
    assert_eq!(second.body["meters"]["tokens"]["first"], Value::Null);
    assert_eq!(second.body["meters"]["storage"]["first"], true);
    let third = consume("c", json!({"tokens": 6, "storage": 6})).await;
    assert_eq!(third.body["first"], Value::Null);
    for (key, meters, answer) in [
        ("a", json!({"tokens": 6, "storage": 1}), first),
        ("b", json!({"tokens": 6, "storage": 6}), second),
        ("c", json!({"tokens": 6, "storage": 6}), third),
    ] {
        let again = consume(key, meters).await;
        assert_eq!(again.header("idempotent-replayed"), "true");
        assert_eq!(again.body, answer.body);
    }
    // Also for a meter that is only required.
    let body = json!({"organizationId": "org_1", "require": {"seats": 1}});
    service
        .limits("org_1", json!({"seats": {"limit": 0}}))
        .await;
    let required = service.http.post("/v1/consume", body).await;
    assert_eq!(
        (&required.body["meter"], &required.body["first"]),
        (&json!("api"), &json!(true))
    );
}

#[tokio::test]
async fn several_meters_are_charged_together_or_not_at_all() {
    let world = World::new().await;
    let service = world.instance().await;
    let limits = json!({"tokens": {"limit": 2000}, "storage": {"limit": 5}});
    service.limits("org_1", limits).await;
    let consume = |tokens: u64, storage: u64| {
        let meters = json!({"api": 1, "tokens": tokens, "storage": storage});
        let body = json!({"organizationId": "org_1", "meters": meters});
        service.http.post("/v1/consume", body)
    };
    let granted = consume(1200, 5).await;
    assert_eq!(granted.status, 200);
    assert_eq!(granted.body["allowed"], true);
    assert_eq!(granted.body["meters"]["tokens"]["remaining"], 800);
    assert_eq!(granted.body["deniedBy"], Value::Null);

    let refused = consume(800, 1).await;
    assert_eq!(refused.status, 429);
    assert_eq!(refused.body["deniedBy"], json!(["storage"]));
    assert_eq!(refused.body["meters"]["api"]["current"], 1);
    let refused = consume(801, 1).await;
    assert_eq!(refused.body["deniedBy"], json!(["storage", "tokens"]));
    for (meter, count) in [("api", 1), ("tokens", 1200), ("storage", 5)] {
        assert_eq!(service.current("org_1", meter).await, count, "{meter}");
    }
    // The refusals are counted on the meters that caused them.
    assert_eq!(
        world.snapshot_of("org_1", "storage", MARCH).await["denied"],
        "2"
    );
    assert_eq!(
        world.snapshot_of("org_1", "tokens", MARCH).await["denied"],
        "1"
    );
    assert_eq!(
        world.snapshot_of("org_1", "api", MARCH).await["denied"],
        "0"
    );
}

/// The meters have different limits, and the calls go to two instances.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_calls_on_several_meters_never_count_one_without_the_other() {
    let world = World::new().await;
    let instances = [world.instance().await, world.instance().await];
    let limits = json!({"api": {"limit": 200}, "tokens": {"limit": 70}});
    instances[0].limits("org_1", limits).await;
    let granted: Vec<usize> = at_once(32, |task| {
        let http = instances[task % 2].http.clone();
        async move {
            let body = json!({"organizationId": "org_1", "meters": {"api": 2, "tokens": 1}});
            let mut granted = 0;
            for _ in 0..4 {
                granted += usize::from(http.post("/v1/consume", body.clone()).await.status == 200);
            }
            granted
        }
    })
    .await;
    assert_eq!(granted.iter().sum::<usize>(), 70);
    assert_eq!(instances[1].current("org_1", "api").await, 140);
    assert_eq!(instances[1].current("org_1", "tokens").await, 70);
}

#[tokio::test]
async fn what_is_required_must_fit_and_is_not_charged() {
    let world = World::new().await;
    let service = world.instance().await;
    service
        .limits("org_1", json!({"tokens": {"limit": 1}}))
        .await;
    let body = json!({"organizationId": "org_1", "require": {"tokens": 1}});
    for calls in 1..=2 {
        let granted = service.http.post("/v1/consume", body.clone()).await;
        assert_eq!(granted.status, 200, "{}", granted.text);
        assert_eq!(granted.body["current"], calls);
    }
    assert_eq!(service.current("org_1", "tokens").await, 0);

    service.count("org_1", "tokens", 1).await;
    let refused = service.http.post("/v1/consume", body).await;
    assert_eq!(refused.status, 429);
    assert_eq!(refused.body["deniedBy"], json!(["tokens"]));
    assert_eq!(service.current("org_1", "api").await, 2);
}

#[tokio::test]
async fn what_is_required_of_a_charged_meter_must_fit_on_top_of_the_charge() {
    let world = World::new().await;
    let service = world.instance().await;
    service.count("org_1", "api", 990).await;
    let consume = |require: u64| {
        let body = json!({"organizationId": "org_1", "amount": 4, "require": {"api": require}});
        service.http.post("/v1/consume", body)
    };
    assert_eq!(consume(7).await.status, 429);
    let granted = consume(6).await;
    assert_eq!(
        (granted.status.as_u16(), &granted.body["current"]),
        (200, &json!(994))
    );
}

#[tokio::test]
async fn a_track_counts_beyond_the_limit_and_reports_the_overage() {
    let world = World::new().await;
    let service = world.instance().await;
    let track = |amount: u64| {
        let body = json!({"organizationId": "org_1", "amount": amount});
        service.http.post("/v1/track", body)
    };
    let within = track(1000).await;
    assert_eq!(
        (within.status.as_u16(), &within.body["allowed"]),
        (200, &json!(true))
    );
    let beyond = track(5).await;
    assert_eq!(
        (beyond.status.as_u16(), &beyond.body["allowed"]),
        (200, &json!(false))
    );
    assert_eq!(beyond.body["current"], 1005);
    assert_eq!(
        (&beyond.body["remaining"], &beyond.body["overage"]),
        (&json!(0), &json!(5))
    );
}

#[tokio::test]
async fn a_soft_limit_lets_what_does_not_fit_become_overage() {
    let world = World::new().await;
    let service = world.instance().await;
    let soft = json!({"api": {"limit": 10, "enforcement": "soft"}});
    service.limits("org_1", soft).await;
    let answer = service.try_consume("org_1", "api", 12).await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.body["allowed"], true);
    assert_eq!(answer.body["enforcement"], "soft");
    assert_eq!(
        (&answer.body["remaining"], &answer.body["overage"]),
        (&json!(0), &json!(2))
    );
    let tracked = json!({"organizationId": "org_1"});
    assert_eq!(
        service.http.post("/v1/track", tracked).await.body["allowed"],
        true
    );
}

#[tokio::test]
async fn a_check_counts_nothing_and_predicts_the_consume() {
    let world = World::new().await;
    let service = world.instance().await;
    service.count("org_1", "api", 990).await;
    for amount in [1, 10, 11] {
        let body = json!({"organizationId": "org_1", "amount": amount});
        let check = service.http.post("/v1/check", body).await;
        assert_eq!(check.status, 200);
        assert_eq!(check.body["allowed"], amount <= 10);
        assert_eq!(check.body["current"], 990);
    }
    assert_eq!(service.current("org_1", "api").await, 990);
    assert_eq!(service.try_consume("org_1", "api", 11).await.status, 429);
    assert_eq!(service.try_consume("org_1", "api", 10).await.status, 200);
}

#[tokio::test]
async fn a_limit_of_zero_grants_nothing_and_a_track_on_it_is_all_overage() {
    let world = World::new().await;
    let service = world.instance().await;
    service.limits("org_1", json!({"api": {"limit": 0}})).await;
    let refused = service.try_consume("org_1", "api", 1).await;
    assert_eq!(
        (refused.status.as_u16(), &refused.body["limit"]),
        (429, &json!(0))
    );
    service.count("org_1", "api", 3).await;
    let meter = service.meter("org_1", "api").await;
    assert_eq!(
        (&meter["limit"], &meter["remaining"], &meter["overage"]),
        (&json!(0), &json!(0), &json!(3))
    );
}

#[tokio::test]
async fn a_meter_without_a_limit_is_unlimited() {
    let world = World::new().await;
    let service = world.instance().await;
    let answer = service.try_consume("org_1", "bytes.sent", AMOUNT_MAX).await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.body["current"], AMOUNT_MAX);
    assert_eq!(
        (&answer.body["limit"], &answer.body["remaining"]),
        (&Value::Null, &Value::Null)
    );
    assert_eq!(answer.body["overage"], 0);
}

#[tokio::test]
async fn an_amount_is_a_whole_number_from_one_to_a_million_million() {
    let world = World::new().await;
    let service = world.instance().await;
    for amount in [
        json!(0),
        json!(-1),
        json!(1.5),
        json!("1"),
        json!(AMOUNT_MAX + 1),
        json!(1e13),
        json!(true),
    ] {
        let body = json!({"organizationId": "org_1", "amount": amount});
        let answer = service.http.post("/v1/track", body).await;
        assert_eq!(
            (answer.status.as_u16(), answer.code()),
            (400, "invalid_field"),
            "{amount}"
        );
        assert_eq!(answer.body["errors"][0]["pointer"], "/amount", "{amount}");
        let body = json!({"organizationId": "org_1", "meters": {"tokens": amount}});
        let answer = service.http.post("/v1/consume", body).await;
        assert_eq!(
            answer.body["errors"][0]["pointer"], "/meters/tokens",
            "{amount}"
        );
    }
    assert_eq!(
        service.count("org_1", "tokens", AMOUNT_MAX).await,
        AMOUNT_MAX
    );
    assert_eq!(service.count("org_1", "tokens", 1).await, AMOUNT_MAX + 1);
}

#[tokio::test]
async fn a_check_is_answered_even_if_a_consume_would_be_refused_by_the_maximum_count() {
    let world = World::new().await;
    let service = world.instance().await;
    service.count("org_1", "tokens", 1).await;
    let key = key_of("org_1", "tokens", MARCH);
    world
        .overwrite(&key, &[("used", &COUNT_MAX.to_string())])
        .await;
    let check = |meters: Value| {
        let body = json!({"organizationId": "org_1", "meters": meters});
        service.http.post("/v1/check", body)
    };
    let full = check(json!({"tokens": 1})).await;
    assert_eq!(full.status, 200, "{}", full.text);
    assert_eq!(
        (&full.body["allowed"], &full.body["deniedBy"]),
        (&json!(false), &json!(["tokens"]))
    );
    assert_eq!(full.body["retryAt"], "2031-04-01T00:00:00Z");
    assert_eq!(
        service.try_consume("org_1", "tokens", 1).await.code(),
        "counter_overflow"
    );

    for number in 0..31 {
        service.count("org_1", &format!("m{number}"), 1).await;
    }
    let beyond = check(json!({"api": 1, "m7": 1})).await;
    assert_eq!(beyond.status, 200, "{}", beyond.text);
    assert_eq!(
        (&beyond.body["allowed"], &beyond.body["deniedBy"]),
        (&json!(false), &json!(["api"]))
    );
    let meters = &beyond.body["meters"];
    assert_eq!(
        (&meters["api"]["current"], &meters["m7"]["current"]),
        (&json!(0), &json!(1))
    );
    assert_eq!(
        service.try_consume("org_1", "api", 1).await.code(),
        "too_many_meters"
    );
}

#[tokio::test]
async fn a_thirty_third_meter_is_refused_and_the_others_keep_counting() {
    let world = World::new().await;
    let service = world.instance().await;
    for number in 0..32 {
        service.count("org_1", &format!("m{number}"), 1).await;
    }
    refuses_another_meter(&service).await;
    // Also in a period younger than the data set, where no counter is read from Postgres.
    world.move_to("2031-04-02T00:00:00Z");
    refuses_another_meter(&service).await;
    assert_eq!(service.count("org_1", "m31", 1).await, 1);
}

/// Redis loses its list of meters with the data set; the check then uses the one in Postgres.
#[tokio::test]
async fn a_thirty_third_meter_is_refused_after_a_loss_of_redis_too() {
    let world = World::new().await;
    let service = world.instance().await;
    for number in 0..32 {
        service.count("org_1", &format!("m{number}"), 1).await;
    }
    service.flush().await;
    let _: String = world.redis_command(&["FLUSHALL"]).await;
    let service = world.instance().await;
    refuses_another_meter(&service).await;
    assert_eq!(service.count("org_1", "m31", 1).await, 2);
    refuses_another_meter(&service).await;
}

async fn refuses_another_meter(service: &crate::support::Instance) {
    for path in ["/v1/track", "/v1/consume"] {
        let body = json!({"organizationId": "org_1", "meter": "m32"});
        let refused = service.http.post(path, body).await;
        assert_eq!(
            (refused.status.as_u16(), refused.code()),
            (422, "too_many_meters"),
            "{path}"
        );
    }
    assert_eq!(service.meter("org_1", "m32").await, Value::Null);
}

#[tokio::test]
async fn a_count_never_exceeds_its_maximum_and_stays_exact_below_it() {
    let world = World::new().await;
    let service = world.instance().await;
    service.count("org_1", "bytes", 1).await;
    let key = key_of("org_1", "bytes", MARCH);
    let near_maximum = (COUNT_MAX - 2).to_string();
    world.overwrite(&key, &[("used", &near_maximum)]).await;
    assert_eq!(service.count("org_1", "bytes", 1).await, COUNT_MAX - 1);
    for path in ["/v1/track", "/v1/consume"] {
        let body = json!({"organizationId": "org_1", "meters": {"api": 1, "bytes": 2}});
        let refused = service.http.post(path, body).await;
        assert_eq!(
            (refused.status.as_u16(), refused.code()),
            (422, "counter_overflow"),
            "{path}"
        );
    }
    assert_eq!(service.count("org_1", "bytes", 1).await, COUNT_MAX);
    assert_eq!(service.current("org_1", "bytes").await, COUNT_MAX);
    assert_eq!(service.current("org_1", "api").await, 0);
}
