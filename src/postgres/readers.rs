//! The role of analysts, which reads the views of the schema `analytics` and nothing else.

use sqlx::AssertSqlSafe;

use super::pool::{Postgres, Result};

/// Creates this role, unless there is one, and lets it read the views, later ones included. It can log in once it has a
/// password.
pub async fn permit(db: &Postgres, role: &str) -> Result<()> {
    let exists: bool =
        sqlx::query_scalar("select exists (select from pg_roles where rolname = $1)")
            .bind(role)
            .fetch_one(db.pool().await?)
            .await?;
    // Utility statements take no parameters, so Postgres quotes the name.
    let quoted: String = sqlx::query_scalar("select quote_ident($1)")
        .bind(role)
        .fetch_one(db.pool().await?)
        .await?;
    let mut tx = db.pool().await?.begin().await?;
    let create = (!exists).then_some("create role {} login");
    for statement in create.into_iter().chain([
        "alter role {} set default_transaction_read_only = on",
        "grant usage on schema analytics to {}",
        "grant select on all tables in schema analytics to {}",
        "alter default privileges in schema analytics grant select on tables to {}",
    ]) {
        let statement = statement.replace("{}", &quoted);
        sqlx::query(AssertSqlSafe(statement))
            .execute(&mut *tx)
            .await?;
    }
    tx.commit().await?;
    Ok(())
}
