//! Throughput of a flush, and of Postgres alone with the same rows.
//!
//! A service flushes everything when it stops, so one that has never flushed is measured from SIGTERM to its end. The
//! reference writes the same rows into tables of the same shape in the same Postgres: sorted, with COPY into a temporary
//! table and an upsert.

use std::fmt::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use futures::TryStreamExt as _;
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection as _, Executor as _};

use crate::load::{self, Load, Until};
use crate::requests::{Format, Op, Shape, Spread, organization};
use crate::stage::{NO_FLUSH, Stage};

/// Maximum number of items in a batch.
pub(crate) const BATCH_MAX: u32 = 10_000;

/// Connections that send batches.
pub(crate) const BATCH_CONNECTIONS: usize = 4;

/// Connections that create counters.
const FILL_CONNECTIONS: usize = 16;

/// Rows of one transaction of the reference.
const CHUNK: usize = 10_000;

/// Adds a unit to each of this many counters, and returns how long their flush takes.
pub(crate) async fn store(stage: &Stage, program: &Path, counters: u32) -> Result<Duration> {
    let mut postgres = stage.postgres().await?;
    let before = stored_units(&mut postgres).await?;
    let service = stage.serve_as(program, &[], &[NO_FLUSH]).await?;
    // Small batches, because a new organization is slow.
    let items = counters.min(100);
    let load = Load {
        target: service.target.clone(),
        shape: Shape {
            op: Op::Track,
            amount: 1,
            keyed: false,
            batch: Some((items as usize, Format::Json)),
        },
        connections: FILL_CONNECTIONS,
        organizations: counters,
        spread: Spread::Turns,
        exponent: 1.0,
        rate: None,
        warm_up: Duration::ZERO,
        until: Until::Requests(u64::from(counters.div_ceil(items))),
    };
    let sent = load::run(&load, None).await?.flawless("filling")?.items;
    stage.redis_has_rewritten().await?;
    let took = service.stop().await?;
    let stored = stored_units(&mut postgres).await? - before;
    if u64::try_from(stored)? != sent {
        bail!("{sent} units were counted and {stored} stored");
    }
    Ok(took)
}

async fn stored_units(postgres: &mut PgConnection) -> Result<i64> {
    let sum = "select coalesce(sum(used), 0)::bigint from usage_history";
    Ok(sqlx::query_scalar(sum).fetch_one(postgres).await?)
}

/// Copies of the tables before the flush, and the rows to merge into them.
#[derive(Debug)]
pub(crate) struct Reference {
    postgres: PgConnection,
    tables: [Table; 2],
    counters: u32,
}

#[derive(Debug)]
struct Table {
    name: &'static str,
    /// Where the copy stores its rows: the table, or its only partition.
    heap: &'static str,
    key: &'static str,
    /// The condition of the upsert.
    newer: &'static str,
    columns: String,
    /// In COPY's text format, sorted.
    rows: Vec<u8>,
}

