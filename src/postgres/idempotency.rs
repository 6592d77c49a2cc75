//! Idempotency keys of what is done in Postgres: noted in the transaction that does it.

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde::de::DeserializeOwned;
use sqlx::PgConnection;
use sqlx::types::Json;

use super::{Error, Postgres};
use crate::domain::ids::IdempotencyKey;

/// An attempt that may be repeated under the same key.
#[derive(Debug, Clone)]
pub struct Attempt {
    /// Whose key it is: the organization, or else the API key.
    pub scope: String,
    /// The caller's name for it.
    pub key: IdempotencyKey,
    /// Tells the payload from others.
    pub fingerprint: String,
}

/// What is known of an attempt.
#[derive(Debug)]
pub enum Earlier<A> {
    /// Nothing: it is the first.
    Nothing,
    /// It was done before, with this answer.
    Answered(A),
    /// Another payload came under the same key.
    Other,
}

/// The answer to an earlier attempt, where there was one.
pub async fn answered<A: DeserializeOwned>(
    postgres: &Postgres,
    attempt: Option<&Attempt>,
) -> Result<Earlier<A>, Error> {
    find(&mut *postgres.pool.acquire().await?, attempt).await
}

/// Notes the answer to an attempt that may be made twice without harm; the first one stands.
pub async fn answer(
    postgres: &Postgres,
    attempt: Option<&Attempt>,
    answer: &impl Serialize,
    now: DateTime<Utc>,
) -> Result<(), Error> {
    note(&mut *postgres.pool.acquire().await?, attempt, answer, now).await
}

/// Forgets what was noted before an instant.
pub async fn forget(postgres: &Postgres, before: DateTime<Utc>) -> Result<(), Error> {
    sqlx::query("delete from attempts where at < $1")
        .bind(before)
        .execute(&postgres.pool)
        .await?;
    Ok(())
}

/// Looks for an earlier attempt. Whoever notes one afterwards must have been alone in between.
pub(super) async fn find<A: DeserializeOwned>(
    connection: &mut PgConnection,
    attempt: Option<&Attempt>,
) -> Result<Earlier<A>, Error> {
    let Some(attempt) = attempt else {
        return Ok(Earlier::Nothing);
    };
    let row: Option<(String, Json<serde_json::Value>)> =
        sqlx::query_as("select fingerprint, answer from attempts where scope = $1 and key = $2")
            .bind(&attempt.scope)
            .bind(attempt.key.as_str())
            .fetch_optional(connection)
            .await?;
    Ok(match row {
        None => Earlier::Nothing,
        Some((fingerprint, _)) if fingerprint != attempt.fingerprint => Earlier::Other,
        Some((_, Json(answer))) => Earlier::Answered(
            serde_json::from_value(answer)
                .map_err(|error| Error::Inconsistent(error.to_string()))?,
        ),
    })
}

/// Notes what came of an attempt.
pub(super) async fn note(
    connection: &mut PgConnection,
    attempt: Option<&Attempt>,
    answer: &impl Serialize,
    now: DateTime<Utc>,
) -> Result<(), Error> {
    let Some(attempt) = attempt else {
        return Ok(());
    };
    let answer =
        serde_json::to_value(answer).map_err(|error| Error::Inconsistent(error.to_string()))?;
    sqlx::query(
        "insert into attempts (scope, key, fingerprint, answer, at) values ($1, $2, $3, $4, $5)
         on conflict on constraint attempts_pkey do nothing",
    )
    .bind(&attempt.scope)
    .bind(attempt.key.as_str())
    .bind(&attempt.fingerprint)
    .bind(Json(answer))
    .bind(now)
    .execute(connection)
    .await?;
    Ok(())
}
