//! JWTs of the auth server: who a user is, and which organization they read.
//!
//! Only what the auth server has signed, with a key of its JWKS, for this service, and for now. The time is
//! the service's clock's, as everywhere.

use std::sync::Arc;

use jsonwebtoken::{Algorithm, Validation, decode, decode_header};
use serde_json::{Map, Value};

use super::jwks::{Jwks, Key};
use super::{Error, signatures};
use crate::clock::Clock;
use crate::config::JwtConfig;
use crate::domain::ids::OrganizationId;

/// How far the auth server's clock may be off, seconds.
const LEEWAY_SECONDS: i64 = 5;

/// The longest name of a user.
const USER_MAX: usize = 255;

/// Whoever a JWT was made for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// The token's `sub`.
    pub id: Arc<str>,
    /// The only organization that the user reads, if the token names one.
    pub organization: Option<OrganizationId>,
    /// Whether one of the user's platform roles is among those that may change things.
    pub is_admin: bool,
}

/// The handle on tokens; clones share the auth server's keys.
#[derive(Debug, Clone)]
pub(super) struct Tokens {
    jwks: Jwks,
    config: Arc<JwtConfig>,
    clock: Clock,
}

impl Tokens {
    pub(super) fn new(config: JwtConfig, clock: Clock) -> Result<Self, reqwest::Error> {
        signatures::install();
        Ok(Self {
            jwks: Jwks::new(config.jwks_url.clone(), clock.clone())?,
            config: Arc::new(config),
            clock,
        })
    }

    /// Who it was made for, if it is right.
    pub(super) async fn verify(&self, token: &str) -> Result<Option<User>, Error> {
        let Some(name) = signing_key(token) else {
            return Ok(None);
        };
        let key = self.jwks.key(&name).await?;
        Ok(key.and_then(|key| self.user(token, &key)))
    }

    fn user(&self, token: &str, key: &Key) -> Option<User> {
        let mut validation = Validation::new(key.algorithm);
        validation.set_issuer(&[&self.config.issuer]);
        validation.set_audience(&[&self.config.audience]);
        validation.set_required_spec_claims(&["iss", "aud"]);
        // It would ask the system's clock.
        validation.validate_exp = false;
        let claims: Map<String, Value> = decode(token, &key.public, &validation).ok()?.claims;
        // RFC 7519: one issuer, while an audience may be one of several. The library takes a list of issuers as well.
        if !claims.get("iss").is_some_and(Value::is_string) {
            return None;
        }
        let now = self.clock.now().timestamp();
        let (end, begin) = (claims.get("exp"), claims.get("nbf"));
        if seconds(end?)?.saturating_add(LEEWAY_SECONDS) <= now {
            return None;
        }
        if let Some(begin) = begin
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

/// The name of the key that a token claims to be signed with; none where it cannot be one of ours, whatever the key.
fn signing_key(token: &str) -> Option<String> {
    let header = decode_header(token).ok()?;
    let ours = [Algorithm::EdDSA, Algorithm::ES256, Algorithm::RS256].contains(&header.alg);
    // Whoever signs what must be understood (`crit`) says that it is not what it looks like.
    if ours && header.crit.is_none() {
        header.kid
    } else {
        None
    }
}

/// A time in a token: seconds since the epoch, which may have fractions.
#[expect(
    clippy::cast_possible_truncation,
    reason = "a time that is far enough away is as good as any"
)]
fn seconds(time: &Value) -> Option<i64> {
    time.as_i64()
        .or_else(|| time.as_f64().map(|time| time as i64))
}

/// Whether a text holds what may be a token, or the beginning of one, and so must not be repeated: a JSON object
/// in base64, and a dot after it.
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

/// No header of a token is shorter in base64: `{"alg":""}`.
const HEADER_MIN: usize = 14;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_with_a_token_in_it_is_recognized_and_ids_are_not() {
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
