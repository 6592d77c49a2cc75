//! The forms that change an organization.

use axum::extract::Path;
use axum::http::Method;
use axum::response::Response;
use chrono::{DateTime, NaiveDateTime, SecondsFormat, TimeDelta, TimeZone as _, Utc};
use chrono_tz::Tz;
use serde_json::{Map, Value, json};

use super::history::Choice;
use super::limits::{ADD, compared, form_id};
use super::page::page;
use super::read::{api_path, page_path, settings};
use super::types::Usage;
use crate::dashboard::api::Failed;
use crate::dashboard::conflict::{Conflict, Row};
use crate::dashboard::form::{Fields, Posted, see_other};
use crate::dashboard::form_view::{Refused, idempotency_key};
use crate::dashboard::format::number;
use crate::dashboard::frame::{Section, again};
use crate::dashboard::session::Viewer;

/// `POST …/limits`: one meter's limit, for a while or for good, or back to what the plan says.
pub(super) async fn limit(Path(id): Path<String>, Posted(viewer, fields): Posted) -> Response {
    let meter = fields.text("meter").to_owned();
    let change = match limit_change(&viewer, &id, &fields).await {
        Ok(change) => change,
        Err(failed) => return refuse(&viewer, id, of_limit(&fields, &failed)).await,
    };
    let said = said(&meter, fields.text("mode"), &change);
    let body = json!({ &meter: change });
    let version = fields.version();
    let path = format!("{}/limits", api_path(&id));
    let sent = viewer
        .api
        .send(Method::PATCH, &path, &[("if-match", &version)], Some(&body))
        .await;
    match sent {
        Ok(_) => see_other(&format!("{}#limits", page_path(&id)), &said),
        Err(failed) if failed.is_conflict() => conflict(&viewer, &id, &fields, "limits").await,
        Err(failed) => refuse(&viewer, id, of_limit(&fields, &failed)).await,
    }
}

/// The refused form of a limit. The API's pointers begin with the meter, and do not know how the form writes a time.
fn of_limit<'a>(entered: &'a Fields, failed: &'a Failed) -> Refused<'a> {
    let (meter, form) = (entered.text("meter"), entered.text("form"));
    let below = failed.pointer().trim_start_matches('/').split_once('/');
    let pointer = match below.map_or("meter", |(_, below)| below) {
        "temporary/until" if entered.text("until") == "at" => "at",
        pointer => pointer,
    };
    Refused {
        form: if form == ADD {
            ADD.to_owned()
        } else {
            form_id(meter)
        },
        pointer: pointer.to_owned(),
        ..Refused::new("", entered, failed)
    }
}

/// The value of the meter in `PATCH …/limits`.
async fn limit_change(viewer: &Viewer, id: &str, fields: &Fields) -> Result<Value, Failed> {
    let units = fields.limit("limit");
    match fields.text("mode") {
        "inherit" => Ok(Value::Null),
        "lasting" => {
            let mut change = Map::from_iter([("limit".to_owned(), units)]);
            if let Some(enforcement) = fields.given("enforcement") {
                change.insert("enforcement".to_owned(), json!(enforcement));
            }
            if let Some(percentages) = fields.percentages("warnAt") {
                change.insert("warnAt".to_owned(), percentages);
            }
            Ok(Value::Object(change))
        }
        _ => {
            let until = until(viewer, id, fields).await?;
            let until = until.to_rfc3339_opts(SecondsFormat::Secs, true);
            Ok(json!({"temporary": {"limit": units, "until": until}}))
        }
    }
}

/// When a temporary limit ends.
async fn until(viewer: &Viewer, id: &str, fields: &Fields) -> Result<DateTime<Utc>, Failed> {
    let (now, meter) = (viewer.look.now, fields.text("meter"));
    match fields.text("until") {
        "1d" => Ok(now + TimeDelta::days(1)),
        "reset" => {
            let usage: Usage = viewer.api.get(&format!("{}/usage", api_path(id))).await?;
            let ends = usage.meters.get(meter).and_then(|it| it.reset_date);
            ends.ok_or_else(|| {
                Failed::invalid(
                    "/-/until",
                    "the period does not end by itself; choose another time",
                )
            })
        }
        "at" => {
            let zone = settings(viewer, &api_path(id)).await?.time_zone;
            local(fields.text("at"), zone).ok_or_else(|| {
                Failed::invalid(
                    "/-/at",
                    "must be a date and a time, such as 2026-12-24T18:00",
                )
            })
        }
        _ => Ok(now + TimeDelta::days(7)),
    }
}

