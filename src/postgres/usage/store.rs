//! Stores snapshots, as a flush does.

use std::collections::{BTreeMap, HashMap, HashSet};

use chrono::{DateTime, Utc};
use sqlx::{FromRow, PgConnection};

use super::ended;
use crate::domain::counter::{CounterId, Hour, Snapshot};
use crate::domain::event::Event;
use crate::domain::threshold::Notified;
use crate::domain::threshold_events::MeterThresholdEvents;
use crate::postgres::organizations::new_due_at;
use crate::postgres::pool::{Postgres, Result};
use crate::postgres::types::{BigInt, BindColumns as _};
use crate::postgres::{adjustments, events, incarnations};

/// The threshold events of snapshots, by their position among those that are stored together.
pub type ThresholdEvents = BTreeMap<usize, MeterThresholdEvents>;

/// Stores snapshots and records their threshold events. Returns for each, in order, whether Postgres now holds exactly
/// that one; if not, its events are not recorded.
pub async fn store(
    db: &Postgres,
    snapshots: &[Snapshot],
    events: &ThresholdEvents,
    now: DateTime<Utc>,
) -> Result<Vec<bool>> {
    let mut tx = db.pool().await?.begin().await?;
    let stored = store_in(&mut tx, snapshots, events, now).await?;
    tx.commit().await?;
    Ok(stored)
}

/// Like [`store`], in a transaction.
pub(super) async fn store_in(
    tx: &mut PgConnection,
    snapshots: &[Snapshot],
    events: &ThresholdEvents,
    now: DateTime<Utc>,
) -> Result<Vec<bool>> {
    if snapshots.is_empty() {
        return Ok(Vec::new());
    }
    let (mut accepted, begun) = upsert(tx, snapshots, events, now).await?;
    incarnations::remove_stale(tx, snapshots, &mut accepted).await?;
    let (mut taken, mut refused) = (Vec::new(), Vec::new());
    for (snapshot, accepted) in snapshots.iter().zip(&accepted) {
        if *accepted {
            taken.push(snapshot);
        } else {
            refused.push(snapshot);
        }
    }
    store_slots(tx, &taken).await?;
    adjustments::finish(tx, &taken).await?;
    ended::end_reset(tx, &taken, now).await?;
    ended::end_lazily(tx, &begun, now).await?;
    let equal = held_already(tx, &refused).await?;
    let stored: Vec<bool> = snapshots
        .iter()
        .zip(accepted)
        .map(|(snapshot, accepted)| accepted || equal.contains(&snapshot.counter))
        .collect();
    // Also of what was stored before, because a restore stores without events.
    let events = events
        .iter()
        .filter(|(position, _)| stored.get(**position) == Some(&true));
    let events: Vec<Event> = events.flat_map(|(_, it)| it.events.clone()).collect();
    events::record(tx, &events, now).await?;
    Ok(stored)
}

/// Upserts snapshots that are newer than their rows. Creates missing organizations as `organizations::create` does, in
/// the same statement, so that each is looked up once.
const UPSERT: &str = concat!(
    "with read as materialized (
         select new.*, id, plan_id
         from unnest($1::text[], $2::text[], $3::timestamptz[], $4::timestamptz[], $5::bigint[], $6::bigint[],
                     $7::bigint[], $8::bigint[], $9::text[], $10::bigint[], $11::bigint[], $12::bigint[],
                     $13::timestamptz[], $14::text[], $15::text[], $16::bigint[])
              as new (organization_id, meter, period_start, period_end, used, denied, refunded, limit_units,
                      enforcement, policy_version, epoch, seq, closed_at, told, adjusted, drained)
         -- The offset forces an index lookup for each, even if statistics are of a time when the table was small.
         left join lateral (
             select id, plan_id from organizations where id = organization_id offset 0
         ) as known on true
     ), created as (
         insert into organizations (id, due_at)
         select organization_id, ",
    new_due_at!(),
    "
         from (select distinct organization_id from read where id is null) as missing
         order by organization_id
         on conflict do nothing
         returning id
     ), listed as (
         insert into standings (organization_id) select id from created returning organization_id
     )
     insert into usage_history (organization_id, meter, period_start, period_end, used, denied, refunded, limit_units,
                                enforcement, policy_version, epoch, seq, closed_at, told, adjusted, drained, plan_id,
                                stored_at)
     select organization_id, meter, period_start, period_end, used, denied, refunded, limit_units, enforcement,
            policy_version, epoch, seq, closed_at, told, adjusted, drained,
            coalesce(plan_id, (select settings ->> 'planId' from defaults)), $17
     from read
     -- The count forces organizations to be created before rows are locked, here as everywhere.
     cross join (select count(*) from listed) as first
     order by organization_id collate \"C\", meter collate \"C\", period_start
     on conflict on constraint usage_history_pkey do update set
         period_end = excluded.period_end, used = excluded.used, denied = excluded.denied,
         refunded = excluded.refunded, limit_units = excluded.limit_units, enforcement = excluded.enforcement,
         policy_version = excluded.policy_version, epoch = excluded.epoch, seq = excluded.seq,
         closed_at = excluded.closed_at, told = excluded.told, adjusted = excluded.adjusted,
         drained = excluded.drained, stored_at = excluded.stored_at,
         -- A period that is over keeps the plan that it ended with.
         plan_id = case when excluded.period_end <= excluded.stored_at
                        then coalesce(usage_history.plan_id, excluded.plan_id) else excluded.plan_id end
     where (excluded.epoch, excluded.seq) > (usage_history.epoch, usage_history.seq)
         and excluded.policy_version >= usage_history.policy_version
     returning organization_id, meter, period_start, xmax = 0 as inserted",
);

