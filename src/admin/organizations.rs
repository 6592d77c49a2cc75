//! An organization's settings.

use chrono::{DateTime, Utc};

use super::{Admin, Error, Invalid, Whom};
use crate::domain::ids::OrganizationId;
use crate::domain::patch::OrganizationPatch;
use crate::domain::policy::{Organization, OrganizationSettings};
use crate::domain::precondition::Preconditions;
use crate::domain::schedule::Activity;
use crate::postgres::Actor;
use crate::postgres::organizations::Sources;

impl Admin {
    /// What is set for an organization, and what it inherits.
    pub async fn organization(&self, organization: &OrganizationId) -> Result<Sources, Error> {
        if !self.policies.exists(organization).await? {
            return Err(Error::NotFound);
        }
        Ok(self.policies.stored(organization).await?)
    }

    /// Replaces all settings, limits aside. The running period keeps its start and its count, and ends
    /// at the next boundary of the calendar that these settings come to; one in which nothing was counted takes that
    /// calendar at once.
    pub async fn put_organization(
        &self,
        organization: &OrganizationId,
        settings: OrganizationSettings,
        conditions: &Preconditions,
        actor: &Actor,
    ) -> Result<Sources, Error> {
        let now = self.ctx.clock.now();
        self.change(
            organization,
            Whom::Anybody,
            conditions,
            actor,
            "organization.put",
            |before, activity| Ok(with_settings(before, settings.clone(), now, activity)?),
        )
        .await
    }

    /// Changes what is named of the settings of an organization that exists; the rest as for
    /// [`Admin::put_organization`].
    pub async fn patch_organization(
        &self,
        organization: &OrganizationId,
        patch: OrganizationPatch,
        conditions: &Preconditions,
        actor: &Actor,
    ) -> Result<Sources, Error> {
        let now = self.ctx.clock.now();
        self.change(
            organization,
            Whom::Existing,
            conditions,
            actor,
            "organization.patch",
            |before, activity| {
                let own = before.organization.as_ref();
                let settings = patch
                    .clone()
                    .apply(&own.map(|it| it.settings.clone()).unwrap_or_default());
                Ok(with_settings(before, settings, now, activity)?)
            },
        )
        .await
    }
}

/// What there is, with other settings, if they fit together.
fn with_settings(
    before: &Sources,
    settings: OrganizationSettings,
    now: DateTime<Utc>,
    activity: Activity,
) -> Result<Organization, Invalid> {
    check_size(&settings)?;
    Ok(Organization {
        timeline: before.rescheduled(&settings, now, activity)?,
        settings,
        ..before.organization.clone().unwrap_or_default()
    })
}

/// The most that features, and metadata, may take as JSON, bytes; as much as one body could bring.
const COLLECTION_MAX: usize = 64 * 1024;

/// Refuses what many patches have let grow out of all proportion.
fn check_size(settings: &OrganizationSettings) -> Result<(), Invalid> {
    let length = |json: serde_json::Result<String>| json.map_or(0, |text| text.len());
    for (pointer, length) in [
        (
            "/features",
            length(serde_json::to_string(&settings.features)),
        ),
        (
            "/metadata",
            length(serde_json::to_string(&settings.metadata)),
        ),
    ] {
        if length > COLLECTION_MAX {
            return Err(Invalid {
                pointer: pointer.to_owned(),
                detail: format!(
                    "must be at most {COLLECTION_MAX} bytes of JSON altogether; got {length} bytes"
                ),
            });
        }
    }
    Ok(())
}
