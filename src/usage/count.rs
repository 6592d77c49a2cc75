//! Decides single requests.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use futures::future::try_join_all;
use tokio::sync::Semaphore;
use tokio::time::sleep;

use super::admission::Admissions;
use super::error::Error;
use super::plan::{Plan, RetryState, event_time};
use super::recovery::{Recovered, Recovery};
use super::types::{Decided, MeterUsage, Request};
use crate::context::Context;
use crate::domain::counter::{CounterId, Stamp};
use crate::domain::decision::Operation;
use crate::domain::policy::Policy;
use crate::domain::retry::{DeniedMeter, earliest_grant};
use crate::failure::Failure;
use crate::metrics;
use crate::policies::{CachedPolicy, Policies};
use crate::redis::{self, Connection, Miss, Outcome, Shard};

/// The most rounds of a request, each with what the previous one found out. More than a few are needed only while
/// policies or data sets keep changing.
pub(super) const ROUNDS_MAX: usize = 80;

/// How long a request waits for keys that are being moved to another server.
const MOVING_MAX: Duration = Duration::from_secs(2);

/// Between two attempts meanwhile.
const MOVING_PAUSE: Duration = Duration::from_millis(20);

/// The most charges of all batches that are in flight: enough to keep Redis busy while the next are prepared.
pub(super) const BATCH_CHARGES_MAX: usize = 512;

/// The handle on counting and reading usage; clones share everything.
#[derive(Debug, Clone)]
pub struct Usage {
    pub(super) ctx: Context,
    pub(super) policies: Policies,
    pub(super) recovery: Recovery,
    admissions: Admissions,
    /// A permit for each charge of a batch that may be in flight.
    pub(super) batch_room: Arc<Semaphore>,
}

impl Usage {
    /// Creates a handle.
    pub fn new(ctx: Context, policies: Policies, recovery: Recovery) -> Self {
        Self {
            admissions: Admissions::new(ctx.clone(), policies.clone()),
            ctx,
            policies,
            recovery,
            batch_room: Arc::new(Semaphore::new(BATCH_CHARGES_MAX)),
        }
    }

    /// Decides a request, and counts it if it is granted.
    pub async fn decide(&self, request: &Request) -> Result<Decided, Error> {
        let decided = self.decide_while_slots_move(request).await;
        let mut decided = self.admit_in_outage(request, decided).await;
        if let Ok(refusal) = &mut decided
            && !refusal.granted
        {
            Box::pin(self.look_ahead(request, refusal)).await;
        }
        self.record(request, &decided);
        decided
    }

    /// The result itself, unless Redis is down: then the request may be admitted without a decision.
    pub(super) async fn admit_in_outage(
        &self,
        request: &Request,
        result: Result<Decided, Error>,
    ) -> Result<Decided, Error> {
        match result {
            Err(error) if error.is_counter_outage() => {
                // Boxed, like all rare steps: keeps the hot-path future small.
                Box::pin(self.admissions.admit(request, error)).await
            }
            result => result,
        }
    }

    /// The result; while a cluster moves the slot of the organization to another master, tries again.
    async fn decide_while_slots_move(&self, request: &Request) -> Result<Decided, Error> {
        let decided = self.try_decide(request).await;
        if !decided.as_ref().is_err_and(Error::is_redirection) {
            return decided;
        }
        let deadline = Instant::now() + MOVING_MAX;
        loop {
            sleep(MOVING_PAUSE).await;
            let decided = Box::pin(self.try_decide(request)).await;
            let is_moving = decided.as_ref().is_err_and(Error::is_redirection);
            if !is_moving || Instant::now() >= deadline {
                return decided;
            }
        }
    }

