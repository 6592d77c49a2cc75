//! The handle on Redis. Calls on its connection are in the files of this folder, by purpose.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use deadpool_redis::Pool;
use futures::StreamExt;
use futures::stream::BoxStream;

use super::announcement::Announcement;
use super::connection::Connection;
use super::count::lane::Lanes;
use super::count::types::{Operation, Outcome};
use super::error::Error;
use super::keys::Shard;
use super::node::{Node, NodeLink, Settings, Unnumbered};
use super::pool::{self, Pooled};
use crate::clock::Clock;
use crate::link::Link;
use crate::metrics::Metrics;

/// The handle on Redis; clones share one fenced connection, its lanes and the pool.
#[derive(Debug, Clone)]
pub struct Redis {
    link: NodeLink,
    lanes: Lanes,
    pool: Pool,
}

impl Redis {
    /// A handle that connects at its first use.
    pub fn new(settings: Settings, clock: Clock, metrics: Metrics) -> Result<Self, Error> {
        let link = Link::new(Node::new(settings, clock, metrics)?);
        let (lanes, pool) = (Lanes::start(&link), pool::build(&link)?);
        Ok(Self { link, lanes, pool })
    }

    /// The fenced connection in use, or a new one on which every shard has been identified.
    pub async fn connection(&self) -> Result<Arc<Connection>, Error> {
        self.link.connection().await
    }

    /// A pooled connection, for what reads or scans a lot.
    pub async fn pooled(&self) -> Result<Pooled, Error> {
        pool::checkout(&self.pool, &self.link).await
    }

    /// Reads again which data sets these shards have; returns those that need a number.
    pub async fn identify(
        &self,
        connection: &Connection,
        shards: &[Shard],
    ) -> Result<Vec<Unnumbered>, Error> {
        self.link.server().identify(connection, shards).await
    }

    /// Gives data sets a number that Postgres drew after they were named, at this time by its clock; returns those that
    /// another data set has replaced since.
    pub async fn number(
        &self,
        connection: &Connection,
        shards: &[Unnumbered],
        drawn: (u64, DateTime<Utc>),
    ) -> Result<Vec<Unnumbered>, Error> {
        self.link
            .server()
            .identify_or_number(connection, shards, Some(drawn))
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
        self.link.connection().await?;
        let node = self.link.server();
        let subscription = node.client.get_async_pubsub().await;
        let mut subscription =
            subscription.map_err(|error| Error::Unavailable(error.to_string()))?;
        subscription.subscribe(node.keys.announcements()).await?;
        let messages = subscription.into_on_message();
        Ok(messages
            .filter_map(|message| async move { message.get_payload::<String>().ok()?.parse().ok() })
            .boxed())
    }

    /// Checks that Redis replies.
    pub async fn ping(&self) -> Result<(), Error> {
        let connection = self.connection().await?;
        connection.query(&::redis::cmd("PING")).await
    }
}
