//! The log: one line for each request, its id on every line in between, and no secrets.

use reqwest::Method;
use serde_json::{Value, json};
use tallyman::config::Servers;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use uuid::Uuid;

use crate::support::{AuthServer, Process, World};

/// Starts the executable with this log filter and JSON lines.
async fn serve(world: &World, filter: &str) -> Process {
    let variables = [("TALLYMAN_LOG", filter), ("TALLYMAN_LOG_FORMAT", "json")];
    Process::serve(world, world.servers(), &variables).await
}

/// The request lines, parsed.
fn requests(output: &[String]) -> Vec<Value> {
    let lines = output
        .iter()
        .map(|line| serde_json::from_str(line).unwrap());
    lines
        .filter(|line: &Value| line["target"] == "tallyman::request")
        .collect()
}

/// The id of a key, which may be logged.
fn id(key: &str) -> &str {
    key.split('_').nth(1).unwrap()
}

#[tokio::test]
async fn a_request_is_one_log_line_with_caller_operation_and_outcome() {
    let world = World::new().await;
    let service = serve(&world, "info,tallyman::request=debug").await;
    let body = json!({"organizationId": "org_1"});
    let named = [("x-request-id", "mine")];
    let (post, path) = (Method::POST, "/v1/consume");
    service.http.send(post, path, &named, Some(body)).await;
    let amount = json!({"organizationId": "org_1", "amount": 0});
    let bad = service.http.post(path, amount).await;
    let anonymous = service.http.with_key(None);
    anonymous.get("/v1/organizations/org_1?x=1").await;
    anonymous.get("/no/such/path").await;
    let (code, output) = service.stop().await;
    assert_eq!(code, Some(0));

    let lines = requests(&output);
    let expected = [
        ("DEBUG", "POST", "/v1/consume", 200, json!(null)),
        ("INFO", "POST", "/v1/consume", 400, json!("invalid_field")),
        (
            "INFO",
            "GET",
            "/v1/organizations/{id}",
            401,
            json!("unauthenticated"),
        ),
        ("INFO", "GET", "none", 404, json!("not_found")),
    ];
    assert_eq!(lines.len(), expected.len(), "{lines:#?}");
    for (line, (level, method, route, status, code)) in lines.iter().zip(expected) {
        assert_eq!(line["level"], level);
        assert_eq!(line["message"], "answered");
        assert_eq!(line["method"], method);
        assert_eq!(line["route"], route);
        assert_eq!(line["status"], status);
        assert_eq!(line["code"], code);
        assert!(line["duration_ms"].as_f64().unwrap() > 0.0, "{line}");
    }
    assert_eq!(lines[0]["request_id"], "mine");
    assert_eq!(lines[0]["key_id"], id(&world.key));
    assert_eq!(lines[1]["request_id"], bad.header("x-request-id"));
    assert_eq!(lines[2]["key_id"], Value::Null);
}

#[tokio::test]
async fn a_user_is_logged_and_no_token_is_at_any_level() {
    let world = World::new().await;
    let auth = AuthServer::start().await;
    let variables = [
        ("TALLYMAN_LOG", "trace"),
        ("TALLYMAN_LOG_FORMAT", "json"),
        ("TALLYMAN_JWT_JWKS_URL", auth.text("jwksUrl")),
        ("TALLYMAN_JWT_ISSUER", auth.text("issuer")),
        ("TALLYMAN_JWT_AUDIENCE", auth.text("audience")),
    ];
    let service = Process::serve(&world, world.servers(), &variables).await;
    let path = format!("/v1/organizations/{}/usage", auth.text("organizationId"));
    let right = auth.token("EdDSA");
    let (signed, signature) = right.rsplit_once('.').unwrap();
    let wrong = format!("{signed}.{}", signature.chars().rev().collect::<String>());
    for (token, status) in [(right, 200), (&wrong, 401)] {
        let user = service.http.with_key(Some(token));
        assert_eq!(user.get(&path).await.status, status);
        for id in [token.to_owned(), format!("a-{}.", &token[..100])] {
            let headers = [("x-request-id", id.as_str())];
            let answer = user.send(Method::GET, &path, &headers, None).await;
            assert_eq!(answer.status, status, "{}", answer.text);
            let given = answer.header("x-request-id");
            assert!(Uuid::parse_str(given).is_ok(), "{given}");
        }
        user.get(&format!("{path}?token={token}")).await;
        user.get(&format!("/{token}")).await;
        let body = json!({"organizationId": token, token: token});
        user.post("/v1/consume", body).await;
    }
    let (_, output) = service.stop().await;

    let lines = requests(&output);
    assert_eq!(lines[0]["user_id"], auth.text("userId"));
    assert_eq!(lines[0]["key_id"], Value::Null);
    for secret in right.split('.').chain([wrong.rsplit('.').next().unwrap()]) {
        let line = output.iter().find(|line| line.contains(secret));
        assert_eq!(line, None, "{secret}");
    }
}

