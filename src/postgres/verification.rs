//! What Postgres holds of counters, to be compared with what Redis holds.

use chrono::{DateTime, Utc};
use sqlx::FromRow;

use super::organizations::parse;
use super::{Error, Postgres, unsigned};
use crate::domain::counter::{CounterId, Snapshot};
use crate::domain::ids::OrganizationId;
use crate::domain::verification::{StoredCounter, Totals};

/// At most `count` organizations in the order of their ids, from the one behind `after` on.
pub async fn organizations_after(
    postgres: &Postgres,
    after: Option<&OrganizationId>,
    count: u32,
) -> Result<Vec<OrganizationId>, Error> {
    let rows: Vec<(String,)> = sqlx::query_as(
        "select id from organizations
         where id > $1 and deleted_at is null
         order by id
         limit $2",
    )
    .bind(after.map_or("", OrganizationId::as_str))
    .bind(i64::from(count))
    .fetch_all(&postgres.pool)
    .await?;
    rows.iter().map(|(id,)| parse(id)).collect()
}

/// Every counter of some organizations whose period ends later than this.
pub async fn counters(
    postgres: &Postgres,
    organizations: &[OrganizationId],
    ends_after: DateTime<Utc>,
) -> Result<Vec<CounterId>, Error> {
    let rows: Vec<(String, String, DateTime<Utc>)> = sqlx::query_as(
        "select organization_id, meter, period_start
         from usage_history
         where organization_id = any($1) and (period_end is null or period_end > $2)",
    )
    .bind(ids(organizations))
    .bind(ends_after)
    .fetch_all(&postgres.pool)
    .await?;
    rows.into_iter()
        .map(|(organization, meter, start)| {
            Ok(CounterId {
                organization: parse(&organization)?,
                meter: parse(&meter)?,
                start,
            })
        })
        .collect()
}

/// The same counters with what is stored of them, all as of one instant. `held` is what Redis had of them before.
pub async fn stored(
    postgres: &Postgres,
    organizations: &[OrganizationId],
    ends_after: DateTime<Utc>,
    held: &[&Snapshot],
) -> Result<Vec<StoredCounter>, Error> {
    let (mut owners, mut meters) = (Vec::new(), Vec::new());
    let (mut starts, mut hours) = (Vec::new(), Vec::new());
    for snapshot in held {
        for hour in &snapshot.hours {
            owners.push(snapshot.counter.organization.as_str());
            meters.push(snapshot.counter.meter.as_str());
            starts.push(snapshot.counter.start);
            hours.push(hour.start);
        }
    }
    let rows: Vec<Row> = sqlx::query_as(
        "select usage_history.organization_id, usage_history.meter, usage_history.period_start,
             usage_history.epoch as generation, usage_history.seq,
             usage_history.used, usage_history.denied, usage_history.refunded,
             coalesce(sum(usage_hourly.used), 0)::bigint as hours_used,
             coalesce(sum(usage_hourly.denied), 0)::bigint as hours_denied,
             coalesce(sum(usage_hourly.refunded), 0)::bigint as hours_refunded,
             coalesce(sum(usage_hourly.used) filter (where held.hour is not null), 0)::bigint as held_used,
             coalesce(sum(usage_hourly.denied) filter (where held.hour is not null), 0)::bigint as held_denied,
             coalesce(sum(usage_hourly.refunded) filter (where held.hour is not null), 0)::bigint as held_refunded
         from usage_history
         left join usage_hourly using (organization_id, meter, period_start)
         left join unnest($3::text[], $4::text[], $5::timestamptz[], $6::timestamptz[])
             as held (organization_id, meter, period_start, hour)
             using (organization_id, meter, period_start, hour)
         where usage_history.organization_id = any($1)
             and (usage_history.period_end is null or usage_history.period_end > $2)
         group by usage_history.organization_id, usage_history.meter, usage_history.period_start",
    )
    .bind(ids(organizations))
    .bind(ends_after)
    .bind(owners)
    .bind(meters)
    .bind(starts)
    .bind(hours)
    .fetch_all(&postgres.pool)
    .await?;
    rows.into_iter().map(Row::stored).collect()
}

fn ids(organizations: &[OrganizationId]) -> Vec<&str> {
    organizations.iter().map(OrganizationId::as_str).collect()
}

#[derive(FromRow)]
struct Row {
    organization_id: String,
    meter: String,
    period_start: DateTime<Utc>,
    generation: i64,
    seq: i64,
    used: i64,
    denied: i64,
    refunded: i64,
    hours_used: i64,
    hours_denied: i64,
    hours_refunded: i64,
    held_used: i64,
    held_denied: i64,
    held_refunded: i64,
}

impl Row {
    fn stored(self) -> Result<StoredCounter, Error> {
        let sums = |used, denied, refunded| Totals {
            used,
            denied,
            refunded,
        };
        Ok(StoredCounter {
            counter: CounterId {
                organization: parse(&self.organization_id)?,
                meter: parse(&self.meter)?,
                start: self.period_start,
            },
            version: (unsigned(self.generation), unsigned(self.seq)),
            sums: sums(self.used, self.denied, self.refunded),
            hours: sums(self.hours_used, self.hours_denied, self.hours_refunded),
            hours_in_redis: sums(self.held_used, self.held_denied, self.held_refunded),
        })
    }
}
