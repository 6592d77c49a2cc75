//! One coalesced batch of recoveries: opened or closed in Redis where its data set allows that, and otherwise restored
//! from Postgres.

use std::collections::BTreeSet;

use chrono::{DateTime, Duration, Utc};

use crate::context::Context;
use crate::domain::counter::{CounterId, Stamp};
use crate::domain::retention;
use crate::domain::schedule::Reset;
use crate::failure::Failure;
use crate::postgres::usage::{self, Move};
use crate::redis::{Connection, Missing, Moved, Next, RecoveryReply, Shard};

/// How much older than a period a data set must be for a missing counter of that period to be zero:
/// [`EARLY_MAX`](retention::EARLY_MAX), and what the clock of an instance may be ahead, which is an hour where the time zone
/// of its machine is wrong, and a minute.
const MARGIN: Duration = Duration::minutes(66);

/// A counter to bring into the generation of its stamp.
#[derive(Debug, Clone)]
pub(super) struct RecoveryRequest {
    pub(super) counter: CounterId,
    pub(super) stamp: Stamp,
    /// The reset that starts its period, if one does.
    pub(super) reset: Option<Reset>,
    /// When it was requested.
    pub(super) now: DateTime<Utc>,
}

impl RecoveryRequest {
    /// The counter that a reset closes, and its stamp.
    fn closed_by(&self, reset: Reset) -> (CounterId, Stamp) {
        let counter = CounterId {
            start: reset.closed_start,
            ..self.counter.clone()
        };
        let stamp = Stamp {
            end: Some(reset.at),
            ..self.stamp
        };
        (counter, stamp)
    }
}

/// Tries to bring distinct counters into the generations of their stamps.
pub(super) async fn recover_all(
    ctx: Context,
    requests: Vec<RecoveryRequest>,
) -> Result<Vec<RecoveryReply>, Failure> {
    let Some(now) = requests.iter().map(|it| it.now).max() else {
        return Ok(Vec::new());
    };
    let connection = ctx.redis.connection().await?;
    let mut replies = open_all(&connection, &requests, now).await?;
    // What Postgres must restore; of a counter that starts at a reset, first the one before.
    let (mut unknown, mut places) = (Vec::new(), Vec::new());
    for (request, reply) in requests.iter().zip(&mut replies) {
        unknown.push(match (*reply, request.reset) {
            (RecoveryReply::Restore, _) => (request.counter.clone(), request.stamp),
            (RecoveryReply::RestoreClosed, Some(reset)) => request.closed_by(reset),
            _ => continue,
        });
        places.push(reply);
    }
    let restored = restore_all(&ctx, &connection, &unknown, now).await?;
    for (place, restored) in places.into_iter().zip(restored) {
        *place = match (*place, restored) {
            // Only the one before is ready.
            (RecoveryReply::RestoreClosed, RecoveryReply::Ready) => RecoveryReply::Changed,
            (_, restored) => restored,
        };
    }
    let outdated: BTreeSet<Shard> = requests
        .iter()
        .zip(&replies)
        .filter(|(_, reply)| **reply == RecoveryReply::Generation)
        .map(|(request, _)| Shard::of(&request.counter.organization))
        .collect();
    if !outdated.is_empty() {
        let outdated: Vec<Shard> = outdated.into_iter().collect();
        ctx.redis.identify(&connection, &outdated).await?;
    }
    Ok(replies)
}

/// Opens or closes counters as far as Redis can do so alone. A counter that starts at a reset is only opened together
/// with closing the one before.
async fn open_all(
    connection: &Connection,
    requests: &[RecoveryRequest],
    now: DateTime<Utc>,
) -> Result<Vec<RecoveryReply>, Failure> {
    let (mut missing, mut next) = (Vec::with_capacity(requests.len()), Vec::new());
    for RecoveryRequest {
        counter,
        stamp,
        reset,
        ..
    } in requests
    {
        match *reset {
            Some(reset) => next.push(Next {
                counter,
                reset,
                stamp,
            }),
            None => missing.push(Missing { counter, stamp }),
        }
    }
    let margin = MARGIN.num_milliseconds();
    let mut opened = connection.open(&missing, now, margin).await?.into_iter();
    let mut closed = connection.close(&next, now, margin).await?.into_iter();
    let replies = requests.iter().filter_map(|request| match request.reset {
        Some(_) => closed.next(),
        None => opened.next(),
    });
    Ok(replies.collect())
}

/// Moves counters to the new generation in Postgres, and writes the results to Redis.
async fn restore_all(
    ctx: &Context,
    connection: &Connection,
    unknown: &[(CounterId, Stamp)],
    now: DateTime<Utc>,
) -> Result<Vec<RecoveryReply>, Failure> {
    let counters: Vec<CounterId> = unknown.iter().map(|(it, _)| it.clone()).collect();
    let in_redis = connection.read(&counters).await?;
    // A counter that another caller has restored meanwhile is ready.
    let mut replies = vec![RecoveryReply::Ready; unknown.len()];
    let (mut places, mut moves, mut seen) = (Vec::new(), Vec::new(), BTreeSet::new());
    for ((reply, (counter, stamp)), held) in replies.iter_mut().zip(unknown).zip(&in_redis) {
        let held = held.as_ref();
        if held.is_some_and(|it| it.stamp.generation == stamp.generation) {
            continue;
        }
        if !seen.insert(counter) {
            // Needed by late events and by the reset that closes it: once is enough.
            *reply = RecoveryReply::Changed;
            continue;
        }
        places.push(reply);
        moves.push(Move {
            counter,
            held,
            stamp,
        });
    }
    if moves.is_empty() {
        return Ok(replies);
    }
    let hours = in_redis.iter().flatten().flat_map(|it| &it.hours);
    usage::ensure_partitions(&ctx.postgres, hours.map(|hour| hour.start)).await?;
    let hours_from = retention::oldest_hour(now, ctx.late);
    let restored = usage::restore(&ctx.postgres, &moves, hours_from, now).await?;
    let snapshots = moves.iter().zip(&restored).map(|(it, restored)| Moved {
        held: it.held,
        snapshot: &restored.snapshot,
        meters: &restored.meters,
        policy_version: it.stamp.version,
    });
    let snapshots: Vec<Moved<'_>> = snapshots.collect();
    let written = connection.restore(&snapshots, now).await?;
    for (place, reply) in places.into_iter().zip(written) {
        *place = reply;
    }
    Ok(replies)
}
