//! An operation on counters, and its outcome.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use xxhash_rust::xxh3::xxh3_64;

use crate::domain::counter::{CounterId, Stamp};
use crate::domain::decision::{self, Demand};
use crate::domain::ids::{IdempotencyKey, OrganizationId};
use crate::domain::quantity::Count;
use crate::domain::threshold::WatchedThresholds;

/// Counts all of its charges or none.
#[derive(Debug, Clone)]
pub struct Operation {
    /// The organization that the counters belong to.
    pub organization: OrganizationId,
    /// Track, consume, check or refund.
    pub kind: decision::Operation,
    /// On distinct counters of that organization.
    pub charges: Vec<Charge>,
    /// Makes a retry harmless.
    pub idempotency: Option<IdempotencyUse>,
    /// How many equal calls this stands for, each of which succeeds or fails on its own. More than one only
    /// for a track or a consume with a single charge that needs no more than its amount, and no idempotency key.
    pub times: u32,
}

/// What an operation counts on one counter.
#[derive(Debug, Clone)]
pub struct Charge {
    /// The counter.
    pub counter: CounterId,
    /// Units to count, and units that must fit.
    pub demand: Demand,
    /// What decides, as far as the caller knows.
    pub stamp: Stamp,
    /// The start of the hour that the units belong to.
    pub hour: DateTime<Utc>,
    /// The thresholds of that stamp's limit.
    pub watched: Arc<WatchedThresholds>,
}

/// The use of an idempotency key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdempotencyUse {
    /// Chosen by the client.
    pub key: IdempotencyKey,
    /// A hash of the payload, without `|`.
    pub fingerprint: String,
}

impl IdempotencyUse {
    /// For a payload that contains everything that a retry must repeat.
    pub fn new(key: IdempotencyKey, payload: &str) -> Self {
        Self {
            key,
            fingerprint: format!("{:016x}", xxh3_64(payload.as_bytes())),
        }
    }
}

/// The outcome of one operation. Only `Answered` has counted anything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Decided.
    Answered(Answer),
    /// Redis lacks something to decide.
    Miss(Miss),
    /// The idempotency key was used for another payload.
    KeyReused,
    /// This charge would exceed the maximum of a count.
    Overflow(usize),
}

/// What Redis lacks to decide an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Miss {
    /// The counter of this charge is missing: unknown.
    Missing(usize),
    /// The counter of this charge is of another generation: unknown.
    Frozen(usize),
    /// The period of this charge is closed, or over by a newer policy.
    Closed(usize),
    /// The organization is fenced: a change that decides which counters it has is in progress.
    Fenced,
}

/// A final decision, new or replayed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// How many of the equal calls were granted: the first ones. The others did not fit or, without a limit, would have
    /// exceeded the maximum of a count.
    pub times_granted: u32,
    /// Whether it comes from an idempotency record.
    pub replayed: bool,
    /// For each charge, its counter after the decision.
    pub readings: Vec<Reading>,
}

/// A counter after a decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reading {
    /// The start of its period.
    pub start: DateTime<Utc>,
    /// Units counted.
    pub used: Count,
    /// What decided; newer than the caller's if the policy has changed meanwhile.
    pub stamp: Stamp,
    /// What a refund gave back.
    pub given_back: u64,
    /// Whether the counter refused its first call.
    pub refused_first: bool,
}
