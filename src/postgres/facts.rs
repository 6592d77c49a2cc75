//! What Postgres says about itself, for `tallyman doctor`.

use super::pool::{Postgres, Result};
use super::types::BigInt;
use crate::clock::Clock;
use crate::domain::checkup::PostgresFacts;

/// The settings that are checked.
const SETTINGS: [&str; 10] = [
    "autovacuum",
    "default_transaction_read_only",
    "fsync",
    "full_page_writes",
    "max_connections",
    "server_encoding",
    "server_version",
    "server_version_num",
    "superuser_reserved_connections",
    "synchronous_commit",
];

/// Asks a server, which may lack the schema.
pub async fn read(db: &Postgres, clock: &Clock) -> Result<PostgresFacts> {
    let mut connection = db.pool().await?.acquire().await?;
    let distance = clock.distance(async || {
        let now = sqlx::query_scalar("select clock_timestamp()");
        now.fetch_one(&mut *connection).await
    });
    let distance = distance.await?;
    let settings: Vec<(String, String)> =
        sqlx::query_as("select name, setting from pg_settings where name = any($1)")
            .bind(SETTINGS)
            .fetch_all(&mut *connection)
            .await?;
    let (in_recovery, BigInt(sessions)): (bool, BigInt) = sqlx::query_as(
        "select pg_is_in_recovery(), (select count(*) from pg_stat_activity where backend_type = 'client backend')",
    )
    .fetch_one(&mut *connection)
    .await?;
    let is_migrated: bool =
        sqlx::query_scalar("select to_regclass('_sqlx_migrations') is not null")
            .fetch_one(&mut *connection)
            .await?;
    let applied: Vec<i64> = if is_migrated {
        sqlx::query_scalar("select version from _sqlx_migrations where success")
            .fetch_all(&mut *connection)
            .await?
    } else {
        Vec::new()
    };
    let migrations = sqlx::migrate!();
    let missing = migrations
        .iter()
        .filter(|it| !applied.contains(&it.version));
    Ok(PostgresFacts {
        settings: settings.into_iter().collect(),
        in_recovery,
        sessions,
        migrations_missing: missing.count(),
        distance,
    })
}
