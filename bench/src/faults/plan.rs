//! What goes wrong, and when: a sequence of faults that a seed determines.

use std::fmt;
use std::ops::RangeInclusive;
use std::time::Duration;

use clap::ValueEnum;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom as _;
use rand::{RngExt as _, SeedableRng as _};

/// One in so many steps is a pair of overlapping faults.
const PAIRS: u32 = 3;

/// What a step takes in addition to its faults, until everything is ready again.
const RECOVERY: Duration = Duration::from_secs(1);

/// A kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(super) enum Kind {
    /// An instance is killed, and started again
    InstanceKilled,
    /// An instance is stopped with SIGTERM, and started again
    InstanceStopped,
    /// The clock of an instance is an hour ahead
    ClockAhead,
    /// The clock of an instance is an hour behind
    ClockBehind,
    /// Redis is killed, and started with its data
    RedisKilled,
    /// Redis is stopped with SIGTERM, and started with its data
    RedisStopped,
    /// Redis hangs (SIGSTOP)
    RedisHangs,
    /// Redis is killed, and started with an older copy of its data
    RedisOlderCopy,
    /// Redis loses its data (FLUSHALL)
    RedisFlushed,
    /// Redis has no memory left (maxmemory)
    RedisFull,
    /// A slow script runs, and Redis replies BUSY
    RedisBusy,
    /// Redis refuses writes (min-replicas-to-write)
    RedisReadOnly,
    /// Connections to Redis are closed, four times a second
    RedisClientsKilled,
    /// Redis drops its scripts, four times a second
    RedisScriptsFlushed,
    /// One in some replies of Redis is lost with its connection
    RedisRepliesLost,
    /// Postgres is killed, and started again
    PostgresKilled,
    /// Postgres is stopped, and started again
    PostgresStopped,
    /// Postgres hangs (SIGSTOP)
    PostgresHangs,
    /// The disk of Postgres is full: every insert and update fails
    PostgresFull,
    /// Postgres is read-only
    PostgresReadOnly,
    /// A table is locked
    PostgresLocked,
    /// All connections to Postgres are in use by other clients
    PostgresConnectionsUsed,
    /// Sessions are terminated, four times a second
    PostgresSessionsEnded,
}

/// What a fault happens to. Faults of a pair happen to different ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Victim {
    Instance,
    Redis,
    Postgres,
}

impl Kind {
    pub(super) fn name(self) -> String {
        let value = self.to_possible_value();
        value.map_or_else(String::new, |value| value.get_name().to_owned())
    }

    pub(super) fn victim(self) -> Victim {
        match self {
            Self::InstanceKilled | Self::InstanceStopped | Self::ClockAhead | Self::ClockBehind => {
                Victim::Instance
            }
            Self::RedisKilled
            | Self::RedisStopped
            | Self::RedisHangs
            | Self::RedisOlderCopy
            | Self::RedisFlushed
            | Self::RedisFull
            | Self::RedisBusy
            | Self::RedisReadOnly
            | Self::RedisClientsKilled
            | Self::RedisScriptsFlushed
            | Self::RedisRepliesLost => Victim::Redis,
            Self::PostgresKilled
            | Self::PostgresStopped
            | Self::PostgresHangs
            | Self::PostgresFull
            | Self::PostgresReadOnly
            | Self::PostgresLocked
            | Self::PostgresConnectionsUsed
            | Self::PostgresSessionsEnded => Victim::Postgres,
        }
    }

    /// Whether the server is stopped, or hangs.
    pub(super) fn is_away(self) -> bool {
        matches!(
            self,
            Self::RedisKilled
                | Self::RedisStopped
                | Self::RedisHangs
                | Self::PostgresKilled
                | Self::PostgresStopped
                | Self::PostgresHangs
        )
    }

    /// Whether Redis may lose more than its last seconds.
    pub(super) fn loses_data(self) -> bool {
        matches!(self, Self::RedisFlushed | Self::RedisOlderCopy)
    }
}

/// One fault.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fault {
    pub(super) kind: Kind,
    /// After the beginning of its step.
    pub(super) after: Duration,
    pub(super) lasts: Duration,
    /// Which of two: the instance, or the table that is locked.
    pub(super) which: usize,
}

