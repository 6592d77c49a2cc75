//! Bodies that the document tells apart where one type reads them all.

use serde_json::{Value, json};
use utoipa::openapi::schema::{
    AdditionalProperties, ObjectBuilder, OneOfBuilder, Schema, SchemaType, Type,
};
use utoipa::openapi::{Object, Ref, RefOr};
use utoipa::{PartialSchema, ToSchema};

use crate::domain::ids::{METERS_MAX, MeterId};
use crate::domain::policy::{Feature, OrganizationSettings};
use crate::http::routes::counting::Charges;
use crate::http::routes::organizations::LimitChange;

type Schemas = Vec<(String, RefOr<Schema>)>;

macro_rules! charges {
    ($(#[$doc:meta])* $name:ident, $title:literal, $own:expr, $examples:expr) => {
        $(#[$doc])*
        pub(crate) struct $name;

        impl PartialSchema for $name {
            fn schema() -> RefOr<Schema> {
                charges($title, $own, $examples)
            }
        }

        impl ToSchema for $name {
            fn schemas(schemas: &mut Schemas) {
                Charges::schemas(schemas);
            }
        }
    };
}

charges!(
    /// What a track takes.
    TrackBody,
    "What to count.",
    Some("timestamp"),
    [
        json!({"organizationId": "org_123"}),
        json!({"organizationId": "org_123", "meter": "tokens", "amount": 1200}),
        json!({"organizationId": "org_123", "meters": {"api": 1, "tokens": 1200}}),
    ]
);

charges!(
    /// What a consume and a check take.
    ConsumeBody,
    "What to count, if it fits.",
    Some("require"),
    [
        json!({"organizationId": "org_123", "amount": 2}),
        json!({"organizationId": "org_123", "meters": {"api": 1, "tokens": 1200}}),
        json!({"organizationId": "org_123", "require": {"tokens": 1}}),
    ]
);

charges!(
    /// What a refund takes.
    RefundBody,
    "What to give back.",
    None,
    [
        json!({"organizationId": "org_123", "amount": 2}),
        json!({"organizationId": "org_123", "meters": {"api": 1, "tokens": 1200}}),
    ]
);

/// The fields of [`Charges`] that an operation takes: one meter, or several, and a field of its own.
fn charges(
    description: &str,
    own: Option<&str>,
    examples: impl IntoIterator<Item = Value>,
) -> RefOr<Schema> {
    let all = match Charges::schema() {
        RefOr::T(Schema::Object(all)) => all,
        _ => Object::new(),
    };
    let pick = |title: &str, required: &[&str], optional: &[&str]| {
        let mut picked = ObjectBuilder::new()
            .title(Some(title))
            .additional_properties(Some(AdditionalProperties::FreeForm(false)));
        for name in required.iter().chain(optional).copied().chain(own) {
            if let Some(field) = all.properties.get(name) {
                let field = field.clone();
                let required = required.contains(&name);
                picked = picked.property(name, if required { present(field) } else { field });
            }
        }
        required
            .iter()
            .fold(picked, |picked, name| picked.required(*name))
    };
    OneOfBuilder::new()
        .description(Some(description))
        .item(pick("One meter", &["organizationId"], &["meter", "amount"]))
        .item(pick("Several meters", &["organizationId", "meters"], &[]))
        .examples(examples)
        .into()
}

/// A field that may not be empty, as one that may be left out may.
fn present(mut field: RefOr<Schema>) -> RefOr<Schema> {
    if let RefOr::T(Schema::Object(map)) = &mut field {
        map.min_properties = Some(1);
        map.max_properties = Some(METERS_MAX);
    }
    field
}

/// What a patch of limits takes: a change for each meter, or null.
pub(crate) struct LimitPatch;

impl PartialSchema for LimitPatch {
    fn schema() -> RefOr<Schema> {
        let change = OneOfBuilder::new()
            .item(ObjectBuilder::new().schema_type(Type::Null))
            .item(Ref::from_schema_name(LimitChange::name()));
        ObjectBuilder::new()
            .schema_type(SchemaType::new(Type::Object))
            .description(Some(
                "By meter; null removes all that is the organization's own.",
            ))
            .property_names(Some(MeterId::schema()))
            .additional_properties(Some(RefOr::T(Schema::OneOf(change.build()))))
            .max_properties(Some(METERS_MAX))
            .examples([
                json!({"tokens": {"limit": 1500, "enforcement": "hard", "warnAt": [80, 100]}}),
                json!({"api": {"enforcement": "soft"}}),
                json!({"api": {"limit": null}}),
                json!({"api": {"temporary": {"limit": 12000, "until": "2040-01-01T00:00:00Z"}}}),
                json!({"api": {"temporary": null}}),
                json!({"api": null}),
            ])
            .into()
    }
}

impl ToSchema for LimitPatch {
    fn schemas(schemas: &mut Schemas) {
        schemas.push((LimitChange::name().into_owned(), LimitChange::schema()));
        LimitChange::schemas(schemas);
    }
}

/// What a patch of settings takes: any of them, or null.
pub(crate) struct SettingsPatch;

impl PartialSchema for SettingsPatch {
    fn schema() -> RefOr<Schema> {
        let mut patch = match OrganizationSettings::schema() {
            RefOr::T(Schema::Object(settings)) => settings,
            _ => Object::new(),
        };
        patch.description = Some(
            "Changes of an organization's settings: what is absent stays, null is the default again.".to_owned(),
        );
        // What is absent is no default here, but stays.
        patch.default = None;
        for field in patch.properties.values_mut() {
            if let RefOr::T(Schema::Object(field)) = field {
                field.default = None;
            }
        }
        let value = OneOfBuilder::new()
            .item(ObjectBuilder::new().schema_type(Type::Null))
            .item(Ref::from_schema_name(Feature::name()));
        let collection = || SchemaType::from_iter([Type::Object, Type::Null]);
        let features = ObjectBuilder::new()
            .schema_type(collection())
            .description(Some("Features by name; null removes one."))
            .additional_properties(Some(RefOr::T(Schema::OneOf(value.build()))));
        let metadata = ObjectBuilder::new()
            .schema_type(collection())
            .description(Some("Merged at every depth; null removes a name."));
        for (name, field) in [("features", features), ("metadata", metadata)] {
            patch.properties.insert(name.to_owned(), field.into());
        }
        patch.example = None;
        patch.examples = vec![
            json!({"resetDay": 15, "features": {"sso": true, "seats": null}, "metadata": {"stripeCustomer": "cus_1"}}),
            json!({"resetDay": null, "features": null}),
            json!({}),
        ];
        patch.into()
    }
}

impl ToSchema for SettingsPatch {
    fn schemas(schemas: &mut Schemas) {
        OrganizationSettings::schemas(schemas);
    }
}
