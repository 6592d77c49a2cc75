//! End to end: many organizations exceed their limits under load while the service is killed repeatedly. Each crossing is
//! one event, delivered at least once with a signature that the reference library verifies.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::Path;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use sqlx::PgPool;
use tallyman::redis::SHARDS;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::support::{Http, Process, Received, Receiver, World};

const ORGANIZATIONS: usize = 10_000;

/// Organizations in one batch.
const BATCH: usize = 500;

/// Concurrent requests.
const CLIENTS: usize = 4;

/// The service is killed after so many responses, and later after so many deliveries.
const KILLS_WHILE_COUNTING: [usize; 4] = [3, 17, 38, 61];
const KILLS_WHILE_DELIVERING: [usize; 2] = [9_000, 16_000];

/// Upper bound for each step; reaching it fails the test.
const TIMEOUT: Duration = Duration::from_mins(5);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_crossing_is_one_event_and_delivered_however_often_the_service_is_killed() {
    let world = World::new().await;
    let postgres = world.postgres().await;
    make_organizations(&postgres).await;
    let receiver = Receiver::new().await;

    let mut service = serve(&world).await;
    // An old data set, so that counters start at zero without a look-up in Postgres.
    for shard in 0..SHARDS {
        let key = format!("tm:{{{shard:02x}}}:gen");
        let _: u64 = world.redis_command(&["HSET", &key, "born", "0"]).await;
    }
    let request = json!({"url": receiver.url, "events": ["usage.warning", "usage.limit_exceeded"]});
    let webhook = service.http.post("/v1/webhooks", request).await.body;
    let secret = webhook["secret"].as_str().unwrap();

    let calls: VecDeque<Value> = (0..4)
        .flat_map(|_| (0..ORGANIZATIONS).step_by(BATCH).map(batch))
        .collect();
    let all = calls.len();
    let calls = Arc::new(Mutex::new(calls));
    let (answered, address) = (
        watch::Sender::new(0),
        watch::Sender::new(service.http.clone()),
    );
    let callers: Vec<_> = (0..CLIENTS)
        .map(|_| {
            tokio::spawn(call(
                Arc::clone(&calls),
                address.subscribe(),
                answered.clone(),
            ))
        })
        .collect();
    for after in KILLS_WHILE_COUNTING {
        let mut progress = answered.subscribe();
        timeout(TIMEOUT, progress.wait_for(|answered| *answered >= after))
            .await
            .expect("requests make progress")
            .unwrap();
        service.kill().await;
        service = serve(&world).await;
        address.send_replace(service.http.clone());
    }
    for caller in callers {
        timeout(TIMEOUT, caller)
            .await
            .expect("requests make progress")
            .unwrap();
    }
    assert_eq!(*answered.borrow(), all);
    for after in KILLS_WHILE_DELIVERING {
        timeout(TIMEOUT, receiver.until(|all| all.len() >= after))
            .await
            .expect("deliveries make progress");
        service.kill().await;
        service = serve(&world).await;
    }
    let arrived = timeout(
        TIMEOUT,
        receiver.until(|all| distinct(all) >= 2 * ORGANIZATIONS),
    );
    let arrived = arrived.await.expect("deliveries make progress");
    let (code, output) = service.stop().await;
    assert_eq!(code, Some(0), "{output:#?}");

    let recorded: Vec<(String, i64, i64)> = sqlx::query_as(
        "select type, count(*), count(distinct organization_id) from events group by type order by type",
    )
    .fetch_all(&postgres)
    .await
    .unwrap();
    let each = i64::try_from(ORGANIZATIONS).unwrap();
    let once = |kind: &str| (kind.to_owned(), each, each);
    assert_eq!(
        recorded,
        [once("usage.limit_exceeded"), once("usage.warning")]
    );

    let mut notified: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for delivery in &arrived {
        let body = delivery.body();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        notified
            .entry(text(&body["data"]["organizationId"]))
            .or_default()
            .insert(text(&body["type"]));
    }
    assert_eq!(
        (notified.len(), distinct(&arrived)),
        (ORGANIZATIONS, 2 * ORGANIZATIONS)
    );
    assert!(notified.values().all(|types| types.len() == 2));
    assert_eq!(verified(secret, &arrived).await, arrived.len());
}

