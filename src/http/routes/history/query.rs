//! The queries of history.

use chrono::{DateTime, Utc};
use chrono_tz::Tz;
use serde::{Deserialize, Deserializer};
use utoipa::{IntoParams, ToSchema};

use crate::domain::calendar::Zone;
use crate::domain::history::{Cursor, Granularity, Order};
use crate::domain::ids::{MeterId, OrganizationId};
use crate::domain::input::{nullable, parse_str};
use crate::http::auth::OrganizationParam;
use crate::http::extract::instant;
use crate::http::list::PageSize;

/// The query of one organization's history.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(in crate::http) struct OfOrganization {
    /// Only these meters, at most 100; repeat the parameter.
    #[serde(default)]
    #[param(required = false, max_items = 100)]
    pub(super) meter: Vec<MeterId>,
    /// How much time a row covers; `day` by default.
    #[param(inline)]
    pub(super) granularity: Option<Granularity>,
    /// Rows that start at this instant or later. Without it, the range is the last 24 hours, 31 days, 12 weeks, 365 days
    /// for months, or all periods.
    #[serde(default, deserialize_with = "instant")]
    pub(super) from: Option<DateTime<Utc>>,
    /// Rows that start before this instant.
    #[serde(default, deserialize_with = "instant")]
    pub(super) to: Option<DateTime<Utc>>,
    /// Adds rows of zeros where nothing was counted, up to 50,000; not for periods.
    #[param(inline)]
    pub(super) fill: Option<Fill>,
    /// Tells the `limit` of rows that are not periods, too.
    #[serde(default)]
    pub(super) limits: bool,
    /// Tells the running `total` of each row.
    #[serde(default)]
    pub(super) totals: bool,
    /// By start, then organization, then meter; `asc` by default.
    #[param(inline)]
    pub(super) order: Option<Order>,
    /// Days, weeks and months of this time zone (IANA name) instead of the organization's.
    #[serde(default, deserialize_with = "nullable::<Zone, _, _>")]
    #[param(value_type = Option<String>, example = "Europe/Berlin")]
    pub(super) time_zone: Option<Tz>,
    /// JSON only; other formats have no pages.
    #[param(inline)]
    pub(super) page_size: Option<PageSize>,
    /// The `nextCursor` of the previous page; the other parameters must not change.
    #[serde(default, deserialize_with = "cursor")]
    #[param(value_type = Option<String>)]
    pub(super) cursor: Option<Cursor>,
}

/// The query of the history of all organizations.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(in crate::http) struct OfAll {
    /// Only these organizations, at most 100; repeat the parameter.
    #[serde(default)]
    #[param(value_type = Vec<OrganizationId>, required = false, max_items = 100)]
    pub(super) organization_id: Vec<OrganizationParam>,
    /// Only these meters, at most 100; repeat the parameter.
    #[serde(default)]
    #[param(required = false, max_items = 100)]
    pub(super) meter: Vec<MeterId>,
    /// How much time a row covers; `day` by default.
    #[param(inline)]
    pub(super) granularity: Option<Granularity>,
    /// Rows that start at this instant or later. Without it, the range is the last 24 hours, 31 days, 12 weeks, 365 days
    /// for months, or all periods.
    #[serde(default, deserialize_with = "instant")]
    pub(super) from: Option<DateTime<Utc>>,
    /// Rows that start before this instant.
    #[serde(default, deserialize_with = "instant")]
    pub(super) to: Option<DateTime<Utc>>,
    /// Adds rows of zeros where nothing was counted, up to 50,000; not for periods.
    #[param(inline)]
    pub(super) fill: Option<Fill>,
    /// Tells the `limit` of rows that are not periods, too.
    #[serde(default)]
    pub(super) limits: bool,
    /// Tells the running `total` of each row.
    #[serde(default)]
    pub(super) totals: bool,
    /// By start, then organization, then meter; `asc` by default.
    #[param(inline)]
    pub(super) order: Option<Order>,
    /// Days, weeks and months of this time zone (IANA name) instead of the organization's.
    #[serde(default, deserialize_with = "nullable::<Zone, _, _>")]
    #[param(value_type = Option<String>, example = "Europe/Berlin")]
    pub(super) time_zone: Option<Tz>,
    /// JSON only; other formats have no pages.
    #[param(inline)]
    pub(super) page_size: Option<PageSize>,
    /// The `nextCursor` of the previous page; the other parameters must not change.
    #[serde(default, deserialize_with = "cursor")]
    #[param(value_type = Option<String>)]
    pub(super) cursor: Option<Cursor>,
}

/// What fills ranges without counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum Fill {
    /// A row of zeros.
    Zero,
}

fn cursor<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Cursor>, D::Error> {
    parse_str(deserializer, "the nextCursor of a page", str::parse).map(Some)
}
