//! Explicit resets: committed here first, with a policy version, then finished in Redis (rule 6 of the protocol).
//!
//! A reset is *pending* until the last snapshot of the counter that it closed is stored. A meter has one pending
//! reset at most, so that counters are closed in the order of their periods.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Duration, Utc};
use serde::{Deserialize, Serialize};
use sqlx::{FromRow, PgConnection};

use super::idempotency::{self, Attempt, Earlier};
use super::organizations::{self, parse};
use super::{Actor, Error, Postgres, adjustments, audit, events, unsigned};
use crate::domain::counter::{CounterId, Snapshot};
use crate::domain::event::{self, Event};
use crate::domain::ids::{METERS_MAX, MeterId, OrganizationId};
use crate::domain::period::ResetMode;
use crate::domain::quantity::Count;
use crate::domain::schedule::Reset;

/// What shall be reset.
#[derive(Debug, Clone)]
pub struct Wish<'a> {
    /// Whose.
    pub organization: &'a OrganizationId,
    /// The policy version of the last deletion that the caller knew of when it saw that there is such an organization.
    pub incarnation: u64,
    /// These meters; none = all that have a limit or a count.
    pub meters: Option<&'a BTreeSet<MeterId>>,
    /// What Redis knows to be counted.
    pub counted: &'a [MeterId],
    /// Why.
    pub reason: Option<&'a str>,
    /// Makes a repetition harmless.
    pub attempt: Option<&'a Attempt>,
}

/// A reset as it was committed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Committed {
    /// When the one period of each meter ended and the next began.
    pub at: DateTime<Utc>,
    /// What happened to each meter.
    pub meters: BTreeMap<MeterId, Cut>,
}

/// Where a reset has cut the period of a meter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cut {
    /// When the period began that is closed.
    pub closed_start: DateTime<Utc>,
    /// When the one ends that runs now, if it does.
    pub end: Option<DateTime<Utc>>,
}

/// What came of a wish.
#[derive(Debug)]
pub enum Outcome {
    /// It is committed, now or, where it is a repetition, before.
    Committed {
        /// What was committed.
        committed: Committed,
        /// Whether this is what an earlier attempt was told.
        replayed: bool,
    },
    /// The organization was deleted meanwhile; nothing was done.
    Deleted,
    /// An earlier reset of one of the meters, or an adjustment, has not been finished; nothing was done.
    Unfinished,
    /// The idempotency key was used for another payload.
    KeyReused,
    /// The organization has as many meters as it may have; this would be one more.
    TooManyMeters(MeterId),
}

/// Commits a reset at `now`, or as soon after the running period's start as instants can be told apart.
pub async fn commit(
    postgres: &Postgres,
    wish: &Wish<'_>,
    actor: &Actor,
    now: DateTime<Utc>,
) -> Result<Outcome, Error> {
    let id = wish.organization;
    let (mut transaction, version) = postgres.begin_policy_change().await?;
    match idempotency::find(&mut transaction, wish.attempt).await? {
        Earlier::Nothing => {}
        Earlier::Other => return Ok(Outcome::KeyReused),
        Earlier::Answered(committed) => {
            return Ok(Outcome::Committed {
                committed,
                replayed: true,
            });
        }
    }
    let before = organizations::read(&mut transaction, id).await?;
    let before = before.ok_or_else(organizations::no_defaults)?;
    if before.organization.is_none() && before.incarnation != wish.incarnation {
        return Ok(Outcome::Deleted);
    }
    let policy = before.resolve(now);
    let meters = if let Some(meters) = wish.meters {
        meters.clone()
    } else {
        let mut meters: BTreeSet<MeterId> = policy.limits.keys().cloned().collect();
        meters.extend(wish.counted.iter().cloned());
        meters.extend(counted(&mut transaction, id, now).await?);
        meters
    };
    let mut organization = before.organization.clone().unwrap_or_default();
    let mut known: BTreeSet<&MeterId> = organization.resets.keys().chain(wish.counted).collect();
    if let Some(one_more) = meters
        .iter()
        .find(|meter| known.insert(*meter) && known.len() > METERS_MAX)
    {
        return Ok(Outcome::TooManyMeters(one_more.clone()));
    }
    // An adjustment that is pending must find its counter open.
    if !pending_in(&mut transaction, id).await?.is_disjoint(&meters)
        || adjustments::is_pending(&mut transaction, id).await?
    {
        return Ok(Outcome::Unfinished);
    }

    let schedule = &policy.schedule;
    // Never before another reset, whatever the clocks of two instances say.
    let newest = schedule.resets.values().map(|reset| reset.at).max();
    let now = newest.map_or(now, |newest| now.max(newest));
    let starts = meters
        .iter()
        .map(|meter| (meter.clone(), schedule.running(meter, now).start));
    let starts: BTreeMap<MeterId, DateTime<Utc>> = starts.collect();
    let at = starts
        .values()
        .filter_map(|start| start.checked_add_signed(Duration::milliseconds(1)))
        .fold(now, DateTime::max);
    for (meter, closed_start) in &starts {
        let reset = Reset {
            closed_start: *closed_start,
            at,
        };
        organization.resets.insert(meter.clone(), reset);
    }
    organization.version = version;
    organizations::write(&mut transaction, id, &organization).await?;
    let after = organizations::Sources {
        organization: Some(organization),
        ..before
    };
    let schedule = after.policy().schedule;
    let cut = |(meter, closed_start): (&MeterId, &DateTime<Utc>)| {
        let cut = Cut {
            closed_start: *closed_start,
            end: schedule.running(meter, at).end,
        };
        (meter.clone(), cut)
    };
    let committed = Committed {
        at,
        meters: starts.iter().map(cut).collect(),
    };
    insert(&mut transaction, id, &committed).await?;
    let began = |start: &dyn Fn(&DateTime<Utc>) -> DateTime<Utc>| -> BTreeMap<&MeterId, _> {
        let periods = starts
            .iter()
            .map(|(meter, was)| (meter, serde_json::json!({"periodStart": start(was)})));
        periods.collect()
    };
    let was = serde_json::json!({"meters": began(&|start| *start)});
    let is = serde_json::json!({"meters": began(&|_| at), "reason": wish.reason});
    let action = "organization.reset";
    audit::record(&mut transaction, actor, action, Some(id), &was, &is).await?;
    idempotency::note(&mut transaction, wish.attempt, &committed, now).await?;
    transaction.commit().await?;
    Ok(Outcome::Committed {
        committed,
        replayed: false,
    })
}

