//! API keys: creation and revocation.

use super::{Admin, Error, Invalid};
use crate::domain::api_key::NewApiKey;
use crate::domain::ids::ApiKeyId;
use crate::failure::Failure;
use crate::postgres::Actor;
use crate::postgres::api_keys::{self, IssuedKey};

impl Admin {
    /// Creates a key.
    pub async fn create_key(&self, new: &NewApiKey, actor: &Actor) -> Result<IssuedKey, Error> {
        new.check(self.ctx.clock.now()).map_err(Invalid::from)?;
        Ok(api_keys::create(&self.ctx.postgres, new, actor).await?)
    }

    /// Revokes a key for good; false if it does not exist.
    pub async fn revoke_key(&self, id: &ApiKeyId, actor: &Actor) -> Result<bool, Failure> {
        let found = api_keys::revoke(&self.ctx.postgres, id, actor).await?;
        self.auth.invalidate(id);
        self.mirror_revocation().await;
        Ok(found)
    }

    /// Mirrors a revocation in Redis now; if that fails, the next sweep does it.
    pub(super) async fn mirror_revocation(&self) {
        if let Err(error) = self.auth.sweep_once().await {
            tracing::warn!(%error, "a revoked API key has not reached Redis yet");
        }
    }
}
