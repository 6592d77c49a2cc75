//! The Redis server that an instance uses, and how a fenced connection to it is made.

use std::sync::Arc;

use ::redis::aio::MultiplexedConnection;
use ::redis::{Client, IntoConnectionInfo, ProtocolVersion};
use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::channel::Channel;
use super::connection::Connection;
use super::error::Error;
use super::keys::{Keys, Shard};
use super::scripts::GENERATION;
use crate::clock::Clock;
use crate::link::{Link, Server};
use crate::metrics::{self, Metrics};

/// Where Redis is and how it is used.
#[derive(Debug, Clone)]
pub struct Settings {
    /// `redis://`, `rediss://` or `redis+unix://`.
    pub url: String,
    /// Prefix of every key.
    pub prefix: String,
    /// Whether a restarted server is trusted to have all acknowledged writes.
    pub trust_restart: bool,
    /// How long an idempotency record is kept, ms.
    pub record_lifetime_ms: u64,
}

/// A shard whose data set has a name and no number yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unnumbered {
    /// The shard.
    pub shard: Shard,
    /// The name that a number must be drawn for.
    pub name: String,
}

/// The link to the server, with the fenced connection in use; replaced when it breaks, never repaired.
pub(super) type NodeLink = Link<Node>;

/// The server.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) client: Client,
    pub(super) keys: Keys,
    pub(super) settings: Settings,
    pub(super) clock: Clock,
    metrics: Metrics,
}

impl Node {
    pub(super) fn new(settings: Settings, clock: Clock, metrics: Metrics) -> Result<Self, Error> {
        let unfit = |error: ::redis::RedisError| Error::Unfit(error.to_string());
        let info = settings
            .url
            .as_str()
            .into_connection_info()
            .map_err(unfit)?;
        // RESP3 pushes a message when the connection is lost; RESP2 notices it at the next command.
        let redis = info
            .redis_settings()
            .clone()
            .set_protocol(ProtocolVersion::RESP3);
        let tcp = info.tcp_settings().clone().set_nodelay(true);
        let info = info.set_redis_settings(redis).set_tcp_settings(tcp);
        Ok(Self {
            client: Client::open(info).map_err(unfit)?,
            keys: Keys::new(&settings.prefix),
            settings,
            clock,
            metrics,
        })
    }

    /// Another connection to this node.
    pub(super) fn channel(&self, inner: MultiplexedConnection) -> Channel {
        Channel::new(inner, &self.keys, &self.metrics)
    }

    /// Reads which data sets these shards have, and returns those that need a number.
    pub(super) async fn identify(
        &self,
        connection: &Connection,
        shards: &[Shard],
    ) -> Result<Vec<Unnumbered>, Error> {
        let unnamed = |shard: &Shard| Unnumbered {
            shard: *shard,
            name: String::new(),
        };
        let shards: Vec<_> = shards.iter().map(unnamed).collect();
        self.identify_or_number(connection, &shards, None).await
    }

    /// The same, with a number drawn for the data sets of these names, and when it was drawn.
    pub(super) async fn identify_or_number(
        &self,
        connection: &Connection,
        shards: &[Unnumbered],
        drawn: Option<(u64, DateTime<Utc>)>,
    ) -> Result<Vec<Unnumbered>, Error> {
        let number = drawn.map(|(number, _)| number.to_string());
        let at = drawn.map_or(0, |(_, at)| at.timestamp_millis());
        let calls = shards.iter().map(|Unnumbered { shard, name }| {
            GENERATION.call(
                &[self.keys.generation(*shard)],
                (
                    &connection.run_id,
                    Uuid::new_v4().to_string(),
                    self.clock.now().timestamp_millis(),
                    i32::from(self.settings.trust_restart),
                    number.as_ref().map_or("", |_| name.as_str()),
                    number.as_deref().unwrap_or_default(),
                    at,
                ),
            )
        });
        let replies: Vec<(String, String)> = connection.invoke_all(&GENERATION, calls).await?;
        let mut unnumbered = Vec::new();
        for (Unnumbered { shard, .. }, (name, number)) in shards.iter().zip(replies) {
            connection.set_generation(*shard, number.parse().ok());
            if number.is_empty() {
                unnumbered.push(Unnumbered {
                    shard: *shard,
                    name,
                });
            }
        }
        Ok(unnumbered)
    }
}

impl Server for Node {
    type Connection = Arc<Connection>;
    type Error = Error;

    /// A connection on which every shard has been identified.
    async fn connect(&self) -> Result<Arc<Connection>, Error> {
        let connected = async {
            let connection = Connection::establish(&self.client, &self.keys, &self.metrics).await?;
            let all: Vec<Shard> = Shard::all().collect();
            self.identify(&connection, &all).await?;
            Ok(Arc::new(connection))
        };
        connected.await.map_err(|error| match error {
            // No call of a caller was sent.
            Error::Unknown(cause) => Error::Unavailable(cause),
            other => other,
        })
    }

    async fn check(&self, connection: &Arc<Connection>) -> Result<(), Error> {
        match connection.query::<()>(&::redis::cmd("PING")).await {
            // It replies, if only that it is loading, busy or out of memory.
            Err(Error::Unavailable(_)) => Ok(()),
            reply => reply,
        }
    }

    fn is_broken(connection: &Arc<Connection>) -> bool {
        connection.is_broken()
    }

    async fn broken(connection: &Arc<Connection>) {
        connection.broken.cancelled().await;
    }

    fn break_off(connection: &Arc<Connection>) {
        connection.mark_broken();
    }

    fn late() -> Error {
        Error::Unavailable("it does not reply in time".to_owned())
    }

    fn observe(&self, up: bool) {
        self.metrics.server_observed(metrics::Server::Redis, up);
    }
}

/// Examines a connection, and makes sure that it leads to the server process of the fenced connection. If it does not, the
/// process was replaced: the fenced connection is as well, which identifies the data sets of the new one.
pub(super) async fn admit(link: &NodeLink, channel: &Channel) -> Result<(), Error> {
    let run_id = channel.examine().await?;
    let mut fenced = link.connection().await?;
    if fenced.run_id != run_id {
        fenced.mark_broken();
        fenced = link.connection().await?;
    }
    if fenced.run_id != run_id {
        let replaced = "the server was replaced while connecting".to_owned();
        return Err(Error::Unavailable(replaced));
    }
    Ok(())
}
