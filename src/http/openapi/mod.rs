//! The OpenAPI document: what every operation takes and answers, gathered from the handlers.
//!
//! A handler says what is its own, in `#[utoipa::path]`; its types describe themselves. What many
//! operations share is in [`bodies`], [`answers`] and [`problems`]. What follows from the rest of a
//! description is added to all of them here, by [`complete`], and nowhere else: the problems of keys,
//! queries, paths and bodies, and the headers of every response.

pub(super) mod problems;
pub(super) mod responses;

use std::collections::BTreeMap;

use utoipa::openapi::header::{Header, HeaderBuilder};
use utoipa::openapi::path::{Operation, ParameterIn};
use utoipa::openapi::schema::{ObjectBuilder, Type};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{Components, Ref, RefOr, Response, ResponseBuilder};

use super::problem::{Error, Problem};
use super::request_log::REQUEST_ID;
use super::usage_result::UsageResult;

/// The document without any operation.
pub(super) fn outline() -> utoipa::openapi::OpenApi {
    <Outline as utoipa::OpenApi>::openapi()
}

#[derive(utoipa::OpenApi)]
#[openapi(
    info(title = "Tallyman", description = ABOUT, license(name = "MIT", identifier = "MIT")),
    components(schemas(Problem, UsageResult)),
    tags(
        (name = "Counting", description = "Count, enforce and give back. All four take the same fields and give the same answer."),
        (name = "Usage", description = "What an organization has used in its running periods."),
        (name = "History", description = "What was used when, by hour, day and period."),
        (name = "Events", description = "What happened and is worth telling."),
        (name = "Webhooks", description = "Who is told of events, signed after the Standard Webhooks specification, and what became of it."),
        (name = "Organizations", description = "Who is counted, by which calendar, up to which limits."),
        (name = "Better Auth", description = PLUGIN),
        (name = "Plans", description = "Limits and features that organizations share."),
        (name = "API keys", description = "Who may call."),
        (name = "Audit", description = "Who has changed what."),
        (name = "Operations", description = "For whoever runs or explores the service; without a key."),
    )
)]
struct Outline;

const ABOUT: &str = "\
Tallyman counts what organizations use and stops them where their plan ends.

JSON is camelCase; times are RFC 3339 in UTC. Unknown fields of a body and unknown query parameters are refused. Clients \
ignore fields of an answer that they do not know.

Errors are RFC 9457 problems: `code` is stable, `detail` is for people. Besides those of the operations, a path that does \
not exist is 404 `not_found`, and another method of one that does is 405 `method_not_allowed`.";

const PLUGIN: &str = "\
The endpoints of the plugin for usage tracking, for its client. Here below the usual path; a setting may put them below \
another. What is refused is `{\"error\": …}`, and no problem.";

/// Adds to the gathered operations what follows from their descriptions.
pub(super) fn complete(mut document: utoipa::openapi::OpenApi) -> utoipa::openapi::OpenApi {
    let mut components = document.components.take().unwrap_or_default();
    components.headers = headers();
    let key = HttpBuilder::new()
        .scheme(HttpAuthScheme::Bearer)
        .bearer_format("tm_<id>_<secret>")
        .description(Some(
            "An API key. Each operation names the scope that opens it; `admin` opens all. A key that is bound to one \
             organization reaches nothing else.",
        ))
        .build();
    let schemes = &mut components.security_schemes;
    schemes.insert("key".to_owned(), SecurityScheme::Http(key).into());
    let token = HttpBuilder::new()
        .scheme(HttpAuthScheme::Bearer)
        .bearer_format("JWT")
        .description(Some(
            "A JWT of the auth server, where the service is told of one. It reads the organization that it names, and \
             nothing else.",
        ))
        .build();
    schemes.insert("token".to_owned(), SecurityScheme::Http(token).into());
    for item in document.paths.paths.values_mut() {
        for operation in [&mut item.get, &mut item.put, &mut item.patch] {
            if let Some(operation) = operation
                && is_conditional(operation)
            {
                tell_tag(operation);
            }
        }
        let operations = [
            &mut item.get,
            &mut item.put,
            &mut item.post,
            &mut item.patch,
            &mut item.delete,
        ];
        for operation in operations.into_iter().flatten() {
            name_scope(operation);
            if !is_plugin(operation) {
                for problem in implied_problems(operation) {
                    problems::declare(&mut operation.responses.responses, problem);
                }
            }
            for response in operation.responses.responses.values_mut() {
                if let RefOr::T(response) = response {
                    let header = header_ref(REQUEST_ID);
                    response.headers.insert(REQUEST_ID.to_owned(), header);
                }
                share(response, &mut components);
            }
        }
    }
    document.components = Some(components);
    document
}

