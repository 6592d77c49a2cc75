//! The mirror of the API keys.

use ::redis::cmd;

use super::error::Error;
use super::routes::Routes;
use super::scripts::MIRROR;
use super::shard::Shard;
use crate::domain::ids::ApiKeyId;

/// The field that has the mark of the mirror; no id of a key looks like this.
const MARK: &str = "mark";

/// Records of API keys for the mirror.
#[derive(Debug, Clone)]
pub struct KeyChanges<'a> {
    /// The mark of the mirror after them.
    pub mark: String,
    /// The record of each key, oldest change first.
    pub records: Vec<(&'a ApiKeyId, String)>,
    /// Whether they replace the whole mirror.
    pub replace: bool,
}

impl Routes {
    /// The mirrored record of an API key.
    pub async fn api_key(&self, id: &str) -> Result<Option<String>, Error> {
        self.mirrored(id).await
    }

    /// The mark up to which changes of API keys are mirrored in this data set; none without a mirror.
    pub async fn api_keys_mark(&self) -> Result<Option<String>, Error> {
        self.mirrored(MARK).await
    }

    async fn mirrored(&self, field: &str) -> Result<Option<String>, Error> {
        let key = self.keys.api_keys();
        self.query(Shard::FIRST, cmd("HGET").arg(key).arg(field))
            .await
    }

    /// Advances the mirror from the mark that the caller read, so that counting authenticates without Postgres. False if
    /// another instance has advanced it.
    pub async fn mirror_api_keys(
        &self,
        seen: Option<&str>,
        changes: &KeyChanges<'_>,
    ) -> Result<bool, Error> {
        let mode = if changes.replace { "replace" } else { "add" };
        let arguments = (seen.unwrap_or_default(), &changes.mark, mode);
        let mut call = MIRROR.call(&[self.keys.api_keys()], arguments);
        for (id, record) in &changes.records {
            call.arg(id.as_str()).arg(record);
        }
        self.invoke(Shard::FIRST, &MIRROR, &call).await
    }
}
