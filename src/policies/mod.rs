//! The policies in force: cached in the process, held in Redis, and resolved from Postgres.
//!
//! Rule 7 of the protocol: a change is committed in Postgres under one version, then written to
//! Redis (the organization, and its running counters), then announced. What of that is lost is
//! repaired by the sweep, and by the version in each counter's stamp: a counter that knows a newer policy
//! than its caller decides by its own, so that what is cached may be old without doing harm.
//!
//! A change of a plan, or of the defaults, reaches Redis one organization at a time: whatever was resolved
//! from an older one is out of date ([`min_versions`]), and is resolved anew when its organization is asked for.
//! A temporary limit ends by the clock: what is cached holds until then, and a sweep notes the end.

mod cache;
mod fences;
mod incarnation;
mod min_versions;

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use futures::StreamExt;
use quick_cache::sync::Cache;
use tokio_util::sync::CancellationToken;

use crate::coalescer::Coalescer;
use crate::context::Context;
use crate::domain::counter::{CounterId, Stamp};
use crate::domain::ids::OrganizationId;
use crate::domain::plan::Plan;
use crate::domain::policy::Policy;
use crate::failure::Failure;
use crate::metrics::{self, Worker};
use crate::postgres::organizations::{self, Sources};
use crate::postgres::{self, Actor, plans};
use crate::redis::{
    self, Announcement, Configuration, Configured, Connection, KnownOrganization, PolicyText,
};

pub use cache::{CachedPolicy, Window};
use min_versions::MinVersions;

/// How long a policy is believed without looking at Redis again. Only what never reached Redis needs this at all.
const CACHE_LIFETIME: TimeDelta = TimeDelta::minutes(5);

/// How long a policy that is out of date is made do with where Postgres cannot tell a newer one.
const STOPGAP_LIFETIME: TimeDelta = TimeDelta::seconds(1);

/// How many organizations are kept at hand, each with some 150 bytes.
const CACHE_SIZE: usize = 1_000_000;

/// How many policies are kept at hand; organizations with the same share one.
const POLICIES_SIZE: usize = 100_000;

/// Between two looks for changes that never reached Redis.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// How many changes one sweep applies at most.
const SWEEP_BATCH: u32 = 1000;

/// The handle on policies; clones share the cache.
#[derive(Debug, Clone)]
pub struct Policies {
    ctx: Context,
    cache: Arc<Cache<OrganizationId, Cached>>,
    /// Policies by their version and JSON, as Redis has them.
    shared: Arc<Cache<Box<str>, Arc<CachedPolicy>>>,
    floors: Arc<MinVersions>,
    look_ups: Coalescer<LookUp, LookUp, Found, Failure>,
    /// Of organizations that have a fence.
    passing: Coalescer<OrganizationId, OrganizationId, (), Failure>,
}

/// What somebody wants to know past the cache.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct LookUp {
    organization: OrganizationId,
    /// The version that did not do, if Redis was seen to know another.
    newer_than: Option<u64>,
}

type Found = Result<Arc<CachedPolicy>, Failure>;

/// A policy as Postgres has it, written down for Redis.
struct Written<'a> {
    organization: &'a OrganizationId,
    policy: Policy,
    incarnation: u64,
    json: String,
}

impl<'a> Written<'a> {
    /// `reach` is the earliest instant of which any event can still come.
    fn of(
        organization: &'a OrganizationId,
        sources: &Sources,
        reach: DateTime<Utc>,
    ) -> Result<Self, Failure> {
        let mut policy = sources.policy();
        policy.schedule = policy.schedule.since(reach);
        let json = serde_json::to_string(&policy)
            .map_err(|error| postgres::Error::Inconsistent(error.to_string()))?;
        Ok(Self {
            organization,
            policy,
            incarnation: sources.incarnation,
            json,
        })
    }

    fn configuration<'b>(&'b self, running: &'b [(CounterId, Stamp)]) -> Configuration<'b> {
        Configuration {
            organization: self.organization,
            policy: PolicyText {
                version: self.policy.version,
                incarnation: self.incarnation,
                json: &self.json,
            },
            running,
        }
    }
}

#[derive(Debug, Clone)]
struct Cached {
    policy: Arc<CachedPolicy>,
    /// When it was looked up.
    since: DateTime<Utc>,
    /// When it is to be looked up again.
    until: DateTime<Utc>,
    /// Whether it was out of date when it was looked up, and Postgres away.
    stopgap: bool,
}

