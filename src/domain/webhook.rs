//! Webhooks, their deliveries and the back-off of retries.

use std::collections::BTreeSet;
use std::fmt;

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use strum::{Display, EnumString, VariantArray};
use utoipa::ToSchema;

use super::event::EventType;
use super::ids::{EventId, OrganizationId, WebhookId};
use super::input::{double_option, not_null};
use super::text::{InvalidWord, invalid_word};

/// A webhook as responses show it, without its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(example = json!({
    "id": "wh_01a207e5f2407000a3f0c2d9e8b7a695", "url": "https://example.com/tallyman",
    "events": ["usage.warning", "usage.limit_exceeded"], "organizationId": null, "enabled": true, "disabledReason": null,
    "disabledAt": null, "failingSince": null, "willBeDisabledAt": null, "lastSuccessAt": "2026-11-24T09:00:00Z",
    "previousSecretUntil": null, "createdAt": "2026-11-23T10:14:00Z"
}))]
pub struct Webhook {
    /// Its id.
    pub id: WebhookId,
    /// The URL that events are sent to.
    pub url: String,
    /// The event types that are sent; null is all.
    #[schema(required)]
    pub events: Option<BTreeSet<EventType>>,
    /// The organization whose events are sent; null is all.
    #[schema(required)]
    pub organization_id: Option<OrganizationId>,
    /// Whether events are sent.
    pub enabled: bool,
    /// Why it is disabled.
    #[schema(required)]
    pub disabled_reason: Option<DisabledReason>,
    /// Since when it is disabled.
    #[schema(required)]
    pub disabled_at: Option<DateTime<Utc>>,
    /// The first failure since the last success.
    #[schema(required)]
    pub failing_since: Option<DateTime<Utc>>,
    /// When it is disabled unless a delivery succeeds: by the first failure from then on. Null while it does not fail.
    #[schema(required)]
    pub will_be_disabled_at: Option<DateTime<Utc>>,
    /// When a delivery last succeeded; null if none has.
    #[schema(required)]
    pub last_success_at: Option<DateTime<Utc>>,
    /// Until when the previous secret signs as well.
    #[schema(required)]
    pub previous_secret_until: Option<DateTime<Utc>>,
    /// When it was created.
    pub created_at: DateTime<Utc>,
}

/// Why a webhook is disabled.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    Serialize,
    Deserialize,
    ToSchema,
    Display,
    EnumString,
    VariantArray,
)]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase")]
#[strum(parse_err_ty = InvalidWord, parse_err_fn = invalid_word::<DisabledReason>)]
pub enum DisabledReason {
    /// By a client.
    Asked,
    /// It responded with 410.
    Gone,
    /// Every delivery failed for 5 days.
    Failing,
}

/// The request to create a webhook.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schema(example = json!({"url": "https://example.com/tallyman", "events": ["usage.warning", "usage.limit_exceeded"]}))]
pub struct NewWebhook {
    /// An `http://` or `https://` URL without credentials.
    pub url: String,
    /// The event types that are sent; null is all.
    #[schema(min_items = 1)]
    pub events: Option<BTreeSet<EventType>>,
    /// The organization whose events are sent; null is all.
    pub organization_id: Option<OrganizationId>,
}

/// A patch of a webhook; absent fields stay.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schema(example = json!({"events": null, "enabled": true}))]
pub struct WebhookChange {
    /// An `http://` or `https://` URL without credentials.
    #[serde(default, deserialize_with = "not_null")]
    #[schema(nullable = false)]
    pub url: Option<String>,
    /// The event types that are sent; null is all.
    #[serde(default, deserialize_with = "double_option")]
    #[schema(value_type = Option<BTreeSet<EventType>>, min_items = 1)]
    pub events: Option<Option<BTreeSet<EventType>>>,
    /// The organization whose events are sent; null is all.
    #[serde(default, deserialize_with = "double_option")]
    #[schema(value_type = Option<OrganizationId>)]
    pub organization_id: Option<Option<OrganizationId>>,
    /// Whether events are sent. Deliveries pending when a webhook is disabled are retried when it is enabled.
    #[serde(default, deserialize_with = "not_null")]
    #[schema(nullable = false)]
    pub enabled: Option<bool>,
}

/// An invalid webhook.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub struct InvalidWebhook {
    /// The invalid field, as in JSON.
    pub field: &'static str,
    /// What is wrong with it.
    pub detail: String,
}

impl InvalidWebhook {
    /// An invalid URL.
    pub fn url(detail: impl Into<String>) -> Self {
        Self {
            field: "url",
            detail: detail.into(),
        }
    }
}

