//! Typed path parameters.

use std::convert::Infallible;
use std::fmt::Display;
use std::str::FromStr;

use axum::extract::{FromRequestParts, RawPathParams};
use axum::http::request::Parts;
use utoipa::openapi::path::{Parameter, ParameterBuilder, ParameterIn};
use utoipa::openapi::schema::{ObjectBuilder, Type};
use utoipa::openapi::{RefOr, Required, Schema};
use utoipa::{IntoParams, PartialSchema};

use super::problem::Error;
use super::state::State;
use crate::domain::ids::{ApiKeyId, EventId, OrganizationId, PlanId, WebhookId};
use crate::domain::input;

/// A type that stands in a path.
pub(super) trait PathParam: FromStr<Err: Display> + PartialSchema {
    /// The name of the parameter in the route.
    const NAME: &'static str;
    /// For the OpenAPI document.
    const DESCRIPTION: &'static str;
}

macro_rules! path_params {
    ($($type:ty: $name:literal, $description:literal;)*) => {
        $(impl PathParam for $type {
            const NAME: &'static str = $name;
            const DESCRIPTION: &'static str = $description;
        })*
    };
}

path_params! {
    OrganizationId: "id", "The organization.";
    ApiKeyId: "id", "The API key.";
    PlanId: "id", "The plan.";
    WebhookId: "id", "The webhook.";
    EventId: "delivery", "The delivery.";
    FeatureName: "feature", "The feature; any text.";
}

/// A parameter of the path.
#[derive(Debug)]
pub(super) struct Path<T>(pub(super) T);

impl<T: PathParam> FromRequestParts<State> for Path<T> {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &State) -> Result<Self, Error> {
        path_parameter(parts, state, T::NAME).await.map(Self)
    }
}

impl<T: PathParam> IntoParams for Path<T> {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        let parameter = ParameterBuilder::new()
            .name(T::NAME)
            .parameter_in(ParameterIn::Path)
            .required(Required::True)
            .description(Some(T::DESCRIPTION))
            .schema(Some(T::schema()));
        vec![parameter.build()]
    }
}

/// The name of a feature.
#[derive(Debug)]
pub(super) struct FeatureName(pub(super) String);

impl FromStr for FeatureName {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(Self(text.to_owned()))
    }
}

impl PartialSchema for FeatureName {
    fn schema() -> RefOr<Schema> {
        let text = ObjectBuilder::new().schema_type(Type::String);
        text.min_length(Some(1)).examples(["sso"]).into()
    }
}

/// Parses the parameter that the route has under this name.
pub(super) async fn path_parameter<T>(
    parts: &mut Parts,
    state: &State,
    name: &str,
) -> Result<T, Error>
where
    T: FromStr<Err: Display>,
{
    let invalid = |name: &str, detail| Error::InvalidField {
        pointer: format!("/{name}"),
        detail,
    };
    let path = RawPathParams::from_request_parts(parts, state).await;
    let path = path.map_err(|error| {
        // Any parameter of the path may be at fault; only the text of the error names it.
        let text = error.body_text();
        let at_fault = text.split('`').nth(1).unwrap_or(name);
        invalid(at_fault, "must be text in UTF-8".to_owned())
    })?;
    let text = path.iter().find(|(parameter, _)| *parameter == name);
    let (_, text) = text.ok_or(Error::Internal)?;
    text.parse()
        .map_err(|rule| invalid(name, format!("{rule}; got {}", input::quoted(text))))
}
