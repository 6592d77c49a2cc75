//! Lists: one query for a page and one response for all of them.

use std::borrow::Cow;

use axum::Json;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::json;
use utoipa::openapi::schema::{ArrayBuilder, ObjectBuilder, OneOfBuilder, Type};
use utoipa::openapi::{Ref, RefOr, Schema};
use utoipa::{IntoParams, PartialSchema, ToSchema};

use crate::domain::input;

/// The query of a list that has no filters. Lists with filters have the same two fields.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Page<C: ToSchema> {
    #[serde(default)]
    #[param(inline)]
    pub(super) page_size: PageSize,
    /// The `nextCursor` of the previous page.
    pub(super) cursor: Option<C>,
}

/// A page of a list, and the cursor `C` of its last item.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct List<T, C = String> {
    data: Vec<T>,
    next_cursor: Option<C>,
}

impl<T, C> List<T, C> {
    /// A page, and the cursor of the next one, if there is one.
    pub(super) fn new(data: impl IntoIterator<Item: Into<T>>, next_cursor: Option<C>) -> Self {
        Self {
            data: data.into_iter().map(Into::into).collect(),
            next_cursor,
        }
    }

    /// A page of what was found with [`PageSize::and_one`].
    pub(super) fn page<F: Into<T>>(
        mut found: Vec<F>,
        size: PageSize,
        cursor: impl FnOnce(&F) -> C,
    ) -> Self {
        let more = found.len() > size.0 as usize;
        found.truncate(size.0 as usize);
        let next_cursor = found.last().filter(|_| more).map(cursor);
        Self::new(found, next_cursor)
    }
}

impl<T: Serialize, C: Serialize> IntoResponse for List<T, C> {
    fn into_response(self) -> Response {
        Json(self).into_response()
    }
}

impl<T: ToSchema, C: ToSchema> PartialSchema for List<T, C> {
    fn schema() -> RefOr<Schema> {
        let example = match T::schema() {
            RefOr::T(Schema::Object(item)) => item.example.or(item.examples.into_iter().next()),
            _ => None,
        };
        let cursor = OneOfBuilder::new()
            .item(ObjectBuilder::new().schema_type(Type::Null))
            .item(C::schema())
            .description(Some("Null on the last page."));
        ObjectBuilder::new()
            .property(
                "data",
                ArrayBuilder::new().items(Ref::from_schema_name(T::name())),
            )
            .required("data")
            .property("nextCursor", cursor)
            .required("nextCursor")
            .examples(example.map(|item| json!({"data": [item], "nextCursor": null})))
            .into()
    }
}

impl<T: ToSchema, C: ToSchema> ToSchema for List<T, C> {
    fn name() -> Cow<'static, str> {
        format!("{}List", T::name()).into()
    }

    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        schemas.push((T::name().into_owned(), T::schema()));
        T::schemas(schemas);
    }
}

/// The most items of a page: 1 to 1000, 100 by default.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PageSize(u32);

impl PageSize {
    const MAX: u32 = 1000;

    pub(super) fn get(self) -> u32 {
        self.0
    }

    /// One more than a page shows, which tells whether there is another page.
    pub(super) fn and_one(self) -> u32 {
        self.0 + 1
    }
}

impl Default for PageSize {
    fn default() -> Self {
        Self(100)
    }
}

impl<'de> Deserialize<'de> for PageSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let size = input::integer(deserializer, 1..=1000, "an integer from 1 to 1000")?;
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
