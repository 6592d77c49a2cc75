//! What handlers take from a request: who calls, the body, the query, the path. Every refusal is a problem.

use std::fmt;
use std::marker::PhantomData;
use std::str::FromStr;
use std::sync::Arc;

use axum::extract::{FromRequest, FromRequestParts, RawPathParams, Request};
use axum::http::HeaderMap;
use axum::http::header::{
    AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE, HeaderName, HeaderValue, IF_MATCH, IF_NONE_MATCH,
};
use axum::http::request::Parts;
use chrono::{DateTime, SubsecRound as _, TimeDelta, Utc};
use serde::de::value::MapAccessDeserializer;
use serde::de::{DeserializeOwned, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use utoipa::openapi::path::{Parameter, ParameterBuilder, ParameterIn};
use utoipa::openapi::schema::{ObjectBuilder, Type};
use utoipa::openapi::{RefOr, Required, Schema};
use utoipa::{IntoParams, PartialSchema, ToSchema};

use super::body::read;
use super::parse;
use super::problem::Error;
use super::request_log::{CallerId, Seen};
use crate::auth::User;
use crate::domain::api_key::Scope;
use crate::domain::ids::{ApiKeyId, EventId, IdempotencyKey, OrganizationId, PlanId, WebhookId};
use crate::domain::input::{self, Instant};
use crate::domain::precondition::Preconditions;
use crate::http::state::State;
use crate::postgres::Actor;
use crate::postgres::api_keys::{KeyRecord, PresentedKey};

/// The largest body that any call but a batch needs, bytes.
pub(super) const BODY_MAX: usize = 64 * 1024;

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const PREFER: HeaderName = HeaderName::from_static("prefer");

/// Whose key, or whose JWT, is valid. This alone is no permission: handlers take one of the types below, which
/// say what the caller may do, and learn through [`Caller::reach`] whom it may do it to.
#[derive(Debug, Clone)]
pub(super) enum Caller {
    /// An API key.
    Key(Arc<KeyRecord>),
    /// A user of the auth server.
    User(Arc<User>),
}

impl Caller {
    /// The organization that a request names, if the caller reaches it. Decided before anything is looked
    /// up, so that a caller who is bound to one organization learns nothing about others, not even
    /// whether they exist.
    pub(super) fn reach(&self, named: &OrganizationParam) -> Result<OrganizationId, Error> {
        let (own, refusal) = match self {
            Self::Key(key) => (
                key.organization.as_ref(),
                "this key is bound to another organization",
            ),
            Self::User(user) => (
                Some(own_organization(user)?),
                "this token is for another organization",
            ),
        };
        match (own, &named.0) {
            (Some(own), named) if named.as_ref().ok() != Some(own) => {
                Err(Error::Forbidden(refusal))
            }
            (_, named) => named.clone(),
        }
    }

    /// Whether the caller reaches every organization there is.
    pub(super) fn reach_all(&self) -> Result<(), Error> {
        match self {
            Self::Key(key) if key.organization.is_none() => Ok(()),
            Self::Key(_) => Err(Error::Forbidden("this key is bound to one organization")),
            Self::User(_) => Err(Error::Forbidden("this token is for one organization")),
        }
    }

    /// Whether what the caller reaches exists on the auth server's word, counted yet or not.
    pub(super) fn trusts_existence(&self) -> bool {
        matches!(self, Self::User(_))
    }

    /// The organization that is meant where none is named: a token's.
    pub(super) fn default_organization(&self) -> Option<&OrganizationId> {
        match self {
            Self::Key(_) => None,
            Self::User(user) => user.organization.as_ref(),
        }
    }

    /// What tells them apart from others.
    pub(super) fn name(&self) -> String {
        match self {
            Self::Key(key) => format!("key:{}", key.id),
            Self::User(user) => format!("user:{}", user.id),
        }
    }

    /// The caller, if this is permitted; `refusal` says what is.
    async fn demand(
        self,
        scope: Scope,
        state: &State,
        refusal: &'static str,
    ) -> Result<Self, Error> {
        let permitted = match &self {
            Self::Key(key) => key.scopes.permit(scope),
            Self::User(_) => scope == Scope::Read,
        };
        match self {
            _ if !permitted => Err(Error::Forbidden(refusal)),
            // Whose record nobody can vouch for may count, and do nothing else.
            Self::Key(key) if !key.proven && !matches!(scope, Scope::Ingest | Scope::Refund) => {
                let proven = Box::pin(state.auth.prove(&key)).await?;
                let proven = proven.filter(|key| key.scopes.permit(scope));
                Ok(Self::Key(proven.ok_or(Error::Unauthenticated)?))
            }
            caller => Ok(caller),
        }
    }

    /// How the audit log names them.
    fn actor(&self, parts: &Parts) -> Actor {
        let request_id = parts.extensions.get().map(Seen::request_id);
        Actor {
            name: self.name(),
            request_id: request_id.unwrap_or_default().to_owned(),
        }
    }
}

fn own_organization(user: &User) -> Result<&OrganizationId, Error> {
    user.organization
        .as_ref()
        .ok_or(Error::Forbidden("this token names no organization"))
}

impl FromRequestParts<State> for Caller {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &State) -> Result<Self, Error> {
        let header = once(&parts.headers, &AUTHORIZATION)?.and_then(|value| value.to_str().ok());
        let (scheme, token) = header
            .and_then(|text| text.split_once(' '))
            .ok_or(Error::Unauthenticated)?;
        if !scheme.eq_ignore_ascii_case("bearer") {
            return Err(Error::Unauthenticated);
        }
        let token = token.trim();
        if let Ok(key) = token.parse::<PresentedKey>() {
            return Self::with_key(&key, parts, state).await;
        }
        // On the heap, so that the path of a key does not carry what it may need.
        let user = Box::pin(state.auth.user(token)).await?;
        let user = Arc::new(user.ok_or(Error::Unauthenticated)?);
        note(parts, CallerId::User(Arc::clone(&user.id)));
        Ok(Self::User(user))
    }
}

