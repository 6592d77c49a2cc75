//! What handlers take from a request: who calls, the body, the query, the path. Every refusal is a problem.

use std::fmt;
use std::marker::PhantomData;
use std::str::FromStr;
use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, RawPathParams, Request};
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE, HeaderName, IF_MATCH, IF_NONE_MATCH};
use axum::http::request::Parts;
use chrono::{DateTime, SubsecRound as _, TimeDelta, Utc};
use http_body_util::{BodyExt as _, Collected, LengthLimitError, Limited};
use serde::de::value::MapAccessDeserializer;
use serde::de::{self, DeserializeOwned, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use utoipa::openapi::path::{Parameter, ParameterBuilder, ParameterIn};
use utoipa::openapi::schema::{ObjectBuilder, Type};
use utoipa::openapi::{RefOr, Required, Schema};
use utoipa::{IntoParams, PartialSchema, ToSchema};

use super::observe::{CallerId, Seen};
use super::problem::Error;
use crate::access::User;
use crate::domain::api_key::Scope;
use crate::domain::history::INSTANTS;
use crate::domain::ids::{ApiKeyId, EventId, IdempotencyKey, OrganizationId, PlanId, WebhookId};
use crate::domain::precondition::Preconditions;
use crate::state::State;
use crate::store::Actor;
use crate::store::api_keys::{KeyRecord, PresentedKey};

/// The largest body that any call but a batch needs, bytes.
const BODY_MAX: usize = 64 * 1024;

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
    pub(super) fn reach(&self, named: &Named) -> Result<OrganizationId, Error> {
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
            (Some(own), named) if named.as_ref() != Some(own) => Err(Error::Forbidden(refusal)),
            (_, Some(id)) => Ok(id.clone()),
            (_, None) => Err(Error::NotFound("there is no such organization")),
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
    pub(super) fn vouches(&self) -> bool {
        matches!(self, Self::User(_))
    }

    /// The organization that is meant where none is named: a token's.
    pub(super) fn implied(&self) -> Option<&OrganizationId> {
        match self {
            Self::Key(_) => None,
            Self::User(user) => user.organization.as_ref(),
        }
    }

    fn permits(&self, scope: Scope) -> bool {
        match self {
            Self::Key(key) => key.scopes.permit(scope),
            Self::User(_) => scope == Scope::Read,
        }
    }

    /// How the audit log names them.
    fn actor(&self, parts: &Parts) -> Actor {
        let request_id = parts.extensions.get().map(Seen::request_id);
        Actor {
            name: match self {
                Self::Key(key) => format!("key:{}", key.id),
                Self::User(user) => format!("user:{}", user.id),
            },
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
        let header = parts
            .headers
            .get(AUTHORIZATION)
            .and_then(|value| value.to_str().ok());
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
        let user = Box::pin(state.access.user(token)).await?;
        let user = Arc::new(user.ok_or(Error::Unauthenticated)?);
        note(parts, CallerId::User(Arc::clone(&user.id)));
        Ok(Self::User(user))
    }
}

impl Caller {
    async fn with_key(key: &PresentedKey, parts: &Parts, state: &State) -> Result<Self, Error> {
        let record = state.access.authenticate(key).await?;
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
/// handler cannot forget to ask.
#[derive(Debug)]
pub(super) struct Named(Option<OrganizationId>);

impl<'de> Deserialize<'de> for Named {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        OrganizationId::deserialize(deserializer).map(|id| Self(Some(id)))
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
                if caller.permits($scope) {
                    Ok(Self(caller))
                } else {
                    Err(Error::Forbidden($refusal))
                }
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
        if !caller.permits(Scope::Reset) {
            return Err(Error::Forbidden("this needs a key with the scope reset"));
        }
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
        if !caller.permits(Scope::Reset) {
            return Err(Error::Forbidden("this needs a key with the scope reset"));
        }
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
        if !caller.permits(Scope::Admin) {
            return Err(Error::Forbidden("this needs a key with the scope admin"));
        }
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
    pub(super) fn reach(&self, named: &Named) -> Result<OrganizationId, Error> {
        match (&self.caller, &named.0) {
            (Caller::User(_), Some(id)) => Ok(id.clone()),
            (Caller::User(_), None) => Err(Error::NotFound("there is no such organization")),
            (Caller::Key(_), _) => self.caller.reach(named),
        }
    }
}

impl FromRequestParts<State> for PlatformAdministrator {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &State) -> Result<Self, Error> {
        let caller = Caller::from_request_parts(parts, state).await?;
        let permitted = match &caller {
            Caller::Key(_) => caller.permits(Scope::Admin),
            Caller::User(user) => user.is_admin,
        };
        if !permitted {
            return Err(Error::Forbidden(
                "this needs a key with the scope admin, or a token with a platform role for it",
            ));
        }
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

    async fn from_request(request: Request, _: &State) -> Result<Self, Error> {
        let media_type = MediaType::of(&request);
        let text = read(request, BODY_MAX).await?;
        if media_type != MediaType::Json {
            return Err(Error::UnsupportedMediaType);
        }
        from_json(&text).map(Self)
    }
}

/// The query's parameters. Unknown ones are refused by the types.
#[derive(Debug)]
pub(super) struct Query<T>(pub(super) T);

impl<T: DeserializeOwned> FromRequestParts<State> for Query<T> {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _: &State) -> Result<Self, Error> {
        from_query(parts.uri.query().unwrap_or_default()).map(Self)
    }
}

/// An instant, as the first whole millisecond that is not before it: everything happens at whole ones.
pub(super) fn instant<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<DateTime<Utc>>, D::Error> {
    let text = String::deserialize(deserializer)?;
    let instant = DateTime::parse_from_rfc3339(&text).ok();
    let instant = instant
        .map(|it| it.to_utc())
        .filter(|it| INSTANTS.contains(it));
    let instant = instant.ok_or_else(|| {
        de::Error::custom("must be an RFC 3339 date-time, such as 2026-11-01T00:00:00Z")
    })?;
    let whole = instant.trunc_subsecs(3);
    let rest = instant.signed_duration_since(whole);
    Ok(if rest.is_zero() {
        Some(whole)
    } else {
        whole.checked_add_signed(TimeDelta::milliseconds(1))
    })
}

/// How many items a page of a list has at most: 1 to 1000, 100 unless said.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(try_from = "u32")]
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

impl TryFrom<u32> for PageSize {
    type Error = String;

    fn try_from(size: u32) -> Result<Self, String> {
        if (1..=Self::MAX).contains(&size) {
            Ok(Self(size))
        } else {
            Err(format!("must be from 1 to {}", Self::MAX))
        }
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

    async fn from_request(request: Request, _: &State) -> Result<Self, Error> {
        let json = MediaType::of(&request) == MediaType::Json;
        let query = request.uri().query().unwrap_or_default().to_owned();
        let text = read(request, BODY_MAX).await?;
        match (text.is_empty(), query.is_empty()) {
            (true, _) => from_query(&query).map(Self),
            (false, true) if json => from_json(&text).map(Self),
            (false, true) => Err(Error::UnsupportedMediaType),
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
    pub(super) fn of(request: &Request) -> Self {
        let declared = request
            .headers()
            .get(CONTENT_TYPE)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default();
        let media_type = declared.split(';').next().unwrap_or_default().trim();
        if media_type.eq_ignore_ascii_case("application/json") {
            Self::Json
        } else if media_type.eq_ignore_ascii_case("application/x-ndjson") {
            Self::NdJson
        } else {
            Self::Other
        }
    }
}

/// The body, unless it has more than `max` bytes.
pub(super) async fn read(request: Request, max: usize) -> Result<Bytes, Error> {
    let body = Limited::new(request.into_body(), max).collect().await;
    body.map(Collected::to_bytes).map_err(|error| {
        if error.is::<LengthLimitError>() {
            Error::PayloadTooLarge
        } else {
            Error::MalformedRequest("the body could not be read".to_owned())
        }
    })
}

/// Tells a body that is not JSON from one whose field is wrong, and names the field.
pub(super) fn from_json<'a, T: Deserialize<'a>>(text: &'a [u8]) -> Result<T, Error> {
    // Keeping track of where one is takes time, and almost every body is right.
    if let Ok(Object(value)) = serde_json::from_slice(text) {
        return Ok(value);
    }
    let mut json = serde_json::Deserializer::from_slice(text);
    let Object(value) = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        if error.inner().is_data() {
            at_fault(&error)
        } else {
            Error::MalformedRequest(format!("the body is not JSON: {}", error.inner()))
        }
    })?;
    json.end()
        .map_err(|_| Error::MalformedRequest("there is more than one JSON value".to_owned()))?;
    Ok(value)
}

fn from_query<T: DeserializeOwned>(query: &str) -> Result<T, Error> {
    let parameters = serde_html_form::Deserializer::from_bytes(query.as_bytes());
    serde_path_to_error::deserialize(parameters).map_err(|error| at_fault(&error))
}

/// Names the field, or the parameter, that is wrong.
fn at_fault(error: &serde_path_to_error::Error<impl std::fmt::Display>) -> Error {
    use serde_path_to_error::Segment;
    let mut pointer = String::new();
    for segment in error.path() {
        pointer.push('/');
        match segment {
            Segment::Seq { index } => pointer.push_str(&index.to_string()),
            Segment::Map { key } => pointer.push_str(&key.replace('~', "~0").replace('/', "~1")),
            Segment::Enum { variant } => pointer.push_str(variant),
            Segment::Unknown => pointer.push('?'),
        }
    }
    // The position in the text is of no use beside a pointer.
    let text = error.inner().to_string();
    let detail = text.split(" at line ").next().unwrap_or(&text).to_owned();
    Error::InvalidField { pointer, detail }
}

/// The organization that the path names. What cannot be the id of an organization is the id of none.
#[derive(Debug)]
pub(super) struct OrganizationPath(pub(super) Named);

impl FromRequestParts<State> for OrganizationPath {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &State) -> Result<Self, Error> {
        Ok(Self(Named(id_in_path(parts, state).await)))
    }
}

impl IntoParams for OrganizationPath {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        vec![in_path("id", "The organization.", OrganizationId::schema())]
    }
}

/// The API key that the path names.
#[derive(Debug)]
pub(super) struct KeyPath(pub(super) ApiKeyId);

impl FromRequestParts<State> for KeyPath {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &State) -> Result<Self, Error> {
        let id = id_in_path(parts, state).await;
        id.map(Self)
            .ok_or(Error::NotFound("there is no such API key"))
    }
}

impl IntoParams for KeyPath {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        vec![in_path("id", "The API key.", ApiKeyId::schema())]
    }
}

