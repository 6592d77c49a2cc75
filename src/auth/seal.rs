//! The seal on what Redis mirrors of API keys: made with a secret that only Postgres has, so that whoever can write to
//! Redis makes no key.

use ring::hmac;

use crate::postgres::api_keys::MirrorSecret;

/// Seals texts, and opens what it has sealed.
#[derive(Debug)]
pub(super) struct Seal(hmac::Key);

impl Seal {
    pub(super) fn new(secret: &MirrorSecret) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, secret.bytes()))
    }

    /// A text under a name; under another it does not open.
    pub(super) fn close(&self, name: &str, text: &str) -> String {
        let tag = hmac::sign(&self.0, &signed(name, text));
        format!("{} {text}", hex::encode(tag))
    }

    /// The text, if this seal has closed it under this name.
    pub(super) fn open<'a>(&self, name: &str, sealed: &'a str) -> Option<&'a str> {
        let (tag, text) = sealed.split_once(' ')?;
        let tag = hex::decode(tag).ok()?;
        hmac::verify(&self.0, &signed(name, text), &tag).ok()?;
        Some(text)
    }
}

/// What is sealed: name and text, told apart by a byte that no name has.
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
        fn what_is_sealed_opens_under_its_own_name_alone(name in "[a-z0-9]{1,16}", text in "\\PC{0,80}") {
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
