//! The packed value of a counter: what scripts pack is what the service reads, and what they did not pack is refused.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;
use redis::aio::MultiplexedConnection;
use serde_json::{Value, json};
use tallyman::domain::counter::{AppliedAdjustment, CounterId, Snapshot};
use tallyman::domain::quantity::COUNT_MAX;
use tallyman::redis::{Connection, Error, Redis};
use tokio::runtime::Runtime;

use super::fuzz;
use crate::support::{World, key_of, redis_settings};
use crate::tidy::source;

const START: &str = "2031-03-01T00:00:00Z";

/// A Redis, and a counter in it.
struct Stage {
    runtime: Runtime,
    _world: World,
    redis: MultiplexedConnection,
    connection: Arc<Connection>,
    counter: CounterId,
    key: String,
    script: redis::Script,
}

impl Stage {
    fn new() -> Self {
        let runtime = Runtime::new().unwrap();
        let (world, redis, connection) = runtime.block_on(async {
            let world = World::new().await;
            let settings = redis_settings(&world);
            let service = Redis::new(settings, world.clock.clone(), world.metrics()).unwrap();
            let connection = service.connection().await.unwrap();
            let redis = world.redis_for(&key_of("org_1", "api", START)).await;
            (world, redis, connection)
        });
        let functions = source("lua/counter.lua").replace(" <const>", "");
        let pack = "
            local counter = cjson.decode(ARGV[1])
            if counter.oldest == cjson.null then counter.oldest = nil end
            local packed = pack_counter(counter)
            redis.call('SET', KEYS[1], packed)
            return pack_counter(unpack_counter(packed)) == packed";
        Self {
            runtime,
            _world: world,
            redis,
            connection,
            counter: CounterId {
                organization: "org_1".parse().unwrap(),
                meter: "api".parse().unwrap(),
                start: START.parse().unwrap(),
            },
            key: key_of("org_1", "api", START),
            script: redis::Script::new(&format!("{functions}\n{pack}")),
        }
    }

    /// Has the scripts pack a counter; returns whether unpacking is the inverse.
    fn pack(&self, counter: &Value) -> bool {
        let mut redis = self.redis.clone();
        let mut call = self.script.key(&self.key);
        call.arg(counter.to_string());
        self.runtime
            .block_on(call.invoke_async(&mut redis))
            .unwrap()
    }

    fn set(&self, value: &[u8]) {
        let mut redis = self.redis.clone();
        let mut set = redis::cmd("SET");
        set.arg(&self.key).arg(value);
        let _: () = self.runtime.block_on(set.query_async(&mut redis)).unwrap();
    }

    fn value(&self) -> Vec<u8> {
        let mut redis = self.redis.clone();
        let mut get = redis::cmd("GET");
        get.arg(&self.key);
        self.runtime.block_on(get.query_async(&mut redis)).unwrap()
    }

    fn read(&self) -> Result<Snapshot, Error> {
        let counters = std::slice::from_ref(&self.counter);
        let read = self.runtime.block_on(self.connection.read(counters))?;
        Ok(read.into_iter().next().flatten().expect("it exists"))
    }
}

/// A slot, later ones first: seconds to the next newer one, used, denied and refunded.
type SlotFields = (i64, i64, u64, u64);

#[derive(Debug, Clone)]
struct Fields {
    /// Used, sequence, stored, denied, refunded, peak and drained.
    numbers: [u64; 7],
    oldest: Option<i64>,
    stamp: String,
    notified: String,
    previous_limits: String,
    adjusted: String,
    newest: Option<i64>,
    slots: Vec<SlotFields>,
    crossed: String,
}

impl Fields {
    /// Start in ms, used, denied and refunded of each slot, from the newest to the oldest.
    fn slots(&self) -> Vec<(i64, i64, u64, u64)> {
        let Some(mut start) = self.newest else {
            return Vec::new();
        };
        let mut slots = Vec::new();
        for (index, (gap, used, denied, refunded)) in self.slots.iter().enumerate() {
            if index > 0 {
                start -= gap * 1000;
            }
            slots.push((start, *used, *denied, *refunded));
        }
        slots
    }

    /// The table that the scripts pack.
    fn table(&self) -> Value {
        let [used, sequence, stored, denied, refunded, peak, drained] = self.numbers;
        let slots = self.slots().into_iter();
        let slots = slots.flat_map(|(start, used, denied, refunded)| {
            [json!(start), json!(used), json!(denied), json!(refunded)]
        });
        json!({
            "used": used, "sequence": sequence, "stored": stored, "oldest": self.oldest, "stamp": self.stamp,
            "denied": denied, "refunded": refunded, "peak": peak, "notified": self.notified,
            "previous_limits": self.previous_limits, "adjusted": self.adjusted, "drained": drained,
            "slots": slots.collect::<Vec<_>>(), "crossed": self.crossed,
        })
    }
}

fn number() -> impl Strategy<Value = u64> + Clone {
    prop_oneof![4 => 0..1000_u64, 1 => 0..=COUNT_MAX, 1 => Just(COUNT_MAX), 2 => Just(0)]
}

