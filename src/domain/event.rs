//! What happens to organizations and is worth telling: recorded once, listed, and sent to webhooks.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::ids::{MeterId, OrganizationId};
use super::policy::MeterLimit;
use super::quantity::Count;

/// A kind of event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
pub enum EventType {
    /// A percentage of `warnAt` was reached.
    #[serde(rename = "usage.warning")]
    UsageWarning,
    /// The limit was passed, or a hard one refused for the first time.
    #[serde(rename = "usage.limit_exceeded")]
    LimitExceeded,
    /// A period was ended by a reset.
    #[serde(rename = "usage.reset")]
    UsageReset,
    /// The limits in force are others.
    #[serde(rename = "limits.updated")]
    LimitsUpdated,
    /// Nothing is left of an organization.
    #[serde(rename = "organization.deleted")]
    OrganizationDeleted,
    /// Somebody tries a webhook, and only that one is told.
    #[serde(rename = "webhook.test")]
    WebhookTest,
}

impl EventType {
    /// All types.
    pub const ALL: [Self; 6] = [
        Self::UsageWarning,
        Self::LimitExceeded,
        Self::UsageReset,
        Self::LimitsUpdated,
        Self::OrganizationDeleted,
        Self::WebhookTest,
    ];

    /// The name in JSON and SQL.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::UsageWarning => "usage.warning",
            Self::LimitExceeded => "usage.limit_exceeded",
            Self::UsageReset => "usage.reset",
            Self::LimitsUpdated => "limits.updated",
            Self::OrganizationDeleted => "organization.deleted",
            Self::WebhookTest => "webhook.test",
        }
    }
}

impl fmt::Display for EventType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// What is not a type of event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("is not a type of event")]
pub struct InvalidEventType;

impl FromStr for EventType {
    type Err = InvalidEventType;

    fn from_str(text: &str) -> Result<Self, InvalidEventType> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.as_str() == text)
            .ok_or(InvalidEventType)
    }
}

/// An event about an organization, as whoever makes it true tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A percentage of `warnAt` was reached.
    UsageWarning(ThresholdCrossing),
    /// The limit was passed, or a hard one refused for the first time; the threshold is 100.
    LimitExceeded(ThresholdCrossing),
    /// A period was ended by a reset.
    UsageReset(Reset),
    /// The limits in force are others.
    LimitsUpdated(LimitsUpdate),
    /// Nothing is left of an organization.
    OrganizationDeleted(Deletion),
}

impl Event {
    /// What kind it is.
    pub fn event_type(&self) -> EventType {
        match self {
            Self::UsageWarning(_) => EventType::UsageWarning,
            Self::LimitExceeded(_) => EventType::LimitExceeded,
            Self::UsageReset(_) => EventType::UsageReset,
            Self::LimitsUpdated(_) => EventType::LimitsUpdated,
            Self::OrganizationDeleted(_) => EventType::OrganizationDeleted,
        }
    }

    /// Whom it is about.
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

    /// The crossing, where it is one: there is only one such event of it.
    pub fn crossing(&self) -> Option<&ThresholdCrossing> {
        match self {
            Self::UsageWarning(crossing) | Self::LimitExceeded(crossing) => Some(crossing),
            Self::UsageReset(_) | Self::LimitsUpdated(_) | Self::OrganizationDeleted(_) => None,
        }
    }
}

/// What is told of a threshold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ThresholdCrossing {
    /// Whose.
    pub organization_id: OrganizationId,
    /// Of what.
    pub meter: MeterId,
    /// Per cent of the limit.
    pub threshold: u16,
    /// Units counted when it was crossed.
    pub current: Count,
    /// The limit that the threshold is of.
    pub limit: Count,
    /// When the period began.
    pub period_start: DateTime<Utc>,
    /// When the next begins, if the period ends by itself.
    pub reset_date: Option<DateTime<Utc>>,
    /// The policy version since which this limit holds; 0 since the period began.
    #[serde(skip)]
    pub limit_version: u64,
}

/// What is told of a reset.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Reset {
    /// Whose.
    pub organization_id: OrganizationId,
    /// Of what.
    pub meter: MeterId,
    /// What caused it, in a word.
    pub reset_type: String,
    /// Units counted in the period that it ended.
    pub previous_count: Count,
    /// When the new period began.
    pub period_start: DateTime<Utc>,
    /// When the next begins, if the period ends by itself.
    pub reset_date: Option<DateTime<Utc>>,
}

/// What is told of a change of limits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LimitsUpdate {
    /// Whose.
    pub organization_id: OrganizationId,
    /// The limits in force from now on, by meter.
    pub limits: BTreeMap<MeterId, MeterLimit>,
}

/// What is told of a deletion.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Deletion {
    /// Who is gone.
    pub organization_id: OrganizationId,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_type_has_one_name() {
        for kind in EventType::ALL {
            assert_eq!(kind.as_str().parse(), Ok(kind));
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.as_str());
        }
        assert_eq!("usage".parse::<EventType>(), Err(InvalidEventType));
    }
}
