//! Calls that are admitted while Redis is down: which, what they answer, and that each is counted once afterwards.

use futures::future::join_all;
use serde_json::{Value, json};
use tallyman::config::Config;
use tallyman::domain::ids::METERS_MAX;
use tallyman::domain::limit::OnOutage;

use crate::support::{Answer, Instance, LossyProxy, World};

const ORGANIZATION: &str = "org_1";

/// An instance whose connection to Redis can be cut.
struct Outage {
    world: World,
    service: Instance,
    proxy: LossyProxy,
}

impl Outage {
    async fn new() -> Self {
        Self::with(|_| {}).await
    }

    async fn with(change: impl FnOnce(&mut Config)) -> Self {
        let world = World::with(change).await;
        let proxy = LossyProxy::new(&world).await;
        let service = world.instance_with(proxy.servers(&world)).await;
        Self {
            world,
            service,
            proxy,
        }
    }

    async fn begin(&self) {
        self.proxy.cut();
        self.service.until_observed("redis", false).await;
    }

    async fn end(&self) {
        self.proxy.restore();
        self.service.until_observed("redis", true).await;
    }

    async fn drain(&self) {
        self.service.app.drain.drain_once().await.unwrap();
    }

    async fn pending(&self) -> Vec<String> {
        let rows = "select organization_id || ' ' || meter || ' ' || amount from pending_increments
                    order by organization_id, meter, operation";
        self.world.select(rows).await
    }

    async fn current(&self, meter: &str) -> u64 {
        let usage = self.service.meter(ORGANIZATION, meter).await;
        usage["current"].as_u64().unwrap()
    }

    /// Sends a call for the organization.
    async fn call(&self, path: &str, mut body: Value) -> Answer {
        body["organizationId"] = json!(ORGANIZATION);
        self.service.http.post(path, body).await
    }

    async fn call_once(&self, path: &str, key: &str, mut body: Value) -> Answer {
        body["organizationId"] = json!(ORGANIZATION);
        self.service.http.post_once(path, key, body).await
    }
}

fn assert_queued(answer: &Answer) {
    assert_eq!(answer.status, 200, "{}", answer.text);
    assert_eq!(answer.body["degraded"], true, "{}", answer.text);
    assert_eq!(answer.body["queued"], true, "{}", answer.text);
}

fn assert_unavailable(answer: &Answer) {
    assert_eq!(answer.status, 503, "{}", answer.text);
    assert_eq!(answer.code(), "counter_store_unavailable");
}