/// The webhook that the path names.
#[derive(Debug)]
pub(super) struct WebhookPath(pub(super) WebhookId);

impl FromRequestParts<State> for WebhookPath {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &State) -> Result<Self, Error> {
        let id = id_in_path(parts, state).await;
        id.map(Self)
            .ok_or(Error::NotFound("there is no such webhook"))
    }
}

impl IntoParams for WebhookPath {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        vec![in_path("id", "The webhook.", WebhookId::schema())]
    }
}

/// The webhook that the path names, and the event that was to be delivered to it.
#[derive(Debug)]
pub(super) struct DeliveryPath(pub(super) WebhookId, pub(super) EventId);

impl FromRequestParts<State> for DeliveryPath {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &State) -> Result<Self, Error> {
        let WebhookPath(id) = WebhookPath::from_request_parts(parts, state).await?;
        let event = path_parameter(parts, state, "delivery").await;
        let event = event.and_then(|event| event.parse().ok());
        event
            .map(|event| Self(id, event))
            .ok_or(Error::NotFound("there is no such delivery"))
    }
}

impl IntoParams for DeliveryPath {
    fn into_params(parameter_in: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        let mut parameters = WebhookPath::into_params(parameter_in);
        parameters.push(in_path("delivery", "The delivery.", EventId::schema()));
        parameters
    }
}

