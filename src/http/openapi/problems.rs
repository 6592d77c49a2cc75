//! How problems are described: each by an example of itself, which is what the service would send.
//! Statuses, codes and words are those of [`Error`].

use std::collections::BTreeMap;

use axum::http::{HeaderName, header};
use utoipa::openapi::example::ExampleBuilder;
use utoipa::openapi::{Content, Ref, RefOr, Response, ResponseBuilder};
use utoipa::{IntoResponses, ToSchema as _};

use super::header_ref;
use crate::http::problem::{Error, MEDIA_TYPE, Problem};

type Responses = BTreeMap<String, RefOr<Response>>;

macro_rules! problems {
    ($(#[$doc:meta])* $name:ident, [$($problem:expr),+ $(,)?]) => {
        $(#[$doc])*
        pub(crate) struct $name;

        impl IntoResponses for $name {
            fn responses() -> Responses {
                let mut responses = Responses::new();
                for problem in [$($problem),+] {
                    declare(&mut responses, problem);
                }
                responses
            }
        }
    };
}

problems!(
    /// What can go wrong while something is counted.
    CountingProblems,
    [
        Error::IdempotencyKeyReused,
        Error::CounterOverflow("api".to_owned()),
        Error::TooManyMeters("tokens".to_owned()),
        Error::CounterStoreUnavailable,
        Error::DatabaseUnavailable,
        Error::Overloaded,
        Error::OutcomeUnknown,
    ]
);

problems!(
    /// What can go wrong while somebody asks whether something would be counted.
    CheckingProblems,
    [
        Error::IdempotencyKeyReused,
        Error::CounterStoreUnavailable,
        Error::DatabaseUnavailable,
        Error::Overloaded,
    ]
);

problems!(
    /// The same as while something is counted, and an event that comes too late.
    TrackProblems,
    [
        Error::IdempotencyKeyReused,
        Error::CounterOverflow("api".to_owned()),
        Error::TooManyMeters("tokens".to_owned()),
        Error::TimestampOutOfRange("the event is older than 48 hours, or more than 5 minutes ahead".to_owned()),
        Error::CounterStoreUnavailable,
        Error::DatabaseUnavailable,
        Error::Overloaded,
        Error::OutcomeUnknown,
    ]
);

problems!(
    /// What can go wrong while an administrator corrects counts.
    AdjustingProblems,
    [
        Error::IdempotencyKeyReused,
        Error::CounterOverflow("api".to_owned()),
        Error::TooManyMeters("tokens".to_owned()),
        Error::CounterStoreUnavailable,
        Error::DatabaseUnavailable,
        Error::Overloaded,
    ]
);

problems!(
    /// What can go wrong while an administrator resets counts.
    ResettingProblems,
    [
        Error::IdempotencyKeyReused,
        Error::TooManyMeters("tokens".to_owned()),
        Error::CounterStoreUnavailable,
        Error::DatabaseUnavailable,
        Error::Overloaded,
    ]
);

problems!(
    /// What can go wrong while all that is over is reset.
    ExpiringProblems,
    [Error::IdempotencyKeyReused, Error::CounterStoreUnavailable, Error::DatabaseUnavailable]
);

problems!(
    /// Redis must be there.
    NeedsCounterStore,
    [Error::CounterStoreUnavailable]
);

problems!(
    /// A plan is in use.
    MayBeInUse,
    [Error::Conflict("3 organizations are on this plan".to_owned())]
);

problems!(
    /// The state may change under the call for too long.
    MayBeOverloaded,
    [Error::Overloaded]
);

/// Adds a problem to the responses of an operation, beside others of the same status.
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
        let name = title_case(name);
        response.headers.insert(name.clone(), header_ref(&name));
    }
    if let Some(RefOr::T(content)) = response.content.get_mut(MEDIA_TYPE) {
        let example = ExampleBuilder::new()
            .summary(problem.title)
            .value(serde_json::to_value(&problem).ok());
        content
            .examples
            .insert(problem.code.to_owned(), example.into());
        let titles: Vec<&str> = content.examples.values().filter_map(summary).collect();
        response.description = format!("{}.", titles.join(", or "));
    }
}

fn summary(example: &RefOr<utoipa::openapi::example::Example>) -> Option<&str> {
    match example {
        RefOr::T(example) => Some(&example.summary),
        RefOr::Ref(_) => None,
    }
}

/// What a response that is nothing but problems can be called: after their codes.
pub(super) fn name(response: &RefOr<Response>) -> Option<String> {
    let RefOr::T(response) = response else {
        return None;
    };
    let (media_type, content) = response.content.first()?;
    let RefOr::T(content) = content else {
        return None;
    };
    let codes: Vec<&str> = content.examples.keys().map(String::as_str).collect();
    (media_type == MEDIA_TYPE && !codes.is_empty()).then(|| codes.join("-or-"))
}

/// `retry-after` as it is written by people.
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
