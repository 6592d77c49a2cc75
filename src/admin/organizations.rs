//! An organization's settings.

use super::change::Change;
use super::{Admin, Error, Invalid};
use crate::domain::ids::OrganizationId;
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

    /// Replaces all settings except limits. The running period keeps its start and count, and ends at the next boundary
    /// of the new calendar; a period without counts changes to that calendar at once.
    pub async fn put_organization(
        &self,
        organization: &OrganizationId,
        settings: OrganizationSettings,
        conditions: &Preconditions,
        actor: &Actor,
    ) -> Result<Sources, Error> {
        let change = Change {
            organization,
            creates: true,
            conditions,
            actor,
            action: "organization.put",
        };
        self.change_settings(change, |_| settings.clone()).await
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
        self.change_settings(change, |own| patch.clone().apply(own))
            .await
    }

    async fn change_settings(
        &self,
        change: Change<'_>,
        edit: impl Fn(&OrganizationSettings) -> OrganizationSettings,
    ) -> Result<Sources, Error> {
        let now = self.ctx.clock.now();
        let edit = |before: &Sources, activity| {
            let own = before.organization.clone().unwrap_or_default();
            let settings = edit(&own.settings);
            // Each patch may add to them.
            check_size("/features", serde_json::to_string(&settings.features))?;
            check_size("/metadata", serde_json::to_string(&settings.metadata))?;
            Ok(Organization {
                timeline: before
                    .rescheduled(&settings, now, activity)
                    .map_err(Invalid::from)?,
                settings,
                ..own
            })
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
