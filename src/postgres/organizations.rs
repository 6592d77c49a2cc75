//! Organizations, their limits, and the defaults: what a policy is resolved from, beside [`plans`].

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::Deserialize;
use sqlx::types::Json;
use sqlx::{FromRow, PgConnection};

use super::plans::{self, PlanRow};
use super::{Actor, Error, Postgres, Uncommitted, audit, events, signed, unsigned};
use crate::domain::calendar::{InvalidCalendar, parse_time_zone};
use crate::domain::event::{Event, LimitsUpdate};
use crate::domain::feature::Features;
use crate::domain::ids::{MeterId, OrganizationId};
use crate::domain::limit::{Enforcement, Limit, LimitOverride, TemporaryLimit};
use crate::domain::organization::{
    DefaultSince, Defaults, Organization, OrganizationSettings, Timeline,
};
use crate::domain::plan::Plan;
use crate::domain::policy::Policy;
use crate::domain::quantity::Count;
use crate::domain::schedule::{Activity, Reset, Schedule};

/// All that an organization's policy comes from.
#[derive(Debug, Clone)]
pub struct Sources {
    /// What applies where nobody said otherwise.
    pub defaults: Defaults,
    /// The policy version of the defaults.
    pub defaults_version: u64,
    /// All calendars that were the default, oldest first; the last one is that of the defaults.
    pub default_calendars: Vec<DefaultSince>,
    /// The plan that the organization is on.
    pub plan: Plan,
    /// What people set for this organization; none if it was never counted or configured, or deleted since.
    pub organization: Option<Organization>,
    /// The policy version of its last deletion; 0 if it never was deleted. Whatever an older policy decided is of a
    /// former life.
    pub incarnation: u64,
}

impl Sources {
    /// The policy that these come to at an instant.
    pub fn resolve(&self, now: DateTime<Utc>) -> Policy {
        self.policy().at(now)
    }

