//! `POST /v1/batch`: many items in one request, each decided on its own.

use serde_json::{Value, json};

use crate::support::{Answer, Instance, World, at_once};

async fn send(service: &Instance, items: &[Value]) -> Answer {
    service
        .http
        .post("/v1/batch", json!({"items": items}))
        .await
}

fn consume(organization: &str, amount: u64) -> Value {
    json!({"op": "consume", "organizationId": organization, "amount": amount})
}

fn counts(answer: &Answer) -> [u64; 3] {
    assert_eq!(answer.status, 200, "{}", answer.text);
    ["counted", "denied", "failed"].map(|name| answer.body[name].as_u64().unwrap())
}

/// Index, status and count of each result.
fn results(answer: &Answer) -> Vec<(u64, u64, Option<u64>)> {
    let results = answer.body["results"].as_array().unwrap().iter();
    results
        .map(|it| {
            (
                it["index"].as_u64().unwrap(),
                it["status"].as_u64().unwrap(),
                it["current"].as_u64(),
            )
        })
        .collect()
}

#[tokio::test]
async fn each_item_succeeds_or_fails_on_its_own() {
    let world = World::new().await;
    let service = world.instance().await;
    service.limits("org_1", json!({"api": {"limit": 5}})).await;
    let answer = send(
        &service,
        &[
            consume("org_1", 3),
            consume("org_1", 0),
            consume("org_1", 4),
            json!({"op": "track", "organizationId": "org_1", "amount": 4}),
            json!({"op": "refund", "organizationId": "org_1"}),
            json!({"op": "consume", "organizationId": "org 1"}),
            json!({"op": "track", "organizationId": "org_1", "timestamp": "2031-03-01T00:00:00Z"}),
            json!({"op": "consume", "organizationId": "org_2", "meters": {"api": 1, "tokens": 9}}),
            json!(7),
        ],
    )
    .await;
    assert_eq!(counts(&answer), [3, 1, 5]);
    assert_eq!(
        results(&answer),
        [
            (0, 200, Some(3)),
            (1, 400, None),
            (2, 429, Some(3)),
            (3, 200, Some(7)),
            (4, 400, None),
            (5, 400, None),
            (6, 422, None),
            (7, 200, None),
            (8, 400, None),
        ]
    );
    let result = |index: usize| &answer.body["results"][index];
    assert_eq!(result(1)["errors"][0]["pointer"], "/amount");
    assert_eq!(result(2)["code"], "limit_exceeded");
    assert_eq!(result(2)["limit"], 5);
    assert_eq!(result(3)["allowed"], false);
    assert_eq!(result(4)["errors"][0]["pointer"], "/op");
    assert_eq!(result(5)["errors"][0]["pointer"], "/organizationId");
    assert_eq!(result(6)["code"], "timestamp_out_of_range");
    assert_eq!(result(7)["meters"]["tokens"]["current"], 9);
    assert_eq!(service.current("org_1", "api").await, 7);
}

#[tokio::test]
async fn null_in_place_of_a_field_of_an_item_counts_nothing() {
    let world = World::new().await;
    let service = world.instance().await;
    let fields = [
        "meter",
        "amount",
        "meters",
        "require",
        "timestamp",
        "idempotencyKey",
    ];
    let items = fields.map(|field| {
        let mut item = json!({"op": "consume", "organizationId": "org_1"});
        item[field] = Value::Null;
        item
    });
    let answer = send(&service, &items).await;
    assert_eq!(counts(&answer), [0, 0, 6]);
    for (index, field) in fields.iter().enumerate() {
        let result = &answer.body["results"][index];
        assert_eq!(result["status"], 400, "{field}");
        assert_eq!(result["errors"][0]["pointer"], format!("/{field}"));
    }
    let usage = service.http.get("/v1/organizations/org_1/usage").await;
    assert_eq!(usage.status, 404);
}

#[tokio::test]
async fn equal_items_are_granted_one_after_the_other_until_the_limit() {
    let world = World::new().await;
    let service = world.instance().await;
    service.limits("org_1", json!({"api": {"limit": 9}})).await;
    let answer = send(&service, &vec![consume("org_1", 2); 6]).await;
    assert_eq!(counts(&answer), [4, 2, 0]);
    assert_eq!(
        results(&answer),
        [
            (0, 200, Some(2)),
            (1, 200, Some(4)),
            (2, 200, Some(6)),
            (3, 200, Some(8)),
            (4, 429, Some(8)),
            (5, 429, Some(8)),
        ]
    );
    service.flush().await;
    let stored = world
        .select("select used || ' ' || denied from usage_history")
        .await;
    assert_eq!(stored, ["8 2"]);
}

