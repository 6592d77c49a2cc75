//! The policy in force: as Redis holds it now, past every cache, or as stored where Redis is away.

use super::{Error, Usage};
use crate::domain::ids::OrganizationId;
use crate::domain::policy::Policy;
use crate::postgres::organizations;

impl Usage {
    /// What decides about an organization now; none if it was never counted nor configured.
    pub async fn effective(&self, organization: &OrganizationId) -> Result<Option<Policy>, Error> {
        match self.held(organization).await {
            Err(error) if error.is_counter_outage() => {
                let exists = organizations::exists(&self.ctx.postgres, organization).await?;
                let sources = self.policies.stored(organization).await?;
                Ok(exists.then(|| sources.resolve(self.ctx.clock.now())))
            }
            other => other,
        }
    }

    /// What would decide about an organization of which nothing is known here.
    pub async fn effective_for_none(&self, organization: &OrganizationId) -> Result<Policy, Error> {
        let sources = self.policies.stored(organization).await?;
        Ok(sources.resolve(self.ctx.clock.now()))
    }

    async fn held(&self, organization: &OrganizationId) -> Result<Option<Policy>, Error> {
        let connection = self.ctx.redis.connection().await?;
        let known = self.policies.in_redis(&connection, organization).await?;
        let counted = known.is_some_and(|known| known.meters.is_some());
        if !counted && !organizations::exists(&self.ctx.postgres, organization).await? {
            return Ok(None);
        }
        // A change is in Redis before whoever made it hears of it; other instances' caches hear later.
        let policy = self.policies.fresh(organization).await?;
        Ok(Some(Policy::clone(&policy)))
    }
}
