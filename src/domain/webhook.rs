//! Webhooks: where events are sent to, and when a delivery that failed is tried again.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::event::EventType;
use super::ids::{EventId, OrganizationId, WebhookId};
use super::patch::{double_option, not_null};

/// A webhook, as it is shown: all but its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(example = json!({
    "id": "wh_01a207e5f2407000a3f0c2d9e8b7a695", "url": "https://example.com/tallyman",
    "events": ["usage.warning", "usage.limit_exceeded"], "organizationId": null, "enabled": true, "disabledReason": null,
    "disabledAt": null, "failingSince": null, "previousSecretUntil": null, "createdAt": "2026-11-23T10:14:00Z"
}))]
pub struct Webhook {
    /// Names it.
    pub id: WebhookId,
    /// Where events are sent to.
    pub url: String,
    /// The types that are sent; null is all.
    #[schema(required)]
    pub events: Option<BTreeSet<EventType>>,
    /// Whose events are sent; null is everybody's.
    #[schema(required)]
    pub organization_id: Option<OrganizationId>,
    /// Whether anything is sent.
    pub enabled: bool,
    /// Why nothing is.
    #[schema(required)]
    pub disabled_reason: Option<DisabledReason>,
    /// Since when nothing is.
    #[schema(required)]
    pub disabled_at: Option<DateTime<Utc>>,
    /// The first failure since something last arrived.
    #[schema(required)]
    pub failing_since: Option<DateTime<Utc>>,
    /// Until when the secret before this one signs as well.
    #[schema(required)]
    pub previous_secret_until: Option<DateTime<Utc>>,
    /// When it was made.
    pub created_at: DateTime<Utc>,
}

/// Why a webhook is disabled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum DisabledReason {
    /// Somebody wished it.
    Asked,
    /// It answered 410.
    Gone,
    /// Nothing has arrived for 5 days.
    Failing,
}

impl DisabledReason {
    /// The word in JSON and SQL.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Asked => "asked",
            Self::Gone => "gone",
            Self::Failing => "failing",
        }
    }
}

impl FromStr for DisabledReason {
    type Err = UnknownWord;

    fn from_str(text: &str) -> Result<Self, UnknownWord> {
        [Self::Asked, Self::Gone, Self::Failing]
            .into_iter()
            .find(|reason| reason.as_str() == text)
            .ok_or(UnknownWord)
    }
}

/// A word that nobody has written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("is unknown")]
pub struct UnknownWord;

/// A webhook as somebody wishes it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schema(example = json!({"url": "https://example.com/tallyman", "events": ["usage.warning", "usage.limit_exceeded"]}))]
pub struct NewWebhook {
    /// `http://` or `https://`, without a user or a password.
    pub url: String,
    /// The types that are sent; null is all.
    #[schema(min_items = 1)]
    pub events: Option<BTreeSet<EventType>>,
    /// Whose events are sent; null is everybody's.
    pub organization_id: Option<OrganizationId>,
}

/// A change of a webhook; what is absent stays.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schema(example = json!({"events": null, "enabled": true}))]
pub struct WebhookChange {
    /// `http://` or `https://`, without a user or a password.
    #[serde(default, deserialize_with = "not_null")]
    #[schema(nullable = false)]
    pub url: Option<String>,
    /// The types that are sent; null is all.
    #[serde(default, deserialize_with = "double_option")]
    #[schema(value_type = Option<BTreeSet<EventType>>, min_items = 1)]
    pub events: Option<Option<BTreeSet<EventType>>>,
    /// Whose events are sent; null is everybody's.
    #[serde(default, deserialize_with = "double_option")]
    #[schema(value_type = Option<OrganizationId>)]
    pub organization_id: Option<Option<OrganizationId>>,
    /// Whether anything is sent. What waits when a webhook is disabled is tried again when it is enabled.
    #[serde(default, deserialize_with = "not_null")]
    #[schema(nullable = false)]
    pub enabled: Option<bool>,
}

/// Why a webhook is not made, or not changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub struct InvalidWebhook {
    /// The field at fault.
    pub field: &'static str,
    /// What is wrong with it.
    pub detail: String,
}

impl InvalidWebhook {
    /// A URL that nothing is sent to.
    pub fn url(detail: impl Into<String>) -> Self {
        Self {
            field: "url",
            detail: detail.into(),
        }
    }
}

