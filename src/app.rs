//! Wires everything, and starts, supervises and stops it.

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use chrono::TimeDelta;
use futures::future::BoxFuture;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admin::Admin;
use crate::auth::Auth;
use crate::budget::{Budget, Turns};
use crate::clock::Clock;
use crate::config::{Config, ConnectionLimits, Servers};
use crate::context::Context;
use crate::http;
use crate::http::BATCH_BODY_MAX;
use crate::http::state::{Handles, State};
use crate::jobs::flush::Flusher;
use crate::jobs::gc::GarbageCollector;
use crate::jobs::periods::PeriodsJob;
use crate::jobs::webhooks::Webhooks;
use crate::metrics::Metrics;
use crate::policies::Policies;
use crate::postgres::Postgres;
use crate::redis::{self, Redis};
use crate::server::{Server, make_room};
use crate::usage::Usage;
use crate::usage::history::History;
use crate::usage::recovery::Recovery;
use crate::usage::verify::Verifier;

/// So many connections are enough for whoever scrapes.
const METRICS_CONNECTIONS: usize = 64;

/// How many large batches of one caller are dealt with at once: one is read while another is decided.
const BATCHES_EACH: usize = 2;

/// The service, built and not yet serving.
#[derive(Debug, Clone)]
pub struct App {
    /// The handles of the HTTP interface.
    pub state: State,
    /// Stores counts in Postgres; tests call it directly, as they do the other jobs.
    pub flusher: Flusher,
    /// Keeps policies up to date.
    pub policies: Policies,
    /// Delivers events.
    pub webhooks: Webhooks,
    /// Ends periods on time.
    pub scheduler: PeriodsJob,
    /// Garbage-collects Redis.
    pub garbage_collector: GarbageCollector,
    /// Mirrors API keys in Redis.
    auth: Auth,
    /// Erases the data of deleted organizations.
    admin: Admin,
    /// The connections to Postgres that all of these jobs share.
    background: Postgres,
    config: Config,
}

impl App {
    /// Wires the service. Does not wait for Redis or Postgres, but fails where Redis is misconfigured for counting.
    pub async fn build(config: Config, servers: Servers, clock: Clock) -> Result<Self> {
        let (ctx, background) = connect(&config, servers, clock).await?;
        let policies = Policies::new(ctx.clone());
        let recovery = Recovery::new(ctx.clone());
        let usage = Usage::new(ctx.clone(), policies.clone(), recovery.clone());
        let auth = Auth::new(ctx.clone(), config.jwt.clone()).context("JWTs cannot be verified")?;
        load_from_postgres(&policies, &auth).await;
        let state = State::new(Handles {
            admin: Admin::new(
                ctx.clone(),
                policies.clone(),
                recovery.clone(),
                auth.clone(),
            ),
            auth,
            usage,
            verifier: Verifier::new(ctx.clone(), policies.clone()),
            webhooks: Webhooks::new(ctx.clone(), config.webhook_private_addresses),
            history: History::new(ctx.clone(), policies.clone()),
            ctx,
            metrics_apart: config.metrics_listen.is_some(),
            plugin_path: config.plugin_path.clone(),
            cors_origins: config.cors_origins.clone(),
            body_patience: config.connections.body,
            bodies: body_memory(config.body_memory),
            batches: Turns::new(BATCHES_EACH),
            draining: AtomicBool::new(false),
        });
        let (policies, recovery) = (
            policies.on(background.clone()),
            recovery.on(background.clone()),
        );
        Ok(Self::with_jobs(
            state, config, background, policies, recovery,
        ))
    }

    /// Adds the jobs: the same handles, on the connections to Postgres of `ctx`.
    fn with_jobs(
        state: State,
        config: Config,
        ctx: Context,
        policies: Policies,
        recovery: Recovery,
    ) -> Self {
        let auth = state.auth.on(ctx.clone());
        let admin = Admin::new(
            ctx.clone(),
            policies.clone(),
            recovery.clone(),
            auth.clone(),
        );
        Self {
            flusher: Flusher::new(
                ctx.clone(),
                policies.clone(),
                recovery,
                config.flush_interval,
            ),
            policies,
            webhooks: state.webhooks.on(ctx.clone()),
            scheduler: PeriodsJob::new(ctx.clone(), admin.clone(), config.scheduler),
            garbage_collector: GarbageCollector::new(ctx.clone()),
            auth,
            admin,
            background: ctx.postgres,
            config,
            state,
        }
    }

    /// Serves until `stop`; then answers what was accepted, and stores every count a last time.
    /// A worker that dies takes the service down.
    pub async fn serve(self, listener: TcpListener, stop: CancellationToken) -> Result<()> {
        let metrics = match self.config.metrics_listen {
            Some(address) => Some(listen_for_metrics(address).await?),
            None => None,
        };
        let workers = TaskTracker::new();
        // Two tokens: the flusher works until the last request has been answered.
        let (drained, died) = (CancellationToken::new(), CancellationToken::new());
        let supervise = |work: BoxFuture<'static, ()>| {
            let alive = died.clone().drop_guard();
            workers.spawn(async move {
                work.await;
                drop(alive);
            });
        };
        let (flusher, stop_flushing) = (self.flusher.clone(), drained.clone());
        supervise(Box::pin(async move { flusher.run(stop_flushing).await }));
        let (policies, stop_listening) = (self.policies.clone(), drained.clone());
        supervise(Box::pin(async move { policies.run(stop_listening).await }));
        let (scheduler, stop_scheduling) = (self.scheduler.clone(), drained.clone());
        supervise(Box::pin(
            async move { scheduler.run(stop_scheduling).await },
        ));
        let (auth, stop_admitting) = (self.auth.clone(), drained.clone());
        supervise(Box::pin(async move { auth.run(stop_admitting).await }));
        let (admin, stop_erasing) = (self.admin.clone(), drained.clone());
        supervise(Box::pin(async move { admin.run(stop_erasing).await }));
        let (webhooks, stop_delivering) = (self.webhooks.clone(), drained.clone());
        supervise(Box::pin(async move { webhooks.run(stop_delivering).await }));
        let (garbage_collector, stop_forgetting) =
            (self.garbage_collector.clone(), drained.clone());
        supervise(Box::pin(async move {
            garbage_collector.run(stop_forgetting).await
        }));
        if let Some(listener) = metrics {
            let (router, stop) = (http::metrics_router(self.state.clone()), drained.clone());
            let limits = ConnectionLimits {
                max: METRICS_CONNECTIONS,
                ..self.config.connections.clone()
            };
            let server = Server::new(limits, self.state.ctx.metrics.clone());
            supervise(Box::pin(async move {
                // A scrape that does not end must not delay a stop.
                server.serve(listener, router, stop, Duration::ZERO).await;
            }));
        }
        workers.close();

