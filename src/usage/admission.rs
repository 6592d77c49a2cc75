//! Admits calls without a decision while Redis is down, and commits what they count to Postgres.
//!
//! Only what was never sent to Redis gets here: a call whose reply is missing may have been counted. Concurrent calls
//! share a transaction, which locks their organizations, so that no policy changes before it has committed.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use chrono::{DateTime, Utc};

use super::error::Error;
use super::plan::{Plan, RetryState, event_time};
use super::types::{Decided, Request};
use crate::coalescer::Coalescer;
use crate::context::Context;
use crate::domain::counter::CounterId;
use crate::domain::decision::Operation;
use crate::domain::ids::{IdempotencyKey, METERS_MAX, MeterId, OrganizationId};
use crate::domain::limit::OnOutage;
use crate::domain::policy::Policy;
use crate::domain::quantity::COUNT_MAX;
use crate::failure::Failure;
use crate::policies::{CachedPolicy, Policies};
use crate::postgres::organizations::Sources;
use crate::postgres::pending_increments::{Admission, Increment, NewOperation};
use crate::redis::Charge;

/// The handle on admissions; clones share the transactions.
#[derive(Debug, Clone)]
pub(super) struct Admissions {
    ctx: Context,
    policies: Policies,
    /// Identifies calls, because equal ones count separately.
    next: Arc<AtomicU64>,
    coalescer: Coalescer<u64, Arc<Request>, Admitted, Failure>,
}

/// None where the policy of a meter denies calls in an outage, or too much is pending.
type Admitted = Result<Option<Decided>, Error>;

impl Admissions {
    pub(super) fn new(ctx: Context, policies: Policies) -> Self {
        Self {
            ctx,
            policies,
            next: Arc::default(),
            coalescer: Coalescer::default(),
        }
    }

    /// The result of a request that was not sent to Redis because of `outage`, which is the result where the request is
    /// not admitted.
    pub(super) async fn admit(&self, request: &Request, outage: Error) -> Result<Decided, Error> {
        if request.kind == Operation::Refund {
            return Err(outage);
        }
        let cached = self
            .policies
            .cached(&request.organization, self.ctx.clock.now());
        if cached.is_some_and(|policy| !self.allows(request, &policy)) {
            return Err(outage);
        }
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let shared = Arc::new(request.clone());
        let admitted = self
            .coalescer
            .process(number, shared, self.clone(), Self::admit_all);
        match admitted.await {
            Ok(Ok(Some(decided))) => Ok(decided),
            Ok(Err(error)) => Err(error),
            Ok(Ok(None)) | Err(Failure::Postgres(_)) => Err(outage),
            Err(failure) => Err(failure.into()),
        }
    }

    /// Whether the policy admits a request in an outage. What is only tracked is never denied.
    fn allows(&self, request: &Request, policy: &Policy) -> bool {
        let on_outage = |meter| policy.on_outage(meter).unwrap_or(self.ctx.on_outage);
        let mut meters = request.demands.iter().map(|(meter, _)| meter);
        match request.kind {
            Operation::Track => true,
            Operation::Consume | Operation::Check => {
                meters.all(|meter| on_outage(meter) == OnOutage::Allow)
            }
            Operation::Refund => false,
        }
    }

    async fn admit_all(self, requests: Vec<Arc<Request>>) -> Result<Vec<Admitted>, Failure> {
        let now = self.ctx.clock.now();
        let mut admission = Admission::begin(&self.ctx.postgres).await?;
        let may_be_denied = requests.iter().filter(|it| it.kind != Operation::Track);
        let named = may_be_denied.map(|it| it.organization.clone());
        let mut sources = admission.sources(&named.collect()).await?;
        // A call that is denied must not create its organization.
        let counted = requests.iter().filter(|request| match request.kind {
            Operation::Track => true,
            Operation::Consume => {
                let sources = sources.get(&request.organization);
                sources.is_some_and(|it| self.allows(request, &it.resolve(now)))
            }
            Operation::Check | Operation::Refund => false,
        });
        let counted: BTreeSet<OrganizationId> = counted.map(|it| it.organization.clone()).collect();
        let mut meters = HashMap::new();
        if !counted.is_empty() {
            admission.lock(&counted).await?;
            // What was read before the lock may have changed.
            sources.extend(admission.sources(&counted).await?);
            meters = admission.meters(&counted, now).await?;
        }
        let keys = requests.iter().filter_map(|request| {
            let used = request.idempotency.as_ref()?;
            Some((&request.organization, &used.key))
        });
        let mut group = Group {
            admissions: &self,
            now,
            fingerprints: admission.fingerprints(&keys.collect::<Vec<_>>()).await?,
            meters,
            sources,
            counted,
            policies: HashMap::new(),
            operations: Vec::new(),
            merged: BTreeMap::new(),
        };
        let mut admitted: Vec<Admitted> = requests.iter().map(|it| group.admit(it)).collect();
        let operations = group.operations();
        if operations.is_empty() {
            return Ok(admitted);
        }
        admission.insert(&operations, now).await?;
        if let Err(error) = admission.commit().await {
            for result in &mut admitted {
                let queued = |it: &Decided| it.degraded.is_some_and(|it| it.queued);
                if matches!(result, Ok(Some(decided)) if queued(decided)) {
                    *result = Err(Error::OutcomeUnknown(error.to_string()));
                }
            }
            return Ok(admitted);
        }
        let increments = operations.iter().map(|it| it.increments.len());
        self.ctx.metrics.increments_pending(increments.sum());
        Ok(admitted)
    }
}

