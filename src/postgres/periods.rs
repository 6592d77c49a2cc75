//! Scheduled resets: ends periods that have expired.
//!
//! Every organization has a due time at which the scheduler examines it: the end of its period in scheduled mode,
//! never in another mode, and at once if it is new in that mode or its calendar has changed. So a query for due
//! organizations costs as much as there are of them, however many organizations exist.

use std::collections::BTreeMap;

use chrono::{DateTime, Duration, Utc};
use sqlx::{FromRow, PgConnection};

use super::audit::{self, Actor};
use super::events;
use super::pool::{Postgres, Result};
use super::sources::schedules;
use super::types::BindColumns as _;
use crate::domain::counter::CounterId;
use crate::domain::event::{self, Event};
use crate::domain::ids::OrganizationId;
use crate::domain::period::{Period, ResetMode};
use crate::domain::quantity::Count;
use crate::domain::schedule::Schedule;

/// The delay before an organization that failed is due again.
const POSTPONED: Duration = Duration::minutes(1);

/// Due organizations, and their counters, which are to be flushed before their periods are ended.
#[derive(Debug, Default)]
pub struct Due {
    /// The organizations.
    pub organizations: Vec<OrganizationId>,
    /// Their counters in periods that were not ended, each with the generation and the sequence that is stored.
    pub counters: Vec<(CounterId, (u64, u64))>,
}

/// The result of examining due organizations.
#[derive(Debug, Default)]
pub struct Ended {
    /// The number of organizations that were examined.
    pub examined: usize,
    /// The organizations with a period that was ended.
    pub organizations: Vec<OrganizationId>,
}

/// Lists at most `count` due organizations, the longest overdue first.
pub async fn due(db: &Postgres, now: DateTime<Utc>, count: u32) -> Result<Due> {
    let organizations: Vec<OrganizationId> = sqlx::query_scalar(
        "select id from organizations where due_at <= $1 and deleted_at is null order by due_at, id limit $2",
    )
    .bind(now)
    .bind(i64::from(count))
    .fetch_all(db.pool().await?)
    .await?;
    let rows: Vec<VersionRow> = sqlx::query_as(
        "select organization_id, meter, period_start, epoch, seq from usage_history
         where organization_id = any($1) and reset_type is null",
    )
    .bind(&organizations)
    .fetch_all(db.pool().await?)
    .await?;
    let counters = rows.into_iter().map(|it| (it.counter, (it.epoch, it.seq)));
    Ok(Due {
        counters: counters.collect(),
        organizations,
    })
}

#[derive(FromRow)]
struct VersionRow {
    #[sqlx(flatten)]
    counter: CounterId,
    #[sqlx(try_from = "i64")]
    epoch: u64,
    #[sqlx(try_from = "i64")]
    seq: u64,
}

/// Ends the expired periods of these organizations and opens the next, except of those that are not due any more or
/// that another instance has locked. A reset that was requested is recorded in the audit log under `requested_by`.
pub async fn end(
    db: &Postgres,
    organizations: &[OrganizationId],
    requested_by: Option<&Actor>,
    now: DateTime<Utc>,
) -> Result<Ended> {
    let mut tx = db.pool().await?.begin().await?;
    let ended = end_in(&mut tx, organizations, requested_by, now).await;
    if ended.is_ok() {
        tx.commit().await?;
    } else {
        // Awaited, because a retry of each organization alone skips rows that are still locked.
        tx.rollback().await?;
    }
    ended
}