        let ending = CancellationToken::new();
        let limits = ConnectionLimits {
            max: make_room(
                self.config.connections.max,
                self.config.database_connections,
            ),
            ..self.config.connections
        };
        let server = Server::new(limits, self.state.ctx.metrics.clone());
        let router = http::router(self.state.clone());
        let mut answering =
            pin!(server.serve(listener, router, ending.clone(), self.config.shutdown));
        let crashed = tokio::select! {
            _ = &mut answering => false,
            () = stop.cancelled() => false,
            () = died.cancelled() => true,
        };
        self.state.draining.store(true, Ordering::Release);
        ending.cancel();
        if !answering.await {
            tracing::warn!("some requests were not answered in time");
        }
        drained.cancel();
        if tokio::time::timeout(self.config.shutdown, workers.wait())
            .await
            .is_err()
        {
            tracing::warn!("the last counts were not stored in time; they stay in Redis");
        }
        self.state.ctx.postgres.close().await;
        self.background.close().await;
        if crashed {
            bail!("a worker has died");
        }
        tracing::info!("stopped");
        Ok(())
    }
}

/// What the bodies of all callers may take, and those of each: the largest one at least.
fn body_memory(all: u64) -> Budget {
    Budget::new(all, (all / 4).max(BATCH_BODY_MAX as u64))
}

/// The contexts of requests and of jobs, which share all but the connections to Postgres: half of those are reserved for
/// requests, however long jobs wait.
async fn connect(config: &Config, servers: Servers, clock: Clock) -> Result<(Context, Context)> {
    let metrics = Metrics::new(env!("CARGO_PKG_VERSION"), clock.now());
    let settings = redis_settings(config, servers.redis_url)?;
    let redis = Redis::new(settings, clock.clone(), metrics.clone())
        .context("TALLYMAN_REDIS_URL cannot be used")?;
    let half = config.database_connections / 2;
    let postgres = |connections| {
        Postgres::new(&servers.database_url, connections)
            .context("TALLYMAN_DATABASE_URL cannot be used")
    };
    let requests = Context {
        redis,
        postgres: postgres(config.database_connections - half)?,
        clock,
        metrics,
        late: TimeDelta::from_std(config.late)?,
        idempotency: TimeDelta::from_std(config.idempotency)?,
        defaults: Arc::new(config.defaults.clone()),
    };
    let jobs = Context {
        postgres: postgres(half)?,
        ..requests.clone()
    };
    check_redis(&requests.redis).await?;
    Ok((requests, jobs))
}

fn redis_settings(config: &Config, url: String) -> Result<redis::Settings> {
    Ok(redis::Settings {
        url,
        prefix: config.redis_prefix.clone(),
        trust_restart: config.trust_redis_restart,
        record_lifetime_ms: u64::try_from(config.idempotency.as_millis())?,
    })
}

/// Publishes the default plan, and loads the secret that seals the mirror of API keys, if Postgres is up; otherwise the
/// sweeps do so later.
async fn load_from_postgres(policies: &Policies, auth: &Auth) {
    let loaded = async {
        policies.learn().await?;
        auth.learn().await
    };
    if let Err(error) = loaded.await {
        tracing::warn!(%error, "starting without Postgres");
    }
}

/// Fails where Redis is misconfigured for counting; a Redis that is down is waited for.
async fn check_redis(redis: &Redis) -> Result<()> {
    match redis.connection().await {
        Err(error @ (redis::Error::Unfit(_) | redis::Error::Inconsistent(_))) => bail!(error),
        Err(error) => tracing::warn!(%error, "starting without Redis"),
        Ok(_) => {}
    }
    Ok(())
}

async fn listen_for_metrics(address: SocketAddr) -> Result<TcpListener> {
    let listener = TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot listen on {address} for TALLYMAN_METRICS_LISTEN"))?;
    let address = listener.local_addr()?;
    tracing::info!("metrics are at http://{address}/metrics");
    Ok(listener)
}

/// Cancelled by the first SIGINT or SIGTERM; the second ends the process at once.
pub fn shutdown_signal() -> CancellationToken {
    let token = CancellationToken::new();
    let cancelled = token.clone();
    #[expect(clippy::disallowed_methods, reason = "it lives as long as the process")]
    tokio::spawn(async move {
        let (Ok(mut interrupt), Ok(mut terminate)) = (
            signal(SignalKind::interrupt()),
            signal(SignalKind::terminate()),
        ) else {
            tracing::error!("signals cannot be received");
            return;
        };
        for first in [true, false] {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            if first {
                cancelled.cancel();
            } else {
                std::process::exit(130);
            }
        }
    });
    token
}
