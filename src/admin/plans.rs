//! Plans.

use super::limits::{check_count, check_thresholds};
use super::{Admin, Error, Invalid};
use crate::domain::ids::PlanId;
use crate::domain::plan::Plan;
use crate::domain::precondition::{PreconditionFailed, Preconditions};
use crate::failure::Failure;
use crate::postgres::Actor;
use crate::postgres::plans::{self, Change};

/// What a put of a plan would do.
#[derive(Debug, Clone, PartialEq)]
pub struct PlanPreview {
    /// The plan afterwards, with its present version, or 0 if it does not exist.
    pub plan: Plan,
    /// How many organizations are on it; 0 if nothing would change.
    pub organizations: u64,
}

impl Admin {
    /// One plan.
    pub async fn plan(&self, id: &PlanId) -> Result<Plan, Error> {
        self.publish_defaults().await?;
        let plan = plans::get(&self.ctx.postgres, id).await?;
        plan.ok_or(Error::NoSuchPlan)
    }

    /// At most `count` plans after `after`, by id.
    pub async fn plans(&self, after: Option<&PlanId>, count: u32) -> Result<Vec<Plan>, Failure> {
        self.publish_defaults().await?;
        Ok(plans::list(&self.ctx.postgres, after, count).await?)
    }

    /// Creates or replaces a plan. Effective for the next request here, and within two seconds on every other instance,
    /// even if Redis is down.
    pub async fn put_plan(
        &self,
        plan: Plan,
        conditions: &Preconditions,
        actor: &Actor,
    ) -> Result<Plan, Error> {
        check(&plan)?;
        self.publish_defaults().await?;
        let expected = |version| conditions.check(version).is_ok();
        let change = plans::put(&self.ctx.postgres, plan, actor, expected).await?;
        let plan = committed(change)?;
        self.policies.apply_plan(&plan).await;
        Ok(plan)
    }

    /// What a put of this plan would do.
    pub async fn preview_plan(
        &self,
        plan: Plan,
        conditions: &Preconditions,
    ) -> Result<PlanPreview, Error> {
        check(&plan)?;
        self.publish_defaults().await?;
        let before = plans::get(&self.ctx.postgres, &plan.id).await?;
        let version = before.as_ref().map(|it| it.version);
        conditions.check(version)?;
        let plan = Plan {
            version: version.unwrap_or(0),
            ..plan
        };
        let organizations = if before.as_ref() == Some(&plan) {
            0
        } else {
            plans::organizations(&self.ctx.postgres, &plan.id).await?
        };
        Ok(PlanPreview {
            plan,
            organizations,
        })
    }

    /// Deletes a plan that no organization is on.
    pub async fn delete_plan(
        &self,
        id: &PlanId,
        conditions: &Preconditions,
        actor: &Actor,
    ) -> Result<(), Error> {
        self.publish_defaults().await?;
        let expected = |version| conditions.check(version).is_ok();
        committed(plans::delete(&self.ctx.postgres, id, actor, expected).await?)?;
        Ok(())
    }

    /// Publishes the default plan if Postgres was down when this instance started.
    async fn publish_defaults(&self) -> Result<(), Failure> {
        Ok(self.policies.learn().await?)
    }
}

fn committed(change: Change) -> Result<Plan, Error> {
    match change {
        Change::Done(plan) => Ok(plan),
        Change::Missing => Err(Error::NoSuchPlan),
        Change::Outdated => Err(PreconditionFailed.into()),
        Change::InUse(1) => Err(Error::Conflict("1 organization is on this plan".to_owned())),
        Change::InUse(users) => Err(Error::Conflict(format!(
            "{users} organizations are on this plan"
        ))),
        Change::Default => Err(Error::Conflict(
            "this is the default plan, of every organization without a plan of its own".to_owned(),
        )),
    }
}

fn check(plan: &Plan) -> Result<(), Invalid> {
    check_thresholds(&plan.limits)?;
    check_count("/limits", plan.limits.len())?;
    check_count("/meters", plan.meters.len())
}