#[derive(FromRow)]
struct WrittenRow {
    #[sqlx(flatten)]
    counter: CounterId,
    inserted: bool,
}

/// Writes snapshots. Returns for each, in order, whether it was written; and the counters that were stored for the first
/// time.
async fn upsert<'a>(
    tx: &mut PgConnection,
    snapshots: &'a [Snapshot],
    events: &ThresholdEvents,
    now: DateTime<Utc>,
) -> Result<(Vec<bool>, Vec<&'a CounterId>)> {
    let notified = |position, snapshot: &Snapshot| {
        let events = events.get(&position);
        notified_column(events.map_or(snapshot.thresholds.notified, |events| events.notified))
    };
    let rows: Vec<WrittenRow> = sqlx::query_as(UPSERT)
        .counters(snapshots.iter().map(|it| &it.counter))
        .column(snapshots, |it| it.stamp.end)
        .column(snapshots, |it| it.used)
        .column(snapshots, |it| BigInt(it.denied))
        .column(snapshots, |it| BigInt(it.refunded))
        .column(snapshots, |it| it.stamp.rule.limit)
        .column(snapshots, |it| it.stamp.rule.enforcement)
        .column(snapshots, |it| BigInt(it.stamp.version))
        .column(snapshots, |it| BigInt(it.stamp.generation))
        .column(snapshots, |it| BigInt(it.sequence))
        .column(snapshots, |it| it.stamp.end.filter(|_| it.stamp.closed))
        .column(snapshots.iter().enumerate(), |(at, it)| notified(at, it))
        .column(snapshots, |it| it.adjusted)
        .column(snapshots, |it| BigInt(it.drained))
        .bind(now)
        .fetch_all(tx)
        .await?;
    let rows = rows.into_iter().map(|row| (row.counter, row.inserted));
    let written: HashMap<CounterId, bool> = rows.collect();
    let accepted = snapshots
        .iter()
        .map(|it| written.contains_key(&it.counter))
        .collect();
    // A restore may have inserted the row, empty, because nothing was counted in the period before.
    let begun = snapshots
        .iter()
        .filter(|it| match written.get(&it.counter) {
            Some(inserted) => *inserted || it.never_stored,
            None => false,
        });
    Ok((accepted, begun.map(|it| &it.counter).collect()))
}

async fn store_slots(tx: &mut PgConnection, snapshots: &[&Snapshot]) -> Result<()> {
    let slots = snapshots.iter().flat_map(|snapshot| {
        let slots = snapshot.unstored_hours();
        slots.map(|slot| (&snapshot.counter, slot))
    });
    let mut rows: Vec<(&CounterId, &Hour)> = slots.collect();
    if rows.is_empty() {
        return Ok(());
    }
    rows.sort_unstable_by_key(|(counter, slot)| (*counter, slot.start));
    sqlx::query(
        "insert into usage_hourly (organization_id, meter, period_start, hour, used, denied, refunded)
         select new.* from unnest($1::text[], $2::text[], $3::timestamptz[], $4::timestamptz[], $5::bigint[], $6::bigint[],
                                  $7::bigint[])
             as new (organization_id, meter, period_start, hour, used, denied, refunded)
         -- Those whose month was dropped have no partition.
         where hour >= (select since from kept_hours)
         on conflict (organization_id, meter, period_start, hour) do update set
             used = excluded.used, denied = excluded.denied, refunded = excluded.refunded",
    )
    .counters(rows.iter().map(|(counter, _)| *counter))
    .column(&rows, |(_, slot)| slot.start)
    .column(&rows, |(_, slot)| slot.used)
    .column(&rows, |(_, slot)| BigInt(slot.denied))
    .column(&rows, |(_, slot)| BigInt(slot.refunded))
    .execute(tx)
    .await?;
    Ok(())
}

/// Finds the snapshots that Postgres holds exactly, because an earlier flush stored them.
async fn held_already(
    tx: &mut PgConnection,
    snapshots: &[&Snapshot],
) -> Result<HashSet<CounterId>> {
    if snapshots.is_empty() {
        return Ok(HashSet::new());
    }
    let counters: Vec<CounterId> = sqlx::query_as(
        "select organization_id, meter, period_start
         from unnest($1::text[], $2::text[], $3::timestamptz[], $4::bigint[], $5::bigint[], $6::bigint[])
              as read (organization_id, meter, period_start, epoch, seq, policy_version)
         join usage_history using (organization_id, meter, period_start, epoch, seq, policy_version)",
    )
    .counters(snapshots.iter().map(|it| &it.counter))
    .column(snapshots, |it| BigInt(it.stamp.generation))
    .column(snapshots, |it| BigInt(it.sequence))
    .column(snapshots, |it| BigInt(it.stamp.version))
    .fetch_all(tx)
    .await?;
    Ok(counters.into_iter().collect())
}

/// The notified thresholds in the column `told`; null for none.
pub(super) fn notified_column(notified: Notified) -> Option<Notified> {
    (notified != Notified::default()).then_some(notified)
}
