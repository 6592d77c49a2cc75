//! Idempotency records of operations in Postgres, written in the transaction of the operation.

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde::de::DeserializeOwned;
use sqlx::PgExecutor;
use sqlx::types::Json;

use super::pool::{Error, Postgres, Result, execute};
use crate::domain::ids::IdempotencyKey;

/// One use of an idempotency key.
#[derive(Debug, Clone)]
pub struct IdempotencyUse {
    /// The namespace of the key: the organization, or else the API key.
    pub scope: String,
    /// The caller's key.
    pub key: IdempotencyKey,
    /// Identifies the payload.
    pub fingerprint: String,
}

/// The record of an idempotency key.
#[derive(Debug)]
pub enum Replay<R> {
    /// The key is new.
    New,
    /// The same payload was processed before, with this response.
    Response(R),
    /// The key was used for another payload.
    KeyReused,
}

/// Looks the record of a key up.
pub async fn replay<R: DeserializeOwned>(
    db: &Postgres,
    idempotency: Option<&IdempotencyUse>,
) -> Result<Replay<R>> {
    find(db.pool().await?, idempotency).await
}

/// Records the response of an operation that is harmless to repeat; the first response is kept.
pub async fn store(
    db: &Postgres,
    idempotency: Option<&IdempotencyUse>,
    response: &impl Serialize,
    now: DateTime<Utc>,
) -> Result<()> {
    record(db.pool().await?, idempotency, response, now).await
}

/// Deletes records older than an instant.
pub async fn delete_older(db: &Postgres, before: DateTime<Utc>) -> Result<()> {
    execute(
        db.pool().await?,
        "delete from attempts where at < $1",
        before,
    )
    .await?;
    Ok(())
}

/// Looks the record of a key up. To write one afterwards, the caller must hold a lock that excludes other writers.
pub(super) async fn find<R: DeserializeOwned>(
    executor: impl PgExecutor<'_>,
    idempotency: Option<&IdempotencyUse>,
) -> Result<Replay<R>> {
    let Some(idempotency) = idempotency else {
        return Ok(Replay::New);
    };
    let row: Option<(String, Json<serde_json::Value>)> =
        sqlx::query_as("select fingerprint, answer from attempts where scope = $1 and key = $2")
            .bind(&idempotency.scope)
            .bind(&idempotency.key)
            .fetch_optional(executor)
            .await?;
    Ok(match row {
        None => Replay::New,
        Some((fingerprint, _)) if fingerprint != idempotency.fingerprint => Replay::KeyReused,
        Some((_, Json(response))) => {
            Replay::Response(serde_json::from_value(response).map_err(Error::corrupt_row)?)
        }
    })
}

/// Records the response of an operation.
pub(super) async fn record(
    executor: impl PgExecutor<'_>,
    idempotency: Option<&IdempotencyUse>,
    response: &impl Serialize,
    now: DateTime<Utc>,
) -> Result<()> {
    let Some(idempotency) = idempotency else {
        return Ok(());
    };
    sqlx::query(
        "insert into attempts (scope, key, fingerprint, answer, at) values ($1, $2, $3, $4, $5)
         on conflict on constraint attempts_pkey do nothing",
    )
    .bind(&idempotency.scope)
    .bind(&idempotency.key)
    .bind(&idempotency.fingerprint)
    .bind(Json(response))
    .bind(now)
    .execute(executor)
    .await?;
    Ok(())
}