/// The plan that the path names.
#[derive(Debug)]
pub(super) struct PlanPath(pub(super) PlanId);

impl FromRequestParts<State> for PlanPath {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &State) -> Result<Self, Error> {
        let id = id_in_path(parts, state).await;
        id.map(Self).ok_or(Error::NotFound("there is no such plan"))
    }
}

impl IntoParams for PlanPath {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        vec![in_path("id", "The plan.", PlanId::schema())]
    }
}

/// What the route calls `{id}`; none if it is not well-formed.
async fn id_in_path<T: FromStr>(parts: &mut Parts, state: &State) -> Option<T> {
    path_parameter(parts, state, "id").await?.parse().ok()
}

/// The feature that the path names; any text.
#[derive(Debug)]
pub(super) struct FeaturePath(pub(super) String);

impl FromRequestParts<State> for FeaturePath {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &State) -> Result<Self, Error> {
        let name = path_parameter(parts, state, "feature").await;
        name.map(Self)
            .ok_or_else(|| Error::MalformedRequest("the path is not text".to_owned()))
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

async fn path_parameter(parts: &mut Parts, state: &State, name: &str) -> Option<String> {
    let path = RawPathParams::from_request_parts(parts, state).await.ok()?;
    path.iter()
        .find(|(parameter, _)| *parameter == name)
        .map(|(_, value)| value.to_owned())
}

/// Refuses a query; for endpoints that take none, so that a typing mistake is not ignored.
#[derive(Debug)]
pub(super) struct NoQuery;

impl FromRequestParts<State> for NoQuery {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _: &State) -> Result<Self, Error> {
        match parts.uri.query() {
            None | Some("") => Ok(Self),
            Some(_) => Err(Error::MalformedRequest(
                "this takes no query parameters".to_owned(),
            )),
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
        let Some(value) = parts.headers.get(IDEMPOTENCY_KEY) else {
            return Ok(Self(None));
        };
        let key = value.to_str().ok().and_then(|text| text.parse().ok());
        match key {
            Some(key) => Ok(Self(Some(key))),
            None => Err(Error::MalformedRequest(
                "Idempotency-Key must be 1 to 255 printable ASCII characters".to_owned(),
            )),
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
            .map_err(|error| Error::MalformedRequest(format!("If-Match and If-None-Match {error}")))
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
