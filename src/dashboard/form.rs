//! Forms: their fields, checked for the CSRF token, and the redirect after a change.

use std::collections::BTreeMap;

use super::api::{Failed, encode};
use super::frame::failure;
use super::look::NOTICE;
use super::session::Viewer;
use super::state::Dashboard;
use axum::Form;
use axum::extract::{FromRequest, Request};
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::http::uri::Authority;
use axum::response::{IntoResponse, Redirect, Response};
use serde_json::{Value, json};

/// The fields of a form that a viewer has sent.
#[derive(Debug, Default)]
pub(super) struct Fields(BTreeMap<String, Vec<String>>);

impl Fields {
    /// A field without spaces around it; empty if it is missing.
    pub(super) fn text(&self, name: &str) -> &str {
        self.all(name).first().map_or("", |text| text.trim())
    }

    /// A field that is not empty.
    pub(super) fn given(&self, name: &str) -> Option<&str> {
        Some(self.text(name)).filter(|text| !text.is_empty())
    }

    /// Every value of a field, such as of checkboxes with one name.
    pub(super) fn all(&self, name: &str) -> &[String] {
        self.0.get(name).map_or(&[], Vec::as_slice)
    }

    /// Every field with each of its values.
    pub(super) fn pairs(&self) -> impl Iterator<Item = (&str, &str)> {
        let all = self.0.iter();
        all.flat_map(|(name, values)| values.iter().map(|value| (name.as_str(), value.as_str())))
    }

    /// A limit: null where the field is empty.
    pub(super) fn limit(&self, name: &str) -> Value {
        self.given(name).map_or(Value::Null, |_| self.number(name))
    }

    /// Percentages, separated by commas; none where the field is empty. What is no number stays a text, so that the API
    /// refuses it.
    pub(super) fn percentages(&self, name: &str) -> Option<Value> {
        let number = |text: &str| {
            text.parse::<u64>()
                .map_or_else(|_| json!(text), |it| json!(it))
        };
        let all = self.given(name)?.split(',').map(str::trim);
        Some(all.map(number).collect())
    }

    /// The version that the form has shown, for `If-Match`.
    pub(super) fn version(&self) -> String {
        format!("\"{}\"", self.text("version"))
    }

    /// A whole number as people write it, such as `50,000`; as text where it is none, so that the API refuses it.
    pub(super) fn number(&self, name: &str) -> Value {
        let text = self.text(name);
        let digits: String = text
            .chars()
            .filter(|it| !matches!(it, ',' | '_' | ' '))
            .collect();
        digits
            .parse::<u64>()
            .map_or_else(|_| json!(text), |number| json!(number))
    }
}

/// A form with a viewer that has proven to come from one of our pages.
#[derive(Debug)]
pub(super) struct Posted(pub(super) Viewer, pub(super) Fields);

impl FromRequest<Dashboard> for Posted {
    type Rejection = Response;

    async fn from_request(request: Request, dashboard: &Dashboard) -> Result<Self, Response> {
        use axum::extract::FromRequestParts as _;
        let (mut parts, body) = request.into_parts();
        let viewer = Viewer::from_request_parts(&mut parts, dashboard).await?;
        let is_own = is_same_origin(&parts);
        let fields = fields(Request::from_parts(parts, body)).await?;
        if !is_own || fields.text("csrf") != viewer.csrf {
            let failed = Failed {
                status: StatusCode::FORBIDDEN,
                problem: json!({"detail": "this form was not sent from a page of this session; go back, reload and send it again"}),
            };
            return Err(failure(&viewer.look, &failed));
        }
        Ok(Self(viewer, fields))
    }
}

/// The fields of a form, without any check.
pub(super) async fn fields(request: Request) -> Result<Fields, Response> {
    let form = Form::<Vec<(String, String)>>::from_request(request, &()).await;
    let Form(pairs) = form.map_err(IntoResponse::into_response)?;
    let mut fields: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, value) in pairs {
        fields.entry(name).or_default().push(value);
    }
    Ok(Fields(fields))
}

/// Whether a request comes from a page of this host, as far as the browser says: `Sec-Fetch-Site` also behind a proxy that
/// changes the host, `Origin` in older browsers.
pub(super) fn is_same_origin(parts: &Parts) -> bool {
    let header = |name: &str| parts.headers.get(name).and_then(|it| it.to_str().ok());
    if let Some(site) = header("sec-fetch-site") {
        return matches!(site, "same-origin" | "none");
    }
    let host = header("host").or(parts.uri.authority().map(Authority::as_str));
    let origin = header("origin").map(|origin| origin.split_once("://").map(|(_, host)| host));
    origin.is_none_or(|origin| origin == host)
}

/// Redirects after a change; the next page shows the notice.
pub(super) fn see_other(path: &str, notice: &str) -> Response {
    let cookie = format!(
        "{NOTICE}={}; Path=/dashboard; Max-Age=60; HttpOnly; SameSite=Strict",
        encode(notice)
    );
    ([("set-cookie", cookie)], Redirect::to(path)).into_response()
}