impl Caller {
    async fn with_key(key: &PresentedKey, parts: &Parts, state: &State) -> Result<Self, Error> {
        let record = state.auth.authenticate(key).await?;
        let record = record.ok_or(Error::Unauthenticated)?;
        note(parts, CallerId::Key(record.id.clone()));
        Ok(Self::Key(record))
    }
}

/// Tells the log who calls.
fn note(parts: &Parts, id: CallerId) {
    if let Some(seen) = parts.extensions.get::<Seen>() {
        seen.fill(id);
    }
}

/// An organization as a request names it, in its path or its body. Only [`Caller::reach`] opens it, so that a
/// handler cannot forget to ask; a path that names none is wrong only to those who reach more than one.
#[derive(Debug)]
pub(super) struct OrganizationParam(Result<OrganizationId, Error>);

impl<'de> Deserialize<'de> for OrganizationParam {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        OrganizationId::deserialize(deserializer).map(|id| Self(Ok(id)))
    }
}

macro_rules! permission {
    ($(#[$doc:meta])* $name:ident, $scope:expr, $refusal:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone)]
        pub(super) struct $name(pub(super) Caller);

        impl FromRequestParts<State> for $name {
            type Rejection = Error;

            async fn from_request_parts(parts: &mut Parts, state: &State) -> Result<Self, Error> {
                let caller = Caller::from_request_parts(parts, state).await?;
                Ok(Self(caller.demand($scope, state, $refusal).await?))
            }
        }
    };
}

permission!(
    /// A caller who may count.
    Ingest,
    Scope::Ingest,
    "this needs a key with the scope ingest"
);

permission!(
    /// A caller who may give back what was counted.
    Refund,
    Scope::Refund,
    "this needs a key with the scope refund"
);

permission!(
    /// A caller who may read.
    Read,
    Scope::Read,
    "this needs a key with the scope read"
);

/// A caller who may end what is over, and how the log will name them.
#[derive(Debug, Clone)]
pub(super) struct Resetting(pub(super) Actor);

impl FromRequestParts<State> for Resetting {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &State) -> Result<Self, Error> {
        let caller = Caller::from_request_parts(parts, state).await?;
        let refusal = "this needs a key with the scope reset";
        let caller = caller.demand(Scope::Reset, state, refusal).await?;
        Ok(Self(caller.actor(parts)))
    }
}

/// The same, by a key in a body of `{"apiKey": …}`, whatever the headers say.
pub(super) struct ResettingByBody(pub(super) Actor);

/// Such a body.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schema(example = json!({"apiKey": "tm_…"}))]
pub(super) struct KeyInBody {
    #[schema(value_type = String)]
    api_key: Option<String>,
}

