//! The Lua script agrees with `domain::decision`: generated batches run on a real Redis and on a model.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use chrono::{DateTime, Duration, Utc};
use proptest::prelude::*;
use proptest::sample::subsequence;
use proptest::test_runner::{Config as ProptestConfig, TestCaseError, TestRunner};
use tallyman::domain::counter::{CounterId, Snapshot, Stamp};
use tallyman::domain::decision::{self, Decision, Demand, decide};
use tallyman::domain::ids::OrganizationId;
use tallyman::domain::limit::{Enforcement, MeterLimit, Rule};
use tallyman::domain::quantity::{AMOUNT_MAX, COUNT_MAX, Count};
use tallyman::domain::threshold::WatchedThresholds;
use tallyman::redis::{
    Answer, Charge, Configuration, Configured, Connection, IdempotencyUse, Miss, Missing,
    Operation, Outcome, PolicyText, Reading, RecoveryReply, Redis, Settings, Shard,
};

use crate::support::{World, instant, key_of};

const START: &str = "2031-04-01T00:00:00Z";
const END: &str = "2031-05-01T00:00:00Z";
const MARGIN_MS: i64 = 360_000;
const METERS: [&str; 3] = ["api", "tokens", "storage"];
/// Each case has two organizations on different shards.
const COUNTERS: usize = 2 * METERS.len();
const VERSIONS: usize = 3;

/// A Redis whose data set is older than the running period, so that missing counters can be created at zero.
struct Bench {
    world: World,
    redis: Redis,
    connection: Arc<Connection>,
}

fn policy_text(version: u64, json: &str) -> PolicyText<'_> {
    PolicyText {
        version,
        incarnation: 0,
        json,
    }
}

impl Bench {
    async fn new() -> Self {
        let world = World::new().await;
        let settings = Settings {
            url: world.servers().redis_url,
            prefix: "tm:".to_owned(),
            trust_restart: false,
            wait_replicas: 0,
            record_lifetime_ms: 3_600_000,
        };
        let redis = Redis::new(settings, world.clock.clone(), world.metrics()).unwrap();
        let connection = redis.connection().await.unwrap();
        let all: Vec<Shard> = Shard::all().collect();
        let unidentified = redis.identify(&connection, &all).await.unwrap();
        assert_eq!(unidentified.len(), all.len());
        let left = redis
            .number(&connection, &unidentified, (1, DateTime::UNIX_EPOCH))
            .await
            .unwrap();
        assert!(left.is_empty());
        world.move_to("2031-04-10T12:34:56Z");
        Self {
            world,
            redis,
            connection,
        }
    }

    fn now(&self) -> DateTime<Utc> {
        self.world.clock.now()
    }

    /// Stores version 1 of a policy.
    async fn configure(&self, organization: &OrganizationId) {
        let configuration = Configuration {
            organization,
            policy: policy_text(1, "{}"),
            running: &[],
        };
        let configured = self
            .connection
            .configure(&[configuration], self.now())
            .await
            .unwrap();
        assert!(matches!(
            configured[..],
            [Configured::Known { version: 1, .. }]
        ));
    }

    async fn open(&self, counter: &CounterId, stamp: &Stamp) -> RecoveryReply {
        let missing = [Missing { counter, stamp }];
        let opened = self.connection.open(&missing, self.now(), MARGIN_MS);
        opened.await.unwrap()[0]
    }

    async fn count(&self, operations: Vec<Operation>) -> Vec<Outcome> {
        let outcomes = self.redis.count(&self.connection, operations).await;
        outcomes.unwrap().unwrap()
    }

    async fn snapshot(&self, counter: &CounterId) -> Option<Snapshot> {
        let counter = std::slice::from_ref(counter);
        let read = self.connection.read(counter).await.unwrap();
        read.into_iter().next().unwrap()
    }

    async fn is_dirty(&self, counter: &CounterId) -> bool {
        let shard = Shard::of(&counter.organization);
        let dirty = self.connection.dirty(&[(shard, 100_000)]).await;
        dirty.unwrap().contains(counter)
    }

