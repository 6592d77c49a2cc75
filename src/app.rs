//! Wires everything, and starts, supervises and stops it.

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
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
use crate::http;
use crate::http::BATCH_BODY_MAX;
use crate::http::state::{Handles, State};
use crate::jobs::flush::{self, Flusher};
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
    /// What the HTTP faces share.
    pub state: State,
    /// Stores counts; tests drive it by hand.
    pub flusher: Flusher,
    /// Keeps policies fresh; tests drive it by hand.
    pub policies: Policies,
    /// Delivers events; tests drive it by hand.
    pub webhooks: Webhooks,
    /// Ends periods on time; tests drive it by hand.
    pub scheduler: PeriodsJob,
    /// Rids Redis of what is of no use any more; tests drive it by hand.
    pub garbage_collector: GarbageCollector,
    /// Mirrors keys.
    auth: Auth,
    /// Erases what deleted organizations have left.
    admin: Admin,
    /// What all of these have to do with Postgres.
    background: Postgres,
    metrics_listen: Option<SocketAddr>,
    connections: ConnectionLimits,
    database_connections: u32,
    shutdown: Duration,
}

impl App {
    /// Wires the service. Waits for no server, but refuses a Redis that counts cannot be trusted to.
    pub async fn build(config: Config, servers: Servers, clock: Clock) -> Result<Self> {
        let metrics = Metrics::new(env!("CARGO_PKG_VERSION"), clock.now());
        let (redis, postgres, background) = connect(&config, servers, &clock, &metrics).await?;
        let late = chrono::Duration::from_std(config.late)?;
        let policies = Policies::new(
            redis.clone(),
            postgres.clone(),
            clock.clone(),
            late,
            config.defaults.clone(),
            metrics.clone(),
        );
        let recovery = Recovery::new(redis.clone(), postgres.clone(), late, metrics.clone());
        let usage = Usage::new(
            redis.clone(),
            postgres.clone(),
            policies.clone(),
            recovery.clone(),
            clock.clone(),
            late,
            metrics.clone(),
        );
        let auth = Auth::new(
            redis.clone(),
            postgres.clone(),
            clock.clone(),
            metrics.clone(),
            config.jwt.clone(),
        )
        .context("JWTs cannot be verified")?;
        learn(&policies, &auth).await;
        let webhooks = Webhooks::new(
            postgres.clone(),
            clock.clone(),
            metrics.clone(),
            config.webhook_private_addresses,
        );
        let admin = Admin::new(
            redis.clone(),
            postgres.clone(),
            policies.clone(),
            recovery.clone(),
            auth.clone(),
            clock.clone(),
            metrics.clone(),
        );
        let state = State::new(Handles {
            auth,
            admin,
            usage,
            verifier: Verifier::new(
                redis.clone(),
                postgres.clone(),
                policies.clone(),
                clock.clone(),
                late,
            ),
            webhooks,
            history: History::new(postgres.clone(), policies.clone(), clock.clone(), late),
            redis,
            postgres,
            clock,
            metrics,
            metrics_apart: config.metrics_listen.is_some(),
            plugin_path: config.plugin_path.clone(),
            cors_origins: config.cors_origins.clone(),
            body_patience: config.connections.body,
            bodies: body_memory(config.body_memory),
            batches: Turns::new(BATCHES_EACH),
            draining: AtomicBool::new(false),
        });
        Self::with_workers(state, &config, &policies, &recovery, background)
    }

