//! `tallyman healthcheck`, as Docker runs it: an exit code, and a reason if the service is unhealthy.

use std::process::Output;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::process::Command;

use crate::support::{Process, World};

/// Runs the health check for this address; returns the exit code and standard error.
async fn healthcheck(address: &str) -> (Option<i32>, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_tallyman"))
        .arg("healthcheck")
        .env_clear()
        .env("TALLYMAN_LISTEN", address)
        // It must ignore proxies.
        .env("http_proxy", "http://127.0.0.1:1")
        .output();
    let Output {
        status,
        stdout,
        stderr,
    } = output.await.unwrap();
    assert_eq!(stdout, b"");
    (status.code(), String::from_utf8(stderr).unwrap())
}

/// Starts a server that sends this response to one request; returns its address.
async fn fake_service(head: &'static str, body: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = vec![0; 4096];
        let length = stream.read(&mut request).await.unwrap();
        assert!(request[..length].starts_with(b"GET /readyz "));
        let length = body.len();
        let answer = format!(
            "HTTP/1.1 {head}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
        );
        stream.write_all(answer.as_bytes()).await.unwrap();
    });
    address
}

#[tokio::test]
async fn a_service_that_is_ready_or_degraded_is_healthy() {
    let mut world = World::new().await;
    let service = Process::serve(&world, world.servers(), &[]).await;
    assert_eq!(
        healthcheck(&service.address).await,
        (Some(0), String::new())
    );
    world.kill_redis().await;
    assert_eq!(service.http.get("/readyz").await.body["status"], "degraded");
    assert_eq!(
        healthcheck(&service.address).await,
        (Some(0), String::new())
    );
    let port = service.address.rsplit(':').next().unwrap();
    let everywhere = format!("0.0.0.0:{port}");
    assert_eq!(healthcheck(&everywhere).await, (Some(0), String::new()));
}

#[tokio::test]
async fn a_service_that_drains_or_does_not_run_is_unhealthy_and_prints_why() {
    let draining = fake_service(
        "503 Service Unavailable",
        r#"{"status":"draining","checks":{"redis":"ok","postgres":"ok"}}"#,
    )
    .await;
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let unreachable = closed.local_addr().unwrap().to_string();
    drop(closed);
    for (address, reason) in [(draining, "draining"), (unreachable, "no response")] {
        let (code, line) = healthcheck(&address).await;
        assert_eq!(code, Some(1), "{line}");
        assert_eq!(line.lines().count(), 1, "{line}");
        assert!(line.contains(reason) && line.contains(&address), "{line}");
    }
}
