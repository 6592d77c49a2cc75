//! API keys: scopes, organization and expiry, without the secret.

use std::collections::BTreeSet;
use std::fmt;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use strum::{Display, EnumString, VariantArray};
use utoipa::ToSchema;

use super::ids::{ApiKeyId, ApiKeyName, OrganizationId};
use super::input::{Instant, nullable};
use super::text::{InvalidWord, invalid_word};

/// A permission of an API key.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Serialize,
    Deserialize,
    ToSchema,
    Display,
    EnumString,
    VariantArray,
)]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase")]
#[strum(parse_err_ty = InvalidWord, parse_err_fn = invalid_word::<Scope>)]
pub enum Scope {
    /// Track, consume, check and batch.
    Ingest,
    /// Refund.
    Refund,
    /// Read usage, history and limits.
    Read,
    /// Reset expired periods only.
    Reset,
    /// Create organizations, and get their settings; includes `ingest` and `read`.
    Provision,
    /// Everything.
    Admin,
}

impl Scope {
    /// Whether a key of one organization can have it.
    fn fits_one_organization(self) -> bool {
        match self {
            Self::Ingest | Self::Refund | Self::Read => true,
            Self::Reset | Self::Provision | Self::Admin => false,
        }
    }

    /// Whether it includes `other`.
    fn includes(self, other: Self) -> bool {
        match self {
            Self::Admin => true,
            Self::Provision => matches!(other, Self::Provision | Self::Ingest | Self::Read),
            Self::Ingest | Self::Refund | Self::Read | Self::Reset => self == other,
        }
    }
}

/// The scopes of a key; at least one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(try_from = "Vec<Scope>")]
#[schema(value_type = Vec<Scope>, min_items = 1, example = json!(["ingest"]))]
pub struct Scopes(BTreeSet<Scope>);

/// A key without scopes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must name at least one scope of ingest, refund, read, reset, provision and admin")]
pub struct NoScopes;

impl Scopes {
    /// Whether one of them includes `scope`.
    pub fn permit(&self, scope: Scope) -> bool {
        self.0.iter().any(|held| held.includes(scope))
    }

    /// Each scope once, in the order of the enum.
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
        let words: Vec<String> = self.iter().map(|scope| scope.to_string()).collect();
        f.pad(&words.join(","))
    }
}

/// The request to create a key.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schema(example = json!({
    "name": "auth server", "scopes": ["ingest", "read"], "organizationId": "org_123", "expiresAt": "2040-01-01T00:00:00Z"
}))]
pub struct NewApiKey {
    /// Its display name.
    pub name: ApiKeyName,
    /// Its scopes.
    pub scopes: Scopes,
    /// The only organization that it can access; null is all.
    pub organization_id: Option<OrganizationId>,
    /// When it expires; null is never.
    #[serde(default, deserialize_with = "nullable::<Instant, _, _>")]
    pub expires_at: Option<DateTime<Utc>>,
}

/// An invalid request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub struct InvalidApiKey {
    /// The invalid field, as in JSON.
    pub field: &'static str,
    /// What is wrong with it.
    pub detail: String,
}

impl NewApiKey {
    /// Rejects a key with scopes beyond its organization, or with an expiry in the past.
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

/// A key as responses show it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(example = json!({
    "id": "0123456789abcdef", "name": "auth server", "scopes": ["ingest", "read"], "organizationId": null,
    "createdAt": "2026-11-01T09:30:00Z", "expiresAt": null, "lastUsedAt": "2026-11-23T10:14:00Z", "revokedAt": null
}))]
pub struct ApiKey {
    /// Its id, the part of the key that is not secret.
    pub id: ApiKeyId,
    /// Its display name.
    pub name: ApiKeyName,
    /// Its scopes.
    pub scopes: Scopes,
    /// The only organization that it can access; null is all.
    #[schema(required)]
    pub organization_id: Option<OrganizationId>,
    /// When it was created.
    pub created_at: DateTime<Utc>,
    /// When it expires; null is never.
    #[schema(required)]
    pub expires_at: Option<DateTime<Utc>>,
    /// The minute in which it was last used, with a delay of a minute or two.
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
    fn a_scope_permits_itself_provision_permits_counting_and_reading_and_admin_permits_all() {
        for held in Scope::VARIANTS {
            for scope in Scope::VARIANTS {
                let permitted = Scopes::from(*held).permit(*scope);
                let expected = match held {
                    Scope::Admin => true,
                    Scope::Provision => {
                        ["ingest", "read", "provision"].contains(&scope.to_string().as_str())
                    }
                    _ => held == scope,
                };
                assert_eq!(permitted, expected, "{held} {scope}");
            }
        }
    }

    #[test]
    fn scopes_have_one_spelling() {
        for scope in Scope::VARIANTS {
            assert_eq!(scope.to_string().parse(), Ok(*scope));
            assert_eq!(serde_json::to_value(scope).unwrap(), scope.to_string());
        }
        let error = "write".parse::<Scope>().unwrap_err();
        assert_eq!(
            error.to_string(),
            "must be ingest, refund, read, reset, provision or admin"
        );
    }
}
