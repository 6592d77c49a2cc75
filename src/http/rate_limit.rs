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
    let (mut policies, mut limits) = (
        String::with_capacity(CAPACITY),
        String::with_capacity(CAPACITY),
    );
    for usage in meters {
        let (Some(limit), Some(remaining)) = (usage.rule.limit, usage.remaining()) else {
            continue;
        };
        if usage.period.end.is_some_and(|end| end <= now) {
            continue;
        }
        if !policies.is_empty() {
            policies.push_str(", ");
            limits.push_str(", ");
        }
        // A meter's name needs no escaping inside a quoted string.
        for (members, parameter, units) in [
            (&mut policies, "\";q=", limit),
            (&mut limits, "\";r=", remaining),
        ] {
            members.push('"');
            members.push_str(usage.meter.as_str());
            push(members, parameter, integer(units));
        }
        // A period without end has no window.
        if let Some(end) = usage.period.end {
            push(&mut policies, ";w=", until(end, usage.period.start).max(1));
        }
        if let Some(renews_at) = usage.renews_at {
            push(&mut limits, ";t=", until(renews_at, now));
        }
    }
    for (name, members) in [(POLICY, policies), (LIMIT, limits)] {
        if !members.is_empty()
            && let Ok(value) = HeaderValue::try_from(members)
        {
            headers.insert(name, value);
        }
    }
}

/// Faster than `format!`: these headers are on the hot path.
fn push(members: &mut String, parameter: &str, number: u64) {
    members.push_str(parameter);
    members.push_str(itoa::Buffer::new().format(number));
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
