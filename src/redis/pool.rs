//! Pooled connections: for everything that reads or scans a lot, so that its replies do not delay those of counting.
//!
//! A pooled connection is not fenced: it knows no generations. It is examined like any other before it is used, and leads to
//! the same server process as the fenced connection, whose data sets are identified: where the processes differ, the
//! fenced connection is marked broken and replaced first. A checkout costs a round trip.

use std::ops::Deref;
use std::time::Duration;

use deadpool_redis::{Connection as Slot, Hook, HookError, Manager, Pool, PoolError, Runtime};

use super::channel::{self, Channel};
use super::error::Error;
use super::node::{NodeLink, admit};

/// How many connections there are at most.
const CONNECTIONS: usize = 8;

/// How long a caller waits for one.
const WAIT_TIMEOUT: Duration = Duration::from_secs(5);

/// A connection from the pool, which goes back when this is dropped.
#[expect(missing_debug_implementations, reason = "the library's has none")]
pub struct Pooled {
    channel: Channel,
    _slot: Slot,
}

impl Deref for Pooled {
    type Target = Channel;

    fn deref(&self) -> &Channel {
        &self.channel
    }
}

/// A pool of connections to this node.
pub(super) fn build(link: &NodeLink) -> Result<Pool, Error> {
    let info = link.server().client.get_connection_info().clone();
    let manager = Manager::new_with_config(info, channel::config())
        .map_err(|error| Error::Unfit(error.to_string()))?;
    let (admitting, recycling) = (link.clone(), link.clone());
    let admit = Hook::async_fn(move |connection, _| {
        let link = admitting.clone();
        let channel = link.server().channel(connection.clone());
        Box::pin(async move {
            let admitted = admit(&link, &channel).await;
            admitted.map_err(|error| HookError::message(error.to_string()))
        })
    });
    let recycle = Hook::async_fn(move |_, metrics| {
        let link = recycling.clone();
        Box::pin(async move {
            match link.connection().await {
                Ok(connection) if connection.established <= metrics.created => Ok(()),
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

/// Takes a connection from the pool.
pub(super) async fn checkout(pool: &Pool, link: &NodeLink) -> Result<Pooled, Error> {
    // While Redis is down, fails at once.
    link.connection().await?;
    let unavailable = |error: PoolError| Error::Unavailable(error.to_string());
    let slot = pool.get().await.map_err(unavailable)?;
    Ok(Pooled {
        channel: link.server().channel(slot.as_ref().clone()),
        _slot: slot,
    })
}