/// What is to be seen of an organization.
#[derive(Debug, Clone, Copy)]
pub struct Presence {
    /// Postgres has it.
    stored: bool,
    /// Redis has counted something of it, and Postgres does not know it.
    counted: bool,
    /// The policy version of its last deletion; 0 if it never was deleted.
    incarnation: u64,
}

impl Presence {
    /// Whether there is one.
    pub fn exists(&self) -> bool {
        self.stored || self.counted
    }

    /// The policy version of its last deletion; 0 if it never was deleted.
    pub fn incarnation(&self) -> u64 {
        self.incarnation
    }

    /// Whether there still is one, by what Postgres says later, under the lock that serializes changes.
    pub fn still_exists(&self, sources: &Sources) -> bool {
        let counted = self.counted && sources.incarnation == self.incarnation;
        counted || sources.organization.is_some()
    }
}

impl Policies {
    /// A handle that has read nothing yet.
    pub fn new(ctx: Context) -> Self {
        Self {
            ctx,
            cache: Arc::new(Cache::new(CACHE_SIZE)),
            shared: Arc::new(Cache::new(POLICIES_SIZE)),
            floors: Arc::default(),
            look_ups: Coalescer::default(),
            passing: Coalescer::default(),
        }
    }

    /// The same, sharing the caches, with the connections to Postgres of another context.
    #[must_use]
    pub fn on(&self, ctx: Context) -> Self {
        Self {
            ctx,
            look_ups: Coalescer::default(),
            passing: Coalescer::default(),
            ..self.clone()
        }
    }

    /// The policy of an organization: from the cache, else from Redis, else from Postgres.
    pub async fn get(&self, organization: &OrganizationId) -> Result<Arc<CachedPolicy>, Failure> {
        match self.at_hand(organization, self.ctx.clock.now()) {
            Some(policy) => Ok(policy),
            // In a box, so that a call whose policy is at hand does not carry this about.
            None => Box::pin(self.fresh(organization)).await,
        }
    }

    /// The policy of an organization, if it is in the cache and holds `now`.
    pub fn at_hand(
        &self,
        organization: &OrganizationId,
        now: DateTime<Utc>,
    ) -> Option<Arc<CachedPolicy>> {
        if let Some(cached) = self.cache.get(organization)
            && self.holds(&cached, now)
        {
            self.ctx.metrics.cache_hit(metrics::Cache::Policies);
            return Some(cached.policy);
        }
        self.ctx.metrics.cache_missed(metrics::Cache::Policies);
        None
    }

    /// The policy of an organization past the cache: from Redis, else from Postgres.
    pub async fn fresh(&self, organization: &OrganizationId) -> Result<Arc<CachedPolicy>, Failure> {
        self.look_up(organization, None).await
    }

    /// Looks for a policy newer than `than`: in Redis first, then in Postgres.
    pub async fn refresh(
        &self,
        organization: &OrganizationId,
        than: u64,
    ) -> Result<Arc<CachedPolicy>, Failure> {
        self.ctx.metrics.policy_refreshed();
        self.look_up(organization, Some(than)).await
    }

    /// The newer of a policy at hand and of what Redis has just been seen to hold.
    pub fn newer(
        &self,
        organization: &OrganizationId,
        at_hand: Arc<CachedPolicy>,
        known: &KnownOrganization,
    ) -> Arc<CachedPolicy> {
        match self.parse(&known.policy) {
            Some(policy) if policy.version > at_hand.version => self.keep(organization, policy),
            _ => at_hand,
        }
    }

    /// Drops what is cached of one organization.
    pub fn forget(&self, organization: &OrganizationId) {
        self.cache.remove(organization);
    }

    /// Whether there is an organization: whether it was ever counted or configured, and not deleted since.
    pub async fn exists(&self, organization: &OrganizationId) -> Result<bool, Failure> {
        Ok(self.presence(organization).await?.exists())
    }

    /// What is to be seen of an organization, in Postgres and in Redis.
    pub async fn presence(&self, organization: &OrganizationId) -> Result<Presence, Failure> {
        let stored = organizations::presence(&self.ctx.postgres, organization).await?;
        let mut presence = Presence {
            stored: stored.exists,
            counted: false,
            incarnation: stored.incarnation,
        };
        if !presence.stored {
            let connection = self.ctx.redis.connection().await?;
            let known = self.known(&connection, organization).await?;
            let (life, counted) = known.map_or((u64::MAX, false), |known| {
                (known.incarnation, known.meters.is_some())
            });
            // What was counted before a deletion that has not reached Redis yet is gone all the same.
            presence.counted = counted && life >= presence.incarnation;
            if life < presence.incarnation {
                let sources = self.stored(organization).await?;
                self.apply(&connection, organization, &sources).await?;
            }
        }
        Ok(presence)
    }

