//! `GET /docs`: the document as a page for people, whole in one answer: no script, nothing from elsewhere.
//!
//! What is said comes from the document, how it looks from `reference.html` and `reference.css`.

use std::sync::LazyLock;

use askama::Template;
use axum::http::header::{CONTENT_SECURITY_POLICY, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use utoipa::openapi::path::{Operation, Parameter, ParameterIn, PathItem};
use utoipa::openapi::schema::{
    AdditionalProperties, ArrayItems, Object, Schema, SchemaFormat, SchemaType, Type,
};
use utoipa::openapi::{self, Components, Content, KnownFormat, OpenApi, RefOr, Required};

use crate::api::extract::NoQuery;
use crate::api::problem::Error;

const STYLE: &str = include_str!("reference.css");

/// The document, as a page
///
/// For people; it needs neither scripts nor anything from elsewhere.
#[utoipa::path(
    get,
    path = "/docs",
    operation_id = "getDocs",
    tag = "Operations",
    responses((status = 200, description = "The page.", body = String, content_type = "text/html"))
)]
pub(in crate::api) async fn docs(_: NoQuery) -> Result<Response, Error> {
    static PAGE: LazyLock<Option<String>> =
        LazyLock::new(|| Reference::of(&crate::api::openapi()).render().ok());
    static POLICY: LazyLock<String> = LazyLock::new(|| {
        let style = STANDARD.encode(Sha256::digest(STYLE));
        format!(
            "default-src 'none'; style-src 'sha256-{style}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
    });
    let page = PAGE.as_deref().ok_or(Error::Internal)?;
    let headers = [
        (CONTENT_TYPE, "text/html; charset=utf-8"),
        (CONTENT_SECURITY_POLICY, POLICY.as_str()),
    ];
    Ok((headers, page).into_response())
}

/// The whole page. Texts that the document has in Markdown are HTML here.
#[derive(Template)]
#[template(path = "reference.html")]
struct Reference {
    style: &'static str,
    title: String,
    version: String,
    about: String,
    groups: Vec<Group>,
    types: Vec<NamedType>,
}

/// The operations of one tag.
struct Group {
    name: String,
    description: String,
    operations: Vec<Call>,
}

struct Call {
    id: String,
    method: &'static str,
    path: String,
    summary: String,
    description: String,
    parameters: Vec<Field>,
    body: Option<Body>,
    answers: Vec<Answer>,
}

struct Body {
    description: String,
    contents: Vec<Shown>,
}

struct Answer {
    status: String,
    description: String,
    headers: Vec<String>,
    contents: Vec<Shown>,
}

/// One media type of a body, with examples.
struct Shown {
    media_type: String,
    kind: Kind,
    examples: Vec<String>,
}

/// A schema that others refer to.
struct NamedType {
    name: String,
    description: String,
    kind: Kind,
    variants: Vec<Variant>,
}

/// An object's fields; a type may have several sets of them.
struct Variant {
    title: String,
    fields: Vec<Field>,
}

/// A parameter, or a field of an object.
struct Field {
    name: String,
    place: &'static str,
    required: bool,
    kind: Kind,
    description: String,
}

/// What something may be, in words, some of which name types.
type Kind = Vec<Word>;

struct Word {
    text: String,
    names_type: bool,
}

impl Reference {
    fn of(document: &OpenApi) -> Self {
        let unset = Components::default();
        let components = document.components.as_ref().unwrap_or(&unset);
        let calls: Vec<(Option<&String>, Call)> = document
            .paths
            .paths
            .iter()
            .flat_map(|(path, item)| {
                operations(item).map(move |(method, operation)| {
                    let tag = operation.tags.as_ref().and_then(|tags| tags.first());
                    (tag, call(method, path, operation, components))
                })
            })
            .collect();
        let mut groups: Vec<Group> = document
            .tags
            .iter()
            .flatten()
            .map(|tag| Group {
                name: tag.name.clone(),
                description: html(tag.description.as_deref()),
                operations: Vec::new(),
            })
            .collect();
        for (tag, call) in calls {
            let group = groups.iter_mut().find(|group| Some(&group.name) == tag);
            if let Some(group) = group {
                group.operations.push(call);
            }
        }
        Self {
            style: STYLE,
            title: document.info.title.clone(),
            version: document.info.version.clone(),
            about: html(document.info.description.as_deref()),
            groups,
            types: components
                .schemas
                .iter()
                .map(|(name, schema)| named_type(name, schema))
                .collect(),
        }
    }
}

fn operations(item: &PathItem) -> impl Iterator<Item = (&'static str, &Operation)> {
    [
        ("GET", &item.get),
        ("POST", &item.post),
        ("PUT", &item.put),
        ("PATCH", &item.patch),
        ("DELETE", &item.delete),
    ]
    .into_iter()
    .filter_map(|(method, operation)| Some((method, operation.as_ref()?)))
}

fn call(method: &'static str, path: &str, operation: &Operation, components: &Components) -> Call {
    let body = match &operation.request_body {
        Some(RefOr::T(body)) => Some(Body {
            description: html(body.description.as_deref()),
            contents: shown(body.content.iter(), components),
        }),
        _ => None,
    };
    Call {
        id: operation.operation_id.clone().unwrap_or_default(),
        method,
        path: path.to_owned(),
        summary: operation.summary.clone().unwrap_or_default(),
        description: html(operation.description.as_deref()),
        parameters: operation
            .parameters
            .iter()
            .flatten()
            .filter_map(|parameter| match parameter {
                RefOr::T(parameter) => Some(parameter_field(parameter)),
                RefOr::Ref(_) => None,
            })
            .collect(),
        body,
        answers: operation
            .responses
            .responses
            .iter()
            .filter_map(|(status, response)| answer(status, response, components))
            .collect(),
    }
}

fn answer(
    status: &str,
    response: &RefOr<openapi::Response>,
    components: &Components,
) -> Option<Answer> {
    let response = match response {
        RefOr::T(response) => response,
        RefOr::Ref(to) => match components.responses.get(last_part(&to.ref_location))? {
            RefOr::T(response) => response,
            RefOr::Ref(_) => return None,
        },
    };
    Some(Answer {
        status: status.to_owned(),
        description: html(Some(&response.description)),
        headers: response.headers.keys().cloned().collect(),
        contents: shown(response.content.iter(), components),
    })
}

fn shown<'a>(
    contents: impl Iterator<Item = (&'a String, &'a RefOr<Content>)>,
    components: &Components,
) -> Vec<Shown> {
    contents
        .filter_map(|(media_type, content)| match content {
            RefOr::T(content) => Some(Shown {
                media_type: media_type.clone(),
                kind: content.schema.as_ref().map(kind).unwrap_or_default(),
                examples: examples(content, components).iter().map(written).collect(),
            }),
            RefOr::Ref(_) => None,
        })
        .collect()
}