/// The script decides consecutive equal items together.
#[tokio::test]
async fn the_first_refused_item_of_each_meter_is_marked_first() {
    let world = World::new().await;
    let service = world.instance().await;
    service
        .limits(
            "org_1",
            json!({"api": {"limit": 5}, "tokens": {"limit": 0}}),
        )
        .await;
    let tokens = json!({"op": "consume", "organizationId": "org_1", "meter": "tokens"});
    let mut items = vec![consume("org_1", 2); 5];
    items.extend([
        tokens.clone(),
        consume("org_1", 3),
        tokens,
        consume("org_2", 1001),
    ]);
    let firsts = |answer: &Answer| -> Vec<bool> {
        let results = answer.body["results"].as_array().unwrap().iter();
        results.map(|it| it["first"] == true).collect()
    };
    let expected = [false, false, true, false, false, true, false, false, true];
    let body = json!({"items": items});
    let answer = service.http.post_once("/v1/batch", "b", body.clone()).await;
    assert_eq!(counts(&answer), [2, 7, 0]);
    assert_eq!(firsts(&answer), expected);
    let again = service.http.post_once("/v1/batch", "b", body.clone()).await;
    assert_eq!(firsts(&again), expected);
    let without_key = service.http.post("/v1/batch", body).await;
    assert_eq!(firsts(&without_key), [false; 9]);
    // Also without an idempotency key, when equal items are decided together.
    let answer = send(&service, &vec![consume("org_3", 600); 4]).await;
    assert_eq!(counts(&answer), [1, 3, 0]);
    assert_eq!(firsts(&answer), [false, true, false, false]);
}

#[tokio::test]
async fn the_items_of_an_organization_are_decided_in_their_order() {
    let world = World::new().await;
    let service = world.instance().await;
    service.limits("org_1", json!({"api": {"limit": 10}})).await;
    service.count("org_1", "tokens", 1).await;
    let both =
        json!({"op": "consume", "organizationId": "org_1", "meters": {"api": 1, "tokens": 1}});
    let answer = send(
        &service,
        &[
            consume("org_1", 6),
            consume("org_1", 6),
            consume("org_1", 3),
            both,
            consume("org_1", 3),
            consume("org_1", 1),
        ],
    )
    .await;
    let statuses: Vec<u64> = results(&answer)
        .iter()
        .map(|(_, status, _)| *status)
        .collect();
    assert_eq!(statuses, [200, 429, 200, 200, 429, 429]);
}

#[tokio::test]
async fn items_may_be_sent_as_ndjson() {
    let world = World::new().await;
    let service = world.instance().await;
    let lines = format!(
        "{}\n\n{}\r\nnonsense\n",
        consume("org_1", 1),
        consume("org_1", 2)
    );
    let answer = service
        .http
        .post_raw("/v1/batch", Some("application/x-ndjson"), &lines)
        .await;
    assert_eq!(counts(&answer), [2, 0, 1]);
    assert_eq!(
        results(&answer),
        [(0, 200, Some(1)), (1, 200, Some(3)), (2, 400, None)]
    );
    assert_eq!(answer.body["results"][2]["code"], "malformed_request");
}

#[tokio::test]
async fn the_response_lists_all_items_or_those_not_counted_or_none() {
    let world = World::new().await;
    let service = world.instance().await;
    service.limits("org_1", json!({"api": {"limit": 1}})).await;
    let items = json!({"items": [consume("org_1", 1), consume("org_1", 1), {"op": "track"}]});
    for (which, expected, described) in [
        ("all", [1, 1, 1], 3),
        ("denied", [0, 2, 1], 3),
        ("none", [0, 2, 1], 0),
    ] {
        let path = format!("/v1/batch?results={which}");
        let answer = service.http.post(&path, items.clone()).await;
        assert_eq!(counts(&answer), expected, "{which}");
        assert_eq!(results(&answer).len(), described, "{which}");
    }
    let path = "/v1/batch?results=denied";
    let counted = json!({"items": [consume("org_2", 1), {"op": "track"}]});
    let answer = service.http.post(path, counted).await;
    assert_eq!(results(&answer), [(1, 400, None)]);
    let answer = service.http.post("/v1/batch?results=some", items).await;
    assert_eq!(answer.code(), "invalid_field");
}

