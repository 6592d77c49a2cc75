//! Reading counters and idempotency records.

use ::redis::cmd;

use super::channel::Channel;
use super::count::reply;
use super::count::types::{IdempotencyUse, Outcome};
use super::counter_value;
use super::error::Error;
use crate::domain::counter::{CounterId, Snapshot};
use crate::domain::ids::OrganizationId;
use crate::domain::verification::LiveCounter;

/// How many counters are read in one round trip, so that counting never waits for long behind it.
pub const READ_MAX: usize = 250;

impl Channel {
    /// The recorded outcomes of idempotency keys; none where there is no record.
    pub async fn answered(
        &self,
        uses: &[(&OrganizationId, &IdempotencyUse)],
    ) -> Result<Vec<Option<Outcome>>, Error> {
        let mut all = Vec::with_capacity(uses.len());
        for some in uses.chunks(READ_MAX) {
            let mut command = cmd("MGET");
            for (organization, used) in some {
                command.arg(self.keys.idempotency(organization, &used.key));
            }
            let values: Vec<Option<String>> = self.query(&command).await?;
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
        if counters.is_empty() {
            return Ok(Vec::new());
        }
        let keys = counters.iter().map(|counter| self.keys.counter(counter));
        let keys: Vec<String> = keys.collect();
        let values: Vec<Option<Vec<u8>>> = self.query(cmd("MGET").arg(keys)).await?;
        let parse = |(counter, value): (&CounterId, Option<Vec<u8>>)| {
            let corrupt = || Error::Inconsistent(format!("the value of the counter {counter:?}"));
            Some(counter_value::parse(counter, &value?).ok_or_else(corrupt))
        };
        Ok(counters.iter().zip(values).map(parse).collect())
    }
}