/// A body's own examples, or those of its type.
fn examples(content: &Content, components: &Components) -> Vec<Value> {
    let named = content
        .examples
        .values()
        .filter_map(|example| match example {
            RefOr::T(example) => example.value.clone(),
            RefOr::Ref(_) => None,
        });
    let own: Vec<Value> = content.example.iter().cloned().chain(named).collect();
    if !own.is_empty() {
        return own;
    }
    let schema = match &content.schema {
        Some(RefOr::Ref(to)) => components.schemas.get(last_part(&to.ref_location)),
        other => other.as_ref(),
    };
    match schema {
        Some(RefOr::T(Schema::Object(object))) => object
            .example
            .iter()
            .chain(&object.examples)
            .cloned()
            .collect(),
        Some(RefOr::T(Schema::OneOf(one_of))) => one_of.examples.clone(),
        _ => Vec::new(),
    }
}

fn written(example: &Value) -> String {
    match example {
        Value::String(text) => text.clone(),
        json => format!("{json:#}"),
    }
}

fn parameter_field(parameter: &Parameter) -> Field {
    Field {
        name: parameter.name.clone(),
        place: match parameter.parameter_in {
            ParameterIn::Path => "path",
            ParameterIn::Header => "header",
            _ => "query",
        },
        required: parameter.required == Required::True,
        kind: parameter.schema.as_ref().map(kind).unwrap_or_default(),
        description: html(parameter.description.as_deref()),
    }
}

fn named_type(name: &str, schema: &RefOr<Schema>) -> NamedType {
    let mut variants = Vec::new();
    gather(schema, &mut variants);
    NamedType {
        name: name.to_owned(),
        description: html(description(schema)),
        kind: if variants.is_empty() {
            kind(schema)
        } else {
            Vec::new()
        },
        variants,
    }
}

/// The sets of fields that a schema has; whole types among its alternatives are fields of no name.
fn gather(schema: &RefOr<Schema>, variants: &mut Vec<Variant>) {
    match schema {
        RefOr::T(Schema::Object(object)) if !object.properties.is_empty() => {
            let title = object.title.clone().or_else(|| object.description.clone());
            variants.push(Variant {
                title: title.unwrap_or_default(),
                fields: fields(object),
            });
        }
        RefOr::T(Schema::OneOf(one_of)) => {
            for item in &one_of.items {
                gather(item, variants);
            }
        }
        RefOr::T(Schema::AllOf(all_of)) => {
            let mut together = Vec::new();
            for item in &all_of.items {
                match item {
                    RefOr::T(Schema::Object(object)) => together.extend(fields(object)),
                    other => together.push(Field {
                        name: "…".to_owned(),
                        place: "",
                        required: true,
                        kind: kind(other),
                        description: "all fields of this".to_owned(),
                    }),
                }
            }
            variants.push(Variant {
                title: all_of.description.clone().unwrap_or_default(),
                fields: together,
            });
        }
        _ => {}
    }
}