/// What the periods held that a reset has closed, once it is finished.
pub async fn previous_counts(
    postgres: &Postgres,
    organization: &OrganizationId,
    committed: &Committed,
) -> Result<BTreeMap<MeterId, Count>, Error> {
    let (meters, starts): (Vec<&str>, Vec<DateTime<Utc>>) = committed
        .meters
        .iter()
        .map(|(meter, cut)| (meter.as_str(), cut.closed_start))
        .unzip();
    let rows: Vec<(String, i64)> = sqlx::query_as(
        "select meter, used
         from unnest($2::text[], $3::timestamptz[]) as closed (meter, period_start)
         join usage_history using (meter, period_start)
         where organization_id = $1",
    )
    .bind(organization.as_str())
    .bind(meters)
    .bind(starts)
    .fetch_all(&postgres.pool)
    .await?;
    rows.iter()
        .map(|(meter, used)| {
            let used = Count::try_from(unsigned(*used)).map_err(organizations::corrupt_row)?;
            Ok((parse(meter)?, used))
        })
        .collect()
}

/// The meters of an organization whose last reset is pending.
pub async fn pending(
    postgres: &Postgres,
    organization: &OrganizationId,
) -> Result<BTreeSet<MeterId>, Error> {
    pending_in(&mut *postgres.pool.acquire().await?, organization).await
}

/// Organizations with pending resets, at most `count`.
pub async fn unfinished(postgres: &Postgres, count: u32) -> Result<Vec<OrganizationId>, Error> {
    let rows: Vec<(String,)> = sqlx::query_as(
        "select distinct organization_id from resets where pending order by organization_id limit $1",
    )
    .bind(i64::from(count))
    .fetch_all(&postgres.pool)
    .await?;
    rows.iter().map(|(id,)| parse(id)).collect()
}

/// Takes note of the closed counters among what was just stored: their periods are final, which is an event.
pub(super) async fn close(
    connection: &mut PgConnection,
    snapshots: &[&Snapshot],
    now: DateTime<Utc>,
) -> Result<(), Error> {
    let closed: Vec<&Snapshot> = snapshots
        .iter()
        .filter(|snapshot| snapshot.stamp.closed)
        .copied()
        .collect();
    if closed.is_empty() {
        return Ok(());
    }
    let rows: Vec<EndedRow> = sqlx::query_as(
        "with closed as (
             select * from unnest($1::text[], $2::text[], $3::timestamptz[]) as closed (organization_id, meter, start)
         ), ended as (
             update usage_history as history set reset_type = 'manual'
             from closed
             where (history.organization_id, history.meter, history.period_start)
                 = (closed.organization_id, closed.meter, closed.start)
               and history.reset_type is null
             returning history.organization_id, history.meter, history.used
         ), finished as (
             update resets set pending = false
             from closed
             where (resets.organization_id, resets.meter, resets.closed_start)
                 = (closed.organization_id, closed.meter, closed.start)
             returning resets.organization_id, resets.meter, resets.at, resets.period_end
         )
         select organization_id, meter, used, at, period_end from ended join finished using (organization_id, meter)",
    )
    .bind(closed.iter().map(|it| it.counter.organization.as_str()).collect::<Vec<_>>())
    .bind(closed.iter().map(|it| it.counter.meter.as_str()).collect::<Vec<_>>())
    .bind(closed.iter().map(|it| it.counter.start).collect::<Vec<_>>())
    .fetch_all(&mut *connection)
    .await?;
    let told = rows.into_iter().map(|row| row.event(ResetMode::Manual));
    let told: Vec<Event> = told.collect::<Result<_, _>>()?;
    events::record(connection, &told, now).await
}