async fn end_in(
    tx: &mut PgConnection,
    organizations: &[OrganizationId],
    requested_by: Option<&Actor>,
    now: DateTime<Utc>,
) -> Result<Ended> {
    let locked: Vec<OrganizationId> = sqlx::query_scalar(
        "select id from organizations
         where id = any($1) and due_at <= $2 and deleted_at is null
         order by id
         for no key update skip locked",
    )
    .bind(organizations)
    .bind(now)
    .fetch_all(&mut *tx)
    .await?;
    let schedules = schedules(&mut *tx, &locked).await?;
    let open = lock_open_periods(&mut *tx, &schedules).await?;
    follow_schedules(&mut *tx, &open, now).await?;
    let expired = expired(&open, now);
    let resets: Vec<Event> = expired.iter().map(Expired::event).collect();
    end_and_open(&mut *tx, &expired, now).await?;
    events::record(&mut *tx, &resets, now).await?;
    let due_at = locked.iter().map(|id| match schedules.get(id) {
        Some(schedule) if schedule.mode() == ResetMode::Scheduled => schedule.period(now).end,
        Some(_) => None,
        None => now.checked_add_signed(POSTPONED),
    });
    set_due_at(&mut *tx, &locked, due_at).await?;
    let ended = expired.iter().map(|it| it.counter.organization.clone());
    let mut ended: Vec<OrganizationId> = ended.collect();
    ended.dedup();
    if let Some(actor) = requested_by.filter(|_| !ended.is_empty()) {
        let is = serde_json::json!({"resetCount": ended.len(), "organizations": ended});
        let action = "organizations.reset_expired";
        audit::record(tx, actor, action, None, &(), &is).await?;
    }
    Ok(Ended {
        examined: locked.len(),
        organizations: ended,
    })
}

/// Postpones the due time of an organization that failed.
pub async fn postpone(
    db: &Postgres,
    organization: &OrganizationId,
    now: DateTime<Utc>,
) -> Result<()> {
    let mut connection = db.pool().await?.acquire().await?;
    let due_at = [now.checked_add_signed(POSTPONED)].into_iter();
    let organizations = std::slice::from_ref(organization);
    set_due_at(&mut connection, organizations, due_at).await
}

async fn set_due_at(
    tx: &mut PgConnection,
    organizations: &[OrganizationId],
    due_at: impl Iterator<Item = Option<DateTime<Utc>>>,
) -> Result<()> {
    sqlx::query(
        "update organizations set due_at = coalesce(new.due_at, 'infinity')
         from unnest($1::text[], $2::timestamptz[]) as new (id, due_at)
         where organizations.id = new.id",
    )
    .bind(organizations)
    .column(due_at, |due_at| due_at)
    .execute(tx)
    .await?;
    Ok(())
}

/// A period that was not ended, with the schedule of its organization.
struct OpenPeriod<'a> {
    row: OpenRow,
    schedule: &'a Schedule,
}

#[derive(FromRow)]
struct OpenRow {
    #[sqlx(flatten)]
    counter: CounterId,
    period_end: Option<DateTime<Utc>>,
    used: Count,
    /// Whether the scheduler opened the period and no snapshot was stored since.
    empty: bool,
}

impl OpenPeriod<'_> {
    /// The period according to the schedule.
    fn period(&self, now: DateTime<Utc>) -> Period {
        let CounterId { meter, start, .. } = &self.row.counter;
        self.schedule.period_of(meter, *start, now)
    }

    /// Whether it is empty and was opened for a period that does not exist since a change of the calendar.
    fn is_void(&self, now: DateTime<Utc>) -> bool {
        self.row.empty && self.period(now).start != self.row.counter.start
    }
}

/// Locks the periods that were not ended, in the order in which a flush does. Those that a reset is closing are left to it.
async fn lock_open_periods<'a>(
    tx: &mut PgConnection,
    schedules: &'a BTreeMap<OrganizationId, Schedule>,
) -> Result<Vec<OpenPeriod<'a>>> {
    let rows: Vec<OpenRow> = sqlx::query_as(
        "select organization_id, meter, period_start, period_end, used, (epoch, seq) = (0, 0) as empty
         from usage_history
         where organization_id = any($1) and reset_type is null and closed_at is null
         order by organization_id, meter, period_start
         for no key update",
    )
    .column(schedules.keys(), |id| id)
    .fetch_all(tx)
    .await?;
    let open = rows.into_iter().filter_map(|row| {
        let schedule = schedules.get(&row.counter.organization)?;
        let reset = schedule.resets.get(&row.counter.meter);
        let is_closing = reset.is_some_and(|it| it.closed_start == row.counter.start);
        (!is_closing).then_some(OpenPeriod { row, schedule })
    });
    Ok(open.collect())
}

