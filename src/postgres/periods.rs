//! Scheduled resets: periods that are over and nobody has ended yet.
//!
//! Every organization has an instant at which it is *due* to be looked at: the end of its period in scheduled
//! mode, never in another, and at once when it is new in that mode or its calendar has changed. So a look for what is due costs
//! what is due, however many organizations there are.

use std::collections::BTreeMap;

use chrono::{DateTime, Duration, Utc};
use sqlx::{FromRow, PgConnection};

use super::organizations::{self, corrupt_row, parse};
use super::{Actor, Error, Postgres, audit, events, unsigned};
use crate::domain::counter::CounterId;
use crate::domain::event::{self, Event};
use crate::domain::ids::{MeterId, OrganizationId};
use crate::domain::period::{Period, ResetMode};
use crate::domain::quantity::Count;
use crate::domain::schedule::Schedule;

/// How long one that failed is left alone.
const POSTPONED: Duration = Duration::minutes(1);

/// Organizations that are due, and what is to be stored of them before their periods are ended.
#[derive(Debug, Default)]
pub struct Due {
    /// Which ones.
    pub organizations: Vec<OrganizationId>,
    /// Their counters of periods that nothing has ended, each with the generation and the sequence that is stored.
    pub counters: Vec<(CounterId, (u64, u64))>,
}

/// What came of a look at what is due.
#[derive(Debug, Default)]
pub struct Ended {
    /// How many organizations were looked at.
    pub looked_at: usize,
    /// Those of which a period was ended.
    pub organizations: Vec<OrganizationId>,
}

/// The organizations that have been due for longest.
pub async fn due(postgres: &Postgres, now: DateTime<Utc>, count: u32) -> Result<Due, Error> {
    let rows: Vec<(String,)> = sqlx::query_as(
        "select id from organizations where due_at <= $1 and deleted_at is null order by due_at, id limit $2",
    )
    .bind(now)
    .bind(i64::from(count))
    .fetch_all(&postgres.pool)
    .await?;
    let ids: Vec<String> = rows.into_iter().map(|(id,)| id).collect();
    let counters: Vec<(String, String, DateTime<Utc>, i64, i64)> = sqlx::query_as(
        "select organization_id, meter, period_start, epoch, seq from usage_history
         where organization_id = any($1) and reset_type is null",
    )
    .bind(&ids)
    .fetch_all(&postgres.pool)
    .await?;
    let counters = counters
        .iter()
        .map(|(organization, meter, start, generation, seq)| {
            let counter = CounterId {
                organization: parse(organization)?,
                meter: parse(meter)?,
                start: *start,
            };
            Ok((counter, (unsigned(*generation), unsigned(*seq))))
        });
    Ok(Due {
        counters: counters.collect::<Result<_, Error>>()?,
        organizations: ids.iter().map(|id| parse(id)).collect::<Result<_, _>>()?,
    })
}

/// Ends the periods of these organizations that are over, if they are still due and nobody else is at it, and
/// opens the next. Where somebody has asked for it, the audit log says who.
pub async fn end(
    postgres: &Postgres,
    organizations: &[OrganizationId],
    asked_by: Option<&Actor>,
    now: DateTime<Utc>,
) -> Result<Ended, Error> {
    let mut transaction = postgres.pool.begin().await?;
    let ended = end_in(&mut transaction, organizations, asked_by, now).await;
    if ended.is_ok() {
        transaction.commit().await?;
    } else {
        // Whoever tries them one by one passes over rows that are locked still, so a rollback in the background is too late.
        transaction.rollback().await?;
    }
    ended
}

