//! The fenced connections to all masters, as one.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures::future::{join_all, select_all};
use tokio_util::sync::CancellationToken;

use super::error::Error;
use super::keys::Keys;
use super::node::Node;
use super::routes::Routes;
use super::shard::Shard;
use super::topology::Topology;
use crate::metrics::Metrics;

/// A connection to each master, each with the generations that were seen over it. Replaced when one of them breaks, or when
/// a shard has another master; the connections that are sound are part of the next as well.
#[derive(Debug)]
pub struct Connection {
    routes: Routes,
    pub(super) topology: Topology,
    /// To each master of the topology, where there is one.
    pub(super) nodes: Vec<Option<Arc<Node>>>,
    /// Cancelled when it is to be replaced although no connection is broken.
    pub(super) outdated: CancellationToken,
}

impl Deref for Connection {
    type Target = Routes;

    fn deref(&self) -> &Routes {
        &self.routes
    }
}

impl Connection {
    pub(super) fn new(
        topology: Topology,
        nodes: Vec<Result<Arc<Node>, Error>>,
        keys: &Keys,
        metrics: &Metrics,
    ) -> Self {
        let channels = nodes.iter().map(|node| match node {
            Ok(node) => Ok(Arc::clone(&node.channel)),
            Err(error) => Err(error.clone()),
        });
        Self {
            routes: Routes {
                channels: channels.collect(),
                owners: topology.owners,
                keys: keys.clone(),
                metrics: metrics.clone(),
            },
            topology,
            nodes: nodes.into_iter().map(Result::ok).collect(),
            outdated: CancellationToken::new(),
        }
    }

    /// The connection to the master that has a shard.
    pub(super) fn node(&self, shard: Shard) -> Result<&Arc<Node>, Error> {
        // For its error.
        self.channel(shard)?;
        let away = || Error::Unavailable("its master is away".to_owned());
        self.any_node(shard).ok_or_else(away)
    }

    /// The same, broken or not.
    fn any_node(&self, shard: Shard) -> Option<&Arc<Node>> {
        self.nodes.get(self.owner(shard)?)?.as_ref()
    }

    /// Whether both lead to the same master over the same connection, so that they know the same generation.
    pub(super) fn agrees(&self, other: &Self, shard: Shard) -> bool {
        let own = self.any_node(shard);
        own.is_some_and(|own| other.any_node(shard).is_some_and(|it| Arc::ptr_eq(own, it)))
    }

    /// The generation of a shard's data set, once it has a number.
    pub fn generation(&self, shard: Shard) -> Option<u64> {
        self.any_node(shard)?.generation(shard)
    }

    /// Whether a server has replied `MOVED` since this was last asked. Where that leads to the same address, such as that
    /// of a managed service, the identity of the server has changed, which its check finds.
    pub(super) fn has_moved(&self) -> bool {
        let nodes = self.nodes.iter().flatten();
        // Each of them is asked, so that one is not found again.
        let moved = nodes.filter(|it| it.moved.swap(false, Ordering::Relaxed));
        moved.count() > 0
    }

    /// Whether it must be replaced.
    pub(super) fn is_broken(&self) -> bool {
        self.outdated.is_cancelled() || self.nodes.iter().flatten().any(|it| it.is_broken())
    }

    /// Returns when it must be replaced.
    pub(super) async fn broken(&self) {
        let tokens = self.nodes.iter().flatten().map(|it| &it.broken);
        let tokens = tokens.chain([&self.outdated]);
        select_all(tokens.map(|it| Box::pin(it.cancelled()))).await;
    }

    /// Checks every connection, and marks those broken that lead to other data.
    pub(super) async fn check(&self) {
        join_all(self.nodes.iter().flatten().map(|it| it.check())).await;
    }
}
