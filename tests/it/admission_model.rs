//! Random histories of outages: whatever happens in between, each acknowledged call is counted exactly once.

use std::collections::BTreeMap;

use chrono::Duration;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use serde_json::json;
use sqlx::PgPool;
use tallyman::domain::limit::OnOutage;

use crate::support::{Instance, LossyProxy, World, each_history};

/// Number of histories, unless `PROPTEST_CASES` is set.
const CASES: u32 = 20;

const STEPS: std::ops::Range<usize> = 8..40;

const ORGANIZATION: &str = "org_1";

const METERS: [&str; 2] = ["api", "tokens"];

/// Fails every snapshot with a newly drained operation: as if the process had died after it counted in Redis.
const INTERRUPTION: [&str; 3] = [
    "create function crash() returns trigger language plpgsql as $$ begin raise exception 'crash'; end $$",
    "create trigger crash_insert before insert on usage_history
     for each row when (new.drained > 0) execute function crash()",
    "create trigger crash_update before update on usage_history
     for each row when (new.drained > old.drained) execute function crash()",
];

#[derive(Debug, Clone)]
enum Step {
    /// A call on an instance, whether its connection is cut or not; with one of a few idempotency keys or none.
    Call {
        instance: usize,
        path: &'static str,
        amounts: [u64; 2],
        key: Option<u8>,
    },
    /// Cuts the connection of an instance to Redis, or restores it.
    Toggle {
        instance: usize,
    },
    Drain {
        instance: usize,
    },
    /// A drain whose process dies before Postgres has stored anything.
    InterruptedDrain {
        instance: usize,
    },
    Flush,
    /// Redis loses its data, right after everything in it was stored.
    Lose,
    Reset {
        meter: &'static str,
    },
    Limit {
        limit: u64,
    },
    Calendar {
        period: &'static str,
    },
    Advance {
        minutes: i64,
    },
    /// The garbage collection.
    Collect,
}

fn step() -> impl Strategy<Value = Step> {
    let instance = 0..2_usize;
    let paths = select(&["/v1/track", "/v1/track", "/v1/consume"][..]);
    let amounts = select(&[[1, 0], [5, 0], [0, 3], [2, 2]][..]);
    let keys = prop::option::of(0..3_u8);
    prop_oneof![
        16 => (instance.clone(), paths, amounts, keys).prop_map(|(instance, path, amounts, key)| Step::Call { instance, path, amounts, key }),
        6 => instance.clone().prop_map(|instance| Step::Toggle { instance }),
        3 => instance.clone().prop_map(|instance| Step::Drain { instance }),
        2 => instance.prop_map(|instance| Step::InterruptedDrain { instance }),
        2 => Just(Step::Flush),
        2 => Just(Step::Lose),
        2 => select(&METERS[..]).prop_map(|meter| Step::Reset { meter }),
        1 => (0..40_u64).prop_map(|limit| Step::Limit { limit }),
        1 => select(&["daily", "monthly", "hourly"][..]).prop_map(|period| Step::Calendar { period }),
        3 => select(&[1, 61, 26 * 60][..]).prop_map(|minutes| Step::Advance { minutes }),
        1 => Just(Step::Collect),
    ]
}

#[test]
fn each_acknowledged_call_is_counted_once_across_outages() {
    each_history(CASES, 100, vec(step(), STEPS), async |steps| {
        let mut history = History::begin().await;
        for step in steps {
            history.apply(step).await;
        }
        Box::pin(history.end()).await;
    });
}

struct History {
    world: World,
    postgres: PgPool,
    /// One that is always connected, for everything but calls.
    steady: Instance,
    instances: Vec<(Instance, LossyProxy, bool)>,
    acknowledged: BTreeMap<&'static str, u64>,
    /// The keys of this data set that were used: records are lost with it.
    keys: BTreeMap<String, bool>,
    losses: u32,
}

impl History {
    async fn begin() -> Self {
        let world = World::with(|config| config.on_outage = OnOutage::Allow).await;
        let postgres = world.postgres().await;
        let steady = world.instance().await;
        let mut instances = Vec::new();
        for _ in 0..2 {
            let proxy = LossyProxy::new(&world).await;
            let instance = world.instance_with(proxy.servers(&world)).await;
            instances.push((instance, proxy, true));
        }
        steady.settings(ORGANIZATION, json!({})).await;
        Self {
            world,
            postgres,
            steady,
            instances,
            acknowledged: BTreeMap::new(),
            keys: BTreeMap::new(),
            losses: 0,
        }
    }

