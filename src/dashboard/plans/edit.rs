//! The page of a plan, and its form.

use askama::Template;
use axum::extract::{Path, Query};
use axum::http::Method;
use axum::response::{IntoResponse as _, Response};
use serde::Deserialize;

use super::compare::conflict;
use super::lines::{Lines, body, field_at};
use super::types::{Plan, api_path, page_path};
use crate::dashboard::api::{Answer, Failed};
use crate::dashboard::filters;
use crate::dashboard::form::{Fields, Posted, see_other};
use crate::dashboard::form_view::{Refused, titled};
use crate::dashboard::frame::{Frame, Rendered, Section, again};
use crate::dashboard::session::Viewer;

#[derive(Template)]
#[template(path = "plan.html")]
pub(super) struct Page {
    frame: Frame,
    /// None for a new plan.
    id: Option<String>,
    name: String,
    lines: Lines,
    /// How many organizations the entered plan would reach.
    reaches: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Asked {
    id: String,
}

pub(super) async fn show(
    viewer: Viewer,
    Path(id): Path<String>,
    Query(asked): Query<Asked>,
) -> Result<Rendered<Page>, Response> {
    let id = Some(id).filter(|id| id != "new");
    let plan = match &id {
        Some(id) => viewer.api.get(&api_path(id)).await,
        None => Ok(Plan {
            id: asked.id,
            ..Plan::default()
        }),
    };
    let plan = plan.map_err(viewer.fail())?;
    Ok(Rendered(page(&viewer, id, Lines::stored(&plan), None)))
}

fn page(viewer: &Viewer, id: Option<String>, lines: Lines, refused: Option<&Refused<'_>>) -> Page {
    let form = lines.form.or_refused(refused);
    let name = form.value("name").to_owned();
    let title = match id {
        None => "New plan".to_owned(),
        Some(_) => format!("Plan {name}"),
    };
    Page {
        frame: viewer.frame(Section::Plans, titled(&title, refused)),
        id,
        name,
        lines: Lines { form, ..lines },
        reaches: None,
    }
}

pub(super) async fn save(Path(id): Path<String>, Posted(viewer, fields): Posted) -> Response {
    let id = Some(id).filter(|id| id != "new");
    let is_check = fields.text("do") == "check";
    let failed = match put(&viewer, id.as_deref(), &fields, is_check).await {
        Ok(answer) if is_check => {
            let page = page(&viewer, id, Lines::entered(&fields), None);
            let reaches = answer.body["dryRun"]["organizations"].as_u64();
            return Rendered(Page { reaches, ..page }).into_response();
        }
        Ok(_) => {
            let path = page_path(id.as_deref().unwrap_or(fields.text("id")));
            let notice = "The plan is saved. It holds for its organizations within 2 seconds.";
            return see_other(&path, notice);
        }
        Err(failed) => failed,
    };
    let failed = match &id {
        Some(id) if failed.is_conflict() => match conflict(&viewer, id, &fields).await {
            Ok(response) => return response,
            Err(failed) => failed,
        },
        None if failed.is_conflict() => Failed {
            status: failed.status,
            ..Failed::invalid("/id", "is the id of another plan; choose another")
        },
        _ => failed,
    };
    let refused = Refused {
        pointer: field_at(failed.pointer(), &fields),
        ..Refused::new("plan", &fields, &failed)
    };
    let page = page(&viewer, id, Lines::entered(&fields), Some(&refused));
    again(&viewer.look, &failed, async { Ok(page) }).await
}

/// Puts the entered plan, or tries to.
async fn put(
    viewer: &Viewer,
    id: Option<&str>,
    fields: &Fields,
    is_check: bool,
) -> Result<Answer, Failed> {
    let mut body = body(fields)?;
    let mut path = api_path(id.unwrap_or(fields.text("id")));
    let condition = if id.is_none() {
        ("if-none-match", "*".to_owned())
    } else {
        // The form does not show them.
        let present: Plan = viewer.api.get(&path).await?;
        if present.meters.is_object() {
            body["meters"] = present.meters;
        }
        ("if-match", fields.version())
    };
    if is_check {
        path.push_str("?dryRun=true");
    }
    let headers = [(condition.0, condition.1.as_str())];
    let api = &viewer.api;
    api.send(Method::PUT, &path, &headers, Some(&body)).await
}
