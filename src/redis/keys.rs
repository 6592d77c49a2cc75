//! The key grammar, and its inverse.
//!
//! Every key of an organization has the organization's shard as its hash tag, `{00}` to `{ff}`, so that on Redis Cluster a
//! counter shares a slot with the indexes that the same script writes, and the number of indexes is fixed. The shard is
//! `xxh3_64(id) mod 256`. The layout of keys is recorded at the first start, and another layout is refused.

use std::fmt::Write as _;

use chrono::DateTime;
use xxhash_rust::xxh3::xxh3_64;

use crate::domain::counter::CounterId;
use crate::domain::ids::{IdempotencyKey, OrganizationId};

/// The number of shards; part of the layout, never changed on a live data set.
pub const SHARDS: u16 = 256;

/// The number of hashes that the organizations of a shard are spread over, so that each stays small; part of the layout.
const HASHES: u64 = 64;

/// The value of the layout key.
pub(super) const LAYOUT: &str = "3 xxh3_64 256 64";

/// One of the [`SHARDS`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Shard(u8);

impl Shard {
    /// The shard of an organization.
    pub fn of(organization: &OrganizationId) -> Self {
        let [low, ..] = xxh3_64(organization.as_str().as_bytes()).to_le_bytes();
        Self(low)
    }

    /// All shards.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..=u8::MAX).map(Self)
    }

    /// The one with the receipts of all lanes.
    pub(super) const OF_RECEIPTS: Self = Self(0);

    /// Its position among [`Shard::all`].
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// A single key.
fn written(write: impl FnOnce(&mut String)) -> String {
    let mut key = String::with_capacity(96);
    write(&mut key);
    key
}

/// Keys in one allocation, because a batch has hundreds.
#[derive(Debug, Default)]
pub(super) struct KeyList {
    text: String,
    /// The end of each key.
    ends: Vec<usize>,
}

impl KeyList {
    /// Adds a key; `write` appends it.
    pub(super) fn push(&mut self, write: impl FnOnce(&mut String)) {
        write(&mut self.text);
        self.ends.push(self.text.len());
    }

    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    /// Their total length.
    pub(super) fn size(&self) -> usize {
        self.text.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &str> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        let ranges = starts.zip(&self.ends);
        ranges.filter_map(|(start, end)| self.text.get(start..*end))
    }
}

/// Formats and parses keys with one prefix.
#[derive(Debug, Clone)]
pub(super) struct Keys {
    prefix: String,
}

impl Keys {
    /// Keys that start with `prefix`, such as `tm:`.
    pub(super) fn new(prefix: &str) -> Self {
        Self {
            prefix: prefix.to_owned(),
        }
    }

    pub(super) fn layout(&self) -> String {
        format!("{}layout", self.prefix)
    }

    /// The channel on which changes of policies are announced.
    pub(super) fn announcements(&self) -> String {
        format!("{}policies", self.prefix)
    }

    pub(super) fn policy_watermark(&self) -> String {
        format!("{}applied", self.prefix)
    }

    /// The mirror of the API keys: one hash, so that its revision is lost with the records.
    pub(super) fn api_keys(&self) -> String {
        format!("{}keys", self.prefix)
    }

    /// The fences, by organization. One hash for all, because nearly always there is none.
    pub(super) fn fences(&self) -> String {
        self.sharded(Shard::OF_RECEIPTS, "fences")
    }

    /// Written to check that Redis takes writes.
    pub(super) fn writable(&self) -> String {
        format!("{}writable", self.prefix)
    }

    pub(super) fn generation(&self, shard: Shard) -> String {
        self.sharded(shard, "gen")
    }

    pub(super) fn dirty(&self, shard: Shard) -> String {
        written(|key| self.write_dirty(shard, key))
    }

    /// Appends the same.
    pub(super) fn write_dirty(&self, shard: Shard, key: &mut String) {
        self.write_sharded(shard, "dirty", key);
    }

    /// The lease of garbage collection.
    pub(super) fn gc_lease(&self) -> String {
        format!("{}forgetting", self.prefix)
    }

