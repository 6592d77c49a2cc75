//! Erasing deleted organizations: counters by their names, and everything else by a scan of all keys, which is the only way
//! to find idempotency records.

use std::collections::BTreeMap;
use std::ops::AddAssign;

use super::error::Error;
use super::routes::Routes;
use super::scripts::ERASE;
use super::shard::Shard;
use crate::domain::counter::CounterId;
use crate::domain::ids::OrganizationId;

/// How many keys one script erases at most.
const ERASE_MAX: usize = 200;

/// What was erased.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Erased {
    /// Counters.
    pub counters: usize,
    /// Idempotency records.
    pub records: usize,
}

impl AddAssign for Erased {
    fn add_assign(&mut self, other: Self) {
        self.counters += other.counters;
        self.records += other.records;
    }
}

impl Routes {
    /// Erases those of these counters that are older than `incarnation`; returns how many.
    pub async fn erase(
        &self,
        organization: &OrganizationId,
        incarnation: u64,
        counters: &[CounterId],
    ) -> Result<usize, Error> {
        let keys: Vec<String> = counters.iter().map(|it| self.keys.counter(it)).collect();
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        let erased = self.erase_keys(organization, incarnation, &keys, &[]);
        Ok(erased.await?.counters)
    }

    /// Scans all keys once, and erases everything of these organizations that is older than their incarnations. Fails where
    /// a part of the keys cannot be reached.
    pub async fn erase_traces(
        &self,
        organizations: &BTreeMap<OrganizationId, u64>,
    ) -> Result<Erased, Error> {
        let keys = &self.keys;
        // Redis filters by one organization; several are filtered here, which costs no more.
        let pattern = match organizations.first_key_value() {
            Some((one, _)) if organizations.len() == 1 => keys.pattern_of(one),
            Some(_) => keys.pattern_of_all(),
            None => return Ok(Erased::default()),
        };
        let mut erased = Erased::default();
        Shard::all().try_for_each(|it| self.reach(it))?;
        for (_, channel) in self.masters() {
            let (channel, mut cursor) = (channel?, 0_u64);
            loop {
                let (next, found) = channel.scan(&pattern, cursor).await?;
                erased += self.erase_found(organizations, &found).await?;
                cursor = next;
                if cursor == 0 {
                    break;
                }
            }
        }
        Ok(erased)
    }

    async fn erase_found(
        &self,
        organizations: &BTreeMap<OrganizationId, u64>,
        found: &[String],
    ) -> Result<Erased, Error> {
        let mut by_organization: BTreeMap<OrganizationId, (Vec<&str>, Vec<&str>)> = BTreeMap::new();
        for key in found {
            if let Some(counter) = self.keys.parse_counter(key) {
                let traces = by_organization.entry(counter.organization).or_default();
                traces.0.push(key);
            } else if let Some(organization) = self.keys.parse_idempotency_owner(key) {
                by_organization.entry(organization).or_default().1.push(key);
            }
        }
        let mut erased = Erased::default();
        for (organization, (counters, records)) in by_organization {
            if let Some(incarnation) = organizations.get(&organization) {
                let erasing = self.erase_keys(&organization, *incarnation, &counters, &records);
                erased += erasing.await?;
            }
        }
        Ok(erased)
    }

    async fn erase_keys(
        &self,
        organization: &OrganizationId,
        incarnation: u64,
        counters: &[&str],
        records: &[&str],
    ) -> Result<Erased, Error> {
        let shard = Shard::of(organization);
        let dirty = self.keys.dirty(shard);
        let counters = counters.chunks(ERASE_MAX).map(|some| (some, &[][..]));
        let records = records.chunks(ERASE_MAX).map(|some| (&[][..], some));
        let mut erased = Erased::default();
        for (counters, records) in counters.chain(records) {
            let keys = [&[dirty.as_str()], counters, records].concat();
            let call = ERASE.call(&keys, (incarnation, counters.len()));
            let erasing = self.invoke(shard, &ERASE, &call);
            let (counters, records): (usize, usize) = erasing.await?;
            erased.counters += counters;
            erased.records += records;
        }
        Ok(erased)
    }
}
