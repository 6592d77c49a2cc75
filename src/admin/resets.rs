//! Explicit resets.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};

use super::{Admin, Error};
use crate::domain::ids::{MeterId, OrganizationId};
use crate::domain::period::Period;
use crate::domain::quantity::Count;
use crate::opening;
use crate::store::attempts::Attempt;
use crate::store::resets::{self, Committed, Outcome, Wish};
use crate::store::{Actor, standings};

/// How often something is tried while others change the same.
const ROUNDS_MAX: usize = 20;

/// How many organizations one sweep finishes at most.
const UNFINISHED_MAX: u32 = 1000;

/// What a reset did.
#[derive(Debug, Clone)]
pub struct Reset {
    /// Whether this is what an earlier attempt was told.
    pub replayed: bool,
    /// Each meter that was reset.
    pub meters: BTreeMap<MeterId, MeterReset>,
}

/// What a reset did to one meter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MeterReset {
    /// What was counted in the period that is closed.
    pub previous_count: Count,
    /// When that began.
    pub previous_start: DateTime<Utc>,
    /// The period that runs now.
    pub period: Period,
}

impl Admin {
    /// Closes the running periods of these meters, or of all that have a limit or a count, and begins new ones.
    pub async fn reset(
        &self,
        organization: &OrganizationId,
        meters: Option<BTreeSet<MeterId>>,
        reason: Option<&str>,
        attempt: Option<&Attempt>,
        actor: &Actor,
    ) -> Result<Reset, Error> {
        let presence = self.policies.presence(organization).await?;
        if !presence.exists() {
            return Err(Error::NotFound);
        }
        for _ in 0..ROUNDS_MAX {
            // Before the commit: while Redis is away, nothing should be half done if it can be helped.
            let link = self.counters.link().await?;
            // The first change of all may come before the defaults were published.
            self.policies.stored(organization).await?;
            let known = self.counters.organization(&link, organization).await?;
            let counted = known.and_then(|known| known.meters).unwrap_or_default();
            let wish = Wish {
                organization,
                incarnation: presence.incarnation(),
                meters: meters.as_ref(),
                counted: &counted,
                reason,
                attempt,
            };
            match resets::commit(&self.store, &wish, actor, self.clock.now()).await? {
                Outcome::Committed {
                    committed,
                    replayed,
                } => {
                    self.finish_pending(organization).await?;
                    return self.told(organization, &committed, replayed).await;
                }
                Outcome::Deleted => return Err(Error::NotFound),
                Outcome::Unfinished => self.finish_pending(organization).await?,
                Outcome::KeyReused => return Err(Error::KeyReused),
                Outcome::TooManyMeters(meter) => {
                    return Err(opening::Error::TooManyMeters(meter).into());
                }
            }
        }
        Err(opening::Error::Contended.into())
    }

    /// Finishes every reset that is committed and may not have reached Redis; returns how many organizations had
    /// one. One that cannot be finished does not keep the others from it.
    pub async fn finish_resets_once(&self) -> Result<usize, Error> {
        let unfinished = resets::unfinished(&self.store, UNFINISHED_MAX).await?;
        let mut failed = None;
        for organization in &unfinished {
            if let Err(error) = self.finish_pending(organization).await {
                tracing::debug!(%error, org.id = %organization, "a reset cannot be finished");
                failed = Some(error);
            }
        }
        failed.map_or(Ok(unfinished.len()), Err)
    }

    /// Puts the pending resets of an organization in force.
    pub(super) async fn finish_pending(&self, organization: &OrganizationId) -> Result<(), Error> {
        for _ in 0..ROUNDS_MAX {
            let pending = resets::pending(&self.store, organization).await?;
            if pending.is_empty() {
                return Ok(());
            }
            let now = self.clock.now();
            let link = self.counters.link().await?;
            let sources = self.policies.stored(organization).await?;
            self.policies.apply(&link, organization, &sources).await?;
            let policy = sources.resolve(now);
            for meter in &pending {
                self.opener
                    .finish_reset(&link, &policy, organization, meter, now)
                    .await?;
            }
            // It is full no more.
            standings::refresh(&self.store, std::slice::from_ref(organization), now).await?;
        }
        Err(opening::Error::Contended.into())
    }

    async fn told(
        &self,
        organization: &OrganizationId,
        committed: &Committed,
        replayed: bool,
    ) -> Result<Reset, Error> {
        let counts = resets::previous_counts(&self.store, organization, committed).await?;
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
        Ok(Reset {
            replayed,
            meters: meters.collect(),
        })
    }
}