impl FromRequest<State> for ResettingByBody {
    type Rejection = Error;

    async fn from_request(request: Request, state: &State) -> Result<Self, Error> {
        let (parts, body) = request.into_parts();
        let request = Request::from_parts(parts.clone(), body);
        let Body(KeyInBody { api_key }) = Body::from_request(request, state).await?;
        let key = api_key.and_then(|key| key.parse::<PresentedKey>().ok());
        let key = key.ok_or(Error::Unauthenticated)?;
        let caller = Caller::with_key(&key, &parts, state).await?;
        let refusal = "this needs a key with the scope reset";
        let caller = caller.demand(Scope::Reset, state, refusal).await?;
        Ok(Self(caller.actor(&parts)))
    }
}

/// A caller who may do everything, and how the audit log will name them.
#[derive(Debug, Clone)]
pub(super) struct Administrator(pub(super) Caller, pub(super) Actor);

impl FromRequestParts<State> for Administrator {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &State) -> Result<Self, Error> {
        let caller = Caller::from_request_parts(parts, state).await?;
        let refusal = "this needs a key with the scope admin";
        let caller = caller.demand(Scope::Admin, state, refusal).await?;
        let actor = caller.actor(parts);
        Ok(Self(caller, actor))
    }
}

/// An administrator, or a user whose platform role makes them one for the Better Auth plugin's endpoints.
#[derive(Debug)]
pub(super) struct PlatformAdministrator {
    caller: Caller,
    /// How the audit log will name them.
    pub(super) actor: Actor,
}

impl PlatformAdministrator {
    /// The organization that a request names, whichever it is.
    pub(super) fn reach(&self, named: &OrganizationParam) -> Result<OrganizationId, Error> {
        match (&self.caller, &named.0) {
            (Caller::User(_), named) => named.clone(),
            (Caller::Key(_), _) => self.caller.reach(named),
        }
    }
}

impl FromRequestParts<State> for PlatformAdministrator {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &State) -> Result<Self, Error> {
        let caller = Caller::from_request_parts(parts, state).await?;
        let is_admin = matches!(&caller, Caller::User(user) if user.is_admin);
        let refusal =
            "this needs a key with the scope admin, or a token with a platform role for it";
        let caller = if is_admin {
            caller
        } else {
            caller.demand(Scope::Admin, state, refusal).await?
        };
        let actor = caller.actor(parts);
        Ok(Self { caller, actor })
    }
}

/// A JSON body. Unknown fields are refused by the types.
#[derive(Debug)]
pub(super) struct Body<T>(pub(super) T);

/// A JSON object. Without this, an array of an object's values in the order of its fields would do as well.
#[derive(Debug)]
pub(super) struct Object<T>(pub(super) T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(ObjectVisitor(PhantomData))
    }
}

struct ObjectVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for ObjectVisitor<T> {
    type Value = Object<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Object<T>, A::Error> {
        T::deserialize(MapAccessDeserializer::new(map)).map(Object)
    }
}

impl<T: DeserializeOwned> FromRequest<State> for Body<T> {
    type Rejection = Error;

    async fn from_request(request: Request, state: &State) -> Result<Self, Error> {
        let media_type = MediaType::of(request.headers());
        let text = read(request, BODY_MAX, state).await?;
        media_type?.must_be_json()?;
        parse::json(&text).map(Self)
    }
}

/// The query's parameters. Unknown ones are refused by the types.
#[derive(Debug)]
pub(super) struct Query<T>(pub(super) T);

impl<T: DeserializeOwned> FromRequestParts<State> for Query<T> {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _: &State) -> Result<Self, Error> {
        parse::query(parts.uri.query().unwrap_or_default()).map(Self)
    }
}

/// An instant, as the first whole millisecond that is not before it: everything happens at whole ones.
pub(super) fn instant<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<DateTime<Utc>>, D::Error> {
    let instant: DateTime<Utc> = input::required::<Instant, D>(deserializer)?;
    let whole = instant.trunc_subsecs(3);
    let rest = instant.signed_duration_since(whole);
    Ok(if rest.is_zero() {
        Some(whole)
    } else {
        whole.checked_add_signed(TimeDelta::milliseconds(1))
    })
}

/// How many items a page of a list has at most: 1 to 1000, 100 unless said.
#[derive(Debug, Clone, Copy)]
pub(super) struct PageSize(u32);