    /// The timeline of the organization after a change to these settings at `now`; the present one where they say the same
    /// of the calendar.
    pub fn rescheduled(
        &self,
        settings: &OrganizationSettings,
        now: DateTime<Utc>,
        activity: Activity,
    ) -> Result<Option<Timeline>, InvalidCalendar> {
        let own = self.organization.clone().unwrap_or_default();
        if settings.same_calendar(&own.settings) {
            // Even where a default has changed under them, so that they do not fit any more.
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

    /// The policy that these come to, whenever.
    pub fn policy(&self) -> Policy {
        Policy::resolve(
            &self.defaults,
            // A deletion is a change as well: what comes after it is newer than all that was before.
            self.defaults_version.max(self.incarnation),
            &self.default_calendars,
            &self.plan,
            self.organization.as_ref(),
        )
    }
}

/// Reads what the policies of some organizations come from, in their order; nothing before any defaults were published.
pub async fn sources(postgres: &Postgres, ids: &[&OrganizationId]) -> Result<Vec<Sources>, Error> {
    let mut connection = postgres.pool.acquire().await?;
    let read = read_all(&mut connection, ids).await?;
    read.into_iter().map(|(_, sources)| sources).collect()
}

/// What an organization's policy comes from, once every change that is being made is committed, or will never be.
pub async fn settled(postgres: &Postgres, id: &OrganizationId) -> Result<Sources, Error> {
    let mut transaction = postgres.begin_settled().await?;
    read(&mut transaction, id).await?.ok_or_else(no_defaults)
}

/// What is stored of an organization.
#[derive(Debug, Clone, Copy, Default)]
pub struct Presence {
    /// Whether there is one: a count, or what people set, and no deletion since.
    pub exists: bool,
    /// The policy version of its last deletion; 0 if it never was deleted.
    pub incarnation: u64,
}

/// Whether anything is stored for an organization, and when it was deleted.
pub async fn presence(postgres: &Postgres, id: &OrganizationId) -> Result<Presence, Error> {
    let row: Option<(bool, i64)> =
        sqlx::query_as("select deleted_at is null, incarnation from organizations where id = $1")
            .bind(id.as_str())
            .fetch_optional(&postgres.pool)
            .await?;
    let found = row.map(|(exists, incarnation)| Presence {
        exists,
        incarnation: unsigned(incarnation),
    });
    Ok(found.unwrap_or_default())
}

/// Whether there is an organization: a count, or what people set, and no deletion since.
pub async fn exists(postgres: &Postgres, id: &OrganizationId) -> Result<bool, Error> {
    Ok(presence(postgres, id).await?.exists)
}

/// Makes these the defaults, unless they are already. Returns their version.
///
/// Another calendar is a change of the calendar for every organization that inherits any part of it: counts stay, and the
/// running period ends at the new calendar's next boundary. The log and the audit log say how many these are.
pub async fn publish_defaults(
    postgres: &Postgres,
    defaults: &Defaults,
    now: DateTime<Utc>,
) -> Result<u64, Error> {
    let current = read_defaults(&mut *postgres.pool.acquire().await?).await?;
    if let Some(current) = current
        && current.settings.0 == *defaults
    {
        return Ok(unsigned(current.version));
    }
    let (mut transaction, version) = postgres.begin_policy_change().await?;
    // Another instance may have published the same while this one waited for the lock.
    let before = read_defaults(&mut transaction).await?;
    if let Some(current) = &before
        && current.settings.0 == *defaults
    {
        return Ok(unsigned(current.version));
    }
    let changed = before
        .as_ref()
        .map(|it| it.settings.calendar)
        .filter(|calendar| *calendar != defaults.calendar);
    let mut calendars = before
        .as_ref()
        .map(|it| it.calendars.0.clone())
        .unwrap_or_default();
    if before.is_none() || changed.is_some() {
        calendars.push(DefaultSince {
            since: changed.map(|_| now),
            version,
            calendar: defaults.calendar,
        });
    }
    sqlx::query(
        "insert into defaults (settings, version, calendars) values ($1, $2, $3)
         on conflict (singleton) do update set
             settings = excluded.settings, version = excluded.version, calendars = excluded.calendars",
    )
    .bind(Json(defaults))
    .bind(signed(version))
    .bind(Json(&calendars))
    .execute(&mut *transaction)
    .await?;
    note_zone(&mut transaction, defaults.calendar.time_zone).await?;
    let was = before
        .as_ref()
        .map_or(serde_json::Value::Null, |it| serde_json::json!(it.settings));
    let mut is = serde_json::json!(defaults);
    let mut inherited = None;
    if changed.is_some() {
        // Behind the defaults, whose row organizations that are new hold until they can be seen here.
        let count = reschedule_all(&mut transaction).await?;
        is["calendarInheritedBy"] = count.into();
        inherited = Some(count);
    }
    // Nobody has asked for it but the settings that the service was started with.
    let actor = Actor::system();
    let action = "defaults.publish";
    audit::record(&mut transaction, &actor, action, None, &was, &is).await?;
    plans::ensure(&mut transaction, &defaults.plan_id, version).await?;
    transaction.commit().await?;
    if let (Some(was), Some(inherited)) = (changed, inherited) {
        let (was, is) = (was.to_string(), defaults.calendar.to_string());
        tracing::warn!(%was, %is, organizations = inherited, "the default calendar has changed: running periods keep their start and their count, and end at its next boundary");
    }
    Ok(version)
}

/// Has the scheduler look at every organization, because the default calendar has changed. Returns how many inherit any
/// part of it.
async fn reschedule_all(connection: &mut PgConnection) -> Result<u64, Error> {
    sqlx::query("update organizations set due_at = '-infinity' where deleted_at is null")
        .execute(&mut *connection)
        .await?;
    let (count,): (i64,) = sqlx::query_as(
        "select count(*) from organizations
         where deleted_at is null and (reset_mode is null or reset_period is null or time_zone is null)",
    )
    .fetch_one(connection)
    .await?;
    Ok(unsigned(count))
}

/// Lists a zone among those that history may be asked for.
async fn note_zone(connection: &mut PgConnection, zone: chrono_tz::Tz) -> Result<(), Error> {
    sqlx::query("insert into time_zones (name) values ($1) on conflict do nothing")
        .bind(zone.name())
        .execute(connection)
        .await?;
    Ok(())
}

/// Changes an organization: `change` gets what there is and returns what shall be, or refuses.
/// The change has a new policy version and a row in the audit log, or does not happen; where it changes what limits
/// are in force, that is an event. A plan that is not there is [`Error::NoSuchPlan`].
pub async fn change<E>(
    postgres: &Postgres,
    id: &OrganizationId,
    actor: &Actor,
    action: &str,
    now: DateTime<Utc>,
    change: impl FnOnce(&Sources) -> Result<Organization, E>,
) -> Result<Result<Sources, E>, Error> {
    match prepare(postgres, id, actor, action, now, change).await? {
        Ok(prepared) => Ok(Ok(prepared.commit().await?.after)),
        Err(refusal) => Ok(Err(refusal)),
    }
}

/// What a change makes of an organization.
#[derive(Debug)]
pub struct Changed {
    /// What its policy came from.
    pub before: Sources,
    /// What it comes from now.
    pub after: Sources,
}

/// The same, up to the commit.
pub async fn prepare<E>(
    postgres: &Postgres,
    id: &OrganizationId,
    actor: &Actor,
    action: &str,
    now: DateTime<Utc>,
    change: impl FnOnce(&Sources) -> Result<Organization, E>,
) -> Result<Result<Uncommitted<Changed>, E>, Error> {
    let (mut transaction, version) = postgres.begin_policy_change().await?;
    let before = read(&mut transaction, id).await?.ok_or_else(no_defaults)?;
    let mut after = match change(&before) {
        Ok(after) => after,
        Err(refusal) => return Ok(Err(refusal)),
    };
    after.version = version;
    let written = write(&mut transaction, id, &after).await;
    written.map_err(|error| match (error, &after.settings.plan_id) {
        (Error::NoSuchPlan(_), Some(plan)) => Error::NoSuchPlan(plan.to_string()),
        (error, _) => error,
    })?;
    let (was, is) = (
        describe(before.organization.as_ref()),
        describe(Some(&after)),
    );
    audit::record(&mut transaction, actor, action, Some(id), &was, &is).await?;
    // Read back, because its plan may be another one now.
    let after = read(&mut transaction, id).await?.ok_or_else(no_defaults)?;
    // A temporary limit that was there held until somebody notes its end, for whoever is told of changes.
    let limits_before = before.resolve(DateTime::<Utc>::MIN_UTC).limits;
    let limits = after.resolve(now).limits;
    if limits != limits_before {
        let update = Event::LimitsUpdated(LimitsUpdate {
            organization_id: id.clone(),
            limits,
        });
        events::record(&mut transaction, &[update], now).await?;
    }
    Ok(Ok(Uncommitted {
        transaction,
        version,
        outcome: Changed { before, after },
    }))
}

/// Organizations with a temporary limit that has ended without anybody having noted it, at most `count`; the oldest
/// first.
pub async fn with_ended_limits(
    postgres: &Postgres,
    now: DateTime<Utc>,
    count: u32,
) -> Result<Vec<OrganizationId>, Error> {
    let rows: Vec<(String,)> = sqlx::query_as(
        "select organization_id from temporary_limits
         where until <= $1
         group by organization_id
         order by min(until), organization_id
         limit $2",
    )
    .bind(now)
    .bind(i64::from(count))
    .fetch_all(&postgres.pool)
    .await?;
    rows.iter().map(|(id,)| parse(id)).collect()
}

/// Policy changes since a version.
#[derive(Debug, Clone)]
pub struct Changes {
    /// The version up to which `organizations` is complete.
    pub version: u64,
    /// The version of the defaults, changed or not.
    pub defaults_version: u64,
    /// Which organizations changed, oldest change first.
    pub organizations: Vec<OrganizationId>,
}

/// What has changed since `version`, at most `count` organizations of it.
pub async fn changes_since(
    postgres: &Postgres,
    version: u64,
    count: u32,
) -> Result<Changes, Error> {
    let defaults: Option<(i64,)> = sqlx::query_as("select version from defaults")
        .fetch_optional(&postgres.pool)
        .await?;
    let rows: Vec<(String, i64)> = sqlx::query_as(
        "select id, version from organizations
         where version > 0 and version > $1
         order by version
         limit $2",
    )
    .bind(signed(version))
    .bind(i64::from(count))
    .fetch_all(&postgres.pool)
    .await?;
    Ok(Changes {
        version: rows
            .last()
            .map_or(version, |(_, version)| unsigned(*version)),
        defaults_version: defaults.map_or(0, |(version,)| unsigned(version)),
        organizations: rows
            .into_iter()
            .map(|(id, _)| parse(&id))
            .collect::<Result<_, _>>()?,
    })
}

/// What the audit log says of an organization.
pub(super) fn describe(organization: Option<&Organization>) -> Option<serde_json::Value> {
    organization.map(|it| {
        serde_json::json!({"settings": it.settings, "limits": it.limits, "temporary": it.temporary})
    })
}

pub(super) fn no_defaults() -> Error {
    Error::Inconsistent("no defaults were published".to_owned())
}

/// What one statement reads, and so as of one instant.
#[derive(FromRow)]
struct SourcesRow {
    /// Whose.
    asked_id: String,
    defaults: Json<Defaults>,
    defaults_version: i64,
    default_calendars: Json<Vec<DefaultSince>>,
    #[sqlx(flatten)]
    plan: PlanRow,
    /// Whether there is an organization, and not what a deleted one has left.
    known: bool,
    incarnation: i64,
    #[sqlx(flatten)]
    organization: OrganizationRow,
}

/// Nothing but nulls and zeros where there is no organization.
#[derive(FromRow)]
struct OrganizationRow {
    own_plan: Option<String>,
    own_features: Json<Features>,
    reset_mode: Option<String>,
    reset_period: Option<String>,
    reset_day: Option<i16>,
    reset_month: Option<i16>,
    anchor: Option<DateTime<Utc>>,
    time_zone: Option<String>,
    metadata: Json<serde_json::Map<String, serde_json::Value>>,
    timeline: Option<Json<Timeline>>,
    own_version: i64,
    own_limits: Json<Vec<LimitRow>>,
    temporary: Json<BTreeMap<MeterId, TemporaryLimit>>,
    resets: Json<BTreeMap<MeterId, Reset>>,
}

#[derive(Deserialize)]
struct LimitRow {
    meter: MeterId,
    limited: bool,
    units: Option<Count>,
    enforcement: Option<Enforcement>,
    warn_at: Option<Vec<u16>>,
}

/// The defaults as they are stored.
#[derive(FromRow)]
pub(super) struct DefaultsRow {
    pub(super) settings: Json<Defaults>,
    pub(super) version: i64,
    pub(super) calendars: Json<Vec<DefaultSince>>,
}

pub(super) async fn read_defaults(
    connection: &mut PgConnection,
) -> Result<Option<DefaultsRow>, Error> {
    let row = sqlx::query_as("select settings, version, calendars from defaults")
        .fetch_optional(connection)
        .await?;
    Ok(row)
}

/// What chooses the periods of some organizations. One whose settings are corrupt is left out.
pub(super) async fn schedules(
    connection: &mut PgConnection,
    ids: &[OrganizationId],
) -> Result<BTreeMap<OrganizationId, Schedule>, Error> {
    let mut schedules = BTreeMap::new();
    let ids: Vec<&OrganizationId> = ids.iter().collect();
    for (id, sources) in read_all(connection, &ids).await? {
        match sources {
            Ok(sources) => {
                schedules.insert(id, sources.policy().schedule);
            }
            Err(error) => tracing::error!(%error, org.id = %id, "an organization cannot be read"),
        }
    }
    Ok(schedules)
}

/// What an organization's policy comes from; none before any defaults were published.
pub(super) async fn read(
    connection: &mut PgConnection,
    id: &OrganizationId,
) -> Result<Option<Sources>, Error> {
    let mut one = read_all(connection, &[id]).await?;
    one.pop().map(|(_, sources)| sources).transpose()
}

/// The same of several organizations, in their order; one whose settings are corrupt does not keep the others from it.
pub(super) async fn read_all(
    connection: &mut PgConnection,
    ids: &[&OrganizationId],
) -> Result<Vec<(OrganizationId, Result<Sources, Error>)>, Error> {
    let rows: Vec<SourcesRow> = sqlx::query_as(
        "select asked_id, defaults.settings as defaults, defaults.version as defaults_version,
                defaults.calendars as default_calendars,
                plans.id, plans.name, plans.limits, plans.features, plans.version,
                it.id is not null and it.deleted_at is null as known, it.plan_id as own_plan, coalesce(it.features, '{}') as own_features,
                it.reset_mode, it.reset_period, it.reset_day, it.reset_month, it.anchor, it.time_zone,
                coalesce(it.metadata, '{}') as metadata, it.timeline,
                coalesce(it.version, 0) as own_version, coalesce(it.incarnation, 0) as incarnation,
                (select coalesce(jsonb_agg(own), '[]') from limits as own where organization_id = asked_id) as own_limits,
                (select coalesce(jsonb_object_agg(meter, jsonb_build_object('limit', units, 'until', until)), '{}')
                 from temporary_limits where organization_id = asked_id) as temporary,
                (select coalesce(jsonb_object_agg(meter, jsonb_build_object('closedStart', closed_start, 'at', at)), '{}')
                 from resets where organization_id = asked_id) as resets
         from unnest($1::text[]) with ordinality as asked (asked_id, place)
         -- The only row, which a planner without statistics would take for a thousand.
         cross join (select settings, version, calendars from defaults limit 1) as defaults
         -- With a limit, so that it stays a look into the index, for each, however small the table was once.
         left join lateral (select * from organizations where id = asked_id limit 1) as it on true
         join plans on plans.id = coalesce(it.plan_id, defaults.settings->>'planId')
         order by place",
    )
    .bind(ids.iter().map(|id| id.as_str()).collect::<Vec<_>>())
    .fetch_all(connection)
    .await?;
    rows.into_iter()
        .map(|row| Ok((parse(&row.asked_id)?, row.sources())))
        .collect()
}

impl SourcesRow {
    fn sources(self) -> Result<Sources, Error> {
        let organization = self.known.then(|| organization(self.organization));
        Ok(Sources {
            defaults: self.defaults.0,
            defaults_version: unsigned(self.defaults_version),
            default_calendars: self.default_calendars.0,
            plan: self.plan.plan()?,
            organization: organization.transpose()?,
            incarnation: unsigned(self.incarnation),
        })
    }
}

fn organization(row: OrganizationRow) -> Result<Organization, Error> {
    Ok(Organization {
        settings: OrganizationSettings {
            plan_id: row.own_plan.as_deref().map(parse).transpose()?,
            features: row.own_features.0,
            reset_mode: row.reset_mode.as_deref().map(parse).transpose()?,
            reset_period: row.reset_period.as_deref().map(parse).transpose()?,
            reset_day: row
                .reset_day
                .map(u8::try_from)
                .transpose()
                .map_err(corrupt_row)?,
            reset_month: row
                .reset_month
                .map(u8::try_from)
                .transpose()
                .map_err(corrupt_row)?,
            anchor: row.anchor,
            time_zone: row
                .time_zone
                .as_deref()
                .map(parse_time_zone)
                .transpose()
                .map_err(corrupt_row)?,
            metadata: row.metadata.0,
        },
        limits: row.own_limits.0.into_iter().map(limit).collect(),
        temporary: row.temporary.0,
        timeline: row.timeline.map(|Json(timeline)| timeline),
        resets: row.resets.0,
        version: unsigned(row.own_version),
    })
}

fn limit(row: LimitRow) -> (MeterId, LimitOverride) {
    let limit = LimitOverride {
        limit: row.limited.then_some(Limit(row.units)),
        enforcement: row.enforcement,
        warn_at: row.warn_at,
    };
    (row.meter, limit)
}

pub(super) async fn write(
    connection: &mut PgConnection,
    id: &OrganizationId,
    organization: &Organization,
) -> Result<(), Error> {
    let Organization {
        settings,
        limits,
        temporary,
        timeline,
        version,
        // Written by the reset itself alone.
        resets: _,
    } = organization;
    sqlx::query(
        "insert into organizations (id, plan_id, features, reset_mode, reset_period, reset_day, reset_month, anchor,
                                    time_zone, metadata, timeline, version)
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)
         on conflict (id) do update set
             plan_id = excluded.plan_id, features = excluded.features, reset_mode = excluded.reset_mode,
             reset_period = excluded.reset_period, reset_day = excluded.reset_day, reset_month = excluded.reset_month,
             anchor = excluded.anchor, time_zone = excluded.time_zone, metadata = excluded.metadata,
             timeline = excluded.timeline, version = excluded.version,
             deleted_at = null, due_at = '-infinity', updated_at = now()",
    )
    .bind(id.as_str())
    .bind(settings.plan_id.as_ref().map(ToString::to_string))
    .bind(Json(&settings.features))
    .bind(settings.reset_mode.map(|mode| mode.to_string()))
    .bind(settings.reset_period.map(|period| period.to_string()))
    .bind(settings.reset_day.map(i16::from))
    .bind(settings.reset_month.map(i16::from))
    .bind(settings.anchor)
    .bind(settings.time_zone.map(chrono_tz::Tz::name))
    .bind(Json(&settings.metadata))
    .bind(timeline.as_ref().map(Json))
    .bind(signed(*version))
    .execute(&mut *connection)
    .await?;
    if let Some(zone) = settings.time_zone {
        note_zone(connection, zone).await?;
    }

