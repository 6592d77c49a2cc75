//! Explicit resets: committed here first, with a policy version, then finished in Redis (rule 6 of the protocol).
//!
//! A reset is *pending* until the last snapshot of the counter that it closed is stored. A meter has at most one pending
//! reset, so that counters are closed in the order of their periods.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Duration, Utc};
use serde::{Deserialize, Serialize};
use serde_json::json;
use sqlx::PgConnection;

use super::audit::{self, Actor};
use super::idempotency::{self, IdempotencyUse, Replay};
use super::pool::{Postgres, Result};
use super::sources::{self, Sources};
use super::types::BindColumns as _;
use super::{organizations, pending};
use crate::domain::ids::{METERS_MAX, MeterId, OrganizationId};
use crate::domain::organization::Organization;
use crate::domain::quantity::Count;
use crate::domain::schedule::Reset;

/// The request for a reset.
#[derive(Debug, Clone)]
pub struct ResetRequest<'a> {
    /// The organization.
    pub organization: &'a OrganizationId,
    /// The last deletion that the caller knew of when it checked that the organization exists.
    pub incarnation: u64,
    /// The meters to reset; none = all with a limit or a count.
    pub meters: Option<&'a BTreeSet<MeterId>>,
    /// The meters with a count in Redis.
    pub counted: &'a [MeterId],
    /// The reason, for the audit log.
    pub reason: Option<&'a str>,
    /// The idempotency key, if the caller sent one.
    pub idempotency: Option<&'a IdempotencyUse>,
    /// Whether to roll the reset back instead of committing it.
    pub dry_run: bool,
}

/// A committed reset.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Committed {
    /// When the period of each meter ended and the next began.
    pub at: DateTime<Utc>,
    /// The periods of each meter.
    pub meters: BTreeMap<MeterId, Cut>,
}

/// The periods on both sides of a reset of a meter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cut {
    /// When the closed period began.
    pub closed_start: DateTime<Utc>,
    /// When the new period ends, if it ends by itself.
    pub end: Option<DateTime<Utc>>,
}

/// The result of a request.
#[derive(Debug)]
pub enum Outcome {
    /// The reset is committed.
    Committed {
        /// The reset.
        committed: Committed,
        /// Whether an earlier request with the same idempotency key committed it.
        replayed: bool,
    },
    /// The organization was deleted since; nothing was done.
    Deleted,
    /// An earlier reset of one of the meters, an adjustment, or an increment is pending; nothing was done.
    Unfinished,
    /// The idempotency key was used for another payload.
    KeyReused,
    /// The organization has the maximum number of meters; this would be one more.
    TooManyMeters(MeterId),
}

/// Commits a reset, or rolls it back in a dry run, at `now`, or as soon after the running period's start as instants can be told apart.
pub async fn commit(
    db: &Postgres,
    request: &ResetRequest<'_>,
    actor: &Actor,
    now: DateTime<Utc>,
) -> Result<Outcome> {
    let id = request.organization;
    let (mut tx, version) = db.begin_policy_change().await?;
    match idempotency::find(&mut *tx, request.idempotency).await? {
        Replay::New => {}
        Replay::KeyReused => return Ok(Outcome::KeyReused),
        Replay::Response(committed) => {
            return Ok(Outcome::Committed {
                committed,
                replayed: true,
            });
        }
    }
    let before = sources::read(&mut tx, id).await?;
    if before.organization.is_none() && before.incarnation != request.incarnation {
        return Ok(Outcome::Deleted);
    }
    let meters = match request.meters {
        Some(meters) => meters.clone(),
        None => all_meters(&mut tx, request, &before, now).await?,
    };
    if let Some(excess) = excess_meter(request, &before, &meters) {
        return Ok(Outcome::TooManyMeters(excess.clone()));
    }
    organizations::create(&mut tx, [id]).await?;
    // What is pending must find its counter open.
    let pending = pending::reset_meters(&mut *tx, id).await?;
    if !pending.is_disjoint(&meters)
        || pending::has_adjustment(&mut *tx, id).await?
        || pending::has_increments(&mut tx, id).await?
    {
        return Ok(Outcome::Unfinished);
    }
    let (organization, committed) = reset(before, &meters, version, now);
    organizations::write(&mut tx, id, &organization).await?;
    insert(&mut tx, id, &committed).await?;
    record(&mut tx, request, actor, &committed).await?;
    idempotency::record(&mut *tx, request.idempotency, &committed, now).await?;
    if request.dry_run {
        tx.rollback().await?;
    } else {
        tx.commit().await?;
    }
    Ok(Outcome::Committed {
        committed,
        replayed: false,
    })
}

/// Every meter with a limit, or a count in a running period.
async fn all_meters(
    tx: &mut PgConnection,
    request: &ResetRequest<'_>,
    sources: &Sources,
    now: DateTime<Utc>,
) -> Result<BTreeSet<MeterId>> {
    let stored: Vec<MeterId> = sqlx::query_scalar(
        "select distinct meter from usage_history
         where organization_id = $1 and (period_end is null or period_end > $2)",
    )
    .bind(request.organization)
    .bind(now)
    .fetch_all(tx)
    .await?;
    let limited = sources.resolve(now).limits.into_keys();
    let counted = request.counted.iter().cloned();
    Ok(limited.chain(counted).chain(stored).collect())
}

