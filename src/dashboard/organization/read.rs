//! What several pages of an organization read.

use serde_json::{Map, Value};

use super::types::Settings;
use crate::dashboard::api::{Failed, encode, unless_away};
use crate::dashboard::session::Viewer;

/// The path of an organization in the API.
pub(super) fn api_path(id: &str) -> String {
    format!("/v1/organizations/{}", encode(id))
}

/// The path of its page.
pub(super) fn page_path(id: &str) -> String {
    format!("/dashboard/organizations/{}", encode(id))
}

/// The settings. A read key may not see all of them, and Redis does not have all: they lack the metadata.
pub(super) async fn settings(viewer: &Viewer, path: &str) -> Result<Settings, Failed> {
    if viewer.is_admin
        && let Some(settings) = unless_away(viewer.api.get(path).await)?
    {
        return Ok(settings);
    }
    let (usage, limits) = (format!("{path}/usage"), format!("{path}/limits"));
    let (mut seen, limits): (Value, Value) =
        futures::try_join!(viewer.api.get(&usage), viewer.api.get(&limits))?;
    for (name, value) in [
        ("limits", limits["limits"].clone()),
        ("version", limits["version"].clone()),
        ("metadata", Value::Object(Map::new())),
    ] {
        seen[name] = value;
    }
    serde_json::from_value(seen).map_err(Failed::internal)
}
