//! Plans, each one row, so that a change touches no organization that is on it.

use std::collections::BTreeMap;

use serde_json::json;
use sqlx::types::Json;
use sqlx::{FromRow, PgConnection};

use super::organizations::{parse, read_defaults};
use super::{Actor, Error, Postgres, audit, signed, unsigned};
use crate::domain::feature::Features;
use crate::domain::ids::{MeterId, PlanId};
use crate::domain::limit::LimitOverride;
use crate::domain::plan::Plan;

/// What became of a change of a plan.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// It is committed, or there was nothing to change; the plan as it stands, or stood.
    Done(Plan),
    /// There is no such plan.
    Missing,
    /// The caller had seen another version of it.
    Outdated,
    /// So many organizations are on it.
    InUse(u64),
    /// It is what every organization is on that names none.
    Default,
}

/// One plan.
pub async fn get(postgres: &Postgres, id: &PlanId) -> Result<Option<Plan>, Error> {
    read(&mut *postgres.pool.acquire().await?, id).await
}

/// At most `count` plans by id, behind `after`.
pub async fn list(
    postgres: &Postgres,
    after: Option<&PlanId>,
    count: u32,
) -> Result<Vec<Plan>, Error> {
    let rows: Vec<PlanRow> = sqlx::query_as(
        "select id, name, limits, features, version from plans
         where id > $1
         order by id
         limit $2",
    )
    .bind(after.map_or("", PlanId::as_str))
    .bind(i64::from(count))
    .fetch_all(&postgres.pool)
    .await?;
    rows.into_iter().map(PlanRow::plan).collect()
}

/// Makes a plan, or replaces one whose version, if there is one, `expected` agrees with. One that is like that already
/// stays as it is.
pub async fn put(
    postgres: &Postgres,
    plan: Plan,
    actor: &Actor,
    expected: impl FnOnce(Option<u64>) -> bool,
) -> Result<Change, Error> {
    let (mut transaction, version) = postgres.begin_policy_change().await?;
    let before = read(&mut transaction, &plan.id).await?;
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
        "insert into plans (id, name, limits, features, version) values ($1, $2, $3, $4, $5)
         on conflict (id) do update set
             name = excluded.name, limits = excluded.limits, features = excluded.features, version = excluded.version",
    )
    .bind(after.id.as_str())
    .bind(after.name.as_str())
    .bind(Json(&after.limits))
    .bind(Json(&after.features))
    .bind(signed(version))
    .execute(&mut *transaction)
    .await?;
    let (was, is) = (before.as_ref().map(describe), describe(&after));
    audit::record(&mut transaction, actor, "plan.put", None, &was, &is).await?;
    transaction.commit().await?;
    Ok(Change::Done(after))
}

/// Deletes a plan that nobody is on. While this holds the lock, no organization moves onto it.
pub async fn delete(
    postgres: &Postgres,
    id: &PlanId,
    actor: &Actor,
    expected: impl FnOnce(Option<u64>) -> bool,
) -> Result<Change, Error> {
    let (mut transaction, _) = postgres.begin_policy_change().await?;
    let Some(plan) = read(&mut transaction, id).await? else {
        return Ok(Change::Missing);
    };
    if !expected(Some(plan.version)) {
        return Ok(Change::Outdated);
    }
    let defaults = read_defaults(&mut transaction).await?;
    if defaults.is_some_and(|defaults| defaults.settings.plan_id == *id) {
        return Ok(Change::Default);
    }
    let (users,): (i64,) = sqlx::query_as("select count(*) from organizations where plan_id = $1")
        .bind(id.as_str())
        .fetch_one(&mut *transaction)
        .await?;
    if users > 0 {
        return Ok(Change::InUse(unsigned(users)));
    }
    sqlx::query("delete from plans where id = $1")
        .bind(id.as_str())
        .execute(&mut *transaction)
        .await?;
    let was = describe(&plan);
    audit::record(&mut transaction, actor, "plan.delete", None, &was, &()).await?;
    transaction.commit().await?;
    Ok(Change::Done(plan))
}

/// Every plan whose version is above `version`, and that version.
pub async fn versions_since(
    postgres: &Postgres,
    version: u64,
) -> Result<Vec<(PlanId, u64)>, Error> {
    let rows: Vec<(String, i64)> =
        sqlx::query_as("select id, version from plans where version > $1 order by version")
            .bind(signed(version))
            .fetch_all(&postgres.pool)
            .await?;
    rows.into_iter()
        .map(|(id, version)| Ok((parse(&id)?, unsigned(version))))
        .collect()
}

/// Sees to it that a plan is there; one that sets nothing, where there was none.
pub(super) async fn ensure(
    connection: &mut PgConnection,
    id: &PlanId,
    version: u64,
) -> Result<(), Error> {
    sqlx::query("insert into plans (id, name, version) values ($1, $1, $2) on conflict do nothing")
        .bind(id.as_str())
        .bind(signed(version))
        .execute(connection)
        .await?;
    Ok(())
}

/// A plan as a statement reads it.
#[derive(FromRow)]
pub(super) struct PlanRow {
    id: String,
    name: String,
    limits: Json<BTreeMap<MeterId, LimitOverride>>,
    features: Json<Features>,
    version: i64,
}

impl PlanRow {
    pub(super) fn plan(self) -> Result<Plan, Error> {
        Ok(Plan {
            id: parse(&self.id)?,
            name: parse(&self.name)?,
            limits: self.limits.0,
            features: self.features.0,
            version: unsigned(self.version),
        })
    }
}

async fn read(connection: &mut PgConnection, id: &PlanId) -> Result<Option<Plan>, Error> {
    let row: Option<PlanRow> =
        sqlx::query_as("select id, name, limits, features, version from plans where id = $1")
            .bind(id.as_str())
            .fetch_optional(connection)
            .await?;
    row.map(PlanRow::plan).transpose()
}

/// What the audit log says of a plan: all but its version.
fn describe(plan: &Plan) -> serde_json::Value {
    json!({"id": plan.id, "name": plan.name, "limits": plan.limits, "features": plan.features})
}
