//! Effective policies: cached in this process, stored in Redis, and resolved from Postgres.
//!
//! A change is committed in Postgres under a new version, written to Redis (the organization and its running
//! counters), and announced to the other instances. If one of these steps fails, the sweep repeats it. The version in
//! each counter's stamp covers the meantime: a counter with a newer policy than its caller's decides by its own, so a
//! stale cache does no harm.
//!
//! A change of a plan or of the defaults reaches Redis one organization at a time: every policy below its minimum
//! version ([`min_versions`]) is stale and is resolved again at the next look-up. A temporary limit ends by the
//! clock: cached policies expire at its end, and a sweep records it.

mod apply;
mod cache;
mod fences;
mod incarnation;
mod min_versions;
mod sync;

use std::sync::Arc;

use chrono::{DateTime, Utc};

use crate::coalescer::Coalescer;
use crate::context::Context;
use crate::domain::ids::OrganizationId;
use crate::domain::retention;
use crate::failure::Failure;
use crate::metrics;
use crate::postgres;
use crate::postgres::organizations::{self, Sources};
use crate::redis::{Connection, KnownOrganization};

use cache::PolicyCache;
pub use cache::{CachedPolicy, Window};
pub use fences::Presence;
use incarnation::{SerializedPolicy, write};
pub use sync::Swept;

/// The handle on policies; clones share the cache.
#[derive(Debug, Clone)]
pub struct Policies {
    ctx: Context,
    cache: Arc<PolicyCache>,
    lookups: Coalescer<Lookup, Lookup, LookupResult, Failure>,
    /// Organizations whose fences are resolved.
    fenced: Coalescer<OrganizationId, OrganizationId, (), Failure>,
}

/// A look-up past the cache: the organization, and the caller's version if Redis has a newer one.
type Lookup = (OrganizationId, Option<u64>);

type LookupResult = Result<Arc<CachedPolicy>, Failure>;

impl Policies {
    /// Creates a handle with an empty cache.
    pub fn new(ctx: Context) -> Self {
        Self {
            ctx,
            cache: Arc::default(),
            lookups: Coalescer::default(),
            fenced: Coalescer::default(),
        }
    }

    /// The same handle, sharing the cache, with the connections to Postgres of another context.
    #[must_use]
    pub fn on(&self, ctx: Context) -> Self {
        Self {
            ctx,
            lookups: Coalescer::default(),
            fenced: Coalescer::default(),
            ..self.clone()
        }
    }

    /// The policy of an organization: from the cache, else from Redis, else from Postgres.
    pub async fn get(&self, organization: &OrganizationId) -> Result<Arc<CachedPolicy>, Failure> {
        Ok(self.get_now(organization).await?.0)
    }

    /// The same, and the time at which it was usable.
    pub async fn get_now(
        &self,
        organization: &OrganizationId,
    ) -> Result<(Arc<CachedPolicy>, DateTime<Utc>), Failure> {
        let now = self.ctx.clock.now();
        if let Some(policy) = self.cached(organization, now) {
            return Ok((policy, now));
        }
        // Boxed: keeps the hot-path future small.
        let policy = Box::pin(self.fresh(organization)).await?;
        Ok((policy, self.ctx.clock.now()))
    }

    /// The policy of an organization, if it is cached and usable at `now`.
    pub fn cached(
        &self,
        organization: &OrganizationId,
        now: DateTime<Utc>,
    ) -> Option<Arc<CachedPolicy>> {
        let cached = self.cache.get(organization, now);
        if cached.is_some() {
            self.ctx.metrics.cache_hit(metrics::Cache::Policies);
        } else {
            self.ctx.metrics.cache_missed(metrics::Cache::Policies);
        }
        cached
    }

    /// The policy of an organization past the cache: from Redis, else from Postgres.
    pub async fn fresh(&self, organization: &OrganizationId) -> Result<Arc<CachedPolicy>, Failure> {
        self.look_up(organization, None).await
    }

    /// A policy newer than version `than`: from Redis, else from Postgres.
    pub async fn refresh(
        &self,
        organization: &OrganizationId,
        than: u64,
    ) -> Result<Arc<CachedPolicy>, Failure> {
        self.ctx.metrics.policy_refreshed();
        self.look_up(organization, Some(than)).await
    }

