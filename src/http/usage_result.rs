//! The usage result: the response of calls that count, which a refusal carries too.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::Serialize;
use utoipa::ToSchema;

use super::instant::{self, whole_second};
use crate::domain::decision::Operation;
use crate::domain::ids::{MeterId, OrganizationId};
use crate::domain::limit::Enforcement;
use crate::domain::quantity::Count;
use crate::usage::{Decided, MeterUsage, Request};

/// The usage result.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[serde(untagged)]
pub(super) enum UsageResult {
    /// Of a call with `meter`, or without any meter.
    One {
        #[serde(flatten)]
        result: MeterResult,
        #[serde(flatten)]
        denial: Denial,
        #[serde(flatten)]
        degradation: Degradation,
    },
    /// Of a call with `meters`.
    Several {
        allowed: bool,
        #[serde(rename = "organizationId")]
        organization_id: OrganizationId,
        meters: BTreeMap<MeterId, MeterResult>,
        #[serde(flatten)]
        denial: Denial,
        #[serde(flatten)]
        degradation: Degradation,
    },
}

/// How a call was admitted without a decision; empty where it was decided.
#[derive(Debug, Clone, Default, Serialize, ToSchema)]
pub(super) struct Degradation {
    /// True if the counters were unreachable: nothing was enforced, and counts are null; else absent.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    #[schema(required = false)]
    degraded: bool,
    /// True if the call is committed, and counted once the counters are back; else absent.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    #[schema(required = false)]
    queued: bool,
}

/// Why a call was refused; empty where it was not.
#[derive(Debug, Clone, Default, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct Denial {
    /// The meters that refused, which may be among those in `require`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(required = false)]
    denied_by: Vec<MeterId>,
    /// True for the first call that one of these meters refuses in its period; else absent, and always absent from a
    /// check. Of concurrent refusals one has it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    #[schema(required = false)]
    first: bool,
    /// The first instant at which the same call would be granted without other usage; absent where waiting does not help.
    #[serde(
        serialize_with = "instant::optional",
        skip_serializing_if = "Option::is_none"
    )]
    #[schema(nullable = false)]
    retry_at: Option<DateTime<Utc>>,
}

/// The state of one meter after the decision.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct MeterResult {
    /// Whether the call was granted; for a track or a refund, whether usage is within the hard limit afterwards.
    allowed: bool,
    organization_id: OrganizationId,
    meter: MeterId,
    /// The requested amount.
    amount: u64,
    /// The units refunded, which may be fewer than the amount.
    #[serde(skip_serializing_if = "Option::is_none")]
    applied: Option<u64>,
    /// Units counted in the period; null where `degraded`.
    #[schema(required)]
    current: Option<Count>,
    /// Units included in the period; null is unlimited.
    #[schema(required)]
    limit: Option<Count>,
    /// `limit - current`, never below 0; null where the limit is null, or `degraded`.
    #[schema(required)]
    remaining: Option<Count>,
    /// `current - limit`, never below 0; null where `degraded`.
    #[schema(required)]
    overage: Option<Count>,
    /// The percentages of `warnAt` that this call crossed; absent if none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(required = false)]
    crossed: Vec<u16>,
    /// Among several meters: true for the first call that this meter refuses in its period.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    #[schema(required = false)]
    first: bool,
    enforcement: Enforcement,
    /// When the period began.
    #[serde(serialize_with = "instant::required")]
    period_start: DateTime<Utc>,
    /// When the next begins; null where the period does not end by itself.
    #[schema(required)]
    #[serde(serialize_with = "instant::optional")]
    reset_date: Option<DateTime<Utc>>,
}

impl UsageResult {
    /// The result of a decision; `several` is whether the call named `meters`.
    pub(super) fn new(request: &Request, decided: &Decided, several: bool) -> Self {
        let allowed = |usage: &MeterUsage| match request.kind {
            // Always counted; the caller acts on the limit.
            Operation::Track | Operation::Refund => {
                usage.rule.cap().is_none_or(|cap| usage.used <= cap)
            }
            Operation::Consume | Operation::Check => decided.granted,
        };
        let known = decided.degraded.is_none();
        let degradation = Degradation {
            degraded: !known,
            queued: decided.degraded.is_some_and(|it| it.queued),
        };
        let counts = matches!(request.kind, Operation::Track | Operation::Consume);
        let first = |usage: &MeterUsage| usage.refused.is_some_and(|refused| refused.first);
        let meter_result = |usage: &MeterUsage| MeterResult {
            allowed: allowed(usage),
            organization_id: request.organization.clone(),
            meter: usage.meter.clone(),
            amount: usage.demand.amount,
            applied: (request.kind == Operation::Refund).then_some(usage.given_back),
            current: known.then_some(usage.used),
            limit: usage.rule.limit,
            remaining: usage.remaining().filter(|_| known),
            overage: known.then(|| usage.overage()),
            crossed: if counts && decided.granted {
                decided.crossed(usage)
            } else {
                Vec::new()
            },
            // A single meter has it in its denial.
            first: false,
            enforcement: usage.rule.enforcement,
            period_start: usage.period.start,
            reset_date: usage.period.end,
        };
        let denial = if decided.granted {
            Denial::default()
        } else {
            Denial::of(decided)
        };
        match decided.meters.iter().find(|usage| usage.demand.amount > 0) {
            Some(charged) if !several => Self::One {
                result: meter_result(charged),
                denial,
                degradation,
            },
            _ => Self::Several {
                allowed: decided.meters.iter().all(allowed),
                organization_id: request.organization.clone(),
                meters: decided
                    .meters
                    .iter()
                    .map(|usage| {
                        let result = MeterResult {
                            first: first(usage),
                            ..meter_result(usage)
                        };
                        (usage.meter.clone(), result)
                    })
                    .collect(),
                denial,
                degradation,
            },
        }
    }

