//! `ETag`, `If-Match` and `If-None-Match`: no client overwrites a state that it has not seen.

use std::collections::BTreeSet;

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{Answer, Http, World, at_once};

const PATH: &str = "/v1/organizations/org_1";
const LIMITS: &str = "/v1/organizations/org_1/limits";

async fn send(
    http: &Http,
    method: Method,
    path: &str,
    condition: (&str, &str),
    body: Value,
) -> Answer {
    http.send(method, path, &[condition], Some(body)).await
}

#[tokio::test]
async fn every_response_with_an_organization_has_its_etag() {
    let world = World::new().await;
    let service = world.instance().await;
    let http = &service.http;
    let tag = |answer: &Answer| {
        assert_eq!(answer.status, 200, "{}", answer.text);
        let tag = answer.header("etag").to_owned();
        assert_eq!(tag, format!("\"{}\"", answer.body["version"]));
        tag
    };
    let put = tag(&http.put(PATH, json!({})).await);
    assert_eq!(tag(&http.get(PATH).await), put);
    assert_eq!(tag(&http.get(LIMITS).await), put);
    let limited = tag(&http.patch(LIMITS, json!({"api": {"limit": 5}})).await);
    assert_eq!(tag(&http.get(PATH).await), limited);
    let patched = tag(&http.patch(PATH, json!({"resetDay": 3})).await);
    assert_eq!(tag(&http.get(LIMITS).await), patched);
    assert_eq!(BTreeSet::from([put, limited, patched]).len(), 3);
}

#[tokio::test]
async fn a_change_of_an_outdated_state_is_refused_and_changes_nothing() {
    let world = World::new().await;
    let service = world.instance().await;
    let http = &service.http;
    let stale = http.put(PATH, json!({})).await.header("etag").to_owned();
    let present = http.put(PATH, json!({"resetDay": 2})).await;
    let weak = format!("W/{}", present.header("etag"));
    for condition in [
        ("if-match", stale.as_str()),
        ("if-match", &weak),
        ("if-none-match", "*"),
        ("if-none-match", &weak),
        ("if-none-match", present.header("etag")),
    ] {
        for (method, path, body) in [
            (Method::PUT, PATH, json!({"resetDay": 9})),
            (Method::PATCH, PATH, json!({"resetDay": 9})),
            (Method::PATCH, LIMITS, json!({"api": {"limit": 9}})),
        ] {
            let answer = send(http, method, path, condition, body).await;
            assert_eq!(
                (answer.status.as_u16(), answer.code()),
                (412, "precondition_failed"),
                "{condition:?}"
            );
        }
    }
    assert_eq!(http.get(PATH).await.body, present.body);
    let audited =
        world.select("select count(*)::text from audit_log where organization_id = 'org_1'");
    assert_eq!(audited.await, ["2"]);
}

#[tokio::test]
async fn a_change_of_the_current_state_is_made() {
    let world = World::new().await;
    let service = world.instance().await;
    let http = &service.http;
    let mut tag = http.put(PATH, json!({})).await.header("etag").to_owned();
    for (method, path, body) in [
        (Method::PUT, PATH, json!({"resetDay": 9})),
        (Method::PATCH, PATH, json!({"resetDay": 8})),
        (Method::PATCH, LIMITS, json!({"api": {"limit": 9}})),
    ] {
        // The tag is one of several, spread over two headers.
        let several = format!("\"x,y\", {tag}");
        let headers = [("if-match", "\"0\""), ("if-match", several.as_str())];
        let answer = http
            .send(method.clone(), path, &headers, Some(body.clone()))
            .await;
        assert_eq!(answer.status, 200, "{}", answer.text);
        let answer = send(http, method, path, ("if-match", "*"), body).await;
        assert_eq!(answer.status, 200, "{}", answer.text);
        tag = answer.header("etag").to_owned();
    }
}