    pub(super) fn lease(&self, shard: Shard) -> String {
        self.sharded(shard, "lease")
    }

    pub(super) fn receipt(&self, lane: &str) -> String {
        let mut key = self.sharded(Shard::OF_RECEIPTS, "r:");
        key.push_str(lane);
        key
    }

    /// The hash that has an organization in the field of its id.
    pub(super) fn organizations(&self, organization: &OrganizationId) -> String {
        // Other bits than those of the shard.
        let hash = (xxh3_64(organization.as_str().as_bytes()) >> 8) % HASHES;
        self.hash_of_organizations(Shard::of(organization), hash)
    }

    /// The shard of such a hash; none for any other key.
    pub(super) fn parse_organizations(&self, key: &str) -> Option<Shard> {
        let (shard, hash) = self.split(key, "}:o:")?;
        let shard = Shard(u8::from_str_radix(shard, 16).ok()?);
        let hash = u64::from_str_radix(hash, 16).ok()?;
        (*key == self.hash_of_organizations(shard, hash)).then_some(shard)
    }

    fn hash_of_organizations(&self, shard: Shard, hash: u64) -> String {
        written(|key| {
            self.write_sharded(shard, "o:", key);
            let _ = write!(key, "{hash:02x}");
        })
    }

    /// The policies that organizations of a shard share.
    pub(super) fn policies(&self, shard: Shard) -> String {
        self.sharded(shard, "policies")
    }

    pub(super) fn idempotency(
        &self,
        organization: &OrganizationId,
        name: &IdempotencyKey,
    ) -> String {
        let mut key = self.sharded(Shard::of(organization), "i:");
        let _ = write!(key, "{organization}:{name}");
        key
    }

    pub(super) fn counter(&self, counter: &CounterId) -> String {
        written(|key| self.write_counter(Shard::of(&counter.organization), counter, key))
    }

    /// Appends the same; the shard is that of its organization.
    pub(super) fn write_counter(&self, shard: Shard, counter: &CounterId, key: &mut String) {
        self.write_sharded(shard, "u:", key);
        key.push_str(counter.organization.as_str());
        key.push(':');
        key.push_str(counter.meter.as_str());
        key.push(':');
        key.push_str(itoa::Buffer::new().format(counter.start.timestamp_millis()));
    }

    /// The inverse of [`Keys::counter`]; none for any other key.
    pub(super) fn parse_counter(&self, key: &str) -> Option<CounterId> {
        let (shard, rest) = self.split(key, "}:u:")?;
        let mut parts = rest.split(':');
        let (organization, meter, start) = (parts.next()?, parts.next()?, parts.next()?);
        let organization: OrganizationId = organization.parse().ok()?;
        let start = DateTime::from_timestamp_millis(start.parse().ok()?)?;
        let known =
            parts.next().is_none() && *shard == format!("{:02x}", Shard::of(&organization).0);
        known.then_some(CounterId {
            organization,
            meter: meter.parse().ok()?,
            start,
        })
    }

    /// The organization of an idempotency record; none for any other key.
    pub(super) fn parse_idempotency_owner(&self, key: &str) -> Option<OrganizationId> {
        let (shard, rest) = self.split(key, "}:i:")?;
        let organization: OrganizationId = rest.split_once(':')?.0.parse().ok()?;
        (*shard == format!("{:02x}", Shard::of(&organization).0)).then_some(organization)
    }