#[tokio::test]
async fn log_lines_of_a_request_have_its_id() {
    let world = World::new().await;
    let mut service = serve(&world, "info,tallyman=debug").await;
    let body = json!({"organizationId": "org_1"});
    let answer = service.http.post("/v1/track", body).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    let line = service
        .line(|line| line.contains("recovered a counter"))
        .await;
    let line: Value = serde_json::from_str(&line).unwrap();
    assert_eq!(line["span"]["request_id"], answer.header("x-request-id"));
}

#[tokio::test]
async fn at_level_warn_the_log_has_failures_with_their_causes_only() {
    let mut world = World::new().await;
    let service = serve(&world, "info,tallyman::request=warn").await;
    let body = json!({"organizationId": "org_1"});
    let counted = service.http.post("/v1/track", body.clone()).await;
    assert_eq!(counted.status, 200, "{}", counted.text);
    assert_eq!(service.http.get("/nowhere").await.status, 404);
    world.kill_redis().await;
    let mut failed = service.http.post("/v1/consume", body.clone()).await;
    // The connection may break during the call, so that its outcome is unknown.
    if failed.status == 504 {
        failed = service.http.post("/v1/consume", body).await;
    }
    assert_eq!(failed.code(), "counter_store_unavailable");
    let (_, output) = service.stop().await;

    let lines = requests(&output);
    let last = lines.last().unwrap();
    assert_eq!(last["request_id"], failed.header("x-request-id"));
    assert_eq!(last["code"], "counter_store_unavailable");
    assert_eq!(last["key_id"], id(&world.key));
    assert!(!last["error"].as_str().unwrap().is_empty(), "{last}");
    for line in &lines {
        assert_eq!(line["level"], "WARN", "{line}");
        assert!(line["status"].as_u64().unwrap() > 500, "{line}");
    }
}

#[tokio::test]
async fn a_client_that_disconnects_is_logged() {
    let world = World::new().await;
    let mut service = serve(&world, "info").await;
    let body = br#"{"organizationId":"org_1"}"#;
    let head = format!(
        "POST /v1/track HTTP/1.1\r\nhost: here\r\nauthorization: Bearer {}\r\nx-request-id: gone\r\n\
         content-type: application/json\r\ncontent-length: {}\r\nexpect: 100-continue\r\n\r\n",
        world.key,
        body.len()
    );
    let mut caller = TcpStream::connect(&service.address).await.unwrap();
    caller.write_all(head.as_bytes()).await.unwrap();
    // `100 Continue` shows that the request is in progress; the paused Redis keeps it there.
    let mut interim = [0; 12];
    caller.read_exact(&mut interim).await.unwrap();
    assert_eq!(&interim, b"HTTP/1.1 100");
    let () = world.redis_command(&["CLIENT", "PAUSE", "600000"]).await;
    caller.write_all(body).await.unwrap();
    drop(caller);
    let line = service
        .line(|line| line.contains("client disconnected"))
        .await;
    let line: Value = serde_json::from_str(&line).unwrap();
    assert_eq!(line["request_id"], "gone");
    assert_eq!(line["route"], "/v1/track");
    assert_eq!(line["status"], Value::Null);
}

