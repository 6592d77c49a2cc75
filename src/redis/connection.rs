//! One connection to Redis, and what is known of the data set behind it.
//!
//! A connection never reconnects by itself: a new one may lead to a restarted process or a promoted
//! replica that is older than what was acknowledged, so it first compares the server's run id with
//! the one recorded in every shard (`generation.lua`). Generations are therefore facts about a connection.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, Client, Cmd, ErrorKind, FromRedisValue, Pipeline, PushInfo, PushKind,
    RedisResult, ServerErrorKind,
};
use tokio::sync::mpsc::unbounded_channel;

use super::error::Error;
use super::keys::{Keys, LAYOUT, SHARDS, Shard};
use crate::metrics::{Metrics, Script};

/// How long a reply may take before the connection counts as broken.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(5);

/// How long connecting may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// A connection, with the generation of every shard as it was seen over this connection.
#[derive(Debug)]
pub struct Connection {
    connection: MultiplexedConnection,
    /// The server process, by its own random name.
    pub(super) run_id: String,
    /// By shard; 0 = has no number yet.
    generations: [AtomicU64; SHARDS as usize],
    /// Set once; whoever finds it set makes a new connection.
    broken: Arc<AtomicBool>,
    pub(super) metrics: Metrics,
}

impl Connection {
    /// Connects, and refuses a server to which counts cannot be trusted.
    pub(super) async fn open(
        client: &Client,
        keys: &Keys,
        metrics: &Metrics,
    ) -> Result<Self, Error> {
        let broken = Arc::new(AtomicBool::new(false));
        let (sender, mut pushes) = unbounded_channel::<PushInfo>();
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            .set_response_timeout(Some(RESPONSE_TIMEOUT))
            .set_push_sender(sender);
        let connection = client
            .get_multiplexed_async_connection_with_config(&config)
            .await
            .map_err(|error| Error::Unavailable(error.to_string()))?;
        let noticed = Arc::clone(&broken);
        // Ends with the connection, which holds the only sender.
        #[expect(
            clippy::disallowed_methods,
            reason = "it ends with the connection, and holds nothing to be saved"
        )]
        tokio::spawn(async move {
            while let Some(push) = pushes.recv().await {
                if push.kind == PushKind::Disconnection {
                    noticed.store(true, Ordering::Release);
                }
            }
            noticed.store(true, Ordering::Release);
        });
        let mut connection = Self {
            connection,
            run_id: String::new(),
            generations: [const { AtomicU64::new(0) }; SHARDS as usize],
            broken,
            metrics: metrics.clone(),
        };
        connection.run_id = connection.examine(keys).await?;
        Ok(connection)
    }

    /// The generation of a shard's data set, once it has a number.
    pub fn generation(&self, shard: Shard) -> Option<u64> {
        match self.generations[shard.index()].load(Ordering::Acquire) {
            0 => None,
            number => Some(number),
        }
    }

    pub(super) fn set_generation(&self, shard: Shard, number: Option<u64>) {
        self.generations[shard.index()].store(number.unwrap_or(0), Ordering::Release);
    }

    pub(super) fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Acquire)
    }

    /// Calls one script once.
    pub(super) async fn invoke<T: FromRedisValue>(
        &self,
        name: Script,
        call: &Cmd,
        source: &str,
    ) -> Result<T, Error> {
        let begun = Instant::now();
        let reply = self.evaluate(call, source).await;
        self.metrics.script_answered(name, begun.elapsed());
        reply
    }

    pub(super) async fn run<T: FromRedisValue>(&self, pipeline: &Pipeline) -> Result<T, Error> {
        let reply = pipeline.query_async(&mut self.connection.clone()).await;
        self.noting(reply)
    }

    /// Runs an `EVALSHA`, with the script itself where the server does not have it.
    pub(super) async fn evaluate<T: FromRedisValue>(
        &self,
        call: &Cmd,
        source: &str,
    ) -> Result<T, Error> {
        let reply = call.query_async(&mut self.connection.clone()).await;
        if is_without_script(&reply) {
            let mut replies = self.load_and_run(std::iter::once(call), source).await?;
            let reply = replies.pop();
            return reply.ok_or_else(|| Error::Inconsistent("a script did not answer".to_owned()));
        }
        self.noting(reply)
    }

    /// The same for several calls of one script, in one round trip. An error of one of them is an error of all, although
    /// the others were executed.
    pub(super) async fn evaluate_all<T: FromRedisValue>(
        &self,
        name: Script,
        calls: Vec<Cmd>,
        source: &str,
    ) -> Result<Vec<T>, Error> {
        if calls.is_empty() {
            return Ok(Vec::new());
        }
        let begun = Instant::now();
        let mut pipeline = redis::pipe();
        for call in calls {
            pipeline.add_command(call);
        }
        let reply = pipeline.query_async(&mut self.connection.clone()).await;
        let replies = if is_without_script(&reply) {
            self.load_and_run(pipeline.cmd_iter(), source).await
        } else {
            self.noting(reply)
        };
        self.metrics.script_answered(name, begun.elapsed());
        replies
    }

    /// Gives the server a script and calls it, in one transaction, so that nobody's `SCRIPT FLUSH` comes in between.
    async fn load_and_run<'a, T: FromRedisValue>(
        &self,
        calls: impl Iterator<Item = &'a Cmd>,
        source: &str,
    ) -> Result<Vec<T>, Error> {
        let mut transaction = redis::pipe();
        transaction.atomic();
        transaction.cmd("SCRIPT").arg("LOAD").arg(source).ignore();
        for call in calls {
            transaction.add_command(call.clone());
        }
        self.run(&transaction).await
    }

    /// Has this connection replaced.
    pub(super) fn mark_broken(&self) {
        self.broken.store(true, Ordering::Release);
    }

    fn noting<T>(&self, reply: RedisResult<T>) -> Result<T, Error> {
        reply.map_err(|error| {
            let error = Error::from(error);
            if error.breaks_connection() {
                self.mark_broken();
            }
            error
        })
    }

    /// Checks version, eviction and key layout; returns the run id.
    async fn examine(&self, keys: &Keys) -> Result<String, Error> {
        let mut pipeline = redis::pipe();
        pipeline
            .cmd("INFO")
            .cmd("SET")
            .arg(keys.layout())
            .arg(LAYOUT)
            .arg("NX")
            .ignore()
            .cmd("GET")
            .arg(keys.layout());
        let (info, layout): (String, Option<String>) = self.run(&pipeline).await?;
        let facts: HashMap<&str, &str> = info
            .lines()
            .filter_map(|line| line.split_once(':'))
            .collect();
        let fact = |name: &str| facts.get(name).copied().unwrap_or_default();

        let major = fact("redis_version")
            .split('.')
            .next()
            .and_then(|number| number.parse::<u32>().ok());
        if major.is_none_or(|major| major < 7) {
            return Err(Error::Unfit(format!(
                "Redis 7 or newer is needed, this is {}",
                fact("redis_version")
            )));
        }
        if fact("maxmemory_policy") != "noeviction" {
            return Err(Error::Unfit(format!(
                "maxmemory-policy is {}, which may drop counts; set it to noeviction",
                fact("maxmemory_policy")
            )));
        }
        if layout.as_deref() != Some(LAYOUT) {
            return Err(Error::Unfit(format!(
                "its keys are laid out as {}, this version needs {LAYOUT}",
                layout.unwrap_or_default()
            )));
        }
        Ok(fact("run_id").to_owned())
    }
}

fn is_without_script<T>(reply: &RedisResult<T>) -> bool {
    matches!(reply, Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript))
}
