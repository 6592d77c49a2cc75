//! Who changed what; written in the transaction that changes it, and never again.

use chrono::{DateTime, Utc};
use serde_json::Value;
use sqlx::types::Json;
use sqlx::{FromRow, PgConnection, QueryBuilder};

use super::organizations::parse;
use super::{Error, Postgres, signed, unsigned};
use crate::domain::ids::OrganizationId;

/// Who is behind a change.
#[derive(Debug, Clone)]
pub struct Actor {
    /// The key that was used, such as `key:3f9c…`, the command, or `system`.
    pub name: String,
    /// The request that asked for it; empty where none did.
    pub request_id: String,
}

impl Actor {
    /// The service itself, of its own accord.
    pub fn system() -> Self {
        Self {
            name: "system".to_owned(),
            request_id: String::new(),
        }
    }
}

/// One change.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Names the entry; a later one has a greater number.
    pub id: u64,
    /// When it was committed, or a moment before.
    pub at: DateTime<Utc>,
    /// See [`Actor::name`].
    pub actor: String,
    /// What was done.
    pub action: String,
    /// Whose settings, limits or key it was about, if anybody's.
    pub organization: Option<OrganizationId>,
    /// What was there before; null where nothing was.
    pub before: Value,
    /// What was there afterwards; null where nothing was.
    pub after: Value,
    /// See [`Actor::request_id`].
    pub request_id: Option<String>,
}

/// Which entries to list; what is none is not asked for.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// About this organization.
    pub organization: Option<OrganizationId>,
    /// By this actor.
    pub actor: Option<String>,
    /// Of this kind.
    pub action: Option<String>,
    /// Not before this.
    pub from: Option<DateTime<Utc>>,
    /// Before this.
    pub to: Option<DateTime<Utc>>,
}

/// At most `count` entries, newest first; those that follow `after`, if that is given.
pub async fn list(
    postgres: &Postgres,
    filter: &Filter,
    after: Option<u64>,
    count: u32,
) -> Result<Vec<Entry>, Error> {
    let mut query = QueryBuilder::<sqlx::Postgres>::new(
        "select id, at, actor, action, organization_id, before, after, request_id from audit_log where true",
    );
    if let Some(organization) = &filter.organization {
        query
            .push(" and organization_id = ")
            .push_bind(organization.as_str());
    }
    if let Some(actor) = &filter.actor {
        query.push(" and actor = ").push_bind(actor);
    }
    if let Some(action) = &filter.action {
        query.push(" and action = ").push_bind(action);
    }
    if let Some(from) = filter.from {
        query.push(" and at >= ").push_bind(from);
    }
    if let Some(to) = filter.to {
        query.push(" and at < ").push_bind(to);
    }
    if let Some(after) = after {
        query
            .push(" and (at, id) < (select at, id from audit_log where id = ")
            .push_bind(signed(after))
            .push(")");
    }
    query
        .push(" order by at desc, id desc limit ")
        .push_bind(i64::from(count));
    // Planned anew each time: which index is best depends on what is asked for.
    let rows: Vec<Row> = query
        .build_query_as()
        .persistent(false)
        .fetch_all(&postgres.pool)
        .await?;
    rows.into_iter().map(Row::entry).collect()
}

#[derive(FromRow)]
struct Row {
    id: i64,
    at: DateTime<Utc>,
    actor: String,
    action: String,
    organization_id: Option<String>,
    before: Json<Value>,
    after: Json<Value>,
    request_id: Option<String>,
}

impl Row {
    fn entry(self) -> Result<Entry, Error> {
        Ok(Entry {
            id: unsigned(self.id),
            at: self.at,
            actor: self.actor,
            action: self.action,
            organization: self.organization_id.as_deref().map(parse).transpose()?,
            before: self.before.0,
            after: self.after.0,
            request_id: self.request_id,
        })
    }
}

/// Adds one row.
pub(super) async fn record(
    connection: &mut PgConnection,
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
    .execute(connection)
    .await?;
    Ok(())
}