    async fn try_decide(&self, request: &Request) -> Result<Decided, Error> {
        let shard = Shard::of(&request.organization);
        self.ctx.redis.admits(shard)?;
        let mut retry = RetryState::default();
        for _ in 0..ROUNDS_MAX {
            let connection = self.ctx.redis.connection().await?;
            let generation = match connection.generation(shard) {
                Some(generation) => generation,
                // Boxed, like all rare steps: keeps the hot-path future small.
                None => Box::pin(self.recovery.generation(&connection, shard)).await?,
            };
            let (policy, now) = self.policies.get_now(&request.organization).await?;
            let at = match event_time(&self.ctx, request, now) {
                Ok(at) => at,
                Err(out_of_range) => {
                    let late = vec![(request, policy, out_of_range)];
                    let replayed = Box::pin(self.replay(&connection, late)).await;
                    let replayed = replayed.into_iter().next();
                    return replayed.unwrap_or(Err(Failure::Contended.into()));
                }
            };
            let plan = Plan::new(policy, generation, now, at, retry);
            let operation = vec![plan.operation(request)];
            let outcomes = self.ctx.redis.count(&connection, operation).await;
            let Some(outcomes) = outcomes.map_err(|error| not_counted(request, error))? else {
                continue;
            };
            let outcome = outcomes.into_iter().next().ok_or(Failure::Contended)?;
            let miss = match self.interpret(request, &plan, outcome)? {
                ControlFlow::Break(decided) => return Ok(decided),
                ControlFlow::Continue(miss) => miss,
            };
            match Box::pin(self.resolve(request, &plan, miss)).await? {
                ControlFlow::Break(decided) => return Ok(decided),
                ControlFlow::Continue(state) => retry = state,
            }
        }
        Err(Failure::Contended.into())
    }

    /// The result that Redis replied, or what it lacked.
    pub(super) fn interpret(
        &self,
        request: &Request,
        plan: &Plan,
        outcome: Outcome,
    ) -> Result<ControlFlow<Decided, Miss>, Error> {
        match outcome {
            Outcome::Answered(answer) => {
                let decided = Decided::new(request, &plan.policy, &answer);
                if decided.outdated {
                    self.policies.invalidate(&request.organization);
                }
                Ok(ControlFlow::Break(decided))
            }
            Outcome::Miss(miss) => Ok(ControlFlow::Continue(miss)),
            Outcome::KeyReused => Err(Failure::KeyReused.into()),
            Outcome::Overflow(position) => {
                let meter = request.demands.get(position).map(|(it, _)| it.clone());
                Err(meter.map_or(Failure::Contended, Failure::Overflow).into())
            }
        }
    }

    /// Provides what Redis lacked, so that another round may succeed; or decides a check without it.
    pub(super) async fn resolve(
        &self,
        request: &Request,
        plan: &Plan,
        miss: Miss,
    ) -> Result<ControlFlow<Decided, RetryState>, Error> {
        let (organization, policy) = (&request.organization, &plan.policy);
        let is_check = request.kind == Operation::Check;
        match miss {
            // A check of an unknown organization leaves no trace: it must not create the organization.
            Miss::Missing(_) if is_check && !self.policies.exists(organization).await? => {
                let unused = vec![None; request.demands.len()];
                let decided = Decided::of_check(request, policy, unused, true, plan.now);
                return Ok(ControlFlow::Break(decided));
            }
            Miss::Missing(position) | Miss::Frozen(position) => {
                match self.recover_from(position, request, plan).await {
                    Err(Error::Failure(Failure::TooManyMeters(_))) if is_check => {
                        let counters: Vec<CounterId> =
                            plan.charges(request).map(|it| it.counter).collect();
                        let connection = self.ctx.redis.connection().await?;
                        let snapshots = connection.read(&counters).await?;
                        let decided =
                            Decided::of_check(request, policy, snapshots, false, plan.now);
                        return Ok(ControlFlow::Break(decided));
                    }
                    recovered => recovered?,
                }
            }
            Miss::Fenced => self.policies.pass_fence(organization).await?,
            Miss::Closed(_) => {
                let newest = self.policies.refresh(organization, policy.version).await?;
                let same = newest.version == policy.version;
                return Ok(ControlFlow::Continue(RetryState {
                    own_period_closed: request.timestamp.is_some() && same,
                }));
            }
        }
        Ok(ControlFlow::Continue(RetryState::default()))
    }

    /// Recovers the counters of a request from this one on: the script names the first that it lacks, and those after
    /// it may be unknown as well.
    async fn recover_from(
        &self,
        position: usize,
        request: &Request,
        plan: &Plan,
    ) -> Result<(), Error> {
        let recoveries = plan.charges(request).skip(position).map(|it| async move {
            self.recover(&plan.policy, &it.counter, &it.stamp, plan.now)
                .await
        });
        try_join_all(recoveries).await?;
        Ok(())
    }

