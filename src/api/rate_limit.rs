//! `RateLimit-Policy` and `RateLimit`: what may be used and what is left of it, for clients that know
//! nothing else of this service (draft-ietf-httpapi-ratelimit-headers-11).

use std::fmt::Write as _;

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use chrono::{DateTime, Duration, Utc};

use crate::domain::quantity::Count;
use crate::metering::MeterUsage;

const POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
const LIMIT: HeaderName = HeaderName::from_static("ratelimit");

/// The largest integer that a structured field can hold (RFC 9651); larger limits read as this.
const INTEGER_MAX: u64 = 999_999_999_999_999;

/// One member for each meter that has a limit; no header where none has.
pub(super) fn describe(meters: &[MeterUsage], now: DateTime<Utc>, headers: &mut HeaderMap) {
    let (mut policies, mut limits) = (String::new(), String::new());
    for usage in meters {
        let (Some(limit), Some(remaining)) = (usage.rule.limit, usage.remaining()) else {
            continue;
        };
        if !policies.is_empty() {
            policies.push_str(", ");
            limits.push_str(", ");
        }
        // No character of a meter's name means anything inside a quoted string. Writing to memory does not fail.
        let meter = &usage.meter;
        let (quota, left) = (integer(limit), integer(remaining));
        let _ = write!(policies, "\"{meter}\";q={quota}");
        let _ = write!(limits, "\"{meter}\";r={left}");
        // Without an end there is no window, and nothing to wait for.
        if let Some(end) = usage.period.end {
            let window = seconds(end - usage.period.start).max(1);
            let wait = seconds(end - now);
            let _ = write!(policies, ";w={window}");
            let _ = write!(limits, ";t={wait}");
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

fn integer(count: Count) -> u64 {
    count.get().min(INTEGER_MAX)
}

/// Rounded up, as in `Retry-After`: a caller that waits exactly this long must find the new period.
fn seconds(duration: Duration) -> u64 {
    let milliseconds = u64::try_from(duration.num_milliseconds()).unwrap_or(0);
    milliseconds.div_ceil(1000).min(INTEGER_MAX)
}
