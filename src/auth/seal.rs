//! Seals the API key records that are mirrored in Redis, with a secret that only Postgres stores, so that write access
//! to Redis is not enough to forge a key.

use ring::hmac;

use crate::postgres::api_keys::MirrorSecret;

/// Seals texts, and verifies seals.
#[derive(Debug)]
pub(super) struct Seal(hmac::Key);

impl Seal {
    pub(super) fn new(secret: &MirrorSecret) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, secret.bytes()))
    }

    /// Seals a text under a name; it opens under no other.
    pub(super) fn close(&self, name: &str, text: &str) -> String {
        let tag = hmac::sign(&self.0, &signed(name, text));
        format!("{} {text}", hex::encode(tag))
    }

    /// The text, if this seal closed it under this name.
    pub(super) fn open<'a>(&self, name: &str, sealed: &'a str) -> Option<&'a str> {
        let (tag, text) = sealed.split_once(' ')?;
        let tag = hex::decode(tag).ok()?;
        hmac::verify(&self.0, &signed(name, text), &tag).ok()?;
        Some(text)
    }
}

/// Name and text, separated by a byte that no name contains.
fn signed(name: &str, text: &str) -> Vec<u8> {
    [name.as_bytes(), b"\0", text.as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn seal(byte: u8) -> Seal {
        Seal::new(&MirrorSecret::from([byte; 32]))
    }

    proptest! {
        #[test]
        fn a_sealed_text_opens_under_its_own_name_only(name in "[a-z0-9]{1,16}", text in "\\PC{0,80}") {
            let sealed = seal(1).close(&name, &text);
            prop_assert_eq!(seal(1).open(&name, &sealed), Some(text.as_str()));
            prop_assert_eq!(seal(1).open("another", &sealed), None);
            prop_assert_eq!(seal(2).open(&name, &sealed), None);
            let longer = format!("{sealed} ");
            prop_assert_eq!(seal(1).open(&name, &longer), None);
            prop_assert_eq!(seal(1).open(&name, &text), None);
        }
    }
}
