//! Embed links: who may see which meters of an organization, and until when.

use std::collections::BTreeSet;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chrono::serde::ts_seconds;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use strum::IntoStaticStr;
use utoipa::ToSchema;

use crate::domain::ids::{ApiKeyId, MeterId, OrganizationId};

/// What an embed link shows. Its token holds all of it, signed, so nothing is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EmbedLink {
    /// The key that created the link, which ends with it.
    pub key: ApiKeyId,
    /// Whose usage it shows.
    pub organization: OrganizationId,
    /// The meters that it shows; none are all.
    pub meters: BTreeSet<MeterId>,
    /// The colours; none follows the reader's system.
    pub theme: Option<Theme>,
    /// When it expires.
    #[serde(with = "ts_seconds")]
    pub expires_at: DateTime<Utc>,
}

/// The colours of a card.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema, IntoStaticStr)]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase")]
pub enum Theme {
    /// Dark on light.
    Light,
    /// Light on dark.
    Dark,
}

impl EmbedLink {
    /// The text to sign.
    pub(super) fn to_text(&self) -> Option<String> {
        let text = serde_json::to_vec(self).ok()?;
        Some(URL_SAFE_NO_PAD.encode(text))
    }

    /// The link of a text whose signature was verified.
    pub(super) fn from_text(text: &str) -> Option<Self> {
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(text).ok()?).ok()
    }
}
