//! The change that the Better Auth plugin's `update-limits` makes.

use super::change::Change;
use super::{Admin, Error, Invalid};
use crate::domain::ids::{MeterId, OrganizationId};
use crate::domain::limit::{Enforcement, Limit, LimitOverride};
use crate::domain::period::{ResetMode, ResetPeriod};
use crate::domain::precondition::Preconditions;
use crate::domain::schedule::Activity;
use crate::postgres::Actor;
use crate::postgres::organizations::Sources;

/// The fields to change.
#[derive(Debug, Clone, Copy, Default)]
pub struct PluginUpdate {
    /// The limit of the meter `api`.
    pub limit: Option<Limit>,
    /// What happens beyond it.
    pub enforcement: Option<Enforcement>,
    /// What ends a period.
    pub reset_mode: Option<ResetMode>,
    /// The length of a period; another one than before starts on its default day.
    pub reset_period: Option<ResetPeriod>,
}

impl Admin {
    /// Changes an organization, or creates it: the auth server may have just created it on its side.
    pub async fn plugin_update(
        &self,
        organization: &OrganizationId,
        update: PluginUpdate,
        actor: &Actor,
    ) -> Result<Sources, Error> {
        let now = self.ctx.clock.now();
        let edit = |before: &Sources, activity: Activity| {
            let mut after = before.organization.clone().unwrap_or_default();
            let change = LimitOverride {
                limit: update.limit,
                enforcement: update.enforcement,
                ..LimitOverride::default()
            };
            if change != LimitOverride::default() {
                let own = after.limits.entry(MeterId::default()).or_default();
                *own = own.patched(&change);
            }
            let running = before.policy().schedule;
            let settings = &mut after.settings;
            settings.reset_mode = update.reset_mode.or(settings.reset_mode);
            if let Some(period) = update.reset_period {
                // A day of the month is no day of the week.
                if period != running.calendar().reset_period() {
                    (settings.reset_day, settings.reset_month) = (None, None);
                }
                settings.reset_period = Some(period);
            }
            after.timeline = before
                .rescheduled(settings, now, activity)
                .map_err(Invalid::from)?;
            Ok(after)
        };
        let change = Change {
            organization,
            creates: true,
            conditions: &Preconditions::default(),
            actor,
            action: "plugin.update_limits",
        };
        self.change(change, edit).await
    }
}