/// Takes note of periods of which there was no snapshot before: where the mode is lazy, the one before has been
/// ended by the first call after it. Where it is scheduled, one that is over already is yet to be ended.
pub(super) async fn end_lazily(
    connection: &mut PgConnection,
    begun: &[&CounterId],
    now: DateTime<Utc>,
) -> Result<(), Error> {
    if begun.is_empty() {
        return Ok(());
    }
    let rows: Vec<EndedRow> = sqlx::query_as(
        "with begun as (
             select distinct organization_id, meter, coalesce(reset_mode, (select settings ->> 'resetMode' from defaults)) as mode
             from unnest($1::text[], $2::text[]) as begun (organization_id, meter)
             join organizations on id = organization_id
         ), ended as (
             update usage_history as history set reset_type = 'lazy'
             from begun
             cross join lateral (
                 select over.period_start as ended_start, next.period_start, next.period_end
                 from usage_history as over
                 cross join lateral (
                     select period_start, period_end from usage_history as next
                     where (next.organization_id, next.meter) = (over.organization_id, over.meter)
                       and next.period_start >= over.period_end
                     order by next.period_start
                     limit 1
                 ) as next
                 where (over.organization_id, over.meter) = (begun.organization_id, begun.meter)
                   and over.reset_type is null and over.period_end <= $3
             ) as pair
             where begun.mode = 'lazy'
               and (history.organization_id, history.meter, history.period_start)
                 = (begun.organization_id, begun.meter, pair.ended_start)
               and history.reset_type is null
             returning history.organization_id, history.meter, history.used, pair.period_start as at, pair.period_end
         ), due as (
             update organizations set due_at = '-infinity'
             from begun
             where id = begun.organization_id and mode = 'scheduled'
               and exists (select from usage_history as over
                           where (over.organization_id, over.meter) = (begun.organization_id, begun.meter)
                             and over.reset_type is null and over.period_end <= $3)
         )
         select organization_id, meter, used, at, period_end from ended",
    )
    .bind(begun.iter().map(|it| it.organization.as_str()).collect::<Vec<_>>())
    .bind(begun.iter().map(|it| it.meter.as_str()).collect::<Vec<_>>())
    .bind(now)
    .fetch_all(&mut *connection)
    .await?;
    let told = rows.into_iter().map(|row| row.event(ResetMode::Lazy));
    let told: Vec<Event> = told.collect::<Result<_, _>>()?;
    events::record(connection, &told, now).await
}

/// A period that was ended, and the next.
#[derive(FromRow)]
struct EndedRow {
    organization_id: String,
    meter: String,
    used: i64,
    at: DateTime<Utc>,
    period_end: Option<DateTime<Utc>>,
}

impl EndedRow {
    fn event(self, reset_type: ResetMode) -> Result<Event, Error> {
        Ok(Event::UsageReset(event::Reset {
            organization_id: parse(&self.organization_id)?,
            meter: parse(&self.meter)?,
            reset_type: reset_type.to_string(),
            previous_count: Count::try_from(unsigned(self.used))
                .map_err(organizations::corrupt_row)?,
            period_start: self.at,
            reset_date: self.period_end,
        }))
    }
}

/// The same, within a transaction.
pub(super) async fn pending_in(
    connection: &mut PgConnection,
    organization: &OrganizationId,
) -> Result<BTreeSet<MeterId>, Error> {
    let rows: Vec<(String,)> =
        sqlx::query_as("select meter from resets where organization_id = $1 and pending")
            .bind(organization.as_str())
            .fetch_all(connection)
            .await?;
    rows.iter().map(|(meter,)| parse(meter)).collect()
}

/// Every meter that has a count in a period that runs.
async fn counted(
    connection: &mut PgConnection,
    organization: &OrganizationId,
    now: DateTime<Utc>,
) -> Result<Vec<MeterId>, Error> {
    let rows: Vec<(String,)> = sqlx::query_as(
        "select distinct meter from usage_history
         where organization_id = $1 and (period_end is null or period_end > $2)",
    )
    .bind(organization.as_str())
    .bind(now)
    .fetch_all(connection)
    .await?;
    rows.iter().map(|(meter,)| parse(meter)).collect()
}

async fn insert(
    connection: &mut PgConnection,
    organization: &OrganizationId,
    committed: &Committed,
) -> Result<(), Error> {
    let cuts = committed.meters.values();
    sqlx::query(
        "insert into resets (organization_id, meter, closed_start, at, period_end)
         select $1, meter, closed_start, $5, period_end
         from unnest($2::text[], $3::timestamptz[], $4::timestamptz[]) as new (meter, closed_start, period_end)
         on conflict on constraint resets_pkey do update set
             closed_start = excluded.closed_start, at = excluded.at, period_end = excluded.period_end, pending = true",
    )
    .bind(organization.as_str())
    .bind(committed.meters.keys().map(MeterId::as_str).collect::<Vec<_>>())
    .bind(cuts.clone().map(|cut| cut.closed_start).collect::<Vec<_>>())
    .bind(cuts.map(|cut| cut.end).collect::<Vec<_>>())
    .bind(committed.at)
    .execute(connection)
    .await?;
    Ok(())
}