    async fn overwrite(&self, counter: &CounterId, field: &str, value: &str) {
        let (organization, meter) = (counter.organization.as_str(), counter.meter.as_str());
        let key = key_of(organization, meter, START);
        self.world.overwrite(&key, &[(field, value)]).await;
    }
}

/// A generated test case.
#[derive(Debug, Clone)]
struct Case {
    /// The initial count of each counter.
    initial: Vec<u64>,
    /// The rule of each counter in each version of the policy.
    rules: Vec<Vec<Rule>>,
    batches: Vec<Vec<Call>>,
}

#[derive(Debug, Clone)]
struct Call {
    organization: usize,
    kind: decision::Operation,
    charges: Vec<ChargeCase>,
    /// Key and payload of an idempotent call.
    idempotency: Option<(u8, u8)>,
    /// The number of equal calls that this one represents.
    times: u32,
}

#[derive(Debug, Clone)]
struct ChargeCase {
    meter: usize,
    demand: Demand,
    version: usize,
    hours_ago: i64,
}

fn amounts() -> impl Strategy<Value = u64> {
    prop_oneof![
        8 => 0..=12_u64,
        1 => 1..=AMOUNT_MAX,
        1 => Just(AMOUNT_MAX),
    ]
}

fn initial() -> impl Strategy<Value = u64> {
    prop_oneof![
        Just(0),
        0..30_u64,
        COUNT_MAX - 30..=COUNT_MAX,
        COUNT_MAX - 3 * AMOUNT_MAX..=COUNT_MAX,
    ]
}

/// Rules with limits near the initial count, or at the extremes.
fn rules(initial: u64) -> impl Strategy<Value = Rule> {
    let limit = prop_oneof![
        6 => (-5..60_i64).prop_map(move |by| Some(initial.saturating_add_signed(by).min(COUNT_MAX))),
        1 => Just(Some(0)),
        1 => Just(Some(COUNT_MAX)),
        2 => Just(None),
    ];
    (limit, prop::bool::weighted(0.25)).prop_map(|(limit, soft)| Rule {
        limit: limit.map(|units| Count::try_from(units).unwrap()),
        enforcement: if soft {
            Enforcement::Soft
        } else {
            Enforcement::Hard
        },
    })
}

fn calls() -> impl Strategy<Value = Call> {
    let kind = prop_oneof![
        2 => Just(decision::Operation::Track),
        4 => Just(decision::Operation::Consume),
        1 => Just(decision::Operation::Check),
        1 => Just(decision::Operation::Refund),
    ];
    let charge = (
        amounts(),
        prop_oneof![3 => Just(0), 1 => amounts()],
        1..=VERSIONS,
        0..2_i64,
    );
    let meters = subsequence((0..METERS.len()).collect::<Vec<_>>(), 1..=METERS.len());
    let idempotency = proptest::option::weighted(0.3, (0..4_u8, 0..2_u8));
    (
        0..2_usize,
        kind,
        (meters, prop::collection::vec(charge, METERS.len())),
        idempotency,
        prop_oneof![3 => Just(1), 1 => 2..6_u32],
    )
        .prop_map(
            |(organization, kind, (meters, charges), idempotency, times)| {
                let charges: Vec<ChargeCase> = meters
                    .into_iter()
                    .zip(charges)
                    .map(|(meter, (amount, more, version, hours_ago))| ChargeCase {
                        meter,
                        demand: Demand {
                            amount,
                            need: amount + more,
                        },
                        version,
                        hours_ago,
                    })
                    .collect();
                let counts = matches!(
                    kind,
                    decision::Operation::Track | decision::Operation::Consume
                );
                let alike = matches!(charges[..], [ChargeCase { demand, .. }]
                if demand.amount > 0 && demand.need == demand.amount);
                Call {
                    organization,
                    kind,
                    charges,
                    idempotency,
                    times: if counts && alike && idempotency.is_none() {
                        times
                    } else {
                        1
                    },
                }
            },
        )
}

