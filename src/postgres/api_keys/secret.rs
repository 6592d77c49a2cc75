//! Secrets of API keys: how a presented key is compared with the hash in its record.

use std::fmt;

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

/// A key that a client presents. `Debug` hides its secret.
#[derive(Clone, Copy)]
pub struct PresentedKey<'a> {
    /// The key's id, which is not secret.
    pub id: &'a str,
    /// The text that only the holder of the key knows.
    pub secret: &'a str,
}

impl fmt::Debug for PresentedKey<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "tm_{}_…", self.id)
    }
}

impl<'a> PresentedKey<'a> {
    /// Parses `tm_<id>_<secret>`; none if it has another form.
    pub fn parse(text: &'a str) -> Option<Self> {
        let (id, secret) = text.strip_prefix("tm_")?.split_once('_')?;
        let has_form = ApiKeyId::is_valid(id) && secret.len() == SECRET_LENGTH;
        has_form.then_some(Self { id, secret })
    }
}

/// Whether a text may contain a key, or the beginning of one, and so must not be logged.
pub fn may_hold_key(text: &[u8]) -> bool {
    text.windows(ID_LENGTH + 4).any(|part| match part {
        [b't', b'm', b'_', id @ .., b'_'] => id.iter().all(u8::is_ascii_hexdigit),
        _ => false,
    })
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
    pub fn matches(&self, key: PresentedKey<'_>) -> bool {
        let is_same_id = self.id.as_str() == key.id;
        is_same_id && bool::from(self.hash.0.ct_eq(&SecretHash::of(key.secret).0))
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
