//! Requests to every operation: bodies, queries, cursors, ids in paths, and headers. No input is a 5xx, every refusal is a
//! problem, and what was accepted can be read.

mod api;
mod inputs;

use axum::http::Method;
use proptest::prelude::*;
use proptest::sample::select;
use serde_json::{Value, json};

use super::fuzz;
use api::{Answer, Api, Case, ORGANIZATIONS};
use inputs::Inputs;

/// Fails unless a response is what a client may get.
fn check(case: &Case, answer: &Answer) -> Result<(), TestCaseError> {
    let Answer { status, .. } = answer;
    let asked_to_wait = case.headers.iter().any(|(name, _)| *name == "prefer");
    if *status == 504 && asked_to_wait {
        return Ok(());
    }
    prop_assert!(*status < 500, "{status}: {}", answer.text);
    let minimal = *status == 429 && answer.text.is_empty();
    if *status >= 400 && !minimal {
        let body: Value = serde_json::from_str(&answer.text)
            .map_err(|error| TestCaseError::fail(format!("{error}: {}", answer.text)))?;
        if case.path.starts_with("/api/auth/") && body["code"].is_null() {
            prop_assert!(body["error"].is_string(), "{body}");
        } else {
            prop_assert_eq!(&answer.media_type, "application/problem+json");
            prop_assert_eq!(&body["status"], status);
            prop_assert!(
                body["code"].is_string() && body["detail"].is_string(),
                "{body}"
            );
        }
    } else if answer.media_type == "application/json" {
        prop_assert!(
            serde_json::from_str::<Value>(&answer.text).is_ok(),
            "{}",
            answer.text
        );
    }
    Ok(())
}

/// Fuzzes the operations that `chosen` selects.
fn fuzz_operations(cases: u32, chosen: impl Fn(&api::Operation) -> bool) {
    let api = Api::new();
    let operations: Vec<_> = api.operations().into_iter().filter(chosen).collect();
    assert!(!operations.is_empty());
    let inputs = Inputs::new(&api);
    let case = select(operations).prop_flat_map(move |operation| inputs.of(operation));
    fuzz(cases, &case, |case| {
        let answer = api.send(&case);
        check(&case, &answer)?;
        if case.method != Method::GET && answer.status < 300 {
            for organization in ORGANIZATIONS {
                for part in ["", "/usage", "/limits", "/history"] {
                    let read = api.get(&format!("/v1/organizations/{organization}{part}"));
                    prop_assert!(matches!(read.status, 200 | 404), "{part}: {}", read.text);
                }
            }
        }
        Ok(())
    });
}

#[test]
fn calls_that_count_take_any_body() {
    fuzz_operations(300, |it| {
        let last = it.path.rsplit('/').next().unwrap_or_default();
        matches!(last, "track" | "consume" | "check" | "refund" | "batch")
    });
}

#[test]
fn changes_take_any_body() {
    fuzz_operations(300, |it| {
        !it.examples.is_empty() || it.method == Method::DELETE
    });
}

#[test]
fn reads_take_any_query_and_cursor() {
    fuzz_operations(400, |it| it.method == Method::GET);
}

#[test]
fn a_call_that_is_repeated_with_its_key_is_counted_once() {
    let api = Api::new();
    let keys = prop_oneof![3 => "[ -~]{1,40}", 1 => "[ -~]{200,255}"];
    let call = (
        select(vec!["track", "consume", "refund"]),
        select(ORGANIZATIONS.to_vec()),
        1..2000_u64,
    );
    fuzz(
        200,
        &(call, keys),
        |((operation, organization, amount), key)| {
            let case = Case {
                method: Method::POST,
                path: format!("/v1/{operation}"),
                headers: vec![
                    ("content-type", b"application/json".to_vec()),
                    ("idempotency-key", key.into_bytes()),
                ],
                body: json!({"organizationId": organization, "amount": amount})
                    .to_string()
                    .into_bytes(),
            };
            let count = || {
                api.get(&format!("/v1/organizations/{organization}/usage"))
                    .text
            };
            let first = api.send(&case);
            check(&case, &first)?;
            let counted = count();
            let again = api.send(&case);
            if matches!(first.status, 200 | 429) {
                prop_assert_eq!(again.status, first.status);
                prop_assert!(again.replayed, "{}", again.text);
            }
            prop_assert_eq!(count(), counted);
            Ok(())
        },
    );
}