    sqlx::query(
        "insert into standings (organization_id, plan_id) values ($1, $2)
         on conflict (organization_id) do update set plan_id = excluded.plan_id",
    )
    .bind(id.as_str())
    .bind(settings.plan_id.as_ref().map(ToString::to_string))
    .execute(&mut *connection)
    .await?;

    sqlx::query("delete from limits where organization_id = $1")
        .bind(id.as_str())
        .execute(&mut *connection)
        .await?;
    write_limits(connection, id, limits).await?;
    write_temporary(connection, id, temporary).await
}

async fn write_limits(
    connection: &mut PgConnection,
    id: &OrganizationId,
    limits: &BTreeMap<MeterId, LimitOverride>,
) -> Result<(), Error> {
    for (meter, own) in limits {
        let warn_at: Option<Vec<i16>> = own.warn_at.as_ref().map(|levels| {
            levels
                .iter()
                .filter_map(|level| i16::try_from(*level).ok())
                .collect()
        });
        sqlx::query(
            "insert into limits (organization_id, meter, limited, units, enforcement, warn_at)
             values ($1, $2, $3, $4, $5, $6)",
        )
        .bind(id.as_str())
        .bind(meter.as_str())
        .bind(own.limit.is_some())
        .bind(
            own.limit
                .and_then(|Limit(units)| units)
                .map(|units| signed(units.get())),
        )
        .bind(own.enforcement.map(|it| it.to_string()))
        .bind(warn_at)
        .execute(&mut *connection)
        .await?;
    }
    Ok(())
}

async fn write_temporary(
    connection: &mut PgConnection,
    id: &OrganizationId,
    temporary: &BTreeMap<MeterId, TemporaryLimit>,
) -> Result<(), Error> {
    sqlx::query("delete from temporary_limits where organization_id = $1")
        .bind(id.as_str())
        .execute(&mut *connection)
        .await?;
    for (meter, TemporaryLimit { limit, until }) in temporary {
        sqlx::query(
            "insert into temporary_limits (organization_id, meter, units, until) values ($1, $2, $3, $4)",
        )
        .bind(id.as_str())
        .bind(meter.as_str())
        .bind(limit.0.map(|units| signed(units.get())))
        .bind(until)
        .execute(&mut *connection)
        .await?;
    }
    Ok(())
}

/// Parses what this code has written.
pub(super) fn parse<T: std::str::FromStr<Err: std::fmt::Display>>(text: &str) -> Result<T, Error> {
    text.parse()
        .map_err(|error| Error::Inconsistent(format!("{text:?} {error}")))
}

pub(super) fn corrupt_row(error: impl std::fmt::Display) -> Error {
    Error::Inconsistent(error.to_string())
}
