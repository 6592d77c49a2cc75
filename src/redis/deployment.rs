//! The Redis that an instance uses, one server or many, and how fenced connections to it are made.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ::redis::aio::MultiplexedConnection;
use ::redis::cmd;
use chrono::{DateTime, Utc};
use futures::future::join_all;
use tokio::time::timeout;
use uuid::Uuid;

use super::address::{Address, Place};
use super::channel::Channel;
use super::connection::Connection;
use super::error::Error;
use super::keys::Keys;
use super::node::Node;
use super::scripts::GENERATION;
use super::shard::Shard;
use super::topology::{self, Topology};
use crate::clock::Clock;
use crate::link::{Link, Server};
use crate::metrics::{self, Metrics};

/// How long connecting to a node may take while others are connected, and keep their callers waiting.
const NODE_TIMEOUT: Duration = Duration::from_millis(100);

/// The same where nobody waits for it.
const RETURN_TIMEOUT: Duration = Duration::from_millis(200);

/// How many checks pass before the topology is read again: a second.
const CHECKS_EACH_TOPOLOGY: usize = 10;

/// Where Redis is and how it is used.
#[derive(Debug, Clone)]
pub struct Settings {
    /// `redis://`, `rediss://` or `redis+unix://` of a server, `redis://…,…?cluster=true` of a cluster,
    /// `redis+sentinel://…,…/name` of a master that sentinels name.
    pub url: String,
    /// Prefix of every key.
    pub prefix: String,
    /// Whether a restarted server is trusted to have all acknowledged writes.
    pub trust_restart: bool,
    /// How many replicas must have what was counted before it is acknowledged; 0 for none.
    pub wait_replicas: u16,
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

/// Why data sets are identified.
#[derive(Debug, Clone, Copy)]
pub(super) enum Identification<'a> {
    /// To learn their numbers.
    Read,
    /// To give them a number that was drawn at this time.
    Number(u64, DateTime<Utc>),
    /// Because they lack what was acknowledged: those that still have the number that this connection knows are replaced.
    Abandon(&'a Connection),
}

/// The link to all masters, with the fenced connections in use; replaced when they break, never repaired.
pub(super) type DeploymentLink = Link<Deployment>;

/// One server, a cluster, or a master that sentinels name.
#[derive(Debug)]
pub(super) struct Deployment {
    place: Place,
    pub(super) keys: Keys,
    pub(super) settings: Settings,
    pub(super) clock: Clock,
    metrics: Metrics,
    /// The sound connections, which the next [`Connection`] consists of.
    known: Mutex<Vec<Arc<Node>>>,
    checks: AtomicUsize,
}

impl Deployment {
    pub(super) fn new(settings: Settings, clock: Clock, metrics: Metrics) -> Result<Self, Error> {
        let place = Place::parse(&settings.url)?;
        Ok(Self {
            keys: Keys::new(&settings.prefix, place.is_cluster()),
            place,
            settings,
            clock,
            metrics,
            known: Mutex::default(),
            checks: AtomicUsize::default(),
        })
    }

    /// A pooled connection.
    pub(super) fn channel(&self, inner: MultiplexedConnection) -> Channel {
        Channel::new(inner, &self.keys, &self.metrics)
    }

