//! Does faults to the servers and instances, and undoes them.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Result;
use tokio::task::spawn_blocking;
use tokio::time::sleep;

use super::database::{self, Held};
use super::journal::{Journal, Loss, Rule, Span};
use super::plan::{Fault, Kind};
use super::setup::{PATIENCE, Setup};
use crate::stage::signal;

/// What a Redis that syncs its file every second may lose when it is killed: it postpones writes for up to two seconds.
const UNSYNCED: Duration = Duration::from_secs(3);

/// Between repetitions of a fault that happens again and again.
const AGAIN: Duration = Duration::from_millis(250);

/// Pause between attempts to undo a fault.
const RETRY_INTERVAL: Duration = Duration::from_millis(20);

/// The difference of a clock that is wrong, in seconds.
const WRONG: i64 = 3600;

/// A script that runs until it is killed; by itself it ends after some ten seconds.
const SLOW_SCRIPT: &str = "for i = 1, 4e9 do end";

/// Injects faults.
pub(super) struct Injector<'a> {
    pub(super) setup: &'a Setup,
    pub(super) journal: &'a Journal,
}

/// What undoes a fault that needs more than its kind.
enum Undo {
    Nothing,
    Continue(Vec<u32>),
    Held(Held),
    /// The copy of the data, and when it was made.
    Copy(PathBuf, Duration),
}