#[tokio::test]
async fn a_repeated_batch_counts_nothing_item_by_item() {
    let world = World::new().await;
    let service = world.instance().await;
    let items = json!({"items": [
        consume("org_1", 1),
        consume("org_1", 1),
        {"op": "track", "organizationId": "org_2", "idempotencyKey": "mine"},
    ]});
    let first = service
        .http
        .post_once("/v1/batch", "b", items.clone())
        .await;
    let again = service.http.post_once("/v1/batch", "b", items).await;
    assert_eq!(
        (counts(&first), &first.body["replayed"]),
        ([3, 0, 0], &json!(0))
    );
    assert_eq!(
        (counts(&again), &again.body["replayed"]),
        ([0, 0, 0], &json!(3))
    );
    assert_eq!(results(&first), results(&again));
    for result in again.body["results"].as_array().unwrap() {
        assert_eq!(result["replayed"], true);
    }
    // Item n of a batch has the key `<batch key>/<n>`, unless it has its own key.
    let one = json!({"organizationId": "org_1", "amount": 1});
    let single = service.http.post_once("/v1/consume", "b/1", one).await;
    assert_eq!(single.header("idempotent-replayed"), "true");
    let own = json!({"organizationId": "org_2"});
    let single = service.http.post_once("/v1/track", "mine", own).await;
    assert_eq!(single.header("idempotent-replayed"), "true");
    assert_eq!(service.current("org_1", "api").await, 2);
    assert_eq!(service.current("org_2", "api").await, 1);
}

#[tokio::test]
async fn items_of_organizations_that_the_key_may_not_access_fail_individually() {
    let world = World::new().await;
    let service = world.instance().await;
    let request = json!({"name": "bound", "scopes": ["ingest"], "organizationId": "org_1"});
    let key = service.http.post("/v1/api-keys", request).await.body["key"].clone();
    let http = service.http.with_key(key.as_str());
    let items = json!({"items": [consume("org_1", 1), consume("org_2", 1)]});
    let answer = http.post("/v1/batch", items).await;
    assert_eq!(counts(&answer), [1, 0, 1]);
    assert_eq!(answer.body["results"][1]["code"], "forbidden");
}

