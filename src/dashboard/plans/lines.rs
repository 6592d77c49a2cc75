//! The lines of a plan's form, and the plan that they say.

use serde_json::{Map, Value, json};

use super::types::{Plan, percentages, plain, units};
use crate::dashboard::api::Failed;
use crate::dashboard::form::Fields;
use crate::dashboard::form_view::FormView;

/// The most lines of limits, or of features, that a form has.
const LINES_MAX: usize = 64;

/// The names of the fields of a limit.
pub(super) struct LimitLine {
    pub(super) meter: String,
    pub(super) limit: String,
    pub(super) enforcement: String,
    pub(super) warn_at: String,
    pub(super) on_outage: String,
}

impl LimitLine {
    fn new(line: usize) -> Self {
        Self {
            meter: format!("meter-{line}"),
            limit: format!("limit-{line}"),
            enforcement: format!("enforcement-{line}"),
            warn_at: format!("warnAt-{line}"),
            on_outage: format!("onOutage-{line}"),
        }
    }

    fn is_entered(&self, fields: &Fields) -> bool {
        [&self.meter, &self.limit, &self.warn_at]
            .into_iter()
            .any(|name| fields.given(name).is_some())
    }

    /// The limit that is entered.
    fn read(&self, fields: &Fields) -> Value {
        let enforcement = fields.text(&self.enforcement);
        let mut limit = json!({"limit": fields.limit(&self.limit), "enforcement": enforcement});
        if let Some(percentages) = fields.percentages(&self.warn_at) {
            limit["warnAt"] = percentages;
        }
        if let Some(on_outage) = fields.given(&self.on_outage) {
            limit["onOutage"] = json!(on_outage);
        }
        limit
    }

    fn add(&self, form: FormView, meter: &str, limit: &Value) -> FormView {
        let enforcement = limit["enforcement"].as_str().unwrap_or("hard");
        let units = Some(units(limit)).filter(|_| !limit["limit"].is_null());
        form.field(&self.meter, "Meter", meter)
            .field(&self.limit, "Limit", units.unwrap_or_default())
            .field(&self.enforcement, "When reached", enforcement)
            .field(&self.warn_at, "Warn at, %", percentages(limit))
            .field(
                &self.on_outage,
                "In an outage",
                limit["onOutage"].as_str().unwrap_or_default(),
            )
    }
}

/// The names of the fields of a feature.
pub(super) struct FeatureLine {
    pub(super) feature: String,
    pub(super) value: String,
}

impl FeatureLine {
    fn new(line: usize) -> Self {
        Self {
            feature: format!("feature-{line}"),
            value: format!("value-{line}"),
        }
    }

    fn is_entered(&self, fields: &Fields) -> bool {
        fields.given(&self.feature).is_some() || fields.given(&self.value).is_some()
    }

    /// The value that is entered: on or off, a number, or a text.
    fn read(&self, fields: &Fields) -> Value {
        match fields.text(&self.value) {
            "true" | "on" | "On" => json!(true),
            "false" | "off" | "Off" => json!(false),
            text => text
                .parse::<u64>()
                .map_or_else(|_| json!(text), |number| json!(number)),
        }
    }

    fn add(&self, form: FormView, name: &str, value: &str) -> FormView {
        form.field(&self.feature, "Name", name)
            .field(&self.value, "Value", value)
    }
}

/// The form of a plan, with an empty line for another limit and another feature.
pub(super) struct Lines {
    pub(super) form: FormView,
    pub(super) limits: Vec<LimitLine>,
    pub(super) features: Vec<FeatureLine>,
}

impl Lines {
    fn new(name: &str, id: &str, version: &str) -> Self {
        Self {
            form: FormView::new("plan")
                .field("version", "", version)
                .field("name", "Name", name)
                .field("id", "Id", id),
            limits: Vec::new(),
            features: Vec::new(),
        }
    }

    /// What is stored.
    pub(super) fn stored(plan: &Plan) -> Self {
        let mut lines = Self::new(&plan.name, &plan.id, &plan.version.to_string());
        let another = (&String::new(), &Value::Null);
        for (meter, limit) in plan.limits.iter().chain([another]) {
            let line = LimitLine::new(lines.limits.len());
            lines.form = line.add(lines.form, meter, limit);
            lines.limits.push(line);
        }
        let another = (&String::new(), &json!(""));
        for (name, value) in plan.features.iter().chain([another]) {
            let line = FeatureLine::new(lines.features.len());
            lines.form = line.add(lines.form, name, &plain(value));
            lines.features.push(line);
        }
        lines
    }

    /// What was entered, in the same lines.
    pub(super) fn entered(fields: &Fields) -> Self {
        let mut lines = Self::new("", "", "");
        let limits = numbers(|line| LimitLine::new(line).is_entered(fields));
        let features = numbers(|line| FeatureLine::new(line).is_entered(fields));
        lines.limits = limits.into_iter().map(LimitLine::new).collect();
        lines.features = features.into_iter().map(FeatureLine::new).collect();
        for line in &lines.limits {
            lines.form = line.add(lines.form, "", &Value::Null);
        }
        for line in &lines.features {
            lines.form = line.add(lines.form, "", "");
        }
        lines.form = lines.form.filled(fields);
        lines
    }
}

/// The lines that were entered, and another.
fn numbers(is_entered: impl Fn(usize) -> bool) -> Vec<usize> {
    let mut lines: Vec<usize> = (0..LINES_MAX).filter(|line| is_entered(*line)).collect();
    let next = lines.last().map_or(0, |last| last + 1);
    lines.extend(Some(next).filter(|next| *next < LINES_MAX));
    lines
}

/// The body of the API's PUT.
pub(super) fn body(fields: &Fields) -> Result<Value, Failed> {
    let (mut limits, mut features) = (Map::new(), Map::new());
    let twice = |field: &str| Failed::invalid(field, "is in an earlier line, too");
    for line in 0..LINES_MAX {
        let (limit, feature) = (LimitLine::new(line), FeatureLine::new(line));
        if let Some(meter) = fields.given(&limit.meter)
            && limits
                .insert(meter.to_owned(), limit.read(fields))
                .is_some()
        {
            return Err(twice(&limit.meter));
        }
        if let Some(name) = fields.given(&feature.feature)
            && features
                .insert(name.to_owned(), feature.read(fields))
                .is_some()
        {
            return Err(twice(&feature.feature));
        }
    }
    let mut body = json!({"limits": limits, "features": features});
    if let Some(name) = fields.given("name") {
        body["name"] = json!(name);
    }
    Ok(body)
}

/// The field that a pointer of the API means, such as `/limits/api/warnAt/0`.
pub(super) fn field_at(pointer: &str, fields: &Fields) -> String {
    let mut names = pointer.split('/').skip(1);
    let (kind, key, part) = (names.next(), names.next(), names.next());
    let key = key.map(|key| key.replace("~1", "/").replace("~0", "~"));
    let (prefix, part) = match kind {
        Some("limits") => ("meter", part.unwrap_or("meter")),
        Some("features") => ("feature", "value"),
        _ => return pointer.to_owned(),
    };
    let is_line = |line: &usize| key.as_deref() == fields.given(&format!("{prefix}-{line}"));
    let line = (0..LINES_MAX).find(is_line);
    line.map_or_else(String::new, |line| format!("{part}-{line}"))
}
