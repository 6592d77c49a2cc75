//! Thresholds: each crossing is one event, whatever happens to the count, the limit, Redis or the process.

use chrono::Duration;
use reqwest::Method;
use serde_json::{Value, json};
use tallyman::domain::limit::{Limit, LimitOverride};
use tallyman::domain::organization::Organization;
use tallyman::domain::quantity::Count;
use tallyman::postgres::{Actor, organizations};
use tallyman::redis::{Configuration, PolicyText};

use crate::support::{Instance, World};

/// The threshold events of an organization, oldest first: `warning 80 of 100` or `exceeded 100`.
async fn threshold_events(service: &Instance, organization: &str) -> Vec<String> {
    let path = format!("/v1/events?organizationId={organization}&pageSize=1000");
    let page = service.http.get(&path).await;
    assert_eq!(page.status, 200, "{}", page.text);
    let mut events: Vec<String> = page.body["data"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|event| {
            let (threshold, limit) = (&event["data"]["threshold"], &event["data"]["limit"]);
            match event["type"].as_str().unwrap() {
                "usage.warning" => Some(format!("warning {threshold} of {limit}")),
                "usage.limit_exceeded" => Some(format!("exceeded {limit}")),
                _ => None,
            }
        })
        .collect();
    events.reverse();
    events
}

/// Flushes twice, because the second flush must add nothing, and returns the events after the first `seen`.
async fn new_events(service: &Instance, organization: &str, seen: &mut usize) -> Vec<String> {
    service.flush().await;
    // Events of the same millisecond have no defined order.
    service
        .app
        .state
        .ctx
        .clock
        .advance(Duration::milliseconds(1));
    let events = threshold_events(service, organization).await;
    service.flush().await;
    assert_eq!(
        threshold_events(service, organization).await,
        events,
        "the second flush added events"
    );
    let new_events = events[*seen..].to_vec();
    *seen = events.len();
    new_events
}

async fn limit(service: &Instance, organization: &str, limit: u64) {
    service
        .limits(organization, json!({"api": {"limit": limit}}))
        .await;
}

async fn refund(service: &Instance, organization: &str, amount: u64) {
    let body = json!({"organizationId": organization, "amount": amount});
    assert_eq!(service.http.post("/v1/refund", body).await.status, 200);
}

const NONE: [&str; 0] = [];

#[tokio::test]
async fn a_threshold_that_is_crossed_is_one_event_and_a_jump_crosses_them_all() {
    let world = World::new().await;
    let service = world.instance().await;
    let seen = &mut 0;
    service.track("org_1", 799).await;
    assert_eq!(new_events(&service, "org_1", seen).await, NONE);
    service.track("org_1", 1).await;
    assert_eq!(
        new_events(&service, "org_1", seen).await,
        ["warning 80 of 1000"]
    );
    service.track("org_1", 199).await;
    assert_eq!(new_events(&service, "org_1", seen).await, NONE);
    service.track("org_1", 1).await;
    assert_eq!(
        new_events(&service, "org_1", seen).await,
        ["warning 100 of 1000"]
    );
    service.track("org_1", 1).await;
    assert_eq!(new_events(&service, "org_1", seen).await, ["exceeded 1000"]);
    service.track("org_1", 5000).await;
    assert_eq!(new_events(&service, "org_1", seen).await, NONE);

    service.track("jump", 5000).await;
    let all = ["warning 80 of 1000", "warning 100 of 1000", "exceeded 1000"];
    assert_eq!(new_events(&service, "jump", &mut 0).await, all);
    let page = service
        .http
        .get("/v1/events?organizationId=jump&type=usage.warning")
        .await
        .body;
    assert_eq!(
        page["data"][1]["data"],
        json!({
            "organizationId": "jump", "meter": "api", "threshold": 80, "current": 5000, "limit": 1000,
            "periodStart": "2031-03-01T00:00:00Z", "resetDate": "2031-04-01T00:00:00Z"
        })
    );
}

