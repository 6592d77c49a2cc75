//! Wires the service, and starts, supervises and stops it.

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use chrono::TimeDelta;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::admin::Admin;
use crate::auth::Auth;
use crate::budget::{Budget, Turns};
use crate::clock::Clock;
use crate::config::{Config, ConnectionLimits, Servers};
use crate::context::Context;
use crate::dashboard;
use crate::http;
use crate::http::state::{Handles, State};
use crate::http::{BATCH_BODY_MAX, Dispatch};
use crate::jobs::activity::Activity;
use crate::jobs::drain::DrainJob;
use crate::jobs::erase::Eraser;
use crate::jobs::flush::Flusher;
use crate::jobs::gc::GarbageCollector;
use crate::jobs::live::Live;
use crate::jobs::periods::PeriodsJob;
use crate::jobs::retention::{Retention, RetentionJob};
use crate::jobs::webhooks::{Deliverer, Webhooks};
use crate::jobs::{Supervisor, sync};
use crate::metrics::Metrics;
use crate::policies::Policies;
use crate::postgres::{Patience, Postgres};
use crate::redis::{self, Redis};
use crate::server::{Server, Tls, make_room};
use crate::usage::Usage;
use crate::usage::drain::Drainer;
use crate::usage::history::History;
use crate::usage::recovery::Recovery;
use crate::usage::verify::Verifier;

/// How long a stop waits for the last connections to Postgres.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// The most connections to the separate address of the metrics.
const METRICS_CONNECTIONS: usize = 64;

/// The most large batches of one caller that are processed at once: one is read while another is decided.
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
    pub webhooks: Deliverer,
    /// Ends periods on time.
    pub periods: PeriodsJob,
    /// Counts what was admitted while Redis was down.
    pub drain: DrainJob,
    /// Garbage-collects Redis.
    pub garbage_collector: GarbageCollector,
    /// Erases the data of deleted organizations.
    pub eraser: Eraser,
    /// Deletes what is older than its retention.
    pub retention: RetentionJob,
    /// Observes how much is called.
    pub activity: Activity,
    /// Mirrors API keys in Redis.
    auth: Auth,
    /// The certificate of the listener.
    tls: Option<Tls>,
    /// The context of all jobs.
    background: Context,
    config: Config,
}

impl App {
    /// Wires the service. Does not wait for Redis or Postgres, but fails if Redis is misconfigured for counting, or if the
    /// certificate cannot be used.
    pub async fn build(config: Config, servers: Servers, clock: Clock) -> Result<Self> {
        let tls = config.tls.enabled().map(Tls::load).transpose()?;
        let (ctx, background) = connect(&config, servers, clock).await?;
        let policies = Policies::new(ctx.clone());
        let recovery = Recovery::new(ctx.clone());
        let auth =
            Auth::new(ctx.clone(), config.jwt.enabled()).context("JWTs cannot be verified")?;
        load_from_postgres(&policies, &auth).await;
        let admin = |ctx: &Context, policies: &Policies, recovery: &Recovery, auth: &Auth| {
            let (policies, recovery) = (policies.clone(), recovery.clone());
            Admin::new(ctx.clone(), policies, recovery, auth.clone())
        };
        let jobs = || background.clone();
        let (job_policies, job_recovery) = (policies.on(jobs()), recovery.on(jobs()));
        let activity = Activity::new(ctx.clone());
        let live = Live::new(
            Usage::new(jobs(), job_policies.clone(), job_recovery.clone()),
            activity.on(jobs()),
            ctx.metrics.clone(),
            // The others are left to requests.
            config.connections.max / 2,
        );
        let state = State::new(Handles {
            admin: admin(&ctx, &policies, &recovery, &auth),
            usage: Usage::new(ctx.clone(), policies.clone(), recovery.clone()),
            verifier: Verifier::new(ctx.clone(), policies.clone()),
            webhooks: Webhooks::new(ctx.clone(), config.webhook_private_addresses),
            history: History::new(ctx.clone(), policies.clone()),
            activity,
            live,
            auth,
            ctx,
            metrics_apart: config.metrics_listen.is_some(),
            plugin_path: config.plugin_path.clone(),
            cors_origins: config.cors_origins.clone(),
            embed_origins: config.embed_origins.clone(),
            body_patience: config.connections.body,
            request_timeout: config.request_timeout,
            bodies: body_memory(config.body_memory),
            batches: Turns::new(BATCHES_EACH),
            draining: AtomicBool::new(false),
        });
        let (policies, recovery) = (job_policies, job_recovery);
        let retention = retention(&config)?;
        let auth = state.auth.on(jobs());
        let admin = admin(&background, &policies, &recovery, &auth);
        Ok(Self {
            drain: DrainJob::new(
                jobs(),
                Drainer::new(jobs(), policies.clone(), recovery.clone()),
            ),
            flusher: flusher(jobs(), &policies, recovery, &config),
            policies,
            webhooks: Deliverer::new(jobs(), config.webhook_private_addresses),
            periods: PeriodsJob::new(jobs(), admin, config.scheduler),
            garbage_collector: GarbageCollector::new(jobs()),
            eraser: Eraser::new(jobs()),
            retention: RetentionJob::new(jobs(), retention),
            activity: state.activity.on(jobs()),
            auth,
            tls,
            background,
            config,
            state,
        })
    }

