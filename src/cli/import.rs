//! `tallyman import usage-history`: adds the table `usageHistory` of the Better Auth plugin to history.
//!
//! Needs only Postgres. Results are on standard output, messages on standard error.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use chrono::{DateTime, NaiveDate, NaiveDateTime, SecondsFormat, SubsecRound as _, Utc};
use clap::{Args, Subcommand};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::service::print;
use crate::clock::Clock;
use crate::config::DatabaseSettings;
use crate::domain::input::quoted;
use crate::domain::instant::parse_instant;
use crate::domain::past_usage::{PastUsage, Rejected};
use crate::domain::quantity::Count;
use crate::postgres::past_usage::{self, Imported};
use crate::postgres::{Actor, Postgres};

/// The most errors that are shown.
const ERRORS_MAX: usize = 10;

/// A smaller number is in seconds: in milliseconds it would be before March 1973.
const MILLISECONDS_MIN: i64 = 100_000_000_000;

/// Options of `tallyman import`.
#[derive(Debug, Args)]
pub(super) struct Options {
    #[command(subcommand)]
    what: What,
    #[command(flatten)]
    database: DatabaseSettings,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Add the rows of the table `usageHistory` of the Better Auth plugin as periods that have ended
    ///
    /// Each row needs `organizationId`, `metricType` (the meter), `value` and `date` (when the period ended); `periodStart` is
    /// optional, and other columns are ignored. A period begins where the one before it ended; the first is as long as a
    /// period of the organization's calendar. All rows are imported or none. Rows that were imported before are skipped, so
    /// it is safe to repeat. Organizations that do not exist are created.
    UsageHistory {
        /// A JSON array, one JSON object a line, or CSV with a header; `-` is standard input
        file: PathBuf,
        /// Check the file and print what would be imported, without importing it
        #[arg(long)]
        dry_run: bool,
    },
}

/// Runs `tallyman import`.
pub(super) async fn run(options: Options, clock: Clock) -> Result<()> {
    let What::UsageHistory { file, dry_run } = options.what;
    let url = options.database.url()?;
    let text = read(&file).with_context(|| format!("cannot read {}", file.display()))?;
    let usage = parse(&text)?;
    let postgres = Postgres::new(&url, 1)?;
    let actor = Actor {
        name: "tallyman import".to_owned(),
        request_id: String::new(),
    };
    let imported = past_usage::import(&postgres, &usage, &actor, dry_run, clock.now());
    match imported.await? {
        Ok(imported) => report(&imported, dry_run),
        Err(rejected) => refuse(&rejected),
    }
}

fn read(file: &Path) -> std::io::Result<String> {
    if file.as_os_str() != "-" {
        return std::fs::read_to_string(file);
    }
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text)?;
    Ok(text)
}

/// Prints the added periods of each meter.
fn report(imported: &Imported, dry_run: bool) -> Result<()> {
    let mut lines = String::new();
    for ((organization, meter), periods) in &imported.periods {
        let units: u64 = periods.iter().map(|it| it.used.get()).sum();
        let from = periods.iter().map(|it| it.start).min().unwrap_or_default();
        let to = periods.iter().map(|it| it.end).max().unwrap_or_default();
        let periods = number(periods.len() as u64, "period");
        let units = number(units, "unit");
        let time = |at: DateTime<Utc>| at.to_rfc3339_opts(SecondsFormat::AutoSi, true);
        let (from, to) = (time(from), time(to));
        writeln!(
            lines,
            "{organization} {meter}: {periods} with {units}, {from} to {to}"
        )?;
    }
    print(&lines)?;
    let periods: usize = imported.periods.values().map(Vec::len).sum();
    let organizations: BTreeSet<_> = imported.periods.keys().map(|(id, _)| id).collect();
    let mut summary = format!(
        "{} {} of {}, {} of them new",
        if dry_run { "Would import" } else { "Imported" },
        number(periods as u64, "period"),
        number(organizations.len() as u64, "organization"),
        imported.created
    );
    if imported.repeated > 0 {
        write!(summary, "; {} imported before", imported.repeated)?;
    }
    eprintln!("{summary}.");
    Ok(())
}

fn number(count: u64, noun: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {noun}{plural}")
}

/// Fails with the first errors.
fn refuse<T>(rejected: &[Rejected]) -> Result<T> {
    let mut text = "nothing was imported:".to_owned();
    for error in rejected.iter().take(ERRORS_MAX) {
        write!(text, "\n{error}")?;
    }
    if let Some(more) = rejected.len().checked_sub(ERRORS_MAX).filter(|it| *it > 0) {
        write!(text, "\n… and {}", number(more as u64, "more error"))?;
    }
    bail!(text)
}

/// A row of the file.
struct Row {
    line: u64,
    columns: Map<String, Value>,
}

fn parse(text: &str) -> Result<Vec<PastUsage>> {
    let text = text.trim_start_matches('\u{feff}');
    let rows = match text.trim_start().chars().next() {
        Some('[') => json_rows(text, serde_json::from_str(text))?,
        Some('{') => {
            let stream = serde_json::Deserializer::from_str(text).into_iter();
            json_rows(text, stream.collect())?
        }
        _ => csv_rows(text)?,
    };
    let (mut usage, mut rejected) = (Vec::with_capacity(rows.len()), Vec::new());
    for row in rows {
        match row.usage() {
            Ok(it) => usage.push(it),
            Err(error) => rejected.push(error),
        }
    }
    if rejected.is_empty() {
        Ok(usage)
    } else {
        refuse(&rejected)
    }
}

