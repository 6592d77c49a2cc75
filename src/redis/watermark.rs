//! The policy watermark of each shard: the version up to which every change of a policy has reached its data set.

use ::redis::cmd;

use super::connection::Connection;
use super::error::Error;
use super::scripts::APPLIED;
use super::shard::Shard;

/// The watermark of a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Watermark {
    /// The shard.
    pub shard: Shard,
    /// None where nothing is known to have been applied.
    pub version: Option<u64>,
}

impl Connection {
    /// The watermarks of the shards that are reached.
    pub async fn watermarks(&self) -> Result<Vec<Watermark>, Error> {
        let shards: Vec<Shard> = self.reached().collect();
        let commands = shards.iter().map(|shard| {
            let mut command = cmd("HGET");
            command.arg((self.keys.generation(*shard), "applied"));
            (*shard, command)
        });
        let versions: Vec<Option<u64>> = self.query_each(commands).await?;
        let watermarks = shards.iter().zip(versions);
        Ok(watermarks
            .map(|(&shard, version)| Watermark { shard, version })
            .collect())
    }

    /// Advances watermarks that were read over this connection to the version, each unless its data set was replaced.
    pub async fn advance(&self, watermarks: &[Watermark], version: u64) -> Result<(), Error> {
        let mut calls = Vec::with_capacity(watermarks.len());
        for Watermark {
            shard,
            version: before,
        } in watermarks
        {
            let before = before.map_or(String::new(), |it| it.to_string());
            let identity = self.node(*shard)?.identity.as_str();
            let keys = [self.keys.generation(*shard)];
            calls.push((*shard, APPLIED.call(&keys, (identity, before, version))));
        }
        let _: Vec<u64> = self.invoke_each(&APPLIED, calls).await?;
        Ok(())
    }
}
