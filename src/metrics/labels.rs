//! The labels of metrics. A new script or job gets a line here.

use strum::{EnumString, IntoStaticStr, VariantArray};

use crate::domain::decision::Operation;

/// A label with a fixed set of values.
pub(super) trait Label: VariantArray + Copy + Into<&'static str> + 'static {
    /// Its name.
    const NAME: &'static str;

    /// The position of a value in [`VariantArray::VARIANTS`].
    fn index(self) -> usize;

    /// Name and value, as the registry takes them.
    fn pair(self) -> (&'static str, String) {
        let value: &'static str = self.into();
        (Self::NAME, value.to_owned())
    }
}

macro_rules! labels {
    ($($type:ident as $name:literal,)+) => {$(
        impl Label for $type {
            const NAME: &'static str = $name;

            fn index(self) -> usize {
                self as usize
            }
        }
    )+};
}

labels!(
    Script as "script",
    Worker as "worker",
    DeliveryOutcome as "outcome",
    Cache as "cache",
    Outcome as "outcome",
    Recovered as "opened",
    CloseReason as "reason",
    Method as "method",
    Operation as "operation",
    Server as "server",
);

/// A Lua script.
#[derive(Debug, Clone, Copy, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum Script {
    /// `count.lua`
    Count,
    /// `open.lua`
    Open,
    /// `restore.lua`
    Restore,
    /// `close.lua`
    Close,
    /// `adjust.lua`
    Adjust,
    /// `drain.lua`
    Drain,
    /// `settle.lua`
    Settle,
    /// `configure.lua`
    Configure,
    /// `policy.lua`, for several organizations at once.
    Policy,
    /// `erase.lua`
    Erase,
    /// `discard.lua`
    Discard,
    /// `gc_counters.lua`
    GcCounters,
    /// `gc_organizations.lua`, for several hashes at once.
    GcOrganizations,
    /// `unfence.lua`
    Unfence,
    /// `mirror.lua`
    Mirror,
    /// `generation.lua`, for all shards at once.
    Generation,
    /// `applied.lua`, for all shards at once.
    Applied,
}

/// A background job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum Worker {
    /// Stores counters in Postgres.
    Flush,
    /// Writes changed policies to Redis.
    PolicySweep,
    /// Writes changed API keys to Redis.
    KeySweep,
    /// Closes ended periods, and completes resets and adjustments.
    #[strum(serialize = "scheduler")]
    Periods,
    /// Counts what was admitted while Redis was down.
    Drain,
    /// Erases deleted organizations.
    Erase,
    /// Garbage-collects Redis.
    #[strum(serialize = "forget")]
    GarbageCollect,
    /// Looks for due deliveries.
    Deliver,
    /// Deletes hourly usage and events that are older than their retention.
    Retention,
}

/// The result of one attempt of a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum DeliveryOutcome {
    /// Delivered.
    Succeeded,
    /// Failed, to be retried.
    Failed,
    /// Failed for good.
    GivenUp,
}

/// A server that the service needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum Server {
    /// Redis.
    Redis,
    /// Postgres.
    Postgres,
}

/// A cache of the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum Cache {
    /// Policies of organizations.
    Policies,
    /// API keys.
    Keys,
}

/// The outcome of a counting call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum Outcome {
    /// Everything fit.
    Granted,
    /// A limit denied it.
    Denied,
    /// The response of an idempotency record was repeated.
    Replayed,
    /// Redis was down, and the policy admits calls in an outage.
    Degraded,
    /// There was no decision.
    Failed,
}

/// How a missing counter was recovered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum Recovered {
    /// Opened at zero.
    AtZero,
    /// Restored from its snapshot.
    FromPostgres,
}

/// Why the service closed or refused a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum CloseReason {
    /// The client sent no TLS, or rejected the certificate.
    HandshakeFailed,
    /// The head of a request did not arrive in time.
    HeaderTimeout,
    /// No request arrived for too long.
    IdleTimeout,
    /// The client did not read a response in time.
    WriteTimeout,
    /// The longest idle connection made room for a new one.
    Evicted,
    /// The maximum was reached.
    Refused,
    /// The service shut down.
    Stopped,
}

/// The method of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, EnumString, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "UPPERCASE")]
pub(super) enum Method {
    Get,
    Post,
    Put,
    Patch,
    Delete,
    Head,
    Options,
    /// Any other word that a client sends.
    #[strum(serialize = "other")]
    Other,
}

impl Method {
    pub(super) fn parse(text: &str) -> Self {
        text.parse().unwrap_or(Self::Other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assert_indexes<L: Label>() {
        for (position, value) in L::VARIANTS.iter().enumerate() {
            assert_eq!(value.index(), position, "{:?}", value.pair());
        }
    }

    #[test]
    fn every_value_of_a_label_is_at_its_index() {
        assert_indexes::<Script>();
        assert_indexes::<Worker>();
        assert_indexes::<DeliveryOutcome>();
        assert_indexes::<Cache>();
        assert_indexes::<Outcome>();
        assert_indexes::<Recovered>();
        assert_indexes::<CloseReason>();
        assert_indexes::<Method>();
        assert_indexes::<Operation>();
    }
}
