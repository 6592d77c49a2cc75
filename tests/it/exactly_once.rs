//! Each call counts exactly once, whatever happens to the connections to Redis.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::sync::Mutex;

use crate::support::{Http, Instance, LossyProxy, World, at_once};

#[tokio::test]
async fn after_a_lost_reply_the_batch_is_sent_again_and_the_call_counts_once() {
    let world = World::new().await;
    let proxy = LossyProxy::new(&world).await;
    let service = world.instance_with(proxy.servers(&world)).await;
    service.count("org_1", "api", 1).await;
    proxy.lose_one_reply();
    assert_eq!(service.count("org_1", "api", 5).await, 6);
    assert_eq!(service.current("org_1", "api").await, 6);
}

#[tokio::test]
async fn the_first_call_ever_survives_a_lost_reply() {
    let world = World::new().await;
    let proxy = LossyProxy::new(&world).await;
    let service = world.instance_with(proxy.servers(&world)).await;
    // A first call needs several round trips, of which only one counts.
    for lost in 0..8 {
        let organization = format!("org_{lost}");
        proxy.lose_every(10 + lost);
        let body = json!({"organizationId": organization, "meter": "api"});
        let call = || service.http.post_once("/v1/consume", "key", body.clone());
        let mut answer = call().await;
        proxy.lose_every(0);
        let deadline = Instant::now() + Duration::from_secs(10);
        while matches!(answer.status.as_u16(), 503 | 504) && Instant::now() < deadline {
            answer = call().await;
        }
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(service.current(&organization, "api").await, 1);
    }
}

#[tokio::test]
async fn where_the_data_set_is_lost_together_with_the_reply_the_outcome_is_unknown() {
    let world = World::new().await;
    let proxy = LossyProxy::new(&world).await;
    let service = world.instance_with(proxy.servers(&world)).await;
    service.count("org_1", "api", 1).await;
    service.flush().await;
    proxy.lose_one_reply_and_close();
    let http = service.http.clone();
    let call = tokio::spawn(async move {
        let body = json!({"organizationId": "org_1"});
        http.post("/v1/consume", body).await
    });
    proxy.until_closed().await;
    world.flush_redis().await;
    proxy.open();
    let answer = call.await.unwrap();
    assert_eq!(
        (answer.status.as_u16(), answer.code()),
        (504, "outcome_unknown")
    );
    assert_eq!(service.current("org_1", "api").await, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_load_no_call_is_lost_or_doubled_while_requests_and_replies_are_lost() {
    let world = World::new().await;
    let proxy = LossyProxy::new(&world).await;
    let service = world.instance_with(proxy.servers(&world)).await;
    warm_up(&service).await;
    proxy.lose_every(17);
    let acknowledged = load(&service, || async {}).await;
    proxy.lose_every(0);
    compare(&service, &acknowledged).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_load_no_call_is_lost_or_doubled_while_connections_are_killed() {
    let world = Arc::new(World::new().await);
    let service = world.instance().await;
    warm_up(&service).await;
    // One `CLIENT KILL` at a time, because it would also close the connections of the others.
    let killed_connections = Arc::new(Mutex::new(0_u64));
    let acknowledged = load(&service, || {
        let (world, killed_connections) = (Arc::clone(&world), Arc::clone(&killed_connections));
        async move {
            let mut killed_connections = killed_connections.lock().await;
            let killed: u64 = world
                .redis_command(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"])
                .await;
            *killed_connections += killed;
        }
    })
    .await;
    assert!(*killed_connections.lock().await > 0);
    compare(&service, &acknowledged).await;
}

const ORGANIZATIONS: usize = 4;
const TASKS: usize = 32;
const CALLS: usize = 40;

async fn warm_up(service: &Instance) {
    for organization in 0..ORGANIZATIONS {
        service
            .limits(
                &format!("org_{organization}"),
                json!({"api": {"limit": 2000}}),
            )
            .await;
        service
            .count(&format!("org_{organization}"), "api", 1)
            .await;
    }
}

/// Consumes from many tasks, each of which also causes two disturbances; returns the granted units of each
/// organization.
async fn load<F>(service: &Instance, disturb: impl Fn() -> F) -> Vec<u64>
where
    F: Future<Output = ()> + Send + 'static,
{
    let granted: Arc<Vec<AtomicU64>> =
        Arc::new((0..ORGANIZATIONS).map(|_| AtomicU64::new(1)).collect());
    at_once(TASKS, |task| {
        let (http, granted) = (service.http.clone(), Arc::clone(&granted));
        let disturbances: Vec<F> = (0..2).map(|_| disturb()).collect();
        async move {
            let mut disturbances = disturbances.into_iter();
            for call in 0..CALLS {
                if call % 20 == task % 20
                    && let Some(disturbance) = disturbances.next()
                {
                    disturbance.await;
                }
                let organization = (task + call) % ORGANIZATIONS;
                if consume(&http, organization).await {
                    granted[organization].fetch_add(3, Ordering::SeqCst);
                }
            }
        }
    })
    .await;
    granted
        .iter()
        .map(|units| units.load(Ordering::SeqCst))
        .collect()
}

/// Consumes three units; returns whether they were granted. A 503 means that nothing was counted, so it retries.
async fn consume(http: &Http, organization: usize) -> bool {
    loop {
        let body = json!({"organizationId": format!("org_{organization}"), "amount": 3});
        let answer = http.post("/v1/consume", body).await;
        match answer.status.as_u16() {
            200 => return true,
            429 => return false,
            503 => {}
            _ => panic!("{answer:?}"),
        }
    }
}

async fn compare(service: &Instance, acknowledged: &[u64]) {
    for (organization, units) in acknowledged.iter().enumerate() {
        let current = service.current(&format!("org_{organization}"), "api").await;
        assert_eq!(current, *units, "org_{organization}");
    }
    service.flush().await;
}