/// A local date and time of a form.
fn local(text: &str, zone: Tz) -> Option<DateTime<Utc>> {
    let formats = ["%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%d %H:%M"];
    let naive = formats
        .iter()
        .find_map(|it| NaiveDateTime::parse_from_str(text, it).ok())?;
    Some(zone.from_local_datetime(&naive).earliest()?.to_utc())
}

/// What a saved limit says.
fn said(meter: &str, mode: &str, change: &Value) -> String {
    let units = |limit: &Value| limit.as_u64().map_or("unlimited".to_owned(), number);
    match mode {
        "inherit" => format!("The limit of {meter} is what its plan says."),
        "lasting" => format!(
            "The limit of {meter} is {}. It holds from the next call on.",
            units(&change["limit"])
        ),
        _ => format!(
            "The limit of {meter} is {} until {}. It holds from the next call on, and ends by itself.",
            units(&change["temporary"]["limit"]),
            change["temporary"]["until"].as_str().unwrap_or_default()
        ),
    }
}

/// `POST …/plan`: the plan.
pub(super) async fn plan(Path(id): Path<String>, Posted(viewer, fields): Posted) -> Response {
    let plan = fields.text("planId").to_owned();
    let version = fields.version();
    let (path, body) = (api_path(&id), json!({"planId": plan}));
    let sent = viewer
        .api
        .send(Method::PATCH, &path, &[("if-match", &version)], Some(&body))
        .await;
    match sent {
        Ok(_) => see_other(
            &format!("{}#features", page_path(&id)),
            &format!("The plan is {plan}. It holds from the next call on."),
        ),
        Err(failed) if failed.is_conflict() => conflict(&viewer, &id, &fields, "plan").await,
        Err(failed) => refuse(&viewer, id, Refused::new("plan", &fields, &failed)).await,
    }
}

/// `POST …/adjust`: gives units back, or adds them.
pub(super) async fn adjust(Path(id): Path<String>, Posted(viewer, fields): Posted) -> Response {
    let mut amount = fields.number("amount");
    if fields.text("direction") == "back"
        && let Some(units) = amount.as_i64()
    {
        amount = json!(-units);
    }
    let body =
        json!({"meter": fields.text("meter"), "amount": amount, "reason": fields.text("reason")});
    let path = format!("{}/adjust", api_path(&id));
    let key = idempotency_key(&fields);
    match viewer
        .api
        .send(Method::POST, &path, &key, Some(&body))
        .await
    {
        Ok(answer) => {
            let current = number(answer.body["current"].as_u64().unwrap_or(0));
            let notice = format!("The count of {} is now {current}.", fields.text("meter"));
            see_other(&page_path(&id), &notice)
        }
        Err(failed) => refuse(&viewer, id, Refused::new("adjust", &fields, &failed)).await,
    }
}

/// The page again, with what was entered and why it was refused.
async fn refuse(viewer: &Viewer, id: String, refused: Refused<'_>) -> Response {
    let page = page(viewer, id, Choice::default(), Some(&refused));
    again(&viewer.look, refused.failed, page).await
}

/// The page of a limit, or of the plan, that another administrator has changed meanwhile.
async fn conflict(viewer: &Viewer, id: &str, entered: &Fields, form: &str) -> Response {
    let settings = match settings(viewer, &api_path(id)).await {
        Ok(settings) => settings,
        Err(failed) => return viewer.fail()(failed),
    };
    let rows = if form == "plan" {
        vec![Row {
            label: "Plan".to_owned(),
            entered: entered.text("planId").to_owned(),
            stored: settings.plan_id.clone(),
        }]
    } else {
        compared(entered, &settings, viewer.look.now)
    };
    let own = page_path(id);
    let conflict = Conflict {
        subject: "this organization",
        section: Section::Overview,
        action: format!("{own}/{form}"),
        back: own,
        version: settings.version,
        rows,
    };
    conflict.page(viewer, entered)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_local_time_is_of_the_organizations_zone() {
        let at = local("2026-12-24T18:00", Tz::Europe__Berlin).unwrap();
        assert_eq!(at.to_rfc3339(), "2026-12-24T17:00:00+00:00");
        assert_eq!(local("tomorrow", Tz::UTC), None);
    }

    #[test]
    fn a_saved_limit_is_said_in_a_sentence() {
        let change = json!({"limit": 60_000});
        assert!(said("api", "lasting", &change).contains("60,000"));
        assert!(said("api", "lasting", &json!({"limit": null})).contains("unlimited"));
    }
}
