//! Snapshots of counts: absolute, guarded, and moved from one data set to the next.
//!
//! `(generation, seq)` of a row only ever grows, and its policy version never shrinks, so that writing a snapshot twice, late
//! or out of order is harmless, and one of before the organization's deletion overwrites nothing of after it. Rows are
//! locked in key order. Hours are written only together with an accepted parent.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::PoisonError;

use chrono::{DateTime, Datelike, Utc};
use sqlx::{AssertSqlSafe, FromRow, PgConnection};

use super::organizations::{corrupt_row, parse};
use super::{Error, Postgres, adjustments, deletions, events, resets, signed, unsigned};
use crate::domain::counter::{CounterId, Hour, Snapshot, Stamp};
use crate::domain::event::Event;
use crate::domain::ids::{METERS_MAX, MeterId, OrganizationId};
use crate::domain::limit::Rule;
use crate::domain::quantity::Count;
use crate::domain::threshold::{Notified, Thresholds};
use crate::domain::threshold_events::MeterThresholdEvents;

/// What is to be told of snapshots, by their place among those that are stored together.
pub type ThresholdEvents = BTreeMap<usize, MeterThresholdEvents>;

/// Stores snapshots, and records what is to be told of them. For each, in order: whether Postgres now holds exactly
/// that one. Of one that it does not hold nothing is told.
pub async fn store(
    postgres: &Postgres,
    snapshots: &[Snapshot],
    news: &ThresholdEvents,
    now: DateTime<Utc>,
) -> Result<Vec<bool>, Error> {
    let mut transaction = postgres.pool.begin().await?;
    let stored = store_in(&mut transaction, snapshots, news, now).await?;
    transaction.commit().await?;
    Ok(stored)
}

/// A count that is to be moved to another data set.
#[derive(Debug, Clone, Copy)]
pub struct Move<'a> {
    /// Which counter.
    pub counter: &'a CounterId,
    /// What the old data set holds, if anything is left of it.
    pub held: Option<&'a Snapshot>,
    /// What decides, in the generation that the count is moved to.
    pub stamp: &'a Stamp,
}

/// What a counter is restored from.
#[derive(Debug, Clone)]
pub struct Restored {
    /// What Postgres holds of it, in the new generation.
    pub snapshot: Snapshot,
    /// Every meter of the organization that has a count in a period that runs, and this one.
    pub meters: Vec<MeterId>,
}

