//! Secrets of API keys: how a presented key is compared with the hash in its record.

use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, Utc};
use hex::FromHex as _;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::domain::api_key::Scopes;
use crate::domain::ids::{ApiKeyId, OrganizationId};

pub(super) const ID_LENGTH: usize = 16;
const SECRET_LENGTH: usize = 64;

/// The SHA-256 of a secret. `Debug` hides it.
#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct SecretHash(pub(super) [u8; 32]);

impl SecretHash {
    pub(super) fn of(secret: &str) -> Self {
        Self(Sha256::digest(secret.as_bytes()).into())
    }
}

impl From<SecretHash> for String {
    fn from(hash: SecretHash) -> Self {
        hex::encode(hash.0)
    }
}

impl TryFrom<String> for SecretHash {
    type Error = hex::FromHexError;

    fn try_from(text: String) -> Result<Self, hex::FromHexError> {
        <[u8; 32]>::from_hex(text).map(Self)
    }
}

impl fmt::Debug for SecretHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

/// A key that a client presents, with the hash of its secret in place of the secret.
#[derive(Debug, Clone)]
pub struct PresentedKey {
    /// The key's id, which is not secret.
    pub id: ApiKeyId,
    hash: SecretHash,
}

/// Whether a text may contain a key, or the beginning of one, and so must not be logged.
pub fn may_hold_key(text: &[u8]) -> bool {
    text.windows(ID_LENGTH + 4).any(|part| match part {
        [b't', b'm', b'_', id @ .., b'_'] => id.iter().all(u8::is_ascii_hexdigit),
        _ => false,
    })
}

/// A text that is not a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not an API key of the form tm_<id>_<secret>")]
pub struct InvalidKey;

impl FromStr for PresentedKey {
    type Err = InvalidKey;

    fn from_str(text: &str) -> Result<Self, InvalidKey> {
        let (id, secret) = text
            .strip_prefix("tm_")
            .and_then(|rest| rest.split_once('_'))
            .ok_or(InvalidKey)?;
        if secret.len() != SECRET_LENGTH || !secret.bytes().all(|c| c.is_ascii_hexdigit()) {
            return Err(InvalidKey);
        }
        Ok(Self {
            id: id.parse().map_err(|_| InvalidKey)?,
            hash: SecretHash::of(secret),
        })
    }
}

/// Everything that decides whether a key is accepted; mirrored in Redis.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct KeyRecord {
    /// The key's id.
    pub id: ApiKeyId,
    pub(super) hash: SecretHash,
    /// The permissions of the key.
    pub scopes: Scopes,
    /// The only organization that the key gives access to; none = all.
    pub organization: Option<OrganizationId>,
    pub(super) expires_at: Option<DateTime<Utc>>,
    /// Whether it was revoked, which is final.
    pub revoked: bool,
    /// Whether the record was read from Postgres. Never mirrored, so that the mirror cannot claim it.
    #[serde(skip)]
    pub proven: bool,
}

impl KeyRecord {
    /// Whether this is the record of `key`, compared in constant time.
    pub fn matches(&self, key: &PresentedKey) -> bool {
        self.hash.0.ct_eq(&key.hash.0).into()
    }

    /// Whether another record has the same id and secret.
    pub fn is_same_key(&self, other: &Self) -> bool {
        self.id == other.id && self.hash.0.ct_eq(&other.hash.0).into()
    }

    /// Whether the key is neither revoked nor expired.
    pub fn is_valid_at(&self, now: DateTime<Utc>) -> bool {
        !self.revoked && self.expires_at.is_none_or(|at| now < at)
    }
}

/// The secret that seals the records in Redis. `Debug` hides it.
pub struct MirrorSecret([u8; 32]);

impl MirrorSecret {
    /// The bytes of the secret.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl From<[u8; 32]> for MirrorSecret {
    fn from(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

impl fmt::Debug for MirrorSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}