fn cases() -> impl Strategy<Value = Case> {
    let counters = prop::collection::vec(initial(), COUNTERS).prop_flat_map(|initial| {
        let rules: Vec<_> = initial
            .iter()
            .map(|units| prop::collection::vec(rules(*units), VERSIONS))
            .collect();
        (Just(initial), rules)
    });
    // The script merges consecutive equal operations.
    let repeated = (calls(), prop_oneof![2 => Just(1), 1 => 2..5_usize]);
    let batch = prop::collection::vec(repeated, 1..8).prop_map(|calls| {
        let calls = calls.into_iter();
        calls
            .flat_map(|(call, copies)| std::iter::repeat_n(call, copies))
            .collect()
    });
    let batches = prop::collection::vec(batch, 1..8);
    (counters, batches).prop_map(|((initial, rules), batches)| Case {
        initial,
        rules,
        batches,
    })
}

/// A counter in the model.
#[derive(Debug, Clone)]
struct ModelCounter {
    used: Count,
    denied: u64,
    sequence: u64,
    stamp: Stamp,
    refunded: u64,
    /// `(used, denied, refunded)` by hour.
    hours: BTreeMap<DateTime<Utc>, (i64, u64, u64)>,
    /// Thresholds crossed under the current limit, with the first count beyond each.
    crossed: Vec<(String, u64)>,
    previous_limits: Vec<String>,
    /// Refused calls before the current limit.
    denied_before: u64,
    changed: bool,
}

impl ModelCounter {
    /// Adopts a stamp, which may start a new limit span.
    fn adopt(&mut self, stamp: Stamp) {
        if self.stamp.rule != stamp.rule {
            let crossed = std::mem::take(&mut self.crossed);
            self.previous_limits.push(encode_crossed(&crossed));
            self.denied_before = self.denied;
        }
        self.stamp = stamp;
        self.changed = true;
    }

    /// Refuses a call; returns whether it is the counter's first refusal.
    fn refuse(&mut self, hour: DateTime<Utc>) -> bool {
        if self.denied == self.denied_before {
            self.cross("!".to_owned(), self.used.get());
        }
        self.denied += 1;
        self.hours.entry(hour).or_default().1 += 1;
        self.changed = true;
        self.denied == 1
    }

    fn cross(&mut self, threshold: String, used: u64) {
        if !self
            .crossed
            .iter()
            .any(|(crossed, _)| *crossed == threshold)
        {
            self.crossed.push((threshold, used));
        }
    }

    /// Records the thresholds between two counts.
    fn cross_between(&mut self, before: Count, after: Count) {
        let Some(limit) = self.stamp.rule.limit else {
            return;
        };
        let (before, after, limit) = (before.get(), after.get(), limit.get());
        for percent in WARN_AT {
            let reaches =
                |used: u64| u128::from(used) * 100 >= u128::from(limit) * u128::from(percent);
            if limit > 0 && !reaches(before) && reaches(after) {
                self.cross(percent.to_string(), after);
            }
        }
        if before <= limit && limit < after {
            self.cross("!".to_owned(), after);
        }
    }
}

fn encode_crossed(crossed: &[(String, u64)]) -> String {
    let each = crossed.iter();
    let each: Vec<String> = each
        .map(|(threshold, used)| format!("{threshold}={used},"))
        .collect();
    each.concat()
}

/// Thresholds of every limit, in percent.
const WARN_AT: [u16; 3] = [37, 80, 100];

fn watched(rule: Rule) -> Arc<WatchedThresholds> {
    let limit = MeterLimit {
        limit: rule.limit,
        enforcement: rule.enforcement,
        warn_at: WARN_AT.to_vec(),
        ..MeterLimit::default()
    };
    Arc::new(WatchedThresholds::of(&limit))
}

#[derive(Debug)]
struct Model {
    counters: Vec<ModelCounter>,
    records: HashMap<(usize, u8), (u8, Answer)>,
}

