//! The frame of every page, and how a page becomes a response.
//!
//! A page is a struct with a field `frame` and `#[derive(Template)]` on a template that extends `base.html`. Its handler takes a
//! [`Viewer`](super::session::Viewer), which makes the frame, and returns `Result<Rendered<Page>, Response>`.

use askama::Template;
use axum::http::StatusCode;
use axum::response::{Html, IntoResponse, Response};
use strum::{Display, VariantArray};

use super::api::Failed;
use super::look::{Look, NOTICE};

/// A section of the main navigation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Display, VariantArray)]
pub(super) enum Section {
    Overview,
    Plans,
    Keys,
    Webhooks,
    Audit,
}

impl Section {
    pub(super) fn path(self) -> &'static str {
        match self {
            Self::Overview => "/dashboard",
            Self::Plans => "/dashboard/plans",
            Self::Keys => "/dashboard/keys",
            Self::Webhooks => "/dashboard/webhooks",
            Self::Audit => "/dashboard/audit",
        }
    }
}

/// What the templates `document.html` and `base.html` need.
#[derive(Debug)]
pub(super) struct Frame {
    pub(super) title: String,
    pub(super) section: Section,
    /// The name of the viewer's key; empty where nobody has signed in.
    pub(super) viewer: String,
    pub(super) is_admin: bool,
    pub(super) csrf: String,
    pub(super) notice: Option<String>,
    pub(super) theme: Option<&'static str>,
    /// The clock of the service, Unix time in ms.
    pub(super) now_ms: i64,
}

impl Frame {
    /// The frame of a page that is shown without a session.
    pub(super) fn outside(look: &Look, title: impl Into<String>) -> Self {
        Self {
            title: title.into(),
            section: Section::Overview,
            viewer: String::new(),
            is_admin: false,
            csrf: String::new(),
            notice: None,
            theme: look.theme,
            now_ms: look.now.timestamp_millis(),
        }
    }

    /// The sections that the viewer may see: the API shows all but usage and plans to administrators only.
    pub(super) fn sections(&self) -> impl Iterator<Item = &'static Section> {
        let all = Section::VARIANTS.iter();
        all.filter(|section| self.is_admin || matches!(section, Section::Overview | Section::Plans))
    }

    #[expect(clippy::unused_self, reason = "templates call methods")]
    pub(super) fn version(&self) -> &'static str {
        env!("CARGO_PKG_VERSION")
    }
}

/// A page as a response. A notice is shown once.
pub(super) struct Rendered<T>(pub(super) T);

impl<T: Template> IntoResponse for Rendered<T> {
    fn into_response(self) -> Response {
        match self.0.render() {
            Ok(text) => {
                let shown = format!("{NOTICE}=; Path=/dashboard; Max-Age=0");
                ([("set-cookie", shown)], Html(text)).into_response()
            }
            Err(error) => {
                tracing::error!(%error, "a page cannot be rendered");
                StatusCode::INTERNAL_SERVER_ERROR.into_response()
            }
        }
    }
}

#[derive(Template)]
#[template(path = "failed.html")]
struct FailedPage {
    frame: Frame,
    detail: String,
    request: Option<String>,
}

/// The page that explains an error.
pub(super) fn failure(look: &Look, failed: &Failed) -> Response {
    let title = match failed.status {
        StatusCode::NOT_FOUND => "Not found",
        StatusCode::FORBIDDEN => "Not permitted",
        StatusCode::SERVICE_UNAVAILABLE => "Not available now",
        status if status.is_client_error() => "Not accepted",
        _ => "Something went wrong",
    };
    let page = FailedPage {
        frame: Frame::outside(look, title),
        detail: super::format::sentence(&failed.detail()),
        request: failed.problem["requestId"].as_str().map(ToOwned::to_owned),
    };
    (failed.status, Rendered(page)).into_response()
}

/// The page of a form again, after the API refused it; the error's own page if nothing in the form can change that.
pub(super) async fn again<T: Template>(
    look: &Look,
    failed: &Failed,
    page: impl Future<Output = Result<T, Failed>>,
) -> Response {
    if matches!(failed.status, StatusCode::NOT_FOUND | StatusCode::FORBIDDEN) {
        return failure(look, failed);
    }
    match page.await {
        Ok(page) => (failed.status, Rendered(page)).into_response(),
        Err(failed) => failure(look, &failed),
    }
}