    /// What Postgres has of an organization, without Redis.
    pub async fn stored(&self, organization: &OrganizationId) -> Result<Sources, Failure> {
        let sources = self.stored_all(&[organization]).await?;
        sources.into_iter().next().ok_or_else(no_defaults)
    }

    /// The same of some organizations, in their order.
    async fn stored_all(&self, organizations: &[&OrganizationId]) -> Result<Vec<Sources>, Failure> {
        let mut sources = organizations::sources(&self.ctx.postgres, organizations).await?;
        if sources.is_empty() && !organizations.is_empty() {
            self.publish_defaults().await?;
            sources = organizations::sources(&self.ctx.postgres, organizations).await?;
        }
        if sources.len() < organizations.len() {
            return Err(no_defaults());
        }
        Ok(sources)
    }

    /// Makes this instance's settings the defaults of the service, once, and learns which plans have changed.
    pub async fn learn(&self) -> Result<(), postgres::Error> {
        if self.floors.defaults() == 0 {
            self.publish_defaults().await?;
        }
        let changes = plans::versions_since(&self.ctx.postgres, self.floors.swept()).await?;
        self.floors.sweep(&changes);
        Ok(())
    }

    /// Puts a plan in force that was committed in Postgres: here at once, elsewhere as soon as the others hear or
    /// learn of it. So it needs no Redis.
    pub async fn apply_plan(&self, plan: &Plan) {
        self.floors.raise_plan(&plan.id, plan.version);
        let announced = async {
            let connection = self.ctx.redis.connection().await?;
            let changed = Announcement::Plan(plan.id.clone(), plan.version);
            connection.announce(&changed).await
        };
        if let Err(error) = announced.await {
            tracing::warn!(%error, plan = %plan.id, "a change of a plan was not announced; the sweeps find it");
        }
    }

    /// Writes a policy that was committed in Postgres to Redis and to every running counter, so that
    /// it is in force for the next request of any instance. Returns how many counters of a former life were erased for
    /// it.
    pub async fn apply(
        &self,
        connection: &Connection,
        organization: &OrganizationId,
        sources: &Sources,
    ) -> Result<usize, Failure> {
        let now = self.ctx.clock.now();
        let written = Written::of(organization, sources, self.reach(now))?;
        let policy = &written.policy;
        let at_now = policy.clone().at(now);
        // First the organization alone: from now on no counter is opened under an older version, so the list
        // of meters that comes back names every counter that still has one.
        let made_known = self
            .make_known(connection, std::slice::from_ref(&written))
            .await?;
        let erased = made_known.iter().map(|(_, erased)| erased).sum();
        if let Some((Configured::Known { version, meters }, _)) = made_known.into_iter().next()
            && version == policy.version
            && !meters.is_empty()
        {
            let running: Vec<_> = meters
                .into_iter()
                .map(|meter| {
                    let period = policy.schedule.running(&meter, now);
                    // Each counter keeps its own generation.
                    let stamp = Stamp::of(&at_now, &meter, period, 0);
                    (
                        CounterId {
                            organization: organization.clone(),
                            meter,
                            start: period.start,
                        },
                        stamp,
                    )
                })
                .collect();
            connection
                .configure(&[written.configuration(&running)], now)
                .await?;
        }
        self.forget(organization);
        let changed = Announcement::Organization(organization.clone());
        connection.announce(&changed).await?;
        Ok(erased)
    }

    /// Learns which plans have changed, ends what has ended, and applies every change of an organization that is
    /// committed and may not have reached Redis; returns how many.
    pub async fn sweep_once(&self) -> Result<usize, Failure> {
        self.learn().await?;
        self.end_limits().await?;
        let connection = self.ctx.redis.connection().await?;
        for organization in connection.fenced().await? {
            // One that cannot be passed keeps nothing else from being applied.
            if let Err(error) = self.pass_fence(&organization).await {
                tracing::debug!(%error, org.id = %organization, "a change cannot be finished");
            }
        }
        // The mark is as old as the data set that holds it, so that a rollback is repaired as well.
        let mark = connection.applied().await?;
        let changes = organizations::changes_since(&self.ctx.postgres, mark, SWEEP_BATCH).await?;
        self.floors.raise_defaults(changes.defaults_version);
        for organization in &changes.organizations {
            let sources = self.stored(organization).await?;
            self.apply(&connection, organization, &sources).await?;
        }
        if changes.version > mark {
            connection.set_applied(changes.version).await?;
        }
        Ok(changes.organizations.len())
    }

