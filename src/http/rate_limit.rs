//! `RateLimit-Policy` and `RateLimit`: what may be used and what is left of it, for clients that know
//! nothing else of this service (draft-ietf-httpapi-ratelimit-headers-11).

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use chrono::{DateTime, Duration, Utc};

use crate::domain::quantity::Count;
use crate::usage::MeterUsage;

const POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
const LIMIT: HeaderName = HeaderName::from_static("ratelimit");

/// The largest integer that a structured field can hold (RFC 9651); larger limits read as this.
const INTEGER_MAX: u64 = 999_999_999_999_999;

/// What a header with one meter takes at most, as a rule.
const LENGTH: usize = 64;

/// One member for each meter that has a limit; no header where none has. Of a period that is over nothing is told: nobody
/// can use what is left of it.
pub(super) fn describe(meters: &[MeterUsage], now: DateTime<Utc>, headers: &mut HeaderMap) {
    let (mut policies, mut limits) = (String::with_capacity(LENGTH), String::with_capacity(LENGTH));
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
        // No character of a meter's name means anything inside a quoted string.
        for (members, parameter, units) in [
            (&mut policies, "\";q=", limit),
            (&mut limits, "\";r=", remaining),
        ] {
            members.push('"');
            members.push_str(usage.meter.as_str());
            push(members, parameter, integer(units));
        }
        // Without an end there is no window.
        if let Some(end) = usage.period.end {
            push(
                &mut policies,
                ";w=",
                seconds(end - usage.period.start).max(1),
            );
        }
        if let Some(renews_at) = usage.renews_at {
            push(&mut limits, ";t=", seconds(renews_at - now));
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

/// Without the machinery of formatting, because every counted call has these.
fn push(members: &mut String, parameter: &str, number: u64) {
    members.push_str(parameter);
    members.push_str(itoa::Buffer::new().format(number));
}

fn integer(count: Count) -> u64 {
    count.get().min(INTEGER_MAX)
}

/// Rounded up, in `Retry-After` too: a caller that waits exactly this long must find what it waited for.
pub(super) fn seconds(duration: Duration) -> u64 {
    let milliseconds = u64::try_from(duration.num_milliseconds()).unwrap_or(0);
    milliseconds.div_ceil(1000).min(INTEGER_MAX)
}
