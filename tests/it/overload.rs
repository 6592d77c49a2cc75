//! Overload: calls beyond what Redis can take are refused at once, and only before anything was done for them.

use std::time::Duration;

use futures::future::join_all;
use serde_json::{Value, json};
use tallyman::config::Config;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::support::{Answer, Instance, LossyProxy, World, lock_history, shard, until_lock_wait};

/// More than a test waits for anything.
const TIMEOUT: Duration = Duration::from_mins(1);

/// How much later than Redis the proxy replies under load, in milliseconds; much less than makes Redis count as down.
const DELAY: u64 = 30;

/// Organizations whose calls take turns: far more than fit into one batch, because each call has as many counters as one may
/// have.
const CALLERS: usize = 24;

/// Organizations that wait in one queue, because their shards are even.
fn organizations() -> impl Iterator<Item = String> {
    let all = (0..).map(|number| format!("org_{number}"));
    all.filter(|organization| shard(organization).index().is_multiple_of(2))
}

async fn consume(service: &Instance, organization: &str) -> Answer {
    let meters = (0..32).map(|number| (format!("m{number}"), json!(1)));
    let meters: Value = meters.collect::<serde_json::Map<_, _>>().into();
    let body = json!({"organizationId": organization, "meters": meters});
    service.http.post("/v1/consume", body).await
}

/// Counts without a pause until told to stop; returns how often each organization was counted.
async fn load(service: &Instance, stop: watch::Receiver<bool>) -> Vec<(String, u64)> {
    let callers = organizations().take(CALLERS).map(|organization| {
        let stop = stop.clone();
        async move {
            let mut counted = 0;
            while !*stop.borrow() {
                let answer = consume(service, &organization).await;
                match answer.status.as_u16() {
                    200 => counted += 1,
                    503 => {
                        assert_eq!(answer.header("retry-after"), "1", "{}", answer.text);
                    }
                    // It was sent when Redis went away.
                    504 => assert_eq!(answer.code(), "outcome_unknown"),
                    _ => panic!("{}", answer.text),
                }
            }
            (organization, counted)
        }
    });
    join_all(callers).await
}

/// Waits until a call is refused with this code.
async fn until_refused(service: &Instance, code: &str) {
    let organization = organizations().next().unwrap();
    let refused = async { while consume(service, &organization).await.code() != code {} };
    let refused = timeout(TIMEOUT, refused).await;
    refused.unwrap_or_else(|_| panic!("no call is {code}"));
}

#[tokio::test]
async fn beyond_the_capacity_a_call_is_refused_at_once_and_one_that_has_begun_is_not() {
    let world = World::with(|config: &mut Config| config.request_timeout = TIMEOUT).await;
    let proxy = LossyProxy::new(&world).await;
    let service = world.instance_with(proxy.servers(&world)).await;
    for organization in organizations().take(CALLERS) {
        assert_eq!(consume(&service, &organization).await.status, 200);
    }
    let postgres = world.postgres().await;
    let lock = lock_history(&postgres).await;
    let (stop, stopped) = watch::channel(false);
    let new = organizations().nth(CALLERS).unwrap();
    let (counted, first, ()) = tokio::join!(
        load(&service, stopped),
        // Its first counter has to be found out before it can be counted.
        consume(&service, &new),
        async {
            until_lock_wait(&postgres).await;
            proxy.delay_replies(DELAY);
            until_refused(&service, "overloaded").await;
            lock.rollback().await.unwrap();
            until_refused(&service, "overloaded").await;
            stop.send_replace(true);
        },
    );
    assert_eq!(first.status, 200, "{}", first.text);
    proxy.delay_replies(0);
    for (organization, counted) in counted.iter().skip(1) {
        assert_eq!(service.current(organization, "m0").await, counted + 1);
    }
    assert_eq!(consume(&service, &new).await.status, 200);
}

#[tokio::test]
async fn an_outage_under_overload_leaves_no_call_refused_after_it() {
    let world = World::new().await;
    let proxy = LossyProxy::new(&world).await;
    let service = world.instance_with(proxy.servers(&world)).await;
    for organization in organizations().take(CALLERS) {
        assert_eq!(consume(&service, &organization).await.status, 200);
    }
    proxy.delay_replies(DELAY);
    let (stop, stopped) = watch::channel(false);
    tokio::join!(load(&service, stopped), async {
        until_refused(&service, "overloaded").await;
        proxy.cut();
        until_refused(&service, "counter_store_unavailable").await;
        stop.send_replace(true);
    });
    proxy.delay_replies(0);
    proxy.restore();
    service.until_observed("redis", true).await;
    for organization in organizations().take(CALLERS) {
        let answer = consume(&service, &organization).await;
        assert_eq!(answer.status, 200, "{}", answer.text);
    }
}
