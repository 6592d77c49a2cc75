//! Metrics by label, found without a lock and without an allocation.

use std::marker::PhantomData;
use std::sync::OnceLock;

use prometheus_client::encoding::EncodeMetric;
use prometheus_client::metrics::TypedMetric;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

use super::labels::Label;

/// The labels of one metric: name and value of each.
pub(super) type Labels<const N: usize> = [(&'static str, String); N];

/// A family with `N` labels, and how its members are made.
pub(super) type Members<const N: usize, M> = Family<Labels<N>, M, fn() -> M>;

/// A metric for each value of one label. All exist from the start, so that a rate has a beginning.
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
        let member = |value: &L| {
            let value = value.as_str().to_owned();
            family.get_or_create_owned(&[(L::NAME, value)])
        };
        let members = L::ALL.iter().map(member).collect();
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

/// A short list that only grows: what finds no place in it shares one value. Whatever comes first, and
/// so probably often, is found fastest.
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

    /// The value of the key that `is_it` knows, made if it is new; `None` stands for all without a place.
    pub(super) fn get(
        &self,
        is_it: impl Fn(&K) -> bool,
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
            if is_it(key) {
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
    fn what_finds_no_place_shares_one_value() {
        let slots: BoundedMap<u8, String> = BoundedMap::new(2);
        let get = |wanted: u8| {
            slots.get(
                |key| *key == wanted,
                || wanted,
                |key| key.map_or("rest".to_owned(), ToString::to_string),
            )
        };
        for _ in 0..2 {
            assert_eq!([7, 8, 9, 10].map(get), ["7", "8", "rest", "rest"]);
        }
    }
}
