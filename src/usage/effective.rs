//! The effective policy: the one that Redis has, past every cache, or the stored one while Redis is down.

use super::count::Usage;
use super::error::Error;
use crate::domain::ids::OrganizationId;
use crate::domain::policy::Policy;
use crate::postgres::organizations;

impl Usage {
    /// The effective policy of an organization; none if it was never counted nor configured.
    pub async fn effective(&self, organization: &OrganizationId) -> Result<Option<Policy>, Error> {
        match self.effective_in_redis(organization).await {
            Err(error) if error.is_counter_outage() => {
                let exists = organizations::exists(&self.ctx.postgres, organization).await?;
                let policy = self.stored_policy(organization).await?;
                Ok(exists.then_some(policy))
            }
            other => other,
        }
    }

    /// The policy of an organization as stored in Postgres; the default policy if it does not exist.
    pub async fn stored_policy(&self, organization: &OrganizationId) -> Result<Policy, Error> {
        let sources = self.policies.stored(organization).await?;
        Ok(sources.resolve(self.ctx.clock.now()))
    }

    async fn effective_in_redis(
        &self,
        organization: &OrganizationId,
    ) -> Result<Option<Policy>, Error> {
        let connection = self.ctx.redis.connection().await?;
        let in_redis = self.policies.in_redis(&connection, organization).await?;
        let counted = in_redis.is_some_and(|it| it.meters.is_some());
        if !counted && !organizations::exists(&self.ctx.postgres, organization).await? {
            return Ok(None);
        }
        // A change is in Redis before the request that made it returns; the caches of other instances follow.
        let policy = self.policies.fresh(organization).await?;
        Ok(Some(Policy::clone(&policy)))
    }
}
