//! The sources that an organization's policy is resolved from: defaults, plan, and the organization's own settings.

use std::collections::{BTreeMap, HashMap};

use chrono::{DateTime, Utc};
use serde::Deserialize;
use sqlx::postgres::PgRow;
use sqlx::types::Json;
use sqlx::{FromRow, PgConnection, Row as _};

use super::pool::{Error, Postgres, Result};
use super::types::{TimeZone, corrupt, json, unsigned};
use crate::domain::calendar::InvalidCalendar;
use crate::domain::ids::{MeterId, OrganizationId};
use crate::domain::limit::{Enforcement, Limit, LimitOverride, OnOutage};
use crate::domain::organization::{
    DefaultSince, Defaults, Organization, OrganizationSettings, Timeline,
};
use crate::domain::plan::Plan;
use crate::domain::policy::Policy;
use crate::domain::quantity::Count;
use crate::domain::schedule::{Activity, Schedule};

/// Everything that an organization's policy is resolved from.
#[derive(Debug, Clone)]
pub struct Sources {
    /// The defaults.
    pub defaults: Defaults,
    /// The policy version of the defaults.
    pub defaults_version: u64,
    /// All calendars that were the default, oldest first; the last one is current.
    pub default_calendars: Vec<DefaultSince>,
    /// The plan that the organization is on.
    pub plan: Plan,
    /// The organization's own settings; none if it was never counted or configured, or was deleted since.
    pub organization: Option<Organization>,
    /// The policy version of its last deletion; 0 if it never was deleted. Whatever an older policy decided belongs
    /// to a stale incarnation.
    pub incarnation: u64,
}

impl Sources {
    /// Resolves the policy at an instant.
    pub fn resolve(&self, now: DateTime<Utc>) -> Policy {
        self.policy().at(now)
    }

    /// The timeline of the organization after a change to these settings at `now`; unchanged if the calendar is.
    pub fn rescheduled(
        &self,
        settings: &OrganizationSettings,
        now: DateTime<Utc>,
        activity: Activity,
    ) -> Result<Option<Timeline>, InvalidCalendar> {
        let own = self.organization.clone().unwrap_or_default();
        if settings.same_calendar(&own.settings) {
            // Even if the settings are invalid under defaults that have changed since.
            return Ok(own.timeline);
        }
        let (mode, calendar) = settings.calendar(self.defaults.calendar)?;
        let schedule = self.policy().schedule;
        let mut schedule = schedule.changed(mode, calendar, now, activity);
        schedule.resets.clear();
        let defaults = self.default_calendars.last();
        Ok(Some(Timeline {
            defaults_version: defaults.map_or(0, |it| it.version),
            schedule,
        }))
    }

    /// Resolves the policy, with everything that it was and will be.
    pub fn policy(&self) -> Policy {
        Policy::resolve(
            &self.defaults,
            // A deletion is a policy change too: what follows it is newer than everything before.
            self.defaults_version.max(self.incarnation),
            &self.default_calendars,
            &self.plan,
            self.organization.as_ref(),
        )
    }
}

/// Reads the sources of some organizations, in their order; empty before any defaults were published.
pub async fn sources(db: &Postgres, ids: &[&OrganizationId]) -> Result<Vec<Sources>> {
    let mut connection = db.pool().await?.acquire().await?;
    let rows = read_all(&mut connection, ids).await?;
    let sources: sqlx::Result<_> = rows.into_iter().map(|row| row.sources).collect();
    Ok(sources?)
}

/// Reads the sources of some organizations. Fails if a row is corrupt.
pub(super) async fn read_by_id(
    tx: &mut PgConnection,
    ids: &[&OrganizationId],
) -> Result<HashMap<OrganizationId, Sources>> {
    let rows = read_all(tx, ids).await?.into_iter();
    let sources: sqlx::Result<_> = rows.map(|row| Ok((row.id, row.sources?))).collect();
    Ok(sources?)
}

/// Reads the sources of an organization, after every policy change in progress has ended.
pub async fn settled(db: &Postgres, id: &OrganizationId) -> Result<Sources> {
    let mut tx = db.begin_settled().await?;
    read(&mut tx, id).await
}

/// Reads the schedules of some organizations. One with a corrupt row is logged and left out.
pub(super) async fn schedules(
    tx: &mut PgConnection,
    ids: &[OrganizationId],
) -> Result<BTreeMap<OrganizationId, Schedule>> {
    let ids: Vec<&OrganizationId> = ids.iter().collect();
    let mut schedules = BTreeMap::new();
    for SourcesRow { id, sources } in read_all(tx, &ids).await? {
        match sources {
            Ok(sources) => {
                schedules.insert(id, sources.policy().schedule);
            }
            Err(error) => tracing::error!(%error, org.id = %id, "an organization cannot be read"),
        }
    }
    Ok(schedules)
}

/// Reads the sources of an organization.
pub(super) async fn read(tx: &mut PgConnection, id: &OrganizationId) -> Result<Sources> {
    let one = read_all(tx, &[id]).await?.pop();
    Ok(one.ok_or_else(Error::no_defaults)?.sources?)
}

