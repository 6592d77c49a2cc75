//! Applies committed changes: writes them to Redis and its running counters, and announces them.

use super::Policies;
use super::incarnation::{SerializedPolicy, write};
use crate::domain::counter::{CounterId, Stamp};
use crate::domain::ids::OrganizationId;
use crate::domain::plan::Plan;
use crate::failure::Failure;
use crate::postgres::organizations::Sources;
use crate::redis::{Announcement, Configured, Connection};

impl Policies {
    /// Applies a plan that was committed in Postgres: here at once, and on other instances with the announcement or
    /// their next sweep. Succeeds without Redis.
    pub async fn apply_plan(&self, plan: &Plan) {
        self.cache.min_versions.raise_plan(&plan.id, plan.version);
        let announced = async {
            let connection = self.ctx.redis.connection().await?;
            let changed = Announcement::Plan(plan.id.clone(), plan.version);
            connection.announce(&changed).await
        };
        if let Err(error) = announced.await {
            tracing::warn!(%error, plan = %plan.id, "cannot announce a changed plan; other instances find it with their next sweep");
        }
    }

    /// Applies a policy that was committed in Postgres to Redis and to every running counter: from then on, it is
    /// effective for requests to any instance. Returns how many counters of a stale incarnation were erased.
    pub async fn apply(
        &self,
        connection: &Connection,
        organization: &OrganizationId,
        sources: &Sources,
    ) -> Result<usize, Failure> {
        let now = self.ctx.clock.now();
        let serialized = SerializedPolicy::new(organization, sources, self.oldest_end(now))?;
        let policy = &serialized.policy;
        // First the organization alone: from then on no counter is opened under an older version, so the returned
        // meters cover every counter that still has one.
        let written = write(&self.ctx, connection, std::slice::from_ref(&serialized)).await?;
        let erased = written.iter().map(|(_, erased)| erased).sum();
        if let Some((Configured::Known { version, meters }, _)) = written.into_iter().next()
            && version == policy.version
            && !meters.is_empty()
        {
            let effective = policy.clone().at(now);
            let running = meters.iter().map(|meter| {
                let period = policy.schedule.running(meter, now);
                // Each counter keeps its own generation.
                let stamp = Stamp::of(&effective, meter, period, 0);
                (CounterId::new(organization, meter, period.start), stamp)
            });
            let running: Vec<_> = running.collect();
            let configuration = serialized.configuration(&running);
            connection.configure(&[configuration], now).await?;
        }
        self.invalidate(organization);
        let changed = Announcement::Organization(organization.clone());
        connection.announce(&changed).await?;
        Ok(erased)
    }
}