async fn end_in(
    transaction: &mut PgConnection,
    organizations: &[OrganizationId],
    asked_by: Option<&Actor>,
    now: DateTime<Utc>,
) -> Result<Ended, Error> {
    let ids: Vec<&str> = organizations.iter().map(OrganizationId::as_str).collect();
    let locked: Vec<(String,)> = sqlx::query_as(
        "select id from organizations
         where id = any($1) and due_at <= $2 and deleted_at is null
         order by id
         for no key update skip locked",
    )
    .bind(ids)
    .bind(now)
    .fetch_all(&mut *transaction)
    .await?;
    let locked: Vec<OrganizationId> = locked
        .iter()
        .map(|(id,)| parse(id))
        .collect::<Result<_, _>>()?;
    let known = organizations::schedules(&mut *transaction, &locked).await?;
    let running = not_ended(&mut *transaction, &known).await?;
    follow_schedules(&mut *transaction, &running, now).await?;
    let over = over(&running, now);
    let told = over.iter().map(Over::event);
    let told: Vec<Event> = told.collect::<Result<_, _>>()?;
    end_and_open(&mut *transaction, &over, now).await?;
    events::record(&mut *transaction, &told, now).await?;
    let due = locked.iter().map(|id| match known.get(id) {
        Some(schedule) if schedule.mode() == ResetMode::Scheduled => schedule.period(now).end,
        Some(_) => None,
        None => now.checked_add_signed(POSTPONED),
    });
    set_due(&mut *transaction, &locked, due.collect()).await?;
    let mut ended: Vec<OrganizationId> = over.into_iter().map(|it| it.organization).collect();
    ended.dedup();
    if let Some(actor) = asked_by.filter(|_| !ended.is_empty()) {
        let is = serde_json::json!({"resetCount": ended.len(), "organizations": ended});
        audit::record(
            &mut *transaction,
            actor,
            "organizations.reset_expired",
            None,
            &(),
            &is,
        )
        .await?;
    }
    Ok(Ended {
        looked_at: locked.len(),
        organizations: ended,
    })
}

/// Leaves one alone for a while that cannot be dealt with.
pub async fn postpone(
    postgres: &Postgres,
    organization: &OrganizationId,
    now: DateTime<Utc>,
) -> Result<(), Error> {
    let mut connection = postgres.pool.acquire().await?;
    let due = now.checked_add_signed(POSTPONED);
    set_due(
        &mut connection,
        std::slice::from_ref(organization),
        vec![due],
    )
    .await
}

/// A period that is over, and the one that runs instead.
struct Over {
    organization: OrganizationId,
    meter: MeterId,
    start: DateTime<Utc>,
    used: i64,
    next: Period,
}

impl Over {
    fn event(&self) -> Result<Event, Error> {
        Ok(Event::UsageReset(event::Reset {
            organization_id: self.organization.clone(),
            meter: self.meter.clone(),
            reset_type: ResetMode::Scheduled.to_string(),
            previous_count: Count::try_from(unsigned(self.used)).map_err(corrupt_row)?,
            period_start: self.next.start,
            reset_date: self.next.end,
        }))
    }
}

/// A row that nothing has ended, and the schedule of its organization.
struct NotEnded<'a> {
    organization: OrganizationId,
    meter: MeterId,
    row: NotEndedRow,
    schedule: &'a Schedule,
}

impl NotEnded<'_> {
    fn period(&self, now: DateTime<Utc>) -> Period {
        self.schedule
            .period_of(&self.meter, self.row.period_start, now)
    }

    /// Whether it holds nothing, and was opened for a period that a change of calendar has taken away.
    fn is_void(&self, now: DateTime<Utc>) -> bool {
        self.row.opened && self.period(now).start != self.row.period_start
    }
}

#[derive(FromRow)]
struct NotEndedRow {
    organization_id: String,
    meter: String,
    period_start: DateTime<Utc>,
    period_end: Option<DateTime<Utc>>,
    used: i64,
    /// Whether the scheduler opened it and no snapshot was stored since.
    opened: bool,
}

/// Locks the rows that nothing has ended, in the order in which a flush does.
async fn not_ended<'a>(
    connection: &mut PgConnection,
    schedules: &'a BTreeMap<OrganizationId, Schedule>,
) -> Result<Vec<NotEnded<'a>>, Error> {
    let rows: Vec<NotEndedRow> = sqlx::query_as(
        "select organization_id, meter, period_start, period_end, used, epoch = 0 as opened from usage_history
         where organization_id = any($1) and reset_type is null and closed_at is null
         order by organization_id, meter, period_start
         for no key update",
    )
    .bind(schedules.keys().map(OrganizationId::as_str).collect::<Vec<_>>())
    .fetch_all(connection)
    .await?;
    rows.into_iter()
        .map(|row| {
            let organization: OrganizationId = parse(&row.organization_id)?;
            let schedule = schedules.get(&organization);
            Ok(NotEnded {
                schedule: schedule.ok_or_else(|| corrupt_row("a row that nobody asked for"))?,
                meter: parse(&row.meter)?,
                organization,
                row,
            })
        })
        .collect()
}

