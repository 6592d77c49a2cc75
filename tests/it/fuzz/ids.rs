//! Ids, names and idempotency keys: what is accepted is exactly what the OpenAPI document says.

use std::fmt::Display;
use std::str::FromStr;

use jsonschema::Validator;
use proptest::prelude::*;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tallyman::domain::ids::{
    ApiKeyId, ApiKeyName, EventId, IdempotencyKey, MeterId, MeterLabel, MeterUnit, OrganizationId,
    PlanId, PlanName, Reason, WebhookId,
};
use tallyman::postgres::api_keys::{PresentedKey, may_hold_key};

use super::fuzz;

/// Texts of every kind, many of them near the rules.
pub(super) fn texts() -> impl Strategy<Value = String> + Clone {
    prop_oneof![
        4 => "[a-zA-Z0-9_.@-]{0,70}",
        2 => "[a-z][a-z0-9_.-]{60,66}",
        2 => "[A-Za-z0-9][A-Za-z0-9_.@-]{125,130}",
        2 => "(evt_|wh_|)[0-9a-f]{15,33}",
        2 => "[ -~]{0,8}[ -~\u{7f}-\u{a1}]{0,2}",
        1 => "[ -~]{250,257}",
        1 => "[ü ]{28,32}",
        1 => "[ü ]{98,102}",
        1 => "[ü\n]{497,502}",
        1 => "[\u{2028}\u{feff}\u{3000} a]{0,4}",
        2 => "\\PC{0,40}",
        2 => any::<String>(),
    ]
}

/// Compares a type with its schema.
struct Rule {
    name: &'static str,
    schema: Validator,
    accepts: fn(&str) -> Option<String>,
}

impl Rule {
    fn new<T>(document: &Value, name: &'static str) -> Self
    where
        T: FromStr + Display + DeserializeOwned,
    {
        let schema = &document["components"]["schemas"][name];
        let rule = json!({"type": "string", "pattern": schema["pattern"]});
        assert!(rule["pattern"].is_string(), "{name}");
        Self {
            name,
            schema: jsonschema::validator_for(&rule).unwrap(),
            accepts: |text| {
                let parsed = text.parse::<T>().ok().map(|it| it.to_string());
                let read = serde_json::from_value::<T>(json!(text)).ok();
                assert_eq!(parsed, read.map(|it| it.to_string()));
                parsed
            },
        }
    }
}

#[test]
fn texts_are_accepted_as_the_schema_says() {
    let document = serde_json::to_value(tallyman::http::openapi()).unwrap();
    let rules = [
        Rule::new::<OrganizationId>(&document, "OrganizationId"),
        Rule::new::<MeterId>(&document, "MeterId"),
        Rule::new::<PlanId>(&document, "PlanId"),
        Rule::new::<IdempotencyKey>(&document, "IdempotencyKey"),
        Rule::new::<ApiKeyId>(&document, "ApiKeyId"),
        Rule::new::<ApiKeyName>(&document, "ApiKeyName"),
        Rule::new::<EventId>(&document, "EventId"),
        Rule::new::<WebhookId>(&document, "WebhookId"),
        Rule::new::<PlanName>(&document, "PlanName"),
        Rule::new::<MeterLabel>(&document, "MeterLabel"),
        Rule::new::<MeterUnit>(&document, "MeterUnit"),
        Rule::new::<Reason>(&document, "Reason"),
    ];
    fuzz(1000, &texts(), |text| {
        for rule in &rules {
            let accepted = (rule.accepts)(&text);
            let valid = rule.schema.is_valid(&json!(text));
            prop_assert_eq!(accepted.is_some(), valid, "{} of {:?}", rule.name, text);
            prop_assert!(accepted.is_none_or(|it| it == text));
        }
        Ok(())
    });
}

#[test]
fn whatever_contains_a_key_is_known_to_hold_one() {
    let keys = prop_oneof![
        3 => "tm_[0-9a-f]{16}_[0-9a-fA-F]{64}",
        1 => "tm_[0-9a-g]{15,17}_[0-9a-g]{63,65}",
        1 => texts(),
    ];
    fuzz(1000, &(texts(), keys, texts()), |(before, key, after)| {
        let whole = format!("{before}{key}{after}");
        let holds = may_hold_key(whole.as_bytes());
        prop_assert!(holds || PresentedKey::parse(&key).is_none(), "{whole:?}");
        Ok(())
    });
}
