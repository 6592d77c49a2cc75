//! A key whose record was looked up, and the proof that a caller knows its secret.

use std::hash::{BuildHasher as _, RandomState};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use chrono::{DateTime, TimeDelta, Utc};
use subtle::ConstantTimeEq as _;

use crate::postgres::api_keys::{KeyRecord, PresentedKey};

/// How long a record, or the absence of one, is cached.
const CACHE_LIFETIME: TimeDelta = TimeDelta::seconds(2);

/// The result of a look-up.
#[derive(Debug)]
pub(super) struct CachedKey {
    pub(super) record: Option<Arc<KeyRecord>>,
    /// When the look-up began, so a change during it does not extend the lifetime.
    looked_up_at: DateTime<Utc>,
    use_recorded: AtomicBool,
    /// The fingerprint of the secret, once it has matched the record.
    matched: OnceLock<Fingerprint>,
}

/// A `SipHash` of a secret with this process's random key of 128 bits, compared in constant time. Much cheaper than the
/// SHA-256 of the record, and nobody can find a text with the same one but by trying.
#[derive(Debug, Clone, Copy)]
struct Fingerprint(u64);

impl Fingerprint {
    fn is(self, other: Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl CachedKey {
    pub(super) fn new(record: Option<Arc<KeyRecord>>, looked_up_at: DateTime<Utc>) -> Self {
        Self {
            record,
            looked_up_at,
            use_recorded: AtomicBool::new(false),
            matched: OnceLock::new(),
        }
    }

    pub(super) fn is_fresh(&self, now: DateTime<Utc>) -> bool {
        let age = now - self.looked_up_at;
        // A revocation is final. A clock that was set back must not extend a lifetime.
        (TimeDelta::zero()..CACHE_LIFETIME).contains(&age)
            || self.record.as_ref().is_some_and(|record| record.revoked)
    }

    /// The record, if this is its key, which is neither revoked nor expired.
    pub(super) fn accept(
        &self,
        key: PresentedKey<'_>,
        hasher: &RandomState,
        now: DateTime<Utc>,
    ) -> Option<&Arc<KeyRecord>> {
        let record = self.record.as_ref().filter(|it| it.is_valid_at(now))?;
        let presented = Fingerprint(hasher.hash_one(key.secret));
        let known = self.matched.get().is_some_and(|it| it.is(presented));
        if !known {
            if !record.matches(key) {
                return None;
            }
            let _ = self.matched.set(presented);
        }
        Some(record)
    }

    /// Whether this use is the first in the lifetime of this, and so is recorded.
    pub(super) fn is_first_use(&self) -> bool {
        // Without writing to shared memory on each call.
        !self.use_recorded.load(Ordering::Relaxed)
            && !self.use_recorded.swap(true, Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use sha2::{Digest as _, Sha256};

    use super::*;

    #[test]
    fn a_key_is_accepted_again_and_another_secret_never() {
        let (id, right, wrong) = ("0123456789abcdef", "a".repeat(64), "b".repeat(64));
        let record: KeyRecord = serde_json::from_value(json!({
            "id": id,
            "hash": hex::encode(Sha256::digest(&right)),
            "scopes": ["ingest"],
            "organization": null,
            "expires_at": null,
            "revoked": false,
        }))
        .unwrap();
        let (now, hasher) = (DateTime::UNIX_EPOCH, RandomState::new());
        let cached = CachedKey::new(Some(Arc::new(record)), now);
        let accepts = |secret| {
            let key = PresentedKey { id, secret };
            cached.accept(key, &hasher, now).is_some()
        };
        assert!(!accepts(&wrong));
        for _ in 0..3 {
            assert!(accepts(&right));
            assert!(!accepts(&wrong));
        }
        let other = PresentedKey {
            id: "0123456789abcde0",
            secret: &right,
        };
        let fresh = CachedKey::new(cached.record.clone(), now);
        assert!(fresh.accept(other, &hasher, now).is_none());
    }
}
