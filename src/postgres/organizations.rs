//! Organizations: whether they exist, their settings and limits, and the changes of these.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use sqlx::PgConnection;
use sqlx::types::Json;

pub use super::defaults::publish_defaults;
pub use super::sources::{Sources, settled, sources};

use super::audit::{self, Actor};
use super::defaults::add_zone;
use super::pool::{Error, Postgres, Result, Uncommitted, execute};
use super::sources::read;
use super::types::{BigInt, BindColumns as _, TimeZone};
use super::{events, pending};
use crate::domain::event::{Event, LimitsUpdate};
use crate::domain::ids::{MeterId, OrganizationId};
use crate::domain::limit::{Limit, LimitOverride, TemporaryLimit};
use crate::domain::organization::Organization;

/// Whether an organization exists, and its last deletion.
#[derive(Debug, Clone, Copy, Default)]
pub struct Presence {
    /// Whether it was counted or configured since its last deletion.
    pub exists: bool,
    /// The policy version of its last deletion; 0 if it never was deleted.
    pub incarnation: u64,
}

/// Reads whether an organization exists, and its last deletion.
pub async fn presence(db: &Postgres, id: &OrganizationId) -> Result<Presence> {
    let row: Option<(bool, BigInt)> =
        sqlx::query_as("select deleted_at is null, incarnation from organizations where id = $1")
            .bind(id)
            .fetch_optional(db.pool().await?)
            .await?;
    let presence = row.map(|(exists, BigInt(incarnation))| Presence {
        exists,
        incarnation,
    });
    Ok(presence.unwrap_or_default())
}

/// Whether an organization exists: it was counted or configured since its last deletion.
pub async fn exists(db: &Postgres, id: &OrganizationId) -> Result<bool> {
    Ok(presence(db, id).await?.exists)
}

/// Lists at most `count` organizations that exist, by id, starting after `after`.
pub async fn list(
    db: &Postgres,
    after: Option<&OrganizationId>,
    count: u32,
) -> Result<Vec<OrganizationId>> {
    Ok(sqlx::query_scalar(
        "select id from organizations
         where id > $1 and deleted_at is null
         order by id
         limit $2",
    )
    .bind(after.map_or("", OrganizationId::as_str))
    .bind(i64::from(count))
    .fetch_all(db.pool().await?)
    .await?)
}

/// Changes an organization to what `change` returns, or refuses with its error. The change draws a new policy version
/// and writes the audit log and, if the effective limits change, an event. An unknown plan is [`Error::NoSuchPlan`].
pub async fn change<E>(
    db: &Postgres,
    id: &OrganizationId,
    actor: &Actor,
    action: &str,
    now: DateTime<Utc>,
    change: impl FnOnce(&Sources) -> Result<Organization, E>,
) -> Result<Result<Sources, E>> {
    match prepare(db, id, actor, action, now, change).await? {
        Ok(prepared) => Ok(Ok(prepared.commit().await?.after)),
        Err(refusal) => Ok(Err(refusal)),
    }
}

/// The result of a change.
#[derive(Debug)]
pub struct Changed {
    /// The sources before the change.
    pub before: Sources,
    /// The sources after it.
    pub after: Sources,
    /// Whether increments of the organization are pending.
    pub has_increments: bool,
}