/// Refuses types that are none, or that cannot be wished.
pub fn check_events(events: Option<&BTreeSet<EventType>>) -> Result<(), InvalidWebhook> {
    let detail = match events {
        Some(none) if none.is_empty() => {
            "must name at least one type, or be null for all; got an empty array"
        }
        Some(types) if types.contains(&EventType::WebhookTest) => {
            "must not name webhook.test, which is sent to whoever is tested and to nobody else"
        }
        _ => return Ok(()),
    };
    Err(InvalidWebhook {
        field: "events",
        detail: detail.to_owned(),
    })
}

/// What deliveries are signed with. Printing it for debugging hides it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub [u8; 32]);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

/// An event for a webhook, and what became of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(example = json!({
    "id": "evt_01a207e5f2407000a3f0c2d9e8b7a695", "type": "usage.warning", "timestamp": "2026-11-23T10:14:00Z",
    "status": "pending", "attempts": 1, "nextAttemptAt": "2026-11-23T10:14:06.1Z",
    "lastAttemptAt": "2026-11-23T10:14:01Z", "responseStatus": 503, "latencyMs": 12, "responseBody": "try later", "error": null
}))]
pub struct Delivery {
    /// The event's, which every try sends as `webhook-id`.
    pub id: EventId,
    /// The event's.
    pub r#type: EventType,
    /// When the event was recorded.
    pub timestamp: DateTime<Utc>,
    /// How it stands.
    pub status: DeliveryStatus,
    /// Tries since it was recorded, or last asked for again.
    pub attempts: u16,
    /// When it is tried next; null where it is not.
    #[schema(required)]
    pub next_attempt_at: Option<DateTime<Utc>>,
    /// When it was tried last; this and what follows are null before.
    #[schema(required)]
    pub last_attempt_at: Option<DateTime<Utc>>,
    /// The status of the last answer; null where there was none.
    #[schema(required)]
    pub response_status: Option<u16>,
    /// Milliseconds until it came, or until nobody waited any longer.
    #[schema(required)]
    pub latency_ms: Option<u32>,
    /// Its first KiB.
    #[schema(required)]
    pub response_body: Option<String>,
    /// Why there was none.
    #[schema(required)]
    pub error: Option<String>,
}

/// How a delivery stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum DeliveryStatus {
    /// It is to be tried, for the first time or again.
    Pending,
    /// It was answered with 2xx.
    Succeeded,
    /// It is not tried any more.
    Failed,
}

impl DeliveryStatus {
    /// The word in JSON and SQL.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
        }
    }
}

impl FromStr for DeliveryStatus {
    type Err = UnknownWord;

    fn from_str(text: &str) -> Result<Self, UnknownWord> {
        [Self::Pending, Self::Succeeded, Self::Failed]
            .into_iter()
            .find(|status| status.as_str() == text)
            .ok_or(UnknownWord)
    }
}

/// How long after each failed try comes the next, seconds: a day in all.
const PAUSES: [i64; 8] = [5, 30, 120, 600, 3600, 3 * 3600, 8 * 3600, 12 * 3600];

/// How long after the last of so many tries comes the next, if any does. `spread`, any number, moves it by a tenth
/// at most, so that what failed together is not tried together.
pub fn retry_delay(attempts: u16, spread: u64) -> Option<TimeDelta> {
    let seconds = PAUSES.get(usize::from(attempts).checked_sub(1)?)?;
    let per_mille = i64::try_from(spread % 201).ok()?.saturating_add(900);
    Some(TimeDelta::milliseconds(seconds.saturating_mul(per_mille)))
}

/// A webhook that has failed for so long is disabled.
pub const FAILING_MAX: TimeDelta = TimeDelta::days(5);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delivery_is_tried_nine_times_within_a_day_and_a_bit() {
        for spread in [0, 100, 200, u64::MAX] {
            let pauses: Vec<TimeDelta> = (1..)
                .map_while(|tries| retry_delay(tries, spread))
                .collect();
            assert_eq!(pauses.len(), 8);
            let all = pauses.iter().sum::<TimeDelta>();
            let day = TimeDelta::hours(24);
            assert!((day * 9 / 10..day * 12 / 10).contains(&all), "{all}");
        }
        assert_eq!(retry_delay(1, 100), Some(TimeDelta::seconds(5)));
        assert_eq!(retry_delay(3, 0), Some(TimeDelta::seconds(108)));
        assert_eq!(retry_delay(0, 0), None);
    }

    #[test]
    fn a_change_tells_null_from_absent() {
        let change = |json: &str| serde_json::from_str::<WebhookChange>(json).unwrap();
        assert_eq!(change("{}"), WebhookChange::default());
        assert_eq!(change(r#"{"events": null}"#).events, Some(None));
        assert_eq!(
            change(r#"{"organizationId": null}"#).organization_id,
            Some(None)
        );
    }
}