/// The first meter beyond the maximum number of meters that an organization may have.
fn excess_meter<'m>(
    request: &ResetRequest<'_>,
    sources: &Sources,
    meters: &'m BTreeSet<MeterId>,
) -> Option<&'m MeterId> {
    let resets = sources.organization.iter().flat_map(|it| it.resets.keys());
    let mut known: BTreeSet<&MeterId> = resets.chain(request.counted).collect();
    let mut added = meters.iter();
    added.find(|meter| known.insert(*meter) && known.len() > METERS_MAX)
}

/// Closes the running periods of meters; returns the organization as it is afterwards.
fn reset(
    before: Sources,
    meters: &BTreeSet<MeterId>,
    version: u64,
    now: DateTime<Utc>,
) -> (Organization, Committed) {
    let schedule = before.resolve(now).schedule;
    // Never before another reset, even if the clocks of instances differ.
    let newest = schedule.resets.values().map(|reset| reset.at).max();
    let now = newest.map_or(now, |newest| now.max(newest));
    let starts = meters
        .iter()
        .map(|meter| (meter, schedule.running(meter, now).start));
    let starts: BTreeMap<&MeterId, DateTime<Utc>> = starts.collect();
    let at = starts
        .values()
        .filter_map(|start| start.checked_add_signed(Duration::milliseconds(1)))
        .fold(now, DateTime::max);
    let mut organization = before.organization.clone().unwrap_or_default();
    organization.version = version;
    for (meter, closed_start) in &starts {
        let closed_start = *closed_start;
        let reset = Reset { closed_start, at };
        organization.resets.insert((*meter).clone(), reset);
    }
    let after = Sources {
        organization: Some(organization.clone()),
        ..before
    };
    let schedule = after.policy().schedule;
    let cuts = starts.into_iter().map(|(meter, closed_start)| {
        let end = schedule.running(meter, at).end;
        (meter.clone(), Cut { closed_start, end })
    });
    let meters = cuts.collect();
    (organization, Committed { at, meters })
}

async fn insert(
    tx: &mut PgConnection,
    organization: &OrganizationId,
    committed: &Committed,
) -> Result<()> {
    sqlx::query(
        "insert into resets (organization_id, meter, closed_start, at, period_end)
         select $1, meter, closed_start, $5, period_end
         from unnest($2::text[], $3::timestamptz[], $4::timestamptz[]) as new (meter, closed_start, period_end)
         on conflict on constraint resets_pkey do update set
             closed_start = excluded.closed_start, at = excluded.at, period_end = excluded.period_end, pending = true",
    )
    .bind(organization)
    .column(committed.meters.keys(), |meter| meter)
    .column(committed.meters.values(), |cut| cut.closed_start)
    .column(committed.meters.values(), |cut| cut.end)
    .bind(committed.at)
    .execute(tx)
    .await?;
    Ok(())
}

/// Records a reset in the audit log.
async fn record(
    tx: &mut PgConnection,
    request: &ResetRequest<'_>,
    actor: &Actor,
    committed: &Committed,
) -> Result<()> {
    let periods = |start: &dyn Fn(&Cut) -> DateTime<Utc>| -> BTreeMap<&MeterId, _> {
        let periods = committed.meters.iter();
        let periods = periods.map(|(meter, cut)| (meter, json!({"periodStart": start(cut)})));
        periods.collect()
    };
    let was = json!({"meters": periods(&|cut| cut.closed_start)});
    let is = json!({"meters": periods(&|_| committed.at), "reason": request.reason});
    let (action, organization) = ("organization.reset", Some(request.organization));
    audit::record(tx, actor, action, organization, &was, &is).await
}

/// Reads the final counts of the periods that a finished reset has closed.
pub async fn previous_counts(
    db: &Postgres,
    organization: &OrganizationId,
    committed: &Committed,
) -> Result<BTreeMap<MeterId, Count>> {
    let rows: Vec<(MeterId, Count)> = sqlx::query_as(
        "select meter, used
         from unnest($2::text[], $3::timestamptz[]) as closed (meter, period_start)
         join usage_history using (meter, period_start)
         where organization_id = $1",
    )
    .bind(organization)
    .column(committed.meters.keys(), |meter| meter)
    .column(committed.meters.values(), |cut| cut.closed_start)
    .fetch_all(db.pool().await?)
    .await?;
    Ok(rows.into_iter().collect())
}

/// Reads the meters of an organization with a pending reset.
pub async fn pending(db: &Postgres, organization: &OrganizationId) -> Result<BTreeSet<MeterId>> {
    pending::reset_meters(db.pool().await?, organization).await
}

/// Lists at most `count` organizations with pending resets.
pub async fn unfinished(db: &Postgres, count: u32) -> Result<Vec<OrganizationId>> {
    Ok(sqlx::query_scalar(
        "select distinct organization_id from resets where pending order by organization_id limit $1",
    )
    .bind(i64::from(count))
    .fetch_all(db.pool().await?)
    .await?)
}
