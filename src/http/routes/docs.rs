//! `GET /docs`: Swagger UI for the OpenAPI document. Every file comes from the executable, and the page's policy
//! forbids other origins.

use std::sync::{Arc, LazyLock};

use axum::extract::Path;
use axum::http::header::{CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderName};
use axum::response::{Html, IntoResponse};
use utoipa_swagger_ui::Config;

use crate::http::extract::NoQuery;
use crate::http::problem::Error;

/// Swagger UI has icons in `data:` URLs.
const SAFE: [(HeaderName, &str); 1] = [(
    CONTENT_SECURITY_POLICY,
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; \
     base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
)];

/// The document in Swagger UI
///
/// Shows the document and sends requests; "Authorize" takes an API key or a JWT. Loads nothing from other origins.
#[utoipa::path(
    get,
    path = "/docs",
    operation_id = "getDocs",
    tag = "Operations",
    responses((status = 200, description = "The page.", body = String, content_type = "text/html"))
)]
pub(in crate::http) async fn docs(_: NoQuery) -> impl IntoResponse {
    (SAFE, Html(include_str!("docs.html")))
}

/// A file that the page loads.
pub(in crate::http) async fn file(Path(name): Path<String>) -> Result<impl IntoResponse, Error> {
    static CONFIG: LazyLock<Arc<Config>> = LazyLock::new(|| {
        // By default the page asks validator.swagger.io about the document.
        let config = Config::from("openapi.json").validator_url("none");
        Arc::new(config.use_base_layout())
    });
    let file = utoipa_swagger_ui::serve(&name, Arc::clone(&CONFIG));
    let file = file.map_err(|error| Error::Caused(Box::new(Error::Internal), error.to_string()))?;
    let file = file.ok_or(Error::NotFound("there is nothing at this path"))?;
    Ok((
        SAFE,
        [(CONTENT_TYPE, file.content_type)],
        file.bytes.into_owned(),
    ))
}
