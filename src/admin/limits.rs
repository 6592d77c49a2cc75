//! An organization's own limits.

use std::collections::BTreeSet;

use chrono::{DateTime, Utc};

use super::{Admin, Error, Invalid, LimitChange, LimitChanges, Whom};
use crate::domain::ids::{METERS_MAX, MeterId, OrganizationId};
use crate::domain::patch::Change;
use crate::domain::policy::{LimitOverride, Organization, TemporaryLimit, WARN_AT, WARN_AT_MAX};
use crate::domain::precondition::Preconditions;
use crate::postgres::Actor;
use crate::postgres::organizations::Sources;

impl Admin {
    /// Changes what is named: an override is merged into the one there is, none removes it, and what lies on top.
    /// In force for the next request of any instance.
    pub async fn patch_limits(
        &self,
        organization: &OrganizationId,
        changes: LimitChanges,
        conditions: &Preconditions,
        actor: &Actor,
    ) -> Result<Sources, Error> {
        let now = self.ctx.clock.now();
        for (meter, change) in &changes {
            if let Some(change) = change {
                check(meter, change, now)?;
            }
        }
        let ends = |change: &Option<LimitChange>| {
            change
                .as_ref()
                .is_none_or(|it| it.temporary != Change::Keep)
        };
        if changes.values().any(ends) {
            // What has ended is noted as that, before anything takes its place.
            self.policies.end_limits_of(organization).await?;
        }
        self.change(
            organization,
            Whom::Existing,
            conditions,
            actor,
            "limits.patch",
            |before, _| {
                let mut after = before.organization.clone().unwrap_or_default();
                for (meter, change) in &changes {
                    apply(&mut after, meter, change.as_ref());
                }
                let mut meters: BTreeSet<&MeterId> = after.limits.keys().collect();
                meters.extend(after.temporary.keys());
                if meters.len() > METERS_MAX {
                    let detail = format!(
                        "an organization has at most {METERS_MAX} meters, and would have {}",
                        meters.len()
                    );
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

fn apply(after: &mut Organization, meter: &MeterId, change: Option<&LimitChange>) {
    let Some(LimitChange { lasting, temporary }) = change else {
        after.limits.remove(meter);
        after.temporary.remove(meter);
        return;
    };
    match temporary {
        Change::Keep => {}
        Change::Unset => {
            after.temporary.remove(meter);
        }
        Change::Set(limit) => {
            after.temporary.insert(meter.clone(), *limit);
        }
    }
    if *lasting != LimitOverride::default() {
        let own = after.limits.entry(meter.clone()).or_default();
        *own = own.patched(lasting);
    }
}

fn check(meter: &MeterId, change: &LimitChange, now: DateTime<Utc>) -> Result<(), Invalid> {
    check_warn_at(change.lasting.warn_at.as_deref()).map_err(|detail| Invalid {
        pointer: format!("/{meter}/warnAt"),
        detail,
    })?;
    if let Change::Set(TemporaryLimit { until, .. }) = change.temporary
        && until <= now
    {
        return Err(Invalid {
            pointer: format!("/{meter}/temporary/until"),
            detail: format!("must be in the future; got {}", until.to_rfc3339()),
        });
    }
    Ok(())
}

/// What thresholds may be; none are the usual ones.
pub(super) fn check_warn_at(levels: Option<&[u16]>) -> Result<(), String> {
    let levels = levels.unwrap_or_default();
    if levels.len() > WARN_AT_MAX || !levels.iter().all(|level| WARN_AT.contains(level)) {
        return Err(format!(
            "must be at most {WARN_AT_MAX} percentages from {} to {}; got {}",
            WARN_AT.start(),
            WARN_AT.end(),
            levels.len()
        ));
    }
    if !levels.is_sorted_by(|a, b| a < b) {
        let given: Vec<String> = levels.iter().map(u16::to_string).collect();
        return Err(format!(
            "must be ascending, each percentage once; got {}",
            given.join(", ")
        ));
    }
    Ok(())
}