/// A pause, and then one fault or two that overlap.
#[derive(Debug, Clone)]
pub(super) struct Step {
    pub(super) pause: Duration,
    pub(super) faults: Vec<Fault>,
}

/// How long pauses and faults last, in milliseconds.
#[derive(Debug, Clone)]
pub(super) struct Pace {
    pub(super) pause: RangeInclusive<u64>,
    pub(super) lasts: RangeInclusive<u64>,
    /// A pause before Redis loses data, so that what was counted before is stored.
    pub(super) before_loss: Duration,
}

/// The faults of a run.
#[derive(Debug)]
pub(super) struct Plan(pub(super) Vec<Step>);

impl Plan {
    /// Faults of these kinds until the time is over, each kind as often as the others.
    pub(super) fn new(seed: u64, length: Duration, kinds: &[Kind], pace: &Pace) -> Self {
        let mut random = SmallRng::seed_from_u64(seed);
        let mut deck: Vec<Kind> = Vec::new();
        let (mut steps, mut total) = (Vec::new(), Duration::ZERO);
        while total < length {
            if deck.is_empty() {
                deck = kinds.to_vec();
                deck.shuffle(&mut random);
            }
            let first = deck.remove(0);
            let mut faults = vec![draw(&mut random, first, pace)];
            let other = deck.iter().position(|it| it.victim() != first.victim());
            if let Some(at) = other.filter(|_| random.random_range(0..PAIRS) == 0) {
                let mut second = draw(&mut random, deck.remove(at), pace);
                let latest = u64::try_from(faults[0].lasts.as_millis()).unwrap_or(0) / 2;
                second.after = Duration::from_millis(random.random_range(0..=latest));
                faults.push(second);
            }
            let mut pause = Duration::from_millis(random.random_range(pace.pause.clone()));
            if faults.iter().any(|it| it.kind.loses_data()) {
                pause = pause.max(pace.before_loss);
            }
            let lasts = faults.iter().map(|it| it.after + it.lasts).max();
            total += pause + lasts.unwrap_or_default() + RECOVERY;
            steps.push(Step { pause, faults });
        }
        Self(steps)
    }
}

fn draw(random: &mut SmallRng, kind: Kind, pace: &Pace) -> Fault {
    Fault {
        kind,
        after: Duration::ZERO,
        lasts: Duration::from_millis(random.random_range(pace.lasts.clone())),
        which: random.random_range(0..2),
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "after {:.1} s:", self.pause.as_secs_f64())?;
        for (number, fault) in self.faults.iter().enumerate() {
            let which = match fault.kind {
                Kind::PostgresLocked => ["usage_history", "organizations"][fault.which],
                _ if fault.kind.victim() == Victim::Instance => ["a", "b"][fault.which],
                _ => "",
            };
            let separator = if which.is_empty() { "" } else { " " };
            let then = match number {
                0 => String::new(),
                _ => format!(", and {:.1} s later", fault.after.as_secs_f64()),
            };
            let (name, lasts) = (fault.kind.name(), fault.lasts.as_secs_f64());
            write!(f, "{then} {name}{separator}{which} for {lasts:.1} s")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_determines_the_plan_and_every_kind_comes_equally_often() {
        let pace = Pace {
            pause: 1000..=2000,
            lasts: 1000..=5000,
            before_loss: Duration::from_secs(5),
        };
        let kinds = Kind::value_variants();
        let plan = |seed| Plan::new(seed, Duration::from_hours(1), kinds, &pace).0;
        let text = |seed| {
            plan(seed)
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
        };
        assert_eq!(text(1), text(1));
        assert_ne!(text(1), text(2));
        let steps = plan(1);
        let count = |kind: Kind| {
            let faults = steps.iter().flat_map(|step| &step.faults);
            faults.filter(|fault| fault.kind == kind).count()
        };
        let counts: Vec<usize> = kinds.iter().map(|kind| count(*kind)).collect();
        let (least, most) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
        assert!(*least > 5 && most - least <= 1, "{counts:?}");
        assert!(steps.iter().any(|step| step.faults.len() == 2));
        for step in steps.iter().filter(|step| step.faults.len() == 2) {
            let [first, second] = step.faults[..] else {
                unreachable!()
            };
            assert_ne!(first.kind.victim(), second.kind.victim());
            assert!(second.after < first.lasts);
        }
    }
}