impl Injector<'_> {
    /// Does a fault, waits, and undoes it. `stored` is the time before which everything acknowledged is stored.
    pub(super) async fn inject(&self, fault: &Fault, stored: Duration) -> Result<()> {
        sleep(fault.after).await;
        let from = self.journal.now();
        let undo = self.begin(fault, stored).await?;
        let rest = (from + fault.lasts).saturating_sub(self.journal.now());
        tokio::select! {
            () = sleep(rest) => {}
            failed = self.repeat(fault.kind) => failed?,
        }
        let undone_from = self.journal.now();
        self.end(fault, from, undo).await?;
        if matches!(
            fault.kind,
            Kind::RedisKilled | Kind::RedisStopped | Kind::RedisOlderCopy
        ) {
            self.journal.redis_changed.set(self.journal.now());
        }
        self.journal.spans.borrow_mut().push(Span {
            kind: fault.kind,
            from,
            undo: undone_from,
            to: self.journal.now(),
        });
        Ok(())
    }

    async fn begin(&self, fault: &Fault, stored: Duration) -> Result<Undo> {
        let (setup, which) = (self.setup, fault.which);
        match fault.kind {
            Kind::InstanceKilled => setup.kill_instance(which).await?,
            Kind::InstanceStopped => self.stop(which).await?,
            Kind::ClockAhead => self.restart(which, WRONG).await?,
            Kind::ClockBehind => self.restart(which, -WRONG).await?,
            Kind::RedisKilled => setup.end_redis(true).await?,
            Kind::RedisStopped => setup.end_redis(false).await?,
            Kind::RedisHangs => setup.signal_redis("STOP")?,
            Kind::RedisOlderCopy => {
                let copy = setup.redis_data().with_extension("copy");
                copy_dir(&setup.redis_data(), &copy).await?;
                return Ok(Undo::Copy(copy, self.journal.now()));
            }
            Kind::RedisFlushed => {
                setup.redis::<String>(&["FLUSHALL"]).await?;
                self.lost(stored);
                self.journal.redis_changed.set(self.journal.now());
            }
            Kind::RedisFull => self.configure("maxmemory", "1mb").await?,
            Kind::RedisBusy => self.configure("busy-reply-threshold", "100").await?,
            Kind::RedisReadOnly => self.configure("min-replicas-to-write", "1").await?,
            Kind::RedisRepliesLost => {
                setup.link.lose_replies()?;
                self.close_clients().await?;
            }
            Kind::PostgresKilled => setup.end_postgres(true).await?,
            Kind::PostgresStopped => setup.end_postgres(false).await?,
            Kind::PostgresHangs => return Ok(Undo::Continue(database::hang(setup).await?)),
            Kind::PostgresFull => database::fill_disk(setup, true).await?,
            Kind::PostgresReadOnly => database::forbid_writes(setup, true).await?,
            Kind::PostgresLocked => {
                return Ok(Undo::Held(database::lock(setup, which).await?));
            }
            Kind::PostgresConnectionsUsed => {
                return Ok(Undo::Held(database::use_connections(setup).await?));
            }
            Kind::RedisClientsKilled | Kind::RedisScriptsFlushed | Kind::PostgresSessionsEnded => {}
        }
        Ok(Undo::Nothing)
    }

    /// What happens again and again during a fault; never returns without an error.
    async fn repeat(&self, kind: Kind) -> Result<()> {
        loop {
            match kind {
                Kind::RedisClientsKilled => self.close_clients().await?,
                Kind::RedisScriptsFlushed => {
                    self.setup.redis::<String>(&["SCRIPT", "FLUSH"]).await?;
                }
                Kind::PostgresSessionsEnded => database::end_sessions(self.setup).await?,
                // Returns when the script is killed, at the end.
                Kind::RedisBusy => {
                    self.setup
                        .redis::<Option<String>>(&["EVAL", SLOW_SCRIPT, "0"])
                        .await?;
                }
                _ => std::future::pending().await,
            }
            sleep(AGAIN).await;
        }
    }

    async fn end(&self, fault: &Fault, from: Duration, undo: Undo) -> Result<()> {
        let (setup, which) = (self.setup, fault.which);
        match (fault.kind, undo) {
            (Kind::InstanceKilled | Kind::InstanceStopped, _) => {
                setup.start_instance(which, 0).await?;
            }
            (Kind::ClockAhead | Kind::ClockBehind, _) => self.restart(which, 0).await?,
            (Kind::RedisKilled, _) => {
                setup.start_redis().await?;
                self.lost(from.saturating_sub(UNSYNCED));
            }
            (Kind::RedisStopped, _) => setup.start_redis().await?,
            (Kind::RedisHangs, _) => setup.signal_redis("CONT")?,
            (Kind::RedisOlderCopy, Undo::Copy(copy, at)) => {
                setup.end_redis(true).await?;
                replace_dir(&copy, &setup.redis_data()).await?;
                setup.start_redis().await?;
                self.lost(at.saturating_sub(UNSYNCED));
            }
            (Kind::RedisFull, _) => self.configure("maxmemory", "0").await?,
            (Kind::RedisBusy, _) => {
                let started = Instant::now();
                loop {
                    // Fails where no script runs.
                    let _ = setup.redis::<String>(&["SCRIPT", "KILL"]).await;
                    let configured = self.configure("busy-reply-threshold", "5000").await;
                    // A script that was sent last may begin only now.
                    if configured.is_ok() || started.elapsed() > PATIENCE {
                        break configured?;
                    }
                    sleep(RETRY_INTERVAL).await;
                }
            }
            (Kind::RedisReadOnly, _) => self.configure("min-replicas-to-write", "0").await?,
            (Kind::RedisRepliesLost, _) => setup.link.keep_replies()?,
            (Kind::PostgresKilled | Kind::PostgresStopped, _) => setup.start_postgres().await?,
            (Kind::PostgresHangs, Undo::Continue(processes)) => signal(&processes, "CONT")?,
            (Kind::PostgresFull, _) => database::fill_disk(setup, false).await?,
            (Kind::PostgresReadOnly, _) => database::forbid_writes(setup, false).await?,
            // Dropping the sessions ends the fault.
            (_, Undo::Held(held)) => drop(held),
            _ => {}
        }
        Ok(())
    }

    async fn stop(&self, which: usize) -> Result<()> {
        if !self.setup.stop_instance(which).await? {
            let text = format!("instance {which} does not stop in time, or fails");
            self.journal.violation(Rule::Recovery, text);
        }
        Ok(())
    }

    async fn restart(&self, which: usize, offset: i64) -> Result<()> {
        self.stop(which).await?;
        self.setup.start_instance(which, offset).await
    }

    async fn configure(&self, name: &str, value: &str) -> Result<()> {
        let words = ["CONFIG", "SET", name, value];
        self.setup.redis::<String>(&words).await.map(drop)
    }

    async fn close_clients(&self) -> Result<()> {
        for clients in ["normal", "pubsub"] {
            let words = ["CLIENT", "KILL", "TYPE", clients];
            self.setup.redis::<i64>(&words).await?;
        }
        Ok(())
    }

    /// What was acknowledged since then may be lost.
    fn lost(&self, from: Duration) {
        let to = self.journal.now();
        self.journal.losses.borrow_mut().push(Loss { from, to });
    }
}

async fn copy_dir(from: &Path, to: &Path) -> Result<()> {
    let (from, to) = (from.to_owned(), to.to_owned());
    spawn_blocking(move || {
        std::fs::create_dir_all(&to)?;
        for entry in std::fs::read_dir(&from)? {
            let entry = entry?;
            std::fs::copy(entry.path(), to.join(entry.file_name()))?;
        }
        Ok(())
    })
    .await?
}

async fn replace_dir(new: &Path, old: &Path) -> Result<()> {
    let (new, old) = (new.to_owned(), old.to_owned());
    spawn_blocking(move || {
        std::fs::remove_dir_all(&old)?;
        std::fs::rename(new, old)?;
        Ok(())
    })
    .await?
}
