//! Limits of one meter: what plans and organizations set, and what results.

use std::ops::RangeInclusive;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use strum::{Display, EnumString, IntoStaticStr, VariantArray};
use utoipa::ToSchema;
use utoipa::openapi::schema::{ArrayBuilder, ObjectBuilder, Type};
use utoipa::openapi::{RefOr, Schema};

use super::input::{
    Instant, ReadAs as _, double_option, integer, narrow, not_null, optional, read_as, required,
};
use super::quantity::Count;
use super::text::{InvalidWord, invalid_word};

/// What happens beyond a limit.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    Default,
    Serialize,
    Deserialize,
    ToSchema,
    Display,
    EnumString,
    VariantArray,
    IntoStaticStr,
)]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase")]
#[strum(parse_err_ty = InvalidWord, parse_err_fn = invalid_word::<Enforcement>)]
pub enum Enforcement {
    /// A consume is denied.
    #[default]
    Hard,
    /// A consume is granted and counted as overage.
    Soft,
}

/// What a consume does while the counters are unreachable.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    Default,
    Serialize,
    Deserialize,
    ToSchema,
    Display,
    EnumString,
    VariantArray,
)]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase")]
#[strum(parse_err_ty = InvalidWord, parse_err_fn = invalid_word::<OnOutage>)]
pub enum OnOutage {
    /// It fails with 503.
    #[default]
    Deny,
    /// It is granted without a decision, and counted once the counters are back.
    Allow,
}

/// The limit of one meter, as decisions use it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Rule {
    /// Units included in a period; none = unlimited.
    pub limit: Option<Count>,
    /// What happens beyond the limit.
    pub enforcement: Enforcement,
}

impl Rule {
    /// The count beyond which a consume is denied; none if it never is.
    pub fn cap(&self) -> Option<Count> {
        self.limit.filter(|_| self.enforcement == Enforcement::Hard)
    }
}

/// Where an effective value was set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// On the organization, temporarily.
    Temporary,
    /// On the organization.
    Organization,
    /// On its plan.
    Plan,
    /// In the service's defaults.
    #[default]
    Default,
}

/// The effective limit of one meter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct MeterLimit {
    /// Units included in a period; null is unlimited.
    #[schema(required)]
    pub limit: Option<Count>,
    /// What happens beyond the limit.
    pub enforcement: Enforcement,
    /// Percentages of the limit that are notified.
    pub warn_at: Vec<u16>,
    /// What a consume does while the counters are unreachable; absent where neither the organization nor its plan sets
    /// it, so that the service's setting applies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = OnOutage, required = false)]
    pub on_outage: Option<OnOutage>,
    /// Where it, or any part of it, was set.
    #[serde(default)]
    #[schema(required)]
    pub source: Source,
    /// When the temporary limit ends; only if `source` is `temporary`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = DateTime<Utc>, required = false)]
    pub until: Option<DateTime<Utc>>,
}

/// The default of `warnAt`.
pub const WARN_AT_DEFAULT: [u16; 2] = [80, 100];

impl Default for MeterLimit {
    fn default() -> Self {
        Self {
            limit: None,
            enforcement: Enforcement::Hard,
            warn_at: WARN_AT_DEFAULT.to_vec(),
            on_outage: None,
            source: Source::Default,
            until: None,
        }
    }
}

impl MeterLimit {
    pub(super) fn rule(&self) -> Rule {
        Rule {
            limit: self.limit,
            enforcement: self.enforcement,
        }
    }

    pub(super) fn overridden(&self, own: &LimitOverride, source: Source) -> Self {
        Self {
            limit: own.limit.map_or(self.limit, |Limit(limit)| limit),
            enforcement: own.enforcement.unwrap_or(self.enforcement),
            warn_at: own.warn_at.clone().unwrap_or_else(|| self.warn_at.clone()),
            on_outage: own.on_outage.or(self.on_outage),
            source: if *own == LimitOverride::default() {
                self.source
            } else {
                source
            },
            until: None,
        }
    }
}

/// An explicit limit: a number of units, or `null` for unlimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(transparent)]
pub struct Limit(pub Option<Count>);

/// A limit that a plan or an organization sets on one meter; absent fields are inherited.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LimitOverride {
    /// Units included in a period; null is unlimited, 0 is nothing.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "double_option"
    )]
    #[schema(value_type = Option<Count>)]
    pub limit: Option<Limit>,
    /// What happens beyond the limit.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "not_null"
    )]
    #[schema(nullable = false)]
    pub enforcement: Option<Enforcement>,
    /// Percentages of the limit that are notified, ascending.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "optional::<WarnAt, _>"
    )]
    #[schema(schema_with = warn_at)]
    pub warn_at: Option<Vec<u16>>,
    /// What a consume does while the counters are unreachable.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "not_null"
    )]
    #[schema(nullable = false)]
    pub on_outage: Option<OnOutage>,
}

impl LimitOverride {
    /// This override with the fields that `change` sets.
    #[must_use]
    pub fn patched(&self, change: &Self) -> Self {
        Self {
            limit: change.limit.or(self.limit),
            enforcement: change.enforcement.or(self.enforcement),
            warn_at: change.warn_at.clone().or_else(|| self.warn_at.clone()),
            on_outage: change.on_outage.or(self.on_outage),
        }
    }
}

/// A limit over the organization's own that ends at an instant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"limit": 12000, "until": "2040-01-01T00:00:00Z"}))]
pub struct TemporaryLimit {
    /// Units included in a period; null is unlimited.
    // Without this, serde would accept an absent limit as null.
    #[serde(deserialize_with = "Limit::deserialize")]
    #[schema(value_type = Option<Count>, required)]
    pub limit: Limit,
    /// When it ends; in the future.
    #[serde(deserialize_with = "required::<Instant, _>")]
    pub until: DateTime<Utc>,
}

/// The most percentages of one limit.
pub const WARN_AT_MAX: usize = 10;

/// The valid percentages.
pub const WARN_AT: RangeInclusive<u16> = 1..=1000;

/// The schema of `warnAt`.
pub fn warn_at() -> impl Into<RefOr<Schema>> {
    let percentage = ObjectBuilder::new()
        .schema_type(Type::Integer)
        .minimum(Some(*WARN_AT.start()))
        .maximum(Some(*WARN_AT.end()));
    ArrayBuilder::new()
        .schema_type(Type::Array)
        .items(percentage)
        .unique_items(true)
        .max_items(Some(WARN_AT_MAX))
        .description(Some(
            "Percentages of the limit that are notified, ascending.",
        ))
        .examples([serde_json::json!(WARN_AT_DEFAULT)])
}

read_as!(
    /// Percentages that are notified.
    WarnAt(Vec<u16>),
    |deserializer| {
        let percentages = Vec::<Percentage>::deserialize(deserializer)?;
        Ok(percentages.into_iter().map(Percentage::value).collect())
    }
);

read_as!(
    /// One of them.
    Percentage(u16),
    |deserializer| {
        let bounds = i64::from(*WARN_AT.start())..=i64::from(*WARN_AT.end());
        integer(deserializer, bounds, "an integer from 1 to 1000").map(narrow)
    }
);