impl PageSize {
    const MAX: u32 = 1000;

    pub(super) fn get(self) -> u32 {
        self.0
    }

    /// One more than is shown tells whether there are more.
    pub(super) fn and_one(self) -> u32 {
        self.0 + 1
    }

    /// Cuts that one off; returns the last of the page where there are more behind it.
    pub(super) fn cut<T>(self, found: &mut Vec<T>) -> Option<&T> {
        let more = found.len() > self.0 as usize;
        found.truncate(self.0 as usize);
        found.last().filter(|_| more)
    }
}

impl Default for PageSize {
    fn default() -> Self {
        Self(100)
    }
}

impl<'de> Deserialize<'de> for PageSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let size = input::whole(deserializer, 1..=1000, "an integer from 1 to 1000")?;
        Ok(Self(u32::try_from(size).unwrap_or(Self::MAX)))
    }
}

impl PartialSchema for PageSize {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new()
            .schema_type(Type::Integer)
            .minimum(Some(1))
            .maximum(Some(Self::MAX))
            .default(Some(Self::default().0.into()))
            .into()
    }
}

impl ToSchema for PageSize {}

/// The fields of a call: a JSON body, or without one the query.
#[derive(Debug)]
pub(super) struct Fields<T>(pub(super) T);

impl<T: DeserializeOwned> FromRequest<State> for Fields<T> {
    type Rejection = Error;

    async fn from_request(request: Request, state: &State) -> Result<Self, Error> {
        let media_type = MediaType::of(request.headers());
        let query = request.uri().query().unwrap_or_default().to_owned();
        let text = read(request, BODY_MAX, state).await?;
        match (text.is_empty(), query.is_empty()) {
            (true, _) => parse::query(&query).map(Self),
            (false, true) => {
                media_type?.must_be_json()?;
                from_json(&text).map(Self)
            }
            (false, false) => Err(Error::MalformedRequest(
                "the fields come from the body or from the query, not from both".to_owned(),
            )),
        }
    }
}

/// What a body is declared to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MediaType {
    /// One JSON value.
    Json,
    /// One JSON value a line.
    NdJson,
    /// Something else, or nothing.
    Other,
}

impl MediaType {
    pub(super) fn of(headers: &HeaderMap) -> Result<Self, Error> {
        let mut codings = headers.get_all(CONTENT_ENCODING).iter();
        if codings.any(|coding| !coding.as_bytes().eq_ignore_ascii_case(b"identity")) {
            return Err(Error::UnsupportedMediaType(
                "send the body as it is, without Content-Encoding: no coding is decoded here",
            ));
        }
        let declared = once(headers, &CONTENT_TYPE)?
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default();
        let media_type = declared.split(';').next().unwrap_or_default().trim();
        Ok(if media_type.eq_ignore_ascii_case("application/json") {
            Self::Json
        } else if media_type.eq_ignore_ascii_case("application/x-ndjson") {
            Self::NdJson
        } else {
            Self::Other
        })
    }

    fn must_be_json(self) -> Result<(), Error> {
        match self {
            Self::Json => Ok(()),
            Self::NdJson | Self::Other => Err(Error::UnsupportedMediaType(
                "send the body as Content-Type: application/json",
            )),
        }
    }
}

/// A header that cannot be given twice, because nobody could say which one counts.
fn once<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a HeaderValue>, Error> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (_, Some(_)) => Err(Error::MalformedRequest(format!(
            "the header {name} is given more than once; send it once"
        ))),
        (value, None) => Ok(value),
    }
}

/// A body that is likely to be right: what is wrong with it is found out by reading it again.
pub(super) fn from_json<T: DeserializeOwned>(text: &[u8]) -> Result<T, Error> {
    match serde_json::from_slice(text) {
        Ok(Object(value)) => Ok(value),
        Err(_) => parse::json(text),
    }
}

/// The organization that the path names.
#[derive(Debug)]
pub(super) struct OrganizationPath(pub(super) OrganizationParam);

impl FromRequestParts<State> for OrganizationPath {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &State) -> Result<Self, Error> {
        Ok(Self(OrganizationParam(
            path_parameter(parts, state, "id").await,
        )))
    }
}

impl IntoParams for OrganizationPath {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        vec![in_path("id", "The organization.", OrganizationId::schema())]
    }
}

