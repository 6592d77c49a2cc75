//! A fenced connection to Redis, which knows the generations of the data sets behind it.
//!
//! A connection never reconnects by itself: a new one may lead to a restarted process, or to a promoted replica that lacks
//! acknowledged writes. So it first compares the server's run id with the one recorded in every shard (`generation.lua`),
//! and generations are facts about one connection.

use std::ops::Deref;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use ::redis::{Client, PushInfo, PushKind};
use tokio::sync::mpsc::unbounded_channel;

use super::channel::{self, Channel};
use super::error::Error;
use super::keys::{Keys, SHARDS, Shard};
use crate::metrics::Metrics;

/// A connection, with the generation of every shard as it was seen over this connection.
#[derive(Debug)]
pub struct Connection {
    channel: Channel,
    /// The random name of the server process.
    pub(super) run_id: String,
    pub(super) established: Instant,
    /// By shard; 0 while it has no number.
    generations: [AtomicU64; SHARDS as usize],
}

impl Deref for Connection {
    type Target = Channel;

    fn deref(&self) -> &Channel {
        &self.channel
    }
}

impl Connection {
    /// Connects, and refuses a server to which counts cannot be trusted.
    pub(super) async fn establish(
        client: &Client,
        keys: &Keys,
        metrics: &Metrics,
    ) -> Result<Self, Error> {
        let (sender, mut pushes) = unbounded_channel::<PushInfo>();
        let config = channel::config().set_push_sender(sender);
        let inner = client
            .get_multiplexed_async_connection_with_config(&config)
            .await
            .map_err(|error| Error::Unavailable(error.to_string()))?;
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
        Ok(Self {
            run_id: channel.examine().await?,
            channel,
            established: Instant::now(),
            generations: [const { AtomicU64::new(0) }; SHARDS as usize],
        })
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
}
