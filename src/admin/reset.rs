//! Explicit resets of one organization.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};

use super::{ATTEMPTS_MAX, Admin, Error, UNFINISHED_MAX};
use crate::domain::ids::{MeterId, OrganizationId};
use crate::domain::period::Period;
use crate::domain::quantity::Count;
use crate::failure::Failure;
use crate::postgres::idempotency::IdempotencyUse;
use crate::postgres::resets::{self, Committed, Outcome, ResetRequest};
use crate::postgres::{Actor, summaries};

/// What a reset did.
#[derive(Debug, Clone)]
pub struct Reset {
    /// Whether this repeats the response of an earlier call with the same idempotency key.
    pub replayed: bool,
    /// The meters that were reset.
    pub meters: BTreeMap<MeterId, MeterReset>,
}

/// What a reset did to one meter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MeterReset {
    /// The count of the closed period.
    pub previous_count: Count,
    /// The start of the closed period.
    pub previous_start: DateTime<Utc>,
    /// The new period.
    pub period: Period,
}

impl Admin {
    /// Closes the running periods of these meters, or of all with a limit or a count, and starts new ones.
    pub async fn reset(
        &self,
        organization: &OrganizationId,
        meters: Option<BTreeSet<MeterId>>,
        reason: Option<&str>,
        idempotency: Option<&IdempotencyUse>,
        actor: &Actor,
    ) -> Result<Reset, Error> {
        let presence = self.policies.presence(organization).await?;
        if !presence.exists() {
            return Err(Error::NotFound);
        }
        for _ in 0..ATTEMPTS_MAX {
            let connection = self.writable(organization).await?;
            // Publishes the defaults if this is the first change of all.
            self.policies.stored(organization).await?;
            let known = connection.organization(organization).await?;
            let counted = known.and_then(|known| known.meters).unwrap_or_default();
            let request = ResetRequest {
                organization,
                incarnation: presence.incarnation(),
                meters: meters.as_ref(),
                counted: &counted,
                reason,
                idempotency,
            };
            let now = self.ctx.clock.now();
            match resets::commit(&self.ctx.postgres, &request, actor, now).await? {
                Outcome::Committed {
                    committed,
                    replayed,
                } => {
                    self.finish_resets(organization).await?;
                    let meters = self.meters_of(organization, &committed).await?;
                    return Ok(Reset { replayed, meters });
                }
                Outcome::Deleted => return Err(Error::NotFound),
                Outcome::Unfinished => {
                    self.finish_adjustment(organization).await?;
                    self.finish_resets(organization).await?;
                }
                Outcome::KeyReused => return Err(Failure::KeyReused.into()),
                Outcome::TooManyMeters(meter) => return Err(Failure::TooManyMeters(meter).into()),
            }
        }
        Err(Failure::Contended.into())
    }

    /// Finishes every reset that is committed and may not have reached Redis; returns how many organizations had one. One
    /// that fails does not stop the others.
    pub async fn finish_resets_once(&self) -> Result<usize, Failure> {
        let unfinished = resets::unfinished(&self.ctx.postgres, UNFINISHED_MAX).await?;
        let mut failed = None;
        for organization in &unfinished {
            if let Err(error) = self.finish_resets(organization).await {
                tracing::debug!(%error, org.id = %organization, "cannot finish a reset");
                failed = Some(error);
            }
        }
        failed.map_or(Ok(unfinished.len()), Err)
    }

    /// Applies the pending resets of an organization.
    pub(super) async fn finish_resets(&self, organization: &OrganizationId) -> Result<(), Failure> {
        let postgres = &self.ctx.postgres;
        for _ in 0..ATTEMPTS_MAX {
            let pending = resets::pending(postgres, organization).await?;
            if pending.is_empty() {
                return Ok(());
            }
            let now = self.ctx.clock.now();
            let connection = self.ctx.redis.connection().await?;
            let sources = self.policies.stored(organization).await?;
            self.policies
                .apply(&connection, organization, &sources)
                .await?;
            let policy = sources.resolve(now);
            for meter in &pending {
                self.recovery
                    .finish_reset(&connection, &policy, organization, meter, now)
                    .await?;
            }
            // It is no longer at its limit.
            summaries::refresh(postgres, std::slice::from_ref(organization), now).await?;
        }
        Err(Failure::Contended)
    }

    async fn meters_of(
        &self,
        organization: &OrganizationId,
        committed: &Committed,
    ) -> Result<BTreeMap<MeterId, MeterReset>, Failure> {
        let counts = resets::previous_counts(&self.ctx.postgres, organization, committed).await?;
        let meters = committed.meters.iter().map(|(meter, cut)| {
            let reset = MeterReset {
                previous_count: counts.get(meter).copied().unwrap_or(Count::ZERO),
                previous_start: cut.closed_start,
                period: Period {
                    start: committed.at,
                    end: cut.end,
                },
            };
            (meter.clone(), reset)
        });
        Ok(meters.collect())
    }
}