#[tokio::test]
async fn an_invalid_batch_is_refused_as_a_whole() {
    let world = World::new().await;
    let service = world.instance().await;
    let none: [Value; 0] = [];
    assert_eq!(counts(&send(&service, &none).await), [0, 0, 0]);
    let too_many = vec![consume("org_1", 1); 10_001];
    assert_eq!(send(&service, &too_many).await.code(), "invalid_field");
    for (media_type, text, code) in [
        ("application/json", "{", "malformed_request"),
        ("application/json", "{}", "invalid_field"),
        ("application/json", r#"{"items": 1}"#, "invalid_field"),
        (
            "application/json",
            r#"{"items": [], "dryRun": true}"#,
            "invalid_field",
        ),
        ("text/plain", "{}", "unsupported_media_type"),
    ] {
        let answer = service
            .http
            .post_raw("/v1/batch", Some(media_type), text)
            .await;
        assert_eq!(answer.code(), code, "{text}");
    }
    let large = " ".repeat(9 * 1024 * 1024);
    let answer = service
        .http
        .post_raw("/v1/batch", Some("application/json"), &large)
        .await;
    assert_eq!(answer.code(), "payload_too_large");
    let usage = service.http.get("/v1/organizations/org_1/usage").await;
    assert_eq!(usage.status, 404);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_batches_and_calls_of_two_instances_grant_exactly_the_limit() {
    let world = World::new().await;
    let instances = [world.instance().await, world.instance().await];
    let organizations = 300;
    let granted: u64 = at_once(8, |task| {
        let http = instances[task % 2].http.clone();
        async move {
            let items: Vec<Value> = (0..3000)
                .map(|item| consume(&format!("org_{}", item % organizations), 30))
                .collect();
            let path = "/v1/batch?results=none";
            let answer = http.post(path, json!({"items": items})).await;
            let single = consume("org_7", 30);
            let single = json!({"organizationId": single["organizationId"], "amount": 30});
            let single = http.post("/v1/consume", single).await;
            counts(&answer)[0] + u64::from(single.status == 200)
        }
    })
    .await
    .into_iter()
    .sum();
    // A limit of 1000 grants 33 times 30 units, and each organization has 80 items.
    assert_eq!(granted, 33 * organizations);
    for organization in [0, 7, 299] {
        let organization = format!("org_{organization}");
        assert_eq!(instances[0].current(&organization, "api").await, 990);
    }
}

#[tokio::test]
async fn items_that_would_exceed_the_maximum_count_fail_individually() {
    let world = World::new().await;
    let service = world.instance().await;
    service.count("org_1", "tokens", 1).await;
    let key = crate::support::key_of("org_1", "tokens", "2031-03-01T00:00:00Z");
    let near_maximum = (1_u64 << 53) - 6;
    world
        .overwrite(&key, &[("used", &near_maximum.to_string())])
        .await;
    let item = json!({"op": "track", "organizationId": "org_1", "meter": "tokens", "amount": 2});
    let answer = send(&service, &[item.clone(), item.clone(), item]).await;
    assert_eq!(counts(&answer), [2, 0, 1]);
    assert_eq!(answer.body["results"][2]["code"], "counter_overflow");
    assert_eq!(answer.body["results"][1]["current"], near_maximum + 4);
}

#[tokio::test]
async fn without_redis_a_batch_fails_as_a_whole() {
    let mut world = World::new().await;
    let service = world.instance().await;
    service.count("org_1", "api", 1).await;
    world.kill_redis().await;
    let answer = send(&service, &[consume("org_1", 1), consume("org_2", 1)]).await;
    assert_eq!(answer.code(), "counter_store_unavailable");
    assert_eq!(answer.status, 503);
}

#[tokio::test]
async fn the_number_of_meters_in_a_batch_is_bounded() {
    let world = World::new().await;
    let service = world.instance().await;
    let meters: serde_json::Map<_, _> = (0..32).map(|it| (format!("m{it}"), json!(1))).collect();
    let item = json!({"op": "track", "organizationId": "org_1", "meters": meters});
    let largest = json!({"items": vec![item.clone(); 625]});
    let answer = service.http.post("/v1/batch?results=none", largest).await;
    assert_eq!(answer.body["counted"], 625, "{}", answer.text);
    assert_eq!(service.current("org_1", "m31").await, 625);
    // No script call charges more than 512 counters, so that other calls wait only briefly.
    let metrics = service.http.get("/metrics").await.text;
    let all = |sample: &str| {
        let mut lines = metrics.lines();
        lines.find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '))
    };
    assert_eq!(
        all("tallyman_count_script_charges_bucket{le=\"512.0\"}"),
        all("tallyman_count_script_charges_count")
    );
    let too_large = json!({"items": vec![item; 626]});
    let answer = service.http.post("/v1/batch", too_large).await;
    assert_eq!(
        (answer.status.as_u16(), answer.code()),
        (400, "invalid_field")
    );
    assert_eq!(answer.body["errors"][0]["pointer"], "/items");
    assert_eq!(service.current("org_1", "m31").await, 625);
}

#[tokio::test]
async fn single_calls_overtake_the_rest_of_a_batch() {
    let world = World::new().await;
    let service = world.instance().await;
    let others: Vec<String> = (0..16).map(|it| format!("other_{it}")).collect();
    for other in others.iter().map(String::as_str).chain(["org_1"]) {
        service.count(other, "api", 1).await;
    }
    // Consecutive items differ, so that none are merged into one operation.
    let items: Vec<Value> = (0..10_000)
        .map(|it| json!({"op": "track", "organizationId": "org_1", "amount": it % 2 + 1}))
        .collect();
    let http = service.http.clone();
    let batch = tokio::spawn(async move {
        let body = json!({"items": items});
        http.post("/v1/batch?results=none", body).await
    });
    while service.current("org_1", "api").await == 1 {
        tokio::task::yield_now().await;
    }
    let calls = others.iter().map(|other| service.count(other, "api", 1));
    futures::future::join_all(calls).await;
    let counted = service.current("org_1", "api").await;
    assert!(counted < 15_001, "the calls waited for the whole batch");
    assert_eq!(batch.await.unwrap().body["counted"], 10_000);
    assert_eq!(service.current("org_1", "api").await, 15_001);
}
