//! The key grammar, and its inverse.
//!
//! Every key of an organization has the organization's shard as its hash tag, `{00}` to `{ff}`, so that on Redis Cluster a
//! counter shares a slot with the indexes that the same script writes, and the number of indexes is fixed. The shard is
//! `xxh3_64(id) mod 256`. The layout of keys is recorded at the first start, and another layout is refused.
//!
//! Keys that no organization owns are those of a shard as well. On one server, where a script may have keys of any shard,
//! the receipts and fences of all shards are with the first one; on a cluster each shard has its own.

use std::fmt::Write as _;

use chrono::DateTime;
use xxhash_rust::xxh3::xxh3_64;

use super::shard::{SHARDS, Shard};
use crate::domain::counter::CounterId;
use crate::domain::ids::{IdempotencyKey, OrganizationId};

/// The number of hashes that the organizations of a shard are spread over, so that each stays small; part of the layout.
const HASHES: u64 = 64;

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
    clustered: bool,
}

impl Keys {
    /// Keys that start with `prefix`, such as `tm:`, on one server or on a cluster.
    pub(super) fn new(prefix: &str, clustered: bool) -> Self {
        Self {
            prefix: prefix.to_owned(),
            clustered,
        }
    }

    /// Whether the keys of a script call must be of one shard.
    pub(super) fn clustered(&self) -> bool {
        self.clustered
    }

    /// The shard that has the receipts and fences of this one.
    pub(super) fn home(&self, shard: Shard) -> Shard {
        if self.clustered { shard } else { Shard::FIRST }
    }

    /// Every shard that is the home of another, or of itself.
    pub(super) fn homes(&self) -> impl Iterator<Item = Shard> + use<> {
        Shard::all().take(if self.clustered {
            usize::from(SHARDS)
        } else {
            1
        })
    }

    /// The key that has the layout; of [`Shard::FIRST`].
    pub(super) fn layout(&self) -> String {
        self.sharded(Shard::FIRST, "layout")
    }

    /// Its value.
    pub(super) fn layout_needed(&self) -> &'static str {
        if self.clustered {
            "4 xxh3_64 256 64 cluster"
        } else {
            "4 xxh3_64 256 64 server"
        }
    }

    /// The channel on which changes of policies are announced.
    pub(super) fn announcements(&self) -> String {
        format!("{}policies", self.prefix)
    }

    /// The mirror of the API keys, of [`Shard::FIRST`]: one hash, so that its revision is lost with the records.
    pub(super) fn api_keys(&self) -> String {
        self.sharded(Shard::FIRST, "keys")
    }

    /// The fences of a shard's organizations. One hash for many, because nearly always there is none.
    pub(super) fn fences(&self, shard: Shard) -> String {
        self.sharded(self.home(shard), "fences")
    }

    /// Written to check that the server of a shard takes writes.
    pub(super) fn writable(&self, shard: Shard) -> String {
        self.sharded(shard, "writable")
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

    /// The lease of the garbage collection of a node, which has this shard.
    pub(super) fn gc_lease(&self, shard: Shard) -> String {
        self.sharded(shard, "forgetting")
    }

    pub(super) fn lease(&self, shard: Shard) -> String {
        self.sharded(shard, "lease")
    }

    /// The receipt of a lane, of its home.
    pub(super) fn receipt(&self, home: Shard, lane: &str) -> String {
        let mut key = self.sharded(home, "r:");
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
        let shard = Shard::numbered(u8::from_str_radix(shard, 16).ok()?);
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
        let known = parts.next().is_none()
            && *shard == format!("{:02x}", Shard::of(&organization).number());
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
        (*shard == format!("{:02x}", Shard::of(&organization).number())).then_some(organization)
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
        let shard = Shard::of(organization).number();
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
        for digit in [shard.number() >> 4, shard.number() & 0xf] {
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
            let keys = Keys::new(&prefix, false);
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
        let keys = Keys::new("tm:", false);
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
        let keys = Keys::new("tm:", false);
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
        let keys = Keys::new("tm:", false);
        let organization: OrganizationId = "org_1".parse().unwrap();
        assert_eq!(keys.parse_counter(&keys.organizations(&organization)), None);
        assert_eq!(keys.parse_counter("tm:{zz}:u:org_1:api:0"), None);
        assert_eq!(keys.parse_counter("other"), None);
    }
}