/// Corrects the ends of rows that do not know of a change of calendar, because they were not stored since, and deletes
/// empty ones that were opened for a period which there is no more.
async fn follow_schedules(
    connection: &mut PgConnection,
    rows: &[NotEnded<'_>],
    now: DateTime<Utc>,
) -> Result<(), Error> {
    let (mut corrected, mut void) = (Vec::new(), Vec::new());
    for it in rows {
        let period = it.period(now);
        if it.is_void(now) {
            void.push(it);
        } else if period.start == it.row.period_start && period.end != it.row.period_end {
            corrected.push((it, period.end));
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
        .bind(
            corrected
                .iter()
                .map(|(it, _)| it.organization.as_str())
                .collect::<Vec<_>>(),
        )
        .bind(
            corrected
                .iter()
                .map(|(it, _)| it.meter.as_str())
                .collect::<Vec<_>>(),
        )
        .bind(
            corrected
                .iter()
                .map(|(it, _)| it.row.period_start)
                .collect::<Vec<_>>(),
        )
        .bind(corrected.iter().map(|(_, end)| *end).collect::<Vec<_>>())
        .execute(&mut *connection)
        .await?;
    }
    if !void.is_empty() {
        sqlx::query(
            "delete from usage_history as history
             using unnest($1::text[], $2::text[], $3::timestamptz[]) as void (organization_id, meter, period_start)
             where (history.organization_id, history.meter, history.period_start)
                 = (void.organization_id, void.meter, void.period_start)",
        )
        .bind(void.iter().map(|it| it.organization.as_str()).collect::<Vec<_>>())
        .bind(void.iter().map(|it| it.meter.as_str()).collect::<Vec<_>>())
        .bind(void.iter().map(|it| it.row.period_start).collect::<Vec<_>>())
        .execute(connection)
        .await?;
    }
    Ok(())
}

/// Those that are over in scheduled mode: by the schedule, because a row does not know of a change of calendar before it
/// is stored again.
fn over(rows: &[NotEnded<'_>], now: DateTime<Utc>) -> Vec<Over> {
    let over = rows
        .iter()
        .filter(|it| it.schedule.mode() == ResetMode::Scheduled && !it.is_void(now))
        .map(|it| Over {
            next: it.schedule.running(&it.meter, now),
            organization: it.organization.clone(),
            meter: it.meter.clone(),
            start: it.row.period_start,
            used: it.row.used,
        });
    over.filter(|it| it.start < it.next.start).collect()
}

/// A period that is opened holds nothing yet, and so less than any snapshot of it. After one in which nothing happened
/// none is opened: there is nothing to tell of an organization that is idle, and the next that is counted opens its own.
async fn end_and_open(
    connection: &mut PgConnection,
    over: &[Over],
    now: DateTime<Utc>,
) -> Result<(), Error> {
    sqlx::query(
        "with over as (
             select * from unnest($1::text[], $2::text[], $3::timestamptz[], $4::timestamptz[], $5::timestamptz[])
                  as over (organization_id, meter, period_start, next_start, next_end)
         ), ended as (
             update usage_history as history set reset_type = 'scheduled'
             from over
             where (history.organization_id, history.meter, history.period_start)
                 = (over.organization_id, over.meter, over.period_start)
             returning history.*, over.next_start, over.next_end
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
    .bind(over.iter().map(|it| it.organization.as_str()).collect::<Vec<_>>())
    .bind(over.iter().map(|it| it.meter.as_str()).collect::<Vec<_>>())
    .bind(over.iter().map(|it| it.start).collect::<Vec<_>>())
    .bind(over.iter().map(|it| it.next.start).collect::<Vec<_>>())
    .bind(over.iter().map(|it| it.next.end).collect::<Vec<_>>())
    .bind(now)
    .execute(connection)
    .await?;
    Ok(())
}

async fn set_due(
    connection: &mut PgConnection,
    organizations: &[OrganizationId],
    due: Vec<Option<DateTime<Utc>>>,
) -> Result<(), Error> {
    sqlx::query(
        "update organizations set due_at = coalesce(new.due_at, 'infinity')
         from unnest($1::text[], $2::timestamptz[]) as new (id, due_at)
         where organizations.id = new.id",
    )
    .bind(
        organizations
            .iter()
            .map(OrganizationId::as_str)
            .collect::<Vec<_>>(),
    )
    .bind(due)
    .execute(connection)
    .await?;
    Ok(())
}
