//! Merge patches (RFC 7386) of an organization's settings: absent fields stay, `null` resets to the default.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use chrono_tz::Tz;
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

use super::calendar::Zone;
use super::display::MeterDisplay;
use super::feature::Feature;
use super::ids::{MeterId, PlanId};
use super::input::{Day, Instant, Month, nullable};
use super::organization::OrganizationSettings;
use super::period::{ResetMode, ResetPeriod};

/// The change of one setting.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum Change<T> {
    /// Absent: stays.
    #[default]
    Keep,
    /// `null`: back to the default.
    Unset,
    /// A new value, or one to merge.
    Set(T),
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Change<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Option::deserialize(deserializer).map(Self::from)
    }
}

impl<T> From<Option<T>> for Change<T> {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Unset, Self::Set)
    }
}

impl<T> Change<T> {
    fn apply(self, to: &mut Option<T>) {
        match self {
            Self::Keep => {}
            Self::Unset => *to = None,
            Self::Set(value) => *to = Some(value),
        }
    }

    /// For collections: merges a new value.
    fn merge<C: Default>(self, into: &mut C, merge: impl FnOnce(&mut C, T)) {
        match self {
            Self::Keep => {}
            Self::Unset => *into = C::default(),
            Self::Set(changes) => merge(into, changes),
        }
    }
}

/// A patch of an organization's settings.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct OrganizationPatch {
    /// The organization's plan.
    pub plan_id: Change<PlanId>,
    /// Merged by name; `null` removes a feature.
    pub features: Change<BTreeMap<String, Option<Feature>>>,
    /// Merged by meter; `null` removes what the organization sets.
    pub meters: Change<BTreeMap<MeterId, Option<MeterDisplay>>>,
    /// What ends a period.
    pub reset_mode: Change<ResetMode>,
    /// How long a period is.
    pub reset_period: Change<ResetPeriod>,
    /// The day on which periods begin.
    #[serde(deserialize_with = "nullable::<Day, _, _>")]
    pub reset_day: Change<u8>,
    /// The month in which yearly periods begin.
    #[serde(deserialize_with = "nullable::<Month, _, _>")]
    pub reset_month: Change<u8>,
    /// An instant; every period begins at its day and time of day.
    #[serde(deserialize_with = "nullable::<Instant, _, _>")]
    pub anchor: Change<DateTime<Utc>>,
    /// The IANA name of the time zone.
    #[serde(deserialize_with = "nullable::<Zone, _, _>")]
    pub time_zone: Change<Tz>,
    /// Merged at every depth; `null` removes a member.
    pub metadata: Change<Map<String, Value>>,
}

impl OrganizationPatch {
    /// The patched settings.
    #[must_use]
    pub fn apply(self, settings: &OrganizationSettings) -> OrganizationSettings {
        let mut settings = settings.clone();
        self.plan_id.apply(&mut settings.plan_id);
        self.reset_mode.apply(&mut settings.reset_mode);
        self.reset_period.apply(&mut settings.reset_period);
        self.reset_day.apply(&mut settings.reset_day);
        self.reset_month.apply(&mut settings.reset_month);
        self.anchor.apply(&mut settings.anchor);
        self.time_zone.apply(&mut settings.time_zone);
        self.features.merge(&mut settings.features, merge_named);
        self.meters.merge(&mut settings.meters, merge_named);
        self.metadata.merge(&mut settings.metadata, merge);
        settings
    }
}

fn merge_named<N: Ord, T>(own: &mut BTreeMap<N, T>, changes: BTreeMap<N, Option<T>>) {
    for (name, change) in changes {
        match change {
            Some(value) => own.insert(name, value),
            None => own.remove(&name),
        };
    }
}

/// RFC 7386, section 2.
fn merge(own: &mut Map<String, Value>, patch: Map<String, Value>) {
    for (name, value) in patch {
        match value {
            Value::Null => {
                own.remove(&name);
            }
            Value::Object(patch) => {
                let member = own.entry(name).or_insert(Value::Null);
                if !member.is_object() {
                    *member = Value::Object(Map::new());
                }
                if let Value::Object(member) = member {
                    merge(member, patch);
                }
            }
            value => {
                own.insert(name, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn patched(before: Value, patch: Value) -> Value {
        let before: OrganizationSettings = serde_json::from_value(before).unwrap();
        let patch: OrganizationPatch = serde_json::from_value(patch).unwrap();
        serde_json::to_value(patch.apply(&before)).unwrap()
    }

    fn settings(given: Value) -> Value {
        let settings: OrganizationSettings = serde_json::from_value(given).unwrap();
        serde_json::to_value(settings).unwrap()
    }

    #[test]
    fn absent_fields_stay_and_null_resets_to_the_default() {
        let before = json!({
            "planId": "pro", "resetMode": "scheduled", "resetPeriod": "yearly", "resetDay": 3, "resetMonth": 4,
            "timeZone": "Europe/Berlin", "features": {"sso": true}, "metadata": {"a": 1}
        });
        assert_eq!(patched(before.clone(), json!({})), settings(before.clone()));
        assert_eq!(
            patched(before.clone(), json!({"resetDay": 5, "resetMonth": null})),
            settings(json!({
                "planId": "pro", "resetMode": "scheduled", "resetPeriod": "yearly", "resetDay": 5,
                "timeZone": "Europe/Berlin", "features": {"sso": true}, "metadata": {"a": 1}
            }))
        );
        let nothing = json!({
            "planId": null, "resetMode": null, "resetPeriod": null, "resetDay": null, "resetMonth": null,
            "anchor": null, "timeZone": null, "features": null, "metadata": null
        });
        assert_eq!(patched(before, nothing), settings(json!({})));
    }

    #[test]
    fn features_are_merged_by_name() {
        assert_eq!(
            patched(
                json!({"features": {"sso": true, "seats": 5}}),
                json!({"features": {"seats": null, "support": "email", "none": null}})
            ),
            settings(json!({"features": {"sso": true, "support": "email"}}))
        );
    }

    /// The examples of RFC 7386, appendix A, as far as they are objects.
    #[test]
    fn metadata_is_merged_as_in_the_rfc() {
        for (before, patch, after) in [
            (json!({"a": "b"}), json!({"a": "c"}), json!({"a": "c"})),
            (
                json!({"a": "b"}),
                json!({"b": "c"}),
                json!({"a": "b", "b": "c"}),
            ),
            (json!({"a": "b"}), json!({"a": null}), json!({})),
            (
                json!({"a": "b", "b": "c"}),
                json!({"a": null}),
                json!({"b": "c"}),
            ),
            (json!({"a": ["b"]}), json!({"a": "c"}), json!({"a": "c"})),
            (json!({"a": "c"}), json!({"a": ["b"]}), json!({"a": ["b"]})),
            (
                json!({"a": {"b": "c"}}),
                json!({"a": {"b": "d", "c": null}}),
                json!({"a": {"b": "d"}}),
            ),
            (
                json!({"a": [{"b": "c"}]}),
                json!({"a": [1]}),
                json!({"a": [1]}),
            ),
            (
                json!({"e": null}),
                json!({"a": 1}),
                json!({"e": null, "a": 1}),
            ),
            (
                json!({}),
                json!({"a": {"bb": {"ccc": null}}}),
                json!({"a": {"bb": {}}}),
            ),
        ] {
            assert_eq!(
                patched(json!({"metadata": before}), json!({"metadata": patch})),
                settings(json!({"metadata": after})),
            );
        }
    }
}