impl Model {
    /// Several equal calls count as if made one after the other.
    fn calls(&mut self, call: &Call, charges: &[Charge]) -> Outcome {
        if call.times == 1 {
            return self.call(call, charges);
        }
        let outcomes: Vec<Outcome> = (0..call.times).map(|_| self.call(call, charges)).collect();
        let granted = |outcome: &Outcome| match outcome {
            Outcome::Answered(answer) => answer.times_granted == 1,
            _ => false,
        };
        let refused_first = outcomes.iter().any(|outcome| match outcome {
            Outcome::Answered(answer) => answer.readings[0].refused_first,
            _ => false,
        });
        let counter = &self.counters[call.organization * METERS.len() + call.charges[0].meter];
        let stamp = if counter.stamp.version > charges[0].stamp.version {
            counter.stamp
        } else {
            charges[0].stamp
        };
        let granted = outcomes.iter().take_while(|it| granted(it)).count();
        Outcome::Answered(Answer {
            times_granted: u32::try_from(granted).unwrap(),
            replayed: false,
            readings: vec![Reading {
                start: instant(START),
                used: counter.used,
                stamp,
                given_back: 0,
                refused_first,
            }],
        })
    }

    fn call(&mut self, call: &Call, charges: &[Charge]) -> Outcome {
        if let Some((key, payload)) = call.idempotency
            && let Some((first, answer)) = self.records.get(&(call.organization, key))
        {
            if *first != payload {
                return Outcome::KeyReused;
            }
            return Outcome::Answered(Answer {
                replayed: true,
                ..answer.clone()
            });
        }
        let positions: Vec<usize> = call
            .charges
            .iter()
            .map(|charge| call.organization * METERS.len() + charge.meter)
            .collect();
        // The newer version decides, whether it is the counter's or the call's.
        let deciding: Vec<Stamp> = positions
            .iter()
            .zip(charges)
            .map(|(position, charge)| {
                let current = self.counters[*position].stamp;
                if charge.stamp.version > current.version {
                    charge.stamp
                } else {
                    current
                }
            })
            .collect();
        let requests: Vec<(Rule, Count, Demand)> = positions
            .iter()
            .zip(charges)
            .zip(&deciding)
            .map(|((position, charge), stamp)| {
                (stamp.rule, self.counters[*position].used, charge.demand)
            })
            .collect();
        let decision = decide(call.kind, &requests);
        let (times_granted, counts) = match &decision {
            Decision::Overflow(position) => return Outcome::Overflow(*position),
            Decision::Granted(counts) => (1, counts.clone()),
            Decision::Denied(_) => (0, requests.iter().map(|(_, used, _)| *used).collect()),
        };
        let given_back: Vec<u64> = requests
            .iter()
            .zip(&counts)
            .map(|((_, before, _), after)| match call.kind {
                decision::Operation::Refund => before.get() - after.get(),
                _ => 0,
            })
            .collect();
        let mut refused_first = vec![false; positions.len()];
        if call.kind != decision::Operation::Check {
            for (place, position) in positions.iter().enumerate() {
                let (counter, charge) = (&mut self.counters[*position], &charges[place]);
                if counter.stamp != deciding[place] {
                    counter.adopt(deciding[place]);
                }
                match &decision {
                    Decision::Denied(refused) if refused.contains(&place) => {
                        refused_first[place] = counter.refuse(charge.hour);
                    }
                    Decision::Granted(_) if counts[place] != counter.used => {
                        let hour = counter.hours.entry(charge.hour).or_default();
                        if call.kind == decision::Operation::Refund {
                            hour.2 += given_back[place];
                            counter.refunded += given_back[place];
                        }
                        hour.0 += difference(counter.used, counts[place]);
                        counter.cross_between(counter.used, counts[place]);
                        counter.used = counts[place];
                        counter.changed = true;
                    }
                    _ => {}
                }
            }
        }
        let readings = counts.iter().zip(&deciding).zip(given_back);
        let readings = readings.zip(refused_first);
        let readings = readings.map(|(((used, stamp), given_back), refused_first)| Reading {
            start: instant(START),
            used: *used,
            stamp: *stamp,
            given_back,
            refused_first,
        });
        let answer = Answer {
            times_granted,
            replayed: false,
            readings: readings.collect(),
        };
        if let Some((key, payload)) = call.idempotency {
            self.records
                .insert((call.organization, key), (payload, answer.clone()));
        }
        Outcome::Answered(answer)
    }

