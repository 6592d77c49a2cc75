//! Metrics by label, looked up without lock or allocation.

use std::marker::PhantomData;
use std::sync::OnceLock;

use prometheus_client::encoding::EncodeMetric;
use prometheus_client::metrics::TypedMetric;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Metric, Registry};

use super::labels::Label;

/// The label of values beyond a bound.
pub(super) const OTHER: &str = "other";

/// Buckets for requests and scripts, seconds.
const LATENCIES: [f64; 15] = [
    0.0001, 0.000_25, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
    5.0,
];

/// The labels of a metric: name and value of each.
pub(super) type Labels<const N: usize> = [(&'static str, String); N];

/// A family with `N` labels, and the constructor of its members.
pub(super) type Members<const N: usize, M> = Family<Labels<N>, M, fn() -> M>;

/// A histogram for requests and scripts.
pub(super) fn latency() -> Histogram {
    Histogram::new(LATENCIES)
}

/// Registers a metric that begins at zero.
pub(super) fn register<M: Metric + Clone + Default>(
    registry: &mut Registry,
    name: &str,
    help: &str,
) -> M {
    register_as(registry, name, help, M::default())
}

/// Registers a metric.
pub(super) fn register_as<M: Metric + Clone>(
    registry: &mut Registry,
    name: &str,
    help: &str,
    metric: M,
) -> M {
    registry.register(name, help, metric.clone());
    metric
}

/// A metric for each value of one label. All exist from the start, so that rates start at zero.
#[derive(Debug)]
pub(super) struct ByLabel<L, M> {
    members: Box<[M]>,
    label: PhantomData<L>,
}

impl<L: Label, M> ByLabel<L, M>
where
    M: Clone + EncodeMetric + TypedMetric + std::fmt::Debug + Send + Sync + 'static,
{
    pub(super) fn register(
        registry: &mut Registry,
        name: &str,
        help: &str,
        make: fn() -> M,
    ) -> Self {
        let family = Members::new_with_constructor(make);
        let member = |value: &L| family.get_or_create_owned(&[value.pair()]);
        let members = L::VARIANTS.iter().map(member).collect();
        registry.register(name, help, family);
        Self {
            members,
            label: PhantomData,
        }
    }

    pub(super) fn get(&self, value: L) -> &M {
        &self.members[value.index()]
    }
}

/// An append-only map of bounded size; keys beyond the bound share one value. A linear scan: early keys, which are
/// probably frequent, are found fastest.
#[derive(Debug)]
pub(super) struct BoundedMap<K, V> {
    slots: Box<[OnceLock<(K, V)>]>,
    rest: OnceLock<V>,
}

impl<K, V> BoundedMap<K, V> {
    pub(super) fn new(size: usize) -> Self {
        Self {
            slots: (0..size).map(|_| OnceLock::new()).collect(),
            rest: OnceLock::new(),
        }
    }

    /// The value of the key that `matches` accepts, inserted if new. `make` gets `None` for keys beyond the bound.
    pub(super) fn get(
        &self,
        matches: impl Fn(&K) -> bool,
        key: impl Fn() -> K,
        make: impl Fn(Option<&K>) -> V,
    ) -> &V {
        let add = || {
            let key = key();
            let value = make(Some(&key));
            (key, value)
        };
        for slot in &self.slots {
            let (key, value) = slot.get_or_init(add);
            if matches(key) {
                return value;
            }
        }
        self.rest.get_or_init(|| make(None))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_beyond_the_bound_share_one_value() {
        let slots: BoundedMap<u8, String> = BoundedMap::new(2);
        let get = |key: u8| {
            slots.get(
                |known| *known == key,
                || key,
                |known| known.map_or("rest".to_owned(), ToString::to_string),
            )
        };
        for _ in 0..2 {
            assert_eq!([7, 8, 9, 10].map(get), ["7", "8", "rest", "rest"]);
        }
    }
}