/// The calls that share a transaction.
struct Group<'a> {
    admissions: &'a Admissions,
    now: DateTime<Utc>,
    sources: HashMap<OrganizationId, Sources>,
    /// The organizations that are locked.
    counted: BTreeSet<OrganizationId>,
    policies: HashMap<OrganizationId, Arc<CachedPolicy>>,
    meters: HashMap<OrganizationId, BTreeSet<MeterId>>,
    /// Of pending operations with idempotency keys, those of this group included.
    fingerprints: HashMap<(OrganizationId, IdempotencyKey), String>,
    /// With idempotency keys.
    operations: Vec<NewOperation>,
    /// The units of all other calls, by counter and hour.
    merged: BTreeMap<(CounterId, DateTime<Utc>), u64>,
}

impl Group<'_> {
    fn admit(&mut self, request: &Request) -> Admitted {
        let Some(policy) = self.policy(&request.organization) else {
            return Ok(None);
        };
        if !self.admissions.allows(request, &policy) {
            return Ok(None);
        }
        let at = match event_time(&self.admissions.ctx, request, self.now) {
            Ok(at) => at,
            // Its idempotency record, which would be the answer, cannot be read.
            Err(_) if request.idempotency.is_some() => return Ok(None),
            Err(out_of_range) => return Err(out_of_range),
        };
        let plan = Plan::new(policy, 0, self.now, at, RetryState::default());
        let charges: Vec<Charge> = plan.charges(request).collect();
        if request.kind == Operation::Check {
            return Ok(Some(Decided::degraded(
                request,
                &plan.policy,
                &charges,
                false,
            )));
        }
        let mut decided = Decided::degraded(request, &plan.policy, &charges, true);
        if let Some(used) = &request.idempotency {
            let key = (request.organization.clone(), used.key.clone());
            match self.fingerprints.get(&key) {
                Some(fingerprint) if *fingerprint == used.fingerprint => {
                    decided.replayed = true;
                    return Ok(Some(decided));
                }
                Some(_) => return Err(Failure::KeyReused.into()),
                None => {}
            }
        }
        if self.is_full() || !self.counted.contains(&request.organization) {
            return Ok(None);
        }
        self.add_meters(request)?;
        self.add(request, charges);
        Ok(Some(decided))
    }

    fn policy(&mut self, organization: &OrganizationId) -> Option<Arc<CachedPolicy>> {
        if let Some(policy) = self.policies.get(organization) {
            return Some(Arc::clone(policy));
        }
        let policy = self.sources.get(organization)?.resolve(self.now);
        let policy = Arc::new(CachedPolicy::new(policy));
        self.policies
            .insert(organization.clone(), Arc::clone(&policy));
        Some(policy)
    }

    fn is_full(&self) -> bool {
        let ctx = &self.admissions.ctx;
        let added = self.operations.len().saturating_add(self.merged.len()) as u64;
        ctx.metrics.pending().increments.saturating_add(added) >= ctx.pending_max
    }

    fn add_meters(&mut self, request: &Request) -> Result<(), Error> {
        let meters = self.meters.entry(request.organization.clone()).or_default();
        for (meter, _) in &request.demands {
            if !meters.contains(meter) && meters.len() >= METERS_MAX {
                return Err(Failure::TooManyMeters(meter.clone()).into());
            }
            meters.insert(meter.clone());
        }
        Ok(())
    }

    fn add(&mut self, request: &Request, charges: Vec<Charge>) {
        if let Some(used) = &request.idempotency {
            self.fingerprints.insert(
                (request.organization.clone(), used.key.clone()),
                used.fingerprint.clone(),
            );
            let increments = charges.into_iter().map(|charge| Increment {
                counter: charge.counter,
                hour: charge.hour,
                amount: charge.demand.amount,
            });
            self.operations.push(NewOperation {
                increments: increments.collect(),
                idempotency: Some((used.key.clone(), used.fingerprint.clone())),
            });
            return;
        }
        for charge in charges {
            let amount = charge
                .demand
                .amount
                .saturating_mul(u64::from(request.times));
            if amount > 0 {
                let units = self
                    .merged
                    .entry((charge.counter, charge.hour))
                    .or_default();
                *units = units.saturating_add(amount).min(COUNT_MAX);
            }
        }
    }

    fn operations(self) -> Vec<NewOperation> {
        let mut operations = self.operations;
        let merged = self.merged.into_iter();
        operations.extend(merged.map(|((counter, hour), amount)| NewOperation {
            increments: vec![Increment {
                counter,
                hour,
                amount,
            }],
            idempotency: None,
        }));
        operations
    }
}
