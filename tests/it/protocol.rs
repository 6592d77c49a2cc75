//! The protocol as a whole: random histories of counting, flushing, resetting, losing and rolling back, against a
//! model that knows what was acknowledged and what Postgres provably held.

use std::collections::BTreeMap;

use chrono::{DateTime, Datelike as _, Duration, TimeZone as _, Utc};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::{Config, TestRunner};
use serde_json::{Map, Value, json};
use tallyman::jobs::flush::{Batch, Report};

use crate::support::{Answer, Instance, Row, World, at_once, commit_reset, rows, shard, sharded};

/// How many histories are tried, unless `PROPTEST_CASES` says otherwise.
const CASES: u32 = 32;

/// How long a history is at most.
const STEPS_MAX: usize = 50;

/// How many flushes may be under way at the same time.
const FLUSHES_MAX: usize = 3;

/// How many calls a burst makes at once.
const BURST: usize = 12;

const ORGANIZATION: &str = "org_1";

/// What is reset together.
const METERS: &[&[&str]] = &[&["api"], &["tokens"], &["api", "tokens"]];

#[test]
fn nothing_acknowledged_is_lost_or_doubled_except_by_a_loss_of_redis() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let mut config = Config {
        failure_persistence: None,
        max_shrink_iters: 300,
        ..Config::default()
    };
    if std::env::var("PROPTEST_CASES").is_err() {
        config.cases = CASES;
    }
    TestRunner::new(config)
        .run(&vec(step(), 10..STEPS_MAX), |steps| {
            runtime.block_on(async {
                let mut history = History::begin().await;
                for step in steps {
                    history.take(step).await;
                    history.check().await;
                }
                history.end().await;
            });
            Ok(())
        })
        .unwrap_or_else(|failure| panic!("{failure}"));
}

#[derive(Debug, Clone)]
enum Step {
    /// One call, charging one or both meters; only `api` has a limit.
    Count {
        by: usize,
        path: &'static str,
        amounts: [u64; 2],
    },
    /// Many calls of one unit at once on both instances, while one of them flushes.
    Burst {
        flusher: usize,
    },
    /// The same while Redis loses everything.
    BurstAndLoss {
        flusher: usize,
    },
    /// Looks at the usage.
    Look {
        by: usize,
    },
    /// The three steps of a flush, each of some flush that is under way; and the end of one.
    Read {
        by: usize,
    },
    Postgres {
        flush: usize,
    },
    Settle {
        flush: usize,
    },
    Abandon {
        flush: usize,
    },
    /// A whole flush.
    Flush {
        by: usize,
    },
    /// Changes the limit.
    Limit {
        by: usize,
        limit: u64,
    },
    /// Resets one meter or both; `lost` on the way to Redis, together with the data there, and finished later.
    Reset {
        by: usize,
        meters: &'static [&'static str],
        lost: bool,
    },
    /// Time passes.
    Advance {
        minutes: i64,
    },
    /// Redis loses everything while it runs.
    Lose,
    /// Redis's data is copied aside.
    Copy,
    /// Redis is killed and starts again from that copy, if there is one.
    RollBack,
    /// Redis is rid of what is of no use any more.
    Forget {
        by: usize,
    },
    /// An instance is replaced by a new one.
    Replace {
        instance: usize,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let paths = select(&["/v1/track", "/v1/consume", "/v1/check"][..]);
    let amounts = select(&[[1, 0], [2, 0], [7, 0], [0, 3], [1, 1], [5, 2]][..]);
    let minutes = select(&[1, 13, 61, 3 * 24 * 60, 16 * 24 * 60][..]);
    let meters = select(METERS);
    let by = 0..2_usize;
    let flush = 0..FLUSHES_MAX;
    prop_oneof![
        14 => (by.clone(), paths, amounts).prop_map(|(by, path, amounts)| Step::Count { by, path, amounts }),
        1 => by.clone().prop_map(|flusher| Step::Burst { flusher }),
        1 => by.clone().prop_map(|flusher| Step::BurstAndLoss { flusher }),
        2 => by.clone().prop_map(|by| Step::Look { by }),
        4 => by.clone().prop_map(|by| Step::Read { by }),
        4 => flush.clone().prop_map(|flush| Step::Postgres { flush }),
        4 => flush.clone().prop_map(|flush| Step::Settle { flush }),
        1 => flush.prop_map(|flush| Step::Abandon { flush }),
        2 => by.clone().prop_map(|by| Step::Flush { by }),
        2 => (by.clone(), 0..60_u64).prop_map(|(by, limit)| Step::Limit { by, limit }),
        3 => (by.clone(), meters, prop::bool::weighted(0.3)).prop_map(|(by, meters, lost)| Step::Reset { by, meters, lost }),
        3 => minutes.prop_map(|minutes| Step::Advance { minutes }),
        2 => Just(Step::Lose),
        2 => Just(Step::Copy),
        1 => Just(Step::RollBack),
        1 => by.clone().prop_map(|by| Step::Forget { by }),
        1 => by.prop_map(|instance| Step::Replace { instance }),
    ]
}