fn signed() -> impl Strategy<Value = i64> + Clone {
    let large = i64::try_from(COUNT_MAX).unwrap();
    prop_oneof![4 => -1000..1000_i64, 1 => -large..=large]
}

fn milliseconds() -> impl Strategy<Value = i64> + Clone {
    (0..7_258_118_400_i64).prop_map(|seconds| seconds * 1000)
}

fn stamps() -> impl Strategy<Value = String> + Clone {
    (
        number(),
        number(),
        option::of(number()),
        "[hsHS]",
        option::of(milliseconds()),
    )
        .prop_map(|(generation, version, limit, enforcement, end)| {
            let limit = limit.map_or(String::new(), |it| it.to_string());
            let end = end.map_or(String::new(), |it| it.to_string());
            format!("{generation}:{version}:{limit}:{enforcement}:{end}")
        })
}

fn notified() -> impl Strategy<Value = String> + Clone {
    (0..1000_u16, 0..2_u8, number(), number()).prop_map(|(percent, exceeded, version, denied)| {
        format!("{percent}:{exceeded}:{version}:{denied}")
    })
}

fn crossed() -> impl Strategy<Value = String> + Clone {
    btree_map(0..1000_u16, number(), 0..4).prop_map(|crossed| {
        let crossed = crossed.into_iter();
        crossed
            .map(|(percent, count)| match percent {
                0 => format!("!={count},"),
                _ => format!("{percent}={count},"),
            })
            .collect()
    })
}

fn adjusted() -> impl Strategy<Value = String> + Clone {
    (number(), signed(), number(), milliseconds())
        .prop_map(|(id, applied, used, slot)| format!("{id}:{applied}:{used}:{slot}"))
}

fn counters() -> impl Strategy<Value = Fields> + Clone {
    let numbers = [(); 7].map(|()| number().boxed());
    let or_none = |text: BoxedStrategy<String>| prop_oneof![Just(String::new()), text];
    let slots = vec((1..200_000_i64, signed(), number(), number()), 1..6);
    (
        numbers,
        option::of(milliseconds()),
        stamps(),
        prop_oneof![Just("0:0:0:0".to_owned()), notified()],
        or_none(adjusted().boxed()),
        option::of(milliseconds()),
        slots,
        crossed(),
    )
        .prop_map(
            |(numbers, oldest, stamp, notified, adjusted, newest, slots, crossed)| Fields {
                numbers,
                oldest,
                stamp,
                notified,
                previous_limits: String::new(),
                adjusted,
                newest,
                slots,
                crossed,
            },
        )
}

fn at(ms: i64) -> DateTime<Utc> {
    DateTime::from_timestamp_millis(ms).unwrap()
}

#[test]
fn what_scripts_pack_is_read_and_unpacked_unchanged() {
    let stage = Stage::new();
    fuzz(500, &counters(), |fields| {
        prop_assert!(
            stage.pack(&fields.table()),
            "pack is not the inverse of unpack"
        );
        let read = stage.read();
        let read = read.map_err(|error| TestCaseError::fail(error.to_string()))?;
        let [used, sequence, stored, denied, refunded, peak, drained] = fields.numbers;
        prop_assert_eq!(read.used.get(), used);
        prop_assert_eq!(read.sequence, sequence);
        prop_assert_eq!(read.never_stored, stored == 0);
        prop_assert_eq!((read.denied, read.refunded), (denied, refunded));
        prop_assert_eq!(read.thresholds.peak.get(), peak);
        prop_assert_eq!(read.thresholds.crossed.to_string(), fields.crossed.clone());
        prop_assert_eq!(read.oldest_unstored, fields.oldest.map(at));
        let adjusted = fields.adjusted.parse::<AppliedAdjustment>().ok();
        prop_assert_eq!(read.adjusted, adjusted);
        prop_assert_eq!(read.drained, drained);
        let slots = read.hours.iter().rev();
        let slots: Vec<_> = slots
            .map(|it| (it.start.timestamp_millis(), it.used, it.denied, it.refunded))
            .collect();
        prop_assert_eq!(slots, fields.slots());
        Ok(())
    });
}

#[test]
fn damaged_values_are_refused_or_read_and_never_a_panic() {
    let stage = Stage::new();
    // Each byte at a position, in 65,536ths of the length: replaced, inserted or removed with what follows.
    let damage = vec((any::<u16>(), any::<u8>(), 0..3_u8), 0..6);
    let values = (option::of(counters()), vec(any::<u8>(), 0..64), damage);
    fuzz(500, &values, |(counter, noise, damage)| {
        let mut value = match counter {
            Some(fields) => {
                stage.pack(&fields.table());
                stage.value()
            }
            None => noise,
        };
        for (position, byte, kind) in damage {
            let position = usize::from(position) * value.len() / 65_536;
            match kind {
                0 if position < value.len() => value[position] = byte,
                1 => value.insert(position, byte),
                _ => value.truncate(position),
            }
        }
        stage.set(&value);
        match stage.read() {
            Ok(read) => prop_assert_eq!(&read.counter, &stage.counter),
            Err(error) => prop_assert!(matches!(error, Error::Inconsistent(_)), "{error}"),
        }
        Ok(())
    });
}
