//! The counting protocol: random histories of counts, flushes, resets, losses and rollbacks, checked against a model of what
//! was acknowledged and what Postgres stored.

use std::collections::BTreeMap;

use chrono::{DateTime, Datelike as _, Duration, TimeZone as _, Utc};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use serde_json::{Map, Value, json};
use tallyman::jobs::flush::{Batch, Report};

use crate::support::{
    Answer, Instance, Row, World, at_once, commit_reset, each_history, rows, shard, sharded,
};

/// Number of histories, unless `PROPTEST_CASES` is set.
const CASES: u32 = 32;

/// Maximum length of a history.
const STEPS_MAX: usize = 50;

/// Maximum number of concurrent flushes.
const FLUSHES_MAX: usize = 3;

/// Calls in a burst.
const BURST: usize = 12;

const ORGANIZATION: &str = "org_1";

/// Sets of meters to reset.
const METERS: &[&[&str]] = &[&["api"], &["tokens"], &["api", "tokens"]];

#[test]
fn nothing_acknowledged_is_lost_or_doubled_except_by_a_loss_of_redis() {
    each_history(CASES, 300, vec(step(), 10..STEPS_MAX), async |steps| {
        let mut history = History::begin().await;
        for step in steps {
            history.apply(step).await;
            history.check().await;
        }
        history.end().await;
    });
}

#[derive(Debug, Clone)]
enum Step {
    /// One call that charges one or both meters; only `api` has a limit.
    Count {
        instance: usize,
        path: &'static str,
        amounts: [u64; 2],
    },
    /// Concurrent calls of one unit on both instances, during a flush.
    Burst {
        flusher: usize,
    },
    /// The same while Redis loses its data.
    BurstAndLoss {
        flusher: usize,
    },
    /// Reads the usage.
    ReadUsage {
        instance: usize,
    },
    /// The three steps of a flush, applied to any open one; and the abandonment of one.
    Read {
        instance: usize,
    },
    Store {
        flush: usize,
    },
    Settle {
        flush: usize,
    },
    Abandon {
        flush: usize,
    },
    /// A complete flush.
    Flush {
        instance: usize,
    },
    /// Changes the limit of `api`.
    Limit {
        instance: usize,
        limit: u64,
    },
    /// Resets one or both meters. If `lost`, Redis loses its data after the commit, and a sweep finishes the reset.
    Reset {
        instance: usize,
        meters: &'static [&'static str],
        lost: bool,
    },
    /// Advances the clock.
    Advance {
        minutes: i64,
    },
    /// Redis loses its data while it runs.
    Lose,
    /// Saves a copy of Redis' data.
    Copy,
    /// Kills Redis and restarts it from the copy, if there is one.
    RollBack,
    /// Runs the garbage collection.
    CollectGarbage {
        instance: usize,
    },
    /// Replaces an instance with a new one.
    Replace {
        instance: usize,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let paths = select(&["/v1/track", "/v1/consume", "/v1/check"][..]);
    let amounts = select(&[[1, 0], [2, 0], [7, 0], [0, 3], [1, 1], [5, 2]][..]);
    let minutes = select(&[1, 13, 61, 3 * 24 * 60, 16 * 24 * 60][..]);
    let meters = select(METERS);
    let instance = 0..2_usize;
    let flush = 0..FLUSHES_MAX;
    prop_oneof![
        14 => (instance.clone(), paths, amounts).prop_map(|(instance, path, amounts)| Step::Count { instance, path, amounts }),
        1 => instance.clone().prop_map(|flusher| Step::Burst { flusher }),
        1 => instance.clone().prop_map(|flusher| Step::BurstAndLoss { flusher }),
        2 => instance.clone().prop_map(|instance| Step::ReadUsage { instance }),
        4 => instance.clone().prop_map(|instance| Step::Read { instance }),
        4 => flush.clone().prop_map(|flush| Step::Store { flush }),
        4 => flush.clone().prop_map(|flush| Step::Settle { flush }),
        1 => flush.prop_map(|flush| Step::Abandon { flush }),
        2 => instance.clone().prop_map(|instance| Step::Flush { instance }),
        2 => (instance.clone(), 0..60_u64).prop_map(|(instance, limit)| Step::Limit { instance, limit }),
        3 => (instance.clone(), meters, prop::bool::weighted(0.3)).prop_map(|(instance, meters, lost)| Step::Reset { instance, meters, lost }),
        3 => minutes.prop_map(|minutes| Step::Advance { minutes }),
        2 => Just(Step::Lose),
        2 => Just(Step::Copy),
        1 => Just(Step::RollBack),
        1 => instance.clone().prop_map(|instance| Step::CollectGarbage { instance }),
        1 => instance.prop_map(|instance| Step::Replace { instance }),
    ]
}

/// An open flush.
struct Flush {
    batch: Batch,
    /// The result of storing it, once it was stored.
    stored: Option<Vec<bool>>,
}

/// A number that is known only within bounds after a loss.
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

/// The model of a counter.
#[derive(Debug, Clone, Copy, Default)]
struct CounterBounds {
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
    /// The last reset of each meter.
    resets: BTreeMap<String, DateTime<Utc>>,
    known: BTreeMap<Counter, CounterBounds>,
    /// The rows in Postgres after the last step.
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

