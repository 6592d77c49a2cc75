//! Erasing what deleted organizations have left: counters by their names, and everything else by a walk
//! through all keys, which alone finds idempotency records.

use std::collections::BTreeMap;

use super::{Connection, Error, Redis, Shard, scripts};
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

impl Redis {
    /// Erases those of these counters that are of a life before `incarnation`; returns how many.
    pub async fn erase(
        &self,
        connection: &Connection,
        organization: &OrganizationId,
        incarnation: u64,
        counters: &[CounterId],
    ) -> Result<usize, Error> {
        let keys: Vec<String> = counters.iter().map(|it| self.0.keys.counter(it)).collect();
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        let erased = self
            .erase_keys(connection, organization, incarnation, &keys, &[])
            .await?;
        Ok(erased.counters)
    }

    /// Walks through all keys once, and erases whatever these organizations, each with its incarnation, have left
    /// of a life before it.
    pub async fn erase_traces(
        &self,
        connection: &Connection,
        organizations: &BTreeMap<OrganizationId, u64>,
    ) -> Result<Erased, Error> {
        let keys = &self.0.keys;
        // One is looked for by Redis; many cost no more than one, if they are picked out here.
        let pattern = match organizations.first_key_value() {
            Some((one, _)) if organizations.len() == 1 => keys.pattern_of(one),
            Some(_) => keys.pattern_of_all(),
            None => return Ok(Erased::default()),
        };
        let (mut erased, mut cursor) = (Erased::default(), 0_u64);
        loop {
            let (next, found) = self.walk(connection, &pattern, cursor).await?;
            let mut by_organization: BTreeMap<OrganizationId, (Vec<&str>, Vec<&str>)> =
                BTreeMap::new();
            for key in &found {
                if let Some(counter) = keys.parse_counter(key) {
                    let traces = by_organization.entry(counter.organization).or_default();
                    traces.0.push(key);
                } else if let Some(organization) = keys.parse_idempotency_owner(key) {
                    by_organization.entry(organization).or_default().1.push(key);
                }
            }
            for (organization, (counters, records)) in by_organization {
                if let Some(incarnation) = organizations.get(&organization) {
                    let some = self
                        .erase_keys(connection, &organization, *incarnation, &counters, &records)
                        .await?;
                    erased.counters += some.counters;
                    erased.records += some.records;
                }
            }
            cursor = next;
            if cursor == 0 {
                return Ok(erased);
            }
        }
    }

    /// How many keys Redis holds, which is what a walk costs.
    pub async fn size(&self, connection: &Connection) -> Result<usize, Error> {
        let mut pipeline = redis::pipe();
        pipeline.cmd("DBSIZE");
        let (size,): (usize,) = connection.run(&pipeline).await?;
        Ok(size)
    }

    async fn erase_keys(
        &self,
        connection: &Connection,
        organization: &OrganizationId,
        incarnation: u64,
        counters: &[&str],
        records: &[&str],
    ) -> Result<Erased, Error> {
        let shard = Shard::of(organization);
        let counters = counters.chunks(ERASE_MAX).map(|some| (some, &[][..]));
        let records = records.chunks(ERASE_MAX).map(|some| (&[][..], some));
        let mut erased = Erased::default();
        for (counters, records) in counters.chain(records) {
            let (some, others) = scripts::erase(
                connection,
                &self.0.keys,
                shard,
                incarnation,
                counters,
                records,
            )
            .await?;
            erased.counters += some;
            erased.records += others;
        }
        Ok(erased)
    }
}
