//! What is expected of meters, as JSON.

use chrono::{DateTime, Utc};
use serde::Serialize;
use utoipa::ToSchema;

use crate::domain::ids::MeterId;
use crate::domain::projection::{Pace, Projection};
use crate::domain::quantity::Count;
use crate::postgres::summaries;

/// What is expected of a meter, if it is used as in the last 24 hours, and after the next 24 as in the last 7 days.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct Projected {
    /// The count at the end of the period; null if the period does not end by itself.
    #[schema(required)]
    used: Option<Count>,
    /// When the limit is reached; null if it already is, or will not be before the period ends. After a temporary limit,
    /// the limit below it applies.
    #[schema(required)]
    full_at: Option<DateTime<Utc>>,
    #[serde(flatten)]
    lately: Lately,
}

/// The meter that is expected to be full first.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct Exhausted {
    meter: MeterId,
    /// When its limit is reached.
    full_at: DateTime<Utc>,
    #[serde(flatten)]
    lately: Lately,
}

/// How much a meter was used lately.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct Lately {
    /// Units of the last 24 hours, of which the current one is not over.
    last_day: u64,
    /// The median of the 6 days before; null if fewer than 3 of them are known.
    #[schema(required)]
    usual_day: Option<u64>,
    /// `lastDay` divided by `usualDay`, rounded to one decimal; null if that is null or 0.
    #[schema(required)]
    times_usual: Option<f64>,
}

impl From<Projection> for Projected {
    fn from(projection: Projection) -> Self {
        Self {
            used: projection.used,
            full_at: projection.full_at,
            lately: projection.pace.into(),
        }
    }
}

impl From<summaries::Exhausted> for Exhausted {
    fn from(exhausted: summaries::Exhausted) -> Self {
        Self {
            meter: exhausted.meter,
            full_at: exhausted.at,
            lately: exhausted.pace.into(),
        }
    }
}

impl From<Pace> for Lately {
    #[expect(clippy::cast_precision_loss, reason = "shown to one decimal")]
    fn from(pace: Pace) -> Self {
        Self {
            last_day: pace.last_day(),
            usual_day: pace.usual_day,
            times_usual: pace.tenths_of_usual().map(|tenths| tenths as f64 / 10.0),
        }
    }
}
