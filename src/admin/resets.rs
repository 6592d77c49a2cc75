//! Explicit resets.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};

use super::{Admin, Error};
use crate::domain::counter::{CounterId, Snapshot};
use crate::domain::ids::{MeterId, OrganizationId};
use crate::domain::period::Period;
use crate::domain::quantity::Count;
use crate::failure::Failure;
use crate::postgres::idempotency::{self, Attempt, Earlier};
use crate::postgres::periods::{self, Ended};
use crate::postgres::resets::{self, Committed, Outcome, Wish};
use crate::postgres::usage::{self, ThresholdEvents};
use crate::postgres::{self, Actor, summaries};

/// How often something is tried while others change the same.
const ROUNDS_MAX: usize = 20;

/// How many organizations one sweep finishes at most.
const UNFINISHED_MAX: u32 = 1000;

/// Of how many organizations one transaction ends the periods at most.
const DUE_MAX: u32 = 1000;

/// How many organizations are listed that were reset.
const LISTED_MAX: usize = 1000;

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

/// What an end of all that was over did.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Expired {
    /// Whether this is what an earlier attempt was told.
    #[serde(skip)]
    pub replayed: bool,
    /// How many organizations were reset.
    pub count: usize,
    /// The first of them.
    pub organizations: Vec<OrganizationId>,
}

impl Admin {
    /// Ends the periods that are over of every organization in scheduled mode, and opens the next. Doing it twice,
    /// or at several places at once, is harmless.
    pub async fn reset_expired(
        &self,
        attempt: Option<&Attempt>,
        actor: &Actor,
    ) -> Result<Expired, Error> {
        match idempotency::answered(&self.ctx.postgres, attempt).await? {
            Earlier::Nothing => {}
            Earlier::Other => return Err(Failure::KeyReused.into()),
            Earlier::Answered(expired) => {
                return Ok(Expired {
                    replayed: true,
                    ..expired
                });
            }
        }
        let expired = self.end_expired(Some(actor)).await?;
        if expired.count > 0 {
            tracing::info!(resets = expired.count, actor = %actor.name, "ended periods that were over");
        }
        idempotency::answer(&self.ctx.postgres, attempt, &expired, self.ctx.clock.now()).await?;
        Ok(expired)
    }

    /// The same, as the scheduler does it.
    pub async fn reset_expired_once(&self) -> Result<Expired, Error> {
        self.end_expired(None).await
    }

    async fn end_expired(&self, asked_by: Option<&Actor>) -> Result<Expired, Error> {
        let mut expired = Expired::default();
        loop {
            let now = self.ctx.clock.now();
            let due = periods::due(&self.ctx.postgres, now, DUE_MAX).await?;
            // What was counted last must be in the row that is final.
            self.store_counts(&due.counters, now).await?;
            let ended =
                match periods::end(&self.ctx.postgres, &due.organizations, asked_by, now).await {
                    Err(error @ (postgres::Error::Other(_) | postgres::Error::Inconsistent(_))) => {
                        tracing::debug!(%error, "periods are ended one by one");
                        self.end_one_by_one(&due.organizations, asked_by, now)
                            .await?
                    }
                    other => other?,
                };
            expired.count += ended.organizations.len();
            let room = LISTED_MAX.saturating_sub(expired.organizations.len());
            expired
                .organizations
                .extend(ended.organizations.into_iter().take(room));
            // Whatever nobody has looked at is somebody else's.
            if ended.looked_at == 0 {
                return Ok(expired);
            }
        }
    }

    /// Forgets idempotency keys that are older.
    pub async fn forget_attempts(&self, age: TimeDelta) -> Result<(), Error> {
        if let Some(before) = self.ctx.clock.now().checked_sub_signed(age) {
            idempotency::forget(&self.ctx.postgres, before).await?;
        }
        Ok(())
    }

    /// One that fails does not keep the others from it.
    async fn end_one_by_one(
        &self,
        organizations: &[OrganizationId],
        asked_by: Option<&Actor>,
        now: DateTime<Utc>,
    ) -> Result<Ended, Error> {
        let mut all = Ended::default();
        for organization in organizations {
            match periods::end(
                &self.ctx.postgres,
                std::slice::from_ref(organization),
                asked_by,
                now,
            )
            .await
            {
                Ok(ended) => {
                    all.looked_at += ended.looked_at;
                    all.organizations.extend(ended.organizations);
                }
                Err(error @ (postgres::Error::Other(_) | postgres::Error::Inconsistent(_))) => {
                    tracing::error!(%error, org.id = %organization, "a period cannot be ended");
                    periods::postpone(&self.ctx.postgres, organization, now).await?;
                    all.looked_at += 1;
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(all)
    }

    /// Stores what Redis holds of counters and Postgres does not.
    async fn store_counts(
        &self,
        counters: &[(CounterId, (u64, u64))],
        now: DateTime<Utc>,
    ) -> Result<(), Error> {
        let connection = self.ctx.redis.connection().await?;
        let ids: Vec<CounterId> = counters.iter().map(|(id, _)| id.clone()).collect();
        let held = connection.read(&ids).await?;
        let newer = held
            .into_iter()
            .zip(counters)
            .filter_map(|(held, (_, stored))| {
                held.filter(|held| (held.stamp.generation, held.sequence) > *stored)
            });
        let newer: Vec<Snapshot> = newer.collect();
        let hours = newer
            .iter()
            .flat_map(Snapshot::unstored_hours)
            .map(|hour| hour.start);
        usage::ensure_partitions(&self.ctx.postgres, hours).await?;
        usage::store(&self.ctx.postgres, &newer, &ThresholdEvents::new(), now).await?;
        Ok(())
    }

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
            let connection = self.prepared(organization).await?;
            // The first change of all may come before the defaults were published.
            self.policies.stored(organization).await?;
            let known = connection.organization(organization).await?;
            let counted = known.and_then(|known| known.meters).unwrap_or_default();
            let wish = Wish {
                organization,
                incarnation: presence.incarnation(),
                meters: meters.as_ref(),
                counted: &counted,
                reason,
                attempt,
            };
            match resets::commit(&self.ctx.postgres, &wish, actor, self.ctx.clock.now()).await? {
                Outcome::Committed {
                    committed,
                    replayed,
                } => {
                    self.finish_pending(organization).await?;
                    return self.told(organization, &committed, replayed).await;
                }
                Outcome::Deleted => return Err(Error::NotFound),
                Outcome::Unfinished => {
                    self.finish_adjustment(organization).await?;
                    self.finish_pending(organization).await?;
                }
                Outcome::KeyReused => return Err(Failure::KeyReused.into()),
                Outcome::TooManyMeters(meter) => {
                    return Err(Failure::TooManyMeters(meter).into());
                }
            }
        }
        Err(Failure::Contended.into())
    }

    /// Finishes every reset that is committed and may not have reached Redis; returns how many organizations had
    /// one. One that cannot be finished does not keep the others from it.
    pub async fn finish_resets_once(&self) -> Result<usize, Error> {
        let unfinished = resets::unfinished(&self.ctx.postgres, UNFINISHED_MAX).await?;
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
            let pending = resets::pending(&self.ctx.postgres, organization).await?;
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
            // It is full no more.
            summaries::refresh(&self.ctx.postgres, std::slice::from_ref(organization), now).await?;
        }
        Err(Failure::Contended.into())
    }

    async fn told(
        &self,
        organization: &OrganizationId,
        committed: &Committed,
        replayed: bool,
    ) -> Result<Reset, Error> {
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
        Ok(Reset {
            replayed,
            meters: meters.collect(),
        })
    }
}