#[tokio::test]
async fn the_first_refusal_of_a_hard_limit_exceeds_it_although_the_count_never_reaches_it() {
    let world = World::new().await;
    let service = world.instance().await;
    let seen = &mut 0;
    service
        .limits("org_1", json!({"api": {"limit": 10, "warnAt": []}}))
        .await;
    assert_eq!(service.try_consume("org_1", "api", 6).await.status, 200);
    assert_eq!(service.try_consume("org_1", "api", 6).await.status, 429);
    assert_eq!(new_events(&service, "org_1", seen).await, ["exceeded 10"]);
    assert_eq!(service.try_consume("org_1", "api", 6).await.status, 429);
    assert_eq!(service.try_consume("org_1", "api", 4).await.status, 200);
    assert_eq!(new_events(&service, "org_1", seen).await, NONE);
}

#[tokio::test]
async fn hovering_around_a_threshold_raises_no_second_event() {
    let world = World::new().await;
    let service = world.instance().await;
    let seen = &mut 0;
    service.track("org_1", 850).await;
    assert_eq!(
        new_events(&service, "org_1", seen).await,
        ["warning 80 of 1000"]
    );
    for _ in 0..3 {
        refund(&service, "org_1", 100).await;
        assert_eq!(new_events(&service, "org_1", seen).await, NONE);
        service.track("org_1", 100).await;
        assert_eq!(new_events(&service, "org_1", seen).await, NONE);
    }
}

#[tokio::test]
async fn up_and_down_between_two_snapshots_is_not_missed() {
    let world = World::new().await;
    let service = world.instance().await;
    let seen = &mut 0;
    service.track("org_1", 10).await;
    assert_eq!(new_events(&service, "org_1", seen).await, NONE);
    service.track("org_1", 900).await;
    refund(&service, "org_1", 850).await;
    service.track("org_1", 10).await;
    assert_eq!(
        new_events(&service, "org_1", seen).await,
        ["warning 80 of 1000"]
    );
    service.track("org_1", 780).await;
    assert_eq!(new_events(&service, "org_1", seen).await, NONE);
}

#[tokio::test]
async fn a_limit_below_the_count_raises_events_at_once_and_a_raised_one_rearms_thresholds() {
    let world = World::new().await;
    let service = world.instance().await;
    let seen = &mut 0;
    service.track("org_1", 500).await;
    assert_eq!(new_events(&service, "org_1", seen).await, NONE);
    limit(&service, "org_1", 550).await;
    assert_eq!(
        new_events(&service, "org_1", seen).await,
        ["warning 80 of 550"]
    );
    limit(&service, "org_1", 400).await;
    assert_eq!(
        new_events(&service, "org_1", seen).await,
        ["warning 100 of 400", "exceeded 400"]
    );
    // The count is 83 % of 600: only 100 % and the limit itself can be crossed again.
    limit(&service, "org_1", 600).await;
    assert_eq!(new_events(&service, "org_1", seen).await, NONE);
    service.track("org_1", 101).await;
    assert_eq!(
        new_events(&service, "org_1", seen).await,
        ["warning 100 of 600", "exceeded 600"]
    );
    limit(&service, "org_1", 10_000).await;
    assert_eq!(new_events(&service, "org_1", seen).await, NONE);
    service.track("org_1", 7400).await;
    assert_eq!(
        new_events(&service, "org_1", seen).await,
        ["warning 80 of 10000"]
    );
}

#[tokio::test]
async fn a_crossing_before_a_raised_limit_is_an_event_without_a_flush_in_between() {
    let world = World::new().await;
    let service = world.instance().await;
    let seen = &mut 0;
    limit(&service, "org_1", 10).await;
    service.track("org_1", 8).await;
    assert_eq!(service.try_consume("org_1", "api", 3).await.status, 429);
    limit(&service, "org_1", 100).await;
    service.track("org_1", 1).await;
    limit(&service, "org_1", 9).await;
    limit(&service, "org_1", 1000).await;
    let all = [
        "warning 80 of 10",
        "exceeded 10",
        "warning 80 of 9",
        "warning 100 of 9",
    ];
    assert_eq!(new_events(&service, "org_1", seen).await, all);
    // A refusal under an earlier limit does not count under this one.
    service.track("org_1", 1).await;
    assert_eq!(new_events(&service, "org_1", seen).await, NONE);
}