macro_rules! path {
    ($(#[$doc:meta])* $name:ident($id:ty), $description:literal) => {
        $(#[$doc])*
        #[derive(Debug)]
        pub(super) struct $name(pub(super) $id);

        impl FromRequestParts<State> for $name {
            type Rejection = Error;

            async fn from_request_parts(parts: &mut Parts, state: &State) -> Result<Self, Error> {
                path_parameter(parts, state, "id").await.map(Self)
            }
        }

        impl IntoParams for $name {
            fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
                vec![in_path("id", $description, <$id>::schema())]
            }
        }
    };
}

path!(
    /// The API key that the path names.
    KeyPath(ApiKeyId),
    "The API key."
);

path!(
    /// The webhook that the path names.
    WebhookPath(WebhookId),
    "The webhook."
);

path!(
    /// The plan that the path names.
    PlanPath(PlanId),
    "The plan."
);

/// The webhook that the path names, and the event that was to be delivered to it.
#[derive(Debug)]
pub(super) struct DeliveryPath(pub(super) WebhookId, pub(super) EventId);

impl FromRequestParts<State> for DeliveryPath {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &State) -> Result<Self, Error> {
        let WebhookPath(id) = WebhookPath::from_request_parts(parts, state).await?;
        let event = path_parameter(parts, state, "delivery").await?;
        Ok(Self(id, event))
    }
}

impl IntoParams for DeliveryPath {
    fn into_params(parameter_in: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        let mut parameters = WebhookPath::into_params(parameter_in);
        parameters.push(in_path("delivery", "The delivery.", EventId::schema()));
        parameters
    }
}

/// The feature that the path names; any text.
#[derive(Debug)]
pub(super) struct FeaturePath(pub(super) String);

impl FromRequestParts<State> for FeaturePath {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &State) -> Result<Self, Error> {
        path_parameter(parts, state, "feature").await.map(Self)
    }
}

impl IntoParams for FeaturePath {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        let name = ObjectBuilder::new()
            .schema_type(Type::String)
            .min_length(Some(1))
            .examples(["sso"]);
        vec![in_path("feature", "The feature; any text.", name)]
    }
}

fn in_path(name: &str, description: &str, schema: impl Into<RefOr<Schema>>) -> Parameter {
    ParameterBuilder::new()
        .name(name)
        .parameter_in(ParameterIn::Path)
        .required(Required::True)
        .description(Some(description))
        .schema(Some(schema))
        .build()
}

fn in_header(name: &str, description: &str, schema: ObjectBuilder) -> Parameter {
    ParameterBuilder::new()
        .name(name)
        .parameter_in(ParameterIn::Header)
        .required(Required::False)
        .description(Some(description))
        .schema(Some(schema))
        .build()
}

/// What the route calls by this name.
async fn path_parameter<T>(parts: &mut Parts, state: &State, name: &str) -> Result<T, Error>
where
    T: FromStr<Err: fmt::Display>,
{
    let invalid = |name: &str, detail| Error::InvalidField {
        pointer: format!("/{name}"),
        detail,
    };
    let path = RawPathParams::from_request_parts(parts, state).await;
    let path = path.map_err(|error| {
        // It may be another parameter than the one that is wanted, and only the text of the error names it.
        let text = error.body_text();
        invalid(
            text.split('`').nth(1).unwrap_or(name),
            "must be text in UTF-8".to_owned(),
        )
    })?;
    let text = path.iter().find(|(parameter, _)| *parameter == name);
    let (_, text) = text.ok_or(Error::Internal)?;
    text.parse()
        .map_err(|rule| invalid(name, format!("{rule}; got {}", input::shown(text))))
}

/// Refuses a query; for endpoints that take none, so that a typing mistake is not ignored.
#[derive(Debug)]
pub(super) struct NoQuery;

impl FromRequestParts<State> for NoQuery {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _: &State) -> Result<Self, Error> {
        match parts.uri.query() {
            None | Some("") => Ok(Self),
            Some(query) => Err(Error::MalformedRequest(format!(
                "this takes no query parameters; got {}",
                input::shown(query)
            ))),
        }
    }
}

/// The caller's name for this attempt, if there is one.
#[derive(Debug)]
pub(super) struct Idempotency(pub(super) Option<IdempotencyKey>);

