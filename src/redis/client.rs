//! The handle on Redis. Calls on its connection are in the files of this folder, by purpose.

use std::sync::Arc;

use ::redis::{RedisError, cmd};
use chrono::{DateTime, Utc};
use futures::StreamExt;
use futures::future::try_join_all;
use futures::stream::BoxStream;

use super::announcement::Announcement;
use super::connection::Connection;
use super::count::lanes::Lanes;
use super::count::types::{Operation, Outcome};
use super::deployment::{Deployment, DeploymentLink, Identification, Settings, Unnumbered};
use super::error::Error;
use super::pool::{Pooled, Pools};
use super::shard::Shard;
use crate::clock::Clock;
use crate::link::Link;
use crate::metrics::Metrics;

/// The handle on Redis; clones share one fenced connection, its lanes and the pools.
#[derive(Debug, Clone)]
pub struct Redis {
    link: DeploymentLink,
    lanes: Lanes,
    pools: Pools,
}

impl Redis {
    /// A handle that connects at its first use.
    pub fn new(settings: Settings, clock: Clock, metrics: Metrics) -> Result<Self, Error> {
        let link = Link::new(Deployment::new(settings, clock, metrics)?);
        let (lanes, pools) = (Lanes::start(&link), Pools::new(&link));
        Ok(Self { link, lanes, pools })
    }

    /// The fenced connection in use, or a new one on which every shard has been identified.
    pub async fn connection(&self) -> Result<Arc<Connection>, Error> {
        self.link.connection().await
    }

    /// Pooled connections, for what reads or scans a lot.
    pub async fn pooled(&self) -> Result<Pooled, Error> {
        self.pools.checkout().await
    }

    /// Reads again which data sets these shards have; returns those that need a number.
    pub async fn identify(
        &self,
        connection: &Connection,
        shards: &[Shard],
    ) -> Result<Vec<Unnumbered>, Error> {
        self.link
            .server()
            .identify(connection, shards, Identification::Read)
            .await
    }

    /// Gives data sets a number that Postgres drew after they were named, at this time by its clock; returns those that
    /// another data set has replaced since.
    pub async fn number(
        &self,
        connection: &Connection,
        shards: &[Unnumbered],
        (number, at): (u64, DateTime<Utc>),
    ) -> Result<Vec<Unnumbered>, Error> {
        self.link
            .server()
            .identify_named(connection, shards, Identification::Number(number, at))
            .await
    }

    /// Fails if calls of this shard wait for too long. To be asked once for a request, before anything is done for
    /// it: the rounds that it takes afterwards are work that others have waited for.
    pub fn admits(&self, shard: Shard) -> Result<(), Error> {
        self.lanes.admits(shard)
    }

    /// Decides and counts; one outcome for each operation, in order. The operations were prepared for the generations of
    /// `connection`; None, and nothing is counted, if it is not the one in use any more.
    pub async fn count(
        &self,
        connection: &Arc<Connection>,
        operations: Vec<Operation>,
    ) -> Result<Option<Vec<Outcome>>, Error> {
        self.lanes.count(connection, operations).await
    }

    /// Announced changes, until the connection breaks.
    pub async fn announcements(&self) -> Result<BoxStream<'static, Announcement>, Error> {
        // While Redis is down, fails at once.
        let connection = self.link.connection().await?;
        let unavailable = |error: RedisError| Error::Unavailable(error.to_string());
        // Any node of a cluster passes on what is published on another.
        let node = connection.nodes.iter().flatten().next();
        let away = || Error::Unavailable("no master is connected".to_owned());
        let client = node.ok_or_else(away)?.address.client()?;
        let mut subscription = client.get_async_pubsub().await.map_err(unavailable)?;
        let channel = self.link.server().keys.announcements();
        subscription.subscribe(channel).await?;
        let messages = subscription.into_on_message();
        Ok(messages
            .filter_map(|message| async move { message.get_payload::<String>().ok()?.parse().ok() })
            .boxed())
    }

    /// Checks that Redis replies.
    pub async fn ping(&self) -> Result<(), Error> {
        let connection = self.connection().await?;
        let masters = connection.connected();
        try_join_all(masters.map(|it| async { it.query::<()>(&cmd("PING")).await }))
            .await
            .map(drop)
    }
}
