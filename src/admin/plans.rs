//! Plans: made, replaced and deleted.

use super::limits::check_warn_at;
use super::{Admin, Error, Invalid};
use crate::domain::ids::{METERS_MAX, PlanId};
use crate::domain::plan::Plan;
use crate::domain::precondition::{PreconditionFailed, Preconditions};
use crate::postgres::Actor;
use crate::postgres::plans::{self, Change};

impl Admin {
    /// One plan.
    pub async fn plan(&self, id: &PlanId) -> Result<Plan, Error> {
        self.default_plan_is_there().await?;
        plans::get(&self.ctx.postgres, id)
            .await?
            .ok_or(Error::NoSuchPlan)
    }

    /// At most `count` plans by id, behind `after`.
    pub async fn plans(&self, after: Option<&PlanId>, count: u32) -> Result<Vec<Plan>, Error> {
        self.default_plan_is_there().await?;
        Ok(plans::list(&self.ctx.postgres, after, count).await?)
    }

    /// Makes or replaces a plan, all of it. It is in force for the next request here, and within two seconds on
    /// every other instance, whether Redis is there or not.
    pub async fn put_plan(
        &self,
        plan: Plan,
        conditions: &Preconditions,
        actor: &Actor,
    ) -> Result<Plan, Error> {
        check(&plan)?;
        self.default_plan_is_there().await?;
        let expected = |version| conditions.check(version).is_ok();
        let change = plans::put(&self.ctx.postgres, plan, actor, expected).await?;
        let plan = done(change)?;
        self.policies.apply_plan(&plan).await;
        Ok(plan)
    }

    /// Deletes a plan that no organization is on.
    pub async fn delete_plan(
        &self,
        id: &PlanId,
        conditions: &Preconditions,
        actor: &Actor,
    ) -> Result<(), Error> {
        self.default_plan_is_there().await?;
        let expected = |version| conditions.check(version).is_ok();
        done(plans::delete(&self.ctx.postgres, id, actor, expected).await?)?;
        Ok(())
    }

    /// An instance that was started without Postgres has not published its defaults yet.
    async fn default_plan_is_there(&self) -> Result<(), Error> {
        Ok(self.policies.learn().await?)
    }
}

fn done(change: Change) -> Result<Plan, Error> {
    match change {
        Change::Done(plan) => Ok(plan),
        Change::Missing => Err(Error::NoSuchPlan),
        Change::Outdated => Err(PreconditionFailed.into()),
        Change::InUse(1) => Err(Error::Conflict("1 organization is on this plan".to_owned())),
        Change::InUse(users) => Err(Error::Conflict(format!(
            "{users} organizations are on this plan"
        ))),
        Change::Default => Err(Error::Conflict(
            "every organization without a plan of its own is on this one".to_owned(),
        )),
    }
}

fn check(plan: &Plan) -> Result<(), Invalid> {
    for (meter, limit) in &plan.limits {
        check_warn_at(limit.warn_at.as_deref()).map_err(|detail| Invalid {
            pointer: format!("/limits/{meter}/warnAt"),
            detail,
        })?;
    }
    if plan.limits.len() > METERS_MAX {
        return Err(Invalid {
            pointer: "/limits".to_owned(),
            detail: format!(
                "must name at most {METERS_MAX} meters, as many as an organization may have; got {}",
                plan.limits.len()
            ),
        });
    }
    Ok(())
}
