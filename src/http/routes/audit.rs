//! `GET /v1/audit`.

use axum::extract::State as Shared;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use utoipa::{IntoParams, ToSchema};

use crate::domain::ids::OrganizationId;
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
pub(in crate::http) struct Wanted {
    /// Only what is about this organization.
    organization_id: Option<OrganizationId>,
    /// Only what was done by this actor, such as `key:0123456789abcdef`.
    actor: Option<String>,
    /// Only what was done like this, such as `limits.patch`.
    action: Option<String>,
    /// Nothing earlier.
    #[serde(default, deserialize_with = "instant")]
    from: Option<DateTime<Utc>>,
    /// Only what is earlier.
    #[serde(default, deserialize_with = "instant")]
    to: Option<DateTime<Utc>>,
    #[serde(default)]
    #[param(inline)]
    page_size: PageSize,
    /// The `nextCursor` of the page before.
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
    "id": 7, "at": "2026-11-23T10:14:00.125Z", "actor": "key:0123456789abcdef", "action": "limits.patch",
    "organizationId": "org_123", "before": {"settings": {"resetDay": 15}, "limits": {}},
    "after": {"settings": {"resetDay": 15}, "limits": {"api": {"limit": 5000}}},
    "requestId": "019aa0f0-7d1c-7c3a-9c7e-2f6b1f0e8d11"
}))]
pub(in crate::http) struct AuditEntry {
    /// Grows.
    id: u64,
    at: DateTime<Utc>,
    /// Who: `key:` and the id of an API key, `system` for what the service does by itself, or a command.
    actor: String,
    /// What was changed, and how.
    action: String,
    /// Null where it is about none.
    #[schema(required)]
    organization_id: Option<OrganizationId>,
    /// What was there before; null where nothing was.
    #[schema(required)]
    before: Value,
    /// What was there afterwards; null where nothing was.
    #[schema(required)]
    after: Value,
    /// The `x-request-id` of the request; null where there was none.
    #[schema(required)]
    request_id: Option<String>,
}

impl From<Entry> for AuditEntry {
    fn from(entry: Entry) -> Self {
        Self {
            id: entry.id,
            at: entry.at,
            actor: entry.actor,
            action: entry.action,
            organization_id: entry.organization,
            before: entry.before,
            after: entry.after,
            request_id: entry.request_id,
        }
    }
}

/// Who changed what
///
/// Every change of organizations, limits, API keys and defaults, from what to what, newest first. Entries are only ever
/// added; they stay when an organization is deleted.
#[utoipa::path(
    get,
    path = "/v1/audit",
    operation_id = "listAudit",
    tag = "Audit",
    security(("key" = ["admin"])),
    params(Wanted),
    responses((status = 200, description = "A page of entries.", body = AuditLog))
)]
pub(in crate::http) async fn list_audit(
    Shared(state): Shared<State>,
    _: Administrator,
    Query(page): Query<Wanted>,
) -> Result<AuditLog, Error> {
    let filter = Filter {
        organization: page.organization_id,
        actor: page.actor,
        action: page.action,
        from: page.from,
        to: page.to,
    };
    let size = page.page_size;
    let found = audit::list(&state.ctx.postgres, &filter, page.cursor, size.and_one()).await?;
    Ok(List::page(found, size, |entry| entry.id.to_string()))
}
