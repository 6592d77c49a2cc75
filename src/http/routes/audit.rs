//! `GET /v1/audit`.

use axum::extract::State as Shared;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use utoipa::{IntoParams, ToSchema};

use crate::domain::ids::{ApiKeyName, OrganizationId};
use crate::domain::input::integer;
use crate::http::auth::Administrator;
use crate::http::extract::{Query, instant};
use crate::http::list::{List, PageSize};
use crate::http::problem::Error;
use crate::http::state::State;
use crate::postgres::audit::{self, Entry, Filter};

/// Which entries to list.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(in crate::http) struct AuditQuery {
    /// Only changes of this organization.
    organization_id: Option<OrganizationId>,
    /// Only changes by this actor, such as `key:0123456789abcdef`.
    actor: Option<String>,
    /// Only this action, such as `limits.patch`.
    action: Option<String>,
    /// Only changes at this instant or later.
    #[serde(default, deserialize_with = "instant")]
    from: Option<DateTime<Utc>>,
    /// Only changes before this instant.
    #[serde(default, deserialize_with = "instant")]
    to: Option<DateTime<Utc>>,
    #[serde(default)]
    #[param(inline)]
    page_size: PageSize,
    /// The `nextCursor` of the previous page.
    #[serde(default, deserialize_with = "cursor")]
    cursor: Option<u64>,
}

fn cursor<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    let cursor = integer(deserializer, 0..=i64::MAX, "the nextCursor of a page")?;
    Ok(Some(cursor.unsigned_abs()))
}

type AuditLog = List<AuditEntry>;

/// One change.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(example = json!({
    "id": 7, "at": "2026-11-23T10:14:00.125Z", "actor": "key:0123456789abcdef", "actorName": "back office",
    "action": "limits.patch", "organizationId": "org_123", "before": {"settings": {"resetDay": 15}, "limits": {}},
    "after": {"settings": {"resetDay": 15}, "limits": {"api": {"limit": 5000}}},
    "requestId": "019aa0f0-7d1c-7c3a-9c7e-2f6b1f0e8d11"
}))]
pub(in crate::http) struct AuditEntry {
    /// Increases.
    id: u64,
    at: DateTime<Utc>,
    /// `key:` and the id of an API key, `user:` and the id of a user, `system` for the service itself, or a command.
    actor: String,
    /// The display name of the API key; null for other actors.
    #[schema(required)]
    actor_name: Option<ApiKeyName>,
    /// What was done.
    action: String,
    /// Null if the change concerns no organization.
    #[schema(required)]
    organization_id: Option<OrganizationId>,
    /// The state before; null if there was none.
    #[schema(required)]
    before: Value,
    /// The state afterwards; null if there is none.
    #[schema(required)]
    after: Value,
    /// The `x-request-id` of the request; null if there was none.
    #[schema(required)]
    request_id: Option<String>,
}

impl From<Entry> for AuditEntry {
    fn from(entry: Entry) -> Self {
        Self {
            id: entry.id,
            at: entry.at,
            actor: entry.actor,
            actor_name: entry.actor_name,
            action: entry.action,
            organization_id: entry.organization,
            before: entry.before,
            after: entry.after,
            request_id: entry.request_id,
        }
    }
}

/// List the audit log
///
/// Every change with actor, time, and state before and after, newest first. Entries are never changed or removed, not even
/// when an organization is deleted.
#[utoipa::path(
    get,
    path = "/v1/audit",
    operation_id = "listAudit",
    tag = "Audit",
    security(("key" = ["admin"])),
    params(AuditQuery),
    responses((status = 200, description = "A page of entries.", body = AuditLog))
)]
pub(in crate::http) async fn list_audit(
    Shared(state): Shared<State>,
    _: Administrator,
    Query(query): Query<AuditQuery>,
) -> Result<AuditLog, Error> {
    let filter = Filter {
        organization: query.organization_id,
        actor: query.actor,
        action: query.action,
        from: query.from,
        to: query.to,
    };
    let size = query.page_size;
    let found = audit::list(&state.ctx.postgres, &filter, query.cursor, size.and_one()).await?;
    Ok(List::page(found, size, |entry| entry.id.to_string()))
}