/// The scope is in the operation's security requirement, where people do not look.
fn name_scope(operation: &mut Operation) {
    if let Some(scope) = scope(operation) {
        let token = match token(operation) {
            Some(role) if role.is_empty() => ", or a JWT of the organization",
            Some(_) => ", or a JWT with a platform role that `TALLYMAN_JWT_ADMIN_ROLES` names",
            None => "",
        };
        let needed = format!("Needs a key with the scope `{scope}`{token}.");
        operation.description = Some(match operation.description.take() {
            Some(description) => format!("{description}\n\n{needed}"),
            None => needed,
        });
    }
}

/// The scope that opens an operation; none where no key is needed.
fn scope(operation: &Operation) -> Option<String> {
    let requirement = operation.security.as_ref()?.first()?;
    let requirement = serde_json::to_value(requirement).ok()?;
    Some(requirement["key"][0].as_str()?.to_owned())
}

/// Whether the caller may demand a state.
fn is_conditional(operation: &Operation) -> bool {
    let mut parameters = operation.parameters.iter().flatten();
    parameters.any(|it| matches!(it, RefOr::T(parameter) if parameter.name == "If-Match"))
}

/// Whatever tells a state says which it is.
fn tell_tag(operation: &mut Operation) {
    for (status, response) in &mut operation.responses.responses {
        if let RefOr::T(response) = response
            && ["200", "304"].contains(&status.as_str())
        {
            let header = header_ref("ETag");
            response.headers.insert("ETag".to_owned(), header);
        }
    }
}

/// The role of a JWT that opens it as well, which is empty for any; none where no JWT does.
fn token(operation: &Operation) -> Option<String> {
    let requirements = serde_json::to_value(operation.security.as_ref()?).ok()?;
    let mut requirements = requirements.as_array()?.iter();
    let roles = requirements.find_map(|requirement| requirement["token"].as_array())?;
    let role = roles.first().and_then(|role| role.as_str());
    Some(role.unwrap_or_default().to_owned())
}

/// Whether it answers in the plugin's way.
fn is_plugin(operation: &Operation) -> bool {
    let mut tags = operation.tags.iter().flatten();
    tags.any(|tag| tag == "Better Auth")
}

