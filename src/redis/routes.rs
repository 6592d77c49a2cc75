//! Calls that find the server of their shard. One server has all shards; on a cluster, a call that has keys of many shards
//! is one round trip to each master, at the same time.

use std::collections::BTreeMap;
use std::sync::Arc;

use ::redis::{Cmd, FromRedisValue, cmd};
use futures::future::try_join_all;

use super::channel::Channel;
use super::error::Error;
use super::keys::Keys;
use super::scripts::Script;
use super::shard::{SHARDS, Shard};
use crate::metrics::Metrics;

/// One connection to each master.
#[derive(Debug)]
pub struct Routes {
    /// To each master, or why there is none.
    pub(super) channels: Vec<Result<Arc<Channel>, Error>>,
    /// By shard, the position of its master.
    pub(super) owners: [Option<u16>; SHARDS as usize],
    pub(super) keys: Keys,
    pub(super) metrics: Metrics,
}

impl Routes {
    pub(super) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// The position of the master that has a shard.
    pub(super) fn owner(&self, shard: Shard) -> Option<usize> {
        self.owners.get(shard.index())?.map(usize::from)
    }

    /// The connection to the master that has a shard.
    pub(super) fn channel(&self, shard: Shard) -> Result<&Arc<Channel>, Error> {
        let owner = self.owner(shard).and_then(|it| self.channels.get(it));
        let uncovered = || Error::Unavailable("no master has the slot of the key".to_owned());
        let channel = owner
            .ok_or_else(uncovered)?
            .as_ref()
            .map_err(Clone::clone)?;
        if channel.is_broken() {
            return Err(Error::Unavailable("the connection is lost".to_owned()));
        }
        Ok(channel)
    }

    /// The connections that there are.
    pub(super) fn connected(&self) -> impl Iterator<Item = &Arc<Channel>> {
        self.channels.iter().filter_map(|it| it.as_ref().ok())
    }

    /// Fails if the master of a shard is not connected.
    pub fn reach(&self, shard: Shard) -> Result<(), Error> {
        self.channel(shard).map(drop)
    }

    /// The shards whose masters are connected.
    pub(super) fn reached(&self) -> impl Iterator<Item = Shard> {
        Shard::all().filter(|shard| self.reach(*shard).is_ok())
    }

    /// A shard of each master, and its connection.
    pub(super) fn masters(&self) -> impl Iterator<Item = (Shard, Result<&Arc<Channel>, Error>)> {
        (0..self.channels.len()).filter_map(|master| {
            let shard = Shard::all().find(|it| self.owner(*it) == Some(master))?;
            Some((shard, self.channel(shard)))
        })
    }

    /// Runs one command.
    pub(super) async fn query<T: FromRedisValue>(
        &self,
        shard: Shard,
        command: &Cmd,
    ) -> Result<T, Error> {
        self.channel(shard)?.query(command).await
    }

    /// Runs a script once, and measures it.
    pub(super) async fn invoke<T: FromRedisValue>(
        &self,
        shard: Shard,
        script: &Script,
        call: &Cmd,
    ) -> Result<T, Error> {
        self.channel(shard)?.invoke(script, call).await
    }

    /// Runs several commands; the replies, in order. An error of one is an error of all, although others were executed.
    pub(super) async fn query_each<T: FromRedisValue>(
        &self,
        commands: impl IntoIterator<Item = (Shard, Cmd)>,
    ) -> Result<Vec<T>, Error> {
        self.run_each(None, commands.into_iter().collect()).await
    }

    /// Runs a script several times; as [`Routes::query_each`].
    pub(super) async fn invoke_each<T: FromRedisValue>(
        &self,
        script: &Script,
        calls: impl IntoIterator<Item = (Shard, Cmd)>,
    ) -> Result<Vec<T>, Error> {
        self.run_each(Some(script), calls.into_iter().collect())
            .await
    }

    /// Reads the values of keys.
    pub(super) async fn values<T: FromRedisValue>(
        &self,
        keys: Vec<(Shard, String)>,
    ) -> Result<Vec<Option<T>>, Error> {
        let Some((first, _)) = keys.first() else {
            return Ok(Vec::new());
        };
        if !self.keys.clustered() {
            let keys: Vec<&str> = keys.iter().map(|(_, key)| key.as_str()).collect();
            return self.query(*first, cmd("MGET").arg(keys)).await;
        }
        // Keys of one command are of one slot.
        let mut by_shard: BTreeMap<Shard, (Vec<usize>, Cmd)> = BTreeMap::new();
        for (place, (shard, key)) in keys.iter().enumerate() {
            let of_shard = by_shard.entry(*shard);
            let (places, command) = of_shard.or_insert_with(|| (Vec::new(), cmd("MGET")));
            places.push(place);
            command.arg(key);
        }
        let (places, commands): (Vec<_>, Vec<_>) = by_shard
            .into_iter()
            .map(|(shard, (places, command))| (places, (shard, command)))
            .unzip();
        let read: Vec<Vec<Option<T>>> = self.query_each(commands).await?;
        let places = places.into_iter().flatten();
        Ok(in_order(places.zip(read.into_iter().flatten())))
    }

    async fn run_each<T: FromRedisValue>(
        &self,
        script: Option<&Script>,
        commands: Vec<(Shard, Cmd)>,
    ) -> Result<Vec<T>, Error> {
        let Some((first, _)) = commands.first() else {
            return Ok(Vec::new());
        };
        let owner = self.owner(*first);
        if commands.iter().all(|(it, _)| self.owner(*it) == owner) {
            let channel = self.channel(*first)?;
            let commands = commands.into_iter().map(|(_, command)| command);
            return channel.run_all(script, commands).await;
        }
        let mut by_owner: BTreeMap<Option<usize>, Vec<(usize, Shard, Cmd)>> = BTreeMap::new();
        for (place, (shard, command)) in commands.into_iter().enumerate() {
            let of_owner = by_owner.entry(self.owner(shard)).or_default();
            of_owner.push((place, shard, command));
        }
        let mut calls = Vec::with_capacity(by_owner.len());
        for commands in by_owner.into_values() {
            let Some((_, shard, _)) = commands.first() else {
                continue;
            };
            // Before anything is sent to another.
            let channel = self.channel(*shard).map_err(Error::of_part)?;
            calls.push(async move {
                let places: Vec<usize> = commands.iter().map(|(place, ..)| *place).collect();
                let commands = commands.into_iter().map(|(_, _, command)| command);
                let replies = channel.run_all(script, commands).await;
                let replies: Vec<T> = replies.map_err(Error::of_part)?;
                Ok::<_, Error>(places.into_iter().zip(replies))
            });
        }
        let replies = try_join_all(calls).await?;
        Ok(in_order(replies.into_iter().flatten()))
    }
}

/// Values by their places, which are 0, 1, 2 … in any order.
fn in_order<T>(values: impl Iterator<Item = (usize, T)>) -> Vec<T> {
    let mut values: Vec<(usize, T)> = values.collect();
    values.sort_unstable_by_key(|(place, _)| *place);
    values.into_iter().map(|(_, value)| value).collect()
}
