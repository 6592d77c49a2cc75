//! The audit of the bench tool finds what is wrong, and nothing where nothing is.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::extract::Request;
use axum::middleware::{Next, from_fn};
use clap::Parser as _;
use serde_json::Value;
use tallyman::http;
use tallyman_bench::Arguments;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::spawn_blocking;

use crate::support::{World, counter_key, instant};

#[tokio::test]
async fn two_thousand_audited_requests_agree_with_the_counts() {
    let world = World::new().await;
    let url = listen(http::router(world.instance().await.app.state)).await;
    // More than the limit of each, so that some are refused.
    let (agrees, told) = audit(&world, &url, &["--amount", "7", "--organizations", "10"]).await;
    assert!(agrees, "{told}");
    assert_eq!(told["load"]["requests"], 2000);
    assert_eq!(told["load"]["statuses"]["429"].as_u64().unwrap() % 10, 0);
    assert_eq!(told["audit"]["acknowledged"], 10 * 994);
    assert_eq!(told["audit"]["refused"], 2000 * 7 - 10 * 994);
    assert_eq!(told["audit"]["unknown"], 0);
    // What was counted before is no difference, and batches are judged item by item: of 20 for each of 100
    // organizations, 6 fit where 994 units were used before.
    for (format, refused) in [("json", 10 * 14), ("ndjson", 10 * 20)] {
        let (agrees, told) = audit(
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
        assert!(agrees, "{told}");
        assert_eq!(told["load"]["items"], 2000);
        assert_eq!(told["audit"]["acknowledged"], 2000 - refused, "{told}");
        assert_eq!(told["audit"]["refused"], refused);
    }
}

#[tokio::test]
async fn an_audit_finds_counts_that_were_changed_externally() {
    let world = Arc::new(World::new().await);
    let state = world.instance().await.app.state;
    let (asked, vandal) = (Arc::new(AtomicUsize::new(0)), Arc::clone(&world));
    let tampered = from_fn(move |request: Request, next: Next| {
        let (asked, world) = (Arc::clone(&asked), Arc::clone(&vandal));
        async move {
            if request.method() == "POST" && asked.fetch_add(1, Ordering::SeqCst) == 1000 {
                for (organization, units) in [("org_0000003", -1), ("org_0000008", 1)] {
                    let counter = counter_key(organization, instant("2031-03-01T00:00:00Z"));
                    world.add(&counter, "used", units).await;
                }
            }
            next.run(request).await
        }
    });
    let url = listen(http::router(state).layer(tampered)).await;
    let (agrees, told) = audit(&world, &url, &["--op", "track", "--organizations", "20"]).await;
    assert!(!agrees, "{told}");
    assert_eq!(told["audit"]["differing"], 2, "{told}");
    let differences = &told["audit"]["differences"];
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
    let url = listen(http::router(world.instance().await.app.state)).await;
    let way = lose_every(40, url.strip_prefix("http://").unwrap().to_owned()).await;
    let (agrees, told) = audit(&world, &way, &["--op", "track", "--organizations", "20"]).await;
    assert!(agrees, "{told}");
    let unanswered = told["load"]["unanswered"].as_u64().unwrap();
    assert!(unanswered > 10, "{told}");
    assert_eq!(told["audit"]["unknown"], unanswered);
    assert_eq!(told["audit"]["acknowledged"], 2000 - unanswered);
}

/// An audit of 2,000 requests, unless `arguments` say otherwise: whether it found no difference, and its JSON.
async fn audit(world: &World, url: &str, arguments: &[&str]) -> (bool, Value) {
    let mut all = vec!["bench", "load", "--audit", "--json", "--spread", "turns"];
    all.extend(["--key", &world.key, "--url", url, "--connections", "16"]);
    if !arguments.contains(&"--requests") {
        all.extend(["--requests", "2000"]);
    }
    all.extend(arguments);
    let arguments = Arguments::parse_from(all);
    // The tool has a runtime of its own.
    let running = spawn_blocking(move || {
        let mut out = Vec::new();
        let agrees = tallyman_bench::run(arguments, &mut out).unwrap();
        (agrees, serde_json::from_slice(&out).unwrap())
    });
    running.await.unwrap()
}

async fn listen(router: Router) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    format!("http://{address}")
}

/// A way to a service that ends the connection instead of every so manieth piece of an answer.
async fn lose_every(pieces: usize, target: String) -> String {
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
                let loses = || passed.fetch_add(1, Ordering::SeqCst) % pieces == pieces - 1;
                tokio::select! {
                    () = carry(from_client, to_server, || false) => {}
                    () = carry(from_server, to_client, loses) => {}
                }
            });
        }
    });
    format!("http://{address}")
}

async fn carry(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    loses: impl Fn() -> bool,
) {
    let mut piece = vec![0; 64 * 1024];
    while let Ok(length @ 1..) = from.read(&mut piece).await {
        if loses() || to.write_all(&piece[..length]).await.is_err() {
            return;
        }
    }
}