    async fn apply(&mut self, step: Step) {
        let path = format!("/v1/organizations/{ORGANIZATION}");
        match step {
            Step::Call {
                instance,
                path,
                amounts,
                key,
            } => self.call(instance, path, amounts, key).await,
            Step::Toggle { instance } => self.toggle(instance).await,
            Step::Drain { instance } => self.drain(instance).await,
            Step::InterruptedDrain { instance } => self.interrupted_drain(instance).await,
            Step::Flush => {
                self.steady.flush().await;
            }
            Step::Lose => {
                // A record that is lost with the data set cannot stop a retry that is pending.
                let keyed =
                    "select meter from pending_increments where idempotency_key is not null";
                if !self.world.select(keyed).await.is_empty() {
                    self.steady.app.drain.drain_once().await.unwrap();
                }
                self.steady.flush().await;
                self.world.flush_redis().await;
                self.losses += 1;
                self.keys.clear();
            }
            Step::Reset { meter } => {
                let body = json!({"meters": [meter]});
                let answer = self.steady.http.post(&format!("{path}/reset"), body).await;
                assert_eq!(answer.status, 200, "{}", answer.text);
            }
            Step::Limit { limit } => {
                self.steady
                    .limits(ORGANIZATION, json!({"api": {"limit": limit}}))
                    .await;
            }
            Step::Calendar { period } => {
                let answer = self
                    .steady
                    .http
                    .patch(&path, json!({"resetPeriod": period}))
                    .await;
                assert_eq!(answer.status, 200, "{}", answer.text);
            }
            Step::Advance { minutes } => self.world.clock.advance(Duration::minutes(minutes)),
            Step::Collect => {
                let collector = &self.steady.app.garbage_collector;
                collector.collect_once().await.unwrap();
            }
        }
    }

    async fn call(&mut self, instance: usize, path: &str, amounts: [u64; 2], key: Option<u8>) {
        let charges: BTreeMap<&'static str, u64> = METERS
            .into_iter()
            .zip(amounts)
            .filter(|(_, amount)| *amount > 0)
            .collect();
        let body = json!({"organizationId": ORGANIZATION, "meters": charges});
        let http = &self.instances[instance].0.http;
        // Another payload has another key.
        let key = key.map(|key| {
            format!("{key}-{}-{path}-{amounts:?}", self.losses)
                .replace([' ', '/', '[', ']', ','], "_")
        });
        let answer = match &key {
            Some(key) => http.post_once(path, key, body).await,
            None => http.post(path, body).await,
        };
        let granted = match answer.status.as_u16() {
            200 => true,
            429 => false,
            other => panic!("{other} {}", answer.text),
        };
        let counted = match key {
            // A retry counts only if it is the first that was granted.
            Some(key) => {
                let before = self.keys.entry(key).or_default();
                granted && !std::mem::replace(before, granted)
            }
            None => granted,
        };
        if counted {
            for (meter, amount) in charges {
                *self.acknowledged.entry(meter).or_default() += amount;
            }
        }
    }

    async fn toggle(&mut self, instance: usize) {
        let (service, proxy, connected) = &mut self.instances[instance];
        *connected = !*connected;
        if *connected {
            proxy.restore();
        } else {
            proxy.cut();
        }
        service.until_observed("redis", *connected).await;
    }

    /// Fails where the instance is cut off.
    async fn drain(&self, instance: usize) {
        let (service, _, connected) = &self.instances[instance];
        let drained = service.app.drain.drain_once().await;
        assert!(drained.is_ok() || !connected, "{drained:?}");
    }

    async fn interrupted_drain(&self, instance: usize) {
        for statement in INTERRUPTION {
            self.execute(statement).await;
        }
        let _ = self.instances[instance].0.app.drain.drain_once().await;
        self.execute("drop function crash cascade").await;
    }

    async fn execute(&self, statement: &'static str) {
        sqlx::query(statement)
            .execute(&self.postgres)
            .await
            .unwrap();
    }

    async fn end(mut self) {
        for instance in 0..2 {
            if !self.instances[instance].2 {
                self.toggle(instance).await;
            }
        }
        self.steady.app.drain.drain_once().await.unwrap();
        self.steady.flush().await;
        let pending = self
            .world
            .select("select meter from pending_increments")
            .await;
        assert_eq!(pending, [""; 0]);
        for (table, sum) in [
            (
                "usage_history",
                "select meter || ' ' || sum(used) from usage_history where used > 0 group by meter order by meter",
            ),
            (
                "usage_hourly",
                "select meter || ' ' || sum(used) from usage_hourly where used > 0 group by meter order by meter",
            ),
        ] {
            let counted = self.world.select(sum).await;
            let acknowledged = self.acknowledged.iter();
            let acknowledged: Vec<String> = acknowledged
                .map(|(meter, units)| format!("{meter} {units}"))
                .collect();
            assert_eq!(counted, acknowledged, "{table}");
        }
        let verified = self.steady.http.get("/v1/verify").await;
        assert_eq!(verified.body["data"], json!([]), "{}", verified.text);
    }
}
