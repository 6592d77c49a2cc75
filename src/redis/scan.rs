//! Scanning the keys of Redis.

use ::redis::cmd;
use futures::future::try_join_all;

use super::channel::Channel;
use super::error::Error;
use super::routes::Routes;

/// How many keys one step examines, so that Redis is never blocked for long.
const STEP: usize = 500;

impl Channel {
    /// Keys of this server that match, and the cursor of the next step. A scan starts, and has ended, at cursor 0.
    pub(super) async fn scan(
        &self,
        pattern: &str,
        cursor: u64,
    ) -> Result<(u64, Vec<String>), Error> {
        let arguments = (cursor, "MATCH", pattern, "COUNT", STEP);
        self.query(cmd("SCAN").arg(arguments)).await
    }
}

impl Routes {
    /// How many keys Redis has, which is what a whole scan costs.
    pub async fn size(&self) -> Result<usize, Error> {
        let size = cmd("DBSIZE");
        let sizes = self.connected().map(|it| it.query::<usize>(&size));
        Ok(try_join_all(sizes).await?.into_iter().sum())
    }
}
