//! Changes of an organization's own limits.

use std::collections::BTreeSet;

use chrono::{DateTime, Utc};

use super::change::Change;
use super::{Admin, Error, Invalid, LimitChange, LimitChanges};
use crate::domain::ids::{METERS_MAX, MeterId, OrganizationId};
use crate::domain::limit::{LimitOverride, TemporaryLimit, WARN_AT, WARN_AT_MAX};
use crate::domain::organization::Organization;
use crate::domain::patch;
use crate::domain::precondition::Preconditions;
use crate::postgres::Actor;
use crate::postgres::organizations::Sources;

impl Admin {
    /// Changes the limits of the named meters. Effective for the next request on any instance.
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
                .is_none_or(|it| it.temporary != patch::Change::Keep)
        };
        if changes.values().any(ends) {
            // An expired temporary limit is recorded as ended before another one replaces it.
            self.policies.end_limits_of(organization).await?;
        }
        let change = Change {
            organization,
            creates: false,
            conditions,
            actor,
            action: "limits.patch",
        };
        let edit = |before: &Sources, _| {
            let mut after = before.organization.clone().unwrap_or_default();
            for (meter, change) in &changes {
                apply(&mut after, meter, change.as_ref());
            }
            check_meters(&after, "")?;
            Ok(after)
        };
        self.change(change, edit).await
    }
}

fn apply(after: &mut Organization, meter: &MeterId, change: Option<&LimitChange>) {
    let Some(LimitChange { lasting, temporary }) = change else {
        after.limits.remove(meter);
        after.temporary.remove(meter);
        return;
    };
    match temporary {
        patch::Change::Keep => {}
        patch::Change::Unset => {
            after.temporary.remove(meter);
        }
        patch::Change::Set(limit) => {
            after.temporary.insert(meter.clone(), *limit);
        }
    }
    if *lasting != LimitOverride::default() {
        let own = after.limits.entry(meter.clone()).or_default();
        *own = own.patched(lasting);
    }
}

fn check(meter: &MeterId, change: &LimitChange, now: DateTime<Utc>) -> Result<(), Invalid> {
    check_warn_at(
        change.lasting.warn_at.as_deref(),
        &format!("/{meter}/warnAt"),
    )?;
    if let patch::Change::Set(TemporaryLimit { until, .. }) = change.temporary
        && until <= now
    {
        return Err(Invalid {
            pointer: format!("/{meter}/temporary/until"),
            detail: format!("must be in the future; got {}", until.to_rfc3339()),
        });
    }
    Ok(())
}

/// Checks how many meters an organization limits.
pub(super) fn check_meters(organization: &Organization, pointer: &str) -> Result<(), Invalid> {
    let meters = organization.limits.keys();
    let meters = meters.chain(organization.temporary.keys());
    let meters = meters.collect::<BTreeSet<_>>().len();
    if meters <= METERS_MAX {
        return Ok(());
    }
    Err(Invalid {
        pointer: pointer.to_owned(),
        detail: format!("an organization has at most {METERS_MAX} meters, and would have {meters}"),
    })
}

/// Checks how many meters a member of a body names.
pub(super) fn check_count(pointer: &str, meters: usize) -> Result<(), Invalid> {
    if meters <= METERS_MAX {
        return Ok(());
    }
    Err(Invalid {
        pointer: pointer.to_owned(),
        detail: format!(
            "must name at most {METERS_MAX} meters, the maximum of an organization; got {meters}"
        ),
    })
}

/// Checks the thresholds of the member `limits` of a body.
pub(super) fn check_thresholds<'a>(
    limits: impl IntoIterator<Item = (&'a MeterId, &'a LimitOverride)>,
) -> Result<(), Invalid> {
    limits.into_iter().try_for_each(|(meter, limit)| {
        let pointer = format!("/limits/{meter}/warnAt");
        check_warn_at(limit.warn_at.as_deref(), &pointer)
    })
}

/// Checks the thresholds of a meter; none means the defaults.
fn check_warn_at(levels: Option<&[u16]>, pointer: &str) -> Result<(), Invalid> {
    let levels = levels.unwrap_or_default();
    let detail = if levels.len() > WARN_AT_MAX || !levels.iter().all(|it| WARN_AT.contains(it)) {
        format!(
            "must be at most {WARN_AT_MAX} percentages from {} to {}; got {}",
            WARN_AT.start(),
            WARN_AT.end(),
            levels.len()
        )
    } else if !levels.is_sorted_by(|a, b| a < b) {
        let levels: Vec<String> = levels.iter().map(u16::to_string).collect();
        let levels = levels.join(", ");
        format!("must be ascending, each percentage once; got {levels}")
    } else {
        return Ok(());
    };
    Err(Invalid {
        pointer: pointer.to_owned(),
        detail,
    })
}
