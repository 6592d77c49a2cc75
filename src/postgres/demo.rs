//! Writes the demo's year into history.
//!
//! A row has epoch 0 and a sequence that no import and no scheduled period has: any snapshot of a counter replaces it, and a
//! running period is restored from it.

use std::fmt::Write as _;

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::{Value, json};
use sqlx::PgConnection;
use sqlx::types::Json;

use super::events;
use super::pool::{Postgres, Result};
use super::types::BindColumns as _;
use super::usage::{ensure_partitions, hours_kept_since};
use crate::domain::event::{Event, Reset, ThresholdCrossing};
use crate::domain::ids::{MeterId, OrganizationId};
use crate::domain::quantity::Count;

/// How much is sent to Postgres at once.
const CHUNK: usize = 256 * 1024;

/// A period of history.
#[derive(Debug)]
pub struct PastPeriod {
    /// What was counted.
    pub meter: MeterId,
    /// Its first instant.
    pub start: DateTime<Utc>,
    /// The first instant after it.
    pub end: DateTime<Utc>,
    /// Whether it has not ended.
    pub running: bool,
    /// Its limit.
    pub limit: Count,
    /// Whether the limit is soft.
    pub soft: bool,
    /// The plan of the organization.
    pub plan: &'static str,
    /// Units counted.
    pub used: Count,
    /// Calls denied.
    pub denied: u64,
    /// Its hours, which add up to it.
    pub hours: Vec<PastHour>,
}

/// An hour of history.
#[derive(Debug)]
pub struct PastHour {
    /// The start of its slot.
    pub start: DateTime<Utc>,
    /// Units counted.
    pub used: u64,
    /// Calls denied.
    pub denied: u64,
}

/// A change of plan, for the audit log.
#[derive(Debug)]
pub struct PastPlanChange {
    /// When it happened.
    pub at: DateTime<Utc>,
    /// The plan before.
    pub before: &'static str,
    /// The plan after.
    pub after: &'static str,
}

/// An organization and its past.
#[derive(Debug)]
pub struct Past {
    /// The organization.
    pub organization: OrganizationId,
    /// When it was created.
    pub joined: DateTime<Utc>,
    /// Its changes of plan.
    pub plan_changes: Vec<PastPlanChange>,
    /// Its periods.
    pub periods: Vec<PastPeriod>,
}

/// Writes all of it, or nothing.
pub async fn write(db: &Postgres, pasts: &[Past], now: DateTime<Utc>) -> Result<()> {
    let hours = || periods(pasts).flat_map(|(_, period)| &period.hours);
    ensure_partitions(db, hours().map(|hour| hour.start)).await?;
    let kept_since = hours_kept_since(db).await?;
    let mut tx = db.pool().await?.begin().await?;
    sqlx::query(
        "update organizations set created_at = joined
         from unnest($1::text[], $2::timestamptz[]) as past (id, joined) where organizations.id = past.id",
    )
    .column(pasts, |past| &past.organization)
    .column(pasts, |past| past.joined)
    .execute(&mut *tx)
    .await?;
    copy_periods(&mut tx, pasts, now).await?;
    copy_hours(&mut tx, pasts, kept_since).await?;
    for past in pasts {
        record_events(&mut tx, past).await?;
        for change in &past.plan_changes {
            let plan = |id: &str| json!({ "planId": id });
            let (before, after) = (plan(change.before), plan(change.after));
            audit(&mut tx, &past.organization, change.at, &before, &after).await?;
        }
    }
    tx.commit().await?;
    Ok(())
}

fn periods(pasts: &[Past]) -> impl Iterator<Item = (&OrganizationId, &PastPeriod)> {
    pasts.iter().flat_map(|past| {
        let of_past = move |period| (&past.organization, period);
        past.periods.iter().map(of_past)
    })
}

