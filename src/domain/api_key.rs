//! API keys: what one may do, where and until when. Its secret is not known here.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::ids::{ApiKeyId, ApiKeyName, OrganizationId};
use super::input::{Instant, nullable};

/// A kind of call that a key may make.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// Track, consume, check and batch.
    Ingest,
    /// Refund.
    Refund,
    /// Read usage, history and limits.
    Read,
    /// Reset what is due, and nothing else.
    Reset,
    /// Everything.
    Admin,
}

impl Scope {
    /// All scopes.
    pub const ALL: [Self; 5] = [
        Self::Ingest,
        Self::Refund,
        Self::Read,
        Self::Reset,
        Self::Admin,
    ];

    /// The name in JSON, SQL and on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ingest => "ingest",
            Self::Refund => "refund",
            Self::Read => "read",
            Self::Reset => "reset",
            Self::Admin => "admin",
        }
    }

    /// Whether this means something for one organization alone.
    fn fits_one_organization(self) -> bool {
        match self {
            Self::Ingest | Self::Refund | Self::Read => true,
            Self::Reset | Self::Admin => false,
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// What is not a scope.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be ingest, refund, read, reset or admin")]
pub struct InvalidScope;

impl FromStr for Scope {
    type Err = InvalidScope;

    fn from_str(text: &str) -> Result<Self, InvalidScope> {
        Self::ALL
            .into_iter()
            .find(|scope| scope.as_str() == text)
            .ok_or(InvalidScope)
    }
}

/// Everything that a key may do; never nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(try_from = "Vec<Scope>")]
#[schema(value_type = Vec<Scope>, min_items = 1, example = json!(["ingest"]))]
pub struct Scopes(BTreeSet<Scope>);

/// A key that could do nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must name at least one scope of ingest, refund, read, reset and admin")]
pub struct NoScopes;

impl Scopes {
    /// Whether they include `wanted`, as `admin` does whatever is wanted.
    pub fn permit(&self, wanted: Scope) -> bool {
        self.0.contains(&wanted) || self.0.contains(&Scope::Admin)
    }

    /// Each scope once, in the order of [`Scope::ALL`].
    pub fn iter(&self) -> impl Iterator<Item = Scope> {
        self.0.iter().copied()
    }
}

impl TryFrom<Vec<Scope>> for Scopes {
    type Error = NoScopes;

    fn try_from(scopes: Vec<Scope>) -> Result<Self, NoScopes> {
        if scopes.is_empty() {
            return Err(NoScopes);
        }
        Ok(Self(scopes.into_iter().collect()))
    }
}

impl From<Scope> for Scopes {
    fn from(scope: Scope) -> Self {
        Self(BTreeSet::from([scope]))
    }
}

impl fmt::Display for Scopes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words: Vec<&str> = self.iter().map(Scope::as_str).collect();
        f.pad(&words.join(","))
    }
}

/// A key as somebody wishes it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schema(example = json!({
    "name": "auth server", "scopes": ["ingest", "read"], "organizationId": "org_123", "expiresAt": "2040-01-01T00:00:00Z"
}))]
pub struct NewApiKey {
    /// What people know it by.
    pub name: ApiKeyName,
    /// What it may do.
    pub scopes: Scopes,
    /// The only organization that it reaches; null is all.
    pub organization_id: Option<OrganizationId>,
    /// From when on it is refused; null is never.
    #[serde(default, deserialize_with = "nullable::<Instant, _, _>")]
    pub expires_at: Option<DateTime<Utc>>,
}

/// A wish whose parts do not fit together.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub struct InvalidApiKey {
    /// The field at fault, as in JSON.
    pub field: &'static str,
    /// What is wrong with it.
    pub detail: String,
}

impl NewApiKey {
    /// Refuses a key that would reach beyond its organization, or be refused from the start.
    pub fn check(&self, now: DateTime<Utc>) -> Result<(), InvalidApiKey> {
        let beyond = self
            .scopes
            .iter()
            .find(|scope| !scope.fits_one_organization());
        if let (Some(scope), Some(_)) = (beyond, &self.organization_id) {
            return Err(InvalidApiKey {
                field: "scopes",
                detail: format!(
                    "{scope} reaches beyond one organization; a key with an organizationId has ingest, refund and read at most"
                ),
            });
        }
        if let Some(at) = self.expires_at.filter(|at| *at <= now) {
            return Err(InvalidApiKey {
                field: "expiresAt",
                detail: format!("must lie in the future; got {}", at.to_rfc3339()),
            });
        }
        Ok(())
    }
}

/// A key as it is shown, as often as somebody asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(example = json!({
    "id": "0123456789abcdef", "name": "auth server", "scopes": ["ingest", "read"], "organizationId": null,
    "createdAt": "2026-11-01T09:30:00Z", "expiresAt": null, "lastUsedAt": "2026-11-23T10:14:00Z", "revokedAt": null
}))]
pub struct ApiKey {
    /// Names the key; the part of it that is no secret.
    pub id: ApiKeyId,
    /// What people know it by.
    pub name: ApiKeyName,
    /// What it may do.
    pub scopes: Scopes,
    /// The only organization that it reaches; null is all.
    #[schema(required)]
    pub organization_id: Option<OrganizationId>,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// From when on it is refused; null is never.
    #[schema(required)]
    pub expires_at: Option<DateTime<Utc>>,
    /// The minute in which it was last accepted, told a minute or two later.
    #[schema(required)]
    pub last_used_at: Option<DateTime<Utc>>,
    /// When it was revoked, which is final.
    #[schema(required)]
    pub revoked_at: Option<DateTime<Utc>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_admin_permits_what_it_does_not_name() {
        for held in Scope::ALL {
            for wanted in Scope::ALL {
                let permitted = Scopes::from(held).permit(wanted);
                assert_eq!(
                    permitted,
                    held == wanted || held == Scope::Admin,
                    "{held} {wanted}"
                );
            }
        }
    }

    #[test]
    fn scopes_parse_back() {
        for scope in Scope::ALL {
            assert_eq!(scope.to_string().parse(), Ok(scope));
            assert_eq!(
                serde_json::to_string(&scope).unwrap(),
                format!("\"{scope}\"")
            );
        }
    }
}
