//! The bench tool's audit reports wrong counts, and nothing when all counts are right.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::extract::Request;
use axum::middleware::{Next, from_fn};
use clap::Parser as _;
use serde_json::Value;
use tallyman_bench::Arguments;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::spawn_blocking;

use crate::support::{Instance, World, counter_key, instant};

#[tokio::test]
async fn two_thousand_audited_requests_agree_with_the_counts() {
    let world = World::new().await;
    let url = listen(router(&world.instance().await)).await;
    // More units than each organization's limit, so that some requests are refused.
    let (agrees, report) = audit(&world, &url, &["--amount", "7", "--organizations", "10"]).await;
    assert!(agrees, "{report}");
    assert_eq!(report["load"]["requests"], 2000);
    assert_eq!(report["load"]["statuses"]["429"].as_u64().unwrap() % 10, 0);
    assert_eq!(report["audit"]["acknowledged"], 10 * 994);
    assert_eq!(report["audit"]["refused"], 2000 * 7 - 10 * 994);
    assert_eq!(report["audit"]["unknown"], 0);
    // Units counted before the audit are no difference, and batch items are audited one by one: 994 of 1000
    // units are used, so that 6 of the 20 items of each of 100 organizations fit.
    for (format, refused) in [("json", 10 * 14), ("ndjson", 10 * 20)] {
        let (agrees, report) = audit(
            &world,
            &url,
            &[
                "--requests",
                "20",
                "--batch",
                "100",
                "--organizations",
                "100",
                "--format",
                format,
            ],
        )
        .await;
        assert!(agrees, "{report}");
        assert_eq!(report["load"]["items"], 2000);
        assert_eq!(report["audit"]["acknowledged"], 2000 - refused, "{report}");
        assert_eq!(report["audit"]["refused"], refused);
    }
}

#[tokio::test]
async fn an_audit_finds_counts_that_were_changed_externally() {
    let world = Arc::new(World::new().await);
    let instance = world.instance().await;
    let (requests, shared_world) = (Arc::new(AtomicUsize::new(0)), Arc::clone(&world));
    let tampered = from_fn(move |request: Request, next: Next| {
        let (requests, world) = (Arc::clone(&requests), Arc::clone(&shared_world));
        async move {
            if request.method() == "POST" && requests.fetch_add(1, Ordering::SeqCst) == 1000 {
                for (organization, units) in [("org_0000003", -1), ("org_0000008", 1)] {
                    let counter = counter_key(organization, instant("2031-03-01T00:00:00Z"));
                    world.add(&counter, "used", units).await;
                }
            }
            next.run(request).await
        }
    });
    let url = listen(router(&instance).layer(tampered)).await;
    let (agrees, report) = audit(&world, &url, &["--op", "track", "--organizations", "20"]).await;
    assert!(!agrees, "{report}");
    assert_eq!(report["audit"]["differing"], 2, "{report}");
    let differences = &report["audit"]["differences"];
    assert_eq!(differences[0]["organizationId"], "org_0000003");
    assert_eq!(
        (&differences[0]["current"], &differences[0]["least"]),
        (&99.into(), &100.into())
    );
    assert_eq!(differences[1]["organizationId"], "org_0000008");
    assert_eq!(
        (&differences[1]["current"], &differences[1]["most"]),
        (&101.into(), &100.into())
    );
}

#[tokio::test]
async fn requests_of_a_broken_connection_are_unknown_and_no_difference() {
    let world = World::new().await;
    let url = listen(router(&world.instance().await)).await;
    let proxy = lose_every(40, url.strip_prefix("http://").unwrap().to_owned()).await;
    let (agrees, report) = audit(&world, &proxy, &["--op", "track", "--organizations", "20"]).await;
    assert!(agrees, "{report}");
    let unanswered = report["load"]["unanswered"].as_u64().unwrap();
    assert!(unanswered > 10, "{report}");
    assert_eq!(report["audit"]["unknown"], unanswered);
    assert_eq!(report["audit"]["acknowledged"], 2000 - unanswered);
}

/// Runs an audit of 2,000 requests by default; returns whether it found no difference, and its JSON report.
async fn audit(world: &World, url: &str, arguments: &[&str]) -> (bool, Value) {
    let mut all = vec!["bench", "load", "--audit", "--json", "--spread", "turns"];
    all.extend(["--key", &world.key, "--url", url, "--connections", "16"]);
    if !arguments.contains(&"--requests") {
        all.extend(["--requests", "2000"]);
    }
    all.extend(arguments);
    let arguments = Arguments::parse_from(all);
    // The tool starts its own runtime.
    let running = spawn_blocking(move || {
        let mut out = Vec::new();
        let agrees = tallyman_bench::run(arguments, &mut out).unwrap();
        (agrees, serde_json::from_slice(&out).unwrap())
    });
    running.await.unwrap()
}

fn router(instance: &Instance) -> Router {
    Router::new().fallback_service(instance.app.service())
}

async fn listen(router: Router) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    format!("http://{address}")
}

/// A proxy of the service that closes the connection instead of forwarding every n-th chunk of a response.
async fn lose_every(chunks: usize, target: String) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let passed = Arc::new(AtomicUsize::new(0));
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let mut server = TcpStream::connect(target.as_str()).await.unwrap();
            let passed = Arc::clone(&passed);
            tokio::spawn(async move {
                let (from_client, to_client) = client.split();
                let (from_server, to_server) = server.split();
                let drops = || passed.fetch_add(1, Ordering::SeqCst) % chunks == chunks - 1;
                tokio::select! {
                    () = carry(from_client, to_server, || false) => {}
                    () = carry(from_server, to_client, drops) => {}
                }
            });
        }
    });
    format!("http://{address}")
}

async fn carry(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    drops: impl Fn() -> bool,
) {
    let mut chunk = vec![0; 64 * 1024];
    while let Ok(length @ 1..) = from.read(&mut chunk).await {
        if drops() || to.write_all(&chunk[..length]).await.is_err() {
            return;
        }
    }
}
