//! Decisions by meter, operation and outcome.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;
use strum::VariantArray as _;

use super::families::{BoundedMap, Members, OTHER};
use super::labels::{Label as _, Outcome};
use crate::domain::decision::Operation;
use crate::domain::ids::MeterId;

/// The most meters with a label of their own, because clients name them.
const METERS_MAX: usize = 50;

#[derive(Debug)]
pub(super) struct Decisions {
    /// Calls, whatever they name.
    pub(super) calls: Counter,
    counts: Members<3, Counter>,
    /// A counter for each operation and outcome.
    meters: BoundedMap<MeterId, Box<[Counter]>>,
}

impl Decisions {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let counts = Members::new_with_constructor(Counter::default as fn() -> Counter);
        registry.register(
            "decisions",
            "Decisions about meters, by operation and outcome",
            counts.clone(),
        );
        let calls = Counter::default();
        registry.register(
            "calls",
            "Calls that count or check; each item of a batch is one",
            calls.clone(),
        );
        Self {
            calls,
            counts,
            meters: BoundedMap::new(METERS_MAX),
        }
    }

    pub(super) fn decided(
        &self,
        operation: Operation,
        outcome: Outcome,
        meter: &MeterId,
        calls: u64,
    ) {
        let counters = self.meters.get(
            |known| known == meter,
            || meter.clone(),
            |key| self.counters(key.map_or(OTHER, MeterId::as_str)),
        );
        counters[operation.index() * Outcome::VARIANTS.len() + outcome.index()].inc_by(calls);
    }

    /// In the order of operations, and of outcomes within each.
    fn counters(&self, meter: &str) -> Box<[Counter]> {
        let operations = Operation::VARIANTS.iter();
        let pairs = operations.flat_map(|it| Outcome::VARIANTS.iter().map(move |own| (it, own)));
        pairs
            .map(|(operation, outcome)| {
                let labels = [
                    ("meter", meter.to_owned()),
                    operation.pair(),
                    outcome.pair(),
                ];
                self.counts.get_or_create_owned(&labels)
            })
            .collect()
    }
}
