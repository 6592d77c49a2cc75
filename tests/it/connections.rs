//! Connections that are slow, send too much, or are too many: each is bounded, and no other is affected.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::yield_now;
use tokio::time::timeout;

use crate::support::{Http, Instance, Process, World};

/// Upper bound for each step; reaching it fails the test.
const TIMEOUT: Duration = Duration::from_mins(1);

/// A timeout that the test waits for.
const SHORT: Duration = Duration::from_millis(100);

const MIB: usize = 1024 * 1024;

/// A TCP connection for requests that no HTTP client sends.
struct Raw(TcpStream);

impl Raw {
    async fn to(http: &Http) -> Self {
        let address = http.base().strip_prefix("http://").unwrap();
        Self(TcpStream::connect(address).await.unwrap())
    }

    /// Sends until the peer closes the connection.
    async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        let _ = self.0.write_all(bytes.as_ref()).await;
    }

    /// Sends the head of a request without its body.
    async fn send_head(&mut self, line: &str, key: &str, length: u64) {
        let head = format!(
            "{line} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\ncontent-type: application/json\r\n\
             content-length: {length}\r\n\r\n"
        );
        self.send(head).await;
    }

    /// Reads until the peer closes; returns the status and the body as JSON.
    async fn answer(mut self) -> (u16, Value) {
        let text = self.rest().await;
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
        let status = head.split(' ').nth(1).unwrap_or_else(|| panic!("{text}"));
        let body = serde_json::from_str(body).unwrap_or_default();
        (status.parse().unwrap(), body)
    }

    async fn rest(&mut self) -> String {
        let mut text = Vec::new();
        let read = self.0.read_to_end(&mut text);
        let read = timeout(TIMEOUT, read)
            .await
            .expect("the peer closes the connection");
        read.expect("the connection closes cleanly");
        String::from_utf8(text).unwrap()
    }

    /// Waits until the peer closes without a response.
    async fn closes(mut self) {
        assert_eq!(self.rest().await, "");
    }
}

async fn count(service: &Instance, sample: &str) -> u64 {
    let metrics = service.http.get("/metrics").await;
    let mut lines = metrics.text.lines();
    let value = lines.find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '));
    value.unwrap_or_else(|| panic!("{sample}")).parse().unwrap()
}

async fn closed(service: &Instance, reason: &str) -> u64 {
    let sample = format!("tallyman_connections_closed_total{{reason=\"{reason}\"}}");
    count(service, &sample).await
}

/// Waits until this many bytes of bodies are in memory.
async fn until_in_flight(service: &Instance, bytes: usize) {
    while service.app.state.bodies.taken() != bytes as u64 {
        yield_now().await;
    }
}

#[tokio::test]
async fn a_connection_that_sends_nothing_or_half_a_head_is_closed() {
    let world = World::with(|config| config.connections.header = SHORT).await;
    let service = world.instance().await;
    let silent = Raw::to(&service.http).await;
    let mut half = Raw::to(&service.http).await;
    half.send("GET /healthz HTTP/1.1\r\nhost").await;
    // The timeout applies to each head of a kept-alive connection, from its first byte.
    let mut later = Raw::to(&service.http).await;
    later.send("GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").await;
    let mut answer = [0; 12];
    later.0.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200");
    later.send("GET").await;
    silent.closes().await;
    half.closes().await;
    later.rest().await;
    assert_eq!(closed(&service, "header_timeout").await, 3);
}

