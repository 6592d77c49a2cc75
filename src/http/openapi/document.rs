//! Completes the gathered document: scopes, the headers of every response, and the problems that follow from a key, a
//! path, a query, a body or a precondition.

use utoipa::openapi::path::{Operation, ParameterIn, PathItem};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{Components, OpenApi, Ref, RefOr, Response};

use super::{headers, problems};
use crate::http::extract::BODY_MAX;
use crate::http::problem::{Error, Problem};
use crate::http::request_log::REQUEST_ID;
use crate::http::usage_result::UsageResult;

/// The document without any operation.
pub(in crate::http) fn outline() -> OpenApi {
    <Outline as utoipa::OpenApi>::openapi()
}

#[derive(utoipa::OpenApi)]
#[openapi(
    info(title = "Tallyman", description = ABOUT, license(name = "MIT", identifier = "MIT")),
    components(schemas(Problem, UsageResult)),
    tags(
        (name = "Counting", description = "Track, consume, check and refund. All four take the same fields and return the usage result."),
        (name = "Usage", description = "Current usage."),
        (name = "History", description = "Past usage by hour, day and period."),
        (name = "Events", description = "Thresholds crossed, resets, deletions and changes of limits."),
        (name = "Webhooks", description = "Deliver events to URLs, signed per the Standard Webhooks specification."),
        (name = "Organizations", description = "Organizations with their calendars and limits."),
        (name = "Better Auth", description = PLUGIN),
        (name = "Plans", description = "Limits and features that organizations share."),
        (name = "API keys", description = "Credentials and their scopes."),
        (name = "Audit", description = "The log of administrative changes."),
        (name = "Operations", description = "Health, metrics and documentation."),
    )
)]
struct Outline;

const ABOUT: &str = "\
Tallyman counts what organizations use and stops them where their plan ends.

JSON is camelCase; times are RFC 3339 in UTC. Unknown body fields and query parameters are refused. Clients should ignore \
unknown response fields.

Errors are RFC 9457 problems: `code` is stable, `detail` is for people. In addition to the problems of each operation, an \
unknown path is 404 `not_found`, and an unknown method 405 `method_not_allowed`.";

const PLUGIN: &str = "\
The endpoints of the Better Auth plugin for usage tracking, for its client. Shown below the default path; a setting changes \
it. Errors are `{\"error\": …}` instead of problems.";

/// Completes the operations.
pub(in crate::http) fn complete(mut document: OpenApi) -> OpenApi {
    let mut components = document.components.take().unwrap_or_default();
    components.headers = headers::components();
    add_security_schemes(&mut components);
    for item in document.paths.paths.values_mut() {
        for (method, operation) in operations(item) {
            describe_scope(operation);
            if !is_plugin(operation) {
                for problem in implied_problems(operation) {
                    problems::declare(&mut operation.responses.responses, problem);
                }
            }
            let tagged = method != "delete" && is_conditional(operation);
            for (status, response) in &mut operation.responses.responses {
                if let RefOr::T(response) = response {
                    headers::add(response, REQUEST_ID);
                    if tagged && ["200", "304"].contains(&status.as_str()) {
                        headers::add(response, "ETag");
                    }
                }
                share(response, &mut components);
            }
        }
    }
    document.components = Some(components);
    document
}

fn add_security_schemes(components: &mut Components) {
    for (name, format, description) in [
        (
            "key",
            "tm_<id>_<secret>",
            "An API key. Each operation names the scope that it needs; `admin` includes all, `provision` includes `ingest` and \
             `read`. A key that is bound to one organization has access to nothing else.",
        ),
        (
            "token",
            "JWT",
            "A JWT of the auth server that the settings name. It reads the organization that it names, and nothing else.",
        ),
    ] {
        let scheme = HttpBuilder::new()
            .scheme(HttpAuthScheme::Bearer)
            .bearer_format(format)
            .description(Some(description));
        let scheme = SecurityScheme::Http(scheme.build());
        components
            .security_schemes
            .insert(name.to_owned(), scheme.into());
    }
}