    /// Sweeps, learns, and listens to the other instances, until `stop`.
    pub async fn run(&self, stop: CancellationToken) {
        // In a box, because it is large, and whoever runs this would have to hold it.
        tokio::join!(
            Box::pin(self.sweep(&stop)),
            self.keep_learning(&stop),
            self.listen(&stop)
        );
    }

    async fn sweep(&self, stop: &CancellationToken) {
        let mut failing = false;
        while stop
            .run_until_cancelled(tokio::time::sleep(SWEEP_INTERVAL))
            .await
            .is_some()
        {
            match self
                .ctx
                .metrics
                .timed(Worker::PolicySweep, self.sweep_once())
                .await
            {
                Err(error) if !failing => {
                    tracing::warn!(%error, "changes of policies cannot be looked for");
                    failing = true;
                }
                Err(_) => {}
                Ok(_) => failing = false,
            }
        }
    }

    /// Beside the sweep, which may have much to apply, so that a plan is nowhere old for longer than is promised.
    async fn keep_learning(&self, stop: &CancellationToken) {
        while stop
            .run_until_cancelled(tokio::time::sleep(SWEEP_INTERVAL))
            .await
            .is_some()
        {
            // The sweep tells of it.
            let _ = self.learn().await;
        }
    }

    async fn listen(&self, stop: &CancellationToken) {
        loop {
            let heard = async {
                if let Ok(mut announcements) = self.ctx.redis.announcements().await {
                    while let Some(announcement) = announcements.next().await {
                        match announcement {
                            Announcement::Organization(id) => self.forget(&id),
                            Announcement::Plan(id, version) => self.floors.raise_plan(&id, version),
                        }
                    }
                }
                tokio::time::sleep(SWEEP_INTERVAL).await;
            };
            if stop.run_until_cancelled(heard).await.is_none() {
                return;
            }
        }
    }

    async fn publish_defaults(&self) -> Result<(), postgres::Error> {
        let now = self.ctx.clock.now();
        let version =
            organizations::publish_defaults(&self.ctx.postgres, &self.ctx.defaults, now).await?;
        self.floors.raise_defaults(version);
        Ok(())
    }

    /// Takes away temporary limits that have ended. They hold no longer, whether this is done or not; it makes the
    /// end known to the audit log, and to counters that nobody calls.
    async fn end_limits(&self) -> Result<(), postgres::Error> {
        let now = self.ctx.clock.now();
        let ended = organizations::with_ended_limits(&self.ctx.postgres, now, SWEEP_BATCH).await?;
        for organization in &ended {
            self.end_limits_of(organization).await?;
        }
        Ok(())
    }

    /// Takes away those of one organization. Where another instance has done so meanwhile, nothing happens.
    pub async fn end_limits_of(
        &self,
        organization: &OrganizationId,
    ) -> Result<(), postgres::Error> {
        let now = self.ctx.clock.now();
        let end = |before: &Sources| {
            let mut after = before.organization.clone().ok_or(())?;
            let held = after.temporary.len();
            after.temporary.retain(|_, it| it.until > now);
            (after.temporary.len() < held).then_some(after).ok_or(())
        };
        let actor = Actor::system();
        // A refusal is that there is nothing to do.
        let _ = organizations::change(
            &self.ctx.postgres,
            organization,
            &actor,
            "limits.end",
            now,
            end,
        )
        .await?;
        Ok(())
    }

    fn holds(&self, cached: &Cached, now: DateTime<Utc>) -> bool {
        // A clock that was set back must not prolong anything.
        (cached.since..cached.until).contains(&now)
            && (cached.stopgap || !self.is_outdated(&cached.policy))
    }

    fn is_outdated(&self, policy: &Policy) -> bool {
        policy.version < self.floors.of(&policy.plan_id)
    }