    /// A batch writes each changed counter once.
    fn end_batch(&mut self) {
        for counter in &mut self.counters {
            counter.sequence += u64::from(counter.changed);
            counter.changed = false;
        }
    }
}

fn difference(before: Count, after: Count) -> i64 {
    i64::try_from(after.get()).unwrap() - i64::try_from(before.get()).unwrap()
}

fn stamp(rule: Rule, version: usize) -> Stamp {
    Stamp {
        generation: 1,
        version: version as u64,
        rule,
        end: Some(instant(END)),
        closed: false,
    }
}

fn counter(organization: &OrganizationId, meter: &str) -> CounterId {
    CounterId {
        organization: organization.clone(),
        meter: meter.parse().unwrap(),
        start: instant(START),
    }
}

fn hour(now: DateTime<Utc>, hours_ago: i64) -> DateTime<Utc> {
    tallyman::domain::wall_clock::hour(chrono_tz::Tz::UTC, now - Duration::hours(hours_ago)).0
}

#[expect(
    clippy::too_many_lines,
    reason = "one case, from its setup to its verdict"
)]
async fn check_case(bench: &Bench, number: usize, case: &Case) -> Result<(), TestCaseError> {
    let organizations: Vec<OrganizationId> = ["a", "b"]
        .iter()
        .map(|name| format!("{name}{number}").parse().unwrap())
        .collect();
    let mut model = Model {
        counters: Vec::new(),
        records: HashMap::new(),
    };
    let mut ids = Vec::new();
    for (position, initial) in case.initial.iter().enumerate() {
        let organization = &organizations[position / METERS.len()];
        let id = counter(organization, METERS[position % METERS.len()]);
        bench.configure(organization).await;
        let first = stamp(case.rules[position][0], 1);
        assert_eq!(bench.open(&id, &first).await, RecoveryReply::Ready);
        bench.overwrite(&id, "used", &initial.to_string()).await;
        ids.push(id);
        model.counters.push(ModelCounter {
            used: Count::try_from(*initial).unwrap(),
            denied: 0,
            refunded: 0,
            sequence: 0,
            stamp: first,
            hours: BTreeMap::new(),
            crossed: Vec::new(),
            previous_limits: Vec::new(),
            denied_before: 0,
            changed: false,
        });
    }

    for batch in &case.batches {
        let operations: Vec<Operation> = batch
            .iter()
            .map(|call| Operation {
                organization: organizations[call.organization].clone(),
                kind: call.kind,
                charges: call
                    .charges
                    .iter()
                    .map(|charge| {
                        let position = call.organization * METERS.len() + charge.meter;
                        Charge {
                            counter: ids[position].clone(),
                            demand: charge.demand,
                            stamp: stamp(case.rules[position][charge.version - 1], charge.version),
                            hour: hour(bench.now(), charge.hours_ago),
                            watched: watched(case.rules[position][charge.version - 1]),
                        }
                    })
                    .collect(),
                idempotency: call.idempotency.map(|(key, payload)| IdempotencyUse {
                    key: format!("idempotency {key}").parse().unwrap(),
                    fingerprint: format!("{payload:016x}"),
                }),
                times: call.times,
            })
            .collect();
        let outcomes = bench.count(operations.clone()).await;
        let expected: Vec<Outcome> = batch
            .iter()
            .zip(&operations)
            .map(|(call, operation)| model.calls(call, &operation.charges))
            .collect();
        model.end_batch();
        prop_assert_eq!(outcomes, expected);
    }

    for ((id, counter), initial) in ids.iter().zip(&model.counters).zip(&case.initial) {
        let snapshot = bench.snapshot(id).await.unwrap();
        prop_assert_eq!(snapshot.used, counter.used);
        prop_assert_eq!(snapshot.denied, counter.denied);
        prop_assert_eq!(snapshot.refunded, counter.refunded);
        prop_assert_eq!(snapshot.sequence, counter.sequence);
        prop_assert_eq!(snapshot.stamp, counter.stamp);
        let thresholds = &snapshot.thresholds;
        prop_assert_eq!(
            thresholds.crossed.to_string(),
            encode_crossed(&counter.crossed)
        );
        let previous = thresholds
            .previous_limits
            .iter()
            .map(|it| it.crossed.to_string());
        prop_assert_eq!(&previous.collect::<Vec<_>>(), &counter.previous_limits);
        let hours: BTreeMap<_, _> = snapshot
            .hours
            .iter()
            .map(|hour| (hour.start, (hour.used, hour.denied, hour.refunded)))
            .collect();
        prop_assert_eq!(&hours, &counter.hours);
        let counted: i64 = hours.values().map(|(used, ..)| used).sum();
        let initial = Count::try_from(*initial).unwrap();
        prop_assert_eq!(counted, difference(initial, counter.used));
        // Every changed counter and every hour of it will be flushed.
        prop_assert_eq!(bench.is_dirty(id).await, counter.sequence > 0);
        if let Some(first) = hours.keys().next() {
            prop_assert!(
                snapshot
                    .oldest_unstored
                    .is_some_and(|oldest| oldest <= *first)
            );
        }
    }
    Ok(())
}

