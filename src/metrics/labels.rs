//! What metrics are told apart by. A new script or worker gets a line here.

use crate::domain::decision::Operation;

/// A label whose values are all known.
pub(super) trait Label: Copy + 'static {
    /// Its name.
    const NAME: &'static str;
    /// Its values, in the order of [`Label::index`].
    const ALL: &'static [Self];

    /// How a value is written.
    fn as_str(self) -> &'static str;

    /// Where a value stands in [`Label::ALL`].
    fn index(self) -> usize;
}

macro_rules! label {
    ($(#[$doc:meta])* $visibility:vis $type:ident as $name:literal {
        $($(#[$about:meta])* $variant:ident = $text:literal,)+
    }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        $visibility enum $type {
            $($(#[$about])* $variant,)+
        }

        impl Label for $type {
            const NAME: &'static str = $name;
            const ALL: &'static [Self] = &[$(Self::$variant),+];

            fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)+
                }
            }

            fn index(self) -> usize {
                self as usize
            }
        }
    };
}

label!(
    /// A script that Redis runs.
    pub Script as "script" {
        /// `count.lua`
        Count = "count",
        /// `open.lua`
        Open = "open",
        /// `restore.lua`
        Restore = "restore",
        /// `close.lua`
        Close = "close",
        /// `adjust.lua`
        Adjust = "adjust",
        /// `settle.lua`
        Settle = "settle",
        /// `configure.lua`
        Configure = "configure",
        /// `policy.lua`, for several organizations at once.
        Policy = "policy",
        /// `erase.lua`
        Erase = "erase",
        /// `gc_counters.lua`
        GcCounters = "gc_counters",
        /// `gc_organizations.lua`, for several hashes at once.
        GcOrganizations = "gc_organizations",
        /// `unfence.lua`
        Unfence = "unfence",
        /// `mirror.lua`
        Mirror = "mirror",
        /// `generation.lua`, for all shards at once.
        Generation = "generation",
    }
);

label!(
    /// Work that is done again and again.
    pub Worker as "worker" {
        /// Counts are stored in Postgres.
        Flush = "flush",
        /// Changes of policies are brought to Redis.
        PolicySweep = "policy_sweep",
        /// Changes of API keys are brought to Redis.
        KeySweep = "key_sweep",
        /// Periods that are over are ended, and resets and adjustments finished.
        Periods = "scheduler",
        /// What deleted organizations have left is erased.
        Erase = "erase",
        /// Redis is rid of what is of no use any more.
        GarbageCollect = "forget",
        /// Webhooks that something waits for are looked for.
        Deliver = "deliver",
    }
);

label!(
    /// What became of one try of a delivery.
    pub DeliveryOutcome as "outcome" {
        /// It has arrived.
        Succeeded = "succeeded",
        /// It has not, and is tried again.
        Failed = "failed",
        /// It has not, and is not tried again.
        GivenUp = "given_up",
    }
);

label!(
    /// What is kept at hand in the process.
    pub Cache as "cache" {
        /// Policies of organizations.
        Policies = "policies",
        /// API keys.
        Keys = "keys",
    }
);

label!(
    /// What became of a call that counts.
    pub Outcome as "outcome" {
        /// Everything fitted.
        Granted = "granted",
        /// A limit refused.
        Denied = "denied",
        /// The answer of an earlier attempt was given again.
        Replayed = "replayed",
        /// There was no decision.
        Failed = "failed",
    }
);

label!(
    /// Where a counter came from that Redis did not have.
    pub Recovered as "opened" {
        /// Nothing was counted in its period before.
        AtZero = "at_zero",
        /// A snapshot.
        FromPostgres = "from_postgres",
    }
);

label!(
    /// Why a connection was closed, or refused, by the service.
    pub CloseReason as "reason" {
        /// The head of a request did not arrive in time.
        HeaderTimeout = "header_timeout",
        /// There was no request for too long.
        IdleTimeout = "idle_timeout",
        /// An answer was not taken in time.
        WriteTimeout = "write_timeout",
        /// It waited for a request longer than any other, and a new one needed its place.
        Evicted = "evicted",
        /// There was no place for it.
        Refused = "refused",
        /// The service stops.
        Stopped = "stopped",
    }
);

label!(
    /// How a request was made.
    pub(super) Method as "method" {
        Get = "GET",
        Post = "POST",
        Put = "PUT",
        Patch = "PATCH",
        Delete = "DELETE",
        Head = "HEAD",
        Options = "OPTIONS",
        /// Callers may send any word.
        Other = "other",
    }
);

impl Method {
    pub(super) fn parse(text: &str) -> Self {
        let known = Self::ALL.iter().find(|method| method.as_str() == text);
        known.copied().unwrap_or(Self::Other)
    }
}

impl Label for Operation {
    const NAME: &'static str = "operation";
    const ALL: &'static [Self] = &[Self::Track, Self::Consume, Self::Check, Self::Refund];

    fn as_str(self) -> &'static str {
        match self {
            Self::Track => "track",
            Self::Consume => "consume",
            Self::Check => "check",
            Self::Refund => "refund",
        }
    }

    fn index(self) -> usize {
        match self {
            Self::Track => 0,
            Self::Consume => 1,
            Self::Check => 2,
            Self::Refund => 3,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn each_stands_at_its_index<L: Label>() {
        for (position, value) in L::ALL.iter().enumerate() {
            assert_eq!(value.index(), position, "{}", value.as_str());
        }
    }

    #[test]
    fn every_value_of_a_label_stands_at_its_index() {
        each_stands_at_its_index::<Script>();
        each_stands_at_its_index::<Worker>();
        each_stands_at_its_index::<DeliveryOutcome>();
        each_stands_at_its_index::<Cache>();
        each_stands_at_its_index::<Outcome>();
        each_stands_at_its_index::<Recovered>();
        each_stands_at_its_index::<CloseReason>();
        each_stands_at_its_index::<Method>();
        each_stands_at_its_index::<Operation>();
    }
}