/// The organization's policy has the new limit, but the counter adopts it with the call.
#[tokio::test]
async fn a_limit_that_arrives_with_a_call_keeps_earlier_crossings() {
    let world = World::new().await;
    let service = world.instance().await;
    let seen = &mut 0;
    limit(&service, "org_1", 10).await;
    service.track("org_1", 9).await;
    refund(&service, "org_1", 5).await;
    assert_eq!(service.try_consume("org_1", "api", 7).await.status, 429);

    let (id, state) = ("org_1".parse().unwrap(), &service.app.state);
    let actor = Actor {
        name: "tests".to_owned(),
        request_id: String::new(),
    };
    let now = world.clock.now();
    let change = organizations::change(
        &state.ctx.postgres,
        &id,
        &actor,
        "limits.patch",
        now,
        |before| {
            let mut after = before.organization.clone().unwrap_or_default();
            let own = LimitOverride {
                limit: Some(Limit(Count::try_from(100).ok())),
                ..LimitOverride::default()
            };
            after.limits.insert("api".parse().unwrap(), own);
            Ok::<Organization, ()>(after)
        },
    );
    let policy = change.await.unwrap().unwrap().policy();
    let json = serde_json::to_string(&policy).unwrap();
    let connection = state.ctx.redis.connection().await.unwrap();
    let configuration = [Configuration {
        organization: &id,
        policy: PolicyText {
            version: policy.version,
            incarnation: 0,
            json: &json,
        },
        running: &[],
    }];
    let known = connection.configure(&configuration, now);
    known.await.unwrap();
    let other = world.instance().await;
    assert_eq!(other.count("org_1", "api", 80).await, 84);
    let all = ["warning 80 of 10", "exceeded 10", "warning 80 of 100"];
    assert_eq!(new_events(&service, "org_1", seen).await, all);
}

#[tokio::test]
async fn a_change_of_other_settings_raises_no_event() {
    let world = World::new().await;
    let service = world.instance().await;
    let seen = &mut 0;
    service.track("org_1", 850).await;
    assert_eq!(
        new_events(&service, "org_1", seen).await,
        ["warning 80 of 1000"]
    );
    refund(&service, "org_1", 100).await;
    service
        .settings("org_1", json!({"metadata": {"note": 1}}))
        .await;
    service.track("org_1", 100).await;
    assert_eq!(new_events(&service, "org_1", seen).await, NONE);
}

#[tokio::test]
async fn a_new_period_rearms_every_threshold() {
    let world = World::new().await;
    let service = world.instance().await;
    let seen = &mut 0;
    let all = ["warning 80 of 1000", "warning 100 of 1000", "exceeded 1000"];
    service.track("org_1", 2000).await;
    assert_eq!(new_events(&service, "org_1", seen).await, all);
    world.move_to("2031-04-02T00:00:00Z");
    service.track("org_1", 2000).await;
    assert_eq!(new_events(&service, "org_1", seen).await, all);
    let answer = service
        .http
        .send(
            Method::POST,
            "/v1/organizations/org_1/reset",
            &[],
            Some(json!({})),
        )
        .await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    assert_eq!(new_events(&service, "org_1", seen).await, NONE);
    world.clock.advance(Duration::seconds(1));
    service.track("org_1", 2000).await;
    assert_eq!(new_events(&service, "org_1", seen).await, all);
}

#[tokio::test]
async fn a_new_incarnation_is_notified_again() {
    let world = World::new().await;
    let service = world.instance().await;
    service.track("org_1", 900).await;
    assert_eq!(
        new_events(&service, "org_1", &mut 0).await,
        ["warning 80 of 1000"]
    );
    let path = "/v1/organizations/org_1";
    let deleted = service.http.send(Method::DELETE, path, &[], None).await;
    assert!(deleted.status.is_success(), "{}", deleted.text);
    assert_eq!(threshold_events(&service, "org_1").await, NONE);
    world.clock.advance(Duration::seconds(1));
    service.track("org_1", 900).await;
    assert_eq!(
        new_events(&service, "org_1", &mut 0).await,
        ["warning 80 of 1000"]
    );
}

