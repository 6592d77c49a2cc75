//! Rows of history, and the formats that they are written in.

use axum::http::HeaderMap;
use axum::http::header::ACCEPT;
use chrono::{DateTime, Utc};
use serde::Serialize;
use utoipa::ToSchema;

use crate::domain::ids::{MeterId, OrganizationId, PlanId};
use crate::domain::period::ResetMode;
use crate::domain::quantity::Count;
use crate::usage::history::Entry;

/// The usage of one meter in one hour, day, week, month or period. CSV has the same columns in this order.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(example = json!({
    "organizationId": "org_123", "meter": "api", "start": "2026-11-22T00:00:00Z", "end": "2026-11-23T00:00:00Z",
    "used": 40, "total": 40, "refunded": 2, "adjusted": 0, "denied": 1, "limit": 1000, "planId": null, "resetType": null, "open": false,
    "final": false
}))]
pub(in crate::http) struct HistoryRow {
    /// Absent in the history of one organization.
    #[serde(skip_serializing_if = "Option::is_none")]
    organization_id: Option<OrganizationId>,
    meter: MeterId,
    start: DateTime<Utc>,
    /// Null if the period does not end by itself.
    #[schema(required)]
    end: Option<DateTime<Utc>>,
    /// Units after refunds and adjustments; negative in an hour or day with more refunded than counted.
    used: i64,
    /// Only with `totals=true`, else null: units of the period in which the row ends, up to the row's end; 0 if that period has
    /// no count.
    #[schema(required)]
    total: Option<i64>,
    /// Units refunded; `used + refunded - adjusted` is the gross.
    refunded: u64,
    /// The sum of adjustments contained in `used`.
    adjusted: i64,
    /// Calls refused.
    denied: u64,
    /// The limit at the end of the row, or now if it is open; null if unlimited or unknown, and without `limits=true`, unless the
    /// row is a period.
    #[schema(required)]
    limit: Option<Count>,
    /// The plan of the organization at that time; null unless the row is a period.
    #[schema(required)]
    plan_id: Option<PlanId>,
    /// What ended the period; null while it runs, and unless the row is a period.
    #[schema(required)]
    reset_type: Option<ResetMode>,
    /// Whether the interval has not ended.
    open: bool,
    /// Whether late events can no longer change it.
    r#final: bool,
}

const COLUMNS: [&str; 14] = [
    "organizationId",
    "meter",
    "start",
    "end",
    "used",
    "total",
    "refunded",
    "adjusted",
    "denied",
    "limit",
    "planId",
    "resetType",
    "open",
    "final",
];

/// With the organization if `name_organization`.
pub(super) fn row(entry: Entry, name_organization: bool) -> HistoryRow {
    let Entry { row, open, settled } = entry;
    HistoryRow {
        organization_id: name_organization.then_some(row.position.organization),
        meter: row.position.meter,
        start: row.position.start,
        end: row.end,
        used: row.used,
        total: row.total,
        refunded: row.refunded,
        adjusted: row.adjusted,
        denied: row.denied,
        limit: row.limit,
        plan_id: row.plan,
        reset_type: row.reset_type,
        open,
        r#final: settled,
    }
}

/// The format of the response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Json,
    Csv,
    NdJson,
}

impl Format {
    /// The first supported format that the client accepts, else JSON.
    pub(super) fn accepted(headers: &HeaderMap) -> Self {
        headers
            .get_all(ACCEPT)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .filter_map(|range| range.split(';').next())
            .find_map(|media_type| match media_type.trim() {
                "text/csv" => Some(Self::Csv),
                "application/x-ndjson" => Some(Self::NdJson),
                "application/json" | "*/*" => Some(Self::Json),
                _ => None,
            })
            .unwrap_or(Self::Json)
    }

    pub(super) fn content_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Csv => "text/csv; charset=utf-8; header=present",
            Self::NdJson => "application/x-ndjson",
        }
    }

    /// What precedes the rows.
    pub(super) fn head(self, name_organization: bool) -> Result<Vec<u8>, csv::Error> {
        match self {
            Self::Csv => {
                let skipped = usize::from(!name_organization);
                let mut csv = csv_writer();
                csv.write_record(COLUMNS.iter().skip(skipped))?;
                finish(csv)
            }
            Self::Json | Self::NdJson => Ok(Vec::new()),
        }
    }

    pub(super) fn rows(self, rows: &[HistoryRow]) -> Result<Vec<u8>, csv::Error> {
        match self {
            Self::Csv => {
                let mut csv = csv_writer();
                for row in rows {
                    csv.serialize(row)?;
                }
                finish(csv)
            }
            Self::Json | Self::NdJson => {
                let mut text = Vec::new();
                for row in rows {
                    serde_json::to_writer(&mut text, row).map_err(std::io::Error::from)?;
                    text.push(b'\n');
                }
                Ok(text)
            }
        }
    }
}

fn csv_writer() -> csv::Writer<Vec<u8>> {
    csv::WriterBuilder::new()
        .has_headers(false)
        .terminator(csv::Terminator::CRLF)
        .from_writer(Vec::new())
}

fn finish(csv: csv::Writer<Vec<u8>>) -> Result<Vec<u8>, csv::Error> {
    csv.into_inner().map_err(|error| error.into_error().into())
}
