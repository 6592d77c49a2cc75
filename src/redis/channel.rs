//! Commands and scripts on one connection to Redis.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ::redis::aio::MultiplexedConnection;
use ::redis::{
    AsyncConnectionConfig, Cmd, ErrorKind, FromRedisValue, Pipeline, RedisError, RedisResult,
    ServerErrorKind,
};
use tokio_util::sync::CancellationToken;

use super::error::Error;
use super::keys::Keys;
use super::scripts::Script;
use crate::metrics::Metrics;

/// How long a reply may take before the connection counts as broken.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(5);

/// How long connecting may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// The timeouts of every connection.
pub(super) fn config() -> AsyncConnectionConfig {
    AsyncConnectionConfig::new()
        .set_connection_timeout(Some(CONNECT_TIMEOUT))
        .set_response_timeout(Some(RESPONSE_TIMEOUT))
}

/// A connection, fenced or pooled. Calls that do not depend on the fence are its methods.
#[derive(Debug)]
pub(super) struct Channel {
    inner: MultiplexedConnection,
    pub(super) keys: Keys,
    /// Cancelled once; a broken connection is replaced, and what waits for a reply over it fails.
    pub(super) broken: CancellationToken,
    /// Whether a reply was `MOVED`: the slot of a key has another master.
    pub(super) moved: AtomicBool,
    pub(super) metrics: Metrics,
}

impl Channel {
    pub(super) fn new(inner: MultiplexedConnection, keys: &Keys, metrics: &Metrics) -> Self {
        Self {
            inner,
            keys: keys.clone(),
            broken: CancellationToken::new(),
            moved: AtomicBool::default(),
            metrics: metrics.clone(),
        }
    }

    pub(super) fn is_broken(&self) -> bool {
        self.broken.is_cancelled()
    }

    pub(super) fn mark_broken(&self) {
        self.broken.cancel();
    }

    /// Runs one command.
    pub(super) async fn query<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, Error> {
        let mut inner = self.inner.clone();
        let reply = self.reply(command.query_async(&mut inner)).await;
        self.check(reply)
    }

    /// Runs several commands in one round trip.
    pub(super) async fn query_all<T: FromRedisValue>(
        &self,
        commands: &Pipeline,
    ) -> Result<T, Error> {
        let mut inner = self.inner.clone();
        let reply = self.reply(commands.query_async(&mut inner)).await;
        self.check(reply)
    }

    /// A reply, unless the connection breaks first.
    async fn reply<T>(&self, reply: impl Future<Output = RedisResult<T>>) -> RedisResult<T> {
        let replied = self.broken.run_until_cancelled(reply).await;
        replied.unwrap_or_else(|| {
            let broken = std::io::Error::from(std::io::ErrorKind::ConnectionReset);
            Err(RedisError::from(broken))
        })
    }

    /// Runs a script once, and measures it.
    pub(super) async fn invoke<T: FromRedisValue>(
        &self,
        script: &Script,
        call: &Cmd,
    ) -> Result<T, Error> {
        let started = Instant::now();
        let reply = self.evaluate(script, call).await;
        self.metrics
            .script_completed(script.label, started.elapsed());
        reply
    }

    /// Runs several commands, or calls of one script, in one round trip. An error of one is an error of all, although the
    /// others were executed.
    pub(super) async fn run_all<T: FromRedisValue>(
        &self,
        script: Option<&Script>,
        commands: impl IntoIterator<Item = Cmd>,
    ) -> Result<Vec<T>, Error> {
        let mut pipeline = ::redis::pipe();
        for command in commands {
            pipeline.add_command(command);
        }
        if pipeline.is_empty() {
            return Ok(Vec::new());
        }
        let Some(script) = script else {
            return self.query_all(&pipeline).await;
        };
        let started = Instant::now();
        let mut inner = self.inner.clone();
        let reply = self.reply(pipeline.query_async(&mut inner)).await;
        let replies = if lacks_script(&reply) {
            self.load_and_run(script, pipeline.cmd_iter()).await
        } else {
            self.check(reply)
        };
        self.metrics
            .script_completed(script.label, started.elapsed());
        replies
    }

