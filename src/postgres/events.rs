//! Events: an outbox, written in the transactions that cause them.

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::value::RawValue;
use sqlx::{FromRow, PgConnection};
use uuid::Uuid;

use super::pool::{Error, Postgres, Result};
use super::types::{BigInt, BindColumns as _};
use crate::domain::event::{Event, EventType};
use crate::domain::ids::{EventId, OrganizationId};

/// A recorded event.
#[derive(Debug, Clone, FromRow)]
pub struct Recorded {
    /// The event's id.
    pub id: EventId,
    /// When it was recorded.
    pub at: DateTime<Utc>,
    /// Its type.
    #[sqlx(rename = "type")]
    pub event_type: EventType,
    /// Its payload, as JSON.
    #[sqlx(json)]
    pub data: Box<RawValue>,
}

/// Which events to list; none means any.
#[derive(Debug, Clone, Default)]
pub struct Listing {
    /// Of this type.
    pub event_type: Option<EventType>,
    /// About this organization.
    pub organization: Option<OrganizationId>,
    /// At this instant or later.
    pub from: Option<DateTime<Utc>>,
    /// Before this instant.
    pub to: Option<DateTime<Utc>>,
    /// Older than this event.
    pub before: Option<EventId>,
    /// The maximum number of events.
    pub count: u32,
}

/// Records events, and a delivery of each for every webhook that subscribes to it. A threshold crossing is recorded
/// once: a duplicate is skipped.
pub(super) async fn record(
    tx: &mut PgConnection,
    events: &[Event],
    now: DateTime<Utc>,
) -> Result<()> {
    if events.is_empty() {
        return Ok(());
    }
    let data: Vec<String> = events.iter().map(payload).collect::<Result<_, _>>()?;
    let crossings = || events.iter().map(Event::crossing);
    sqlx::query(
        // Locks webhooks before deliveries reference them, so that one that is being deleted is skipped.
        "with subscribed as (
             select id, events, organization_id from webhooks
             where disabled_at is null and (organization_id is null or organization_id = any($4))
             order by id
             for key share
         ), recorded as (
             insert into events (id, at, type, organization_id, meter, period_start, threshold, limit_version, data)
             select id, $2, type, organization_id, meter, period_start, threshold, limit_version, data::json
             from unnest($1::text[], $3::text[], $4::text[], $5::text[], $6::timestamptz[], $7::smallint[], $8::bigint[],
                         $9::text[])
                  as new (id, type, organization_id, meter, period_start, threshold, limit_version, data)
             on conflict on constraint events_once do nothing
             returning id, type, organization_id
         )
         insert into webhook_deliveries (webhook_id, event_id, next_at)
         select subscribed.id, recorded.id, $2
         from recorded
         join subscribed on (subscribed.events is null or recorded.type = any(subscribed.events))
                        and (subscribed.organization_id is null or subscribed.organization_id = recorded.organization_id)",
    )
    .column(0..events.len(), |position| new_id(now, position))
    .bind(now)
    .column(events, Event::event_type)
    .column(events, Event::organization)
    .column(crossings(), |it| it.map(|it| &it.meter))
    .column(crossings(), |it| it.map(|it| it.period_start))
    .column(crossings(), |it| it.and_then(|it| i16::try_from(it.threshold).ok()))
    .column(crossings(), |it| it.map(|it| BigInt(it.limit_version)))
    .bind(data)
    .execute(tx)
    .await?;
    Ok(())
}

/// Lists events, newest first.
pub async fn list(db: &Postgres, listing: &Listing) -> Result<Vec<Recorded>> {
    // Ids begin with the time, so that a range of time is a range of ids.
    let to = listing.to.map(first_id);
    let before = listing.before.as_ref().map(ToString::to_string);
    let end = to.into_iter().chain(before).min();
    Ok(sqlx::query_as(
        "select id, at, type, data from events
         where ($1::text is null or type = $1)
           and ($2::text is null or organization_id = $2)
           and id >= $3 and id < $4
         order by id desc
         limit $5",
    )
    .bind(listing.event_type)
    .bind(&listing.organization)
    .bind(listing.from.map_or(PREFIX.to_owned(), first_id))
    .bind(end.unwrap_or(format!("{PREFIX}~")))
    .bind(i64::from(listing.count))
    // Planned for each call, because the best index depends on the filter.
    .persistent(false)
    .fetch_all(db.pool().await?)
    .await?)
}

