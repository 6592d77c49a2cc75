//! Records that a flush has ended periods, and their events.

use chrono::{DateTime, Utc};
use sqlx::postgres::PgRow;
use sqlx::{FromRow, PgConnection, Row as _};

use crate::domain::counter::{CounterId, Snapshot};
use crate::domain::event::{self, Event};
use crate::postgres::error::Result;
use crate::postgres::events;
use crate::postgres::types::BindColumns as _;

/// Ends the periods of closed counters that were just stored: their reset is finished.
pub(super) async fn end_reset(
    tx: &mut PgConnection,
    snapshots: &[&Snapshot],
    now: DateTime<Utc>,
) -> Result<()> {
    let closed = snapshots.iter().filter(|snapshot| snapshot.stamp.closed);
    let closed: Vec<&CounterId> = closed.map(|snapshot| &snapshot.counter).collect();
    if closed.is_empty() {
        return Ok(());
    }
    let ended = sqlx::query_as(
        "with closed as (
             select * from unnest($1::text[], $2::text[], $3::timestamptz[]) as closed (organization_id, meter, start)
         ), ended as (
             update usage_history as history set reset_type = 'manual'
             from closed
             where (history.organization_id, history.meter, history.period_start)
                 = (closed.organization_id, closed.meter, closed.start)
               and history.reset_type is null
             returning history.organization_id, history.meter, history.used, history.reset_type
         ), finished as (
             update resets set pending = false
             from closed
             where (resets.organization_id, resets.meter, resets.closed_start)
                 = (closed.organization_id, closed.meter, closed.start)
             returning resets.organization_id, resets.meter, resets.at, resets.period_end
         )
         select organization_id, meter, used, reset_type, at, period_end
         from ended join finished using (organization_id, meter)",
    )
    .counters(closed.into_iter())
    .fetch_all(&mut *tx)
    .await?;
    record(tx, ended, now).await
}

/// Ends the periods before the given ones, which were stored for the first time. In lazy mode the first call of the
/// next period ends a period; in scheduled mode an expired period makes the organization due.
pub(super) async fn end_lazily(
    tx: &mut PgConnection,
    begun: &[&CounterId],
    now: DateTime<Utc>,
) -> Result<()> {
    if begun.is_empty() {
        return Ok(());
    }
    let ended = sqlx::query_as(
        "with begun as (
             select distinct organization_id, meter, coalesce(reset_mode, (select settings ->> 'resetMode' from defaults)) as mode
             from unnest($1::text[], $2::text[]) as begun (organization_id, meter)
             join organizations on id = organization_id
         ), ended as (
             update usage_history as history set reset_type = 'lazy'
             from begun
             cross join lateral (
                 select expired.period_start as ended_start, next.period_start, next.period_end
                 from usage_history as expired
                 cross join lateral (
                     select period_start, period_end from usage_history as next
                     where (next.organization_id, next.meter) = (expired.organization_id, expired.meter)
                       and next.period_start >= expired.period_end
                     order by next.period_start
                     limit 1
                 ) as next
                 where (expired.organization_id, expired.meter) = (begun.organization_id, begun.meter)
                   and expired.reset_type is null and expired.period_end <= $3
             ) as pair
             where begun.mode = 'lazy'
               and (history.organization_id, history.meter, history.period_start)
                 = (begun.organization_id, begun.meter, pair.ended_start)
               and history.reset_type is null
             returning history.organization_id, history.meter, history.used, history.reset_type,
                       pair.period_start as at, pair.period_end
         ), due as (
             update organizations set due_at = '-infinity'
             from begun
             where id = begun.organization_id and mode = 'scheduled'
               and exists (select from usage_history as expired
                           where (expired.organization_id, expired.meter) = (begun.organization_id, begun.meter)
                             and expired.reset_type is null and expired.period_end <= $3)
         )
         select organization_id, meter, used, reset_type, at, period_end from ended",
    )
    .column(begun, |it| &it.organization)
    .column(begun, |it| &it.meter)
    .bind(now)
    .fetch_all(&mut *tx)
    .await?;
    record(tx, ended, now).await
}

async fn record(tx: &mut PgConnection, ended: Vec<event::Reset>, now: DateTime<Utc>) -> Result<()> {
    let events: Vec<Event> = ended.into_iter().map(Event::UsageReset).collect();
    events::record(tx, &events, now).await
}

/// From a period that was ended, and the start and end of the next.
impl FromRow<'_, PgRow> for event::Reset {
    fn from_row(row: &PgRow) -> sqlx::Result<Self> {
        Ok(Self {
            organization_id: row.try_get("organization_id")?,
            meter: row.try_get("meter")?,
            reset_type: row.try_get("reset_type")?,
            previous_count: row.try_get("used")?,
            period_start: row.try_get("at")?,
            reset_date: row.try_get("period_end")?,
        })
    }
}