/// Limit 10, warning at 80 %, 3 units at a time: the third call warns, the fourth is refused.
async fn make_organizations(postgres: &PgPool) {
    sqlx::query(
        "with made as (
             insert into organizations (id, version)
             select 'org_' || number, 1 from generate_series(1, $1) as number
             returning id
         ), summary as (
             insert into standings (organization_id) select id from made
         )
         insert into limits (organization_id, meter, limited, units, enforcement, warn_at)
         select id, 'api', true, 10, 'hard', '{80}' from made",
    )
    .bind(i32::try_from(ORGANIZATIONS).unwrap())
    .execute(postgres)
    .await
    .unwrap();
}

async fn serve(world: &World) -> Process {
    let variables = [
        ("TALLYMAN_WEBHOOK_PRIVATE_ADDRESSES", "allow"),
        ("TALLYMAN_FLUSH_INTERVAL_MS", "100"),
        ("TALLYMAN_LOG", "info,tallyman::request=off"),
        // Deliveries must ignore the proxies of the environment.
        ("http_proxy", "http://127.0.0.1:1"),
        ("HTTP_PROXY", "http://127.0.0.1:1"),
        ("ALL_PROXY", "http://127.0.0.1:1"),
    ];
    Process::serve(world, world.servers(), &variables).await
}

/// A batch that consumes 3 units of each of some organizations.
fn batch(first: usize) -> Value {
    let item = |number: usize| json!({"op": "consume", "organizationId": format!("org_{}", number + 1), "amount": 3});
    let items: Vec<Value> = (first..first + BATCH).map(item).collect();
    json!({"items": items})
}

/// Sends the requests until none are left. A request that fails or gets no response is sent to the next process;
/// it may count twice, which only adds units.
async fn call(
    calls: Arc<Mutex<VecDeque<Value>>>,
    mut address: watch::Receiver<Http>,
    answered: watch::Sender<usize>,
) {
    loop {
        let Some(call) = calls.lock().unwrap().pop_front() else {
            return;
        };
        loop {
            let http = address.borrow_and_update().clone();
            let answer = http.try_post("/v1/batch?results=none", call.clone()).await;
            match answer {
                Some(answer) if answer.status == 200 && answer.body["failed"] == 0 => break,
                Some(_) => {}
                None => address.changed().await.unwrap(),
            }
        }
        answered.send_modify(|answered| *answered += 1);
    }
}

fn distinct(arrived: &[Received]) -> usize {
    arrived
        .iter()
        .map(Received::id)
        .collect::<BTreeSet<_>>()
        .len()
}

/// The number of requests that the reference library verifies.
async fn verified(secret: &str, arrived: &[Received]) -> usize {
    const PROGRAM: &str = r#"
        import { createInterface } from "node:readline";
        import { Webhook } from "standardwebhooks";
        const webhook = new Webhook(process.env.WEBHOOK_SECRET);
        let verified = 0;
        for await (const line of createInterface({ input: process.stdin })) {
          const { headers, body } = JSON.parse(line);
          webhook.verify(body, headers);
          verified += 1;
        }
        console.log(verified);
    "#;
    let mut node = Command::new("node")
        .args(["--input-type=module", "--eval", PROGRAM])
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peers"))
        .env("WEBHOOK_SECRET", secret)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = String::new();
    for request in arrived {
        let names = ["webhook-id", "webhook-timestamp", "webhook-signature"];
        let headers: BTreeMap<&str, &str> = names.map(|name| (name, request.header(name))).into();
        lines += &json!({"headers": headers, "body": request.text}).to_string();
        lines.push('\n');
    }
    let mut input = node.stdin.take().unwrap();
    let writing = tokio::spawn(async move { input.write_all(lines.as_bytes()).await });
    let output = node.wait_with_output().await.unwrap();
    writing.await.unwrap().unwrap();
    String::from_utf8(output.stdout)
        .unwrap()
        .trim()
        .parse()
        .unwrap()
}