    /// The workers beside what answers requests: the same handles, with connections to Postgres of their own.
    fn with_workers(
        state: State,
        config: &Config,
        policies: &Policies,
        recovery: &Recovery,
        background: Postgres,
    ) -> Result<Self> {
        let (redis, clock, metrics) = (&state.redis, &state.clock, &state.metrics);
        let (policies, recovery) = (
            policies.on(background.clone()),
            recovery.on(background.clone()),
        );
        let auth = state.auth.on(background.clone());
        let admin = Admin::new(
            redis.clone(),
            background.clone(),
            policies.clone(),
            recovery.clone(),
            auth.clone(),
            clock.clone(),
            metrics.clone(),
        );
        let late = chrono::Duration::from_std(config.late)?;
        let remembered = chrono::Duration::from_std(config.idempotency)?;
        Ok(Self {
            flusher: Flusher::new(flush::Handles {
                redis: redis.clone(),
                postgres: background.clone(),
                policies: policies.clone(),
                recovery,
                clock: clock.clone(),
                metrics: metrics.clone(),
                interval: config.flush_interval,
                late,
            }),
            policies,
            webhooks: state.webhooks.on(background.clone()),
            scheduler: PeriodsJob::new(
                admin.clone(),
                config.scheduler,
                remembered,
                metrics.clone(),
            ),
            garbage_collector: GarbageCollector::new(
                redis.clone(),
                clock.clone(),
                late,
                metrics.clone(),
            ),
            auth,
            admin,
            background,
            metrics_listen: config.metrics_listen,
            connections: config.connections.clone(),
            database_connections: config.database_connections,
            shutdown: config.shutdown,
            state,
        })
    }

    /// Serves until `stop`; then answers what was accepted, and stores every count a last time.
    /// A worker that dies takes the service down.
    pub async fn serve(self, listener: TcpListener, stop: CancellationToken) -> Result<()> {
        let metrics = match self.metrics_listen {
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
                ..self.connections.clone()
            };
            let server = Server::new(limits, self.state.metrics.clone());
            supervise(Box::pin(async move {
                // A scrape that does not end must not delay a stop.
                server.serve(listener, router, stop, Duration::ZERO).await;
            }));
        }
        workers.close();

        let ending = CancellationToken::new();
        let limits = ConnectionLimits {
            max: make_room(self.connections.max, self.database_connections),
            ..self.connections
        };
        let server = Server::new(limits, self.state.metrics.clone());
        let router = http::router(self.state.clone());
        let mut answering = pin!(server.serve(listener, router, ending.clone(), self.shutdown));
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
        if tokio::time::timeout(self.shutdown, workers.wait())
            .await
            .is_err()
        {
            tracing::warn!("the last counts were not stored in time; they stay in Redis");
        }
        self.state.postgres.close().await;
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

/// Handles on both servers: on Redis, and on Postgres for requests and for workers. Half of the connections to Postgres
/// are for requests alone, whatever the workers wait for.
async fn connect(
    config: &Config,
    servers: Servers,
    clock: &Clock,
    metrics: &Metrics,
) -> Result<(Redis, Postgres, Postgres)> {
    let settings = redis_settings(config, servers.redis_url)?;
    let redis = Redis::new(settings, clock.clone(), metrics.clone())
        .context("TALLYMAN_REDIS_URL cannot be used")?;
    let half = config.database_connections / 2;
    let postgres = |connections| {
        Postgres::new(&servers.database_url, connections)
            .context("TALLYMAN_DATABASE_URL cannot be used")
    };
    let (postgres, background) = (
        postgres(config.database_connections - half)?,
        postgres(half)?,
    );
    refuse_what_is_unfit(&redis).await?;
    Ok((redis, postgres, background))
}

fn redis_settings(config: &Config, url: String) -> Result<redis::Settings> {
    Ok(redis::Settings {
        url,
        prefix: config.redis_prefix.clone(),
        trust_restart: config.trust_redis_restart,
        record_lifetime_ms: u64::try_from(config.idempotency.as_millis())?,
    })
}

/// Makes this instance's settings the defaults of the service, and learns what seals the mirror of the keys, if Postgres
/// can be reached; otherwise the sweeps do so.
async fn learn(policies: &Policies, auth: &Auth) {
    let learned = async {
        policies.learn().await?;
        auth.learn().await
    };
    if let Err(error) = learned.await {
        tracing::warn!(%error, "starting without Postgres");
    }
}

/// A Redis that counts cannot be trusted to.
async fn refuse_what_is_unfit(redis: &Redis) -> Result<()> {
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
