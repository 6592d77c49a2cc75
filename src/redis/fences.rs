//! Fences: while a change is on its way that decides which counters an organization has, none of its calls is decided.
//!
//! A fence is written before the change is committed, and so by nobody where Redis takes no writes; it holds the version
//! that the change would have. `count.lua` decides nothing of an organization that has one. Whoever meets it finds
//! out what became of the change, puts that in force, and takes the fence away.

use std::time::Duration;

use tokio::time::timeout;

use super::{Connection, Error, Redis, scripts};
use crate::domain::ids::OrganizationId;

/// How long a fence may take to be written, because whoever writes it holds the lock of all changes.
const WRITING_TIMEOUT: Duration = Duration::from_secs(1);

impl Redis {
    /// Refuses where Redis takes no writes: it is full, say, or a replica.
    pub async fn writable(&self, connection: &Connection) -> Result<(), Error> {
        let mut pipeline = redis::pipe();
        pipeline
            .cmd("SET")
            .arg(self.0.keys.writable())
            .arg("")
            .arg("PX")
            .arg(1000)
            .ignore();
        connection.run(&pipeline).await
    }

    /// Keeps every call of an organization from being decided until somebody has found out what became of this version.
    pub async fn fence(
        &self,
        connection: &Connection,
        organization: &OrganizationId,
        version: u64,
    ) -> Result<(), Error> {
        let mut pipeline = redis::pipe();
        pipeline
            .cmd("HSET")
            .arg(self.0.keys.fences())
            .arg(organization.as_str())
            .arg(version)
            .ignore();
        let late = |_| {
            Err(Error::Unavailable(
                "a fence was not written in time".to_owned(),
            ))
        };
        timeout(WRITING_TIMEOUT, connection.run(&pipeline))
            .await
            .unwrap_or_else(late)
    }

    /// The version that the fence of an organization stands for; none where there is none.
    pub async fn fence_of(
        &self,
        connection: &Connection,
        organization: &OrganizationId,
    ) -> Result<Option<u64>, Error> {
        let mut pipeline = redis::pipe();
        pipeline
            .cmd("HGET")
            .arg(self.0.keys.fences())
            .arg(organization.as_str());
        let (version,): (Option<u64>,) = connection.run(&pipeline).await?;
        Ok(version)
    }

    /// The organizations that have a fence.
    pub async fn fenced(&self, connection: &Connection) -> Result<Vec<OrganizationId>, Error> {
        let mut pipeline = redis::pipe();
        pipeline.cmd("HKEYS").arg(self.0.keys.fences());
        let (ids,): (Vec<String>,) = connection.run(&pipeline).await?;
        Ok(ids.iter().filter_map(|id| id.parse().ok()).collect())
    }

    /// Takes the fence of an organization away, unless it stands for another change by now.
    pub async fn unfence(
        &self,
        connection: &Connection,
        organization: &OrganizationId,
        version: u64,
    ) -> Result<(), Error> {
        scripts::unfence(connection, &self.0.keys, organization, version).await
    }
}
