//! Plans.

use std::collections::BTreeMap;

use askama::Template;
use axum::Router;
use axum::extract::{Path, Query};
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::api::{Answer, Failed, List, encode};
use super::filters;
use super::form::{Fields, Posted, see_other};
use super::format::{number, sentence};
use super::frame::{Frame, Rendered, Section};
use super::session::Viewer;
use super::state::Dashboard;

/// The most lines of limits, or of features, that a form has.
const LINES_MAX: usize = 64;

/// The routes of these pages.
pub(super) fn routes() -> Router<Dashboard> {
    Router::new()
        .route("/dashboard/plans", get(list))
        .route("/dashboard/plans/{id}", get(show).post(save))
}

#[derive(Debug, Default, Deserialize)]
struct Plan {
    id: String,
    name: String,
    limits: BTreeMap<String, Value>,
    features: BTreeMap<String, Value>,
    #[serde(default)]
    meters: Value,
    version: u64,
}

impl Plan {
    fn path(&self) -> String {
        format!("/dashboard/plans/{}", encode(&self.id))
    }

    /// Its limits in a line.
    fn limits_text(&self) -> String {
        let text = |(meter, limit): (&String, &Value)| {
            let units = limit["limit"]
                .as_u64()
                .map_or("unlimited".to_owned(), number);
            format!(
                "{meter} {units} {}",
                limit["enforcement"].as_str().unwrap_or("hard")
            )
        };
        let all: Vec<String> = self.limits.iter().map(text).collect();
        if all.is_empty() {
            "–".to_owned()
        } else {
            all.join(" · ")
        }
    }