    /// The text of a key's shard, and what follows the mark of its kind.
    fn split<'a>(&self, key: &'a str, mark: &str) -> Option<(&'a str, &'a str)> {
        key.strip_prefix(&self.prefix)?
            .strip_prefix('{')?
            .split_once(mark)
    }

    /// Matches every counter and every idempotency record of an organization.
    pub(super) fn pattern_of(&self, organization: &OrganizationId) -> String {
        // No id has a special character of patterns.
        let shard = Shard::of(organization).0;
        format!("{}{{{shard:02x}}}:[iu]:{organization}:*", self.literal())
    }

    /// Matches every counter and every hash of organizations.
    pub(super) fn pattern_of_collected(&self) -> String {
        format!("{}{{*}}:[uo]:*", self.literal())
    }

    /// Matches every counter and every idempotency record of all organizations.
    pub(super) fn pattern_of_all(&self) -> String {
        format!("{}{{*}}:[iu]:*", self.literal())
    }

    /// The prefix, escaped for a pattern.
    fn literal(&self) -> String {
        let mut literal = String::new();
        for character in self.prefix.chars() {
            if r"*?[]\^-".contains(character) {
                literal.push('\\');
            }
            literal.push(character);
        }
        literal
    }

    fn sharded(&self, shard: Shard, name: &str) -> String {
        written(|key| self.write_sharded(shard, name, key))
    }

    fn write_sharded(&self, shard: Shard, name: &str, key: &mut String) {
        // Without the machinery of formatting, because every counted call has two keys.
        key.push_str(&self.prefix);
        key.push('{');
        for digit in [shard.0 >> 4, shard.0 & 0xf] {
            key.extend(char::from_digit(digit.into(), 16));
        }
        key.push_str("}:");
        key.push_str(name);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_counters_key_parses_back(
            organization in "[A-Za-z0-9][A-Za-z0-9_.@-]{0,127}",
            meter in "[a-z][a-z0-9_.-]{0,63}",
            start in -62_135_596_800_000_i64..253_402_300_799_999,
            prefix in "[a-z{}:]{0,8}",
        ) {
            prop_assume!(!prefix.contains('}'));
            let keys = Keys::new(&prefix);
            let counter = CounterId {
                organization: organization.parse().unwrap(),
                meter: meter.parse().unwrap(),
                start: DateTime::from_timestamp_millis(start).unwrap(),
            };
            prop_assert_eq!(keys.parse_counter(&keys.counter(&counter)), Some(counter));
        }
    }

    #[test]
    fn the_key_of_an_idempotency_record_names_its_organization() {
        let keys = Keys::new("tm:");
        let organization: OrganizationId = "org_1".parse().unwrap();
        for name in ["a", "a:b", ":u:"] {
            let key = keys.idempotency(&organization, &name.parse().unwrap());
            assert_eq!(
                keys.parse_idempotency_owner(&key),
                Some(organization.clone())
            );
            assert_eq!(keys.parse_counter(&key), None);
        }
        assert_eq!(keys.parse_idempotency_owner("tm:{00}:i:org_1:a"), None);
        assert_eq!(
            keys.parse_idempotency_owner(&keys.organizations(&organization)),
            None
        );
    }

    #[test]
    fn a_hash_of_organizations_tells_its_shard() {
        let keys = Keys::new("tm:");
        let organization: OrganizationId = "org_1".parse().unwrap();
        let key = keys.organizations(&organization);
        assert_eq!(
            keys.parse_organizations(&key),
            Some(Shard::of(&organization))
        );
        for other in [
            "tm:{00}:o:0",
            "tm:{0}:o:00",
            "tm:{00}:u:00",
            "tm:{00}:o:org_1",
        ] {
            assert_eq!(keys.parse_organizations(other), None, "{other}");
        }
    }

    #[test]
    fn what_is_not_a_counter_does_not_parse() {
        let keys = Keys::new("tm:");
        let organization: OrganizationId = "org_1".parse().unwrap();
        assert_eq!(keys.parse_counter(&keys.organizations(&organization)), None);
        assert_eq!(keys.parse_counter("tm:{zz}:u:org_1:api:0"), None);
        assert_eq!(keys.parse_counter("other"), None);
    }

    #[test]
    fn the_shard_of_an_organization_never_changes() {
        let shards: Vec<usize> = ["org_1", "org_2", "acme"]
            .iter()
            .map(|id| Shard::of(&id.parse().unwrap()).index())
            .collect();
        assert_eq!(shards, [235, 28, 225]);
    }
}
