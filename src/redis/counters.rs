//! Reading counters and idempotency records.

use super::count::reply;
use super::count::types::{IdempotencyUse, Outcome};
use super::counter_value;
use super::error::Error;
use super::routes::Routes;
use super::shard::Shard;
use crate::domain::counter::{CounterId, Snapshot};
use crate::domain::ids::OrganizationId;
use crate::domain::verification::LiveCounter;

/// How many counters are read in one round trip, so that counting never waits for long behind it.
pub const READ_MAX: usize = 250;

impl Routes {
    /// The recorded outcomes of idempotency keys; none where there is no record.
    pub async fn answered(
        &self,
        uses: &[(&OrganizationId, &IdempotencyUse)],
    ) -> Result<Vec<Option<Outcome>>, Error> {
        let mut all = Vec::with_capacity(uses.len());
        for some in uses.chunks(READ_MAX) {
            let keys = some.iter().map(|(organization, used)| {
                let key = self.keys.idempotency(organization, &used.key);
                (Shard::of(organization), key)
            });
            let values: Vec<Option<String>> = self.values(keys.collect()).await?;
            for ((_, used), value) in some.iter().zip(values) {
                let outcome = value.map(|value| {
                    let corrupt = || format!("the record of the idempotency key {}", used.key);
                    reply::recorded(used, &value).ok_or_else(|| Error::Inconsistent(corrupt()))
                });
                all.push(outcome.transpose()?);
            }
        }
        Ok(all)
    }

    /// Reads counters; none where one is missing.
    pub async fn read(&self, counters: &[CounterId]) -> Result<Vec<Option<Snapshot>>, Error> {
        let counted = self.read_counted(counters, READ_MAX).await?;
        let snapshot = |counted: Option<LiveCounter>| Some(counted?.snapshot);
        Ok(counted.into_iter().map(snapshot).collect())
    }

    /// The same, each with the sequence that Redis believes to be stored, and so many in one round trip.
    pub async fn read_counted(
        &self,
        counters: &[CounterId],
        together: usize,
    ) -> Result<Vec<Option<LiveCounter>>, Error> {
        let mut all = Vec::with_capacity(counters.len());
        for some in counters.chunks(together.max(1)) {
            for counted in self.read_each(some).await? {
                all.push(counted.transpose()?);
            }
        }
        Ok(all)
    }

    /// Reads counters in one round trip, each of which may be corrupt.
    pub(super) async fn read_each(
        &self,
        counters: &[CounterId],
    ) -> Result<Vec<Option<Result<LiveCounter, Error>>>, Error> {
        let keys = counters
            .iter()
            .map(|it| (Shard::of(&it.organization), self.keys.counter(it)));
        let values: Vec<Option<Vec<u8>>> = self.values(keys.collect()).await?;
        let parse = |(counter, value): (&CounterId, Option<Vec<u8>>)| {
            let corrupt = || Error::Inconsistent(format!("the value of the counter {counter:?}"));
            Some(counter_value::parse(counter, &value?).ok_or_else(corrupt))
        };
        Ok(counters.iter().zip(values).map(parse).collect())
    }
}
