//! Events: recorded once, listed, and sent to webhooks.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use strum::{Display, EnumString, VariantArray};
use utoipa::ToSchema;

use super::ids::{MeterId, OrganizationId};
use super::limit::MeterLimit;
use super::quantity::Count;
use super::text::{InvalidWord, invalid_word};

/// The type of an event.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Serialize,
    Deserialize,
    ToSchema,
    Display,
    EnumString,
    VariantArray,
)]
#[strum(parse_err_ty = InvalidWord, parse_err_fn = invalid_word::<EventType>)]
pub enum EventType {
    /// A percentage of `warnAt` was reached.
    #[serde(rename = "usage.warning")]
    #[strum(serialize = "usage.warning")]
    UsageWarning,
    /// The limit was exceeded, or a hard limit denied a call for the first time.
    #[serde(rename = "usage.limit_exceeded")]
    #[strum(serialize = "usage.limit_exceeded")]
    LimitExceeded,
    /// A reset ended a period.
    #[serde(rename = "usage.reset")]
    #[strum(serialize = "usage.reset")]
    UsageReset,
    /// The effective limits changed.
    #[serde(rename = "limits.updated")]
    #[strum(serialize = "limits.updated")]
    LimitsUpdated,
    /// The organization and its usage were deleted.
    #[serde(rename = "organization.deleted")]
    #[strum(serialize = "organization.deleted")]
    OrganizationDeleted,
    /// A test of one webhook, sent to it alone.
    #[serde(rename = "webhook.test")]
    #[strum(serialize = "webhook.test")]
    WebhookTest,
}

/// An event about an organization, to be recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A percentage of `warnAt` was reached.
    UsageWarning(ThresholdCrossing),
    /// The limit was exceeded, or a hard limit denied a call for the first time; the threshold is 100.
    LimitExceeded(ThresholdCrossing),
    /// A reset ended a period.
    UsageReset(Reset),
    /// The effective limits changed.
    LimitsUpdated(LimitsUpdate),
    /// The organization and its usage were deleted.
    OrganizationDeleted(Deletion),
}

impl Event {
    /// Its type.
    pub fn event_type(&self) -> EventType {
        match self {
            Self::UsageWarning(_) => EventType::UsageWarning,
            Self::LimitExceeded(_) => EventType::LimitExceeded,
            Self::UsageReset(_) => EventType::UsageReset,
            Self::LimitsUpdated(_) => EventType::LimitsUpdated,
            Self::OrganizationDeleted(_) => EventType::OrganizationDeleted,
        }
    }

    /// The organization.
    pub fn organization(&self) -> &OrganizationId {
        match self {
            Self::UsageWarning(crossing) | Self::LimitExceeded(crossing) => {
                &crossing.organization_id
            }
            Self::UsageReset(reset) => &reset.organization_id,
            Self::LimitsUpdated(update) => &update.organization_id,
            Self::OrganizationDeleted(deletion) => &deletion.organization_id,
        }
    }

    /// The crossing, if it is one. It is recorded once for each threshold.
    pub fn crossing(&self) -> Option<&ThresholdCrossing> {
        match self {
            Self::UsageWarning(crossing) | Self::LimitExceeded(crossing) => Some(crossing),
            Self::UsageReset(_) | Self::LimitsUpdated(_) | Self::OrganizationDeleted(_) => None,
        }
    }
}

/// The payload of a crossed threshold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ThresholdCrossing {
    /// The organization.
    pub organization_id: OrganizationId,
    /// The meter.
    pub meter: MeterId,
    /// The percentage of the limit.
    pub threshold: u16,
    /// The count that crossed it.
    pub current: Count,
    /// The limit.
    pub limit: Count,
    /// When the period began.
    pub period_start: DateTime<Utc>,
    /// When the period ends, unless in manual mode.
    pub reset_date: Option<DateTime<Utc>>,
    /// The policy version since which the limit has been effective; 0 since the period began.
    #[serde(skip)]
    pub limit_version: u64,
}

/// The payload of a reset.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Reset {
    /// The organization.
    pub organization_id: OrganizationId,
    /// The meter.
    pub meter: MeterId,
    /// The reset mode that ended the period.
    pub reset_type: String,
    /// The count of the ended period.
    pub previous_count: Count,
    /// When the new period began.
    pub period_start: DateTime<Utc>,
    /// When the period ends, unless in manual mode.
    pub reset_date: Option<DateTime<Utc>>,
}

/// The payload of a change of limits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LimitsUpdate {
    /// The organization.
    pub organization_id: OrganizationId,
    /// The effective limits, by meter.
    pub limits: BTreeMap<MeterId, MeterLimit>,
    /// Those before the change.
    pub previous_limits: BTreeMap<MeterId, MeterLimit>,
}

/// The payload of a deletion.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Deletion {
    /// The organization.
    pub organization_id: OrganizationId,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_type_has_one_spelling() {
        for kind in EventType::VARIANTS {
            assert_eq!(kind.to_string().parse(), Ok(*kind));
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.to_string());
        }
        let words: Vec<String> = EventType::VARIANTS
            .iter()
            .map(ToString::to_string)
            .collect();
        let (last, others) = words.split_last().unwrap();
        assert_eq!(
            "usage".parse::<EventType>().unwrap_err().to_string(),
            format!("must be {} or {last}", others.join(", ")),
        );
    }
}