    /// Its features in a line.
    fn features_text(&self) -> String {
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

/// A value of a feature as people write it.
fn plain(value: &Value) -> String {
    value
        .as_str()
        .map_or_else(|| value.to_string(), ToOwned::to_owned)
}

#[derive(Template)]
#[template(path = "plans.html")]
struct ListPage {
    frame: Frame,
    plans: Vec<(Plan, u64)>,
}

async fn list(viewer: Viewer) -> Result<Rendered<ListPage>, Response> {
    let read = async {
        futures::try_join!(
            viewer.api.get::<List<Plan>>("/v1/plans?pageSize=200"),
            viewer.api.get::<Value>("/v1/summary")
        )
    };
    let (plans, summary) = read.await.map_err(viewer.fail())?;
    let on_plan = |plan: &Plan| {
        summary["organizations"]["byPlan"][plan.id.as_str()]
            .as_u64()
            .unwrap_or(0)
    };
    Ok(Rendered(ListPage {
        frame: viewer.frame(Section::Plans, "Plans"),
        plans: plans
            .data
            .into_iter()
            .map(|plan| {
                let count = on_plan(&plan);
                (plan, count)
            })
            .collect(),
    }))
}

/// A limit in the form.
#[derive(Debug, Default)]
struct LimitLine {
    meter: String,
    limit: String,
    is_soft: bool,
    warn_at: String,
}

#[derive(Template)]
#[template(path = "plan.html")]
struct PlanPage {
    frame: Frame,
    id: String,
    name: String,
    is_new: bool,
    version: u64,
    limits: Vec<LimitLine>,
    features: Vec<(String, String)>,
    problem: Option<String>,
    /// How many organizations the entered plan would reach.
    reaches: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Asked {
    id: String,
}

async fn show(
    viewer: Viewer,
    Path(id): Path<String>,
    Query(asked): Query<Asked>,
) -> Result<Rendered<PlanPage>, Response> {
    let (plan, is_new) = if id == "new" {
        (
            Plan {
                id: asked.id,
                ..Plan::default()
            },
            true,
        )
    } else {
        (
            viewer
                .api
                .get(&api_path(&id))
                .await
                .map_err(viewer.fail())?,
            false,
        )
    };
    Ok(Rendered(page(&viewer, &plan, is_new)))
}

fn api_path(id: &str) -> String {
    format!("/v1/plans/{}", encode(id))
}

fn page(viewer: &Viewer, plan: &Plan, is_new: bool) -> PlanPage {
    let line = |(meter, limit): (&String, &Value)| LimitLine {
        meter: meter.clone(),
        limit: limit["limit"].as_u64().map_or(String::new(), number),
        is_soft: limit["enforcement"] == "soft",
        warn_at: limit["warnAt"]
            .as_array()
            .into_iter()
            .flatten()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join(", "),
    };
    let title = if is_new {
        "New plan".to_owned()
    } else {
        format!("Plan {}", plan.name)
    };
    PlanPage {
        frame: viewer.frame(Section::Plans, title),
        id: plan.id.clone(),
        name: plan.name.clone(),
        is_new,
        version: plan.version,
        limits: plan
            .limits
            .iter()
            .map(line)
            .chain([LimitLine::default()])
            .collect(),
        features: plan
            .features
            .iter()
            .map(|(name, value)| (name.clone(), plain(value)))
            .chain([<(String, String)>::default()])
            .collect(),
        problem: None,
        reaches: None,
    }
}

async fn save(Path(path_id): Path<String>, Posted(viewer, fields): Posted) -> Response {
    let is_new = path_id == "new";
    let id = if is_new {
        fields.text("id").to_owned()
    } else {
        path_id
    };
    let saving = fields.text("do") != "check";
    let sent = put(&viewer, &id, is_new, &fields, !saving).await;
    match sent {
        Ok(_) if saving => see_other(
            &format!("/dashboard/plans/{}", encode(&id)),
            "The plan is saved. It holds for its organizations within 2 seconds.",
        ),
        Ok(answer) => {
            let reaches = answer.body["dryRun"]["organizations"].as_u64();
            let page = PlanPage {
                reaches,
                ..entered(&viewer, id, is_new, &fields)
            };
            Rendered(page).into_response()
        }
        Err(failed) if failed.is_refusal() => {
            let problem = match failed.status {
                StatusCode::PRECONDITION_FAILED if is_new => "There is a plan with this id already.".to_owned(),
                StatusCode::PRECONDITION_FAILED => "Somebody else changed this plan while you were editing. Nothing was saved; open it again to see their values.".to_owned(),
                _ => sentence(format!("{} {}", failed.pointer().trim_start_matches('/').replace('/', " "), failed.detail()).trim()),
            };
            let page = PlanPage {
                problem: Some(problem),
                ..entered(&viewer, id, is_new, &fields)
            };
            (failed.status, Rendered(page)).into_response()
        }
        Err(failed) => viewer.fail()(failed),
    }
}

/// Puts the entered plan, or tries to.
async fn put(
    viewer: &Viewer,
    id: &str,
    is_new: bool,
    fields: &Fields,
    dry_run: bool,
) -> Result<Answer, Failed> {
    let mut limits = Map::new();
    let mut features = Map::new();
    for line in 0..LINES_MAX {
        if let Some(meter) = fields.given(&format!("meter-{line}")) {
            let units = fields.limit(&format!("limit-{line}"));
            let mut limit =
                json!({"limit": units, "enforcement": fields.text(&format!("enforcement-{line}"))});
            if let Some(percentages) = fields.percentages(&format!("warnAt-{line}")) {
                limit["warnAt"] = percentages;
            }
            limits.insert(meter.to_owned(), limit);
        }
        if let Some(feature) = fields.given(&format!("feature-{line}")) {
            let text = fields.text(&format!("value-{line}"));
            let value = match text {
                "true" | "on" | "On" => json!(true),
                "false" | "off" | "Off" => json!(false),
                text => text
                    .parse::<u64>()
                    .map_or_else(|_| json!(text), |number| json!(number)),
            };
            features.insert(feature.to_owned(), value);
        }
    }
    let mut body = json!({"limits": limits, "features": features});
    if let Some(name) = fields.given("name") {
        body["name"] = json!(name);
    }
    if !is_new {
        // The form does not show them.
        let present: Plan = viewer.api.get(&api_path(id)).await?;
        if present.meters.is_object() {
            body["meters"] = present.meters;
        }
    }
    let condition = if is_new {
        ("if-none-match", "*".to_owned())
    } else {
        ("if-match", fields.version())
    };
    let path = format!(
        "{}{}",
        api_path(id),
        if dry_run { "?dryRun=true" } else { "" }
    );
    viewer
        .api
        .send(
            Method::PUT,
            &path,
            &[(condition.0, &condition.1)],
            Some(&body),
        )
        .await
}

/// The form with what was entered.
fn entered(viewer: &Viewer, id: String, is_new: bool, fields: &Fields) -> PlanPage {
    let lines = || 0..LINES_MAX;
    let limits = lines().filter_map(|line| {
        Some(LimitLine {
            meter: fields.given(&format!("meter-{line}"))?.to_owned(),
            limit: fields.text(&format!("limit-{line}")).to_owned(),
            is_soft: fields.text(&format!("enforcement-{line}")) == "soft",
            warn_at: fields.text(&format!("warnAt-{line}")).to_owned(),
        })
    });
    let features = lines().filter_map(|line| {
        let name = fields.given(&format!("feature-{line}"))?;
        Some((
            name.to_owned(),
            fields.text(&format!("value-{line}")).to_owned(),
        ))
    });
    let plan = Plan {
        id,
        name: fields.text("name").to_owned(),
        version: fields.text("version").parse().unwrap_or(0),
        ..Plan::default()
    };
    PlanPage {
        limits: limits.chain([LimitLine::default()]).collect(),
        features: features.chain([<(String, String)>::default()]).collect(),
        ..page(viewer, &plan, is_new)
    }
}
