//! Moves counts to a new generation, and reads them to restore their counters in Redis.

use std::collections::{BTreeSet, HashMap};

use chrono::{DateTime, Utc};
use sqlx::{FromRow, PgConnection};

use super::read::{running_meters_of, snapshot_columns};
use super::store::{ThresholdEvents, notified_column, store_in};
use crate::domain::counter::{CounterId, Hour, Snapshot, Stamp};
use crate::domain::ids::{METERS_MAX, MeterId};
use crate::postgres::pool::{Error, Postgres, Result};
use crate::postgres::types::{BigInt, BindColumns as _};
use crate::postgres::{incarnations, organizations};

/// A count to be moved to another generation.
#[derive(Debug, Clone, Copy)]
pub struct Move<'a> {
    /// The counter.
    pub counter: &'a CounterId,
    /// The snapshot in the old data set, if anything is left of it.
    pub held: Option<&'a Snapshot>,
    /// The current policy and the new generation.
    pub stamp: &'a Stamp,
}

/// What a counter is restored from.
#[derive(Debug, Clone)]
pub struct Restored {
    /// The snapshot in Postgres, in the new generation.
    pub snapshot: Snapshot,
    /// Every meter of the organization with a count in a running period, and this one.
    pub meters: Vec<MeterId>,
}