impl Idempotency {
    /// Refuses a name for an attempt; for calls whose answer holds a secret.
    pub(super) fn refuse(self) -> Result<(), Error> {
        match self.0 {
            Some(_) => Err(Error::MalformedRequest(
                "this takes no Idempotency-Key, because the secret in its answer is not kept"
                    .to_owned(),
            )),
            None => Ok(()),
        }
    }
}

impl FromRequestParts<State> for Idempotency {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _: &State) -> Result<Self, Error> {
        let Some(value) = once(&parts.headers, &IDEMPOTENCY_KEY)? else {
            return Ok(Self(None));
        };
        let text = String::from_utf8_lossy(value.as_bytes());
        match text.parse() {
            Ok(key) => Ok(Self(Some(key))),
            Err(rule) => Err(Error::MalformedRequest(format!(
                "Idempotency-Key {rule}; got {}",
                input::shown(&text)
            ))),
        }
    }
}

impl IntoParams for Idempotency {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        // Spaces around the value of a header are not part of it.
        let key = ObjectBuilder::new()
            .schema_type(Type::String)
            .pattern(Some("^[!-~]([ -~]{0,253}[!-~])?$"));
        let description = "The caller's name for this attempt, such as `order-42`: repeated under the same key within 24 hours (a setting), \
            the call gets its first final answer again, and counts nothing. Keys are the organization's. \
            Another request under the same key is 422.";
        vec![in_header("Idempotency-Key", description, key)]
    }
}

/// What the caller demands of the present state, by `If-Match` and `If-None-Match`.
#[derive(Debug)]
pub(super) struct Conditions(pub(super) Preconditions);

impl FromRequestParts<State> for Conditions {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _: &State) -> Result<Self, Error> {
        // Several headers of one name are one list.
        let list = |name: HeaderName| -> Result<Option<String>, Error> {
            let values: Vec<&str> = parts
                .headers
                .get_all(&name)
                .iter()
                .map(|value| value.to_str().map_err(|_| unreadable(&name)))
                .collect::<Result<_, _>>()?;
            Ok((!values.is_empty()).then(|| values.join(",")))
        };
        let (if_match, if_none_match) = (list(IF_MATCH)?, list(IF_NONE_MATCH)?);
        Preconditions::parse(if_match.as_deref(), if_none_match.as_deref())
            .map(Self)
            .map_err(|error| {
                let given = [if_match, if_none_match].into_iter().flatten();
                let given = given.collect::<Vec<_>>().join(" and ");
                Error::MalformedRequest(format!(
                    "If-Match and If-None-Match {error}; got {}",
                    input::shown(&given)
                ))
            })
    }
}

fn unreadable(name: &HeaderName) -> Error {
    Error::MalformedRequest(format!("{name} is not text"))
}

impl IntoParams for Conditions {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        let tags = || {
            ObjectBuilder::new()
                .schema_type(Type::String)
                .examples(["\"17\""])
        };
        vec![
            in_header(
                "If-Match",
                "Entity tags, or `*`: the state must be one of these, or be there at all; else 412.",
                tags(),
            ),
            in_header(
                "If-None-Match",
                "Entity tags, or `*`: the state must be none of these, or not be there at all; else 412, or 304 where \
                 it is only read.",
                tags(),
            ),
        ]
    }
}

/// How much of an answer the caller wants (RFC 7240).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Preference {
    /// All of it.
    Full,
    /// The status and the headers.
    Minimal,
}

impl FromRequestParts<State> for Preference {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _: &State) -> Result<Self, Error> {
        // A preference that is not understood is ignored, and the first of several of one name counts.
        let first = parts
            .headers
            .get_all(PREFER)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .filter_map(|preference| preference.split(';').next()?.split_once('='))
            .find(|(name, _)| name.trim().eq_ignore_ascii_case("return"));
        let minimal = first.is_some_and(|(_, value)| {
            value
                .trim()
                .trim_matches('"')
                .eq_ignore_ascii_case("minimal")
        });
        Ok(if minimal { Self::Minimal } else { Self::Full })
    }
}

impl IntoParams for Preference {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        let preferences = ObjectBuilder::new()
            .schema_type(Type::String)
            .examples(["return=minimal"]);
        let description = "With `return=minimal` a 200 becomes a 204, and a 429 is empty: the headers say it all. \
            What is not understood is ignored.";
        vec![in_header("Prefer", description, preferences)]
    }
}
