//! How meters are shown to people.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::ids::{MeterId, MeterLabel, MeterUnit};
use super::input::not_null;

/// How a meter is shown; absent fields are inherited.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schema(example = json!({"label": "Language model", "unit": "tokens"}))]
pub struct MeterDisplay {
    /// What people call the meter.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "not_null"
    )]
    #[schema(nullable = false)]
    pub label: Option<MeterLabel>,
    /// What one unit is, in the plural.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "not_null"
    )]
    #[schema(nullable = false)]
    pub unit: Option<MeterUnit>,
}

/// How meters are shown, by meter.
pub type MeterDisplays = BTreeMap<MeterId, MeterDisplay>;

/// Overrides fields of some meters.
pub(super) fn override_with(inherited: &mut MeterDisplays, own: &MeterDisplays) {
    for (meter, own) in own {
        let display = inherited.entry(meter.clone()).or_default();
        if own.label.is_some() {
            display.label.clone_from(&own.label);
        }
        if own.unit.is_some() {
            display.unit.clone_from(&own.unit);
        }
    }
}
