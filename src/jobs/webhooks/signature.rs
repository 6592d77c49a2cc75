//! Signatures as in the Standard Webhooks specification: an HMAC-SHA256 over id, time and payload.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::hmac;

use crate::domain::ids::EventId;
use crate::domain::webhook::Secret;

/// A secret in the format that its owner configures.
pub(super) fn reveal(secret: &Secret) -> String {
    format!("whsec_{}", STANDARD.encode(secret.0))
}

/// The value of `webhook-signature`: one signature for each secret; receivers accept any that they can verify.
pub(super) fn sign(secrets: &[Secret], id: &EventId, at: i64, payload: &str) -> String {
    let signed = format!("{id}.{at}.{payload}");
    let signatures: Vec<String> = secrets
        .iter()
        .map(|secret| {
            let key = hmac::Key::new(hmac::HMAC_SHA256, &secret.0);
            let signature = hmac::sign(&key, signed.as_bytes());
            format!("v1,{}", STANDARD.encode(signature))
        })
        .collect();
    signatures.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Computed with Python's `hmac`; an integration test uses the libraries of the specification.
    #[test]
    fn signatures_equal_those_of_other_implementations() {
        let id = "evt_01a207e5f2407000a3f0c2d9e8b7a695".parse().unwrap();
        let secrets = [Secret([7; 32]), Secret([8; 32])];
        let payload = r#"{"type":"webhook.test"}"#;
        assert_eq!(
            sign(&secrets, &id, 1_795_428_840, payload),
            "v1,2LhaZ9ZZH4r9h4vjWPdz0fKFTXYiuviSwb9oAuyVcTE= v1,yD/AhoaiFbKld8jlD7nXfSa5vYRWGvnc4SAdX09g9yk="
        );
        assert_eq!(
            reveal(&secrets[0]),
            "whsec_BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc="
        );
    }
}
