//! JWTs of the auth server: the user, and the organization that the user may read.
//!
//! Accepts a token only if the auth server signed it with a key of its JWKS, for this service, and if it is valid at
//! the time of the service's clock.

use std::sync::Arc;

use chrono::{DateTime, Datelike as _, Utc};
use jsonwebtoken::{Algorithm, Validation, decode, decode_header};
use serde_json::{Map, Value};

use super::error::Error;
use super::jwks::{Jwks, Key};
use super::signatures;
use crate::clock::Clock;
use crate::config::JwtConfig;
use crate::domain::ids::OrganizationId;

/// How far the auth server's clock may differ, in seconds.
const LEEWAY_SECONDS: i64 = 5;

/// The longest user id.
const USER_MAX: usize = 255;

/// The user that a JWT was issued for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// The token's `sub`.
    pub id: Arc<str>,
    /// The only organization that the user may read, if the token names one.
    pub organization: Option<OrganizationId>,
    /// Whether one of the user's platform roles is an admin role.
    pub is_admin: bool,
    /// When the token expires; none beyond the year 9999.
    pub expires_at: Option<DateTime<Utc>>,
}

/// Verifies tokens; clones share the auth server's keys.
#[derive(Debug, Clone)]
pub(super) struct Tokens {
    jwks: Arc<Jwks>,
    config: Arc<JwtConfig>,
    clock: Clock,
}

impl Tokens {
    pub(super) fn new(config: JwtConfig, clock: Clock) -> Result<Self, reqwest::Error> {
        signatures::install();
        Ok(Self {
            jwks: Arc::new(Jwks::new(config.jwks_url.clone(), clock.clone())?),
            config: Arc::new(config),
            clock,
        })
    }

    /// The user, if the token is valid.
    pub(super) async fn verify(&self, token: &str) -> Result<Option<User>, Error> {
        let Some(key_id) = signing_key(token) else {
            return Ok(None);
        };
        let key = self.jwks.key(&key_id).await?;
        Ok(key.and_then(|key| self.user(token, &key)))
    }

    fn user(&self, token: &str, key: &Key) -> Option<User> {
        let mut validation = Validation::new(key.algorithm);
        validation.set_issuer(&[&self.config.issuer]);
        validation.set_audience(&[&self.config.audience]);
        validation.set_required_spec_claims(&["iss", "aud"]);
        // The library would read the system clock.
        validation.validate_exp = false;
        let claims: Map<String, Value> = decode(token, &key.public, &validation).ok()?.claims;
        // RFC 7519: `iss` is a single string, but the library accepts a list as well.
        if !claims.get("iss").is_some_and(Value::is_string) {
            return None;
        }
        let now = self.clock.now().timestamp();
        let expiry = seconds(claims.get("exp")?)?;
        if expiry.saturating_add(LEEWAY_SECONDS) <= now {
            return None;
        }
        if let Some(begin) = claims.get("nbf")
            && seconds(begin)? > now + LEEWAY_SECONDS
        {
            return None;
        }
        let id = claims.get("sub")?.as_str()?;
        if id.is_empty() || id.len() > USER_MAX || id.contains(char::is_control) {
            return None;
        }
        let organization = claims.get(&self.config.organization_claim);
        Some(User {
            id: id.into(),
            organization: organization.and_then(|it| it.as_str()?.parse().ok()),
            is_admin: claims
                .get(&self.config.role_claim)
                .is_some_and(|roles| self.is_admin(roles)),
            expires_at: DateTime::from_timestamp(expiry, 0).filter(|at| at.year() < 10_000),
        })
    }

    fn is_admin(&self, roles: &Value) -> bool {
        let is_one = |role: &str| self.config.admin_roles.iter().any(|it| it == role.trim());
        match roles {
            Value::String(roles) => roles.split(',').any(is_one),
            Value::Array(roles) => roles.iter().filter_map(Value::as_str).any(is_one),
            _ => false,
        }
    }
}

/// The id of the key that a token claims to be signed with; none if no key could make the token valid.
fn signing_key(token: &str) -> Option<String> {
    let header = decode_header(token).ok()?;
    let supported = [Algorithm::EdDSA, Algorithm::ES256, Algorithm::RS256].contains(&header.alg);
    // A token with critical extensions (`crit`) must be refused by a service that does not implement them.
    let accepted = supported && header.crit.is_none();
    header.kid.filter(|_| accepted)
}

/// A time in a token: seconds since the Unix epoch, possibly with a fraction.
#[expect(
    clippy::cast_possible_truncation,
    reason = "a time beyond the range of i64 saturates"
)]
fn seconds(time: &Value) -> Option<i64> {
    time.as_i64()
        .or_else(|| time.as_f64().map(|time| time as i64))
}

/// Whether a text may contain a token, or the beginning of one, and so must not be logged or echoed: a JSON object in
/// base64, followed by a dot.
pub fn may_hold_token(text: &[u8]) -> bool {
    let is_base64 = |c: &u8| c.is_ascii_alphanumeric() || b"-_".contains(c);
    text.windows(2).enumerate().any(|(at, begins)| {
        begins == b"ey" && {
            let rest = &text[at..];
            let end = rest.iter().position(|c| !is_base64(c));
            end.is_some_and(|end| end >= HEADER_MIN && rest[end] == b'.')
        }
    })
}

/// The length in base64 of the shortest possible header, `{"alg":""}`.
const HEADER_MIN: usize = 14;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_that_contains_a_token_is_recognized_and_ids_are_not() {
        let header = "eyJhbGciOiJFZERTQSIsImtpZCI6IjEifQ";
        for token in ["x.y", ".", ".eyJzdWIiOiIxIn0.c2ln"].map(|rest| {
            let dot = if rest.starts_with('.') { "" } else { "." };
            format!("a-{header}{dot}{rest}")
        }) {
            assert!(may_hold_token(token.as_bytes()), "{token}");
        }
        for id in [
            "",
            "req-1.2",
            "019aa0f0-7d1c-7c3a-9c7e-2f6b1f0e8d11",
            "journey.7",
            "key-5f0c.1",
            header,
        ] {
            assert!(!may_hold_token(id.as_bytes()), "{id}");
        }
    }
}
