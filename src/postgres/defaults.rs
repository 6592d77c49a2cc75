//! The defaults: the settings that apply where neither plan nor organization has its own.

use chrono::{DateTime, Utc};
use sqlx::types::Json;
use sqlx::{FromRow, PgConnection, PgExecutor};

use super::audit::{self, Actor};
use super::pool::{Postgres, Result};
use super::types::{BigInt, TimeZone};
use crate::domain::organization::{DefaultSince, Defaults};

/// The defaults as stored.
#[derive(FromRow)]
pub(super) struct StoredDefaults {
    #[sqlx(json)]
    pub(super) settings: Defaults,
    #[sqlx(try_from = "i64")]
    version: u64,
    #[sqlx(json)]
    calendars: Vec<DefaultSince>,
}

/// Reads the defaults; none before they were published.
pub(super) async fn read(executor: impl PgExecutor<'_>) -> Result<Option<StoredDefaults>> {
    Ok(
        sqlx::query_as("select settings, version, calendars from defaults")
            .fetch_optional(executor)
            .await?,
    )
}

/// Publishes these defaults, unless they are already. Returns their version.
///
/// Another calendar applies to every organization that inherits any part of it: counts stay, and the running period
/// ends at the new calendar's next boundary. The log and the audit log say how many organizations these are.
pub async fn publish_defaults(
    db: &Postgres,
    defaults: &Defaults,
    now: DateTime<Utc>,
) -> Result<u64> {
    let unchanged = |stored: &Option<StoredDefaults>| {
        let stored = stored.as_ref().filter(|it| it.settings == *defaults);
        stored.map(|it| it.version)
    };
    let stored = read(db.pool().await?).await?;
    if let Some(version) = unchanged(&stored) {
        return Ok(version);
    }
    let (mut tx, version) = db.begin_policy_change().await?;
    // Another instance may have published the same defaults while this one waited for the lock.
    let before = read(&mut *tx).await?;
    if let Some(version) = unchanged(&before) {
        return Ok(version);
    }
    let old_calendar = before.as_ref().map(|it| it.settings.calendar);
    let replaced = old_calendar.filter(|calendar| *calendar != defaults.calendar);
    write(&mut tx, before.as_ref(), defaults, version, now).await?;
    let was = before.map(|it| it.settings);
    let mut is = serde_json::json!(defaults);
    let mut inherited_by = 0;
    if replaced.is_some() {
        // After the row of the defaults, which new organizations hold a lock on until they are visible here.
        inherited_by = reschedule_all(&mut tx).await?;
        is["calendarInheritedBy"] = inherited_by.into();
    }
    let (actor, action) = (Actor::system(), "defaults.publish");
    audit::record(&mut tx, &actor, action, None, &was, &is).await?;
    sqlx::query("insert into plans (id, name, version) values ($1, $1, $2) on conflict do nothing")
        .bind(&defaults.plan_id)
        .bind(BigInt(version))
        .execute(&mut *tx)
        .await?;
    tx.commit().await?;
    if let Some(was) = replaced {
        tracing::warn!(%was, is = %defaults.calendar, organizations = inherited_by, "the default calendar has changed: running periods keep their start and their count, and end at its next boundary");
    }
    Ok(version)
}

/// Writes the defaults, and their calendar to the list of all default calendars if it is new.
async fn write(
    tx: &mut PgConnection,
    before: Option<&StoredDefaults>,
    defaults: &Defaults,
    version: u64,
    now: DateTime<Utc>,
) -> Result<()> {
    let mut calendars = before.map_or_else(Vec::new, |it| it.calendars.clone());
    if before.is_none_or(|it| it.settings.calendar != defaults.calendar) {
        calendars.push(DefaultSince {
            since: before.map(|_| now),
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
    .bind(BigInt(version))
    .bind(Json(calendars))
    .execute(&mut *tx)
    .await?;
    add_zone(tx, TimeZone(defaults.calendar.time_zone)).await
}

/// Makes every organization due for the scheduler, because the default calendar has changed. Returns how many inherit
/// any part of it.
async fn reschedule_all(tx: &mut PgConnection) -> Result<u64> {
    sqlx::query("update organizations set due_at = '-infinity' where deleted_at is null")
        .execute(&mut *tx)
        .await?;
    let BigInt(count) = sqlx::query_scalar(
        "select count(*) from organizations
         where deleted_at is null and (reset_mode is null or reset_period is null or time_zone is null)",
    )
    .fetch_one(tx)
    .await?;
    Ok(count)
}

/// Adds a zone to those that history can be queried by.
pub(super) async fn add_zone(tx: &mut PgConnection, zone: TimeZone) -> Result<()> {
    sqlx::query("insert into time_zones (name) values ($1) on conflict do nothing")
        .bind(zone)
        .execute(tx)
        .await?;
    Ok(())
}
