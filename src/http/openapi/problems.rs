//! Problems in the document: each is described by an example, which is exactly what the service sends.

use std::collections::BTreeMap;

use axum::http::{HeaderName, header};
use utoipa::openapi::example::{Example, ExampleBuilder};
use utoipa::openapi::{Content, Ref, RefOr, Response, ResponseBuilder};
use utoipa::{IntoResponses, ToSchema as _};

use super::headers;
use crate::http::problem::{Error, MEDIA_TYPE, Problem};

type Responses = BTreeMap<String, RefOr<Response>>;

macro_rules! problem_sets {
    ($($(#[$doc:meta])* $name:ident: $($problem:expr),+;)+) => {$(
        $(#[$doc])*
        pub(in crate::http) struct $name;

        impl IntoResponses for $name {
            fn responses() -> Responses {
                let mut responses = Responses::new();
                for problem in [$($problem),+] {
                    declare(&mut responses, problem);
                }
                responses
            }
        }
    )+};
}

problem_sets! {
    /// Of a consume and a refund.
    CountingProblems: Error::IdempotencyKeyReused, overflow(), too_many_meters(), Error::CounterStoreUnavailable,
        Error::DatabaseUnavailable, Error::OVERLOADED, Error::OutcomeUnknown;

    /// Of a track, whose event may be too late.
    TrackProblems: Error::IdempotencyKeyReused, overflow(), too_many_meters(), too_late(),
        Error::CounterStoreUnavailable, Error::DatabaseUnavailable, Error::OVERLOADED, Error::OutcomeUnknown;

    /// Of a check.
    CheckingProblems: Error::IdempotencyKeyReused, Error::CounterStoreUnavailable, Error::DatabaseUnavailable,
        Error::OVERLOADED;

    /// Of an adjustment.
    AdjustingProblems: Error::IdempotencyKeyReused, overflow(), too_many_meters(), Error::CounterStoreUnavailable,
        Error::DatabaseUnavailable, Error::OVERLOADED;

    /// Of a reset.
    ResettingProblems: Error::IdempotencyKeyReused, too_many_meters(), Error::CounterStoreUnavailable,
        Error::DatabaseUnavailable, Error::OVERLOADED;

    /// Of a reset of all expired periods.
    ExpiringProblems: Error::IdempotencyKeyReused, Error::CounterStoreUnavailable, Error::DatabaseUnavailable;

    /// Of a call that needs Redis.
    NeedsCounterStore: Error::CounterStoreUnavailable;

    /// Of the deletion of a plan.
    MayBeInUse: Error::Conflict("3 organizations are on this plan".to_owned());

    /// Of a call that concurrent changes may delay too long.
    MayBeOverloaded: Error::OVERLOADED;
}

fn overflow() -> Error {
    Error::CounterOverflow("api".to_owned())
}

fn too_many_meters() -> Error {
    Error::TooManyMeters("tokens".to_owned())
}

fn too_late() -> Error {
    let detail = "the event is older than 48 hours, or more than 5 minutes ahead";
    Error::TimestampOutOfRange(detail.to_owned())
}

/// Adds a problem to the responses of an operation, as one more example where its status has some already.
pub(super) fn declare(responses: &mut Responses, problem: Error) {
    let (status, headers, problem) = problem.parts();
    let response = responses
        .entry(status.as_str().to_owned())
        .or_insert_with(|| {
            let content = Content::new(Some(Ref::from_schema_name(Problem::name())));
            ResponseBuilder::new().content(MEDIA_TYPE, content).into()
        });
    let RefOr::T(response) = response else {
        return;
    };
    for name in headers.keys().filter(|name| **name != header::CONTENT_TYPE) {
        headers::add(response, &title_case(name));
    }
    if let Some(RefOr::T(content)) = response.content.get_mut(MEDIA_TYPE) {
        let example = ExampleBuilder::new()
            .summary(&*problem.title)
            .value(serde_json::to_value(&problem).ok());
        content
            .examples
            .insert(problem.code.to_owned(), example.into());
        let titles: Vec<&str> = content.examples.values().filter_map(summary).collect();
        response.description = format!("{}.", titles.join(", or "));
    }
}

fn summary(example: &RefOr<Example>) -> Option<&str> {
    match example {
        RefOr::T(example) => Some(&example.summary),
        RefOr::Ref(_) => None,
    }
}

/// The component's name of a response that has problems alone: their codes.
pub(super) fn name(response: &RefOr<Response>) -> Option<String> {
    let RefOr::T(response) = response else {
        return None;
    };
    let (media_type, RefOr::T(content)) = response.content.first()? else {
        return None;
    };
    let codes: Vec<&str> = content.examples.keys().map(String::as_str).collect();
    (media_type == MEDIA_TYPE && !codes.is_empty()).then(|| codes.join("-or-"))
}

/// The usual spelling of a header's name.
fn title_case(name: &HeaderName) -> String {
    if *name == header::WWW_AUTHENTICATE {
        return "WWW-Authenticate".to_owned();
    }
    let words = name.as_str().split('-').map(|word| {
        let (first, rest) = word.split_at(1);
        first.to_ascii_uppercase() + rest
    });
    words.collect::<Vec<_>>().join("-")
}