/// A flush that is under way.
struct Flush {
    batch: Batch,
    /// What storing it said, once it was stored.
    stored: Option<Vec<bool>>,
}

/// A number of which only bounds are known after a loss.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Range {
    /// What cannot have been lost.
    least: u64,
    /// What was acknowledged.
    most: u64,
}

impl Range {
    fn contains(self, number: u64) -> bool {
        (self.least..=self.most).contains(&number)
    }

    fn exactly(number: u64) -> Self {
        Self {
            least: number,
            most: number,
        }
    }

    fn add(&mut self, number: u64) {
        self.least += number;
        self.most += number;
    }
}

/// What the model knows of one counter.
#[derive(Debug, Clone, Copy, Default)]
struct Known {
    used: Range,
    denied: Range,
}

type Counter = (String, DateTime<Utc>);

struct History {
    world: World,
    postgres: sqlx::PgPool,
    instances: Vec<Instance>,
    flushes: Vec<Flush>,
    copy: Option<Vec<u8>>,
    limit: u64,
    /// When each meter was last reset.
    resets: BTreeMap<String, DateTime<Utc>>,
    known: BTreeMap<Counter, Known>,
    /// What Postgres held after the last step.
    rows: Vec<Row>,
}

impl History {
    async fn begin() -> Self {
        let world = World::new().await;
        let postgres = world.postgres().await;
        let instances = vec![world.instance().await, world.instance().await];
        Self {
            world,
            postgres,
            instances,
            flushes: Vec::new(),
            copy: None,
            limit: 1000,
            resets: BTreeMap::new(),
            known: BTreeMap::new(),
            rows: Vec::new(),
        }
    }

    async fn take(&mut self, step: Step) {
        match step {
            Step::Count { by, path, amounts } => self.count(by, path, amounts).await,
            Step::Burst { flusher } => self.burst(flusher).await,
            Step::BurstAndLoss { flusher } => self.burst_and_loss(flusher).await,
            Step::Look { by } => self.look(by).await,
            Step::Read { by } => {
                let flusher = &self.instances[by].app.flusher;
                let batch = flusher.read(&[shard(ORGANIZATION)]).await.unwrap();
                if self.flushes.len() == FLUSHES_MAX {
                    self.flushes.remove(0);
                }
                self.flushes.push(Flush {
                    batch,
                    stored: None,
                });
            }
            Step::Postgres { flush } => {
                if let Some(flush) = self.flushes.get_mut(flush) {
                    let stored = self.instances[0].app.flusher.store(&flush.batch).await;
                    flush.stored = Some(stored.unwrap());
                }
            }
            Step::Settle { flush } => {
                if let Some(Flush {
                    batch,
                    stored: Some(stored),
                }) = self.flushes.get(flush)
                {
                    // Also where Redis was replaced since: it is settled over another connection then.
                    let settled = self.instances[0].app.flusher.settle(batch, stored).await;
                    settled.unwrap();
                }
            }
            Step::Abandon { flush } => {
                if flush < self.flushes.len() {
                    self.flushes.remove(flush);
                }
            }
            Step::Flush { by } => {
                self.instances[by].flush().await;
                for row in rows(&self.postgres).await {
                    let known = self.known(&row.meter, row.period_start);
                    assert!(known.used.contains(u(row.used)), "{row:?} {known:?}");
                    assert!(known.denied.contains(u(row.denied)), "{row:?} {known:?}");
                }
            }
            Step::Limit { by, limit } => self.set_limit(by, limit).await,
            Step::Reset { by, meters, lost } => self.reset(by, meters, lost).await,
            Step::Advance { minutes } => self.world.clock.advance(Duration::minutes(minutes)),
            Step::Lose => {
                self.lose_all_but_rows().await;
                self.world.flush_redis().await;
            }
            Step::Copy => self.copy = Some(self.world.copy_redis().await),
            Step::RollBack => self.roll_back().await,
            Step::Forget { by } => {
                let garbage_collector = &self.instances[by].app.garbage_collector;
                garbage_collector.collect_once().await.unwrap();
            }
            Step::Replace { instance } => self.instances[instance] = self.world.instance().await,
        }
    }