#[tokio::test]
async fn a_crossing_right_before_a_reset_is_an_event() {
    let world = World::new().await;
    let service = world.instance().await;
    service.track("org_1", 900).await;
    let answer = service
        .http
        .send(
            Method::POST,
            "/v1/organizations/org_1/reset",
            &[],
            Some(json!({})),
        )
        .await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    assert_eq!(
        new_events(&service, "org_1", &mut 0).await,
        ["warning 80 of 1000"]
    );
}

#[tokio::test]
async fn a_flush_that_dies_after_the_commit_records_no_event_twice() {
    let world = World::new().await;
    let (here, there) = (world.instance().await, world.instance().await);
    here.track("org_1", 2000).await;
    let all: Vec<_> = tallyman::redis::Shard::all().collect();
    // Both flushes have read the same snapshot, and neither settles.
    let read = [
        here.app.flusher.read(&all).await.unwrap(),
        there.app.flusher.read(&all).await.unwrap(),
    ];
    assert_eq!(here.app.flusher.store(&read[0]).await.unwrap(), [true]);
    assert_eq!(there.app.flusher.store(&read[1]).await.unwrap(), [true]);
    let events = ["warning 80 of 1000", "warning 100 of 1000", "exceeded 1000"];
    assert_eq!(threshold_events(&here, "org_1").await, events);
    here.track("org_1", 1).await;
    here.flush().await;
    assert_eq!(threshold_events(&here, "org_1").await, events);
}

#[tokio::test]
async fn a_threshold_that_is_crossed_between_two_settlements_is_left_to_the_next_flush() {
    let world = World::new().await;
    let (here, there) = (world.instance().await, world.instance().await);
    let all: Vec<_> = tallyman::redis::Shard::all().collect();
    here.track("org_1", 900).await;
    let first = here.app.flusher.read(&all).await.unwrap();
    here.track("org_1", 100).await;
    let second = there.app.flusher.read(&all).await.unwrap();
    let stored = here.app.flusher.store(&first).await.unwrap();
    here.app.flusher.settle(&first, &stored).await.unwrap();
    // The second flush has read the thresholds that the first has settled, and not this one.
    here.track("org_1", 10_000).await;
    let stored = there.app.flusher.store(&second).await.unwrap();
    there.app.flusher.settle(&second, &stored).await.unwrap();
    // Events of the same millisecond have no defined order.
    world.clock.advance(Duration::milliseconds(1));
    here.flush().await;
    let events = ["warning 80 of 1000", "warning 100 of 1000", "exceeded 1000"];
    assert_eq!(threshold_events(&here, "org_1").await, events);
}

#[tokio::test]
async fn a_refused_snapshot_records_no_event() {
    let world = World::new().await;
    let service = world.instance().await;
    service.track("org_1", 900).await;
    let all: Vec<_> = tallyman::redis::Shard::all().collect();
    let late = service.app.flusher.read(&all).await.unwrap();
    // Everything is lost before it is stored, and the count restarts.
    world.flush_redis().await;
    service.track("org_1", 1).await;
    service.flush().await;
    assert_eq!(service.app.flusher.store(&late).await.unwrap(), [false]);
    assert_eq!(threshold_events(&service, "org_1").await, NONE);
}

#[tokio::test]
async fn a_loss_of_redis_records_no_event_twice() {
    let world = World::new().await;
    let service = world.instance().await;
    let seen = &mut 0;
    service.track("org_1", 850).await;
    service.track("org_2", 850).await;
    assert_eq!(
        new_events(&service, "org_1", seen).await,
        ["warning 80 of 1000"]
    );
    refund(&service, "org_1", 200).await;
    service.flush().await;
    world.flush_redis().await;
    service.track("org_1", 200).await;
    assert_eq!(new_events(&service, "org_1", seen).await, NONE);
    service.track("org_1", 150).await;
    assert_eq!(
        new_events(&service, "org_1", seen).await,
        ["warning 100 of 1000"]
    );
}

