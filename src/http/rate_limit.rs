//! The `RateLimit-Policy` and `RateLimit` headers, for generic clients (draft-ietf-httpapi-ratelimit-headers-11).

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use chrono::{DateTime, Duration, Utc};

use crate::domain::quantity::Count;
use crate::usage::MeterUsage;

const POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
const LIMIT: HeaderName = HeaderName::from_static("ratelimit");

/// The largest integer of a structured field (RFC 9651); larger limits are capped.
const INTEGER_MAX: u64 = 999_999_999_999_999;

/// Usually enough for a header with one meter.
const CAPACITY: usize = 64;

/// Adds one member for each meter with a limit; no header where no meter has one. Omits ended periods, whose rest cannot
/// be used any more.
pub(super) fn describe(meters: &[MeterUsage], now: DateTime<Utc>, headers: &mut HeaderMap) {
    let mut members = Vec::with_capacity(CAPACITY);
    for name in [POLICY, LIMIT] {
        members.clear();
        for usage in meters {
            let (Some(limit), Some(remaining)) = (usage.rule.limit, usage.remaining()) else {
                continue;
            };
            if usage.period.end.is_some_and(|end| end <= now) {
                continue;
            }
            let separator: &[u8] = if members.is_empty() { b"\"" } else { b", \"" };
            members.extend_from_slice(separator);
            // A meter's name needs no escaping inside a quoted string.
            members.extend_from_slice(usage.meter.as_str().as_bytes());
            let (renewal, renews_in) = if name == POLICY {
                push(&mut members, b"\";q=", integer(limit));
                // A period without end has no window.
                let length = usage.period.end.map(|end| until(end, usage.period.start));
                (b";w=", length.map(|it| it.max(1)))
            } else {
                push(&mut members, b"\";r=", integer(remaining));
                (b";t=", usage.renews_at.map(|at| until(at, now)))
            };
            if let Some(renews_in) = renews_in {
                push(&mut members, renewal, renews_in);
            }
        }
        if !members.is_empty()
            && let Ok(value) = HeaderValue::from_bytes(&members)
        {
            headers.insert(name, value);
        }
    }
}

/// Faster than `format!`: these headers are on the hot path.
fn push(members: &mut Vec<u8>, parameter: &[u8], number: u64) {
    members.extend_from_slice(parameter);
    members.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
}

fn integer(count: Count) -> u64 {
    count.get().min(INTEGER_MAX)
}

/// Rounded up: a caller that waits exactly this long, also after `Retry-After`, must find the new period.
pub(super) fn seconds(duration: Duration) -> u64 {
    whole_seconds(duration.num_milliseconds())
}

/// The same from one instant until another, of which neither is converted to a date.
fn until(at: DateTime<Utc>, from: DateTime<Utc>) -> u64 {
    whole_seconds(
        at.timestamp_millis()
            .saturating_sub(from.timestamp_millis()),
    )
}

fn whole_seconds(milliseconds: i64) -> u64 {
    let milliseconds = u64::try_from(milliseconds).unwrap_or(0);
    milliseconds.div_ceil(1000).min(INTEGER_MAX)
}