    async fn apply(&mut self, step: Step) {
        match step {
            Step::Count {
                instance,
                path,
                amounts,
            } => self.count(instance, path, amounts).await,
            Step::Burst { flusher } => self.burst(flusher).await,
            Step::BurstAndLoss { flusher } => self.burst_and_loss(flusher).await,
            Step::ReadUsage { instance } => self.read_usage(instance).await,
            Step::Read { instance } => {
                let flusher = &self.instances[instance].app.flusher;
                let batch = flusher.read(&[shard(ORGANIZATION)]).await.unwrap();
                if self.flushes.len() == FLUSHES_MAX {
                    self.flushes.remove(0);
                }
                self.flushes.push(Flush {
                    batch,
                    stored: None,
                });
            }
            Step::Store { flush } => {
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
                    // Redis may have been restarted since the read; then another connection settles.
                    let settled = self.instances[0].app.flusher.settle(batch, stored).await;
                    settled.unwrap();
                }
            }
            Step::Abandon { flush } => {
                if flush < self.flushes.len() {
                    self.flushes.remove(flush);
                }
            }
            Step::Flush { instance } => {
                self.instances[instance].flush().await;
                for row in rows(&self.postgres).await {
                    let known = self.known(&row.meter, row.period_start);
                    assert!(known.used.contains(u(row.used)), "{row:?} {known:?}");
                    assert!(known.denied.contains(u(row.denied)), "{row:?} {known:?}");
                }
            }
            Step::Limit { instance, limit } => self.set_limit(instance, limit).await,
            Step::Reset {
                instance,
                meters,
                lost,
            } => self.reset(instance, meters, lost).await,
            Step::Advance { minutes } => self.world.clock.advance(Duration::minutes(minutes)),
            Step::Lose => {
                self.lower_bounds_to_rows().await;
                self.world.flush_redis().await;
            }
            Step::Copy => self.copy = Some(self.world.copy_redis().await),
            Step::RollBack => self.roll_back().await,
            Step::CollectGarbage { instance } => {
                let garbage_collector = &self.instances[instance].app.garbage_collector;
                garbage_collector.collect_once().await.unwrap();
            }
            Step::Replace { instance } => self.instances[instance] = self.world.instance().await,
        }
    }

    async fn count(&mut self, instance: usize, path: &str, amounts: [u64; 2]) {
        let charges: Map<String, Value> = ["api", "tokens"]
            .into_iter()
            .zip(amounts)
            .filter(|(_, amount)| *amount > 0)
            .map(|(meter, amount)| (meter.to_owned(), json!(amount)))
            .collect();
        let body = json!({"organizationId": ORGANIZATION, "meters": charges});
        let answer = self.instances[instance].http.post(path, body).await;
        let status = answer.status.as_u16();
        assert!([200, 429].contains(&status), "{answer:?}");
        let counted = status == 200 && path != "/v1/check";
        for (meter, amount) in &charges {
            let amount = amount.as_u64().unwrap();
            let usage = &answer.body["meters"][meter];
            assert_eq!(
                usage["periodStart"],
                json!(self.period(meter)),
                "{answer:?}"
            );
            let current = usage["current"].as_u64().unwrap();
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
        let (granted, denied) = self.consume_concurrently(flusher, false).await;
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
        self.lower_bounds_to_rows().await;
        let (granted, denied) = self.consume_concurrently(flusher, true).await;
        let known = self.known("api", self.period("api"));
        known.used.most += u(granted.len());
        known.denied.most += u(denied.len());
    }

    /// Consumes one unit in each of many concurrent calls; returns the counts in the responses, ascending, of granted
    /// and of denied calls.
    async fn consume_concurrently(&self, flusher: usize, lose: bool) -> (Vec<u64>, Vec<u64>) {
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
        let counts = |status: u16| {
            let mut counts: Vec<u64> = answers
                .iter()
                .filter(|answer| answer.status == status)
                .map(|answer| answer.body["current"].as_u64().unwrap())
                .collect();
            counts.sort_unstable();
            counts
        };
        let (granted, denied) = (counts(200), counts(429));
        assert_eq!(granted.len() + denied.len(), BURST, "{answers:?}");
        (granted, denied)
    }

    async fn read_usage(&mut self, instance: usize) {
        let answer = self.usage(instance).await;
        if answer.status == 404 {
            assert!(self.rows.is_empty(), "{answer:?}");
            return;
        }
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(answer.body["exact"], true, "{answer:?}");
        for (meter, usage) in answer.body["meters"].as_object().unwrap() {
            let current = usage["current"].as_u64().unwrap();
            let known = self.known(meter, self.period(meter));
            assert!(known.used.contains(current), "{known:?} {answer:?}");
        }
    }

    async fn usage(&self, instance: usize) -> Answer {
        let path = format!("/v1/organizations/{ORGANIZATION}/usage");
        self.instances[instance].http.get(&path).await
    }

    async fn set_limit(&mut self, instance: usize, limit: u64) {
        let path = format!("/v1/organizations/{ORGANIZATION}/limits");
        let change = json!({"api": {"limit": limit}});
        let answer = self.instances[instance].http.patch(&path, change).await;
        // The organization is unknown before its first count, or after that was lost.
        if answer.status == 404 {
            assert!(self.rows.is_empty(), "{answer:?}");
        } else {
            assert_eq!(answer.status, 200, "{answer:?}");
            self.limit = limit;
        }
    }

    async fn reset(&mut self, instance: usize, meters: &[&str], lost: bool) {
        if lost {
            self.lower_bounds_to_rows().await;
            // Only counters in Postgres can be reset without Redis.
            if self.rows.is_empty() {
                return;
            }
            commit_reset(&self.world, ORGANIZATION, Some(meters)).await;
            self.world.flush_redis().await;
            let admin = &self.instances[instance].app.state.admin;
            assert_eq!(admin.finish_resets_once().await.unwrap(), 1);
        }
        let path = format!("/v1/organizations/{ORGANIZATION}/reset");
        let answer = self.instances[instance]
            .http
            .post(&path, json!({"meters": meters}))
            .await;
        if answer.status == 404 {
            assert!(self.rows.is_empty(), "{answer:?}");
            return;
        }
        assert_eq!(answer.status, 200, "{answer:?}");
        for meter in meters {
            let reset = &answer.body["meters"][meter];
            let previous: DateTime<Utc> = reset["previousPeriodStart"]
                .as_str()
                .unwrap()
                .parse()
                .unwrap();
            if lost {
                // The reset that was lost came first.
                let at = self
                    .world
                    .clock
                    .now()
                    .max(self.period(meter) + Duration::milliseconds(1));
                assert!(previous >= at, "{answer:?}");
                self.resets.insert((*meter).to_owned(), previous);
            }
            assert_eq!(previous, self.period(meter), "{answer:?}");
            let counted = reset["previousCount"].as_u64().unwrap();
            let known = self.known(meter, previous);
            assert!(known.used.contains(counted), "{known:?} {answer:?}");
            known.used = Range::exactly(counted);
            let began = reset["periodStart"].as_str().unwrap().parse().unwrap();
            assert!(began > previous, "{answer:?}");
            self.resets.insert((*meter).to_owned(), began);
        }
    }

    async fn roll_back(&mut self) {
        let Some(copy) = &self.copy else { return };
        let instances: Vec<&Instance> = self.instances.iter().collect();
        self.world.restart_redis_from(copy, &instances).await;
        self.lower_bounds_to_rows().await;
        // The copy may be newer than Postgres; then its counts are stored before the counter changes.
        for ((meter, start), known) in &mut self.known {
            let counter = counter_key(meter, *start);
            let counter = self.world.snapshot(&counter).await;
            let Some(stamp) = counter.get("stamp") else {
                continue;
            };
            let number = |field: &str| counter[field].parse::<u64>().unwrap();
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
        // Every instance sweeps each second, which applies limits that the copy does not have.
        let policies = &self.instances[0].app.policies;
        policies.sweep_once().await.unwrap();
    }

    /// Lowers the bounds to what Postgres has stored.
    async fn lower_bounds_to_rows(&mut self) {
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

    /// Invariants after every step.
    async fn check(&mut self) {
        let rows = rows(&self.postgres).await;
        for row in &rows {
            assert_eq!(row.used, row.hours_used, "{row:?}");
            assert_eq!(row.denied, row.hours_denied, "{row:?}");
            let known = self.known(&row.meter, row.period_start);
            assert!(u(row.used) <= known.used.most, "{row:?} {known:?}");
            assert!(u(row.denied) <= known.denied.most, "{row:?} {known:?}");
            // A stored count is never lowered.
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

    /// Exactly the counters that changed since they were stored are in the dirty index, and each entry has a
    /// counter.
    async fn check_index(&self) {
        let index = sharded(ORGANIZATION, "dirty");
        let index: Vec<String> = self
            .world
            .redis_command(&["ZRANGE", &index, "0", "-1"])
            .await;
        let counters = sharded(ORGANIZATION, "u:*");
        let counters: Vec<String> = self.world.redis_command(&["KEYS", &counters]).await;
        for key in &index {
            assert!(counters.contains(key), "{key} is missing");
        }
        for key in counters {
            let counter = self.world.snapshot(&key).await;
            let dirty = counter["sequence"] != counter["stored"];
            assert_eq!(index.contains(&key), dirty, "{key}");
        }
    }

    /// Flushes everything and asserts that Redis and Postgres agree.
    async fn end(mut self) {
        for instance in 0..2 {
            self.read_usage(instance).await;
        }
        self.apply(Step::Flush { instance: 0 }).await;
        self.check().await;
        // The repair of summaries, which runs regularly, adds meters that were stored after a loss.
        let flusher = &self.instances[0].app.flusher;
        flusher.summaries.walk_once().await.unwrap();
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

    fn known(&mut self, meter: &str, start: DateTime<Utc>) -> &mut CounterBounds {
        self.known.entry((meter.to_owned(), start)).or_default()
    }

    /// The start of the meter's running period.
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
