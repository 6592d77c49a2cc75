//! Faults of Postgres.

use std::time::Duration;

use anyhow::{Context as _, Result};
use sqlx::PgConnection;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::setup::Setup;
use crate::stage::{postgres_processes, signal};

/// Ends every session but this one.
const END_SESSIONS: &str = "select count(pg_terminate_backend(pid)) from pg_stat_activity
    where backend_type = 'client backend' and pid <> pg_backend_pid() and application_name <> 'faults'";

/// A disk cannot be filled portably, so triggers raise what a full one does, for every table and every writer.
/// `faults.disk` has a row while it is full.
const TRIGGERS: &str = "
    create schema faults;
    create table faults.disk ();
    create function faults.extend() returns trigger language plpgsql as $$
        begin
            if exists (select from faults.disk) then
                raise 'could not extend file: No space left on device' using errcode = '53100';
            end if;
            return null;
        end $$;
    do $$
        declare name text;
        begin
            for name in select oid::regclass::text from pg_class
                where relnamespace = 'public'::regnamespace and relkind in ('r', 'p') and not relispartition
            loop
                execute format('create trigger faults before insert or update on %s
                    for each statement execute function faults.extend()', name);
            end loop;
        end $$;";

/// Sessions whose end undoes a fault.
pub(super) struct Held {
    _sessions: Vec<PgConnection>,
    _users: JoinSet<()>,
}

/// Prepares [`fill_disk`].
pub(super) async fn prepare(setup: &Setup) -> Result<()> {
    execute(&mut setup.postgres().await?, TRIGGERS).await
}

/// Makes every insert and update fail as on a full disk, or no longer.
pub(super) async fn fill_disk(setup: &Setup, full: bool) -> Result<()> {
    let change = if full {
        "insert into faults.disk default values"
    } else {
        "truncate faults.disk"
    };
    execute(&mut setup.postgres().await?, change).await
}

/// Makes the database read-only, or no longer; sessions have it from their beginning.
pub(super) async fn forbid_writes(setup: &Setup, forbidden: bool) -> Result<()> {
    let change = if forbidden {
        "alter database tallyman set default_transaction_read_only = on"
    } else {
        "alter database tallyman reset default_transaction_read_only"
    };
    let mut session = setup.postgres().await?;
    execute(&mut session, change).await?;
    execute(&mut session, END_SESSIONS).await
}

/// Ends every session of the service.
pub(super) async fn end_sessions(setup: &Setup) -> Result<()> {
    execute(&mut setup.postgres().await?, END_SESSIONS).await
}

/// Lets all processes hang, and returns them.
pub(super) async fn hang(setup: &Setup) -> Result<Vec<u32>> {
    let processes = postgres_processes(&mut setup.postgres().await?).await?;
    signal(&processes, "STOP")?;
    Ok(processes)
}

/// Locks one of two tables.
pub(super) async fn lock(setup: &Setup, which: usize) -> Result<Held> {
    let mut session = setup.postgres().await?;
    let table = ["usage_history", "organizations"][which];
    let lock = format!("begin; lock table {table} in access exclusive mode");
    execute(&mut session, &lock).await?;
    Ok(Held {
        _sessions: vec![session],
        _users: JoinSet::new(),
    })
}

/// Takes all connections from the service, and those that become free.
pub(super) async fn use_connections(setup: &Setup) -> Result<Held> {
    let mut first = setup.postgres().await?;
    execute(&mut first, "set application_name = 'faults'").await?;
    let mut users = JoinSet::new();
    let options = setup.postgres_options()?.application_name("faults");
    users.spawn(async move {
        let mut held = Vec::new();
        loop {
            while let Ok(session) = sqlx::ConnectOptions::connect(&options).await {
                held.push(session);
            }
            if execute(&mut first, END_SESSIONS).await.is_err() {
                return;
            }
            sleep(Duration::from_millis(20)).await;
        }
    });
    Ok(Held {
        _sessions: Vec::new(),
        _users: users,
    })
}

async fn execute(session: &mut PgConnection, statements: &str) -> Result<()> {
    let statements = sqlx::AssertSqlSafe(statements.to_owned());
    let done = sqlx::raw_sql(statements).execute(session).await;
    done.map(drop)
        .context("cannot inject a fault into Postgres")
}