/// One step of deleting old events.
#[derive(Debug, Clone)]
pub struct Deletion {
    /// How many events were deleted.
    pub deleted: u64,
    /// The event after which the next step continues; none after the last step.
    pub last: Option<EventId>,
}

/// Deletes events before an instant, oldest first, with their deliveries: of the next `count` events after `after` those
/// without a pending delivery. What waits for a webhook that was disabled before the same instant is given up.
///
/// None if another instance is deleting. Rows that others have locked are left for the next time, so that this never waits
/// for a change of an organization or webhook, nor deadlocks with it.
pub async fn delete_older(
    db: &Postgres,
    before: DateTime<Utc>,
    after: Option<&EventId>,
    count: u32,
) -> Result<Option<Deletion>> {
    let mut tx = db.pool().await?.begin().await?;
    let locked: bool = sqlx::query_scalar("select pg_try_advisory_xact_lock(7302818)")
        .fetch_one(&mut *tx)
        .await?;
    if !locked {
        return Ok(None);
    }
    let old: Vec<EventId> = sqlx::query_scalar(
        "select id from events
         where id > $1 and id < $2
         order by id
         limit $3
         for update skip locked",
    )
    .bind(after.map_or(PREFIX, EventId::as_str))
    .bind(first_id(before))
    .bind(i64::from(count))
    .fetch_all(&mut *tx)
    .await?;
    sqlx::query(
        "delete from webhook_deliveries
         where (webhook_id, event_id) in (
             select webhook_id, event_id from webhook_deliveries as done
             where event_id = any($1)
               and (next_at is null
                    or exists (select from webhooks where webhooks.id = done.webhook_id and disabled_at < $2))
             for update skip locked
         )",
    )
    .bind(&old)
    .bind(before)
    .execute(&mut *tx)
    .await?;
    let deleted = sqlx::query(
        "delete from events
         where id = any($1) and not exists (select from webhook_deliveries where event_id = events.id)",
    )
    .bind(&old)
    .execute(&mut *tx)
    .await?;
    tx.commit().await?;
    let full = u32::try_from(old.len()).is_ok_and(|found| found >= count);
    Ok(Some(Deletion {
        deleted: deleted.rows_affected(),
        last: old.into_iter().next_back().filter(|_| full),
    }))
}

const PREFIX: &str = "evt_";

/// The id of the event at this position among those that are recorded together.
fn new_id(now: DateTime<Utc>, position: usize) -> String {
    format!("{PREFIX}{}", new_uuid(now, position).simple())
}

/// A UUID of version 7 for the item at this position among those that are created together.
pub(super) fn new_uuid(now: DateTime<Utc>, position: usize) -> Uuid {
    let mut random: [u8; 10] = *Uuid::new_v4().as_bytes().first_chunk().unwrap_or(&[0; 10]);
    // Twelve bits keep the order.
    let [.., high, low] = position.min(0xfff).to_be_bytes();
    [random[0], random[1]] = [high, low];
    let ms = u64::try_from(now.timestamp_millis()).unwrap_or(0);
    uuid::Builder::from_unix_timestamp_millis(ms, &random).into_uuid()
}

/// The lower bound of all ids of this instant or later.
fn first_id(at: DateTime<Utc>) -> String {
    format!("{PREFIX}{:012x}", at.timestamp_millis().max(0))
}

fn payload(event: &Event) -> Result<String> {
    fn json(data: &impl Serialize) -> Result<String> {
        serde_json::to_string(data).map_err(Error::corrupt_row)
    }
    match event {
        Event::UsageWarning(crossing) | Event::LimitExceeded(crossing) => json(crossing),
        Event::UsageReset(reset) => json(reset),
        Event::LimitsUpdated(update) => json(update),
        Event::OrganizationDeleted(deletion) => json(deletion),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_in_the_order_of_events_and_ranges_of_time_are_ranges_of_ids() {
        let at: DateTime<Utc> = "2031-03-15T12:00:00Z".parse().unwrap();
        let later = at + chrono::Duration::milliseconds(1);
        let ids = [
            first_id(at),
            new_id(at, 0),
            new_id(at, 1),
            new_id(at, 300),
            first_id(later),
            new_id(later, 0),
        ];
        assert!(ids.is_sorted(), "{ids:?}");
        assert!(new_id(at, 5000).parse::<EventId>().is_ok());
    }
}
