//! API keys: made, listed and revoked.

use super::{Admin, Error, Invalid};
use crate::domain::api_key::{ApiKey, NewApiKey};
use crate::domain::ids::ApiKeyId;
use crate::postgres::Actor;
use crate::postgres::api_keys::{self, IssuedKey};

impl Admin {
    /// Makes a key.
    pub async fn create_key(&self, wish: &NewApiKey, actor: &Actor) -> Result<IssuedKey, Error> {
        wish.check(self.ctx.clock.now()).map_err(Invalid::from)?;
        Ok(api_keys::create(&self.ctx.postgres, wish, actor).await?)
    }

    /// At most `count` keys, newest first, revoked ones included.
    pub async fn keys(&self, after: Option<&ApiKeyId>, count: u32) -> Result<Vec<ApiKey>, Error> {
        Ok(api_keys::list(&self.ctx.postgres, after, count).await?)
    }

    /// Revokes a key for good; false if there is none.
    pub async fn revoke_key(&self, id: &ApiKeyId, actor: &Actor) -> Result<bool, Error> {
        let found = api_keys::revoke(&self.ctx.postgres, id, actor).await?;
        self.auth.invalidate(id);
        // It is revoked, whatever comes now: the sweeps to come mirror it as well.
        if let Err(error) = self.auth.sweep_once().await {
            tracing::warn!(%error, "a revoked API key has not reached Redis yet");
        }
        Ok(found)
    }
}