    /// The newer one of a cached policy and of the one just read from Redis.
    pub fn newer(
        &self,
        organization: &OrganizationId,
        cached: Arc<CachedPolicy>,
        in_redis: &KnownOrganization,
    ) -> Arc<CachedPolicy> {
        let now = self.ctx.clock.now();
        match self.cache.parse(&in_redis.policy, now) {
            Some(policy) if policy.version > cached.version => {
                self.cache.insert(organization, &policy, now);
                policy
            }
            _ => cached,
        }
    }

    /// Removes an organization from the cache.
    pub fn invalidate(&self, organization: &OrganizationId) {
        self.cache.remove(organization);
    }

    /// No future event reaches a period that ended before this, with a day to spare.
    pub fn oldest_end(&self, now: DateTime<Utc>) -> DateTime<Utc> {
        retention::oldest_end(now, self.ctx.late)
    }

    /// What Postgres has of an organization, without Redis.
    pub async fn stored(&self, organization: &OrganizationId) -> Result<Sources, Failure> {
        let sources = self.stored_all(&[organization]).await?;
        sources.into_iter().next().ok_or_else(no_defaults)
    }

    /// The same of several organizations, in order.
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

    /// Stores the settings of this instance as the defaults of the service.
    async fn publish_defaults(&self) -> Result<(), postgres::Error> {
        let now = self.ctx.clock.now();
        let version =
            organizations::publish_defaults(&self.ctx.postgres, &self.ctx.defaults, now).await?;
        self.cache.min_versions.raise_defaults(version);
        Ok(())
    }

    async fn look_up(
        &self,
        organization: &OrganizationId,
        newer_than: Option<u64>,
    ) -> LookupResult {
        let lookup: Lookup = (organization.clone(), newer_than);
        self.lookups
            .process(lookup.clone(), lookup, self.clone(), Self::look_up_all)
            .await?
    }

    async fn look_up_all(self, lookups: Vec<Lookup>) -> Result<Vec<LookupResult>, Failure> {
        let connection = self.ctx.redis.connection().await?;
        let organizations: Vec<_> = lookups.iter().map(|(it, _)| it).collect();
        let in_redis = connection.organizations(&organizations).await?;
        let now = self.ctx.clock.now();
        let (mut found, mut missing) = (Vec::with_capacity(lookups.len()), Vec::new());
        for ((organization, newer_than), in_redis) in lookups.iter().zip(in_redis) {
            let policy = in_redis.and_then(|it| self.cache.parse(&it.policy, now));
            let usable = policy.as_ref().is_some_and(|it| match newer_than {
                Some(version) => it.version > *version,
                None => !self.cache.is_stale(it),
            });
            if !usable {
                missing.push(organization);
            }
            found.push((usable, policy));
        }
        let mut loaded = match self.load(&connection, &missing).await {
            Err(error @ Failure::Postgres(postgres::Error::Unavailable(_))) => Err(error),
            other => Ok(other?.into_iter()),
        };
        let results = lookups.iter().zip(found).map(|(lookup, (usable, found))| {
            let (organization, newer_than) = lookup;
            let policy = match (&mut loaded, found) {
                (_, Some(found)) if usable => found,
                (Ok(loaded), _) => loaded.next().ok_or_else(no_defaults)?,
                // While Postgres is down, a stale policy still counts and still refuses.
                (Err(_), Some(stale)) if newer_than.is_none() => stale,
                (Err(error), _) => return Err(error.clone()),
            };
            let now = self.ctx.clock.now();
            self.cache.insert(organization, &policy, now);
            Ok(policy)
        });
        Ok(results.collect())
    }

    /// Resolves policies from Postgres, and writes them to Redis.
    async fn load(
        &self,
        connection: &Connection,
        organizations: &[&OrganizationId],
    ) -> Result<Vec<Arc<CachedPolicy>>, Failure> {
        if organizations.is_empty() {
            return Ok(Vec::new());
        }
        let sources = self.stored_all(organizations).await?;
        let oldest_end = self.oldest_end(self.ctx.clock.now());
        let policies = organizations.iter().zip(&sources);
        let policies = policies.map(|(id, sources)| SerializedPolicy::new(id, sources, oldest_end));
        let policies: Vec<_> = policies.collect::<Result<_, _>>()?;
        write(&self.ctx, connection, &policies).await?;
        let now = self.ctx.clock.now();
        let policies = policies.into_iter();
        Ok(policies
            .map(|it| self.cache.share(&it.text(), it.policy, now))
            .collect())
    }
}

fn no_defaults() -> Failure {
    postgres::Error::Inconsistent("the defaults have disappeared".to_owned()).into()
}
