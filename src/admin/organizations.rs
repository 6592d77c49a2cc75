//! An organization's settings.

use serde_json::Value;

use super::{Admin, Error, Invalid};
use crate::domain::ids::OrganizationId;
use crate::domain::policy::{Feature, Organization, OrganizationSettings};
use crate::store::Actor;
use crate::store::organizations::Sources;

impl Admin {
    /// What is set for an organization, and what it inherits.
    pub async fn organization(&self, organization: &OrganizationId) -> Result<Sources, Error> {
        if !self.policies.exists(organization).await? {
            return Err(Error::NotFound);
        }
        Ok(self.policies.stored(organization).await?)
    }

    /// Replaces all settings, limits aside. The running period keeps its start and its count, and ends
    /// at the next boundary of the calendar that these settings come to.
    pub async fn put_organization(
        &self,
        organization: &OrganizationId,
        settings: OrganizationSettings,
        actor: &Actor,
    ) -> Result<Sources, Error> {
        let now = self.clock.now();
        check_text(&settings)?;
        self.change(organization, actor, "organization.put", |before| {
            let (mode, calendar) = settings.calendar(&before.defaults).map_err(Invalid::from)?;
            if let Some(plan) = settings
                .plan_id
                .as_ref()
                .filter(|plan| **plan != before.defaults.plan_id)
            {
                let detail = format!("there is no plan {plan}");
                return Err(Invalid {
                    pointer: "/planId".to_owned(),
                    detail,
                }
                .into());
            }
            let schedule = before.resolve().schedule.changed(mode, calendar, now);
            let limits = before
                .organization
                .as_ref()
                .map(|it| it.limits.clone())
                .unwrap_or_default();
            Ok(Organization {
                settings,
                limits,
                pinned: schedule.pinned,
                resets: schedule.resets,
                version: 0,
            })
        })
        .await
    }
}

/// Refuses what Postgres' jsonb cannot hold.
fn check_text(settings: &OrganizationSettings) -> Result<(), Invalid> {
    let in_metadata = settings
        .metadata
        .iter()
        .any(|(name, value)| has_null(name) || holds_null(value));
    let in_features = settings.features.iter().any(|(name, feature)| {
        has_null(name) || matches!(feature, Feature::Text(text) if has_null(text))
    });
    let pointer = match (in_metadata, in_features) {
        (true, _) => "/metadata",
        (_, true) => "/features",
        _ => return Ok(()),
    };
    Err(Invalid {
        pointer: pointer.to_owned(),
        detail: "must not contain the character U+0000".to_owned(),
    })
}

fn holds_null(value: &Value) -> bool {
    match value {
        Value::String(text) => has_null(text),
        Value::Array(values) => values.iter().any(holds_null),
        Value::Object(values) => values
            .iter()
            .any(|(name, value)| has_null(name) || holds_null(value)),
        Value::Null | Value::Bool(_) | Value::Number(_) => false,
    }
}

fn has_null(text: &str) -> bool {
    text.contains('\0')
}