    fn known(&self) -> Vec<Arc<Node>> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|it| !it.is_broken());
        known.clone()
    }

    /// Closes connections to servers that are no masters any more. One that is a master again later has other data.
    fn forget_others(&self, topology: &Topology) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|it| topology.masters.contains(&it.address));
    }

    /// A connection to a master: a sound one, or a new one.
    async fn node(&self, address: &Address, patience: Duration) -> Result<Arc<Node>, Error> {
        let known = self.known();
        if let Some(node) = known.into_iter().find(|it| it.address == *address) {
            return Ok(node);
        }
        let replicas = self.settings.wait_replicas;
        let established = timeout(
            patience,
            Node::establish(address, replicas, &self.keys, &self.metrics),
        );
        let late = |_| {
            Err(Error::Unavailable(format!(
                "{address} does not reply in time"
            )))
        };
        let node = Arc::new(established.await.unwrap_or_else(late)?);
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.push(Arc::clone(&node));
        Ok(node)
    }

    async fn topology(&self) -> Result<Topology, Error> {
        let mut known = self.known();
        // Not always the same one first, whose view may be stale.
        if let Some(turn) = self.checks.load(Ordering::Relaxed).checked_rem(known.len()) {
            known.rotate_left(turn);
        }
        topology::read(&self.place, &known).await
    }

    /// Reads which data sets these shards have, and returns those that need a number.
    pub(super) async fn identify(
        &self,
        connection: &Connection,
        shards: &[Shard],
        why: Identification<'_>,
    ) -> Result<Vec<Unnumbered>, Error> {
        let unnamed = |shard: &Shard| Unnumbered {
            shard: *shard,
            name: String::new(),
        };
        let shards: Vec<_> = shards.iter().map(unnamed).collect();
        self.identify_named(connection, &shards, why).await
    }

    /// The same, where a number was drawn for the data sets of these names.
    pub(super) async fn identify_named(
        &self,
        connection: &Connection,
        shards: &[Unnumbered],
        why: Identification<'_>,
    ) -> Result<Vec<Unnumbered>, Error> {
        let mut calls = Vec::with_capacity(shards.len());
        for Unnumbered { shard, name } in shards {
            let node = connection.node(*shard)?;
            let (number, at) = match why {
                Identification::Number(number, at) => (number.to_string(), at.timestamp_millis()),
                _ => (String::new(), 0),
            };
            let abandoned = match why {
                Identification::Abandon(connection) => connection.generation(*shard),
                _ => None,
            };
            let arguments = (
                node.identity.as_str(),
                Uuid::new_v4().to_string(),
                self.clock.now().timestamp_millis(),
                i32::from(self.settings.trust_restart),
                if number.is_empty() { "" } else { name },
                number,
                at,
                abandoned.map_or(String::new(), |it| it.to_string()),
            );
            let keys = [self.keys.generation(*shard)];
            calls.push((*shard, GENERATION.call(&keys, arguments)));
        }
        let replies: Vec<(String, String)> = connection.invoke_each(&GENERATION, calls).await?;
        let mut unnumbered = Vec::new();
        for (Unnumbered { shard, .. }, (name, number)) in shards.iter().zip(replies) {
            connection
                .node(*shard)?
                .set_generation(*shard, number.parse().ok());
            if number.is_empty() {
                unnumbered.push(Unnumbered {
                    shard: *shard,
                    name,
                });
            }
        }
        Ok(unnumbered)
    }

    /// Identifies what a new connection leads to, for each master apart, so that one that fails leaves the others.
    async fn identify_new(&self, connection: &Connection) -> Result<(), Error> {
        let masters = (0..connection.nodes.len()).map(|master| async move {
            let owned = Shard::all().filter(|it| connection.owner(*it) == Some(master));
            let unidentified = owned.filter(|shard| {
                let node = connection.node(*shard);
                node.is_ok_and(|it| !it.has_identified(*shard))
            });
            let shards: Vec<Shard> = unidentified.collect();
            self.identify(connection, &shards, Identification::Read)
                .await
        });
        let identified = join_all(masters).await;
        let any = identified.iter().any(Result::is_ok);
        let failed = identified.into_iter().find_map(Result::err);
        match failed {
            // Those shards are identified when they are needed.
            Some(error) if !any || !self.keys.clustered() => Err(error),
            _ => Ok(()),
        }
    }

    /// Checks the layout of the keys; writes it where there is none.
    async fn check_layout(&self, connection: &Connection) -> Result<(), Error> {
        let (key, needed) = (self.keys.layout(), self.keys.layout_needed());
        let get = || {
            let mut get = cmd("GET");
            get.arg(&key);
            get
        };
        let Ok(channel) = connection.channel(Shard::FIRST) else {
            return Ok(());
        };
        let mut layout: Option<String> = channel.query(&get()).await?;
        if layout.is_none() {
            // Only where it is missing, so that a Redis that is full can be read and flushed.
            let mut set = cmd("SET");
            set.arg((&key, needed, "NX"));
            let _: Option<String> = channel.query(&set).await?;
            layout = channel.query(&get()).await?;
        }
        if layout.as_deref() != Some(needed) {
            return Err(Error::Unfit(format!(
                "its keys are laid out as {}, this version needs {needed}",
                layout.unwrap_or_default()
            )));
        }
        Ok(())
    }

    async fn connect_all(&self) -> Result<Arc<Connection>, Error> {
        let topology = self.topology().await?;
        self.forget_others(&topology);
        let patience = match (self.keys.clustered(), self.known().is_empty()) {
            // The attempt has a timeout of its own.
            (false, _) => Duration::MAX,
            (true, true) => RETURN_TIMEOUT,
            (true, false) => NODE_TIMEOUT,
        };
        let nodes = topology.masters.iter().map(|it| self.node(it, patience));
        let nodes = join_all(nodes).await;
        if nodes.iter().all(Result::is_err) {
            let error = nodes.into_iter().find_map(Result::err);
            let empty = || Error::Unavailable("the cluster has no slots".to_owned());
            return Err(error.unwrap_or_else(empty));
        }
        let connection = Connection::new(topology, nodes, &self.keys, &self.metrics);
        self.check_layout(&connection).await?;
        self.identify_new(&connection).await?;
        self.metrics
            .set_shards_reached(connection.reached().count());
        Ok(Arc::new(connection))
    }

    /// Whether other masters have the shards now, or one is back that was away.
    async fn has_changed(&self, connection: &Connection) -> bool {
        let away = connection.nodes.iter().any(Option::is_none);
        let checks = self.checks.fetch_add(1, Ordering::Relaxed);
        let is_due = checks.is_multiple_of(CHECKS_EACH_TOPOLOGY);
        let may_differ = connection.has_moved() || away || is_due;
        if matches!(self.place, Place::Server(_)) || !may_differ {
            return false;
        }
        let Ok(topology) = self.topology().await else {
            return false;
        };
        if topology != connection.topology {
            return true;
        }
        let masters = topology.masters.iter().zip(&connection.nodes);
        let away = masters.filter(|(_, node)| node.is_none());
        let returns = away.map(|(address, _)| self.node(address, RETURN_TIMEOUT));
        join_all(returns).await.iter().any(Result::is_ok)
    }
}