/// Like [`change`], up to the commit.
pub async fn prepare<E>(
    db: &Postgres,
    id: &OrganizationId,
    actor: &Actor,
    action: &str,
    now: DateTime<Utc>,
    change: impl FnOnce(&Sources) -> Result<Organization, E>,
) -> Result<Result<Uncommitted<Changed>, E>> {
    let (mut tx, version) = db.begin_policy_change().await?;
    let before = read(&mut tx, id).await?;
    let mut after = match change(&before) {
        Ok(after) => after,
        Err(refusal) => return Ok(Err(refusal)),
    };
    after.version = version;
    let written = write(&mut tx, id, &after).await;
    written.map_err(|error| match (error, &after.settings.plan_id) {
        (Error::NoSuchPlan(_), Some(plan)) => Error::NoSuchPlan(plan.to_string()),
        (error, _) => error,
    })?;
    let (was, is) = (
        describe(before.organization.as_ref()),
        describe(Some(&after)),
    );
    audit::record(&mut tx, actor, action, Some(id), &was, &is).await?;
    let has_increments = pending::has_increments(&mut tx, id).await?;
    // Read back, because the change may have moved it to another plan.
    let after = read(&mut tx, id).await?;
    // An expired temporary limit counts as effective before: its end is notified when the sweep removes it.
    let previous_limits = before.resolve(DateTime::<Utc>::MIN_UTC).limits;
    let limits = after.resolve(now).limits;
    if limits != previous_limits {
        let update = Event::LimitsUpdated(LimitsUpdate {
            organization_id: id.clone(),
            limits,
            previous_limits,
        });
        events::record(&mut tx, &[update], now).await?;
    }
    Ok(Ok(Uncommitted {
        transaction: tx,
        version,
        outcome: Changed {
            before,
            after,
            has_increments,
        },
    }))
}

/// Lists at most `count` organizations with a temporary limit that has expired and not been removed, oldest first.
pub async fn with_expired_limits(
    db: &Postgres,
    now: DateTime<Utc>,
    count: u32,
) -> Result<Vec<OrganizationId>> {
    Ok(sqlx::query_scalar(
        "select organization_id from temporary_limits
         where until <= $1
         group by organization_id
         order by min(until), organization_id
         limit $2",
    )
    .bind(now)
    .bind(i64::from(count))
    .fetch_all(db.pool().await?)
    .await?)
}

/// Policy changes since a version.
#[derive(Debug, Clone)]
pub struct Changes {
    /// The version up to which `organizations` is complete.
    pub version: u64,
    /// The version of the defaults, changed or not.
    pub defaults_version: u64,
    /// The changed organizations, oldest change first.
    pub organizations: Vec<OrganizationId>,
}

/// Lists the policy changes since `version`, of at most `count` organizations.
pub async fn changes_since(db: &Postgres, version: u64, count: u32) -> Result<Changes> {
    let defaults: Option<BigInt> = sqlx::query_scalar("select version from defaults")
        .fetch_optional(db.pool().await?)
        .await?;
    let rows: Vec<(OrganizationId, BigInt)> = sqlx::query_as(
        "select id, version from organizations
         where version > 0 and version > $1
         order by version
         limit $2",
    )
    .bind(BigInt(version))
    .bind(i64::from(count))
    .fetch_all(db.pool().await?)
    .await?;
    Ok(Changes {
        version: rows.last().map_or(version, |(_, last)| last.0),
        defaults_version: defaults.map_or(0, u64::from),
        organizations: rows.into_iter().map(|(id, _)| id).collect(),
    })
}

/// The organization in the audit log.
pub(super) fn describe(organization: Option<&Organization>) -> Option<serde_json::Value> {
    organization.map(|it| {
        serde_json::json!({"settings": it.settings, "limits": it.limits, "temporary": it.temporary})
    })
}

/// `due_at` of a new organization: the scheduler skips it unless the default mode is scheduled. A concurrent change of
/// the defaults waits for the row lock, and then sees the new row.
macro_rules! new_due_at {
    () => {
        "case when (select settings ->> 'resetMode' from defaults for share) in ('lazy', 'manual')
              then timestamptz 'infinity' else '-infinity' end"
    };
}
pub(super) use new_due_at;

/// Creates the organizations that have no row.
pub(super) async fn create(
    tx: &mut PgConnection,
    ids: impl IntoIterator<Item = &OrganizationId>,
) -> Result<()> {
    sqlx::query(concat!(
        "with created as (
             insert into organizations (id, due_at)
             select id, ",
        new_due_at!(),
        "
             from (select distinct id from unnest($1::text[]) as named (id)) as named
             -- The offset forces an index lookup for each, even if statistics are of a time when the table was small.
             where not exists (select from organizations where organizations.id = named.id offset 0)
             order by id
             on conflict do nothing
             returning id
         )
         insert into standings (organization_id) select id from created",
    ))
    .column(ids, |id| id)
    .execute(tx)
    .await?;
    Ok(())
}