    /// Every route: the HTTP API and the dashboard.
    pub fn service(&self) -> Dispatch {
        http::service(&self.state, dashboard::router(&self.state))
    }

    /// Serves until `stop`; then responds to the accepted requests, and stores all counts a last time.
    /// Stops with an error if a job panics.
    pub async fn serve(self, listener: TcpListener, stop: CancellationToken) -> Result<()> {
        let metrics_listener = match self.config.metrics_listen {
            Some(address) => Some(listen_for_metrics(address).await?),
            None => None,
        };
        // The jobs stop later than the server: the last requests need them.
        let (jobs, stop_jobs) = (Supervisor::default(), CancellationToken::new());
        self.spawn_jobs(&jobs, &stop_jobs);
        if let Some(tls) = self.tls.clone() {
            let hangup = signal(SignalKind::hangup()).context("cannot receive SIGHUP")?;
            jobs.spawn(tls.reload_at(hangup, stop_jobs.clone()));
        }
        if let Some(listener) = metrics_listener {
            self.spawn_metrics(&jobs, listener, stop_jobs.clone());
        }

        let limits = ConnectionLimits {
            max: make_room(
                self.config.connections.max,
                self.config.database_connections,
            ),
            ..self.config.connections.clone()
        };
        let metrics = self.background.metrics.clone();
        let server = Server::new(limits, metrics, self.tls.clone());
        let service = self.service();
        let stop_server = CancellationToken::new();
        let patience = self.config.shutdown;
        let mut serving = pin!(server.serve(listener, service, stop_server.clone(), patience));
        let mut crashed = tokio::select! {
            _ = &mut serving => false,
            () = stop.cancelled() => false,
            () = jobs.died() => true,
        };
        self.state.draining.store(true, Ordering::Release);
        server.drain();
        self.state.live.close();
        if !crashed && !self.config.drain.is_zero() {
            tracing::info!(seconds = self.config.drain.as_secs(), "draining");
            crashed = tokio::select! {
                _ = &mut serving => false,
                () = sleep(self.config.drain) => false,
                () = jobs.died() => true,
            };
        }
        stop_server.cancel();
        if !serving.await {
            tracing::warn!("some requests were not answered in time");
        }
        stop_jobs.cancel();
        if !jobs.ended(patience).await {
            tracing::warn!("the last counts were not stored in time; they stay in Redis");
        }
        // A server that hangs must not delay the stop.
        let closing = async {
            self.state.ctx.postgres.close().await;
            self.background.postgres.close().await;
        };
        let _ = timeout(CLOSE_TIMEOUT, closing).await;
        if crashed {
            bail!("a background job has panicked");
        }
        tracing::info!("stopped");
        Ok(())
    }

