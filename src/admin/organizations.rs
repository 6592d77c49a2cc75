//! An organization's settings.

use chrono::{DateTime, Utc};

use super::change::Change;
use super::{Admin, Error, Invalid};
use crate::domain::ids::OrganizationId;
use crate::domain::patch::OrganizationPatch;
use crate::domain::policy::{Organization, OrganizationSettings};
use crate::domain::precondition::Preconditions;
use crate::domain::schedule::Activity;
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
        let now = self.ctx.clock.now();
        let change = Change {
            organization,
            creates: true,
            conditions,
            actor,
            action: "organization.put",
        };
        self.change(change, |before, activity| {
            Ok(with_settings(before, settings.clone(), now, activity)?)
        })
        .await
    }

    /// Changes the named settings of an existing organization; otherwise like [`Admin::put_organization`].
    pub async fn patch_organization(
        &self,
        organization: &OrganizationId,
        patch: OrganizationPatch,
        conditions: &Preconditions,
        actor: &Actor,
    ) -> Result<Sources, Error> {
        let now = self.ctx.clock.now();
        let change = Change {
            organization,
            creates: false,
            conditions,
            actor,
            action: "organization.patch",
        };
        self.change(change, |before, activity| {
            let own = before.organization.clone().unwrap_or_default().settings;
            let settings = patch.clone().apply(&own);
            Ok(with_settings(before, settings, now, activity)?)
        })
        .await
    }
}

/// An organization with other settings, if they are valid together.
fn with_settings(
    before: &Sources,
    settings: OrganizationSettings,
    now: DateTime<Utc>,
    activity: Activity,
) -> Result<Organization, Invalid> {
    // Each patch may add to them.
    check_size("/features", serde_json::to_string(&settings.features))?;
    check_size("/metadata", serde_json::to_string(&settings.metadata))?;
    Ok(Organization {
        timeline: before.rescheduled(&settings, now, activity)?,
        settings,
        ..before.organization.clone().unwrap_or_default()
    })
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