/// Writes the settings and limits of an organization; its resets are written by a reset alone.
pub(super) async fn write(
    tx: &mut PgConnection,
    id: &OrganizationId,
    organization: &Organization,
) -> Result<()> {
    let settings = &organization.settings;
    sqlx::query(
        "insert into organizations (id, plan_id, features, reset_mode, reset_period, reset_day, reset_month, anchor,
                                    time_zone, metadata, timeline, version, meters)
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)
         on conflict (id) do update set
             plan_id = excluded.plan_id, features = excluded.features, reset_mode = excluded.reset_mode,
             reset_period = excluded.reset_period, reset_day = excluded.reset_day, reset_month = excluded.reset_month,
             anchor = excluded.anchor, time_zone = excluded.time_zone, metadata = excluded.metadata,
             timeline = excluded.timeline, version = excluded.version, meters = excluded.meters,
             deleted_at = null, due_at = '-infinity', updated_at = now()",
    )
    .bind(id)
    .bind(&settings.plan_id)
    .bind(Json(&settings.features))
    .bind(settings.reset_mode)
    .bind(settings.reset_period)
    .bind(settings.reset_day.map(i16::from))
    .bind(settings.reset_month.map(i16::from))
    .bind(settings.anchor)
    .bind(settings.time_zone.map(TimeZone))
    .bind(Json(&settings.metadata))
    .bind(organization.timeline.as_ref().map(Json))
    .bind(BigInt(organization.version))
    .bind(Json(&settings.meters))
    .execute(&mut *tx)
    .await?;
    if let Some(zone) = settings.time_zone {
        add_zone(tx, TimeZone(zone)).await?;
    }
    sqlx::query(
        "insert into standings (organization_id, plan_id) values ($1, $2)
         on conflict (organization_id) do update set plan_id = excluded.plan_id",
    )
    .bind(id)
    .bind(&settings.plan_id)
    .execute(&mut *tx)
    .await?;
    write_limits(tx, id, &organization.limits).await?;
    write_temporary(tx, id, &organization.temporary).await
}

async fn write_limits(
    tx: &mut PgConnection,
    id: &OrganizationId,
    limits: &BTreeMap<MeterId, LimitOverride>,
) -> Result<()> {
    execute(
        &mut *tx,
        "delete from limits where organization_id = $1",
        id,
    )
    .await?;
    for (meter, own) in limits {
        let warn_at = own.warn_at.as_ref().map(|levels| {
            let levels = levels.iter().map(|level| i16::try_from(*level));
            levels.filter_map(Result::ok).collect::<Vec<_>>()
        });
        sqlx::query(
            "insert into limits (organization_id, meter, limited, units, enforcement, warn_at, on_outage)
             values ($1, $2, $3, $4, $5, $6, $7)",
        )
        .bind(id)
        .bind(meter)
        .bind(own.limit.is_some())
        .bind(own.limit.and_then(|Limit(units)| units))
        .bind(own.enforcement)
        .bind(warn_at)
        .bind(own.on_outage)
        .execute(&mut *tx)
        .await?;
    }
    Ok(())
}

async fn write_temporary(
    tx: &mut PgConnection,
    id: &OrganizationId,
    temporary: &BTreeMap<MeterId, TemporaryLimit>,
) -> Result<()> {
    let all = "delete from temporary_limits where organization_id = $1";
    execute(&mut *tx, all, id).await?;
    for (meter, TemporaryLimit { limit, until }) in temporary {
        sqlx::query(
            "insert into temporary_limits (organization_id, meter, units, until) values ($1, $2, $3, $4)",
        )
        .bind(id)
        .bind(meter)
        .bind(limit.0)
        .bind(until)
        .execute(&mut *tx)
        .await?;
    }
    Ok(())
}