/// The sources of an organization; an error if its row is corrupt, which does not affect others.
struct SourcesRow {
    id: OrganizationId,
    sources: sqlx::Result<Sources>,
}

/// Reads the sources of some organizations, in their order, with one statement and so as of one instant.
async fn read_all(tx: &mut PgConnection, ids: &[&OrganizationId]) -> Result<Vec<SourcesRow>> {
    Ok(sqlx::query_as(
        "select requested_id, defaults.settings as defaults, defaults.version as defaults_version,
                defaults.calendars as default_calendars,
                plans.id, plans.name, plans.limits, plans.features, plans.meters, plans.version,
                it.id is not null and it.deleted_at is null as known, it.plan_id as own_plan, coalesce(it.features, '{}') as own_features,
                coalesce(it.meters, '{}') as own_meters,
                it.reset_mode, it.reset_period, it.reset_day, it.reset_month, it.anchor, it.time_zone,
                coalesce(it.metadata, '{}') as metadata, it.timeline,
                coalesce(it.version, 0) as own_version, coalesce(it.incarnation, 0) as incarnation,
                (select coalesce(jsonb_agg(own), '[]') from limits as own where organization_id = requested_id) as own_limits,
                (select coalesce(jsonb_object_agg(meter, jsonb_build_object('limit', units, 'until', until)), '{}')
                 from temporary_limits where organization_id = requested_id) as temporary,
                (select coalesce(jsonb_object_agg(meter, jsonb_build_object('closedStart', closed_start, 'at', at)), '{}')
                 from resets where organization_id = requested_id) as resets
         from unnest($1::text[]) with ordinality as requested (requested_id, position)
         -- Limited to its only row, for which a planner without statistics would estimate a thousand.
         cross join (select settings, version, calendars from defaults limit 1) as defaults
         -- The limit forces an index lookup for each, even if statistics are of a time when the table was small.
         left join lateral (select * from organizations where id = requested_id limit 1) as it on true
         join plans on plans.id = coalesce(it.plan_id, defaults.settings->>'planId')
         order by position",
    )
    .bind(ids)
    .fetch_all(tx)
    .await?)
}

impl FromRow<'_, PgRow> for SourcesRow {
    fn from_row(row: &PgRow) -> sqlx::Result<Self> {
        Ok(Self {
            id: row.try_get("requested_id")?,
            sources: Sources::from_row(row),
        })
    }
}

impl FromRow<'_, PgRow> for Sources {
    fn from_row(row: &PgRow) -> sqlx::Result<Self> {
        // False if there is no row, or only the row of a deleted organization.
        let known: bool = row.try_get("known")?;
        Ok(Self {
            defaults: json(row, "defaults")?,
            defaults_version: unsigned(row, "defaults_version")?,
            default_calendars: json(row, "default_calendars")?,
            plan: Plan::from_row(row)?,
            organization: known.then(|| Organization::from_row(row)).transpose()?,
            incarnation: unsigned(row, "incarnation")?,
        })
    }
}

impl FromRow<'_, PgRow> for Organization {
    fn from_row(row: &PgRow) -> sqlx::Result<Self> {
        let limits: Vec<LimitRow> = json(row, "own_limits")?;
        let timeline: Option<Json<Timeline>> = row.try_get("timeline")?;
        let time_zone: Option<TimeZone> = row.try_get("time_zone")?;
        Ok(Self {
            settings: OrganizationSettings {
                plan_id: row.try_get("own_plan")?,
                features: json(row, "own_features")?,
                meters: json(row, "own_meters")?,
                reset_mode: row.try_get("reset_mode")?,
                reset_period: row.try_get("reset_period")?,
                reset_day: small(row, "reset_day")?,
                reset_month: small(row, "reset_month")?,
                anchor: row.try_get("anchor")?,
                time_zone: time_zone.map(|TimeZone(zone)| zone),
                metadata: json(row, "metadata")?,
                limits: None,
            },
            limits: limits.into_iter().map(LimitRow::entry).collect(),
            temporary: json(row, "temporary")?,
            timeline: timeline.map(|Json(timeline)| timeline),
            resets: json(row, "resets")?,
            version: unsigned(row, "own_version")?,
        })
    }
}

/// Reads a nullable `smallint` column with numbers up to 255.
fn small(row: &PgRow, column: &str) -> sqlx::Result<Option<u8>> {
    let number: Option<i16> = row.try_get(column)?;
    let number = number.map(u8::try_from).transpose();
    number.map_err(|error| corrupt(column, error))
}

#[derive(Deserialize)]
struct LimitRow {
    meter: MeterId,
    limited: bool,
    units: Option<Count>,
    enforcement: Option<Enforcement>,
    warn_at: Option<Vec<u16>>,
    on_outage: Option<OnOutage>,
}

impl LimitRow {
    fn entry(self) -> (MeterId, LimitOverride) {
        let limit = LimitOverride {
            limit: self.limited.then_some(Limit(self.units)),
            enforcement: self.enforcement,
            warn_at: self.warn_at,
            on_outage: self.on_outage,
        };
        (self.meter, limit)
    }
}