/// Moves different counts to the generations of their stamps, and to their policies where those are newer: stores the
/// held snapshots, moves or inserts the rows, and reads them with their slots from `slots_from` on. From then on no
/// snapshot of an older generation is accepted. Restores all of them or none.
///
/// Held and other counts are moved in separate transactions, so that each locks its rows in key order.
pub async fn restore(
    db: &Postgres,
    moves: &[Move<'_>],
    slots_from: DateTime<Utc>,
    now: DateTime<Utc>,
) -> Result<Vec<Restored>> {
    let mut restored = HashMap::with_capacity(moves.len());
    let (held, rest): (Vec<Move<'_>>, Vec<_>) = moves.iter().partition(|it| it.held.is_some());
    for part in [held, rest] {
        if !part.is_empty() {
            let mut tx = db.pool().await?.begin().await?;
            restored.extend(restore_in(&mut tx, &part, slots_from, now).await?);
            tx.commit().await?;
        }
    }
    let ordered = moves.iter().map(|it| restored.remove(it.counter));
    let ordered = ordered.map(|it| it.ok_or_else(|| Error::corrupt_row("no row")));
    ordered.collect()
}

async fn restore_in(
    tx: &mut PgConnection,
    moves: &[Move<'_>],
    slots_from: DateTime<Utc>,
    now: DateTime<Utc>,
) -> Result<HashMap<CounterId, Restored>> {
    let held: Vec<Snapshot> = moves.iter().filter_map(|it| it.held).cloned().collect();
    store_in(tx, &held, &ThresholdEvents::new(), now).await?;
    let organizations = || moves.iter().map(|it| &it.counter.organization);
    organizations::create(tx, organizations()).await?;
    let stamps: HashMap<&CounterId, &Stamp> =
        moves.iter().map(|it| (it.counter, it.stamp)).collect();
    let rows = move_rows(tx, moves, &stamps, now).await?;
    let versions = moves.iter().map(|it| it.stamp.version);
    let decisions: Vec<_> = organizations().zip(versions).collect();
    incarnations::refuse_stale(tx, &decisions).await?;
    let running = running_meters_of(tx, organizations(), now).await?;
    let existing = rows.iter().filter(|row| !row.inserted);
    let existing: Vec<&CounterId> = existing.map(|row| &row.snapshot.counter).collect();
    let mut slots = slots_of(tx, &existing, slots_from).await?;

    let (mut restored, mut adopted) = (HashMap::with_capacity(rows.len()), Vec::new());
    for row in rows {
        let mut snapshot = row.snapshot;
        let counter = snapshot.counter.clone();
        let Some(stamp) = stamps.get(&counter) else {
            continue;
        };
        let running = running.get(&counter.organization);
        let mut meters: BTreeSet<MeterId> = running.cloned().unwrap_or_default();
        meters.insert(counter.meter.clone());
        // The rollback removes the row that was inserted for one meter too many.
        if row.inserted && meters.len() > METERS_MAX {
            return Err(Error::TooManyMeters);
        }
        if adopt(&mut snapshot, stamp, now) {
            adopted.push(snapshot.clone());
        }
        snapshot.stamp = restored_stamp(&snapshot.stamp, stamp, now);
        snapshot.hours = slots.remove(&counter).unwrap_or_default();
        let meters = meters.into_iter().collect();
        restored.insert(counter, Restored { snapshot, meters });
    }
    write_adopted(tx, &adopted).await?;
    Ok(restored)
}

/// Applies a newer policy to the count of a running period, as Redis does; a period that is over keeps its own. Returns
/// whether it did. After a change of the limit, thresholds that are not reached under the new one may be notified again.
fn adopt(snapshot: &mut Snapshot, stamp: &Stamp, now: DateTime<Utc>) -> bool {
    let stored = snapshot.stamp;
    if is_over(stamp, now) || stored.closed || stored.version >= stamp.version {
        return false;
    }
    if stored.rule != stamp.rule {
        let notified = snapshot.thresholds.notified;
        let (limit, denied) = (stamp.rule.limit, snapshot.denied);
        snapshot.thresholds.notified = notified.under(limit, snapshot.used, stamp.version, denied);
    }
    snapshot.stamp = *stamp;
    true
}

/// The stamp of the restored counter: a period that is closed or over keeps the limit that it ended with.
fn restored_stamp(stored: &Stamp, stamp: &Stamp, now: DateTime<Utc>) -> Stamp {
    let ended = stored.closed || (is_over(stored, now) && is_over(stamp, now));
    Stamp {
        generation: stamp.generation,
        ..if ended { *stored } else { *stamp }
    }
}

fn is_over(stamp: &Stamp, now: DateTime<Utc>) -> bool {
    stamp.end.is_some_and(|end| end <= now)
}

/// The row of a counter that is being restored.
#[derive(FromRow)]
struct MovedRow {
    #[sqlx(flatten)]
    snapshot: Snapshot,
    /// Whether there was none before.
    inserted: bool,
}

/// Moves or inserts the row of each count. Fails if a row has a newer generation or, in a running period, a newer policy.
async fn move_rows(
    tx: &mut PgConnection,
    moves: &[Move<'_>],
    stamps: &HashMap<&CounterId, &Stamp>,
    now: DateTime<Utc>,
) -> Result<Vec<MovedRow>> {
    let rows: Vec<MovedRow> = sqlx::query_as(concat!(
        "insert into usage_history (organization_id, meter, period_start, period_end, used, denied, refunded, limit_units,
                                    enforcement, policy_version, epoch, seq, stored_at)
         select organization_id, meter, period_start, period_end, 0, 0, 0, limit_units, enforcement, policy_version,
                epoch, 0, $9
         from unnest($1::text[], $2::text[], $3::timestamptz[], $4::timestamptz[], $5::bigint[], $6::text[],
                     $7::bigint[], $8::bigint[])
              as new (organization_id, meter, period_start, period_end, limit_units, enforcement, policy_version, epoch)
         order by organization_id collate \"C\", meter collate \"C\", period_start
         on conflict on constraint usage_history_pkey
         do update set epoch = greatest(usage_history.epoch, excluded.epoch)
         returning xmax = 0 as inserted, ",
        snapshot_columns!(),
    ))
    .counters(moves.iter().map(|it| it.counter))
    .column(moves, |it| it.stamp.end)
    .column(moves, |it| it.stamp.rule.limit)
    .column(moves, |it| it.stamp.rule.enforcement)
    .column(moves, |it| BigInt(it.stamp.version))
    .column(moves, |it| BigInt(it.stamp.generation))
    .bind(now)
    .fetch_all(tx)
    .await?;
    for MovedRow { snapshot, .. } in &rows {
        let stored = &snapshot.stamp;
        let Some(stamp) = stamps.get(&snapshot.counter) else {
            continue;
        };
        if stored.generation > stamp.generation {
            return Err(Error::NewerGeneration);
        }
        if !is_over(stamp, now) && stored.version > stamp.version {
            return Err(Error::OlderPolicy);
        }
    }
    Ok(rows)
}

#[derive(FromRow)]
struct SlotRow {
    #[sqlx(flatten)]
    counter: CounterId,
    hour: DateTime<Utc>,
    used: i64,
    #[sqlx(try_from = "i64")]
    denied: u64,
    #[sqlx(try_from = "i64")]
    refunded: u64,
}

/// Reads the slots of counts from `slots_from` on, in their order.
async fn slots_of(
    tx: &mut PgConnection,
    counters: &[&CounterId],
    slots_from: DateTime<Utc>,
) -> Result<HashMap<CounterId, Vec<Hour>>> {
    if counters.is_empty() {
        return Ok(HashMap::new());
    }
    let rows: Vec<SlotRow> = sqlx::query_as(
        "select moved.*, hour, used, denied, refunded
         from unnest($1::text[], $2::text[], $3::timestamptz[]) as moved (organization_id, meter, period_start)
         cross join lateral (
             select hour, used, denied, refunded from usage_hourly
             where usage_hourly.organization_id = moved.organization_id and usage_hourly.meter = moved.meter
                 and usage_hourly.period_start = moved.period_start and hour >= $4
             order by hour
         ) as hours",
    )
    .counters(counters.iter().copied())
    .bind(slots_from)
    .fetch_all(tx)
    .await?;
    let mut slots: HashMap<CounterId, Vec<Hour>> = HashMap::new();
    for row in rows {
        slots.entry(row.counter).or_default().push(Hour {
            start: row.hour,
            used: row.used,
            denied: row.denied,
            refunded: row.refunded,
        });
    }
    Ok(slots)
}

/// Writes the newer policies of counts.
async fn write_adopted(tx: &mut PgConnection, adopted: &[Snapshot]) -> Result<()> {
    if adopted.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "update usage_history as old
         set period_end = new.period_end, limit_units = new.limit_units, enforcement = new.enforcement,
             policy_version = new.policy_version, told = new.told
         from unnest($1::text[], $2::text[], $3::timestamptz[], $4::timestamptz[], $5::bigint[], $6::text[],
                     $7::bigint[], $8::text[])
              as new (organization_id, meter, period_start, period_end, limit_units, enforcement, policy_version, told)
         where old.organization_id = new.organization_id and old.meter = new.meter
             and old.period_start = new.period_start",
    )
    .counters(adopted.iter().map(|it| &it.counter))
    .column(adopted, |it| it.stamp.end)
    .column(adopted, |it| it.stamp.rule.limit)
    .column(adopted, |it| it.stamp.rule.enforcement)
    .column(adopted, |it| BigInt(it.stamp.version))
    .column(adopted, |it| notified_column(it.thresholds.notified))
    .execute(tx)
    .await?;
    Ok(())
}
