//! Who has changed what.

use super::{Admin, Error};
use crate::postgres::audit::{self, Entry, Filter};

impl Admin {
    /// At most `count` entries of the audit log, newest first; those that follow `after`, if that is given.
    pub async fn audit(
        &self,
        filter: &Filter,
        after: Option<u64>,
        count: u32,
    ) -> Result<Vec<Entry>, Error> {
        Ok(audit::list(&self.ctx.postgres, filter, after, count).await?)
    }
}
