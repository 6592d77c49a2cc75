//! Fences: while a change is in progress that decides which counters an organization has, none of its calls is decided.
//!
//! A fence is written before the change is committed, so that nothing is committed while Redis takes no writes. It holds the
//! version that the change would have. `count.lua` decides nothing for a fenced organization, and no counter of it is created.
//! A caller that meets a fence finds out whether the change was committed, applies it, and removes the fence.

use std::time::Duration;

use ::redis::cmd;
use tokio::time::timeout;

use super::channel::Channel;
use super::counters::READ_MAX;
use super::error::Error;
use super::scripts::{DISCARD, UNFENCE};
use crate::domain::counter::CounterId;
use crate::domain::ids::OrganizationId;

/// How long writing a fence may take, because the writer holds the lock of all changes.
const WRITE_TIMEOUT: Duration = Duration::from_secs(1);

impl Channel {
    /// Fails if Redis takes no writes, because it is full or a replica.
    pub async fn writable(&self) -> Result<(), Error> {
        let arguments = (self.keys.writable(), "", "PX", 1000);
        self.query(cmd("SET").arg(arguments)).await
    }

    /// Fences an organization until the outcome of the change with this version is known.
    pub async fn fence(&self, organization: &OrganizationId, version: u64) -> Result<(), Error> {
        let mut command = cmd("HSET");
        command.arg((self.keys.fences(), organization.as_str(), version));
        let written = timeout(WRITE_TIMEOUT, self.query(&command)).await;
        let late = |_| {
            Err(Error::Unavailable(
                "writing a fence took too long".to_owned(),
            ))
        };
        written.unwrap_or_else(late)
    }

    /// Discards those of a fenced organization's counters in which nothing was ever counted.
    pub async fn discard_unused(&self, counters: &[CounterId]) -> Result<(), Error> {
        for some in counters.chunks(READ_MAX) {
            let keys: Vec<String> = some.iter().map(|it| self.keys.counter(it)).collect();
            let _discarded: usize = self
                .invoke(&DISCARD, &DISCARD.call(&keys, &[0_u64; 0]))
                .await?;
        }
        Ok(())
    }

    /// The version of the change that an organization is fenced for; none if it is not fenced.
    pub async fn fence_of(&self, organization: &OrganizationId) -> Result<Option<u64>, Error> {
        let arguments = (self.keys.fences(), organization.as_str());
        self.query(cmd("HGET").arg(arguments)).await
    }

    /// The fenced organizations.
    pub async fn fenced(&self) -> Result<Vec<OrganizationId>, Error> {
        let key = self.keys.fences();
        let ids: Vec<String> = self.query(cmd("HKEYS").arg(key)).await?;
        Ok(ids.iter().filter_map(|id| id.parse().ok()).collect())
    }

    /// Removes the fence of an organization, unless it is of another change.
    pub async fn unfence(&self, organization: &OrganizationId, version: u64) -> Result<(), Error> {
        let keys = [self.keys.fences()];
        let call = UNFENCE.call(&keys, (organization.as_str(), version));
        self.invoke(&UNFENCE, &call).await
    }
}
