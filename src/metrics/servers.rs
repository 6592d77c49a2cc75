//! Whether the servers are up, and how they are used.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::families::{ByLabel, latency, register, register_as};
use super::labels::{Recovered, Script, Server};

/// Buckets for sizes.
const SIZES: [f64; 11] = [
    1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0,
];

/// The servers, and calls to Redis.
#[derive(Debug)]
pub(super) struct Servers {
    pub(super) up: ByLabel<Server, Gauge>,
    pub(super) scripts: ByLabel<Script, Histogram>,
    pub(super) batch_calls: Histogram,
    pub(super) batch_charges: Histogram,
    pub(super) recovered: ByLabel<Recovered, Counter>,
    pub(super) generations: Counter,
    pub(super) shards: Gauge,
    pub(super) rolled_back: Counter,
}

impl Servers {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let sizes = || Histogram::new(SIZES);
        Self {
            up: ByLabel::register(
                registry,
                "server_up",
                "Whether a server replied when this instance last tried: 1 or 0",
                Gauge::default,
            ),
            scripts: ByLabel::register(
                registry,
                "script_duration_seconds",
                "Round trips of script calls to Redis",
                latency,
            ),
            batch_calls: register_as(
                registry,
                "count_script_calls",
                "API calls in a batch for `count.lua`",
                sizes(),
            ),
            batch_charges: register_as(
                registry,
                "count_script_charges",
                "Charges in a batch for `count.lua`",
                sizes(),
            ),
            recovered: ByLabel::register(
                registry,
                "counters_opened",
                "Missing counters that were recovered in Redis, by their source",
                Counter::default,
            ),
            generations: register(
                registry,
                "generations",
                "Generations drawn for new data sets: Redis was empty, restarted or replaced",
            ),
            shards: register(
                registry,
                "redis_shards_reached",
                "Shards, of 256, whose Redis server is connected",
            ),
            rolled_back: register(
                registry,
                "data_sets_rolled_back",
                "Shards whose Redis server was found to lack what it had acknowledged",
            ),
        }
    }
}
