//! A fenced connection to a master, which knows the generations of the data sets behind it.
//!
//! It never reconnects by itself: a new connection may lead to a restarted process, or to a promoted replica that lacks
//! acknowledged writes. So the identity of the data is compared with the one recorded in every shard (`generation.lua`), and
//! generations are facts about one connection.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use ::redis::aio::MultiplexedConnection;
use ::redis::{AsyncConnectionConfig, PushInfo, PushKind};
use tokio::sync::mpsc::unbounded_channel;

use super::address::Address;
use super::channel::{self, Channel, Identity};
use super::error::Error;
use super::keys::Keys;
use super::replication::Replication;
use super::shard::{SHARDS, Shard};
use crate::metrics::Metrics;

/// A connection, with the generation of every shard as it was seen over this connection.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) address: Address,
    pub(super) channel: Arc<Channel>,
    pub(super) identity: Identity,
    /// None where replicas are not waited for.
    replication: Option<Replication>,
    pub(super) established: Instant,
    /// Whether the last check was answered.
    answered: AtomicBool,
    /// By shard; [`UNNUMBERED`], or [`UNKNOWN`] where it was not asked for.
    generations: [AtomicU64; SHARDS as usize],
}

const UNKNOWN: u64 = u64::MAX;
const UNNUMBERED: u64 = 0;

impl Deref for Node {
    type Target = Channel;

    fn deref(&self) -> &Channel {
        &self.channel
    }
}

impl Node {
    /// Connects, and refuses a server to which counts cannot be trusted.
    pub(super) async fn establish(
        address: &Address,
        replicas: u16,
        keys: &Keys,
        metrics: &Metrics,
    ) -> Result<Self, Error> {
        let (sender, mut pushes) = unbounded_channel::<PushInfo>();
        let config = channel::config().set_push_sender(sender);
        let inner = connect(address, &config).await?;
        let channel = Channel::new(inner, keys, metrics);
        let broken = channel.broken.clone();
        #[expect(
            clippy::disallowed_methods,
            reason = "it ends with the connection, which holds the only sender, and has nothing to save"
        )]
        tokio::spawn(async move {
            while let Some(push) = pushes.recv().await {
                if push.kind == PushKind::Disconnection {
                    break;
                }
            }
            broken.cancel();
        });
        let identity = channel.examine().await?;
        let replication = if replicas == 0 {
            None
        } else {
            let own = connect(address, &channel::config()).await?;
            Some(Replication::new(own, replicas, channel.broken.clone()))
        };
        Ok(Self {
            address: address.clone(),
            identity,
            replication,
            channel: Arc::new(channel),
            established: Instant::now(),
            answered: AtomicBool::new(true),
            generations: [const { AtomicU64::new(UNKNOWN) }; SHARDS as usize],
        })
    }

    /// The generation of a shard's data set, once it has a number.
    pub(super) fn generation(&self, shard: Shard) -> Option<u64> {
        match self.generation_slot(shard)?.load(Ordering::Acquire) {
            UNKNOWN | UNNUMBERED => None,
            number => Some(number),
        }
    }

    /// Whether a shard's data set was asked for its number.
    pub(super) fn has_identified(&self, shard: Shard) -> bool {
        self.generation_slot(shard)
            .is_some_and(|it| it.load(Ordering::Acquire) != UNKNOWN)
    }

    pub(super) fn set_generation(&self, shard: Shard, number: Option<u64>) {
        if let Some(slot) = self.generation_slot(shard) {
            slot.store(number.unwrap_or(UNNUMBERED), Ordering::Release);
        }
    }

    fn generation_slot(&self, shard: Shard) -> Option<&AtomicU64> {
        self.generations.get(shard.index())
    }

    /// Returns when enough replicas have what was counted. The shard is one of this master.
    pub(super) async fn replicated(&self, shard: Shard) -> Result<(), Error> {
        match &self.replication {
            Some(replication) => replication.wait(&self.keys.writable(shard)).await,
            None => Ok(()),
        }
    }

    /// Checks that the server replies, and that it still has the data that it had. Marks the connection broken if not.
    pub(super) async fn check(&self) {
        self.answered.store(false, Ordering::Release);
        // An error is a reply as well, if only that it is loading, busy or out of memory.
        if let Ok(identity) = self.channel.identity().await
            && identity.as_ref() != Some(&self.identity)
        {
            self.mark_broken();
        }
        self.answered.store(true, Ordering::Release);
    }

    /// Marks the connection broken if the last check is still waiting for its reply.
    pub(super) fn give_up_check(&self) {
        if !self.answered.load(Ordering::Acquire) {
            self.mark_broken();
        }
    }
}

/// Opens a connection.
pub(super) async fn connect(
    address: &Address,
    config: &AsyncConnectionConfig,
) -> Result<MultiplexedConnection, Error> {
    let client = address.client()?;
    let connection = client.get_multiplexed_async_connection_with_config(config);
    connection
        .await
        .map_err(|error| Error::Unavailable(error.to_string()))
}