    async fn look_up(&self, organization: &OrganizationId, newer_than: Option<u64>) -> Found {
        let wish = LookUp {
            organization: organization.clone(),
            newer_than,
        };
        let policies = self.clone();
        let found = self
            .look_ups
            .ask(wish.clone(), wish, Failure::may_be_of_one, move |wishes| {
                let policies = policies.clone();
                async move { policies.look_up_all(&wishes).await }
            });
        found.await.ok_or(redis::Error::Overloaded)??
    }

    async fn look_up_all(&self, wishes: &[LookUp]) -> Result<Vec<Found>, Failure> {
        let connection = self.ctx.redis.connection().await?;
        let organizations: Vec<_> = wishes.iter().map(|it| &it.organization).collect();
        let known = connection.organizations(&organizations).await?;
        let (mut held, mut left) = (Vec::with_capacity(wishes.len()), Vec::new());
        for (wish, known) in wishes.iter().zip(known) {
            let known = known.and_then(|known| self.parse(&known.policy));
            let does = known.as_ref().is_some_and(|it| match wish.newer_than {
                Some(version) => it.version > version,
                None => !self.is_outdated(it),
            });
            if !does {
                left.push(&wish.organization);
            }
            held.push((does, known));
        }
        let mut loaded = match self.load(&connection, &left).await {
            Err(error @ Failure::Postgres(postgres::Error::Unavailable(_))) => Err(error),
            other => Ok(other?.into_iter()),
        };
        let found = wishes.iter().zip(held).map(|(wish, (does, held))| {
            let policy = match (&mut loaded, held) {
                (_, Some(held)) if does => held,
                (Ok(loaded), _) => loaded.next().ok_or_else(no_defaults)?,
                // Without Postgres, an older policy still counts and still refuses.
                (Err(_), Some(older)) if wish.newer_than.is_none() => older,
                (Err(error), _) => return Err(error.clone()),
            };
            Ok(self.keep(&wish.organization, policy))
        });
        Ok(found.collect())
    }

    /// Makes policies known to Redis as Postgres has them.
    async fn load(
        &self,
        connection: &Connection,
        organizations: &[&OrganizationId],
    ) -> Result<Vec<Arc<CachedPolicy>>, Failure> {
        if organizations.is_empty() {
            return Ok(Vec::new());
        }
        let sources = self.stored_all(organizations).await?;
        let reach = self.reach(self.ctx.clock.now());
        let written = organizations.iter().zip(&sources);
        let written: Vec<Written<'_>> = written
            .map(|(organization, sources)| Written::of(organization, sources, reach))
            .collect::<Result<_, _>>()?;
        self.make_known(connection, &written).await?;
        let written = written.into_iter();
        let shared = written.map(|it| {
            let text = format!("{} {}", it.policy.version, it.json);
            self.share(&text, it.policy)
        });
        Ok(shared.collect())
    }

    fn keep(&self, organization: &OrganizationId, policy: Arc<CachedPolicy>) -> Arc<CachedPolicy> {
        let since = self.ctx.clock.now();
        let stopgap = self.is_outdated(&policy);
        let lifetime = if stopgap {
            STOPGAP_LIFETIME
        } else {
            CACHE_LIFETIME
        };
        let until = since + lifetime;
        let cached = Cached {
            until: policy.until.map_or(until, |ends| ends.min(until)),
            policy: Arc::clone(&policy),
            since,
            stopgap,
        };
        self.cache.insert(organization.clone(), cached);
        policy
    }

    /// The policy that a text of Redis describes, now.
    fn parse(&self, text: &str) -> Option<Arc<CachedPolicy>> {
        self.shared
            .get(text)
            .or_else(|| Some(self.share(text, held(text)?)))
    }

    fn share(&self, text: &str, policy: Policy) -> Arc<CachedPolicy> {
        if !policy.temporary.is_empty() {
            return Arc::new(CachedPolicy::new(policy.at(self.ctx.clock.now())));
        }
        if let Some(same) = self.shared.get(text) {
            return same;
        }
        let resolved = Arc::new(CachedPolicy::new(policy));
        self.shared.insert(text.into(), Arc::clone(&resolved));
        resolved
    }
}

/// The policy that a text of Redis holds: its version, a space, and its JSON. What another release wrote and this one
/// cannot read is as good as absent.
fn held(text: &str) -> Option<Policy> {
    let (version, json) = text.split_once(' ')?;
    Some(Policy {
        version: version.parse().ok()?,
        ..serde_json::from_str(json).ok()?
    })
}

fn no_defaults() -> Failure {
    postgres::Error::Inconsistent("the defaults have disappeared".to_owned()).into()
}