impl Server for Deployment {
    type Connection = Arc<Connection>;
    type Error = Error;

    /// A connection on which every shard has been identified.
    async fn connect(&self) -> Result<Arc<Connection>, Error> {
        self.connect_all().await.map_err(|error| match error {
            // No call of a caller was sent.
            Error::Unknown(cause) => Error::Unavailable(cause),
            other => other,
        })
    }

    async fn check(&self, connection: &Arc<Connection>) -> Result<(), Error> {
        connection.check().await;
        if !connection.is_broken() && self.has_changed(connection).await {
            connection.outdated.cancel();
        }
        if connection.is_broken() {
            return Err(Error::Unavailable("the connection is lost".to_owned()));
        }
        Ok(())
    }

    fn is_broken(connection: &Arc<Connection>) -> bool {
        connection.is_broken()
    }

    async fn broken(connection: &Arc<Connection>) {
        connection.broken().await;
    }

    fn break_off(connection: &Arc<Connection>) {
        for node in connection.nodes.iter().flatten() {
            node.give_up_check();
        }
        connection.outdated.cancel();
    }

    fn late() -> Error {
        Error::Unavailable("it does not reply in time".to_owned())
    }

    fn observe(&self, up: bool) {
        if !up {
            self.metrics.set_shards_reached(0);
        }
        self.metrics.server_observed(metrics::Server::Redis, up);
    }
}
