//! The parts that all organizations are divided into. The keys of a shard are in one slot of a cluster.

use xxhash_rust::xxh3::xxh3_64;

use crate::domain::ids::OrganizationId;

/// The number of shards; part of the layout, never changed on a live data set.
pub const SHARDS: u16 = 256;

/// The number of slots that a cluster divides its keys into.
const SLOTS: u16 = 16_384;

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

    /// The first one, which has the keys that concern all.
    pub(super) const FIRST: Self = Self(0);

    /// The slot of its keys in a cluster: CRC-16 (XMODEM) of the hash tag, as in the specification of Redis Cluster.
    pub(super) fn slot(self) -> u16 {
        let tag = format!("{:02x}", self.0);
        let crc = tag.bytes().fold(0_u16, |crc, byte| {
            (0..8).fold(crc ^ (u16::from(byte) << 8), |crc, _| {
                let shifted = crc << 1;
                if crc & 0x8000 == 0 {
                    shifted
                } else {
                    shifted ^ 0x1021
                }
            })
        });
        crc % SLOTS
    }

    /// The shard of this number.
    pub(super) fn numbered(number: u8) -> Self {
        Self(number)
    }

    pub(super) fn number(self) -> u8 {
        self.0
    }

    /// Its position among [`Shard::all`].
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shard_has_the_slot_that_a_cluster_computes() {
        // As `CLUSTER KEYSLOT` replies.
        let slots: Vec<u16> = Shard::all().map(Shard::slot).collect();
        assert_eq!(
            (slots[0x00], slots[0x2a], slots[0xff]),
            (13_254, 8048, 11_756)
        );
        let distinct: std::collections::BTreeSet<_> = slots.iter().collect();
        assert_eq!(distinct.len(), usize::from(SHARDS));
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
