//! Counts in Redis what was admitted while it was down, each operation once, and stores it.
//!
//! Any step may be repeated: a counter keeps the last operation that was drained into it, and an operation stays pending
//! until a snapshot that contains it is stored.

use std::collections::BTreeSet;

use chrono::{DateTime, Utc};
use futures::StreamExt as _;
use futures::stream;

use super::recovery::{Recovered, Recovery};
use crate::context::Context;
use crate::domain::counter::CounterId;
use crate::domain::ids::{MeterId, OrganizationId};
use crate::domain::policy::Policy;
use crate::domain::threshold::WatchedThresholds;
use crate::failure::Failure;
use crate::policies::Policies;
use crate::postgres::pending_increments::{self, PendingOperation};
use crate::redis::{
    Connection, Drain, DrainReply, DrainedOperation, IdempotencyUse, Increment, Shard,
};

/// The most organizations that one round drains.
const ORGANIZATIONS_MAX: u32 = 1000;

/// How many of them concurrently.
const CONCURRENT: usize = 16;

/// The most attempts without progress, each with what the previous one found out.
const ROUNDS_MAX: usize = 20;

/// The handle on draining.
#[derive(Debug, Clone)]
pub struct Drainer {
    ctx: Context,
    policies: Policies,
    recovery: Recovery,
}

/// What became of operations.
enum Counted {
    /// All are counted, in these counters.
    All(Vec<CounterId>),
    /// None: Redis has another policy of the organization, or no policy.
    OlderPolicy,
    /// None: the period of this counter is closed.
    Closed(CounterId),
}

impl Drainer {
    /// Creates a handle.
    pub fn new(ctx: Context, policies: Policies, recovery: Recovery) -> Self {
        Self {
            ctx,
            policies,
            recovery,
        }
    }

    /// Drains the organizations whose operations have been pending for longest. One that fails does not stop the others.
    /// Returns how many are drained.
    pub async fn drain_once(&self) -> Result<usize, Failure> {
        let postgres = &self.ctx.postgres;
        let organizations = pending_increments::organizations(postgres, ORGANIZATIONS_MAX).await?;
        let connection = self.ctx.redis.connection().await?;
        let reached = organizations.into_iter().filter(|it| {
            // The others wait for their server.
            connection.reach(Shard::of(it)).is_ok()
        });
        let drained = stream::iter(reached).map(|organization| async move {
            let drained = self.drain(&organization).await;
            if let Err(error) = &drained {
                tracing::warn!(%error, org.id = %organization, "cannot count what is pending");
            }
            usize::from(drained.is_ok())
        });
        let drained: Vec<usize> = drained.buffer_unordered(CONCURRENT).collect().await;
        Ok(drained.into_iter().sum())
    }

    /// Drains everything of an organization that is pending.
    pub async fn drain(&self, organization: &OrganizationId) -> Result<(), Failure> {
        let postgres = &self.ctx.postgres;
        let (mut first, mut rounds) = (None, 0);
        while rounds < ROUNDS_MAX {
            let now = self.ctx.clock.now();
            let connection = self.ctx.redis.connection().await?;
            // Read before the operations: one that a deletion has removed must not be counted under a newer policy.
            let sources = self.policies.stored(organization).await?;
            let pending = pending_increments::of(postgres, organization).await?;
            let Some(oldest) = pending.first() else {
                return Ok(());
            };
            rounds = if first == Some(oldest.id) {
                rounds + 1
            } else {
                1
            };
            first = Some(oldest.id);
            let policy = sources.resolve(now);
            let counting = self.count(&connection, &policy, organization, &pending, now);
            match counting.await? {
                Counted::All(counters) => {
                    self.recovery.store(&connection, &counters, now).await?;
                    pending_increments::delete_stored(postgres, organization).await?;
                }
                Counted::OlderPolicy => {
                    self.policies
                        .apply(&connection, organization, &sources)
                        .await?;
                }
                Counted::Closed(counter) => {
                    let running = policy.schedule.running(&counter.meter, now).start;
                    pending_increments::move_to_running(postgres, &counter, running).await?;
                }
            }
        }
        Err(Failure::Contended)
    }

    /// Counts operations in Redis, all of them or none.
    async fn count(
        &self,
        connection: &Connection,
        policy: &Policy,
        organization: &OrganizationId,
        pending: &[PendingOperation],
        now: DateTime<Utc>,
    ) -> Result<Counted, Failure> {
        let increments = pending.iter().flat_map(|operation| &operation.increments);
        let counters: BTreeSet<&CounterId> = increments.map(|it| &it.counter).collect();
        let counters: Vec<&CounterId> = counters.into_iter().collect();
        let uses = idempotency_uses(pending);
        let shard = Shard::of(organization);
        let mut drain = Drain {
            organization,
            generation: 0,
            policy_version: policy.version,
            operations: self.operations(policy, pending, &counters, &uses, now),
            counters: counters
                .iter()
                .map(|it| (*it, percents(policy, &it.meter)))
                .collect(),
        };
        let lifetime = self.ctx.idempotency.num_milliseconds();
        for _ in 0..ROUNDS_MAX {
            drain.generation = self.recovery.generation(connection, shard).await?;
            match connection.drain(&drain, now, lifetime).await? {
                DrainReply::Drained => {
                    return Ok(Counted::All(counters.into_iter().cloned().collect()));
                }
                DrainReply::Policy => return Ok(Counted::OlderPolicy),
                DrainReply::Generation => {
                    self.ctx.redis.identify(connection, &[shard]).await?;
                }
                // The script names the first that it lacks.
                DrainReply::Restore(first) => {
                    for counter in counters.iter().skip(first) {
                        let recovered = self.recovery.recover(connection, policy, counter, now);
                        if recovered.await? == Recovered::OlderPolicy {
                            return Ok(Counted::OlderPolicy);
                        }
                    }
                }
                DrainReply::Closed(position) => {
                    let closed = counters.get(position).ok_or(Failure::Contended)?;
                    return Ok(Counted::Closed((*closed).clone()));
                }
            }
        }
        Err(Failure::Contended)
    }

    fn operations<'a>(
        &self,
        policy: &Policy,
        pending: &[PendingOperation],
        counters: &[&CounterId],
        uses: &'a [Option<IdempotencyUse>],
        now: DateTime<Utc>,
    ) -> Vec<DrainedOperation<'a>> {
        // Never in an hour that the counter may have dropped, however long this took.
        let oldest = now.checked_sub_signed(self.ctx.late).unwrap_or(now);
        let increment = |it: &pending_increments::Increment| Increment {
            counter: counters.partition_point(|counter| **counter < it.counter),
            amount: it.amount,
            slot: if it.hour < oldest {
                policy.schedule.slot(oldest).start
            } else {
                it.hour
            },
        };
        let operations = pending.iter().zip(uses);
        operations
            .map(|(operation, used)| DrainedOperation {
                id: operation.id,
                idempotency: used.as_ref(),
                increments: operation.increments.iter().map(increment).collect(),
            })
            .collect()
    }
}

fn idempotency_uses(pending: &[PendingOperation]) -> Vec<Option<IdempotencyUse>> {
    let uses = pending.iter().map(|operation| {
        let (key, fingerprint) = operation.idempotency.clone()?;
        Some(IdempotencyUse { key, fingerprint })
    });
    uses.collect()
}

/// The thresholds of a meter in percent of its limit, separated by spaces.
fn percents(policy: &Policy, meter: &MeterId) -> String {
    let limit = policy.limits.get(meter).cloned().unwrap_or_default();
    WatchedThresholds::of(&limit).percents.clone()
}
