//! Late events and refunds.

use chrono::Duration;
use serde_json::{Value, json};

use crate::support::{Instance, World, at_once};

async fn track_at(service: &Instance, timestamp: &str, amount: u64) -> Value {
    let body = json!({"organizationId": "org_1", "amount": amount, "timestamp": timestamp});
    let answer = service.http.post("/v1/track", body).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.body
}

async fn refund(service: &Instance, amount: u64) -> Value {
    let body = json!({"organizationId": "org_1", "amount": amount});
    let answer = service.http.post("/v1/refund", body).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.body
}

/// `(hour, used, refunded)` of each `usage_hourly` row, oldest first.
async fn hours(world: &World) -> Vec<(String, i64, i64)> {
    sqlx::query_as(
        "select to_char(hour at time zone 'UTC', 'MM-DD HH24:MI'), used, refunded from usage_hourly order by hour",
    )
    .fetch_all(&world.postgres().await)
    .await
    .unwrap()
}

/// `(start, used, refunded)` of each `usage_history` row, oldest first.
async fn periods(world: &World) -> Vec<(String, i64, i64)> {
    sqlx::query_as(
        "select to_char(period_start at time zone 'UTC', 'MM-DD'), used, refunded from usage_history order by period_start",
    )
    .fetch_all(&world.postgres().await)
    .await
    .unwrap()
}

#[tokio::test]
async fn a_late_event_counts_in_the_hour_that_it_belongs_to() {
    let world = World::new().await;
    let service = world.instance().await;
    service.track("org_1", 1).await;
    assert_eq!(
        track_at(&service, "2031-03-14T09:30:00+01:00", 5).await["current"],
        6
    );
    service.flush().await;
    let expected = [
        ("03-14 08:00".to_owned(), 5, 0),
        ("03-15 12:00".to_owned(), 1, 0),
    ];
    assert_eq!(hours(&world).await, expected);
}

#[tokio::test]
async fn a_late_event_counts_in_its_own_period_even_after_its_end() {
    let world = World::new().await;
    let service = world.instance().await;
    service.track("org_1", 10).await;
    service.flush().await;
    // Noon of the first of April.
    world.clock.advance(Duration::days(17));
    service.track("org_1", 1).await;
    let late = track_at(&service, "2031-03-31T23:59:59Z", 5).await;
    assert_eq!(
        (&late["current"], &late["resetDate"]),
        (&json!(15), &json!("2031-04-01T00:00:00Z"))
    );
    assert_eq!(service.current("org_1", "api").await, 1);
    service.flush().await;
    assert_eq!(
        periods(&world).await,
        [("03-01".to_owned(), 15, 0), ("04-01".to_owned(), 1, 0)]
    );
}

#[tokio::test]
async fn a_late_event_is_restored_into_its_period_after_a_loss_of_redis() {
    let world = World::new().await;
    let service = world.instance().await;
    service.track("org_1", 10).await;
    service.flush().await;
    world.clock.advance(Duration::days(17));
    let _: () = world.redis_command(&["FLUSHALL"]).await;
    assert_eq!(
        track_at(&service, "2031-03-31T23:00:00Z", 5).await["current"],
        15
    );
    service.flush().await;
    assert_eq!(periods(&world).await, [("03-01".to_owned(), 15, 0)]);
}

/// The limit changes after the period's end, and late events keep the one that the period ended with.
#[tokio::test]
async fn a_late_event_adopts_no_newer_limit_into_a_period_that_is_over() {
    let world = World::new().await;
    let service = world.instance().await;
    service.track("org_1", 10).await;
    service.flush().await;
    world.clock.advance(Duration::days(17));
    service.limit("org_1", 5).await;
    for round in 0..2 {
        let late = track_at(&service, "2031-03-31T23:00:00Z", 1).await;
        assert_eq!(
            (&late["limit"], &late["allowed"]),
            (&json!(1000), &json!(true)),
            "round {round}"
        );
        service.flush().await;
        let _: () = world.redis_command(&["FLUSHALL"]).await;
    }
    let (limit,): (i64,) =
        sqlx::query_as("select limit_units from usage_history order by period_start limit 1")
            .fetch_one(&world.postgres().await)
            .await
            .unwrap();
    assert_eq!(limit, 1000);
}

#[tokio::test]
async fn an_early_event_counts_in_the_next_period_and_survives_a_loss() {
    let world = World::new().await;
    let service = world.instance().await;
    world
        .clock
        .advance(Duration::days(16) + Duration::hours(11) + Duration::minutes(57));
    service.track("org_1", 1).await;
    let early = track_at(&service, "2031-04-01T00:01:00Z", 7).await;
    assert_eq!(
        (&early["current"], &early["periodStart"]),
        (&json!(7), &json!("2031-04-01T00:00:00Z"))
    );
    assert_eq!(service.current("org_1", "api").await, 1);
    service.flush().await;
    let _: () = world.redis_command(&["FLUSHALL"]).await;
    world.clock.advance(Duration::minutes(5));
    assert_eq!(service.track("org_1", 1).await, 8);
}