fn operations(item: &mut PathItem) -> impl Iterator<Item = (&'static str, &mut Operation)> {
    [
        ("get", &mut item.get),
        ("put", &mut item.put),
        ("post", &mut item.post),
        ("patch", &mut item.patch),
        ("delete", &mut item.delete),
    ]
    .into_iter()
    .filter_map(|(method, operation)| Some((method, operation.as_mut()?)))
}

/// Repeats the scope of the security requirement in the description, where people look for it.
fn describe_scope(operation: &mut Operation) {
    let requirements = serde_json::to_value(&operation.security).unwrap_or_default();
    let Some(scope) = requirements[0]["key"][0].as_str() else {
        return;
    };
    let token = match requirements[1]["token"].as_array().map(Vec::as_slice) {
        None => "",
        Some([]) => ", or a JWT of the organization",
        Some(_) => ", or a JWT with a platform role that `TALLYMAN_JWT_ADMIN_ROLES` names",
    };
    let needed = format!("Needs a key with the scope `{scope}`{token}.");
    operation.description = Some(match operation.description.take() {
        Some(description) => format!("{description}\n\n{needed}"),
        None => needed,
    });
}

/// Whether the operation takes preconditions.
fn is_conditional(operation: &Operation) -> bool {
    let mut parameters = operation.parameters.iter().flatten();
    parameters.any(|it| matches!(it, RefOr::T(parameter) if parameter.name == "If-Match"))
}

/// Whether the operation has the plugin's errors.
fn is_plugin(operation: &Operation) -> bool {
    let mut tags = operation.tags.iter().flatten();
    tags.any(|tag| tag == "Better Auth")
}

/// The problems of every operation with a key, preconditions, a path, a query or a body.
fn implied_problems(operation: &Operation) -> Vec<Error> {
    let malformed = |detail: &str| Error::MalformedRequest(detail.to_owned());
    let has = |place: &ParameterIn| {
        let mut parameters = operation.parameters.iter().flatten();
        parameters.any(|it| matches!(it, RefOr::T(parameter) if parameter.parameter_in == *place))
    };
    let (path, query) = (has(&ParameterIn::Path), has(&ParameterIn::Query));
    let key = operation.security.is_some();
    let body = operation.request_body.is_some();
    let mut implied = vec![Error::Internal];
    if key {
        implied.extend([
            Error::Unauthenticated,
            Error::TooManyFailedAuthentications {
                retry_after_seconds: 6,
            },
            Error::Forbidden("this key is bound to another organization"),
            Error::DatabaseUnavailable,
            Error::AuthServerUnavailable,
            Error::DeadlineExceeded,
        ]);
    }
    if is_conditional(operation) {
        implied.extend([
            Error::PreconditionFailed,
            malformed(
                "If-Match and If-None-Match must be `*`, or entity tags such as \"17\" with commas between them",
            ),
        ]);
    }
    if path {
        implied.push(Error::NotFound("there is no such organization"));
    }
    if body {
        implied.extend([
            malformed("the body is not JSON: expected value at line 1 column 1"),
            Error::RequestTimeout,
            Error::OVERLOADED,
            Error::PayloadTooLarge(BODY_MAX),
            Error::UnsupportedMediaType("send the body as Content-Type: application/json"),
        ]);
    } else if key && !query {
        implied.push(malformed("this takes no query parameters; got \"x=1\""));
    }
    implied.extend(invalid_field(body, query, path));
    implied
}

/// An example of an invalid field, in the body, the query or the path.
fn invalid_field(body: bool, query: bool, path: bool) -> Option<Error> {
    let (pointer, detail) = if body {
        ("/amount", "must be an integer from 1 to 10^12; got 0")
    } else if query {
        (
            "/pageSize",
            "must be an integer from 1 to 1000; got \"many\"",
        )
    } else if path {
        ("/id", "must be 16 characters of 0-9 a-f; got \"a b\"")
    } else {
        return None;
    };
    Some(Error::InvalidField {
        pointer: pointer.to_owned(),
        detail: detail.to_owned(),
    })
}

/// Moves a response that several operations have to the components, and refers to it.
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