/// Moves different counts to the generations of their stamps, and to their policies where those are newer: stores what
/// is held of each, moves the row or inserts it, and reads it. From then on nothing of an older generation is
/// accepted. Hours from `hours_from` on are read. Where one of them is refused, none is restored.
///
/// What is held is moved in one transaction and what is not in another, so that each locks its rows in key order.
pub async fn restore(
    postgres: &Postgres,
    moves: &[Move<'_>],
    hours_from: DateTime<Utc>,
    now: DateTime<Utc>,
) -> Result<Vec<Restored>, Error> {
    let mut restored = HashMap::with_capacity(moves.len());
    let (held, rest): (Vec<Move<'_>>, Vec<_>) = moves.iter().partition(|it| it.held.is_some());
    for part in [held, rest] {
        if !part.is_empty() {
            let mut transaction = postgres.pool.begin().await?;
            restored.extend(restore_in(&mut transaction, &part, hours_from, now).await?);
            transaction.commit().await?;
        }
    }
    moves
        .iter()
        .map(|it| {
            restored
                .remove(it.counter)
                .ok_or_else(|| corrupt_row("no row"))
        })
        .collect()
}

async fn restore_in(
    connection: &mut PgConnection,
    moves: &[Move<'_>],
    hours_from: DateTime<Utc>,
    now: DateTime<Utc>,
) -> Result<HashMap<CounterId, Restored>, Error> {
    let held: Vec<Snapshot> = moves.iter().filter_map(|it| it.held).cloned().collect();
    store_in(connection, &held, &ThresholdEvents::new(), now).await?;
    create_organizations(connection, moves.iter().map(|it| &it.counter.organization)).await?;
    let found = move_rows(connection, moves, now).await?;
    let decided = moves
        .iter()
        .map(|it| (&it.counter.organization, it.stamp.version));
    deletions::refuse_former(connection, &decided.collect::<Vec<_>>()).await?;
    let organizations = moves.iter().map(|it| &it.counter.organization);
    let running = running_meters_of(connection, organizations, now).await?;
    let stood: Vec<&CounterId> = found
        .iter()
        .filter(|(_, it)| !it.inserted)
        .map(|(counter, _)| counter)
        .collect();
    let mut hours = hours_of(connection, &stood, hours_from).await?;

    let stamps: HashMap<&CounterId, &Stamp> =
        moves.iter().map(|it| (it.counter, it.stamp)).collect();
    let (mut restored, mut adopted) = (HashMap::with_capacity(found.len()), Vec::new());
    for (
        counter,
        Moved {
            mut snapshot,
            inserted,
        },
    ) in found
    {
        let Some(stamp) = stamps.get(&counter) else {
            continue;
        };
        let mut meters = running
            .get(counter.organization.as_str())
            .cloned()
            .unwrap_or_default();
        meters.insert(counter.meter.clone());
        // Dropping the transaction takes the row back that was just inserted for one meter too many.
        if inserted && meters.len() > METERS_MAX {
            return Err(Error::TooManyMeters);
        }
        // A period that runs adopts the newer policy, here as in Redis; one that is over keeps its own.
        let held = snapshot.stamp;
        if stamp.end.is_none_or(|end| end > now) && !held.closed && held.version < stamp.version {
            adopt(&mut snapshot, stamp);
            adopted.push(snapshot.clone());
        }
        // A period that is closed or over keeps the limit that it ended with.
        let over = |stamp: &Stamp| stamp.end.is_some_and(|end| end <= now);
        let ended = snapshot.stamp.closed || (over(&snapshot.stamp) && over(stamp));
        snapshot.stamp = Stamp {
            generation: stamp.generation,
            ..if ended { snapshot.stamp } else { **stamp }
        };
        snapshot.hours = hours.remove(&counter).unwrap_or_default();
        let meters = meters.into_iter().collect();
        restored.insert(counter, Restored { snapshot, meters });
    }
    write_adopted(connection, &adopted).await?;
    Ok(restored)
}

/// The row of a counter that is being restored.
struct Moved {
    snapshot: Snapshot,
    /// Whether there was none before.
    inserted: bool,
}

/// Moves or inserts the row of each count. Refuses all where one has moved further, or has seen a newer policy.
async fn move_rows(
    connection: &mut PgConnection,
    moves: &[Move<'_>],
    now: DateTime<Utc>,
) -> Result<HashMap<CounterId, Moved>, Error> {
    let stamps = moves.iter().map(|it| it.stamp);
    let rows: Vec<RestoredRow> = sqlx::query_as(
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
         returning organization_id, meter, period_start, period_end, used, denied, refunded, limit_units, enforcement,
                   policy_version, epoch as generation, seq, closed_at, told, adjusted, xmax = 0 as inserted",
    )
    .bind(moves.iter().map(|it| it.counter.organization.as_str()).collect::<Vec<_>>())
    .bind(moves.iter().map(|it| it.counter.meter.as_str()).collect::<Vec<_>>())
    .bind(moves.iter().map(|it| it.counter.start).collect::<Vec<_>>())
    .bind(stamps.clone().map(|it| it.end).collect::<Vec<_>>())
    .bind(stamps.clone().map(|it| it.rule.limit.map(|limit| signed(limit.get()))).collect::<Vec<_>>())
    .bind(stamps.clone().map(|it| it.rule.enforcement.to_string()).collect::<Vec<_>>())
    .bind(stamps.clone().map(|it| signed(it.version)).collect::<Vec<_>>())
    .bind(stamps.map(|it| signed(it.generation)).collect::<Vec<_>>())
    .bind(now)
    .fetch_all(connection)
    .await?;
    let mut found = HashMap::with_capacity(rows.len());
    for row in rows {
        let snapshot = row.snapshot.snapshot()?;
        let inserted = row.inserted;
        found.insert(snapshot.counter.clone(), Moved { snapshot, inserted });
    }
    for Move { counter, stamp, .. } in moves {
        let stands = found.get(*counter).ok_or_else(|| corrupt_row("no row"))?;
        let stands = &stands.snapshot.stamp;
        if stands.generation > stamp.generation {
            return Err(Error::NewerGeneration);
        }
        if stamp.end.is_none_or(|end| end > now) && stands.version > stamp.version {
            return Err(Error::OlderPolicy);
        }
    }
    Ok(found)
}

/// By organization, every meter that has a count in a period that runs.
pub async fn running_meters(
    postgres: &Postgres,
    organizations: &[OrganizationId],
    now: DateTime<Utc>,
) -> Result<HashMap<String, BTreeSet<MeterId>>, Error> {
    let mut connection = postgres.pool.acquire().await?;
    running_meters_of(&mut connection, organizations.iter(), now).await
}

async fn running_meters_of(
    connection: &mut PgConnection,
    organizations: impl Iterator<Item = &OrganizationId>,
    now: DateTime<Utc>,
) -> Result<HashMap<String, BTreeSet<MeterId>>, Error> {
    let organizations: BTreeSet<&str> = organizations.map(OrganizationId::as_str).collect();
    let rows: Vec<(String, String)> = sqlx::query_as(
        "select organization_id, meter
         from unnest($1::text[]) as asked (id)
         cross join lateral (
             -- With an order, so that it stays a look into the index, for each, whatever statistics say.
             select organization_id, meter from usage_history
             where organization_id = id and (period_end is null or period_end > $2)
             order by meter
         ) as running",
    )
    .bind(organizations.into_iter().collect::<Vec<_>>())
    .bind(now)
    .fetch_all(connection)
    .await?;
    let mut meters: HashMap<String, BTreeSet<MeterId>> = HashMap::new();
    for (organization, meter) in rows {
        meters
            .entry(organization)
            .or_default()
            .insert(parse(&meter)?);
    }
    Ok(meters)
}

/// The hours of counts from `hours_from` on, in their order.
async fn hours_of(
    connection: &mut PgConnection,
    counters: &[&CounterId],
    hours_from: DateTime<Utc>,
) -> Result<HashMap<CounterId, Vec<Hour>>, Error> {
    if counters.is_empty() {
        return Ok(HashMap::new());
    }
    let rows: Vec<(i64, DateTime<Utc>, i64, i64, i64)> = sqlx::query_as(
        "select position, hour, used, denied, refunded
         from unnest($1::text[], $2::text[], $3::timestamptz[])
              with ordinality as moved (organization_id, meter, period_start, position)
         cross join lateral (
             select hour, used, denied, refunded from usage_hourly
             where usage_hourly.organization_id = moved.organization_id and usage_hourly.meter = moved.meter
                 and usage_hourly.period_start = moved.period_start and hour >= $4
             order by hour
         ) as hours",
    )
    .bind(counters.iter().map(|it| it.organization.as_str()).collect::<Vec<_>>())
    .bind(counters.iter().map(|it| it.meter.as_str()).collect::<Vec<_>>())
    .bind(counters.iter().map(|it| it.start).collect::<Vec<_>>())
    .bind(hours_from)
    .fetch_all(connection)
    .await?;
    let mut hours: HashMap<CounterId, Vec<Hour>> = HashMap::new();
    for (position, start, used, denied, refunded) in rows {
        let Some(counter) = named(counters, position) else {
            continue;
        };
        hours.entry((*counter).clone()).or_default().push(Hour {
            start,
            used,
            denied: unsigned(denied),
            refunded: unsigned(refunded),
        });
    }
    Ok(hours)
}

/// What stands at a place as `with ordinality` counts them.
fn named<T>(all: &[T], position: i64) -> Option<&T> {
    all.get(usize::try_from(position).ok()?.checked_sub(1)?)
}

/// Puts a count under a newer policy. Where that has another limit, what it does not cross may be told again.
fn adopt(snapshot: &mut Snapshot, stamp: &Stamp) {
    if snapshot.stamp.rule != stamp.rule {
        let notified = snapshot.thresholds.notified;
        let (limit, denied) = (stamp.rule.limit, snapshot.denied);
        snapshot.thresholds.notified = notified.under(limit, snapshot.used, stamp.version, denied);
    }
    snapshot.stamp = *stamp;
}

/// Puts rows under the newer policies of their counts.
async fn write_adopted(connection: &mut PgConnection, adopted: &[Snapshot]) -> Result<(), Error> {
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
    .bind(adopted.iter().map(|it| it.counter.organization.as_str()).collect::<Vec<_>>())
    .bind(adopted.iter().map(|it| it.counter.meter.as_str()).collect::<Vec<_>>())
    .bind(adopted.iter().map(|it| it.counter.start).collect::<Vec<_>>())
    .bind(adopted.iter().map(|it| it.stamp.end).collect::<Vec<_>>())
    .bind(adopted.iter().map(|it| it.stamp.rule.limit.map(|limit| signed(limit.get()))).collect::<Vec<_>>())
    .bind(adopted.iter().map(|it| it.stamp.rule.enforcement.to_string()).collect::<Vec<_>>())
    .bind(adopted.iter().map(|it| signed(it.stamp.version)).collect::<Vec<_>>())
    .bind(adopted.iter().map(|it| notified_text(it.thresholds.notified)).collect::<Vec<_>>())
    .execute(connection)
    .await?;
    Ok(())
}

/// The newest snapshots of an organization's periods that are not over, without hours.
///
/// Where another instance's clock was ahead when it reset a meter, the period that runs begins after `now`: which of a
/// meter's periods runs, the policy says.
pub async fn unfinished(
    postgres: &Postgres,
    organization: &OrganizationId,
    now: DateTime<Utc>,
) -> Result<Vec<Snapshot>, Error> {
    let mut connection = postgres.pool.acquire().await?;
    unfinished_of(&mut connection, &[organization.as_str()], now).await
}

/// The same of several organizations, in their order.
pub(super) async fn unfinished_of(
    connection: &mut PgConnection,
    organizations: &[&str],
    now: DateTime<Utc>,
) -> Result<Vec<Snapshot>, Error> {
    let rows: Vec<HistoryRow> = sqlx::query_as(
        "select organization_id, meter, period_start, period_end, used, denied, refunded, limit_units, enforcement,
                policy_version, epoch as generation, seq, closed_at
         from usage_history
         where organization_id = any($1) and (period_end is null or period_end > $2)
         order by organization_id, meter, period_start",
    )
    .bind(organizations)
    .bind(now)
    .fetch_all(connection)
    .await?;
    rows.into_iter().map(HistoryRow::snapshot).collect()
}

/// The start of the last period of an organization in which Postgres has anything counted.
pub async fn last_counted(
    postgres: &Postgres,
    organization: &OrganizationId,
) -> Result<Option<DateTime<Utc>>, Error> {
    let (start,): (Option<DateTime<Utc>>,) = sqlx::query_as(
        "select max(period_start) from usage_history where organization_id = $1 and (used > 0 or refunded > 0)",
    )
    .bind(organization.as_str())
    .fetch_one(&postgres.pool)
    .await?;
    Ok(start)
}

/// Sees to it that `usage_hourly` has a partition for the month of each of these instants.
pub async fn ensure_partitions(
    postgres: &Postgres,
    instants: impl IntoIterator<Item = DateTime<Utc>>,
) -> Result<(), Error> {
    let months: BTreeSet<(i32, u32)> = instants
        .into_iter()
        .map(|it| (it.year(), it.month()))
        .collect();
    let missing: Vec<(i32, u32)> = months
        .difference(
            &*postgres
                .partitions
                .lock()
                .unwrap_or_else(PoisonError::into_inner),
        )
        .copied()
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let mut transaction = postgres.pool.begin().await?;
    // Two instances that create the same table at once would fail on each other.
    sqlx::query("select pg_advisory_xact_lock(7302817)")
        .execute(&mut *transaction)
        .await?;
    for (year, month) in &missing {
        let (next_year, next_month) = if *month == 12 {
            (year + 1, 1)
        } else {
            (*year, month + 1)
        };
        // Only numbers go into this text.
        sqlx::query(AssertSqlSafe(format!(
            "create table if not exists usage_hourly_{year:04}_{month:02} partition of usage_hourly
             for values from ('{year:04}-{month:02}-01 00:00:00Z') to ('{next_year:04}-{next_month:02}-01 00:00:00Z')
             with (fillfactor = 70)"
        )))
        .execute(&mut *transaction)
        .await?;
    }
    transaction.commit().await?;
    postgres
        .partitions
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .extend(missing);
    Ok(())
}

#[derive(FromRow)]
struct HistoryRow {
    organization_id: String,
    meter: String,
    period_start: DateTime<Utc>,
    period_end: Option<DateTime<Utc>>,
    used: i64,
    denied: i64,
    refunded: i64,
    limit_units: Option<i64>,
    enforcement: String,
    policy_version: i64,
    generation: i64,
    seq: i64,
    closed_at: Option<DateTime<Utc>>,
    /// Read only where a counter is restored.
    #[sqlx(default)]
    told: Option<String>,
    /// The same.
    #[sqlx(default)]
    adjusted: Option<String>,
}

/// The row of a counter that is being restored.
#[derive(FromRow)]
struct RestoredRow {
    #[sqlx(flatten)]
    snapshot: HistoryRow,
    /// Whether there was none before.
    inserted: bool,
}

impl HistoryRow {
    fn snapshot(self) -> Result<Snapshot, Error> {
        let limit = self
            .limit_units
            .map(|units| Count::try_from(unsigned(units)))
            .transpose()
            .map_err(corrupt_row)?;
        let enforcement = self
            .enforcement
            .parse()
            .map_err(|_| corrupt_row(&self.enforcement))?;
        Ok(Snapshot {
            counter: CounterId {
                organization: parse(&self.organization_id)?,
                meter: parse(&self.meter)?,
                start: self.period_start,
            },
            stamp: Stamp {
                generation: unsigned(self.generation),
                version: unsigned(self.policy_version),
                rule: Rule { limit, enforcement },
                end: self.period_end,
                closed: self.closed_at.is_some(),
            },
            used: Count::try_from(unsigned(self.used)).map_err(corrupt_row)?,
            denied: unsigned(self.denied),
            refunded: unsigned(self.refunded),
            sequence: unsigned(self.seq),
            hours: Vec::new(),
            oldest_unstored: None,
            never_stored: false,
            adjusted: self.adjusted.as_deref().map(parse).transpose()?,
            thresholds: Thresholds {
                notified: self
                    .told
                    .as_deref()
                    .map_or(Ok(Notified::default()), parse)?,
                ..Thresholds::default()
            },
        })
    }
}

/// What was told, as rows hold it.
fn notified_text(notified: Notified) -> Option<String> {
    (notified != Notified::default()).then(|| notified.to_string())
}

/// When an organization that is new is due, by the mode of the defaults: so the scheduler need not look at it in another
/// than scheduled mode. Whoever publishes other defaults waits for the lock, and then sees its row.
macro_rules! due_at {
    () => {
        "case when (select settings ->> 'resetMode' from defaults for share) in ('lazy', 'manual')
              then timestamptz 'infinity' else '-infinity' end"
    };
}

/// Sees to it that each of these has a row.
pub(super) async fn create_organizations(
    connection: &mut PgConnection,
    organizations: impl Iterator<Item = &OrganizationId>,
) -> Result<(), Error> {
    let ids: Vec<&str> = organizations.map(OrganizationId::as_str).collect();
    sqlx::query(concat!(
        "with created as (
             insert into organizations (id, due_at)
             select id, ",
        due_at!(),
        "
             from (select distinct id from unnest($1::text[]) as named (id)) as named
             -- With an offset, so that it stays a look into the index, for each, however small the table was once.
             where not exists (select from organizations where organizations.id = named.id offset 0)
             order by id
             on conflict do nothing
             returning id
         )
         insert into standings (organization_id) select id from created",
    ))
    .bind(ids)
    .execute(connection)
    .await?;
    Ok(())
}

async fn store_in(
    connection: &mut PgConnection,
    snapshots: &[Snapshot],
    news: &ThresholdEvents,
    now: DateTime<Utc>,
) -> Result<Vec<bool>, Error> {
    if snapshots.is_empty() {
        return Ok(Vec::new());
    }
    let (mut accepted, begun) = upsert(connection, snapshots, news, now).await?;
    deletions::take_out(connection, snapshots, &mut accepted).await?;
    let (taken, refused): (Vec<_>, Vec<_>) = snapshots
        .iter()
        .zip(&accepted)
        .partition(|(_, accepted)| **accepted);
    let taken: Vec<&Snapshot> = taken.into_iter().map(|(snapshot, _)| snapshot).collect();
    store_hours(connection, taken.iter().copied()).await?;
    adjustments::finish(connection, &taken).await?;
    resets::close(connection, &taken, now).await?;
    resets::end_lazily(connection, &begun, now).await?;
    let refused: Vec<&Snapshot> = refused.into_iter().map(|(snapshot, _)| snapshot).collect();
    let equal = held_already(connection, &refused).await?;
    let stored: Vec<bool> = snapshots
        .iter()
        .zip(accepted)
        .map(|(snapshot, accepted)| accepted || equal.contains(&snapshot.counter))
        .collect();
    // Also of what an earlier flush has stored, because it may have been somebody who tells nothing.
    let told: Vec<Event> = news
        .iter()
        .filter(|(position, _)| stored.get(**position) == Some(&true))
        .flat_map(|(_, news)| news.events.iter().cloned())
        .collect();
    events::record(connection, &told, now).await?;
    Ok(stored)
}

/// Writes the snapshots that are newer than what stands, and creates the organizations that are missing, as
/// [`create_organizations`] does: here, because their rows are looked up once. For each, in order: whether it was
/// written; and those of which nothing was stored before.
async fn upsert<'a>(
    connection: &mut PgConnection,
    snapshots: &'a [Snapshot],
    news: &ThresholdEvents,
    now: DateTime<Utc>,
) -> Result<(Vec<bool>, Vec<&'a CounterId>), Error> {
    let column = |of: fn(&Snapshot) -> i64| snapshots.iter().map(of).collect::<Vec<_>>();
    let notified: Vec<Option<String>> = snapshots
        .iter()
        .enumerate()
        .map(|(position, snapshot)| {
            let news = news.get(&position);
            notified_text(news.map_or(snapshot.thresholds.notified, |events| events.notified))
        })
        .collect();
    let rows: Vec<(String, String, DateTime<Utc>, bool)> = sqlx::query_as(concat!(
        "with read as materialized (
             select new.*, id, plan_id
             from unnest($1::text[], $2::text[], $3::timestamptz[], $4::timestamptz[], $5::bigint[], $6::bigint[],
                         $7::bigint[], $8::bigint[], $9::text[], $10::bigint[], $11::bigint[], $12::bigint[],
                         $13::timestamptz[], $14::text[], $15::text[])
                  as new (organization_id, meter, period_start, period_end, used, denied, refunded, limit_units,
                          enforcement, policy_version, epoch, seq, closed_at, told, adjusted)
             -- With an offset, so that it stays a look into the index, for each, however small the table was once.
             left join lateral (
                 select id, plan_id from organizations where id = organization_id offset 0
             ) as known on true
         ), created as (
             insert into organizations (id, due_at)
             select organization_id, ",
        due_at!(),
        "
             from (select distinct organization_id from read where id is null) as missing
             order by organization_id
             on conflict do nothing
             returning id
         ), listed as (
             insert into standings (organization_id) select id from created returning organization_id
         )
         insert into usage_history (organization_id, meter, period_start, period_end, used, denied, refunded, limit_units,
                                    enforcement, policy_version, epoch, seq, closed_at, told, adjusted, plan_id, stored_at)
         select organization_id, meter, period_start, period_end, used, denied, refunded, limit_units, enforcement,
                policy_version, epoch, seq, closed_at, told, adjusted,
                coalesce(plan_id, (select settings ->> 'planId' from defaults)), $16
         from read
         -- Counted, so that organizations are created before rows are locked, here as everywhere.
         cross join (select count(*) from listed) as first
         order by organization_id collate \"C\", meter collate \"C\", period_start
         on conflict on constraint usage_history_pkey do update set
             period_end = excluded.period_end, used = excluded.used, denied = excluded.denied,
             refunded = excluded.refunded, limit_units = excluded.limit_units, enforcement = excluded.enforcement,
             policy_version = excluded.policy_version, epoch = excluded.epoch, seq = excluded.seq,
             closed_at = excluded.closed_at, told = excluded.told, adjusted = excluded.adjusted,
             stored_at = excluded.stored_at,
             -- A period that is over keeps the plan that it ended with.
             plan_id = case when excluded.period_end <= excluded.stored_at
                            then coalesce(usage_history.plan_id, excluded.plan_id) else excluded.plan_id end
         where (excluded.epoch, excluded.seq) > (usage_history.epoch, usage_history.seq)
             and excluded.policy_version >= usage_history.policy_version
         returning organization_id, meter, period_start, xmax = 0",
    ))
    .bind(snapshots.iter().map(|it| it.counter.organization.as_str()).collect::<Vec<_>>())
    .bind(snapshots.iter().map(|it| it.counter.meter.as_str()).collect::<Vec<_>>())
    .bind(snapshots.iter().map(|it| it.counter.start).collect::<Vec<_>>())
    .bind(snapshots.iter().map(|it| it.stamp.end).collect::<Vec<_>>())
    .bind(column(|it| signed(it.used.get())))
    .bind(column(|it| signed(it.denied)))
    .bind(column(|it| signed(it.refunded)))
    .bind(snapshots.iter().map(|it| it.stamp.rule.limit.map(|limit| signed(limit.get()))).collect::<Vec<_>>())
    .bind(snapshots.iter().map(|it| it.stamp.rule.enforcement.to_string()).collect::<Vec<_>>())
    .bind(column(|it| signed(it.stamp.version)))
    .bind(column(|it| signed(it.stamp.generation)))
    .bind(column(|it| signed(it.sequence)))
    .bind(snapshots.iter().map(|it| it.stamp.end.filter(|_| it.stamp.closed)).collect::<Vec<_>>())
    .bind(notified)
    .bind(snapshots.iter().map(|it| it.adjusted.map(|it| it.to_string())).collect::<Vec<_>>())
    .bind(now)
    .fetch_all(connection)
    .await?;
    let written: HashMap<(&str, &str, DateTime<Utc>), bool> = rows
        .iter()
        .map(|(organization, meter, start, new)| {
            ((organization.as_str(), meter.as_str(), *start), *new)
        })
        .collect();
    let of = |it: &CounterId| {
        let name = (it.organization.as_str(), it.meter.as_str(), it.start);
        written.get(&name).copied()
    };
    let ids = snapshots.iter().map(|it| &it.counter);
    // Also one whose row was inserted when it was restored, empty, because nothing was counted in its period before.
    let begun = snapshots.iter().filter(|it| match of(&it.counter) {
        Some(inserted) => inserted || it.never_stored,
        None => false,
    });
    let begun = begun.map(|it| &it.counter);
    Ok((
        ids.clone().map(|it| of(it).is_some()).collect(),
        begun.collect(),
    ))
}

async fn store_hours(
    connection: &mut PgConnection,
    snapshots: impl Iterator<Item = &Snapshot>,
) -> Result<(), Error> {
    let mut rows: Vec<(&CounterId, &Hour)> = snapshots
        .flat_map(|snapshot| {
            snapshot
                .unstored_hours()
                .map(|hour| (&snapshot.counter, hour))
        })
        .collect();
    if rows.is_empty() {
        return Ok(());
    }
    rows.sort_unstable_by_key(|(counter, hour)| (*counter, hour.start));
    sqlx::query(
        "insert into usage_hourly (organization_id, meter, period_start, hour, used, denied, refunded)
         select * from unnest($1::text[], $2::text[], $3::timestamptz[], $4::timestamptz[], $5::bigint[], $6::bigint[],
                              $7::bigint[])
         on conflict (organization_id, meter, period_start, hour) do update set
             used = excluded.used, denied = excluded.denied, refunded = excluded.refunded",
    )
    .bind(rows.iter().map(|(counter, _)| counter.organization.as_str()).collect::<Vec<_>>())
    .bind(rows.iter().map(|(counter, _)| counter.meter.as_str()).collect::<Vec<_>>())
    .bind(rows.iter().map(|(counter, _)| counter.start).collect::<Vec<_>>())
    .bind(rows.iter().map(|(_, hour)| hour.start).collect::<Vec<_>>())
    .bind(rows.iter().map(|(_, hour)| hour.used).collect::<Vec<_>>())
    .bind(rows.iter().map(|(_, hour)| signed(hour.denied)).collect::<Vec<_>>())
    .bind(rows.iter().map(|(_, hour)| signed(hour.refunded)).collect::<Vec<_>>())
    .execute(connection)
    .await?;
    Ok(())
}

/// Which of these Postgres holds exactly, because an earlier flush stored them.
async fn held_already(
    connection: &mut PgConnection,
    snapshots: &[&Snapshot],
) -> Result<HashSet<CounterId>, Error> {
    if snapshots.is_empty() {
        return Ok(HashSet::new());
    }
    let rows: Vec<(i64,)> = sqlx::query_as(
        "select position
         from unnest($1::text[], $2::text[], $3::timestamptz[], $4::bigint[], $5::bigint[], $6::bigint[])
              with ordinality as read (organization_id, meter, period_start, epoch, seq, policy_version, position)
         join usage_history using (organization_id, meter, period_start, epoch, seq, policy_version)",
    )
    .bind(snapshots.iter().map(|it| it.counter.organization.as_str()).collect::<Vec<_>>())
    .bind(snapshots.iter().map(|it| it.counter.meter.as_str()).collect::<Vec<_>>())
    .bind(snapshots.iter().map(|it| it.counter.start).collect::<Vec<_>>())
    .bind(snapshots.iter().map(|it| signed(it.stamp.generation)).collect::<Vec<_>>())
    .bind(snapshots.iter().map(|it| signed(it.sequence)).collect::<Vec<_>>())
    .bind(snapshots.iter().map(|it| signed(it.stamp.version)).collect::<Vec<_>>())
    .fetch_all(connection)
    .await?;
    Ok(rows
        .iter()
        .filter_map(|(position,)| named(snapshots, *position))
        .map(|snapshot| snapshot.counter.clone())
        .collect())
}
