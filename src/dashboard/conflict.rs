//! The page of a form whose version is outdated: what was entered next to what is stored now.

use askama::Template;
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};

use super::form::Fields;
use super::frame::{Frame, Rendered, Section};
use super::session::Viewer;

/// A part of the form.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) label: String,
    pub(super) entered: String,
    pub(super) stored: String,
}

/// What another administrator has changed meanwhile.
#[derive(Debug)]
pub(super) struct Conflict {
    /// `this plan`.
    pub(super) subject: &'static str,
    pub(super) section: Section,
    /// Where the form is sent.
    pub(super) action: String,
    /// The page that shows what is stored.
    pub(super) back: String,
    /// The present version.
    pub(super) version: u64,
    pub(super) rows: Vec<Row>,
}

#[derive(Template)]
#[template(path = "conflict.html")]
struct Page {
    frame: Frame,
    conflict: Conflict,
    /// The fields of the form, which are sent again with the present version.
    fields: Vec<(String, String)>,
}

impl Conflict {
    /// The page.
    pub(super) fn page(self, viewer: &Viewer, entered: &Fields) -> Response {
        let owned = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
        let pairs = entered.pairs();
        let others = pairs.filter(|(name, _)| !matches!(*name, "csrf" | "version" | "do"));
        let page = Page {
            frame: viewer.frame(self.section, format!("Conflict: {}", self.subject)),
            fields: others.map(owned).collect(),
            conflict: self,
        };
        (StatusCode::PRECONDITION_FAILED, Rendered(page)).into_response()
    }
}