#[tokio::test]
async fn an_idle_connection_is_closed() {
    let world = World::with(|config| config.connections.idle = SHORT).await;
    let service = world.instance().await;
    let mut idle = Raw::to(&service.http).await;
    idle.send("GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert!(idle.rest().await.starts_with("HTTP/1.1 200 OK"));
    assert!(closed(&service, "idle_timeout").await >= 1);
}

#[tokio::test]
async fn a_body_that_is_half_sent_or_drips_is_408() {
    let world = World::with(|config| config.connections.body = SHORT).await;
    let service = world.instance().await;
    let mut half = Raw::to(&service.http).await;
    half.send_head("POST /v1/consume", &world.key, 100).await;
    half.send(r#"{"organizationId""#).await;
    let (status, problem) = half.answer().await;
    assert_eq!((status, &problem["code"]), (408, &json!("request_timeout")));

    let mut dripping = Raw::to(&service.http).await;
    dripping
        .send_head("POST /v1/batch", &world.key, 8 * MIB as u64)
        .await;
    let (mut reading, mut writing) = dripping.0.into_split();
    let drip = tokio::spawn(async move { while writing.write_all(b" ").await.is_ok() {} });
    let mut answer = [0; 12];
    let read = timeout(TIMEOUT, reading.read_exact(&mut answer)).await;
    read.unwrap().unwrap();
    drip.abort();
    assert_eq!(&answer, b"HTTP/1.1 408");
}

#[tokio::test]
async fn a_response_that_the_client_does_not_read_closes_its_connection() {
    let world = World::with(|config| config.connections.body = SHORT).await;
    let service = world.instance().await;
    let mut unread = Raw::to(&service.http).await;
    // More responses than the socket buffers hold, and the client reads none.
    let requests = "GET /openapi.json HTTP/1.1\r\nhost: x\r\n\r\n".repeat(1000);
    unread.send(requests).await;
    while closed(&service, "write_timeout").await == 0 {
        yield_now().await;
    }
}

#[tokio::test]
async fn at_the_limit_the_longest_idle_connection_is_evicted_before_any_is_refused() {
    let world = World::with(|config| config.connections.max = 8).await;
    let service = world.instance().await;
    let mut idle = Vec::new();
    for _ in 0..50 {
        idle.push(Raw::to(&service.http).await);
    }
    assert_eq!(service.http.get("/healthz").await.status, 200);
    assert!(closed(&service, "evicted").await >= 42);
    assert_eq!(closed(&service, "refused").await, 0);
    assert!(count(&service, "tallyman_connections").await <= 9);
    idle.swap_remove(0).closes().await;

    let mut busy = Vec::new();
    for nth in 1..=8 {
        let mut one = Raw::to(&service.http).await;
        one.send_head("POST /v1/batch", &world.key, MIB as u64)
            .await;
        one.send([b' '; 1000]).await;
        busy.push(one);
        until_in_flight(&service, nth * 1000).await;
    }
    let (status, problem) = Raw::to(&service.http).await.answer().await;
    assert_eq!((status, &problem["code"]), (503, &json!("overloaded")));
    busy.pop();
    while service.app.state.bodies.taken() == 8000 {
        yield_now().await;
    }
    assert_eq!(service.http.get("/healthz").await.status, 200);
    assert_eq!(closed(&service, "refused").await, 1);
}

#[tokio::test]
async fn with_few_open_files_it_warns_and_idle_connections_block_nobody() {
    let world = World::new().await;
    let mut service = Process::serve_with_files(&world, 200).await;
    let line = service.line(|line| line.contains("open files")).await;
    assert!(line.contains("connections=62"), "{line}");
    let mut idle = Vec::new();
    for _ in 0..300 {
        idle.push(Raw::to(&service.http).await);
        if idle.len() % 50 == 0 {
            assert_eq!(service.http.get("/healthz").await.status, 200);
        }
    }
    service
        .line(|line| line.contains("TALLYMAN_CONNECTIONS is reached"))
        .await;
    let (code, output) = service.stop().await;
    assert_eq!(code, Some(0));
    let warned = output
        .iter()
        .filter(|it| it.contains("TALLYMAN_CONNECTIONS is reached"));
    assert_eq!(warned.count(), 1, "{output:#?}");
}

#[tokio::test]
async fn a_stop_does_not_wait_for_idle_connections_or_half_sent_requests() {
    let world = World::new().await;
    // Longer than the test runs.
    let variables = [
        ("TALLYMAN_SHUTDOWN_SECONDS", "3600"),
        ("TALLYMAN_HEADER_SECONDS", "3600"),
        ("TALLYMAN_BODY_SECONDS", "3600"),
        ("TALLYMAN_IDLE_SECONDS", "3600"),
    ];
    let service = Process::serve(&world, world.servers(), &variables).await;
    let silent = Raw::to(&service.http).await;
    let mut half = Raw::to(&service.http).await;
    half.send("POST /v1/consume HTTP/1.1\r\nhost").await;
    let mut idle = Raw::to(&service.http).await;
    idle.send("GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").await;
    let mut body = Raw::to(&service.http).await;
    body.send_head("POST /v1/consume", &world.key, 100).await;
    body.send("{").await;
    // The server has accepted all earlier connections before it responds to this one.
    assert_eq!(service.http.get("/healthz").await.status, 200);
    let (code, output) = service.stop().await;
    assert_eq!(code, Some(0), "{output:#?}");
    drop((silent, half, idle, body));
}

#[tokio::test]
async fn a_stop_answers_the_requests_in_flight() {
    let world = World::new().await;
    let service = world.instance().await;
    let http = service.http.clone();
    let mut request = Raw::to(&http).await;
    let body = r#"{"organizationId":"org_1"}"#;
    request
        .send_head("POST /v1/consume", &world.key, body.len() as u64)
        .await;
    request.send(&body[..10]).await;
    assert_eq!(http.get("/healthz").await.status, 200);
    drop(service);
    request.send(&body[10..]).await;
    let (status, answer) = request.answer().await;
    assert_eq!((status, &answer["current"]), (200, &json!(1)));
}

#[tokio::test]
async fn a_body_declared_too_large_is_refused_before_it_is_sent() {
    let world = World::new().await;
    let service = world.instance().await;
    for (line, length) in [
        ("POST /v1/batch", 1_000_000_000_000_000_000),
        ("POST /v1/batch", 8 * MIB as u64 + 1),
        ("POST /v1/consume", 65_537),
        ("PUT /v1/organizations/org_1", 65_537),
        ("POST /api/auth/usage-tracking/reset-expired", 65_537),
    ] {
        let mut raw = Raw::to(&service.http).await;
        raw.send_head(line, &world.key, length).await;
        let mut answer = [0; 12];
        let read = timeout(TIMEOUT, raw.0.read_exact(&mut answer)).await;
        read.unwrap().unwrap();
        assert_eq!(&answer, b"HTTP/1.1 413", "{line}");
    }
}

#[tokio::test]
async fn a_client_that_keeps_sending_still_gets_an_early_response() {
    let world = World::new().await;
    let service = world.instance().await;
    for (line, key, status) in [
        ("POST /v1/consume", world.key.as_str(), 413),
        ("POST /v1/consume", "nobody's", 401),
        ("POST /v1/nowhere", &world.key, 404),
        ("PUT /v1/consume", &world.key, 405),
    ] {
        // The client sends the whole body before it reads.
        let mut declared = Raw::to(&service.http).await;
        declared.send_head(line, key, 4 * MIB as u64).await;
        declared.send(vec![b' '; 4 * MIB]).await;
        let (answered, problem) = declared.answer().await;
        assert_eq!(answered, status, "{line}: {problem}");
        assert_eq!(problem["status"], status, "{problem}");

        let mut chunked = Raw::to(&service.http).await;
        chunked
            .send(format!(
                "{line} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\ntransfer-encoding: chunked\r\n\r\n"
            ))
            .await;
        let chunk = [b"10000\r\n".as_slice(), &vec![b' '; 65_536], b"\r\n"].concat();
        chunked.send(chunk.repeat(64)).await;
        chunked.send("0\r\n\r\n").await;
        let (answered, problem) = chunked.answer().await;
        assert_eq!(answered, status, "{line}: {problem}");
    }
}

#[tokio::test]
async fn an_unparsable_request_gets_a_problem() {
    let world = World::new().await;
    let service = world.instance().await;
    let long = "a".repeat(200_000);
    for (text, status, code) in [
        ("nonsense\r\n\r\n".to_owned(), 400, "malformed_request"),
        (
            "GET / HTTP/1.1\r\nb\u{1}d: x\r\n\r\n".to_owned(),
            400,
            "malformed_request",
        ),
        (
            "POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999999999999999\r\n\r\n".to_owned(),
            400,
            "malformed_request",
        ),
        (
            format!("GET /{} HTTP/1.1\r\n\r\n", &long[..66_000]),
            414,
            "uri_too_long",
        ),
        (
            format!("GET / HTTP/1.1\r\nx: {long}\r\n\r\n"),
            431,
            "head_too_large",
        ),
        (
            format!("GET / HTTP/1.1\r\n{}\r\n", "x: y\r\n".repeat(200)),
            431,
            "head_too_large",
        ),
    ] {
        let mut raw = Raw::to(&service.http).await;
        raw.send(&text).await;
        let (answered, problem) = raw.answer().await;
        let beginning = &text[..text.len().min(40)];
        assert_eq!(
            (answered, &problem["code"]),
            (status, &json!(code)),
            "{beginning}"
        );
        assert_eq!(problem["status"], status);
    }
}

#[tokio::test]
async fn bodies_in_flight_are_bounded_per_key_and_in_total() {
    let world = World::with(|config| config.body_memory = 12 * MIB as u64).await;
    let service = world.instance().await;
    let mut keys = Vec::new();
    for _ in 0..3 {
        keys.push(world.key_with(&["ingest"]).await);
    }
    let start_body = async |key: &str, bytes: usize| {
        let mut raw = Raw::to(&service.http).await;
        raw.send_head("POST /v1/batch", key, 8 * MIB as u64).await;
        raw.send(vec![b' '; bytes]).await;
        raw
    };
    let first = start_body(&keys[0], 5 * MIB).await;
    until_in_flight(&service, 5 * MIB).await;
    // A key may have 8 MiB in memory.
    let (status, problem) = start_body(&keys[0], 5 * MIB).await.answer().await;
    assert_eq!((status, &problem["code"]), (503, &json!("overloaded")));
    let second = start_body(&keys[1], 5 * MIB).await;
    until_in_flight(&service, 10 * MIB).await;
    let text = start_body(&keys[2], 5 * MIB).await.rest().await;
    assert!(text.starts_with("HTTP/1.1 503"), "{text}");
    assert!(text.contains("retry-after: 1"), "{text}");
    // A body that is complete at once is still accepted.
    let one = json!({"items": [{"op": "track", "organizationId": "org_1"}]});
    let answer = service
        .http
        .with_key(Some(&keys[2]))
        .post("/v1/batch", one)
        .await;
    assert_eq!(answer.body["counted"], 1, "{}", answer.text);

    drop(first);
    until_in_flight(&service, 5 * MIB).await;
    let third = start_body(&keys[2], 5 * MIB).await;
    until_in_flight(&service, 10 * MIB).await;
    drop((second, third));
    until_in_flight(&service, 0).await;
}
