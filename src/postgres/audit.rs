//! The audit log: who changed what. Each entry is written in the transaction of the change, and never modified.

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::Value;
use sqlx::types::Json;
use sqlx::{FromRow, PgConnection};

use super::pool::{Postgres, Result};
use super::types::BigInt;
use crate::domain::ids::{ApiKeyName, OrganizationId};

/// Who makes a change.
#[derive(Debug, Clone)]
pub struct Actor {
    /// The API key, such as `key:3f9c…`, the command, or `system`.
    pub name: String,
    /// The id of the HTTP request; empty without one.
    pub request_id: String,
}

impl Actor {
    /// The service itself.
    pub fn system() -> Self {
        Self {
            name: "system".to_owned(),
            request_id: String::new(),
        }
    }
}

/// One change.
#[derive(Debug, Clone, FromRow)]
pub struct Entry {
    /// The entry's id; grows with every entry.
    #[sqlx(try_from = "i64")]
    pub id: u64,
    /// When the change was made, shortly before its commit.
    pub at: DateTime<Utc>,
    /// See [`Actor::name`].
    pub actor: String,
    /// The display name of the actor, if it is an API key.
    pub actor_name: Option<ApiKeyName>,
    /// The kind of change.
    pub action: String,
    /// The organization that was changed, if it was one.
    #[sqlx(rename = "organization_id")]
    pub organization: Option<OrganizationId>,
    /// The state before the change, or null.
    #[sqlx(json)]
    pub before: Value,
    /// The state after the change, or null.
    #[sqlx(json)]
    pub after: Value,
    /// See [`Actor::request_id`].
    pub request_id: Option<String>,
}

/// Which entries to list; none means any.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// About this organization.
    pub organization: Option<OrganizationId>,
    /// By this actor.
    pub actor: Option<String>,
    /// Of this kind.
    pub action: Option<String>,
    /// At this instant or later.
    pub from: Option<DateTime<Utc>>,
    /// Before this instant.
    pub to: Option<DateTime<Utc>>,
}

/// Lists at most `count` entries, newest first, starting after the entry `after`.
pub async fn list(
    db: &Postgres,
    filter: &Filter,
    after: Option<u64>,
    count: u32,
) -> Result<Vec<Entry>> {
    Ok(sqlx::query_as(
        "select id, at, actor, action, organization_id, before, after, request_id,
                (select name from api_keys where actor like 'key:%' and api_keys.id = substr(actor, 5)) as actor_name
         from audit_log
         where ($1::text is null or organization_id = $1)
           and ($2::text is null or actor = $2)
           and ($3::text is null or action = $3)
           and ($4::timestamptz is null or at >= $4)
           and ($5::timestamptz is null or at < $5)
           and ($6::bigint is null or (at, id) < (select at, id from audit_log where id = $6))
         order by at desc, id desc
         limit $7",
    )
    .bind(&filter.organization)
    .bind(&filter.actor)
    .bind(&filter.action)
    .bind(filter.from)
    .bind(filter.to)
    .bind(after.map(BigInt))
    .bind(i64::from(count))
    // Planned for each call, because the best index depends on the filter.
    .persistent(false)
    .fetch_all(db.pool().await?)
    .await?)
}

/// Adds an entry.
pub(super) async fn record(
    tx: &mut PgConnection,
    actor: &Actor,
    action: &str,
    organization: Option<&OrganizationId>,
    before: &impl Serialize,
    after: &impl Serialize,
) -> Result<()> {
    sqlx::query(
        "insert into audit_log (actor, action, organization_id, before, after, request_id)
         values ($1, $2, $3, $4, $5, nullif($6, ''))",
    )
    .bind(&actor.name)
    .bind(action)
    .bind(organization)
    .bind(Json(before))
    .bind(Json(after))
    .bind(&actor.request_id)
    .execute(tx)
    .await?;
    Ok(())
}
