//! The page of a plan that another administrator has changed while it was edited.

use std::collections::{BTreeMap, BTreeSet};

use axum::response::Response;
use serde_json::Value;

use super::lines::body;
use super::types::{Plan, api_path, page_path, percentages, plain, units};
use crate::dashboard::api::Failed;
use crate::dashboard::conflict::{Conflict, Row};
use crate::dashboard::form::Fields;
use crate::dashboard::frame::Section;
use crate::dashboard::session::Viewer;

/// What was entered next to what is stored.
pub(super) async fn conflict(
    viewer: &Viewer,
    id: &str,
    entered: &Fields,
) -> Result<Response, Failed> {
    let stored: Plan = viewer.api.get(&api_path(id)).await?;
    let own = page_path(id);
    let conflict = Conflict {
        subject: "this plan",
        section: Section::Plans,
        action: own.clone(),
        back: own,
        version: stored.version,
        rows: rows(entered.text("name"), &body(entered)?, &stored),
    };
    Ok(conflict.page(viewer, entered))
}

fn rows(name: &str, entered: &Value, stored: &Plan) -> Vec<Row> {
    let name = Row {
        label: "Name".to_owned(),
        entered: name.to_owned(),
        stored: stored.name.clone(),
    };
    let limits = each("Limit of", &entered["limits"], &stored.limits, |limit| {
        let warns = Some(percentages(limit)).filter(|text| !text.is_empty());
        let warns = warns.map_or(String::new(), |text| format!(", warns at {text}"));
        let enforcement = limit["enforcement"].as_str().unwrap_or("hard");
        format!("{} {enforcement}{warns}", units(limit))
    });
    let features = each("Feature", &entered["features"], &stored.features, plain);
    [name].into_iter().chain(limits).chain(features).collect()
}

/// A row for each name that either has.
fn each(
    label: &str,
    entered: &Value,
    stored: &BTreeMap<String, Value>,
    text: impl Fn(&Value) -> String,
) -> Vec<Row> {
    let names = entered.as_object().into_iter().flatten();
    let names: BTreeSet<&String> = names.map(|(name, _)| name).chain(stored.keys()).collect();
    let text = |value: Option<&Value>| value.map_or("–".to_owned(), &text);
    let row = |name: &String| Row {
        label: format!("{label} {name}"),
        entered: text(entered.get(name)),
        stored: text(stored.get(name)),
    };
    names.into_iter().map(row).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_limit_and_feature_that_either_has_is_a_row() {
        let stored = Plan {
            name: "Pro".to_owned(),
            limits: BTreeMap::from([("api".to_owned(), json!({"limit": 5, "warnAt": [80]}))]),
            features: BTreeMap::from([("sso".to_owned(), json!(true))]),
            ..Plan::default()
        };
        let entered = json!({"limits": {"jobs": {"limit": null, "enforcement": "soft"}}, "features": {"sso": false}});
        let rows = rows("Pro", &entered, &stored);
        let texts: Vec<(&str, &str, &str)> = rows
            .iter()
            .map(|row| {
                (
                    row.label.as_str(),
                    row.entered.as_str(),
                    row.stored.as_str(),
                )
            })
            .collect();
        assert_eq!(
            texts,
            [
                ("Name", "Pro", "Pro"),
                ("Limit of api", "–", "5 hard, warns at 80"),
                ("Limit of jobs", "unlimited soft", "–"),
                ("Feature sso", "false", "true"),
            ]
        );
    }
}
