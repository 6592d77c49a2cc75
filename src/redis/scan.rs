//! One step of a walk through the keys of Redis.

use super::{Connection, Error, Redis};

/// How many keys one step looks at, so that Redis is never blocked for long.
const STEP: usize = 500;

impl Redis {
    /// The keys of one step that match, and where the walk goes on; it begins, and has ended, at 0.
    pub(super) async fn walk(
        &self,
        connection: &Connection,
        pattern: &str,
        cursor: u64,
    ) -> Result<(u64, Vec<String>), Error> {
        let mut pipeline = redis::pipe();
        pipeline
            .cmd("SCAN")
            .arg(cursor)
            .arg("MATCH")
            .arg(pattern)
            .arg("COUNT")
            .arg(STEP);
        let (step,): ((u64, Vec<String>),) = connection.run(&pipeline).await?;
        Ok(step)
    }
}
