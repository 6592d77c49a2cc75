//! The overview of the service: organizations by plan and by state, and calls by minute.

use std::collections::BTreeMap;

use chrono::{DateTime, TimeDelta, Utc};
use sqlx::FromRow;
use uuid::Uuid;

use super::pool::{Postgres, Result};
use super::types::{BigInt, BindColumns as _};
use crate::domain::ids::PlanId;
use crate::domain::summary::{NEARLY_FULL, State};

/// How many organizations there are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Organizations {
    /// All that were counted or configured, and not deleted.
    pub total: u64,
    /// Those that are new in the last 7 days.
    pub new_this_week: u64,
    /// On each plan that has any.
    pub by_plan: BTreeMap<PlanId, u64>,
    /// In each state.
    pub by_state: ByState,
}

/// Organizations by the state of their worst meter, each in one of these.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ByState {
    /// Below every warning.
    pub ok: u64,
    /// At the lowest percentage of `warnAt`, and below 95 %.
    pub warning: u64,
    /// From 95 % on.
    pub nearly_full: u64,
    /// Above a soft limit.
    pub exceeded_soft: u64,
    /// At or above a hard limit.
    pub exceeded_hard: u64,
}

#[derive(FromRow)]
struct Group {
    plan_id: Option<PlanId>,
    state: i16,
    nearly_full: bool,
    denies: bool,
    #[sqlx(try_from = "i64")]
    organizations: u64,
}

impl ByState {
    fn add(&mut self, group: &Group) {
        let count = if group.state == State::Exceeded as i16 {
            if group.denies {
                &mut self.exceeded_hard
            } else {
                &mut self.exceeded_soft
            }
        } else if group.nearly_full {
            &mut self.nearly_full
        } else if group.state == State::Warning as i16 {
            &mut self.warning
        } else {
            &mut self.ok
        };
        *count += group.organizations;
    }
}

/// Counts organizations, from their usage summaries.
pub async fn organizations(db: &Postgres, now: DateTime<Utc>) -> Result<Organizations> {
    let groups: Vec<Group> = sqlx::query_as(
        "select coalesce(plan_id, (select settings->>'planId' from defaults)) as plan_id, state, nearly_full, denies,
                count(*) as organizations
         from (
             -- A row whose period is over is blank.
             select plan_id,
                    case when period_end > $1 then state else 0::smallint end as state,
                    period_end > $1 and fullness >= $2 as nearly_full,
                    period_end > $1 and denies as denies
             from standings
         ) as running
         group by 1, 2, 3, 4",
    )
    .bind(now)
    .bind(BigInt(NEARLY_FULL))
    .fetch_all(db.pool().await?)
    .await?;
    let BigInt(new_this_week) = sqlx::query_scalar(
        "select count(*) from organizations
         where deleted_at is null and created_at > now() - interval '7 days'",
    )
    .fetch_one(db.pool().await?)
    .await?;
    let mut counted = Organizations {
        new_this_week,
        ..Organizations::default()
    };
    for group in groups {
        counted.total += group.organizations;
        counted.by_state.add(&group);
        if let Some(plan) = group.plan_id {
            *counted.by_plan.entry(plan).or_default() += group.organizations;
        }
    }
    Ok(counted)
}

/// Records the calls of an instance, by minute, and when it last stored a snapshot. Removes minutes before `oldest`.
pub async fn record(
    db: &Postgres,
    instance: Uuid,
    calls: &BTreeMap<DateTime<Utc>, u64>,
    oldest: DateTime<Utc>,
    stored_at: Option<DateTime<Utc>>,
) -> Result<()> {
    if !calls.is_empty() {
        sqlx::query(
            "with expired as (delete from call_minutes where minute < $4)
             insert into call_minutes (minute, instance, calls)
             select minute, $1, calls from unnest($2::timestamptz[], $3::bigint[]) as new (minute, calls)
             on conflict on constraint call_minutes_pkey do update set calls = excluded.calls",
        )
        .bind(instance.simple().to_string())
        .column(calls.keys(), |minute| minute)
        .column(calls.values(), |calls| BigInt(*calls))
        .bind(oldest)
        .execute(db.pool().await?)
        .await?;
    }
    if let Some(at) = stored_at {
        sqlx::query(
            "insert into last_flush (at) values ($1)
             on conflict on constraint last_flush_pkey do update set at = excluded.at where last_flush.at < excluded.at",
        )
        .bind(at)
        .execute(db.pool().await?)
        .await?;
    }
    Ok(())
}

/// Reads the calls of all instances in each minute since `from`; minutes without calls are absent.
pub async fn calls(db: &Postgres, from: DateTime<Utc>) -> Result<BTreeMap<DateTime<Utc>, u64>> {
    let rows: Vec<(DateTime<Utc>, BigInt)> = sqlx::query_as(
        "select minute, sum(calls)::bigint from call_minutes where minute >= $1 group by minute",
    )
    .bind(from)
    .fetch_all(db.pool().await?)
    .await?;
    let minutes = rows.into_iter().map(|(minute, calls)| (minute, calls.0));
    Ok(minutes.collect())
}

/// Reads when a snapshot was last stored.
pub async fn last_snapshot_at(db: &Postgres) -> Result<Option<DateTime<Utc>>> {
    Ok(sqlx::query_scalar("select at from last_flush")
        .fetch_optional(db.pool().await?)
        .await?)
}

/// How far from `now` the minutes reach that are kept.
pub const KEPT: TimeDelta = TimeDelta::minutes(61);