#[tokio::test]
async fn an_event_too_old_or_too_far_ahead_is_refused() {
    let world = World::new().await;
    let service = world.instance().await;
    for (timestamp, status) in [
        ("2031-03-13T11:59:59Z", 422),
        ("2031-03-13T12:00:00Z", 200),
        ("2031-03-15T12:05:00Z", 200),
        ("2031-03-15T12:05:01Z", 422),
        ("yesterday", 400),
    ] {
        let body = json!({"organizationId": "org_1", "timestamp": timestamp});
        let answer = service.http.post("/v1/track", body).await;
        assert_eq!(answer.status, status, "{timestamp}: {answer:?}");
        if status == 422 {
            assert_eq!(answer.code(), "timestamp_out_of_range");
        }
    }
    assert_eq!(service.current("org_1", "api").await, 2);
}

#[tokio::test]
async fn only_a_track_takes_a_timestamp() {
    let world = World::new().await;
    let service = world.instance().await;
    let body = json!({"organizationId": "org_1", "timestamp": "2031-03-15T12:00:00Z"});
    for path in ["/v1/consume", "/v1/check", "/v1/refund"] {
        let answer = service.http.post(path, body.clone()).await;
        assert_eq!(
            (answer.status.as_u16(), answer.code()),
            (400, "invalid_field"),
            "{path}"
        );
        assert_eq!(answer.body["errors"][0]["pointer"], "/timestamp");
    }
}

#[tokio::test]
async fn a_refund_never_takes_a_count_below_zero() {
    let world = World::new().await;
    let service = world.instance().await;
    service.track("org_1", 10).await;
    let first = refund(&service, 4).await;
    assert_eq!(
        (&first["applied"], &first["current"]),
        (&json!(4), &json!(6))
    );
    let second = refund(&service, 100).await;
    assert_eq!(
        (&second["applied"], &second["current"]),
        (&json!(6), &json!(0))
    );
    let third = refund(&service, 1).await;
    assert_eq!(
        (&third["applied"], &third["current"]),
        (&json!(0), &json!(0))
    );
}

#[tokio::test]
async fn a_refund_is_stored_apart_from_what_was_counted() {
    let world = World::new().await;
    let service = world.instance().await;
    service.track("org_1", 10).await;
    service.flush().await;
    world.clock.advance(Duration::hours(1));
    refund(&service, 4).await;
    service.flush().await;
    assert_eq!(periods(&world).await, [("03-01".to_owned(), 6, 4)]);
    let expected = [
        ("03-15 12:00".to_owned(), 10, 0),
        ("03-15 13:00".to_owned(), -4, 4),
    ];
    assert_eq!(hours(&world).await, expected);
    // Both are restored as well.
    let _: () = world.redis_command(&["FLUSHALL"]).await;
    refund(&service, 1).await;
    service.flush().await;
    assert_eq!(periods(&world).await, [("03-01".to_owned(), 5, 5)]);
    let expected = [
        ("03-15 12:00".to_owned(), 10, 0),
        ("03-15 13:00".to_owned(), -5, 5),
    ];
    assert_eq!(hours(&world).await, expected);
}

#[tokio::test]
async fn a_refund_makes_room_below_a_hard_limit() {
    let world = World::new().await;
    let service = world.instance().await;
    assert_eq!(service.consume("org_1", 1000).await, (true, 1000));
    assert_eq!(service.consume("org_1", 1).await, (false, 1000));
    refund(&service, 1).await;
    assert_eq!(service.consume("org_1", 1).await, (true, 1000));
}

#[tokio::test]
async fn a_retried_refund_is_applied_once_and_gets_the_same_response() {
    let world = World::new().await;
    let service = world.instance().await;
    service.track("org_1", 10).await;
    let http = service.http.clone();
    let answers = at_once(20, |_| {
        let http = http.clone();
        async move {
            http.post_once(
                "/v1/refund",
                "r-1",
                json!({"organizationId": "org_1", "amount": 3}),
            )
            .await
        }
    })
    .await;
    for answer in &answers {
        assert_eq!(
            (&answer.body["applied"], &answer.body["current"]),
            (&json!(3), &json!(7))
        );
    }
    let replayed = answers
        .iter()
        .filter(|answer| answer.header("idempotent-replayed") == "true")
        .count();
    assert_eq!(replayed, 19);
}

#[tokio::test]
async fn a_refund_of_several_meters_is_one_step() {
    let world = World::new().await;
    let service = world.instance().await;
    let meters = json!({"organizationId": "org_1", "meters": {"api": 5, "tokens": 50}});
    service.http.post("/v1/track", meters).await;
    let refund = json!({"organizationId": "org_1", "meters": {"api": 9, "tokens": 20}});
    let answer = service.http.post("/v1/refund", refund).await;
    assert_eq!(answer.body["meters"]["api"]["applied"], 5);
    assert_eq!(answer.body["meters"]["tokens"]["current"], 30);
}

/// Its entry in the dirty index must not block the others.
#[tokio::test]
async fn a_dirty_counter_that_was_removed_by_hand_does_not_block_the_flush() {
    let world = World::new().await;
    let service = world.instance().await;
    service.track("org_1", 1).await;
    let keys: Vec<String> = world.redis_command(&["KEYS", "tm:*:u:org_1:*"]).await;
    let _: () = world.redis_command(&["DEL", &keys[0]]).await;
    world.clock.advance(Duration::seconds(1));
    service.track("org_2", 2).await;
    assert_eq!(service.flush().await.stored, 1);
    let dirty: Vec<String> = world.redis_command(&["KEYS", "tm:*:dirty"]).await;
    assert_eq!(dirty, Vec::<String>::new());
}
