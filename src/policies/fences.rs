//! What to do where an organization has a fence: find out what became of the change that it stands for, put that in
//! force, and take the fence away.
//!
//! Whoever writes a fence has the lock of all changes until its change is committed, or will never be. So whoever has
//! seen the fence first and had that lock afterwards knows which; and it does not matter who that is, nor how many.

use std::sync::Arc;

use super::Policies;
use crate::domain::ids::OrganizationId;
use crate::failure::Failure;
use crate::postgres::organizations;
use crate::redis::{self, Connection, KnownOrganization};

impl Policies {
    /// What Redis knows of an organization, once no change is on its way that decides which counters it has.
    pub async fn known(
        &self,
        connection: &Arc<Connection>,
        organization: &OrganizationId,
    ) -> Result<Option<KnownOrganization>, Failure> {
        let known = connection.organization(organization);
        let fence = connection.fence_of(organization);
        let (known, fence) = futures::try_join!(known, fence)?;
        if fence.is_none() {
            return Ok(known);
        }
        self.pass_fence(organization).await?;
        Ok(connection.organization(organization).await?)
    }

    /// Puts in force what became of the change that the fence of an organization stands for, if it has one. Callers
    /// share one look at Postgres.
    pub async fn pass_fence(&self, organization: &OrganizationId) -> Result<(), Failure> {
        let policies = self.clone();
        let wish = organization.clone();
        let passed = self
            .passing
            .ask(wish.clone(), wish, Failure::may_be_of_one, move |wishes| {
                let policies = policies.clone();
                async move {
                    for organization in &wishes {
                        policies.pass(organization).await?;
                    }
                    Ok(vec![(); wishes.len()])
                }
            });
        passed.await.ok_or(redis::Error::Overloaded)?
    }

    async fn pass(&self, organization: &OrganizationId) -> Result<(), Failure> {
        let connection = self.ctx.redis.connection().await?;
        let Some(version) = connection.fence_of(organization).await? else {
            return Ok(());
        };
        let sources = organizations::settled(&self.ctx.postgres, organization).await?;
        self.apply(&connection, organization, &sources).await?;
        connection.unfence(organization, version).await?;
        Ok(())
    }
}
