//! An organization's settings.

use super::change::Change;
use super::limits::{check_count, check_meters, check_thresholds};
use super::{Admin, Error, Invalid};
use crate::domain::ids::OrganizationId;
use crate::domain::limit::LimitOverride;
use crate::domain::organization::{Organization, OrganizationSettings};
use crate::domain::patch::OrganizationPatch;
use crate::domain::precondition::Preconditions;
use crate::postgres::Actor;
use crate::postgres::organizations::Sources;

/// The maximum size of the features, and of the metadata, as JSON, in bytes: as much as one body could contain.
const COLLECTION_MAX: usize = 64 * 1024;

impl Admin {
    /// The settings of an organization, and those that it inherits.
    pub async fn organization(&self, organization: &OrganizationId) -> Result<Sources, Error> {
        if !self.policies.exists(organization).await? {
            return Err(Error::NotFound);
        }
        Ok(self.policies.stored(organization).await?)
    }

    /// Replaces all settings and, if they include `limits`, the organization's own limits; temporary limits stay. The running
    /// period keeps its start and count, and ends at the next boundary of the new calendar; a period without counts changes
    /// to that calendar at once.
    pub async fn put_organization(
        &self,
        organization: &OrganizationId,
        mut settings: OrganizationSettings,
        conditions: &Preconditions,
        actor: &Actor,
    ) -> Result<Sources, Error> {
        let limits = settings.limits.take();
        check_thresholds(limits.iter().flatten())?;
        let change = Change {
            organization,
            creates: true,
            conditions,
            actor,
            action: "organization.put",
        };
        let replace = |own: &mut Organization| {
            own.settings = settings.clone();
            if let Some(limits) = &limits {
                own.limits.clone_from(limits);
                // A limit that sets nothing is none.
                own.limits.retain(|_, it| *it != LimitOverride::default());
            }
        };
        self.change_settings(change, replace).await
    }

    /// Changes the named settings of an existing organization; otherwise like [`Admin::put_organization`].
    pub async fn patch_organization(
        &self,
        organization: &OrganizationId,
        patch: OrganizationPatch,
        conditions: &Preconditions,
        actor: &Actor,
    ) -> Result<Sources, Error> {
        let change = Change {
            organization,
            creates: false,
            conditions,
            actor,
            action: "organization.patch",
        };
        let merge = |own: &mut Organization| own.settings = patch.clone().apply(&own.settings);
        self.change_settings(change, merge).await
    }

    async fn change_settings(
        &self,
        change: Change<'_>,
        edit: impl Fn(&mut Organization),
    ) -> Result<Sources, Error> {
        let now = self.ctx.clock.now();
        let edit = |before: &Sources, activity| {
            let mut after = before.organization.clone().unwrap_or_default();
            edit(&mut after);
            let settings = &after.settings;
            // Each patch may add to them.
            check_size("/features", serde_json::to_string(&settings.features))?;
            check_size("/metadata", serde_json::to_string(&settings.metadata))?;
            check_count("/meters", settings.meters.len())?;
            check_meters(&after, "/limits")?;
            after.timeline = before
                .rescheduled(settings, now, activity)
                .map_err(Invalid::from)?;
            Ok(after)
        };
        self.change(change, edit).await
    }
}

fn check_size(pointer: &str, json: serde_json::Result<String>) -> Result<(), Invalid> {
    let length = json.map_or(0, |text| text.len());
    if length <= COLLECTION_MAX {
        return Ok(());
    }
    Err(Invalid {
        pointer: pointer.to_owned(),
        detail: format!(
            "must be at most {COLLECTION_MAX} bytes of JSON altogether; got {length} bytes"
        ),
    })
}
