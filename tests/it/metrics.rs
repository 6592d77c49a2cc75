//! Metrics in the `OpenMetrics` format.

use chrono::Duration;
use serde_json::json;

use crate::support::{Answer, Http, Instance, Process, World};

async fn metrics(service: &Instance) -> Answer {
    let answer = service.http.get("/metrics").await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    answer
}

/// The value of a sample, given its name and labels.
fn value(answer: &Answer, sample: &str) -> f64 {
    let line = answer.text.lines().find_map(|line| {
        let rest = line.strip_prefix(sample)?;
        rest.strip_prefix(' ')
    });
    let line = line.unwrap_or_else(|| panic!("no {sample} in\n{}", answer.text));
    line.parse().unwrap()
}

fn decisions(answer: &Answer, meter: &str, operation: &str, outcome: &str) -> f64 {
    let labels = format!(r#"meter="{meter}",operation="{operation}",outcome="{outcome}""#);
    value(answer, &format!("tallyman_decisions_total{{{labels}}}"))
}

#[expect(clippy::float_cmp, reason = "counts are whole")]
fn assert_value(answer: &Answer, sample: &str, expected: f64) {
    assert_eq!(value(answer, sample), expected, "{sample}\n{}", answer.text);
}

#[tokio::test]
#[expect(clippy::float_cmp, reason = "counts are whole")]
async fn decisions_are_measured_by_meter_operation_and_outcome() {
    let world = World::new().await;
    let service = world.instance().await;
    let consume = |amount: u64| json!({"organizationId": "org_1", "amount": amount});
    let http = &service.http;
    for amount in [1, 2, 998, 0] {
        http.post("/v1/consume", consume(amount)).await;
    }
    for amount in [5, 5, 6] {
        http.post_once("/v1/track", "k", consume(amount)).await;
    }
    let meters = json!({"organizationId": "org_1", "meters": {"seats": 1, "tokens": 1}});
    http.post("/v1/check", meters).await;

    let scraped = metrics(&service).await;
    assert_eq!(
        scraped.header("content-type"),
        "application/openmetrics-text; version=1.0.0; charset=utf-8"
    );
    for (meter, operation, outcome, expected) in [
        ("api", "consume", "granted", 2.0),
        ("api", "consume", "denied", 1.0),
        ("api", "consume", "failed", 0.0),
        ("api", "track", "granted", 1.0),
        ("api", "track", "replayed", 1.0),
        ("api", "track", "failed", 1.0),
        ("seats", "check", "granted", 1.0),
        ("tokens", "check", "granted", 1.0),
    ] {
        let counted = decisions(&scraped, meter, operation, outcome);
        assert_eq!(counted, expected, "{meter} {operation} {outcome}");
    }
    assert!(!scraped.text.contains("org_1"), "{}", scraped.text);
}

#[tokio::test]
#[expect(clippy::float_cmp, reason = "counts are whole")]
async fn meter_labels_are_bounded() {
    let world = World::new().await;
    let service = world.instance().await;
    for number in 0..60 {
        let (organization, meter) = (format!("org_{}", number / 30), format!("m{number}"));
        service.count(&organization, &meter, 1).await;
    }
    service.count("org_0", "m0", 1).await;
    let scraped = metrics(&service).await;
    assert_eq!(decisions(&scraped, "m0", "track", "granted"), 2.0);
    assert_eq!(decisions(&scraped, "m49", "track", "granted"), 1.0);
    assert_eq!(decisions(&scraped, "other", "track", "granted"), 10.0);
    assert!(!scraped.text.contains(r#"meter="m50""#));
}

#[tokio::test]
async fn requests_are_measured_by_route_method_and_status() {
    let world = World::new().await;
    let service = world.instance().await;
    let http = &service.http;
    for organization in ["org_1", "org_2"] {
        http.get(&format!("/v1/organizations/{organization}/usage"))
            .await;
    }
    let method = reqwest::Method::from_bytes(b"BREW").unwrap();
    http.send(method, "/v1/track", &[], None).await;
    for path in ["/a", "/b"] {
        http.get(path).await;
    }
    let scraped = metrics(&service).await;
    let route = r#"method="GET",route="/v1/organizations/{id}/usage""#;
    for (sample, expected) in [
        (
            format!("tallyman_http_requests_total{{{route},status=\"404\"}}"),
            2.0,
        ),
        (
            format!("tallyman_http_request_duration_seconds_count{{{route}}}"),
            2.0,
        ),
        (
            r#"tallyman_http_requests_total{method="other",route="/v1/track",status="405"}"#
                .to_owned(),
            1.0,
        ),
        (
            r#"tallyman_http_requests_total{method="GET",route="none",status="404"}"#.to_owned(),
            2.0,
        ),
    ] {
        assert_value(&scraped, &sample, expected);
    }
}

#[tokio::test]
async fn scripts_caches_recoveries_and_flushes_are_measured() {
    let mut world = World::new().await;
    let service = world.instance().await;
    let meters = json!({"organizationId": "org_1", "meters": {"api": 1, "tokens": 1}});
    for _ in 0..3 {
        let answer = service.http.post("/v1/track", meters.clone()).await;
        assert_eq!(answer.status, 200, "{}", answer.text);
    }
    service.flush().await;
    let scraped = metrics(&service).await;
    for (sample, expected) in [
        // Three calls, of which the first was repeated after recovering its counters.
        ("tallyman_count_script_calls_sum", 4.0),
        ("tallyman_count_script_calls_count", 4.0),
        ("tallyman_count_script_charges_sum", 8.0),
        // One more prepared the lane.
        (
            r#"tallyman_script_duration_seconds_count{script="count"}"#,
            5.0,
        ),
        (
            r#"tallyman_script_duration_seconds_count{script="settle"}"#,
            1.0,
        ),
        (
            r#"tallyman_counters_opened_total{opened="from_postgres"}"#,
            2.0,
        ),
        (r#"tallyman_counters_opened_total{opened="at_zero"}"#, 0.0),
        ("tallyman_generations_total", 1.0),
        ("tallyman_flush_rows_total", 2.0),
        (r#"tallyman_cache_misses_total{cache="keys"}"#, 1.0),
        (r#"tallyman_cache_hits_total{cache="keys"}"#, 3.0),
        (r#"tallyman_build_info{version="0.1.0"}"#, 1.0),
        ("process_start_time_seconds", 1_931_342_400.0),
    ] {
        assert_value(&scraped, sample, expected);
    }
    assert!(value(&scraped, r#"tallyman_cache_hits_total{cache="policies"}"#) > 0.0);
    assert!(value(&scraped, r#"tallyman_cache_misses_total{cache="policies"}"#) > 0.0);

    world.move_to("2031-04-01T00:00:00Z");
    service.count("org_1", "api", 1).await;
    world.kill_redis().await;
    world.start_redis().await;
    assert_eq!(service.http.get("/readyz").await.status, 200);
    service.count("org_1", "api", 1).await;
    let scraped = metrics(&service).await;
    assert_value(
        &scraped,
        r#"tallyman_counters_opened_total{opened="at_zero"}"#,
        1.0,
    );
    assert_value(&scraped, "tallyman_generations_total", 2.0);
}

#[tokio::test]
async fn the_flush_lag_is_measured_while_postgres_is_down() {
    let world = World::new().await;
    let (servers, socket) = world.cuttable_postgres();
    let service = world.instance_with(servers).await;
    // The key is mirrored in Redis before Postgres becomes unreachable.
    service.app.state.auth.sweep_once().await.unwrap();
    service.track("org_1", 1).await;
    let postgres = world.postgres().await;
    socket.cut(&postgres).await;
    world.clock.advance(Duration::seconds(40));
    let flusher = &service.app.flusher;
    assert!(flusher.flush_once().await.is_err());
    assert_value(&metrics(&service).await, "tallyman_flush_lag_seconds", 40.0);

    socket.restore().await;
    service.flush().await;
    flusher.flush_once().await.unwrap();
    assert_value(&metrics(&service).await, "tallyman_flush_lag_seconds", 0.0);
}

#[tokio::test]
async fn metrics_need_an_unbound_key_with_scope_read() {
    let world = World::new().await;
    let service = world.instance().await;
    let bound = json!({"name": "bound", "scopes": ["read"], "organizationId": "org_1"});
    let bound = service.http.post("/v1/api-keys", bound).await;
    let (ingest, read) = (
        world.key_with(&["ingest"]).await,
        world.key_with(&["read"]).await,
    );
    for (key, status) in [
        (None, 401),
        (Some(ingest.as_str()), 403),
        (bound.body["key"].as_str(), 403),
        (Some(read.as_str()), 200),
    ] {
        let answer = service.http.with_key(key).get("/metrics").await;
        assert_eq!(answer.status, status, "{}", answer.text);
    }
}

#[tokio::test]
async fn the_metrics_listener_serves_metrics_without_a_key_and_nothing_else() {
    let world = World::new().await;
    let variables = [("TALLYMAN_METRICS_LISTEN", "127.0.0.1:0")];
    let mut service = Process::serve(&world, world.servers(), &variables).await;
    let address = service.url_after("metrics are at ").await;
    let listener = Http::new(format!("http://{address}"), "").with_key(None);
    let scraped = listener.get("/metrics").await;
    assert_eq!(scraped.status, 200);
    assert!(scraped.text.ends_with("# EOF\n"), "{}", scraped.text);
    assert_eq!(listener.get("/healthz").await.status, 404);
    assert_eq!(service.http.get("/metrics").await.status, 404);
    assert_eq!(service.stop().await.0, Some(0));
}