#[tokio::test]
async fn what_is_tracked_in_an_outage_is_counted_afterwards() {
    let outage = Outage::new().await;
    outage.service.count(ORGANIZATION, "api", 5).await;
    outage.begin().await;
    let answer = outage.call("/v1/track", json!({"amount": 7})).await;
    assert_eq!(
        answer.body,
        json!({
            "allowed": true, "organizationId": "org_1", "meter": "api", "amount": 7, "current": null,
            "limit": 1000, "remaining": null, "overage": null, "enforcement": "hard",
            "periodStart": "2031-03-01T00:00:00Z", "resetDate": "2031-04-01T00:00:00Z",
            "degraded": true, "queued": true
        })
    );
    assert_eq!(answer.header("ratelimit"), "");
    let several = json!({"meters": {"api": 1, "tokens": 30}});
    assert_queued(&outage.call("/v1/track", several).await);
    let calls = (0..50).map(|_| outage.call("/v1/track", json!({"meter": "jobs"})));
    join_all(calls).await.iter().for_each(assert_queued);
    // Of a new organization as well.
    outage
        .service
        .http
        .post("/v1/track", json!({"organizationId": "org_2"}))
        .await;
    let metrics = outage.service.http.get("/metrics").await.text;
    assert!(
        metrics.contains(r#"{meter="jobs",operation="track",outcome="degraded"} 50"#),
        "{metrics}"
    );

    outage.end().await;
    outage.drain().await;
    assert_eq!(outage.pending().await, [""; 0]);
    for (meter, count) in [("api", 13), ("tokens", 30), ("jobs", 50)] {
        assert_eq!(outage.current(meter).await, count, "{meter}");
    }
    assert_eq!(outage.service.current("org_2", "api").await, 1);
    let ready = outage.service.http.get("/readyz").await;
    assert_eq!(
        ready.body["pending"],
        json!({"increments": 0, "ageSeconds": 0})
    );
}

#[tokio::test]
async fn what_is_pending_is_visible_with_its_age() {
    let outage = Outage::new().await;
    outage.begin().await;
    assert_queued(&outage.call("/v1/track", json!({})).await);
    outage.world.clock.advance(chrono::Duration::seconds(90));
    outage.service.app.drain.drain_once().await.unwrap_err();
    let ready = outage.service.http.get("/readyz").await;
    assert_eq!(
        ready.body["pending"],
        json!({"increments": 1, "ageSeconds": 90})
    );
    let metrics = outage.service.http.get("/metrics").await.text;
    assert!(
        metrics.contains("tallyman_pending_increments 1\n"),
        "{metrics}"
    );
    assert!(
        metrics.contains("tallyman_pending_age_seconds 90.0\n"),
        "{metrics}"
    );
}

#[tokio::test]
async fn a_consume_is_admitted_where_every_meter_allows_it() {
    let outage = Outage::new().await;
    let service = &outage.service;
    let plan = json!({"name": "Pro", "limits": {"planned": {"limit": 5, "onOutage": "allow"}}});
    assert_eq!(service.http.put("/v1/plans/pro", plan).await.status, 200);
    service
        .settings(ORGANIZATION, json!({"planId": "pro"}))
        .await;
    let limits = service
        .limits(ORGANIZATION, json!({"own": {"onOutage": "allow"}}))
        .await;
    assert_eq!(limits["limits"]["own"]["onOutage"], "allow", "{limits}");
    assert_eq!(limits["limits"]["planned"]["onOutage"], "allow", "{limits}");
    assert_eq!(limits["limits"]["api"].get("onOutage"), None, "{limits}");
    for warm in [false, true] {
        if warm {
            outage.end().await;
            outage.drain().await;
            assert_eq!(
                service.try_consume(ORGANIZATION, "other", 1).await.status,
                200
            );
        }
        outage.begin().await;
        // Beyond the limit: nothing is enforced.
        let planned = json!({"meters": {"planned": 9, "own": 1}});
        assert_queued(&outage.call("/v1/consume", planned).await);
        for denied in [
            json!({}),
            json!({"meters": {"planned": 1, "api": 1}}),
            json!({"meter": "own", "require": {"api": 1}}),
        ] {
            assert_unavailable(&outage.call("/v1/consume", denied.clone()).await);
            assert_unavailable(&outage.call("/v1/check", denied).await);
        }
        let check = outage.call("/v1/check", json!({"meter": "own"})).await;
        assert_eq!(check.body["degraded"], true, "{}", check.text);
        assert_eq!(check.body.get("queued"), None, "{}", check.text);
        assert_unavailable(&outage.call("/v1/refund", json!({"meter": "own"})).await);
    }
    outage.end().await;
    outage.drain().await;
    assert_eq!(outage.current("planned").await, 18);
    assert_eq!(outage.current("own").await, 2);
}

#[tokio::test]
async fn the_setting_of_the_deployment_applies_where_nothing_else_does() {
    let outage = Outage::with(|config| config.on_outage = OnOutage::Allow).await;
    outage
        .service
        .limits(ORGANIZATION, json!({"strict": {"onOutage": "deny"}}))
        .await;
    outage.begin().await;
    assert_queued(&outage.call("/v1/consume", json!({})).await);
    assert_queued(
        &outage
            .call("/v1/consume", json!({"meter": "unnamed"}))
            .await,
    );
    assert_unavailable(&outage.call("/v1/consume", json!({"meter": "strict"})).await);
}

#[tokio::test]
async fn a_denied_call_creates_no_organization() {
    let outage = Outage::new().await;
    outage.begin().await;
    assert_unavailable(&outage.call("/v1/consume", json!({})).await);
    assert_eq!(
        outage.world.select("select id from organizations").await,
        [""; 0]
    );
}

#[tokio::test]
async fn a_retry_with_the_same_key_counts_nothing_before_during_or_after_an_outage() {
    let outage = Outage::new().await;
    let units = |amount: u64| json!({"amount": amount});
    let before = outage.call_once("/v1/track", "before", units(1)).await;
    assert_eq!(before.body["current"], 1);

    outage.begin().await;
    assert_queued(&outage.call_once("/v1/track", "before", units(1)).await);
    assert_queued(&outage.call_once("/v1/track", "during", units(20)).await);
    let again = outage.call_once("/v1/track", "during", units(20)).await;
    assert_queued(&again);
    assert_eq!(again.header("idempotent-replayed"), "true");
    let other = outage.call_once("/v1/track", "during", units(21)).await;
    assert_eq!(
        (other.status.as_u16(), other.code()),
        (422, "idempotency_key_reused")
    );
    let calls = (0..20).map(|_| outage.call_once("/v1/track", "together", units(300)));
    join_all(calls).await.iter().for_each(assert_queued);

    outage.end().await;
    // One retry comes before the drain, the others after it.
    let early = outage.call_once("/v1/track", "together", units(300)).await;
    assert_eq!(early.body["current"], 301);
    outage.drain().await;
    assert_eq!(outage.current("api").await, 321);
    for (key, amount) in [("before", 1), ("during", 20), ("together", 300)] {
        let again = outage.call_once("/v1/track", key, units(amount)).await;
        assert_eq!(again.header("idempotent-replayed"), "true", "{key}");
        assert_eq!(again.body.get("degraded"), None, "{}", again.text);
    }
    assert_eq!(outage.current("api").await, 321);
}

#[tokio::test]
async fn an_admitted_retry_of_a_denied_call_counts() {
    let outage = Outage::with(|config| config.on_outage = OnOutage::Allow).await;
    let too_many = json!({"amount": 1001});
    let denied = outage
        .call_once("/v1/consume", "key", too_many.clone())
        .await;
    assert_eq!(denied.status, 429);
    outage.begin().await;
    assert_queued(
        &outage
            .call_once("/v1/consume", "key", too_many.clone())
            .await,
    );
    outage.end().await;
    outage.drain().await;
    assert_eq!(outage.current("api").await, 1001);
    let again = outage.call_once("/v1/consume", "key", too_many).await;
    assert_eq!(
        (again.status.as_u16(), &again.body["current"]),
        (200, &json!(1001))
    );
}

#[tokio::test]
async fn a_call_that_may_have_been_counted_is_not_admitted() {
    let outage = Outage::new().await;
    outage.service.count(ORGANIZATION, "api", 1).await;
    outage.proxy.lose_one_reply_and_close();
    let unknown = outage.call("/v1/track", json!({"amount": 5})).await;
    assert_eq!(
        (unknown.status.as_u16(), unknown.code()),
        (504, "outcome_unknown")
    );
    assert_eq!(outage.pending().await, [""; 0]);
    outage.proxy.open();
    outage.service.until_observed("redis", true).await;
    assert_eq!(outage.current("api").await, 6);
}

#[tokio::test]
async fn a_repeated_drain_counts_nothing_twice_even_after_a_loss_of_redis() {
    let outage = Outage::new().await;
    outage.service.count(ORGANIZATION, "api", 1).await;
    outage.begin().await;
    assert_queued(&outage.call("/v1/track", json!({"amount": 10})).await);
    assert_queued(
        &outage
            .call_once(
                "/v1/track",
                "key",
                json!({"meters": {"api": 100, "tokens": 3}}),
            )
            .await,
    );
    let postgres = outage.world.postgres().await;
    let save = "create table saved as select * from pending_increments";
    sqlx::query(save).execute(&postgres).await.unwrap();
    outage.end().await;
    outage.drain().await;
    let restore = "insert into pending_increments select * from saved";
    for lost in [false, true] {
        // As if the process had died before it deleted them.
        sqlx::query(restore).execute(&postgres).await.unwrap();
        if lost {
            outage.world.flush_redis().await;
        }
        outage.drain().await;
        assert_eq!(outage.pending().await, [""; 0]);
        assert_eq!(
            (outage.current("api").await, outage.current("tokens").await),
            (111, 3)
        );
    }
}

#[tokio::test]
async fn a_loss_of_redis_before_the_drain_loses_nothing_that_was_admitted() {
    let outage = Outage::new().await;
    outage.service.count(ORGANIZATION, "api", 1).await;
    outage.service.flush().await;
    outage.begin().await;
    assert_queued(&outage.call("/v1/track", json!({"amount": 10})).await);
    outage.world.flush_redis().await;
    outage.end().await;
    outage.drain().await;
    assert_eq!(outage.current("api").await, 11);
}

#[tokio::test]
async fn no_more_is_admitted_than_may_be_pending() {
    let outage = Outage::with(|config| config.pending_max = 2).await;
    outage.begin().await;
    for meter in ["a", "b"] {
        assert_queued(&outage.call("/v1/track", json!({"meter": meter})).await);
    }
    assert_unavailable(&outage.call("/v1/track", json!({"meter": "c"})).await);
    outage.end().await;
    outage.drain().await;
    outage.begin().await;
    assert_queued(&outage.call("/v1/track", json!({"meter": "c"})).await);
}

#[tokio::test]
async fn an_organization_gets_no_more_meters_in_an_outage_than_it_may_have() {
    let outage = Outage::new().await;
    outage.service.count(ORGANIZATION, "first", 1).await;
    outage.service.flush().await;
    outage.begin().await;
    let calls = (1..METERS_MAX)
        .map(|meter| outage.call("/v1/track", json!({"meter": format!("m{meter}")})));
    join_all(calls).await.iter().for_each(assert_queued);
    let excess = outage.call("/v1/track", json!({"meter": "excess"})).await;
    assert_eq!(
        (excess.status.as_u16(), excess.code()),
        (422, "too_many_meters")
    );
    assert_queued(&outage.call("/v1/track", json!({"meter": "first"})).await);
    outage.end().await;
    outage.drain().await;
    assert_eq!(outage.pending().await, [""; 0]);
}

#[tokio::test]
async fn a_batch_is_admitted_item_by_item() {
    let outage = Outage::new().await;
    outage.begin().await;
    let items = json!({"items": [
        {"op": "track", "organizationId": "org_1", "amount": 2},
        {"op": "track", "organizationId": "org_1", "amount": 2},
        {"op": "consume", "organizationId": "org_1"},
        {"op": "track", "organizationId": "org_2", "idempotencyKey": "key"},
        {"op": "track", "organizationId": "org_2", "idempotencyKey": "key"}
    ]});
    let answer = outage.service.http.post("/v1/batch", items).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    let numbers =
        ["counted", "denied", "failed", "replayed"].map(|it| answer.body[it].as_u64().unwrap());
    assert_eq!(numbers, [3, 0, 1, 1], "{}", answer.text);
    assert_eq!(answer.body["results"][0]["queued"], true, "{}", answer.text);
    assert_eq!(answer.body["results"][2]["status"], 503, "{}", answer.text);
    let denied = json!({"items": [{"op": "consume", "organizationId": "org_1"}]});
    assert_unavailable(&outage.service.http.post("/v1/batch", denied).await);
    outage.end().await;
    outage.drain().await;
    assert_eq!(outage.current("api").await, 4);
    assert_eq!(outage.service.current("org_2", "api").await, 1);
}

#[tokio::test]
async fn without_both_servers_nothing_is_admitted() {
    let world = World::with(|config| config.on_outage = OnOutage::Allow).await;
    let proxy = LossyProxy::new(&world).await;
    let (mut servers, socket) = world.cuttable_postgres();
    servers.redis_url = proxy.servers(&world).redis_url;
    let service = world.instance_with(servers).await;
    assert_eq!(
        service.try_consume(ORGANIZATION, "api", 1).await.status,
        200
    );
    service.app.state.auth.sweep_once().await.unwrap();
    socket.cut(&world.postgres().await).await;
    service.until_observed("postgres", false).await;
    proxy.cut();
    service.until_observed("redis", false).await;
    assert_unavailable(&service.try_consume(ORGANIZATION, "api", 1).await);
    let body = json!({"organizationId": ORGANIZATION});
    assert_unavailable(&service.http.post("/v1/track", body).await);
}

#[tokio::test]
async fn late_events_of_an_outage_count_in_their_hour_and_period() {
    let outage = Outage::new().await;
    outage.world.move_to("2031-04-01T10:30:00Z");
    outage.begin().await;
    for timestamp in ["2031-03-31T23:15:00Z", "2031-04-01T00:15:00Z"] {
        assert_queued(
            &outage
                .call("/v1/track", json!({"timestamp": timestamp}))
                .await,
        );
    }
    let old = outage
        .call("/v1/track", json!({"timestamp": "2031-03-30T10:00:00Z"}))
        .await;
    assert_eq!(old.status, 422, "{}", old.text);
    outage.end().await;
    outage.drain().await;
    let hours = outage
        .world
        .select("select meter || ' ' || hour at time zone 'UTC' || ' ' || used from usage_hourly order by hour")
        .await;
    assert_eq!(
        hours,
        ["api 2031-03-31 23:00:00 1", "api 2031-04-01 00:00:00 1"]
    );
}

#[tokio::test]
async fn a_reset_counts_what_is_pending_first() {
    let outage = Outage::new().await;
    outage.service.count(ORGANIZATION, "api", 1).await;
    outage.begin().await;
    assert_queued(&outage.call("/v1/track", json!({"amount": 10})).await);
    // Another instance is connected.
    let other = outage.world.instance().await;
    let path = format!("/v1/organizations/{ORGANIZATION}/reset");
    let reset = other.http.post(&path, json!({"meters": ["api"]})).await;
    assert_eq!(
        reset.body["meters"]["api"]["previousCount"], 11,
        "{}",
        reset.text
    );
    // An instance that missed the reset counts in the new period.
    assert_queued(&outage.call("/v1/track", json!({"amount": 5})).await);
    outage.end().await;
    outage.drain().await;
    assert_eq!(outage.current("api").await, 5);
}

#[tokio::test]
async fn what_is_pending_for_a_closed_period_counts_in_the_running_one() {
    let outage = Outage::new().await;
    outage.service.count(ORGANIZATION, "api", 1).await;
    let path = format!("/v1/organizations/{ORGANIZATION}/reset");
    for time in ["2031-03-15T13:00:00Z", "2031-03-15T14:00:00Z"] {
        outage.world.move_to(time);
        let reset = outage.service.http.post(&path, json!({})).await;
        assert_eq!(reset.status, 200, "{}", reset.text);
    }
    outage.begin().await;
    // Before both resets, so that the policy does not know the period any more.
    let timestamp = "2031-03-15T12:30:00Z";
    let late = json!({"meters": {"api": 2, "tokens": 3}, "timestamp": timestamp});
    assert_queued(&outage.call_once("/v1/track", "key", late.clone()).await);
    assert_queued(&outage.call("/v1/track", json!({"amount": 40})).await);
    outage.end().await;
    outage.drain().await;
    assert_eq!(outage.pending().await, [""; 0]);
    assert_eq!(
        (outage.current("api").await, outage.current("tokens").await),
        (42, 3)
    );
    let again = outage.call_once("/v1/track", "key", late).await;
    assert_eq!(
        again.header("idempotent-replayed"),
        "true",
        "{}",
        again.text
    );
}

#[tokio::test]
async fn a_change_of_calendar_counts_what_is_pending_first() {
    let outage = Outage::new().await;
    outage.service.settings(ORGANIZATION, json!({})).await;
    outage.begin().await;
    assert_queued(&outage.call("/v1/track", json!({"amount": 10})).await);
    let other = outage.world.instance().await;
    let change = json!({"resetPeriod": "daily"});
    let path = format!("/v1/organizations/{ORGANIZATION}");
    let changed = other.http.patch(&path, change).await;
    assert_eq!(changed.status, 200, "{}", changed.text);
    assert_queued(&outage.call("/v1/track", json!({"amount": 5})).await);
    outage.end().await;
    outage.drain().await;
    // The used period has kept its start.
    assert_eq!(outage.current("api").await, 15);
}

#[tokio::test]
async fn a_deletion_discards_what_is_pending() {
    let outage = Outage::new().await;
    outage.service.count(ORGANIZATION, "api", 1).await;
    outage.begin().await;
    assert_queued(&outage.call("/v1/track", json!({"amount": 10})).await);
    let other = outage.world.instance().await;
    let path = format!("/v1/organizations/{ORGANIZATION}");
    assert_eq!(other.http.delete(&path).await.status, 200);
    assert_eq!(outage.pending().await, [""; 0]);
    // It exists again with the next call.
    assert_queued(&outage.call("/v1/track", json!({"amount": 5})).await);
    outage.end().await;
    outage.drain().await;
    assert_eq!(outage.current("api").await, 5);
}

#[tokio::test]
async fn a_crossed_threshold_of_an_outage_is_notified_once() {
    let outage = Outage::new().await;
    outage.service.count(ORGANIZATION, "api", 700).await;
    outage.begin().await;
    assert_queued(&outage.call("/v1/track", json!({"amount": 200})).await);
    outage.end().await;
    outage.drain().await;
    for _ in 0..2 {
        outage.service.flush().await;
    }
    let events = outage
        .world
        .select("select type || ' ' || threshold from events where type = 'usage.warning'")
        .await;
    assert_eq!(events, ["usage.warning 80"]);
}

#[tokio::test]
async fn an_unread_reply_of_a_drain_does_no_harm() {
    let outage = Outage::new().await;
    outage.service.count(ORGANIZATION, "api", 1).await;
    outage.begin().await;
    assert_queued(&outage.call("/v1/track", json!({"amount": 10})).await);
    outage.end().await;
    outage.proxy.lose_every(3);
    for _ in 0..5 {
        let _ = outage.service.app.drain.drain_once().await;
    }
    outage.proxy.lose_every(0);
    outage.service.until_observed("redis", true).await;
    outage.drain().await;
    assert_eq!(outage.current("api").await, 11);
    let counter = outage
        .world
        .snapshot_of(ORGANIZATION, "api", "2031-03-01T00:00:00Z")
        .await;
    assert_eq!(counter["used"], "11");
}