/// Rejects an empty list, and the type that cannot be subscribed to.
pub fn check_events(events: Option<&BTreeSet<EventType>>) -> Result<(), InvalidWebhook> {
    let detail = match events {
        Some(none) if none.is_empty() => {
            "must name at least one type, or be null for all; got an empty array"
        }
        Some(types) if types.contains(&EventType::WebhookTest) => {
            "must not name webhook.test, which is sent only to the webhook under test"
        }
        _ => return Ok(()),
    };
    Err(InvalidWebhook {
        field: "events",
        detail: detail.to_owned(),
    })
}

/// The key that signs deliveries. `Debug` hides it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub [u8; 32]);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

/// One event for one webhook, and its result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(example = json!({
    "id": "evt_01a207e5f2407000a3f0c2d9e8b7a695", "type": "usage.warning", "timestamp": "2026-11-23T10:14:00Z",
    "status": "pending", "attempts": 1, "nextAttemptAt": "2026-11-23T10:14:06.1Z",
    "lastAttemptAt": "2026-11-23T10:14:01Z", "responseStatus": 503, "latencyMs": 12, "responseBody": "try later", "error": null
}))]
pub struct Delivery {
    /// The event's id, which every attempt sends as `webhook-id`.
    pub id: EventId,
    /// The event's type.
    pub r#type: EventType,
    /// When the event was recorded.
    pub timestamp: DateTime<Utc>,
    /// Its status.
    pub status: DeliveryStatus,
    /// Attempts since it was recorded or redelivered.
    pub attempts: u16,
    /// When the next attempt is due; null if none is.
    #[schema(required)]
    pub next_attempt_at: Option<DateTime<Utc>>,
    /// The last attempt; this and the fields below are null before the first one.
    #[schema(required)]
    pub last_attempt_at: Option<DateTime<Utc>>,
    /// The HTTP status of the response; null without one.
    #[schema(required)]
    pub response_status: Option<u16>,
    /// Milliseconds until the response or the timeout.
    #[schema(required)]
    pub latency_ms: Option<u32>,
    /// The first KiB of the response body.
    #[schema(required)]
    pub response_body: Option<String>,
    /// Why there was no response.
    #[schema(required)]
    pub error: Option<String>,
}

/// The status of a delivery.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    Serialize,
    Deserialize,
    ToSchema,
    Display,
    EnumString,
    VariantArray,
)]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase")]
#[strum(parse_err_ty = InvalidWord, parse_err_fn = invalid_word::<DeliveryStatus>)]
pub enum DeliveryStatus {
    /// An attempt is due, now or later.
    Pending,
    /// The webhook responded with 2xx.
    Succeeded,
    /// No further attempt is made.
    Failed,
}

/// Seconds after each failed attempt until the next: a day in total.
const RETRY_DELAYS: [i64; 8] = [5, 30, 120, 600, 3600, 3 * 3600, 8 * 3600, 12 * 3600];

/// The delay after so many attempts until the next, if there is one. `jitter`, any number, changes it by at most a
/// tenth, so that deliveries that failed together are not retried together.
pub fn retry_delay(attempts: u16, jitter: u64) -> Option<TimeDelta> {
    let seconds = RETRY_DELAYS.get(usize::from(attempts).checked_sub(1)?)?;
    let per_mille = i64::try_from(jitter % 201).ok()?.saturating_add(900);
    Some(TimeDelta::milliseconds(seconds.saturating_mul(per_mille)))
}

/// A webhook is disabled after failing for so long.
pub const FAILING_MAX: TimeDelta = TimeDelta::days(5);

/// When an enabled webhook that is failing is disabled.
pub fn will_be_disabled_at(
    enabled: bool,
    failing_since: Option<DateTime<Utc>>,
) -> Option<DateTime<Utc>> {
    failing_since
        .filter(|_| enabled)?
        .checked_add_signed(FAILING_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delivery_is_attempted_nine_times_within_about_a_day() {
        for jitter in [0, 100, 200, u64::MAX] {
            let delays: Vec<TimeDelta> = (1..)
                .map_while(|attempts| retry_delay(attempts, jitter))
                .collect();
            assert_eq!(delays.len(), 8);
            let all = delays.iter().sum::<TimeDelta>();
            let day = TimeDelta::hours(24);
            assert!((day * 9 / 10..day * 12 / 10).contains(&all), "{all}");
        }
        assert_eq!(retry_delay(1, 100), Some(TimeDelta::seconds(5)));
        assert_eq!(retry_delay(3, 0), Some(TimeDelta::seconds(108)));
        assert_eq!(retry_delay(0, 0), None);
    }

    #[test]
    fn a_patch_tells_null_from_absent() {
        let change = |json: &str| serde_json::from_str::<WebhookChange>(json).unwrap();
        assert_eq!(change("{}"), WebhookChange::default());
        assert_eq!(change(r#"{"events": null}"#).events, Some(None));
        assert_eq!(
            change(r#"{"organizationId": null}"#).organization_id,
            Some(None)
        );
    }
}