/// In one case Redis has unflushed counts, in the other the limit changes; restoring the counter finds the crossing.
#[tokio::test]
async fn a_crossing_found_after_a_restart_of_redis_is_an_event() {
    let mut world = World::new().await;
    let service = world.instance().await;
    for organization in ["frozen", "lowered"] {
        service.track(organization, 500).await;
    }
    service.flush().await;
    service.track("frozen", 350).await;
    let copy = world.copy_redis().await;
    world.restart_redis_from(&copy, &[&service]).await;
    // Reading the usage restores the counter without counting.
    assert_eq!(service.current("frozen", "api").await, 850);
    assert_eq!(
        new_events(&service, "frozen", &mut 0).await,
        ["warning 80 of 1000"]
    );

    world.flush_redis().await;
    limit(&service, "lowered", 510).await;
    let body = json!({"organizationId": "lowered"});
    let answer = service.http.post("/v1/check", body).await;
    assert_eq!(answer.body["current"], 500);
    assert_eq!(
        new_events(&service, "lowered", &mut 0).await,
        ["warning 80 of 510"]
    );
}

#[tokio::test]
async fn a_response_lists_the_thresholds_that_its_call_crossed() {
    let world = World::new().await;
    let service = world.instance().await;
    service
        .limits(
            "org_1",
            json!({"api": {"limit": 10, "warnAt": [50, 80, 100]}}),
        )
        .await;
    let call = |path: &'static str, amount: u64| {
        let http = service.http.clone();
        async move {
            let body = json!({"organizationId": "org_1", "amount": amount});
            http.post(path, body).await.body["crossed"].clone()
        }
    };
    assert_eq!(call("/v1/track", 4).await, Value::Null);
    assert_eq!(call("/v1/check", 4).await, Value::Null);
    assert_eq!(call("/v1/consume", 4).await, json!([50, 80]));
    assert_eq!(call("/v1/consume", 4).await, Value::Null);
    assert_eq!(call("/v1/refund", 3).await, Value::Null);
    assert_eq!(call("/v1/track", 6).await, json!([80, 100]));

    service
        .limits(
            "org_2",
            json!({"api": {"limit": 10, "warnAt": [50, 80, 100]}}),
        )
        .await;
    let items: Vec<Value> = (0..12)
        .map(|_| json!({"op": "consume", "organizationId": "org_2"}))
        .collect();
    let answer = service
        .http
        .post("/v1/batch", json!({"items": items}))
        .await
        .body;
    let crossed: Vec<&Value> = answer["results"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| &it["crossed"])
        .collect();
    for (position, crossed) in crossed.into_iter().enumerate() {
        let expected = match position {
            4 => json!([50]),
            7 => json!([80]),
            9 => json!([100]),
            _ => Value::Null,
        };
        assert_eq!(*crossed, expected, "{position}");
    }
}

/// Threshold and count of each event of an organization, in order.
async fn crossings(service: &Instance, organization: &str) -> Vec<(u64, u64)> {
    service.flush().await;
    let path = format!("/v1/events?organizationId={organization}&pageSize=1000");
    let page = service.http.get(&path).await.body;
    let events = page["data"].as_array().unwrap().iter();
    let data = events.map(|event| &event["data"]);
    let mut crossings: Vec<(u64, u64)> = data
        .filter_map(|data| Some((data["threshold"].as_u64()?, data["current"].as_u64()?)))
        .collect();
    crossings.sort_unstable();
    crossings
}

