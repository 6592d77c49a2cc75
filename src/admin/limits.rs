//! An organization's own limits.

use super::{Admin, Error, Invalid, LimitChanges, Whom};
use crate::domain::ids::{METERS_MAX, OrganizationId};
use crate::domain::policy::{LimitOverride, WARN_AT, WARN_AT_MAX};
use crate::domain::precondition::Preconditions;
use crate::store::Actor;
use crate::store::organizations::Sources;

impl Admin {
    /// Changes what is named: an override is merged into the one there is, none removes it.
    /// In force for the next request of any instance.
    pub async fn patch_limits(
        &self,
        organization: &OrganizationId,
        changes: LimitChanges,
        conditions: &Preconditions,
        actor: &Actor,
    ) -> Result<Sources, Error> {
        for (meter, change) in &changes {
            if let Some(change) = change {
                check_warn_at(change).map_err(|detail| Invalid {
                    pointer: format!("/{meter}/warnAt"),
                    detail,
                })?;
            }
        }
        self.change(
            organization,
            Whom::Existing,
            conditions,
            actor,
            "limits.patch",
            |before| {
                let mut after = before.organization.clone().unwrap_or_default();
                for (meter, change) in changes {
                    match change {
                        Some(change) => {
                            let own = after.limits.get(&meter).cloned().unwrap_or_default();
                            after.limits.insert(meter, own.patched(&change));
                        }
                        None => {
                            after.limits.remove(&meter);
                        }
                    }
                }
                if after.limits.len() > METERS_MAX {
                    let detail = format!("an organization has at most {METERS_MAX} meters");
                    return Err(Invalid {
                        pointer: String::new(),
                        detail,
                    }
                    .into());
                }
                Ok(after)
            },
        )
        .await
    }
}

fn check_warn_at(change: &LimitOverride) -> Result<(), String> {
    let levels = change.warn_at.as_deref().unwrap_or_default();
    if levels.len() > WARN_AT_MAX || !levels.iter().all(|level| WARN_AT.contains(level)) {
        return Err(format!(
            "must be at most {WARN_AT_MAX} percentages from {} to {}",
            WARN_AT.start(),
            WARN_AT.end()
        ));
    }
    if !levels.is_sorted_by(|a, b| a < b) {
        return Err("must be ascending, each percentage once".to_owned());
    }
    Ok(())
}