    /// Runs a script; loads it first if the server lacks it.
    pub(super) async fn evaluate<T: FromRedisValue>(
        &self,
        script: &Script,
        call: &Cmd,
    ) -> Result<T, Error> {
        let mut inner = self.inner.clone();
        let reply = self.reply(call.query_async(&mut inner)).await;
        if lacks_script(&reply) {
            let (reply,) = self.load_and_run(script, std::iter::once(call)).await?;
            return Ok(reply);
        }
        self.check(reply)
    }

    /// Runs calls of a script that the server lacks: the first has the text, which loads it for the others. If a
    /// `SCRIPT FLUSH` comes in between, all have it; those that were executed are executed again, which is harmless for
    /// each script that is called several times.
    async fn load_and_run<'a, T: FromRedisValue>(
        &self,
        script: &Script,
        calls: impl Iterator<Item = &'a Cmd>,
    ) -> Result<T, Error> {
        let calls: Vec<&Cmd> = calls.collect();
        let run = async |texts: usize| {
            let mut pipeline = ::redis::pipe();
            for (position, &call) in calls.iter().enumerate() {
                pipeline.add_command(if position < texts {
                    script.with_text(call)
                } else {
                    call.clone()
                });
            }
            let mut inner = self.inner.clone();
            self.reply(pipeline.query_async(&mut inner)).await
        };
        let mut reply = run(1).await;
        if lacks_script(&reply) {
            reply = run(usize::MAX).await;
        }
        self.check(reply)
    }

    fn check<T>(&self, reply: RedisResult<T>) -> Result<T, Error> {
        reply.map_err(|error| {
            let error = Error::from(error);
            if error.breaks_connection() {
                self.mark_broken();
            }
            if matches!(&error, Error::Redirected(text) if text.starts_with("MOVED")) {
                self.moved.store(true, Ordering::Relaxed);
            }
            error
        })
    }

    /// Checks that this leads to a master to which counts can be trusted; returns the identity of its data.
    pub(super) async fn examine(&self) -> Result<Identity, Error> {
        let info: String = self.query(&::redis::cmd("INFO")).await?;
        let facts = facts(&info);
        let fact = |name: &str| facts.get(name).copied().unwrap_or_default();
        let (version, policy) = (fact("redis_version"), fact("maxmemory_policy"));
        let major = version
            .split('.')
            .next()
            .and_then(|major| major.parse::<u32>().ok());
        if major.is_none_or(|major| major < 7) {
            return Err(Error::Unfit(format!(
                "Redis 7 or newer is needed, this is {version}"
            )));
        }
        if policy != "noeviction" {
            return Err(Error::Unfit(format!(
                "maxmemory-policy is {policy}, which may drop counts; set it to noeviction"
            )));
        }
        match (fact("cluster_enabled") == "1", self.keys.clustered()) {
            (true, false) => Err(Error::Unfit(
                "it is a node of a cluster; add ?cluster=true to TALLYMAN_REDIS_URL".to_owned(),
            )),
            (false, true) => Err(Error::Unfit(
                "it is not a node of a cluster; remove cluster=true from TALLYMAN_REDIS_URL"
                    .to_owned(),
            )),
            _ => Identity::of(&facts).ok_or_else(|| {
                Error::Unavailable("it is a replica; counts are kept by its master".to_owned())
            }),
        }
    }

    /// The identity of the data that this leads to now; none if it is a replica.
    pub(super) async fn identity(&self) -> Result<Option<Identity>, Error> {
        let mut command = ::redis::cmd("INFO");
        command.arg(("server", "replication"));
        let info: String = self.query(&command).await?;
        Ok(Identity::of(&facts(&info)))
    }
}

/// The lines of `INFO`.
fn facts(info: &str) -> HashMap<&str, &str> {
    info.lines()
        .filter_map(|line| line.split_once(':'))
        .collect()
}

/// The process and the history of its data: `run_id/master_replid`. A process that was a replica for a while has other data
/// than before, and another replication id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Identity(String);

impl Identity {
    fn of(facts: &HashMap<&str, &str>) -> Option<Self> {
        let fact = |name: &str| facts.get(name).copied().unwrap_or_default();
        let identity = format!("{}/{}", fact("run_id"), fact("master_replid"));
        (fact("role") == "master").then_some(Self(identity))
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

fn lacks_script<T>(reply: &RedisResult<T>) -> bool {
    matches!(reply, Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript))
}