#[tokio::test]
async fn a_condition_distinguishes_creating_from_replacing() {
    let world = World::new().await;
    let service = world.instance().await;
    let http = &service.http;
    let put = |condition, path| send(http, Method::PUT, path, condition, json!({}));
    for condition in [("if-match", "*"), ("if-match", "\"1\"")] {
        assert_eq!(put(condition, PATH).await.status, 412);
    }
    assert_eq!(http.get(PATH).await.status, 404);
    assert_eq!(put(("if-none-match", "*"), PATH).await.status, 200);
    assert_eq!(put(("if-none-match", "*"), PATH).await.status, 412);
    assert_eq!(put(("if-match", "*"), PATH).await.status, 200);
    // Counting creates the organization too, before it is in Postgres.
    world.move_to("2031-04-02T00:00:00Z");
    let counted = "/v1/organizations/counted";
    service.count("counted", "api", 1).await;
    assert_eq!(put(("if-none-match", "*"), counted).await.status, 412);
    let tag = http.get(counted).await.header("etag").to_owned();
    assert_eq!(put(("if-match", &tag), counted).await.status, 200);
    // A missing organization is 404, whatever the condition.
    let answer = send(
        http,
        Method::PATCH,
        "/v1/organizations/nobody",
        ("if-match", "\"1\""),
        json!({}),
    )
    .await;
    assert_eq!(answer.status, 404);
}

#[tokio::test]
async fn a_client_with_the_current_state_gets_304() {
    let world = World::new().await;
    let service = world.instance().await;
    let http = &service.http;
    let tag = http.put(PATH, json!({})).await.header("etag").to_owned();
    let known = format!("\"0\", {tag}");
    let weak = format!("W/{tag}");
    for path in [PATH, LIMITS] {
        for (name, value, status) in [
            ("if-none-match", tag.as_str(), 304),
            ("if-none-match", weak.as_str(), 304),
            ("if-none-match", known.as_str(), 304),
            ("if-none-match", "*", 304),
            ("if-none-match", "\"0\"", 200),
            ("if-match", "\"0\"", 412),
            ("if-match", weak.as_str(), 412),
            ("if-match", tag.as_str(), 200),
        ] {
            let answer = http.send(Method::GET, path, &[(name, value)], None).await;
            assert_eq!(answer.status, status, "{name}: {value}");
            assert_eq!(answer.text.is_empty(), status == 304);
            assert_eq!(answer.header("etag") == tag, status != 412);
        }
    }
}

#[tokio::test]
async fn an_invalid_list_of_etags_is_a_malformed_request() {
    let world = World::new().await;
    let service = world.instance().await;
    let before = service.http.put(PATH, json!({})).await;
    for name in ["if-match", "if-none-match"] {
        for value in [
            "",
            "17",
            "\"17",
            "W/17",
            "\"17\" \"18\"",
            "*, \"17\"",
            "\"\u{e9}\"",
        ] {
            for (method, path) in [
                (Method::GET, PATH),
                (Method::GET, LIMITS),
                (Method::PUT, PATH),
                (Method::PATCH, PATH),
                (Method::PATCH, LIMITS),
            ] {
                let body = (method != Method::GET).then(|| json!({}));
                let answer = service
                    .http
                    .send(method, path, &[(name, value)], body)
                    .await;
                assert_eq!(
                    (answer.status.as_u16(), answer.code()),
                    (400, "malformed_request"),
                    "{name}: {value}"
                );
            }
        }
    }
    assert_eq!(service.http.get(PATH).await.body, before.body);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_concurrent_conditional_changes_exactly_one_succeeds() {
    let world = World::new().await;
    let instances = [world.instance().await, world.instance().await];
    for round in 0..5 {
        let tag = match round {
            0 => String::new(),
            _ => instances[0].http.get(PATH).await.header("etag").to_owned(),
        };
        let answers = at_once(8, |task| {
            let (http, tag) = (instances[task % 2].http.clone(), tag.clone());
            async move {
                let condition = if tag.is_empty() {
                    ("if-none-match", "*")
                } else {
                    ("if-match", tag.as_str())
                };
                let day = json!({"resetDay": task + 1});
                match (task % 4, tag.is_empty()) {
                    (0 | 1, _) | (_, true) => send(&http, Method::PUT, PATH, condition, day).await,
                    (2, _) => send(&http, Method::PATCH, PATH, condition, day).await,
                    _ => {
                        let limit = json!({"api": {"limit": task}});
                        send(&http, Method::PATCH, LIMITS, condition, limit).await
                    }
                }
            }
        })
        .await;
        let mut statuses: Vec<u16> = answers.iter().map(|it| it.status.as_u16()).collect();
        statuses.sort_unstable();
        assert_eq!(
            statuses,
            [200, 412, 412, 412, 412, 412, 412, 412],
            "round {round}"
        );
        let winner = answers.iter().find(|it| it.status == 200).unwrap();
        let present = instances[1].http.get(PATH).await;
        assert_eq!(present.body["version"], winner.body["version"]);
    }
}
