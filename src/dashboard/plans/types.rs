//! Plans, as the API says, and how they are written.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use crate::dashboard::api::encode;
use crate::dashboard::format::number;

#[derive(Debug, Default, Deserialize)]
pub(super) struct Plan {
    pub(super) id: String,
    pub(super) name: String,
    pub(super) limits: BTreeMap<String, Value>,
    pub(super) features: BTreeMap<String, Value>,
    #[serde(default)]
    pub(super) meters: Value,
    pub(super) version: u64,
}

impl Plan {
    pub(super) fn path(&self) -> String {
        page_path(&self.id)
    }

    /// Its limits in a line.
    pub(super) fn limits_text(&self) -> String {
        let text = |(meter, limit): (&String, &Value)| {
            let enforcement = limit["enforcement"].as_str().unwrap_or("hard");
            format!("{meter} {} {enforcement}", units(limit))
        };
        let all: Vec<String> = self.limits.iter().map(text).collect();
        if all.is_empty() {
            "–".to_owned()
        } else {
            all.join(" · ")
        }
    }

    /// Its features in a line.
    pub(super) fn features_text(&self) -> String {
        let text = |(name, value): (&String, &Value)| match value {
            Value::Bool(true) => Some(name.clone()),
            Value::Bool(false) => None,
            other => Some(format!("{name} {}", plain(other))),
        };
        let all: Vec<String> = self.features.iter().filter_map(text).collect();
        if all.is_empty() {
            "–".to_owned()
        } else {
            all.join(", ")
        }
    }
}

/// The path of a plan in the API.
pub(super) fn api_path(id: &str) -> String {
    format!("/v1/plans/{}", encode(id))
}

/// The path of its page.
pub(super) fn page_path(id: &str) -> String {
    format!("/dashboard/plans/{}", encode(id))
}

/// A value of a feature as people write it.
pub(super) fn plain(value: &Value) -> String {
    value
        .as_str()
        .map_or_else(|| value.to_string(), ToOwned::to_owned)
}

/// The units of a limit.
pub(super) fn units(limit: &Value) -> String {
    match &limit["limit"] {
        Value::Null => "unlimited".to_owned(),
        units => units.as_u64().map_or_else(|| plain(units), number),
    }
}

/// The percentages at which a limit warns.
pub(super) fn percentages(limit: &Value) -> String {
    let all = limit["warnAt"].as_array().into_iter().flatten();
    all.map(plain).collect::<Vec<_>>().join(", ")
}