    /// The result as JSON.
    pub(super) fn to_json(&self) -> serde_json::Result<Vec<u8>> {
        match self.granted_to_json() {
            Some(json) => Ok(json),
            None => serde_json::to_vec(self),
        }
    }

    /// By hand where a single meter granted the call, as nearly always: the names and ids need no escaping, for which
    /// `serde_json` examines each of their characters.
    fn granted_to_json(&self) -> Option<Vec<u8>> {
        let Self::One {
            result,
            denial,
            degradation,
        } = self
        else {
            return None;
        };
        let plain = result.applied.is_none()
            && result.crossed.is_empty()
            && !result.first
            && denial.is_empty()
            && !degradation.degraded;
        let start = whole_second(&result.period_start).filter(|_| plain)?;
        let (quote, end) = match &result.reset_date {
            Some(end) => ("\"", Some(whole_second(end)?)),
            None => ("", None),
        };
        let end = end.as_ref().map_or(b"null".as_slice(), |it| it);
        let allowed = if result.allowed { "true" } else { "false" };
        let enforcement: &'static str = result.enforcement.into();
        let [
            mut amount,
            mut current,
            mut limit,
            mut remaining,
            mut overage,
        ] = [itoa::Buffer::new(); 5];
        let parts = [
            b"{\"allowed\":",
            allowed.as_bytes(),
            b",\"organizationId\":\"",
            result.organization_id.as_str().as_bytes(),
            b"\",\"meter\":\"",
            result.meter.as_str().as_bytes(),
            b"\",\"amount\":",
            amount.format(result.amount).as_bytes(),
            b",\"current\":",
            digits(result.current, &mut current),
            b",\"limit\":",
            digits(result.limit, &mut limit),
            b",\"remaining\":",
            digits(result.remaining, &mut remaining),
            b",\"overage\":",
            digits(result.overage, &mut overage),
            b",\"enforcement\":\"",
            enforcement.as_bytes(),
            b"\",\"periodStart\":\"",
            &start,
            b"\",\"resetDate\":",
            quote.as_bytes(),
            end,
            quote.as_bytes(),
            b"}",
        ];
        Some(parts.concat())
    }
}

/// A count, or null.
fn digits(count: Option<Count>, buffer: &mut itoa::Buffer) -> &[u8] {
    count.map_or(b"null", |it| buffer.format(it.get()).as_bytes())
}

impl Denial {
    fn is_empty(&self) -> bool {
        self.denied_by.is_empty() && !self.first && self.retry_at.is_none()
    }

    fn of(decided: &Decided) -> Self {
        let refused = |usage: &MeterUsage| Some((usage.meter.clone(), usage.refused?));
        let refused: Vec<_> = decided.meters.iter().filter_map(refused).collect();
        Self {
            first: refused.iter().any(|(_, refused)| refused.first),
            denied_by: refused.into_iter().map(|(meter, _)| meter).collect(),
            retry_at: decided.earliest_grant,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::option::of;
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    prop_compose! {
        fn results()(
            allowed: bool,
            amount: u64,
            counts in proptest::array::uniform4(of(0..9_000_000_000_000_000_u64)),
            applied in of(0..10_u64),
            crossed in prop_oneof![3 => Just(vec![]), 1 => Just(vec![80, 100])],
            (denied, degraded, soft) in any::<(bool, bool, bool)>(),
            start in 0..4_000_000_000_i64,
            fraction in prop_oneof![3 => Just(0), 1 => 0..1000_i64],
            end in of(0..4_000_000_000_i64),
        ) -> UsageResult {
            let [current, limit, remaining, overage] =
                counts.map(|it| it.map(|it| Count::try_from(it).unwrap()));
            let result = MeterResult {
                allowed,
                organization_id: "org_123".parse().unwrap(),
                meter: "api.calls".parse().unwrap(),
                amount,
                applied,
                current,
                limit,
                remaining,
                overage,
                crossed,
                first: false,
                enforcement: if soft { Enforcement::Soft } else { Enforcement::Hard },
                period_start: DateTime::from_timestamp_millis(start * 1000 + fraction).unwrap(),
                reset_date: end.map(|it| DateTime::from_timestamp(it, 0).unwrap()),
            };
            let denial = Denial {
                denied_by: if denied { vec!["api.calls".parse().unwrap()] } else { vec![] },
                ..Denial::default()
            };
            let degradation = Degradation { degraded, queued: false };
            UsageResult::One { result, denial, degradation }
        }
    }

    proptest! {
        #[test]
        fn what_is_written_by_hand_is_what_serde_writes(result in results()) {
            let text = serde_json::to_string(&result).unwrap();
            prop_assert_eq!(String::from_utf8(result.to_json().unwrap()).unwrap(), text);
        }
    }

    #[test]
    fn a_granted_call_is_written_by_hand() {
        let count = |it| Some(Count::try_from(it).unwrap());
        let result = UsageResult::One {
            result: MeterResult {
                allowed: true,
                organization_id: "org_123".parse().unwrap(),
                meter: "api".parse().unwrap(),
                amount: 2,
                applied: None,
                current: count(7_u64),
                limit: count(1000),
                remaining: count(993),
                overage: count(0),
                crossed: Vec::new(),
                first: false,
                enforcement: Enforcement::Hard,
                period_start: DateTime::UNIX_EPOCH,
                reset_date: None,
            },
            denial: Denial::default(),
            degradation: Degradation::default(),
        };
        let json: Value = serde_json::from_slice(&result.granted_to_json().unwrap()).unwrap();
        assert_eq!(json, serde_json::to_value(&result).unwrap());
    }
}
