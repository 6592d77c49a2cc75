//! Who changed what; written in the transaction that changes it.

use sqlx::types::Json;
use sqlx::{Postgres, Transaction};

use super::Error;
use crate::domain::ids::OrganizationId;

/// Who is behind a change.
#[derive(Debug, Clone)]
pub struct Actor {
    /// The key that was used, such as `key:3f9c…`, or the command.
    pub name: String,
    /// The request that asked for it; empty where none did.
    pub request_id: String,
}

/// Adds one row.
pub(super) async fn record(
    transaction: &mut Transaction<'static, Postgres>,
    actor: &Actor,
    action: &str,
    organization: Option<&OrganizationId>,
    before: &impl serde::Serialize,
    after: &impl serde::Serialize,
) -> Result<(), Error> {
    let json = |value: Result<serde_json::Value, _>| {
        value
            .map(Json)
            .map_err(|error: serde_json::Error| Error::Inconsistent(error.to_string()))
    };
    sqlx::query(
        "insert into audit_log (actor, action, organization_id, before, after, request_id)
         values ($1, $2, $3, $4, $5, nullif($6, ''))",
    )
    .bind(&actor.name)
    .bind(action)
    .bind(organization.map(OrganizationId::as_str))
    .bind(json(serde_json::to_value(before))?)
    .bind(json(serde_json::to_value(after))?)
    .bind(&actor.request_id)
    .execute(&mut **transaction)
    .await?;
    Ok(())
}