#[tokio::test]
async fn a_crossing_carries_the_count_that_crossed_it_whatever_was_counted_before_the_flush() {
    let world = World::new().await;
    let (here, there) = (world.instance().await, world.instance().await);
    for amount in [790, 13, 150, 49, 5, 300] {
        here.track("org_1", amount).await;
    }
    refund(&there, "org_1", 1000).await;
    there.track("org_1", 900).await;
    let expected = [(80, 803), (100, 1002), (100, 1002)];
    assert_eq!(crossings(&here, "org_1").await, expected);
    // A second crossing is no event, and leaves no trace in the counter.
    refund(&there, "org_1", 500).await;
    there.track("org_1", 600).await;
    assert_eq!(crossings(&there, "org_1").await, expected);
    let counter = world
        .snapshot_of("org_1", "api", "2031-03-01T00:00:00Z")
        .await;
    assert_eq!(counter["crossed"], "");

    // In a batch, where equal items are decided together.
    let item = json!({"op": "track", "organizationId": "org_2", "amount": 7});
    let body = json!({"items": vec![item; 200]});
    assert_eq!(here.http.post("/v1/batch", body).await.status, 200);
    assert_eq!(
        crossings(&here, "org_2").await,
        [(80, 805), (100, 1001), (100, 1001)]
    );

    // By an adjustment.
    here.track("org_3", 100).await;
    let body = json!({"amount": 750, "reason": "carried over"});
    let adjusted = here.http.post("/v1/organizations/org_3/adjust", body).await;
    assert_eq!(adjusted.status, 200, "{}", adjusted.text);
    here.track("org_3", 20).await;
    assert_eq!(crossings(&here, "org_3").await, [(80, 850)]);
}

#[tokio::test]
async fn a_refusal_that_exceeds_carries_the_count_that_it_found() {
    let world = World::new().await;
    let service = world.instance().await;
    service
        .limits("org_1", json!({"api": {"limit": 10, "warnAt": []}}))
        .await;
    service.try_consume("org_1", "api", 6).await;
    for _ in 0..2 {
        assert_eq!(service.try_consume("org_1", "api", 6).await.status, 429);
        service.try_consume("org_1", "api", 1).await;
    }
    assert_eq!(crossings(&service, "org_1").await, [(100, 6)]);
    // A new limit has its own first refusal.
    limit(&service, "org_1", 20).await;
    service.try_consume("org_1", "api", 9).await;
    assert_eq!(service.try_consume("org_1", "api", 6).await.status, 429);
    refund(&service, "org_1", 3).await;
    assert_eq!(service.try_consume("org_1", "api", 7).await.status, 429);
    assert_eq!(crossings(&service, "org_1").await, [(100, 6), (100, 17)]);
}

#[tokio::test]
async fn a_crossing_by_a_changed_limit_has_the_count_at_that_time() {
    let world = World::new().await;
    let service = world.instance().await;
    service.track("org_1", 500).await;
    limit(&service, "org_1", 450).await;
    service.track("org_1", 33).await;
    // The next change follows before any flush.
    limit(&service, "org_1", 600).await;
    service.track("org_1", 70).await;
    // 80 % of 600 was crossed already under the limit of 450.
    let expected = [(80, 500), (100, 500), (100, 500), (100, 603), (100, 603)];
    assert_eq!(crossings(&service, "org_1").await, expected);
}

/// The flush stores what it read; later crossings are stored by the next one.
#[tokio::test]
async fn a_crossing_during_a_flush_keeps_its_count() {
    let world = World::new().await;
    let service = world.instance().await;
    let all: Vec<_> = tallyman::redis::Shard::all().collect();
    service.track("org_1", 810).await;
    let read = service.app.flusher.read(&all).await.unwrap();
    service.track("org_1", 194).await;
    let stored = service.app.flusher.store(&read).await.unwrap();
    service.track("org_1", 50).await;
    service.app.flusher.settle(&read, &stored).await.unwrap();
    service.track("org_1", 50).await;
    assert_eq!(
        crossings(&service, "org_1").await,
        [(80, 810), (100, 1004), (100, 1004)]
    );
    let counter = world
        .snapshot_of("org_1", "api", "2031-03-01T00:00:00Z")
        .await;
    assert_eq!(counter["crossed"], "");
}

#[tokio::test]
async fn a_replayed_call_has_the_crossings_of_the_first_response() {
    let world = World::new().await;
    let service = world.instance().await;
    let body = json!({"organizationId": "org_1", "amount": 800});
    let first = service.http.post_once("/v1/track", "a", body.clone()).await;
    assert_eq!(first.body["crossed"], json!([80]));
    service.track("org_1", 100).await;
    let again = service.http.post_once("/v1/track", "a", body).await;
    assert_eq!(
        (
            again.body,
            again.headers.contains_key("idempotent-replayed")
        ),
        (first.body, true)
    );
}
