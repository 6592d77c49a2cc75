//! Moving a slot from one master to another, key by key.

use anyhow::{Context as _, Result, ensure};

use super::RedisCluster;

/// How many keys one `MIGRATE` moves. Both masters are blocked meanwhile.
const BATCH: usize = 100;

/// How long a master may not reply to the other during a `MIGRATE`.
const REPLY_TIME_MAX_MS: u32 = 10_000;

/// A slot that is being moved: the old master redirects keys that it does not have (`ASK`), and both refuse a command
/// with several keys that are not all in one place (`TRYAGAIN`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Migration {
    /// What moves.
    pub slot: u16,
    /// The index of its old master.
    pub from: usize,
    /// The index of its new master.
    pub to: usize,
}

impl RedisCluster {
    /// Moves a slot with its keys to another master. All masters know about it afterwards, replicas a little later.
    pub async fn migrate_slot(&self, slot: u16, from: usize, to: usize) -> Result<()> {
        let migration = self.begin_migration(slot, from, to).await?;
        self.move_keys(migration, usize::MAX).await?;
        self.end_migration(migration).await
    }

    /// Prepares both masters; no key has moved yet.
    pub async fn begin_migration(&self, slot: u16, from: usize, to: usize) -> Result<Migration> {
        // First the target: else it would redirect clients back that the source redirects to it.
        for (node, state, other) in [(to, "IMPORTING", from), (from, "MIGRATING", to)] {
            let id = self.id(other).await?;
            self.set_slot(node, slot, state, &id).await?;
        }
        Ok(Migration { slot, from, to })
    }

    /// Moves keys, which ones the server decides, until `max` are moved or none is left. Returns how many it moved.
    pub async fn move_keys(&self, migration: Migration, max: usize) -> Result<usize> {
        let mut source = self.connection(migration.from).await?;
        let mut moved = 0;
        while moved < max {
            let mut command = redis::cmd("CLUSTER");
            command.arg("GETKEYSINSLOT").arg(migration.slot);
            command.arg(BATCH.min(max - moved));
            let keys: Vec<Vec<u8>> = command.query_async(&mut source).await?;
            if keys.is_empty() {
                break;
            }
            self.move_these_keys(migration, &keys).await?;
            moved += keys.len();
        }
        Ok(moved)
    }

    /// Moves these keys of the slot; missing ones are ignored.
    pub async fn move_these_keys(
        &self,
        migration: Migration,
        keys: &[impl AsRef<[u8]>],
    ) -> Result<()> {
        let mut source = self.connection(migration.from).await?;
        let mut command = redis::cmd("MIGRATE");
        command
            .arg("127.0.0.1")
            .arg(self.nodes[migration.to].port())
            .arg("")
            .arg(0)
            .arg(REPLY_TIME_MAX_MS)
            .arg("AUTH")
            .arg(&self.password)
            .arg("KEYS");
        for key in keys {
            command.arg(key.as_ref());
        }
        let () = command.query_async(&mut source).await?;
        Ok(())
    }

    /// Makes the new master the owner of the slot, all of whose keys must have moved.
    pub async fn end_migration(&self, migration: Migration) -> Result<()> {
        let Migration { slot, from, to } = migration;
        let id = self.id(to).await?;
        let left: u64 = self
            .command(from, &["CLUSTER", "COUNTKEYSINSLOT", &slot.to_string()])
            .await?;
        ensure!(left == 0, "{left} keys of slot {slot} have not moved");
        // In this order: if it ends early, the slot has a master that accepts its keys.
        self.set_slot(to, slot, "NODE", &id).await?;
        self.set_slot(from, slot, "NODE", &id).await?;
        for (index, node) in self.nodes.iter().enumerate() {
            if index != from && index != to && node.is_live() && self.is_master(index).await? {
                self.set_slot(index, slot, "NODE", &id).await?;
            }
        }
        Ok(())
    }

    async fn set_slot(&self, node: usize, slot: u16, state: &str, id: &str) -> Result<()> {
        let words = ["CLUSTER", "SETSLOT", &slot.to_string(), state, id];
        let set = self.command(node, &words).await;
        set.with_context(|| format!("node {node} does not set slot {slot} to {state}"))
    }

    async fn id(&self, node: usize) -> Result<String> {
        Ok(self.command(node, &["CLUSTER", "MYID"]).await?)
    }
}