fn fields(object: &Object) -> Vec<Field> {
    object
        .properties
        .iter()
        .map(|(name, schema)| Field {
            name: name.clone(),
            place: "",
            required: object.required.contains(name),
            kind: kind(schema),
            description: html(description(schema)),
        })
        .collect()
}

/// What is said of a schema; of one that may be null, what is said of the rest.
fn description(schema: &RefOr<Schema>) -> Option<&str> {
    match schema {
        RefOr::Ref(to) => Some(to.description.as_str()),
        RefOr::T(Schema::Object(object)) => object.description.as_deref(),
        RefOr::T(Schema::Array(array)) => array.description.as_deref(),
        RefOr::T(Schema::AllOf(all_of)) => all_of.description.as_deref(),
        RefOr::T(Schema::OneOf(one_of)) => one_of.description.as_deref().or_else(|| {
            let mut said = one_of.items.iter().filter_map(description);
            said.find(|text| !text.is_empty())
        }),
        RefOr::T(_) => None,
    }
}

fn kind(schema: &RefOr<Schema>) -> Kind {
    match schema {
        RefOr::Ref(to) => vec![Word {
            text: last_part(&to.ref_location).to_owned(),
            names_type: true,
        }],
        RefOr::T(Schema::Object(object)) => object_kind(object),
        RefOr::T(Schema::Array(array)) => {
            let mut words = vec![plain("list of ")];
            if let ArrayItems::RefOrSchema(items) = &array.items {
                words.extend(kind(items));
            }
            words
        }
        RefOr::T(Schema::OneOf(one_of)) => joined(&one_of.items, " or "),
        RefOr::T(Schema::AllOf(all_of)) => joined(&all_of.items, " and "),
        RefOr::T(_) => Vec::new(),
    }
}

fn joined(schemas: &[RefOr<Schema>], between: &str) -> Kind {
    let mut words = Vec::new();
    for schema in schemas {
        if !words.is_empty() {
            words.push(plain(between));
        }
        words.extend(kind(schema));
    }
    words
}

fn object_kind(object: &Object) -> Kind {
    if let Some(values) = &object.enum_values {
        let values: Vec<String> = values.iter().map(ToString::to_string).collect();
        return vec![plain(values.join(" or "))];
    }
    if let Some(AdditionalProperties::RefOr(values)) = object.additional_properties.as_deref() {
        let mut words = vec![plain("map of ")];
        words.extend(kind(values));
        return words;
    }
    let names = match &object.schema_type {
        SchemaType::Type(one) => vec![one],
        SchemaType::Array(several) => several.iter().collect(),
        SchemaType::AnyValue => Vec::new(),
    };
    let dated = object.format == Some(SchemaFormat::KnownFormat(KnownFormat::DateTime));
    let names: Vec<&str> = names
        .into_iter()
        .map(|name| match name {
            Type::Object => "object",
            Type::String if dated => "date-time",
            Type::String => "string",
            Type::Integer => "integer",
            Type::Number => "number",
            Type::Boolean => "boolean",
            Type::Array => "list",
            Type::Null => "null",
        })
        .collect();
    let mut parts = vec![names.join(" or ")];
    let bound = |number: &Option<utoipa::Number>| {
        Some(serde_json::to_value(number.as_ref()?).ok()?.to_string())
    };
    match (bound(&object.minimum), bound(&object.maximum)) {
        (Some(least), Some(most)) => parts.push(format!("{least} to {most}")),
        (Some(least), None) => parts.push(format!("at least {least}")),
        _ => {}
    }
    parts.extend(object.pattern.clone());
    vec![plain(parts.join(", "))]
}

fn plain(text: impl Into<String>) -> Word {
    Word {
        text: text.into(),
        names_type: false,
    }
}

fn last_part(reference: &str) -> &str {
    reference.rsplit('/').next().unwrap_or_default()
}

fn html(markdown: Option<&str>) -> String {
    let mut html = String::new();
    let events = pulldown_cmark::Parser::new(markdown.unwrap_or_default());
    pulldown_cmark::html::push_html(&mut html, events);
    html
}
