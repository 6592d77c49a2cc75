//! The OpenAPI document, gathered from the handlers.
//!
//! A handler describes itself in `#[utoipa::path]`, and its types by their derives. Descriptions that operations share
//! are in [`problems`] and [`responses`]; [`document`] adds everything that follows from the rest of a description.

pub(super) mod document;
pub(super) mod headers;
pub(super) mod problems;
pub(super) mod responses;