#[test]
fn the_script_decides_as_the_domain_does_on_any_sequence_of_batches() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let bench = runtime.block_on(Bench::new());
    let number = std::cell::Cell::new(0);
    let mut runner = TestRunner::new(ProptestConfig {
        cases: 250,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let result = runner.run(&cases(), |case| {
        number.set(number.get() + 1);
        runtime.block_on(check_case(&bench, number.get(), &case))
    });
    // `Display`, because the debug form omits the differing values.
    if let Err(failure) = result {
        panic!("{failure}");
    }
}

/// Two counters of one organization at 5 of 10, under version 2 of the policy.
async fn two_counters(bench: &Bench) -> (OrganizationId, Vec<CounterId>, Stamp) {
    let organization: OrganizationId = "org_1".parse().unwrap();
    bench.configure(&organization).await;
    let rule = Rule {
        limit: Some(Count::try_from(10).unwrap()),
        enforcement: Enforcement::Hard,
    };
    let ids: Vec<CounterId> = ["api", "tokens"]
        .iter()
        .map(|meter| counter(&organization, meter))
        .collect();
    for id in &ids {
        assert_eq!(bench.open(id, &stamp(rule, 2)).await, RecoveryReply::Ready);
        bench.overwrite(id, "used", "5").await;
    }
    (organization, ids, stamp(rule, 2))
}

fn operation(
    bench: &Bench,
    organization: &OrganizationId,
    kind: decision::Operation,
    ids: &[CounterId],
    stamp: Stamp,
) -> Operation {
    let charges = ids.iter().map(|id| Charge {
        counter: id.clone(),
        demand: Demand { amount: 1, need: 1 },
        stamp,
        hour: hour(bench.now(), 0),
        watched: watched(stamp.rule),
    });
    Operation {
        organization: organization.clone(),
        times: 1,
        kind,
        charges: charges.collect(),
        idempotency: None,
    }
}

const ALL_OPERATIONS: [decision::Operation; 4] = [
    decision::Operation::Track,
    decision::Operation::Consume,
    decision::Operation::Check,
    decision::Operation::Refund,
];

/// Runs each kind of operation on these counters; expects `outcome` and no write.
async fn assert_outcome_without_write(
    bench: &Bench,
    ids: &[CounterId],
    stamp: Stamp,
    outcome: &Outcome,
) {
    let mut before = Vec::new();
    for id in ids {
        before.push(bench.snapshot(id).await);
    }
    for kind in ALL_OPERATIONS {
        let operation = operation(bench, &ids[0].organization, kind, ids, stamp);
        assert_eq!(
            bench.count(vec![operation]).await.as_slice(),
            std::slice::from_ref(outcome),
            "{kind:?}"
        );
    }
    for (id, before) in ids.iter().zip(before) {
        assert_eq!(bench.snapshot(id).await, before);
        assert!(!bench.is_dirty(id).await);
    }
}

#[tokio::test]
async fn a_missing_counter_is_unknown_and_its_operation_counts_nothing_at_all() {
    let bench = Bench::new().await;
    let (organization, mut ids, stamp) = two_counters(&bench).await;
    ids.push(counter(&organization, "storage"));
    assert_outcome_without_write(&bench, &ids, stamp, &Outcome::Miss(Miss::Missing(2))).await;
    assert_eq!(bench.snapshot(&ids[2]).await, None);
}

#[tokio::test]
async fn a_counter_of_another_generation_is_frozen() {
    let bench = Bench::new().await;
    let (_, ids, current) = two_counters(&bench).await;
    bench
        .overwrite(&ids[1], "stamp", "7:2:10:h:1935619200000")
        .await;
    assert_outcome_without_write(&bench, &ids, current, &Outcome::Miss(Miss::Frozen(1))).await;
    // A newer generation is frozen as well.
    let other = Stamp {
        generation: 9,
        version: 3,
        ..current
    };
    assert_outcome_without_write(&bench, &ids, other, &Outcome::Miss(Miss::Frozen(0))).await;
}

#[tokio::test]
async fn a_closed_counter_counts_nothing_under_any_policy_version() {
    let bench = Bench::new().await;
    let (_, ids, current) = two_counters(&bench).await;
    bench
        .overwrite(&ids[1], "stamp", "1:2:10:H:1933000000000")
        .await;
    for version in 1..=3 {
        let stamp = Stamp { version, ..current };
        let both = [ids[1].clone()];
        assert_outcome_without_write(&bench, &both, stamp, &Outcome::Miss(Miss::Closed(0))).await;
    }
}

/// The caller has an older policy, in which the period ends later.
#[tokio::test]
async fn a_period_that_a_newer_policy_has_ended_counts_nothing_under_an_older_one() {
    let bench = Bench::new().await;
    let (_, ids, current) = two_counters(&bench).await;
    let over = bench.now().timestamp_millis();
    bench
        .overwrite(&ids[1], "stamp", &format!("1:3:10:h:{over}"))
        .await;
    assert_outcome_without_write(&bench, &ids, current, &Outcome::Miss(Miss::Closed(1))).await;
    // The period would not have ended a millisecond earlier.
    let running = over + 1;
    bench
        .overwrite(&ids[1], "stamp", &format!("1:3:10:h:{running}"))
        .await;
    let operation = operation(
        &bench,
        &ids[1].organization,
        decision::Operation::Track,
        &ids,
        current,
    );
    let [Outcome::Answered(answer)] = &bench.count(vec![operation]).await[..] else {
        panic!("the call was not counted");
    };
    assert_eq!(answer.readings[1].stamp.version, 3);
}

#[tokio::test]
async fn a_newer_policy_never_changes_an_ended_period() {
    let bench = Bench::new().await;
    let (organization, ids, current) = two_counters(&bench).await;
    bench.world.move_to("2031-05-01T00:00:00Z");
    let newer = Stamp {
        version: 3,
        rule: Rule::default(),
        ..current
    };
    // Five more units fit the limit that the period ended with, though the newer policy is unlimited.
    for count in 6..=11 {
        let late = operation(
            &bench,
            &organization,
            decision::Operation::Consume,
            &ids[..1],
            newer,
        );
        let [Outcome::Answered(answer)] = &bench.count(vec![late]).await[..] else {
            panic!("the call was not decided");
        };
        assert_eq!(
            (answer.times_granted, answer.readings[0].stamp),
            (u32::from(count <= 10), current)
        );
    }
    assert_eq!(bench.snapshot(&ids[0]).await.unwrap().stamp, current);
}

#[tokio::test]
async fn a_counter_is_opened_only_where_nothing_can_have_been_counted() {
    let bench = Bench::new().await;
    let organization: OrganizationId = "org_1".parse().unwrap();
    let current = stamp(Rule::default(), 2);
    let open = async |start: &str, stamp: Stamp| {
        let id = CounterId {
            start: instant(start),
            ..counter(&organization, "api")
        };
        bench.open(&id, &stamp).await
    };
    // Without a policy, or with one older than the caller's, the caller must store its own first.
    assert_eq!(open(START, current).await, RecoveryReply::Policy);
    bench.configure(&organization).await;
    let older = Stamp {
        version: 0,
        ..current
    };
    assert_eq!(open(START, older).await, RecoveryReply::Policy);
    // A stamp of another generation.
    let other = Stamp {
        generation: 2,
        ..current
    };
    assert_eq!(open(START, other).await, RecoveryReply::Generation);
    // Periods that began before the data set, with it or within the margin; an ended one; a future one.
    for start in [
        "2031-03-01T00:00:00Z",
        "2031-03-15T12:00:00Z",
        "2031-03-15T12:06:00Z",
    ] {
        assert_eq!(
            open(start, current).await,
            RecoveryReply::Restore,
            "{start}"
        );
    }
    let over = Stamp {
        end: Some(bench.now()),
        ..current
    };
    assert_eq!(open(START, over).await, RecoveryReply::Restore);
    assert_eq!(
        open("2031-04-10T12:34:56.001Z", current).await,
        RecoveryReply::Restore
    );
    let id = counter(&organization, "api");
    assert_eq!(bench.snapshot(&id).await, None);
    assert_eq!(
        open("2031-03-15T12:06:00.001Z", current).await,
        RecoveryReply::Ready
    );
    assert_eq!(open(START, current).await, RecoveryReply::Ready);
    // Creating an existing counter changes nothing.
    bench.overwrite(&id, "used", "5").await;
    assert_eq!(open(START, current).await, RecoveryReply::Ready);
    assert_eq!(bench.snapshot(&id).await.unwrap().used.get(), 5);
}

#[tokio::test]
async fn an_older_policy_never_replaces_a_newer_one() {
    let bench = Bench::new().await;
    let (organization, ids, current) = two_counters(&bench).await;
    for field in ["sequence", "stored"] {
        bench.overwrite(&ids[0], field, "1").await;
    }
    let configure = async |version: u64, limit: u64| {
        let rule = Rule {
            limit: Some(Count::try_from(limit).unwrap()),
            ..current.rule
        };
        let stamp = Stamp {
            generation: 0,
            version,
            rule,
            ..current
        };
        let running = [(ids[0].clone(), stamp)];
        let policy = format!("policy {version}");
        let configuration = Configuration {
            organization: &organization,
            policy: policy_text(version, &policy),
            running: &running,
        };
        let configured = bench
            .connection
            .configure(&[configuration], bench.now())
            .await
            .unwrap();
        let [
            Configured::Known {
                version: known,
                meters,
            },
        ] = &configured[..]
        else {
            panic!("the organization is not deleted")
        };
        let organization = bench
            .connection
            .organization(&organization)
            .await
            .unwrap()
            .unwrap();
        let snapshot = bench.snapshot(&ids[0]).await.unwrap();
        assert_eq!(meters.len(), 2);
        (*known, organization.policy, snapshot.stamp)
    };
    let (known, policy, stamp) = configure(5, 50).await;
    assert_eq!((known, policy.as_str()), (5, "5 policy 5"));
    assert_eq!((stamp.generation, stamp.version), (1, 5));
    assert_eq!(stamp.rule.limit.unwrap().get(), 50);
    assert!(bench.is_dirty(&ids[0]).await);
    let (known, policy, unchanged) = configure(4, 40).await;
    assert_eq!(
        (known, policy.as_str(), unchanged),
        (5, "5 policy 5", stamp)
    );
    // The count is unchanged.
    assert_eq!(bench.snapshot(&ids[0]).await.unwrap().used.get(), 5);
}
