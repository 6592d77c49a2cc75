//! Plans, one row each, so that a change of a plan writes no row of the organizations on it.

use serde_json::json;
use sqlx::postgres::PgRow;
use sqlx::types::Json;
use sqlx::{FromRow, PgExecutor, Row as _};

use super::audit::{self, Actor};
use super::defaults;
use super::pool::{Postgres, Result, execute};
use super::types::{BigInt, json, unsigned};
use crate::domain::ids::PlanId;
use crate::domain::plan::Plan;

/// The result of a change of a plan.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// The change is committed, or was not necessary; the plan as it is, or was before its deletion.
    Done(Plan),
    /// The plan does not exist.
    Missing,
    /// The precondition does not hold: the plan has another version.
    Outdated,
    /// This many organizations are on the plan.
    InUse(u64),
    /// It is the default plan.
    Default,
}

/// Finds a plan.
pub async fn get(db: &Postgres, id: &PlanId) -> Result<Option<Plan>> {
    read(db.pool().await?, id).await
}

/// Lists at most `count` plans by id, starting after `after`.
pub async fn list(db: &Postgres, after: Option<&PlanId>, count: u32) -> Result<Vec<Plan>> {
    Ok(sqlx::query_as(
        "select id, name, limits, features, meters, version from plans
         where id > $1
         order by id
         limit $2",
    )
    .bind(after.map_or("", PlanId::as_str))
    .bind(i64::from(count))
    .fetch_all(db.pool().await?)
    .await?)
}

/// Creates or replaces a plan, if `expected` accepts its version, or its absence. An equal plan is left unchanged.
pub async fn put(
    db: &Postgres,
    plan: Plan,
    actor: &Actor,
    expected: impl FnOnce(Option<u64>) -> bool,
) -> Result<Change> {
    let (mut tx, version) = db.begin_policy_change().await?;
    let before = read(&mut *tx, &plan.id).await?;
    if !expected(before.as_ref().map(|it| it.version)) {
        return Ok(Change::Outdated);
    }
    let after = Plan { version, ..plan };
    if let Some(before) = &before
        && describe(before) == describe(&after)
    {
        return Ok(Change::Done(before.clone()));
    }
    sqlx::query(
        "insert into plans (id, name, limits, features, meters, version) values ($1, $2, $3, $4, $5, $6)
         on conflict (id) do update set
             name = excluded.name, limits = excluded.limits, features = excluded.features,
             meters = excluded.meters, version = excluded.version",
    )
    .bind(&after.id)
    .bind(&after.name)
    .bind(Json(&after.limits))
    .bind(Json(&after.features))
    .bind(Json(&after.meters))
    .bind(BigInt(version))
    .execute(&mut *tx)
    .await?;
    let (was, is) = (before.as_ref().map(describe), describe(&after));
    audit::record(&mut tx, actor, "plan.put", None, &was, &is).await?;
    tx.commit().await?;
    Ok(Change::Done(after))
}

/// Counts the organizations on a plan.
pub async fn organizations(db: &Postgres, id: &PlanId) -> Result<u64> {
    let BigInt(count) = sqlx::query_scalar(
        "select count(*) from organizations
         where deleted_at is null
           and coalesce(plan_id, (select settings->>'planId' from defaults)) = $1",
    )
    .bind(id)
    .fetch_one(db.pool().await?)
    .await?;
    Ok(count)
}

/// Deletes a plan without organizations. The lock of the transaction keeps organizations from moving onto it.
pub async fn delete(
    db: &Postgres,
    id: &PlanId,
    actor: &Actor,
    expected: impl FnOnce(Option<u64>) -> bool,
) -> Result<Change> {
    let (mut tx, _) = db.begin_policy_change().await?;
    let Some(plan) = read(&mut *tx, id).await? else {
        return Ok(Change::Missing);
    };
    if !expected(Some(plan.version)) {
        return Ok(Change::Outdated);
    }
    let defaults = defaults::read(&mut *tx).await?;
    if defaults.is_some_and(|defaults| defaults.settings.plan_id == *id) {
        return Ok(Change::Default);
    }
    let BigInt(users) = sqlx::query_scalar("select count(*) from organizations where plan_id = $1")
        .bind(id)
        .fetch_one(&mut *tx)
        .await?;
    if users > 0 {
        return Ok(Change::InUse(users));
    }
    execute(&mut *tx, "delete from plans where id = $1", id).await?;
    let was = describe(&plan);
    audit::record(&mut tx, actor, "plan.delete", None, &was, &()).await?;
    tx.commit().await?;
    Ok(Change::Done(plan))
}

/// Lists every plan with a version above `version`, and that version.
pub async fn versions_since(db: &Postgres, version: u64) -> Result<Vec<(PlanId, u64)>> {
    let rows: Vec<(PlanId, BigInt)> =
        sqlx::query_as("select id, version from plans where version > $1 order by version")
            .bind(BigInt(version))
            .fetch_all(db.pool().await?)
            .await?;
    Ok(rows.into_iter().map(|(id, it)| (id, it.0)).collect())
}

impl FromRow<'_, PgRow> for Plan {
    fn from_row(row: &PgRow) -> sqlx::Result<Self> {
        Ok(Self {
            id: row.try_get("id")?,
            name: row.try_get("name")?,
            limits: json(row, "limits")?,
            features: json(row, "features")?,
            meters: json(row, "meters")?,
            version: unsigned(row, "version")?,
        })
    }
}

async fn read(executor: impl PgExecutor<'_>, id: &PlanId) -> Result<Option<Plan>> {
    Ok(sqlx::query_as(
        "select id, name, limits, features, meters, version from plans where id = $1",
    )
    .bind(id)
    .fetch_optional(executor)
    .await?)
}

/// The plan in the audit log: everything but its version.
fn describe(plan: &Plan) -> serde_json::Value {
    json!({"id": plan.id, "name": plan.name, "limits": plan.limits, "features": plan.features, "meters": plan.meters})
}
