//! The bodies of patches: an organization's settings and limits.

use serde::Deserialize;
use serde_json::json;
use utoipa::openapi::schema::{ObjectBuilder, OneOfBuilder, Schema, SchemaType, Type};
use utoipa::openapi::{Object, Ref, RefOr};
use utoipa::{PartialSchema, ToSchema};

use crate::admin;
use crate::domain::display::MeterDisplay;
use crate::domain::feature::Feature;
use crate::domain::ids::{METERS_MAX, MeterId};
use crate::domain::input::{double_option, not_null, optional};
use crate::domain::limit::{
    Enforcement, Limit, LimitOverride, OnOutage, TemporaryLimit, WarnAt, warn_at,
};
use crate::domain::organization::OrganizationSettings;
use crate::domain::patch::Change;
use crate::domain::quantity::Count;

/// A change of one meter's limit; absent fields stay.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(in crate::http) struct LimitChange {
    /// Units included in a period; null is unlimited, 0 is nothing.
    #[serde(default, deserialize_with = "double_option")]
    #[schema(value_type = Option<Count>)]
    limit: Option<Limit>,
    /// What happens beyond the limit.
    #[serde(default, deserialize_with = "not_null")]
    #[schema(nullable = false)]
    enforcement: Option<Enforcement>,
    /// Percentages of the limit at which to notify, ascending.
    #[serde(default, deserialize_with = "optional::<WarnAt, _>")]
    #[schema(schema_with = warn_at)]
    warn_at: Option<Vec<u16>>,
    /// What a consume does while the counters are unreachable.
    #[serde(default, deserialize_with = "not_null")]
    #[schema(nullable = false)]
    on_outage: Option<OnOutage>,
    /// A limit that applies for a time instead of the lasting one; null ends it.
    #[serde(default)]
    #[schema(value_type = Option<TemporaryLimit>)]
    temporary: Change<TemporaryLimit>,
}

impl From<LimitChange> for admin::LimitChange {
    fn from(change: LimitChange) -> Self {
        Self {
            lasting: LimitOverride {
                limit: change.limit,
                enforcement: change.enforcement,
                warn_at: change.warn_at,
                on_outage: change.on_outage,
            },
            temporary: change.temporary,
        }
    }
}

/// The body of a patch of limits, for the OpenAPI document: a change for each meter, or null.
pub(in crate::http) struct LimitPatch;

impl PartialSchema for LimitPatch {
    fn schema() -> RefOr<Schema> {
        let change = OneOfBuilder::new()
            .item(ObjectBuilder::new().schema_type(Type::Null))
            .item(Ref::from_schema_name(LimitChange::name()));
        ObjectBuilder::new()
            .schema_type(SchemaType::new(Type::Object))
            .description(Some("By meter; null removes the organization's own limit."))
            .property_names(Some(MeterId::schema()))
            .additional_properties(Some(RefOr::T(Schema::OneOf(change.build()))))
            .max_properties(Some(METERS_MAX))
            .examples([
                json!({"tokens": {"limit": 1500, "enforcement": "hard", "warnAt": [80, 100]}}),
                json!({"api": {"enforcement": "soft", "onOutage": "allow"}}),
                json!({"api": {"limit": null}}),
                json!({"api": {"temporary": {"limit": 12000, "until": "2040-01-01T00:00:00Z"}}}),
                json!({"api": {"temporary": null}}),
                json!({"api": null}),
            ])
            .into()
    }
}

impl ToSchema for LimitPatch {
    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        schemas.push((LimitChange::name().into_owned(), LimitChange::schema()));
        LimitChange::schemas(schemas);
    }
}

/// The body of a patch of settings, for the OpenAPI document: any of them, or null.
pub(in crate::http) struct SettingsPatch;

impl PartialSchema for SettingsPatch {
    fn schema() -> RefOr<Schema> {
        let mut patch = match OrganizationSettings::schema() {
            RefOr::T(Schema::Object(settings)) => settings,
            _ => Object::new(),
        };
        patch.description = Some(
            "Changes of an organization's settings: absent fields stay, null restores the default."
                .to_owned(),
        );
        // They have a patch of their own.
        patch.properties.shift_remove("limits");
        // Absent fields stay, so they have no default.
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
        let display = OneOfBuilder::new()
            .item(ObjectBuilder::new().schema_type(Type::Null))
            .item(Ref::from_schema_name(MeterDisplay::name()));
        let meters = ObjectBuilder::new()
            .schema_type(collection())
            .description(Some("By meter; null removes what the organization sets."))
            .property_names(Some(MeterId::schema()))
            .additional_properties(Some(RefOr::T(Schema::OneOf(display.build()))))
            .max_properties(Some(METERS_MAX));
        let metadata = ObjectBuilder::new()
            .schema_type(collection())
            .description(Some("Merged at every depth; null removes a name."));
        for (name, field) in [
            ("features", features),
            ("meters", meters),
            ("metadata", metadata),
        ] {
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
    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        OrganizationSettings::schemas(schemas);
    }
}