/// What can go wrong with whatever has a key, a path, a query or a body.
fn implied_problems(operation: &Operation) -> Vec<Error> {
    let parameter_in = |place: &ParameterIn| {
        operation
            .parameters
            .iter()
            .flatten()
            .any(|it| matches!(it, RefOr::T(parameter) if parameter.parameter_in == *place))
    };
    let (keyed, body) = (
        operation.security.is_some(),
        operation.request_body.is_some(),
    );
    let query = parameter_in(&ParameterIn::Query);
    let mut default_organization = vec![Error::Internal];
    if keyed {
        default_organization.extend([
            Error::Unauthenticated,
            Error::Forbidden("this key is bound to another organization"),
            Error::DatabaseUnavailable,
            Error::AuthServerUnavailable,
        ]);
    }
    if is_conditional(operation) {
        default_organization.extend([
            Error::PreconditionFailed,
            Error::MalformedRequest(
                "If-Match and If-None-Match must be `*`, or entity tags such as \"17\" with commas between them"
                    .to_owned(),
            ),
        ]);
    }
    let path = parameter_in(&ParameterIn::Path);
    if path {
        default_organization.push(Error::NotFound("there is no such organization"));
    }
    if body {
        default_organization.extend([
            Error::MalformedRequest(
                "the body is not JSON: expected value at line 1 column 1".to_owned(),
            ),
            Error::RequestTimeout,
            Error::Overloaded,
            Error::PayloadTooLarge(super::extract::BODY_MAX),
            Error::UnsupportedMediaType("send the body as Content-Type: application/json"),
        ]);
    } else if keyed && !query {
        default_organization.push(Error::MalformedRequest(
            "this takes no query parameters; got \"x=1\"".to_owned(),
        ));
    }
    if body || query || path {
        let (pointer, detail) = if body {
            ("/amount", "must be an integer from 1 to 10^12; got 0")
        } else if query {
            (
                "/pageSize",
                "must be an integer from 1 to 1000; got \"many\"",
            )
        } else {
            ("/id", "must be 16 characters of 0-9 a-f; got \"a b\"")
        };
        default_organization.push(Error::InvalidField {
            pointer: pointer.to_owned(),
            detail: detail.to_owned(),
        });
    }
    default_organization
}

/// Many operations have the same problems: each is written down once, and referred to.
fn share(response: &mut RefOr<Response>, components: &mut Components) {
    let Some(name) = problems::name(response) else {
        return;
    };
    let known = components
        .responses
        .entry(name.clone())
        .or_insert_with(|| response.clone());
    if known == response {
        *response = RefOr::Ref(Ref::from_response_name(name));
    }
}

/// A header of which [`headers`] says the meaning.
pub(super) fn header_ref(name: &str) -> RefOr<Header> {
    RefOr::Ref(Ref::new(format!("#/components/headers/{name}")))
}

/// Adds headers that [`headers`] describes.
pub(super) fn with_headers(response: ResponseBuilder, names: &[&str]) -> RefOr<Response> {
    let mut response = response.build();
    for name in names {
        response
            .headers
            .insert((*name).to_owned(), header_ref(name));
    }
    response.into()
}

fn headers() -> BTreeMap<String, RefOr<Header>> {
    [
        (
            REQUEST_ID,
            "The request's own id, 1 to 128 visible ASCII characters, or a new one.",
            "019aa0f0-7d1c-7c3a-9c7e-2f6b1f0e8d11",
        ),
        (
            "RateLimit-Policy",
            "One member for each limited meter: `q` limit, `w` length of the period in seconds \
             (draft-ietf-httpapi-ratelimit-headers-11). Without an end of the period there is no `w`.",
            "\"api\";q=1000;w=2592000",
        ),
        (
            "RateLimit",
            "One member for each limited meter: `r` remaining, `t` seconds to the next period, or to the end of \
             a temporary limit below which more is included.",
            "\"api\";r=995;t=597600",
        ),
        (
            "Retry-After",
            "Seconds. On a 429 until the same call would be granted if nobody else calls, and only where waiting helps.",
            "1",
        ),
        (
            "Idempotent-Replayed",
            "`true` where this is the answer that the same `Idempotency-Key` got before.",
            "true",
        ),
        (
            "Preference-Applied",
            "`return=minimal` where that left the body out.",
            "return=minimal",
        ),
        (
            "ETag",
            "The `version` as an entity tag, for `If-Match` and `If-None-Match`.",
            "\"17\"",
        ),
        ("WWW-Authenticate", "`Bearer`.", "Bearer"),
    ]
    .map(|(name, description, example)| {
        let text = ObjectBuilder::new().schema_type(Type::String).examples([example]);
        let header = HeaderBuilder::new()
            .schema(Some(text))
            .description(Some(description))
            .build();
        (name.to_owned(), RefOr::T(header))
    })
    .into()
}