    fn spawn_jobs(&self, jobs: &Supervisor, stop: &CancellationToken) {
        let stop = || stop.clone();
        let ctx = || self.background.clone();
        jobs.spawn(self.flusher.clone().run(stop()));
        jobs.spawn(self.periods.clone().run(stop()));
        jobs.spawn(self.drain.clone().run(stop()));
        jobs.spawn(self.webhooks.clone().run(stop()));
        jobs.spawn(self.garbage_collector.clone().run(stop()));
        jobs.spawn(self.eraser.clone().run(stop()));
        jobs.spawn(self.retention.clone().run(stop()));
        jobs.spawn(self.activity.clone().run(stop()));
        jobs.spawn(self.state.live.clone().run(stop()));
        jobs.spawn(sync::policies(ctx(), self.policies.clone(), stop()));
        jobs.spawn(sync::api_keys(ctx(), self.auth.clone(), stop()));
    }

    fn spawn_metrics(&self, jobs: &Supervisor, listener: TcpListener, stop: CancellationToken) {
        let limits = ConnectionLimits {
            max: METRICS_CONNECTIONS,
            ..self.config.connections.clone()
        };
        let server = Server::new(limits, self.background.metrics.clone(), None);
        let service = http::metrics_router(self.state.clone()).into();
        jobs.spawn(async move {
            // A slow scrape must not delay a stop.
            server.serve(listener, service, stop, Duration::ZERO).await;
        });
    }
}

/// Memory for the bodies of all callers, and of each caller: at least the largest body.
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
    let patience = Patience {
        lock: config.request_timeout / 2,
        statement: config.request_timeout,
    };
    let (for_requests, for_jobs) = Postgres::watched(
        &servers.database_url,
        (config.database_connections - half, patience),
        // Jobs keep nobody waiting.
        (half, Patience::default()),
        metrics.clone(),
    )
    .context("TALLYMAN_DATABASE_URL cannot be used")?;
    let requests = Context {
        redis,
        postgres: for_requests,
        clock,
        metrics,
        late: TimeDelta::from_std(config.late)?,
        idempotency: TimeDelta::from_std(config.idempotency)?,
        on_outage: config.on_outage,
        pending_max: config.pending_max,
        defaults: Arc::new(config.defaults.clone()),
    };
    let jobs = Context {
        postgres: for_jobs,
        ..requests.clone()
    };
    check_redis(&requests.redis).await?;
    Ok((requests, jobs))
}

fn retention(config: &Config) -> Result<Retention> {
    let kept = |days: Option<Duration>| days.map(TimeDelta::from_std).transpose();
    Ok(Retention {
        hours: kept(config.hourly_retention)?,
        events: kept(config.event_retention)?,
    })
}

fn flusher(ctx: Context, policies: &Policies, recovery: Recovery, config: &Config) -> Flusher {
    // What is not stored yet survives a failure of Redis.
    let held = config.redis_wait_replicas > 0 || config.trust_redis_restart;
    let interval = config.flush_interval;
    Flusher::new(ctx, policies.clone(), recovery, interval, held)
}

fn redis_settings(config: &Config, url: String) -> Result<redis::Settings> {
    Ok(redis::Settings {
        url,
        prefix: config.redis_prefix.clone(),
        trust_restart: config.trust_redis_restart,
        wait_replicas: config.redis_wait_replicas,
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

/// Cancelled by the first SIGINT or SIGTERM; the second one ends the process at once.
pub fn shutdown_signal() -> CancellationToken {
    let token = CancellationToken::new();
    let cancelled = token.clone();
    #[expect(clippy::disallowed_methods, reason = "it lives as long as the process")]
    tokio::spawn(async move {
        let (Ok(mut interrupt), Ok(mut terminate)) = (
            signal(SignalKind::interrupt()),
            signal(SignalKind::terminate()),
        ) else {
            tracing::error!("cannot receive signals");
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