/// Rows of JSON objects, each with the line on which it begins.
fn json_rows(text: &str, objects: serde_json::Result<Vec<&RawValue>>) -> Result<Vec<Row>> {
    let (mut rows, mut line, mut position) = (Vec::new(), 1, 0);
    for object in objects.context("the file is not JSON")? {
        // Objects are parts of the text, in order.
        let begins = object.get().as_ptr().addr() - text.as_ptr().addr();
        line += text[position..begins].matches('\n').count() as u64;
        position = begins;
        let columns = serde_json::from_str(object.get());
        let columns = columns.with_context(|| format!("line {line}: must be a JSON object"))?;
        rows.push(Row { line, columns });
    }
    Ok(rows)
}

/// Rows of CSV, whose first line has the names of the columns.
fn csv_rows(text: &str) -> Result<Vec<Row>> {
    let mut reader = csv::ReaderBuilder::new()
        .trim(csv::Trim::All)
        .from_reader(text.as_bytes());
    let names = reader.headers().context("the file is not CSV")?.clone();
    let mut rows = Vec::new();
    for record in reader.records() {
        let record = record.context("the file is not CSV")?;
        let columns = names.iter().zip(&record);
        rows.push(Row {
            line: record.position().map_or(0, csv::Position::line),
            columns: columns
                .map(|(name, value)| (name.to_owned(), value.into()))
                .collect(),
        });
    }
    Ok(rows)
}

impl Row {
    fn usage(&self) -> Result<PastUsage, Rejected> {
        Ok(PastUsage {
            line: self.line,
            organization: self.required("organizationId", "organization_id", id)?,
            meter: self.required("metricType", "metric_type", id)?,
            start: self.optional("periodStart", "period_start", instant)?,
            end: self.required("date", "date", instant)?,
            used: self.required("value", "value", count)?,
        })
    }

    fn required<T>(
        &self,
        field: &'static str,
        column: &str,
        parse: impl FnOnce(&Value) -> Result<T, String>,
    ) -> Result<T, Rejected> {
        let value = self.optional(field, column, parse)?;
        value.ok_or_else(|| self.rejected(field, "is missing".to_owned()))
    }

    /// A field, under its name or the name of a column in a database; null and an empty text are none.
    fn optional<T>(
        &self,
        field: &'static str,
        column: &str,
        parse: impl FnOnce(&Value) -> Result<T, String>,
    ) -> Result<Option<T>, Rejected> {
        let value = self.columns.get(field).or_else(|| self.columns.get(column));
        let Some(value) = value.filter(|it| !it.is_null() && it.as_str() != Some("")) else {
            return Ok(None);
        };
        let given = |rule: String| {
            let text = value
                .as_str()
                .map_or_else(|| value.to_string(), str::to_owned);
            self.rejected(field, format!("{rule}; got {}", quoted(&text)))
        };
        parse(value).map(Some).map_err(given)
    }

    fn rejected(&self, field: &'static str, detail: String) -> Rejected {
        Rejected {
            line: self.line,
            field,
            detail,
        }
    }
}

fn id<T: std::str::FromStr<Err: ToString>>(value: &Value) -> Result<T, String> {
    let text = match value {
        Value::String(text) => text.clone(),
        // An id that the database has counted up.
        Value::Number(number) => number.to_string(),
        _ => return Err("must be a string".to_owned()),
    };
    text.parse().map_err(|error: T::Err| error.to_string())
}

fn count(value: &Value) -> Result<Count, String> {
    let number = match value {
        Value::String(text) => text.parse().ok(),
        value => value.as_u64(),
    };
    let count = number.and_then(|it: u64| Count::try_from(it).ok());
    count.ok_or_else(|| "must be an integer from 0 to 2^53 - 1".to_owned())
}

fn instant(value: &Value) -> Result<DateTime<Utc>, String> {
    let instant = match value {
        Value::String(text) => match text.parse() {
            Ok(number) => since_1970(number),
            Err(_) => parse_date(text),
        },
        value => value.as_i64().and_then(since_1970),
    };
    let expected = "must be a time such as 2026-11-01T00:00:00Z, or milliseconds since 1970";
    let instant = instant.ok_or_else(|| expected.to_owned())?;
    Ok(instant.trunc_subsecs(3))
}

fn since_1970(number: i64) -> Option<DateTime<Utc>> {
    if number < MILLISECONDS_MIN {
        DateTime::from_timestamp_secs(number)
    } else {
        DateTime::from_timestamp_millis(number)
    }
}

/// A time as JSON and databases write it; without an offset it is in UTC.
fn parse_date(text: &str) -> Option<DateTime<Utc>> {
    if let Ok(instant) = parse_instant(text) {
        return Some(instant);
    }
    let text = text.replacen('T', " ", 1);
    let with_offset = DateTime::parse_from_str(&text, "%Y-%m-%d %H:%M:%S%.f%#z");
    let in_utc = || NaiveDateTime::parse_from_str(&text, "%Y-%m-%d %H:%M:%S%.f");
    let midnight = || {
        NaiveDate::parse_from_str(&text, "%Y-%m-%d")
            .ok()?
            .and_hms_opt(0, 0, 0)
    };
    match with_offset {
        Ok(instant) => Some(instant.to_utc()),
        Err(_) => in_utc().ok().or_else(midnight).map(|it| it.and_utc()),
    }
}
