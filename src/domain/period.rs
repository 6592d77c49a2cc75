//! Periods, and the words for their length and their end.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use strum::{Display, EnumString, VariantArray};
use utoipa::ToSchema;

use super::text::{InvalidWord, invalid_word};

/// What ends a period.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Hash,
    Serialize,
    Deserialize,
    ToSchema,
    Display,
    EnumString,
    VariantArray,
)]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase")]
#[strum(parse_err_ty = InvalidWord, parse_err_fn = invalid_word::<ResetMode>)]
pub enum ResetMode {
    /// The first call after the end opens the next period.
    Lazy,
    /// A job closes the period on time, without a call.
    Scheduled,
    /// Only an explicit reset.
    Manual,
}

/// The length of a period, shortest first.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Hash,
    Serialize,
    Deserialize,
    ToSchema,
    Display,
    EnumString,
    VariantArray,
)]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase")]
#[strum(parse_err_ty = InvalidWord, parse_err_fn = invalid_word::<ResetPeriod>)]
pub enum ResetPeriod {
    /// An hour of the wall clock.
    Hourly,
    /// A local day: 23 or 25 hours when the clocks change.
    Daily,
    /// Seven local days.
    Weekly,
    /// From a day of the month to the same day of the next.
    Monthly,
    /// From a day of the year to the same day of the next.
    Yearly,
}

/// The half-open interval `[start, end)` that a count belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Period {
    /// The first instant of the period, which also identifies the count.
    pub start: DateTime<Utc>,
    /// The first instant after the period; `None` in manual mode.
    pub end: Option<DateTime<Utc>>,
}

impl Period {
    /// Whether `at` is counted in this period.
    pub fn contains(&self, at: DateTime<Utc>) -> bool {
        self.start <= at && self.end.is_none_or(|end| at < end)
    }

    /// The period, ended at `cut` if it would end later.
    #[must_use]
    pub(super) fn ending_by(self, cut: Option<DateTime<Utc>>) -> Self {
        let end = match (self.end, cut) {
            (Some(end), Some(cut)) => Some(end.min(cut)),
            (end, cut) => end.or(cut),
        };
        Self { end, ..self }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn modes_and_periods_have_one_spelling() {
        for mode in ResetMode::VARIANTS {
            assert_eq!(mode.to_string().parse(), Ok(*mode));
            assert_eq!(json!(mode), json!(mode.to_string()));
        }
        for period in ResetPeriod::VARIANTS {
            assert_eq!(period.to_string().parse(), Ok(*period));
            assert_eq!(json!(period), json!(period.to_string()));
        }
        let error = "fortnightly".parse::<ResetPeriod>().unwrap_err();
        assert_eq!(
            error.to_string(),
            "must be hourly, daily, weekly, monthly or yearly"
        );
        let error = "Lazy".parse::<ResetMode>().unwrap_err();
        assert_eq!(error.to_string(), "must be lazy, scheduled or manual");
    }
}
