//! Explicit resets of one organization.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};

use super::{ATTEMPTS_MAX, Admin, Error, UNFINISHED_MAX};
use crate::domain::event::EventType;
use crate::domain::ids::{MeterId, OrganizationId};
use crate::domain::period::Period;
use crate::domain::quantity::Count;
use crate::failure::Failure;
use crate::postgres::idempotency::IdempotencyUse;
use crate::postgres::resets::{self, Committed, Outcome, ResetRequest};
use crate::postgres::{Actor, summaries, webhooks};
use crate::usage::OrganizationUsage;

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

/// What a reset would do.
#[derive(Debug, Clone)]
pub struct ResetPreview {
    /// The meters that would be reset.
    pub meters: BTreeMap<MeterId, MeterReset>,
    /// How many deliveries to webhooks it would cause.
    pub webhook_deliveries: u64,
}

/// A reset to be committed, or rolled back in a dry run.
#[derive(Clone, Copy)]
struct Intended<'a> {
    meters: Option<&'a BTreeSet<MeterId>>,
    reason: Option<&'a str>,
    idempotency: Option<&'a IdempotencyUse>,
    dry_run: bool,
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
        let intended = Intended {
            meters: meters.as_ref(),
            reason,
            idempotency,
            dry_run: false,
        };
        let (committed, replayed) = self.commit_reset(organization, intended, actor).await?;
        self.finish_resets(organization).await?;
        let meters = self.meters_of(organization, &committed).await?;
        Ok(Reset { replayed, meters })
    }

    /// What a reset of these meters would do, given the usage of the organization.
    pub async fn preview_reset(
        &self,
        organization: &OrganizationId,
        meters: Option<&BTreeSet<MeterId>>,
        usage: &OrganizationUsage,
        actor: &Actor,
    ) -> Result<ResetPreview, Error> {
        let intended = Intended {
            meters,
            reason: None,
            idempotency: None,
            dry_run: true,
        };
        let (committed, _) = self.commit_reset(organization, intended, actor).await?;
        let used = usage.meters.iter().map(|it| (it.meter.clone(), it.used));
        let meters = with_counts(&committed, &used.collect());
        let (postgres, event) = (&self.ctx.postgres, EventType::UsageReset);
        let subscribed = webhooks::subscribed(postgres, event, organization).await?;
        Ok(ResetPreview {
            webhook_deliveries: subscribed.saturating_mul(meters.len() as u64),
            meters,
        })
    }

    /// Commits a reset, unless an earlier request with the same idempotency key has; returns whether one has.
    async fn commit_reset(
        &self,
        organization: &OrganizationId,
        intended: Intended<'_>,
        actor: &Actor,
    ) -> Result<(Committed, bool), Error> {
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
                meters: intended.meters,
                counted: &counted,
                reason: intended.reason,
                idempotency: intended.idempotency,
                dry_run: intended.dry_run,
            };
            let now = self.ctx.clock.now();
            match resets::commit(&self.ctx.postgres, &request, actor, now).await? {
                Outcome::Committed {
                    committed,
                    replayed,
                } => return Ok((committed, replayed)),
                Outcome::Deleted => return Err(Error::NotFound),
                Outcome::Unfinished => {
                    self.finish_adjustment(organization).await?;
                    self.finish_resets(organization).await?;
                    self.drainer.drain(organization).await?;
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
        Ok(with_counts(committed, &counts))
    }
}

/// What a reset did to meters with these counts.
fn with_counts(
    committed: &Committed,
    counts: &BTreeMap<MeterId, Count>,
) -> BTreeMap<MeterId, MeterReset> {
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
    meters.collect()
}