    async fn count(&mut self, by: usize, path: &str, amounts: [u64; 2]) {
        let charges: Map<String, Value> = ["api", "tokens"]
            .into_iter()
            .zip(amounts)
            .filter(|(_, amount)| *amount > 0)
            .map(|(meter, amount)| (meter.to_owned(), json!(amount)))
            .collect();
        let body = json!({"organizationId": ORGANIZATION, "meters": charges});
        let answer = self.instances[by].http.post(path, body).await;
        let status = answer.status.as_u16();
        assert!([200, 429].contains(&status), "{answer:?}");
        let counted = status == 200 && path != "/v1/check";
        for (meter, amount) in &charges {
            let amount = amount.as_u64().unwrap();
            let of_meter = &answer.body["meters"][meter];
            assert_eq!(
                of_meter["periodStart"],
                json!(self.period(meter)),
                "{answer:?}"
            );
            let current = of_meter["current"].as_u64().unwrap();
            let before = current - if counted { amount } else { 0 };
            let fits = meter != "api" || before + amount <= self.limit;
            let denied = answer.body["deniedBy"].as_array();
            let denied = denied.is_some_and(|denied| denied.contains(&json!(meter)));
            if path != "/v1/track" {
                assert_eq!(denied, !fits, "{answer:?}, limit {}", self.limit);
            }
            let known = self.known(meter, self.period(meter));
            assert!(known.used.contains(before), "{known:?} {answer:?}");
            known.used = Range::exactly(current);
            if path == "/v1/consume" && denied {
                known.denied.add(1);
            }
        }
    }

    async fn burst(&mut self, flusher: usize) {
        let (granted, denied) = self.call_at_once(flusher, false).await;
        let limit = self.limit;
        let known = self.known("api", self.period("api"));
        let before = granted.first().or(denied.first());
        let before = before.unwrap() - u64::from(!granted.is_empty());
        assert!(known.used.contains(before), "{known:?} {granted:?}");
        let all: Vec<u64> = (before + 1..).take(granted.len()).collect();
        assert_eq!(granted, all, "{denied:?}");
        let room = usize::try_from(limit.saturating_sub(before)).unwrap();
        assert_eq!(granted.len(), room.min(BURST), "{granted:?} {denied:?}");
        known.used = Range::exactly(before + u(granted.len()));
        known.denied.add(u(denied.len()));
    }

    async fn burst_and_loss(&mut self, flusher: usize) {
        self.lose_all_but_rows().await;
        let (granted, denied) = self.call_at_once(flusher, true).await;
        let known = self.known("api", self.period("api"));
        known.used.most += u(granted.len());
        known.denied.most += u(denied.len());
    }

    /// Consumes one unit in each of many calls at once; returns the counts that were told, ascending, with
    /// the answers "granted" and "denied".
    async fn call_at_once(&self, flusher: usize, lose: bool) -> (Vec<u64>, Vec<u64>) {
        let callers: Vec<_> = self.instances.iter().map(|it| it.http.clone()).collect();
        let calls = at_once(BURST, |call| {
            let http = callers[call % 2].clone();
            async move {
                http.post("/v1/consume", json!({"organizationId": ORGANIZATION}))
                    .await
            }
        });
        let losing = async {
            if lose {
                self.world.flush_redis().await;
            }
        };
        let (answers, _, ()) = tokio::join!(calls, self.instances[flusher].flush(), losing);
        let told = |status: u16| {
            let mut told: Vec<u64> = answers
                .iter()
                .filter(|answer| answer.status == status)
                .map(|answer| answer.body["current"].as_u64().unwrap())
                .collect();
            told.sort_unstable();
            told
        };
        let (granted, denied) = (told(200), told(429));
        assert_eq!(granted.len() + denied.len(), BURST, "{answers:?}");
        (granted, denied)
    }