/// Corrects the ends of periods that were not stored since a change of the calendar, and deletes void ones.
async fn follow_schedules(
    tx: &mut PgConnection,
    open: &[OpenPeriod<'_>],
    now: DateTime<Utc>,
) -> Result<()> {
    let (mut corrected, mut void) = (Vec::new(), Vec::new());
    for OpenPeriod { row, .. } in open.iter().filter(|it| it.is_void(now)) {
        void.push(&row.counter);
    }
    for it in open.iter().filter(|it| !it.is_void(now)) {
        let (row, period) = (&it.row, it.period(now));
        if period.start == row.counter.start && period.end != row.period_end {
            corrected.push((&row.counter, period.end));
        }
    }
    if !corrected.is_empty() {
        sqlx::query(
            "update usage_history as history set period_end = corrected.period_end
             from unnest($1::text[], $2::text[], $3::timestamptz[], $4::timestamptz[])
                  as corrected (organization_id, meter, period_start, period_end)
             where (history.organization_id, history.meter, history.period_start)
                 = (corrected.organization_id, corrected.meter, corrected.period_start)",
        )
        .counters(corrected.iter().map(|(counter, _)| *counter))
        .column(&corrected, |(_, end)| *end)
        .execute(&mut *tx)
        .await?;
    }
    if !void.is_empty() {
        sqlx::query(
            "delete from usage_history as history
             using unnest($1::text[], $2::text[], $3::timestamptz[]) as void (organization_id, meter, period_start)
             where (history.organization_id, history.meter, history.period_start)
                 = (void.organization_id, void.meter, void.period_start)",
        )
        .counters(void.into_iter())
        .execute(tx)
        .await?;
    }
    Ok(())
}

/// An expired period, and the one that runs now.
struct Expired<'a> {
    counter: &'a CounterId,
    used: Count,
    next: Period,
}

impl Expired<'_> {
    fn event(&self) -> Event {
        Event::UsageReset(event::Reset {
            organization_id: self.counter.organization.clone(),
            meter: self.counter.meter.clone(),
            reset_type: ResetMode::Scheduled.to_string(),
            previous_count: self.used,
            period_start: self.next.start,
            reset_date: self.next.end,
        })
    }
}

/// Selects the periods in scheduled mode that have expired: by the schedule, because a row knows of a change of the
/// calendar only when it is stored again.
fn expired<'a>(open: &'a [OpenPeriod<'_>], now: DateTime<Utc>) -> Vec<Expired<'a>> {
    let scheduled = open
        .iter()
        .filter(|it| it.schedule.mode() == ResetMode::Scheduled && !it.is_void(now));
    let candidates = scheduled.map(|it| Expired {
        counter: &it.row.counter,
        used: it.row.used,
        next: it.schedule.running(&it.row.counter.meter, now),
    });
    let expired = candidates.filter(|it| it.counter.start < it.next.start);
    expired.collect()
}

/// Ends expired periods and opens the next, with counts of zero, less than any snapshot. After an idle period none is
/// opened: an idle organization needs no events, and its next count opens a period.
async fn end_and_open(
    tx: &mut PgConnection,
    expired: &[Expired<'_>],
    now: DateTime<Utc>,
) -> Result<()> {
    sqlx::query(
        "with expired as (
             select * from unnest($1::text[], $2::text[], $3::timestamptz[], $4::timestamptz[], $5::timestamptz[])
                  as expired (organization_id, meter, period_start, next_start, next_end)
         ), ended as (
             update usage_history as history set reset_type = 'scheduled'
             from expired
             where (history.organization_id, history.meter, history.period_start)
                 = (expired.organization_id, expired.meter, expired.period_start)
             returning history.*, expired.next_start, expired.next_end
         )
         insert into usage_history (organization_id, meter, period_start, period_end, used, denied, refunded, limit_units,
                                    enforcement, policy_version, epoch, seq, plan_id, stored_at)
         select distinct on (organization_id, meter) organization_id, meter, next_start, next_end, 0, 0, 0, limit_units,
                enforcement, policy_version, 0, 0, plan_id, $6
         from ended
         where used <> 0 or denied <> 0 or refunded <> 0
         order by organization_id, meter, period_start desc
         on conflict do nothing",
    )
    .counters(expired.iter().map(|it| it.counter))
    .column(expired, |it| it.next.start)
    .column(expired, |it| it.next.end)
    .bind(now)
    .execute(tx)
    .await?;
    Ok(())
}