#[tokio::test]
async fn no_secret_is_logged_at_any_level() {
    let world = World::new().await;
    let (redis, postgres, hook) = ("redis_hunter2", "postgres_hunter2", "whsec_hunter2");
    let () = world
        .redis_command(&["CONFIG", "SET", "requirepass", redis])
        .await;
    let Servers {
        redis_url,
        database_url,
    } = world.servers();
    let servers = Servers {
        redis_url: format!("{redis_url}&pass={redis}"),
        database_url: format!("{database_url}&password={postgres}"),
    };
    let variables = [("TALLYMAN_LOG", "trace"), ("TALLYMAN_LOG_FORMAT", "json")];
    let service = Process::serve(&world, servers, &variables).await;
    let http = &service.http;

    let request = json!({"name": "made", "scopes": ["ingest", "read"]});
    let made = http.post("/v1/api-keys", request).await;
    assert_eq!(made.status, 201, "{}", made.text);
    let made = made.body["key"].as_str().unwrap().to_owned();
    let wrong = format!("tm_{}_{}", id(&world.key), "5".repeat(64));
    let unknown = format!("tm_{}_{}", "0".repeat(16), "6".repeat(64));
    let body = || json!({"organizationId": "org_1"});
    for (key, status) in [
        (&made, 200),
        (&world.key, 200),
        (&wrong, 401),
        (&unknown, 401),
    ] {
        let caller = http.with_key(Some(key));
        for path in [
            "/v1/consume".to_owned(),
            format!("/{key}"),
            format!("/v1/organizations?secret={key}"),
        ] {
            caller.post(&path, body()).await;
        }
        for id in [key.clone(), format!("a-{key}"), format!("{key}-z")] {
            let headers = [("x-request-id", id.as_str())];
            let answer = caller
                .send(Method::POST, "/v1/track", &headers, Some(body()))
                .await;
            assert_eq!(answer.status, status, "{}", answer.text);
            let given = answer.header("x-request-id");
            assert!(Uuid::parse_str(given).is_ok(), "{given}");
        }
        let text = format!("{{\"organizationId\": \"org_1\", \"{key}\": ");
        caller
            .post_raw("/v1/consume", Some("application/json"), &text)
            .await;
        let named = json!({"organizationId": "org_1", key: key});
        caller.post("/v1/consume", named).await;
        caller.get(&format!("/v1/organizations/{key}")).await;
    }
    http.get(&format!("/v1/history?signature={hook}")).await;
    let query = format!("/v1/consume?organizationId=org_1&secret={hook}");
    http.send(Method::POST, &query, &[], None).await;
    http.get("/metrics").await;
    let path = format!("/v1/api-keys/{}", id(&made));
    http.send(Method::DELETE, &path, &[], None).await;
    let (code, output) = service.stop().await;
    assert_eq!(code, Some(0));

    assert!(
        output
            .iter()
            .any(|line| line.contains(r#""level":"TRACE""#))
    );
    assert!(requests(&output).len() > 30);
    let secret = |key: &str| key.rsplit('_').next().unwrap().to_owned();
    let secrets = [&world.key, &made, &wrong, &unknown].map(|key| secret(key));
    for secret in secrets
        .iter()
        .map(String::as_str)
        .chain([redis, postgres, hook])
    {
        let line = output.iter().find(|line| line.contains(secret));
        assert_eq!(line, None, "{secret}");
    }
}

#[tokio::test]
async fn an_unread_log_blocks_neither_requests_nor_a_stop_and_reports_dropped_lines() {
    let world = World::new().await;
    let mut service = Process::serve(&world, world.servers(), &[]).await;
    service.stop_reading();
    // Each request writes a line; the pipe holds 64 KiB, and the queue 8192 lines.
    let (mut answers, mut requests) = TcpStream::connect(&service.address)
        .await
        .unwrap()
        .into_split();
    let pipelined = "GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n".repeat(12_000);
    let last = "GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    let sending = tokio::spawn(async move {
        requests.write_all(pipelined.as_bytes()).await.unwrap();
        requests.write_all(last.as_bytes()).await.unwrap();
        requests
    });
    let mut text = String::new();
    answers.read_to_string(&mut text).await.unwrap();
    // Closed only now: the server may treat a half-closed connection as a disconnect.
    drop(sending.await.unwrap());
    assert_eq!(text.matches("HTTP/1.1 200 OK").count(), 12_001);
    let metrics = service.http.get("/metrics").await.text;
    let mut lines = metrics.lines();
    let dropped = lines.find_map(|line| line.strip_prefix("tallyman_log_lines_dropped_total "));
    assert!(dropped.unwrap().parse::<u64>().unwrap() > 0);
    let (code, _) = service.stop().await;
    assert_eq!(code, Some(0));
}

#[tokio::test]
async fn the_last_log_lines_of_a_stop_are_written() {
    let world = World::new().await;
    let service = serve(&world, "trace").await;
    let (_, output) = service.stop().await;
    let last: Value = serde_json::from_str(output.last().unwrap()).unwrap();
    assert_eq!(last["message"], "stopped");
}
