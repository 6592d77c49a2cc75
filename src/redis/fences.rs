//! Fences: while a change is in progress that decides which counters an organization has, none of its calls is decided.
//!
//! A fence is written before the change is committed, so that nothing is committed while Redis takes no writes. It holds the
//! version that the change would have. `count.lua` decides nothing for a fenced organization, and no counter of it is created.
//! A caller that meets a fence finds out whether the change was committed, applies it, and removes the fence.

use std::time::Duration;

use ::redis::cmd;
use tokio::time::timeout;

use super::counters::READ_MAX;
use super::error::Error;
use super::routes::Routes;
use super::scripts::{DISCARD, UNFENCE};
use super::shard::Shard;
use crate::domain::counter::CounterId;
use crate::domain::ids::OrganizationId;

/// How long writing a fence may take, because the writer holds the lock of all changes.
const WRITE_TIMEOUT: Duration = Duration::from_secs(1);

impl Routes {
    /// Fails if the server of an organization takes no writes, because it is full or a replica.
    pub async fn writable(&self, organization: &OrganizationId) -> Result<(), Error> {
        let shard = Shard::of(organization);
        let arguments = (self.keys.writable(shard), "", "PX", 1000);
        self.query(shard, cmd("SET").arg(arguments)).await
    }

    /// Fences an organization until the outcome of the change with this version is known.
    pub async fn fence(&self, organization: &OrganizationId, version: u64) -> Result<(), Error> {
        let (shard, key) = self.fences_of(organization);
        let mut command = cmd("HSET");
        command.arg((key, organization.as_str(), version));
        let written = timeout(WRITE_TIMEOUT, self.query(shard, &command)).await;
        let late = |_| {
            Err(Error::Unavailable(
                "writing a fence took too long".to_owned(),
            ))
        };
        written.unwrap_or_else(late)
    }

    /// Discards those of a fenced organization's counters in which nothing was ever counted.
    pub async fn discard_unused(
        &self,
        organization: &OrganizationId,
        counters: &[CounterId],
    ) -> Result<(), Error> {
        for some in counters.chunks(READ_MAX) {
            let keys: Vec<String> = some.iter().map(|it| self.keys.counter(it)).collect();
            let call = DISCARD.call(&keys, &[0_u64; 0]);
            let shard = Shard::of(organization);
            let _discarded: usize = self.invoke(shard, &DISCARD, &call).await?;
        }
        Ok(())
    }

    /// The version of the change that an organization is fenced for; none if it is not fenced.
    pub async fn fence_of(&self, organization: &OrganizationId) -> Result<Option<u64>, Error> {
        let (shard, key) = self.fences_of(organization);
        let arguments = (key, organization.as_str());
        self.query(shard, cmd("HGET").arg(arguments)).await
    }

    /// The fenced organizations of the servers that are up.
    pub async fn fenced(&self) -> Result<Vec<OrganizationId>, Error> {
        let homes = self.keys.homes().filter(|it| self.reach(*it).is_ok());
        let commands = homes.map(|home| {
            let mut command = cmd("HKEYS");
            command.arg(self.keys.fences(home));
            (home, command)
        });
        let ids: Vec<Vec<String>> = self.query_each(commands).await?;
        let ids = ids.iter().flatten();
        Ok(ids.filter_map(|id| id.parse().ok()).collect())
    }

    /// Removes the fence of an organization, unless it is of another change.
    pub async fn unfence(&self, organization: &OrganizationId, version: u64) -> Result<(), Error> {
        let (shard, key) = self.fences_of(organization);
        let call = UNFENCE.call(&[key], (organization.as_str(), version));
        self.invoke(shard, &UNFENCE, &call).await
    }

    /// The key that has an organization's fence, and its shard.
    fn fences_of(&self, organization: &OrganizationId) -> (Shard, String) {
        let shard = Shard::of(organization);
        (self.keys.home(shard), self.keys.fences(shard))
    }
}
