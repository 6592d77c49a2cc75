//! Counting what was admitted while Redis was away.

use chrono::{DateTime, Utc};

use super::codec::Array;
use super::connection::Connection;
use super::count::types::IdempotencyUse;
use super::error::Error;
use super::scripts::DRAIN;
use super::shard::Shard;
use crate::domain::counter::CounterId;
use crate::domain::ids::OrganizationId;

/// Operations of one organization to count.
#[derive(Debug)]
pub struct Drain<'a> {
    /// The organization.
    pub organization: &'a OrganizationId,
    /// The generation that the caller expects.
    pub generation: u64,
    /// The policy version that the caller resolved before it read the operations.
    pub policy_version: u64,
    /// The counters, each with the thresholds in percent of its limit, separated by spaces.
    pub counters: Vec<(&'a CounterId, String)>,
    /// In the order of their ids.
    pub operations: Vec<DrainedOperation<'a>>,
}

/// One of these operations.
#[derive(Debug)]
pub struct DrainedOperation<'a> {
    /// Its id; grows from one operation of the organization to the next.
    pub id: u64,
    /// Its idempotency key, if the caller sent one.
    pub idempotency: Option<&'a IdempotencyUse>,
    /// What it counts on different counters.
    pub increments: Vec<Increment>,
}

/// What an operation counts on one counter.
#[derive(Debug, Clone, Copy)]
pub struct Increment {
    /// Its position among the counters.
    pub counter: usize,
    /// Units to add.
    pub amount: u64,
    /// The start of the slot that they are counted in.
    pub slot: DateTime<Utc>,
}

/// The reply of `drain.lua`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DrainReply {
    /// All operations are counted.
    Drained,
    /// The shard has another generation, or none.
    Generation,
    /// Redis has no policy of the organization, or a newer one, or the organization is fenced.
    Policy,
    /// The counter at this position, and maybe others behind it, must be recovered first.
    Restore(usize),
    /// The period of the counter at this position is closed.
    Closed(usize),
}

impl DrainReply {
    fn parse(reply: &str) -> Option<Self> {
        let (word, position) = reply.split_once(' ').unwrap_or((reply, ""));
        // Lua counts from 1.
        let position = || position.parse::<usize>().ok()?.checked_sub(1);
        Some(match word {
            "drained" => Self::Drained,
            "generation" => Self::Generation,
            "policy" => Self::Policy,
            "restore" => Self::Restore(position()?),
            "closed" => Self::Closed(position()?),
            _ => return None,
        })
    }
}

impl Connection {
    /// Counts operations that are pending in Postgres, each once. Idempotent.
    pub async fn drain(
        &self,
        drain: &Drain<'_>,
        now: DateTime<Utc>,
        record_lifetime_ms: i64,
    ) -> Result<DrainReply, Error> {
        let (organization, shard) = (drain.organization, Shard::of(drain.organization));
        let mut keys = vec![
            self.keys.generation(shard),
            self.keys.organizations(organization),
            self.keys.dirty(shard),
            self.keys.fences(shard),
        ];
        let first = keys.len();
        let (mut head, mut operations) = (Array::default(), Array::default());
        head.push(drain.counters.len() as u64)
            .push(drain.operations.len() as u64);
        for (counter, percents) in &drain.counters {
            keys.push(self.keys.counter(counter));
            head.push_text(percents);
        }
        for operation in &drain.operations {
            operations.push(operation.id);
            match operation.idempotency {
                None => operations.push(0_u64),
                Some(used) => {
                    keys.push(self.keys.idempotency(organization, &used.key));
                    let record = keys.len().saturating_sub(first);
                    operations.push(record as u64).push_text(&used.fingerprint)
                }
            };
            operations.push(operation.increments.len() as u64);
            for increment in &operation.increments {
                operations
                    .push(increment.counter.saturating_add(1) as u64)
                    .push(increment.amount)
                    .push_signed(increment.slot.timestamp_millis());
            }
        }
        let arguments = (
            now.timestamp_millis(),
            drain.generation,
            drain.policy_version,
            organization.as_str(),
            record_lifetime_ms,
            head.followed_by(&operations),
        );
        let reply: String = self
            .invoke(shard, &DRAIN, &DRAIN.call(&keys, arguments))
            .await?;
        DrainReply::parse(&reply)
            .ok_or_else(|| Error::Inconsistent(format!("a script replied {reply:?}")))
    }
}