    async fn look(&mut self, by: usize) {
        let answer = self.usage(by).await;
        if answer.status == 404 {
            assert!(self.rows.is_empty(), "{answer:?}");
            return;
        }
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(answer.body["exact"], true, "{answer:?}");
        for (meter, of_meter) in answer.body["meters"].as_object().unwrap() {
            let current = of_meter["current"].as_u64().unwrap();
            let known = self.known(meter, self.period(meter));
            assert!(known.used.contains(current), "{known:?} {answer:?}");
        }
    }

    async fn usage(&self, by: usize) -> Answer {
        let path = format!("/v1/organizations/{ORGANIZATION}/usage");
        self.instances[by].http.get(&path).await
    }

    async fn set_limit(&mut self, by: usize, limit: u64) {
        let path = format!("/v1/organizations/{ORGANIZATION}/limits");
        let change = json!({"api": {"limit": limit}});
        let answer = self.instances[by].http.patch(&path, change).await;
        // Nobody has heard of the organization before its first count, or if that was lost.
        if answer.status == 404 {
            assert!(self.rows.is_empty(), "{answer:?}");
        } else {
            assert_eq!(answer.status, 200, "{answer:?}");
            self.limit = limit;
        }
    }

    async fn reset(&mut self, by: usize, meters: &[&str], lost: bool) {
        if lost {
            self.lose_all_but_rows().await;
            // Only what Postgres knows can be reset there.
            if self.rows.is_empty() {
                return;
            }
            commit_reset(&self.world, ORGANIZATION, Some(meters)).await;
            self.world.flush_redis().await;
            let admin = &self.instances[by].app.state.admin;
            assert_eq!(admin.finish_resets_once().await.unwrap(), 1);
        }
        let path = format!("/v1/organizations/{ORGANIZATION}/reset");
        let answer = self.instances[by]
            .http
            .post(&path, json!({"meters": meters}))
            .await;
        if answer.status == 404 {
            assert!(self.rows.is_empty(), "{answer:?}");
            return;
        }
        assert_eq!(answer.status, 200, "{answer:?}");
        for meter in meters {
            let told = &answer.body["meters"][meter];
            let previous: DateTime<Utc> = told["previousPeriodStart"]
                .as_str()
                .unwrap()
                .parse()
                .unwrap();
            if lost {
                // The one that was lost on its way came first.
                let at = self
                    .world
                    .clock
                    .now()
                    .max(self.period(meter) + Duration::milliseconds(1));
                assert!(previous >= at, "{answer:?}");
                self.resets.insert((*meter).to_owned(), previous);
            }
            assert_eq!(previous, self.period(meter), "{answer:?}");
            let counted = told["previousCount"].as_u64().unwrap();
            let known = self.known(meter, previous);
            assert!(known.used.contains(counted), "{known:?} {answer:?}");
            known.used = Range::exactly(counted);
            let began = told["periodStart"].as_str().unwrap().parse().unwrap();
            assert!(began > previous, "{answer:?}");
            self.resets.insert((*meter).to_owned(), began);
        }
    }

    async fn roll_back(&mut self) {
        let Some(copy) = &self.copy else { return };
        let instances: Vec<&Instance> = self.instances.iter().collect();
        self.world.restart_redis_from(copy, &instances).await;
        self.lose_all_but_rows().await;
        // What the copy holds and Postgres does not is stored before the counter moves on.
        for ((meter, start), known) in &mut self.known {
            let counter = counter_key(meter, *start);
            let held = self.world.held(&counter).await;
            let Some(stamp) = held.get("stamp") else {
                continue;
            };
            let number = |field: &str| held[field].parse::<u64>().unwrap();
            let generation: u64 = stamp.split(':').next().unwrap().parse().unwrap();
            let row = self
                .rows
                .iter()
                .find(|row| row.meter == *meter && row.period_start == *start);
            if row.is_none_or(|row| {
                (generation, number("sequence")) > (u(row.generation), u(row.seq))
            }) {
                known.used.least = number("used");
                known.denied.least = number("denied");
            }
        }
        // As every instance does each second: limits that the copy does not know are put in force again.
        let policies = &self.instances[0].app.policies;
        policies.sweep_once().await.unwrap();
    }

