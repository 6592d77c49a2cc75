//! Pooled connections: for everything that reads or scans a lot, so that its replies do not delay those of counting.
//!
//! A pooled connection is not fenced: it knows no generations. It is examined like any other before it is used, and leads to
//! the same data as the fenced connection to that master, whose data sets are identified: where they differ, the fenced
//! connection is marked broken and replaced first. A checkout costs a round trip.

use std::ops::Deref;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use deadpool_redis::{Connection as Slot, Hook, HookError, Manager, Pool, PoolError, Runtime};
use futures::future::join_all;

use super::address::Address;
use super::channel::{self, Channel};
use super::connection::Connection;
use super::deployment::DeploymentLink;
use super::error::Error;
use super::node::Node;
use super::routes::Routes;

/// How many connections to a master there are at most.
const CONNECTIONS: usize = 8;

/// How long a caller waits for one.
const WAIT_TIMEOUT: Duration = Duration::from_secs(5);

/// A connection to each master, which go back when this is dropped.
#[expect(missing_debug_implementations, reason = "the library's has none")]
pub struct Pooled {
    routes: Routes,
    _slots: Vec<Slot>,
}

impl Deref for Pooled {
    type Target = Routes;

    fn deref(&self) -> &Routes {
        &self.routes
    }
}

/// A pool for each master.
#[derive(Debug, Clone)]
pub(super) struct Pools {
    link: DeploymentLink,
    by_master: Arc<Mutex<Vec<(Address, Pool)>>>,
}

impl Pools {
    pub(super) fn new(link: &DeploymentLink) -> Self {
        Self {
            link: link.clone(),
            by_master: Arc::default(),
        }
    }

    /// Takes a connection to each master that is up.
    pub(super) async fn checkout(&self) -> Result<Pooled, Error> {
        // While Redis is down, fails at once.
        let connection = self.link.connection().await?;
        let masters = connection.topology.masters.iter().zip(&connection.channels);
        let taken = masters.map(async |(address, fenced)| {
            fenced.as_ref().map_err(Clone::clone)?;
            let unavailable = |error: PoolError| Error::Unavailable(error.to_string());
            self.pool(address, &connection)?
                .get()
                .await
                .map_err(unavailable)
        });
        let (mut slots, mut channels) = (Vec::new(), Vec::new());
        for slot in join_all(taken).await {
            channels.push(slot.map(|slot| {
                let channel = self.link.server().channel(slot.as_ref().clone());
                slots.push(slot);
                Arc::new(channel)
            }));
        }
        if slots.is_empty() {
            let error = channels.into_iter().find_map(Result::err);
            let none = || Error::Unavailable("no master is connected".to_owned());
            return Err(error.unwrap_or_else(none));
        }
        Ok(Pooled {
            routes: Routes {
                channels,
                owners: connection.topology.owners,
                keys: connection.keys.clone(),
                metrics: connection.metrics().clone(),
            },
            _slots: slots,
        })
    }

    fn pool(&self, address: &Address, connection: &Connection) -> Result<Pool, Error> {
        let pools = self.by_master.lock();
        let mut pools = pools.unwrap_or_else(PoisonError::into_inner);
        pools.retain(|(it, _)| connection.topology.masters.contains(it));
        if let Some((_, pool)) = pools.iter().find(|(it, _)| it == address) {
            return Ok(pool.clone());
        }
        let pool = build(&self.link, address)?;
        pools.push((address.clone(), pool.clone()));
        Ok(pool)
    }
}

/// A pool of connections to one master.
fn build(link: &DeploymentLink, address: &Address) -> Result<Pool, Error> {
    let manager = Manager::new_with_config(address.info().clone(), channel::config())
        .map_err(|error| Error::Unfit(error.to_string()))?;
    let (admitting, recycling) = (link.clone(), link.clone());
    let (admitted_at, recycled_at) = (address.clone(), address.clone());
    let admit = Hook::async_fn(move |connection, _| {
        let (link, address) = (admitting.clone(), admitted_at.clone());
        let channel = link.server().channel(connection.clone());
        Box::pin(async move {
            let admitted = admit(&link, &address, &channel).await;
            admitted.map_err(|error| HookError::message(error.to_string()))
        })
    });
    let recycle = Hook::async_fn(move |_, metrics| {
        let (link, address) = (recycling.clone(), recycled_at.clone());
        Box::pin(async move {
            match fenced(&link, &address).await {
                Ok(node) if node.established <= metrics.created => Ok(()),
                Ok(_) => Err(HookError::message("the fenced connection is newer")),
                Err(error) => Err(HookError::message(error.to_string())),
            }
        })
    });
    Pool::builder(manager)
        .max_size(CONNECTIONS)
        .wait_timeout(Some(WAIT_TIMEOUT))
        .runtime(Runtime::Tokio1)
        .post_create(admit)
        .pre_recycle(recycle)
        .build()
        .map_err(|error| Error::Unfit(error.to_string()))
}

/// The fenced connection to a master.
async fn fenced(link: &DeploymentLink, address: &Address) -> Result<Arc<Node>, Error> {
    let connection = link.connection().await?;
    let mut nodes = connection.nodes.iter().flatten();
    let node = nodes.find(|it| it.address == *address).cloned();
    node.ok_or_else(|| Error::Unavailable(format!("{address} is not connected")))
}

/// Examines a connection, and makes sure that it leads to the data of the fenced connection. If it does not, the process was
/// replaced: the fenced connection is as well, which identifies the data sets of the new one.
async fn admit(link: &DeploymentLink, address: &Address, channel: &Channel) -> Result<(), Error> {
    let identity = channel.examine().await?;
    let mut node = fenced(link, address).await?;
    if node.identity != identity {
        node.mark_broken();
        node = fenced(link, address).await?;
    }
    if node.identity != identity {
        let replaced = "the server was replaced while connecting".to_owned();
        return Err(Error::Unavailable(replaced));
    }
    Ok(())
}
