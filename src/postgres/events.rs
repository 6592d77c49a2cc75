//! Events: an outbox, written in the transaction that makes them true.

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::value::RawValue;
use sqlx::types::Json;
use sqlx::{FromRow, PgConnection};
use uuid::Uuid;

use super::organizations::{corrupt_row, parse};
use super::{Error, Postgres, signed};
use crate::domain::event::{Event, EventType, ThresholdCrossing};
use crate::domain::ids::{EventId, OrganizationId};

/// An event as it was recorded.
#[derive(Debug, Clone)]
pub struct Recorded {
    /// Names it.
    pub id: EventId,
    /// When it was recorded.
    pub at: DateTime<Utc>,
    /// What kind it is.
    pub event_type: EventType,
    /// What is told of it, as JSON.
    pub data: Box<RawValue>,
}

/// Which events to list.
#[derive(Debug, Clone, Default)]
pub struct Listing {
    /// Only this type.
    pub event_type: Option<EventType>,
    /// Only about this organization.
    pub organization: Option<OrganizationId>,
    /// Only at this instant or later.
    pub from: Option<DateTime<Utc>>,
    /// Only before this instant.
    pub to: Option<DateTime<Utc>>,
    /// Only older ones than this.
    pub before: Option<EventId>,
    /// How many at most.
    pub count: u32,
}

/// Records events in the transaction that makes them true, each crossing once: one that was recorded before is passed
/// over. What is recorded is to be delivered to every webhook that wants it.
pub(super) async fn record(
    connection: &mut PgConnection,
    events: &[Event],
    now: DateTime<Utc>,
) -> Result<(), Error> {
    if events.is_empty() {
        return Ok(());
    }
    let data: Vec<String> = events.iter().map(to_json).collect::<Result<_, _>>()?;
    let crossings = || events.iter().map(Event::crossing);
    sqlx::query(
        // Locked before they are referred to, so that one that is being deleted is left out.
        "with wanting as (
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
         select wanting.id, recorded.id, $2
         from recorded
         join wanting on (wanting.events is null or recorded.type = any(wanting.events))
                     and (wanting.organization_id is null or wanting.organization_id = recorded.organization_id)",
    )
    .bind((0..events.len()).map(|position| new_id(now, position)).collect::<Vec<_>>())
    .bind(now)
    .bind(events.iter().map(|it| it.event_type().to_string()).collect::<Vec<_>>())
    .bind(events.iter().map(|it| it.organization().as_str()).collect::<Vec<_>>())
    .bind(crossings().map(|it| it.map(|it| it.meter.as_str())).collect::<Vec<_>>())
    .bind(crossings().map(|it| it.map(|it| it.period_start)).collect::<Vec<_>>())
    .bind(crossings().map(threshold).collect::<Vec<_>>())
    .bind(crossings().map(|it| it.map(|it| signed(it.limit_version))).collect::<Vec<_>>())
    .bind(data)
    .execute(connection)
    .await?;
    Ok(())
}

/// Events, newest first.
pub async fn list(postgres: &Postgres, listing: &Listing) -> Result<Vec<Recorded>, Error> {
    // Ids begin with the time, so that ranges of time are ranges of ids.
    let to = listing.to.map(first_id);
    let before = listing.before.as_ref().map(|it| it.as_str().to_owned());
    let rows: Vec<EventRow> = sqlx::query_as(
        "select id, at, type, data from events
         where ($1::text is null or type = $1)
           and ($2::text is null or organization_id = $2)
           and id >= $3 and id < $4
         order by id desc
         limit $5",
    )
    .bind(listing.event_type.map(|it| it.to_string()))
    .bind(listing.organization.as_ref().map(OrganizationId::as_str))
    .bind(listing.from.map_or(PREFIX.to_owned(), first_id))
    .bind(
        to.into_iter()
            .chain(before)
            .min()
            .unwrap_or(format!("{PREFIX}~")),
    )
    .bind(i64::from(listing.count))
    // Planned for what is asked: another one may go by another index.
    .persistent(false)
    .fetch_all(&postgres.pool)
    .await?;
    rows.into_iter().map(EventRow::recorded).collect()
}

const PREFIX: &str = "evt_";

/// The id of the event at this place among those that are recorded at once.
fn new_id(now: DateTime<Utc>, position: usize) -> String {
    format!("{PREFIX}{}", new_uuid(now, position).simple())
}

/// A UUID of version 7, for the thing at this place among those that are made at once.
pub(super) fn new_uuid(now: DateTime<Utc>, position: usize) -> Uuid {
    let mut random: [u8; 10] = *Uuid::new_v4().as_bytes().first_chunk().unwrap_or(&[0; 10]);
    // Twelve bits keep their order.
    let [.., high, low] = position.min(0xfff).to_be_bytes();
    [random[0], random[1]] = [high, low];
    let ms = u64::try_from(now.timestamp_millis()).unwrap_or(0);
    uuid::Builder::from_unix_timestamp_millis(ms, &random).into_uuid()
}

/// No id of this instant or later is below this.
fn first_id(at: DateTime<Utc>) -> String {
    format!("{PREFIX}{:012x}", at.timestamp_millis().max(0))
}

fn threshold(crossing: Option<&ThresholdCrossing>) -> Option<i16> {
    crossing.and_then(|it| i16::try_from(it.threshold).ok())
}

fn to_json(event: &Event) -> Result<String, Error> {
    fn json(data: &impl Serialize) -> Result<String, Error> {
        serde_json::to_string(data).map_err(corrupt_row)
    }
    match event {
        Event::UsageWarning(crossing) | Event::LimitExceeded(crossing) => json(crossing),
        Event::UsageReset(reset) => json(reset),
        Event::LimitsUpdated(update) => json(update),
        Event::OrganizationDeleted(deletion) => json(deletion),
    }
}

#[derive(FromRow)]
struct EventRow {
    id: String,
    at: DateTime<Utc>,
    r#type: String,
    data: Json<Box<RawValue>>,
}

impl EventRow {
    fn recorded(self) -> Result<Recorded, Error> {
        Ok(Recorded {
            id: parse(&self.id)?,
            at: self.at,
            event_type: parse(&self.r#type)?,
            data: self.data.0,
        })
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
