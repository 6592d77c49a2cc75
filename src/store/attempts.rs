//! Idempotency keys of what is done in Postgres: noted in the transaction that does it.

use serde::Serialize;
use serde::de::DeserializeOwned;
use sqlx::PgConnection;
use sqlx::types::Json;

use super::Error;
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
pub(super) enum Earlier<A> {
    /// Nothing: it is the first.
    Nothing,
    /// It was done before, with this answer.
    Answered(A),
    /// Another payload came under the same key.
    Other,
}

/// Looks for an earlier attempt. Whoever notes one afterwards must have been alone in between.
pub(super) async fn find<A: DeserializeOwned + Unpin + Send>(
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
) -> Result<(), Error> {
    let Some(attempt) = attempt else {
        return Ok(());
    };
    let answer =
        serde_json::to_value(answer).map_err(|error| Error::Inconsistent(error.to_string()))?;
    sqlx::query("insert into attempts (scope, key, fingerprint, answer) values ($1, $2, $3, $4)")
        .bind(&attempt.scope)
        .bind(attempt.key.as_str())
        .bind(&attempt.fingerprint)
        .bind(Json(answer))
        .execute(connection)
        .await?;
    Ok(())
}