    /// Brings a counter into the generation of its stamp, or finds out what prevents it: a newer policy, or another
    /// generation. In both cases the caller tries again.
    pub(super) async fn recover(
        &self,
        policy: &Policy,
        counter: &CounterId,
        stamp: &Stamp,
        now: DateTime<Utc>,
    ) -> Result<(), Error> {
        let recovered = self.recovery.recover_once(policy, counter, stamp, now);
        if recovered.await? == Recovered::OlderPolicy {
            let organization = &counter.organization;
            self.policies.refresh(organization, stamp.version).await?;
        }
        Ok(())
    }

    /// The results of requests that are out of range: from their idempotency records if there are any.
    pub(super) async fn replay(
        &self,
        connection: &Connection,
        late: Vec<(&Request, Arc<CachedPolicy>, Error)>,
    ) -> Vec<Result<Decided, Error>> {
        let uses = late.iter().filter_map(|(request, ..)| {
            Some((&request.organization, request.idempotency.as_ref()?))
        });
        let uses: Vec<_> = uses.collect();
        let mut recorded = connection.answered(&uses).await.map(Vec::into_iter);
        let results = late.into_iter().map(|(request, policy, out_of_range)| {
            if request.idempotency.is_none() {
                return Err(out_of_range);
            }
            let recorded = recorded.as_mut().map_err(|error| error.clone())?;
            match recorded.next().flatten() {
                Some(Outcome::Answered(answer)) => Ok(Decided::new(request, &policy, &answer)),
                Some(Outcome::KeyReused) => Err(Failure::KeyReused.into()),
                _ => Err(out_of_range),
            }
        });
        results.collect()
    }

    /// Determines when a refused request would be granted.
    pub(super) async fn look_ahead(&self, request: &Request, refusal: &mut Decided) {
        if refusal.outdated {
            match self.policies.get(&request.organization).await {
                Ok(newest) => refusal.policy = newest,
                // No prediction is better than one by an outdated policy.
                Err(_) => return,
            }
            for usage in &mut refusal.meters {
                let relief = refusal.policy.relief(&usage.meter);
                usage.renews_at = usage.period.end.into_iter().chain(relief).min();
            }
        }
        let now = self.ctx.clock.now();
        let schedule = &refusal.policy.schedule;
        let runs = |usage: &MeterUsage| {
            usage.period.contains(now)
                && schedule.running(&usage.meter, now).start == usage.period.start
        };
        // A replayed refusal predicts nothing about later periods.
        if refusal.replayed && !refusal.meters.iter().all(runs) {
            return;
        }
        let denied = refusal.meters.iter().map(|usage| DeniedMeter {
            meter: &usage.meter,
            demand: usage.demand,
            used: usage.used,
            end: usage.period.end,
        });
        let denied: Vec<DeniedMeter<'_>> = denied.collect();
        let earliest_grant = earliest_grant(&refusal.policy, &denied, now);
        refusal.earliest_grant = earliest_grant.filter(|at| !refusal.replayed || *at > now);
    }

    /// Counts the result in the metrics.
    pub(super) fn record(&self, request: &Request, result: &Result<Decided, Error>) {
        let times = u64::from(request.times);
        let (granted, otherwise) = match result {
            Ok(decided) if decided.replayed => (0, metrics::Outcome::Replayed),
            Ok(decided) if decided.degraded.is_some() => (0, metrics::Outcome::Degraded),
            Ok(decided) => (u64::from(decided.times_granted), metrics::Outcome::Denied),
            Err(_) => (0, metrics::Outcome::Failed),
        };
        let metrics = &self.ctx.metrics;
        metrics.calls_ended(times);
        for (meter, _) in &request.demands {
            for (outcome, calls) in [
                (metrics::Outcome::Granted, granted),
                (otherwise, times - granted),
            ] {
                if calls > 0 {
                    metrics.decided(request.kind, outcome, meter, calls);
                }
            }
        }
    }
}

/// Why a request was not counted, or that it is unknown whether it was.
pub(super) fn not_counted(request: &Request, error: redis::Error) -> Error {
    match error {
        redis::Error::Unknown(cause) if request.kind != Operation::Check => {
            Error::OutcomeUnknown(cause)
        }
        error => error.into(),
    }
}