async fn copy_periods(tx: &mut PgConnection, pasts: &[Past], now: DateTime<Utc>) -> Result<()> {
    let mut copy = tx
        .copy_in_raw(
            "copy usage_history (organization_id, meter, period_start, period_end, used, denied, refunded, limit_units,
                                 enforcement, policy_version, epoch, seq, stored_at, reset_type, plan_id) from stdin",
        )
        .await?;
    let mut text = String::new();
    for (organization, period) in periods(pasts) {
        let PastPeriod {
            meter,
            start,
            end,
            plan,
            denied,
            ..
        } = period;
        let (used, limit) = (period.used.get(), period.limit.get());
        let enforcement = if period.soft { "soft" } else { "hard" };
        let reset_type = if period.running { "\\N" } else { "lazy" };
        let stored_at = now.min(*end);
        let _ = writeln!(
            text,
            "{organization}\t{meter}\t{start}\t{end}\t{used}\t{denied}\t0\t{limit}\t{enforcement}\t0\t0\t1000\t{stored_at}\t{reset_type}\t{plan}"
        );
    }
    copy.send(text.into_bytes()).await?;
    copy.finish().await?;
    Ok(())
}

/// Those whose month was dropped have no partition.
async fn copy_hours(
    tx: &mut PgConnection,
    pasts: &[Past],
    kept_since: Option<DateTime<Utc>>,
) -> Result<()> {
    let is_kept = |hour: &PastHour| kept_since.is_none_or(|since| hour.start >= since);
    let mut copy = tx
        .copy_in_raw("copy usage_hourly (organization_id, meter, period_start, hour, used, denied, refunded) from stdin")
        .await?;
    let mut text = String::with_capacity(CHUNK * 2);
    for (organization, period) in periods(pasts) {
        let (meter, start) = (&period.meter, period.start);
        for hour in period.hours.iter().filter(|hour| is_kept(hour)) {
            let (at, used, denied) = (hour.start, hour.used, hour.denied);
            let _ = writeln!(
                text,
                "{organization}\t{meter}\t{start}\t{at}\t{used}\t{denied}\t0"
            );
        }
        if text.len() > CHUNK {
            copy.send(std::mem::take(&mut text).into_bytes()).await?;
        }
    }
    copy.send(text.into_bytes()).await?;
    copy.finish().await?;
    Ok(())
}

/// Records the warnings, exceeded limits and resets of periods that have ended.
async fn record_events(tx: &mut PgConnection, past: &Past) -> Result<()> {
    for period in past.periods.iter().filter(|period| !period.running) {
        let limit = period.limit.get();
        let (mut used, mut next) = (0, [80, 95, 100].into_iter().peekable());
        for hour in &period.hours {
            used += hour.used;
            while let Some(threshold) = next.next_if(|it| used >= limit / 100 * u64::from(*it)) {
                let crossing = ThresholdCrossing {
                    organization_id: past.organization.clone(),
                    meter: period.meter.clone(),
                    threshold,
                    current: Count::try_from(used).unwrap_or(period.used),
                    limit: period.limit,
                    period_start: period.start,
                    reset_date: Some(period.end),
                    limit_version: 0,
                };
                let event = if threshold == 100 {
                    Event::LimitExceeded(crossing)
                } else {
                    Event::UsageWarning(crossing)
                };
                let at = hour.start + TimeDelta::minutes(20);
                events::record(tx, &[event], at).await?;
            }
        }
        let reset = Event::UsageReset(Reset {
            organization_id: past.organization.clone(),
            meter: period.meter.clone(),
            reset_type: "lazy".to_owned(),
            previous_count: period.used,
            period_start: period.end,
            reset_date: None,
        });
        events::record(tx, &[reset], period.end).await?;
    }
    Ok(())
}

async fn audit(
    tx: &mut PgConnection,
    organization: &OrganizationId,
    at: DateTime<Utc>,
    before: &Value,
    after: &Value,
) -> Result<()> {
    sqlx::query(
        "insert into audit_log (at, actor, action, organization_id, before, after)
         values ($1, 'tallyman demo', 'organization.patch', $2, $3, $4)",
    )
    .bind(at)
    .bind(organization)
    .bind(Json(before))
    .bind(Json(after))
    .execute(tx)
    .await?;
    Ok(())
}
