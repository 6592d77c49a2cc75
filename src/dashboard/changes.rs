//! What a change changed: the values of two JSON documents that differ.

use std::collections::BTreeSet;

use serde_json::Value;

/// The most values that are named.
const CHANGES_MAX: usize = 8;

/// The values that differ, by their path.
pub(super) fn changes(before: &Value, after: &Value) -> Vec<String> {
    let mut changes = Vec::new();
    collect(before, after, "", &mut changes);
    changes.truncate(CHANGES_MAX);
    changes
}

fn collect(before: &Value, after: &Value, path: &str, changes: &mut Vec<String>) {
    if before == after {
        return;
    }
    let (old, new) = (before.as_object(), after.as_object());
    if old.is_none() && new.is_none() {
        let text = |value: &Value| match value {
            Value::Null => "–".to_owned(),
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        changes.push(format!("{path} {} → {}", text(before), text(after)));
        return;
    }
    let keys = old.into_iter().chain(new).flat_map(|object| object.keys());
    let keys: BTreeSet<&String> = keys.collect();
    for key in keys {
        let path = if path.is_empty() {
            key.clone()
        } else {
            format!("{path}.{key}")
        };
        collect(&before[key.as_str()], &after[key.as_str()], &path, changes);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_values_that_differ_are_listed_by_their_path() {
        let before = json!({"planId": "free", "limits": {"api": {"limit": 5}}, "same": [1]});
        let after = json!({"planId": "pro", "limits": {"api": {"limit": null}}, "same": [1]});
        assert_eq!(
            changes(&before, &after),
            ["limits.api.limit 5 → –", "planId free → pro"]
        );
        assert_eq!(changes(&Value::Null, &json!({"a": "b"})), ["a – → b"]);
        assert!(changes(&after, &after).is_empty());
    }
}