    /// From now on only what Postgres holds is certain.
    async fn lose_all_but_rows(&mut self) {
        self.rows = rows(&self.postgres).await;
        for ((meter, start), known) in &mut self.known {
            let row = self
                .rows
                .iter()
                .find(|row| row.meter == *meter && row.period_start == *start);
            known.used.least = row.map_or(0, |row| u(row.used));
            known.denied.least = row.map_or(0, |row| u(row.denied));
        }
    }

    /// What holds at all times.
    async fn check(&mut self) {
        let rows = rows(&self.postgres).await;
        for row in &rows {
            assert_eq!(row.used, row.hours_used, "{row:?}");
            assert_eq!(row.denied, row.hours_denied, "{row:?}");
            let known = self.known(&row.meter, row.period_start);
            assert!(u(row.used) <= known.used.most, "{row:?} {known:?}");
            assert!(u(row.denied) <= known.denied.most, "{row:?} {known:?}");
            // Nothing lowers it any more.
            known.used.least = known.used.least.max(u(row.used));
            known.denied.least = known.denied.least.max(u(row.denied));
        }
        for before in &self.rows {
            let same =
                |row: &&Row| (&row.meter, row.period_start) == (&before.meter, before.period_start);
            let after = rows.iter().find(same).unwrap();
            assert!(
                after.used >= before.used && after.denied >= before.denied,
                "{before:?} {after:?}"
            );
            assert!(
                (after.generation, after.seq) >= (before.generation, before.seq),
                "{before:?} {after:?}"
            );
        }
        self.rows = rows;
        self.check_index().await;
    }

    /// A counter that changed since it was stored is in the index; any other is not, and
    /// has one.
    async fn check_index(&self) {
        let mut redis = self.world.redis().await;
        let mut pipeline = redis::pipe();
        pipeline
            .cmd("ZRANGE")
            .arg(sharded(ORGANIZATION, "dirty"))
            .arg(0)
            .arg(-1)
            .cmd("KEYS")
            .arg(sharded(ORGANIZATION, "u:*"));
        let (index, counters): (Vec<String>, Vec<String>) =
            pipeline.query_async(&mut redis).await.unwrap();
        for key in &index {
            assert!(counters.contains(key), "{key} is missing");
        }
        for key in counters {
            let held = self.world.held(&key).await;
            let dirty = held["sequence"] != held["stored"];
            assert_eq!(index.contains(&key), dirty, "{key}");
        }
    }

    /// All that was ever done is settled in the end: Redis and Postgres hold the same.
    async fn end(mut self) {
        for by in 0..2 {
            self.look(by).await;
        }
        self.take(Step::Flush { by: 0 }).await;
        self.check().await;
        // As every instance does every now and then: meters are listed that were stored after a loss.
        let flusher = &self.instances[0].app.flusher;
        flusher.summaries.repair_once(None).await.unwrap();
        assert_eq!(self.instances[1].flush().await, Report::default());
        let [one, other] = [self.usage(0).await, self.usage(1).await];
        assert_eq!(one.body, other.body);
        for (meter, start) in self.known.keys() {
            let row = self
                .rows
                .iter()
                .find(|row| row.meter == *meter && row.period_start == *start);
            let used = row.map_or(0, |row| row.used);
            if *start == self.period(meter) && one.status == 200 {
                let current = one.body["meters"][meter]["current"].as_i64();
                assert_eq!(current.unwrap_or(0), used, "{one:?} {row:?}");
            }
        }
    }

    fn known(&mut self, meter: &str, start: DateTime<Utc>) -> &mut Known {
        self.known.entry((meter.to_owned(), start)).or_default()
    }

    /// The start of the period of a meter that runs.
    fn period(&self, meter: &str) -> DateTime<Utc> {
        let now = self.world.clock.now();
        let month = Utc.with_ymd_and_hms(now.year(), now.month(), 1, 0, 0, 0);
        let reset = self.resets.get(meter).copied().unwrap_or_default();
        month.unwrap().max(reset)
    }
}

fn counter_key(meter: &str, start: DateTime<Utc>) -> String {
    let start = start.timestamp_millis();
    sharded(ORGANIZATION, &format!("u:{ORGANIZATION}:{meter}:{start}"))
}

fn u<N: TryInto<u64, Error: std::fmt::Debug>>(number: N) -> u64 {
    number.try_into().unwrap()
}