impl Reference {
    /// Copies the rows of this many counters.
    pub(crate) async fn prepare(stage: &Stage, counters: u32) -> Result<Self> {
        let mut postgres = stage.postgres().await?;
        postgres
            .execute(
                "drop schema if exists reference cascade;
                 create schema reference;
                 create table reference.usage_history (like public.usage_history including all);
                 create table reference.usage_hourly (like public.usage_hourly including all) partition by range (hour);
                 create table reference.usage_hourly_all partition of reference.usage_hourly default;
                 create temp table new_usage_history (like public.usage_history) on commit delete rows;
                 create temp table new_usage_hourly (like public.usage_hourly) on commit delete rows",
            )
            .await?;
        let mut tables = [
            Table {
                name: "usage_history",
                heap: "usage_history",
                key: "organization_id, meter, period_start",
                newer: "where (excluded.epoch, excluded.seq) > (stands.epoch, stands.seq)",
                columns: String::new(),
                rows: Vec::new(),
            },
            Table {
                name: "usage_hourly",
                heap: "usage_hourly_all",
                key: "organization_id, hour, meter, period_start",
                newer: "",
                columns: String::new(),
                rows: Vec::new(),
            },
        ];
        for table in &mut tables {
            let name = table.name;
            table.columns = sqlx::query_scalar(
                "select string_agg(quote_ident(attname), ', ' order by attnum) from pg_attribute
                 where attrelid = $1::regclass and attnum > 0 and not attisdropped and attgenerated = ''",
            )
            .bind(name)
            .fetch_one(&mut postgres)
            .await?;
            let options: Option<String> = sqlx::query_scalar(
                "select array_to_string(reloptions, ', ') from pg_class
                 where reloptions is not null
                   and (oid = $1::regclass or oid in (select inhrelid from pg_inherits where inhparent = $1::regclass))
                 limit 1",
            )
            .bind(name)
            .fetch_optional(&mut postgres)
            .await?;
            if let Some(options) = options {
                let set = format!("alter table reference.{} set ({options})", table.heap);
                postgres.execute(AssertSqlSafe(set)).await?;
            }
            let fill = format!(
                "insert into reference.{name} ({}) {}",
                table.columns,
                table.selected(counters)
            );
            postgres.execute(AssertSqlSafe(fill)).await?;
            let analyze = format!("vacuum analyze reference.{name}");
            postgres.execute(AssertSqlSafe(analyze)).await?;
        }
        Ok(Self {
            postgres,
            tables,
            counters,
        })
    }

    /// Merges the rows that the service has flushed meanwhile, and returns how long that takes.
    pub(crate) async fn merge(mut self) -> Result<Duration> {
        for table in &mut self.tables {
            let out = format!("copy ({}) to stdout", table.selected(self.counters));
            let mut rows = self.postgres.copy_out_raw(&out).await?;
            while let Some(piece) = rows.try_next().await? {
                table.rows.extend_from_slice(&piece);
            }
        }
        let [history, hourly] = &self.tables;
        let begun = Instant::now();
        for (history_rows, hourly_rows) in chunks(&history.rows).zip(chunks(&hourly.rows)) {
            let mut transaction = self.postgres.begin().await?;
            for (table, rows) in [(history, history_rows), (hourly, hourly_rows)] {
                let copy = format!("copy new_{} ({}) from stdin", table.name, table.columns);
                let mut copy = transaction.copy_in_raw(&copy).await?;
                copy.send(rows).await?;
                copy.finish().await?;
                transaction.execute(AssertSqlSafe(table.merge())).await?;
            }
            transaction.commit().await?;
        }
        let took = begun.elapsed();
        let different: i64 = sqlx::query_scalar(
            "select count(*)
             from reference.usage_history as copy
             join public.usage_history as stored using (organization_id, meter, period_start)
             where copy.used <> stored.used",
        )
        .fetch_one(&mut self.postgres)
        .await
        .context("the copies cannot be compared")?;
        if different > 0 {
            bail!("{different} rows were not merged");
        }
        self.postgres
            .execute("drop schema reference cascade")
            .await?;
        Ok(took)
    }
}

impl Table {
    /// Selects the rows of this many counters, in key order.
    fn selected(&self, counters: u32) -> String {
        let (columns, name, key) = (&self.columns, self.name, self.key);
        let last = organization(counters - 1);
        format!(
            "select {columns} from public.{name} where organization_id <= '{last}' order by {key}"
        )
    }

    fn merge(&self) -> String {
        let (columns, name, key) = (&self.columns, self.name, self.key);
        let mut merge = format!(
            "insert into reference.{name} as stands ({columns})
             select {columns} from new_{name} order by {key}
             on conflict ({key}) do update set "
        );
        for (number, column) in columns.split(", ").enumerate() {
            let comma = if number == 0 { "" } else { ", " };
            let _ = write!(merge, "{comma}{column} = excluded.{column}");
        }
        format!("{merge} {}", self.newer)
    }
}

/// Splits after every [`CHUNK`] lines.
fn chunks(mut rows: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let ends = rows.iter().enumerate().filter(|(_, byte)| **byte == b'\n');
        let end = ends.take(CHUNK).last()?.0 + 1;
        let (chunk, rest) = rows.split_at(end);
        rows = rest;
        Some(chunk)
    })
}
