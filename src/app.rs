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

use crate::access::Access;
use crate::admin::Admin;
use crate::api;
use crate::api::BATCH_BODY_MAX;
use crate::budget::{Budget, Turns};
use crate::clock::Clock;
use crate::config::{Config, ConnectionLimits, Servers};
use crate::counters::{self, Counters};
use crate::flusher::{self, Flusher};
use crate::forgetter::Forgetter;
use crate::history::History;
use crate::metering::Metering;
use crate::metrics::Metrics;
use crate::opening::Opener;
use crate::policies::Policies;
use crate::scheduler::Scheduler;
use crate::server::{Server, make_room};
use crate::state::{Handles, State};
use crate::store::Store;
use crate::verifier::Verifier;
use crate::webhooks::Webhooks;

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
    pub scheduler: Scheduler,
    /// Rids Redis of what is of no use any more; tests drive it by hand.
    pub forgetter: Forgetter,
    /// Mirrors keys.
    access: Access,
    /// Erases what deleted organizations have left.
    admin: Admin,
    /// What all of these have to do with Postgres.
    background: Store,
    metrics_listen: Option<SocketAddr>,
    connections: ConnectionLimits,
    database_connections: u32,
    shutdown: Duration,
}

impl App {
    /// Wires the service. Waits for no server, but refuses a Redis that counts cannot be trusted to.
    pub async fn build(config: Config, servers: Servers, clock: Clock) -> Result<Self> {
        let metrics = Metrics::new(env!("CARGO_PKG_VERSION"), clock.now());
        let (counters, store, background) = connect(&config, servers, &clock, &metrics).await?;
        let late = chrono::Duration::from_std(config.late)?;
        let policies = Policies::new(
            counters.clone(),
            store.clone(),
            clock.clone(),
            late,
            config.defaults.clone(),
            metrics.clone(),
        );
        let opener = Opener::new(counters.clone(), store.clone(), late, metrics.clone());
        let metering = Metering::new(
            counters.clone(),
            store.clone(),
            policies.clone(),
            opener.clone(),
            clock.clone(),
            late,
            metrics.clone(),
        );
        let access = Access::new(
            counters.clone(),
            store.clone(),
            clock.clone(),
            metrics.clone(),
            config.jwt.clone(),
        )
        .context("JWTs cannot be verified")?;
        learn(&policies, &access).await;
        let webhooks = Webhooks::new(
            store.clone(),
            clock.clone(),
            metrics.clone(),
            config.webhook_private_addresses,
        );
        let admin = Admin::new(
            counters.clone(),
            store.clone(),
            policies.clone(),
            opener.clone(),
            access.clone(),
            clock.clone(),
            metrics.clone(),
        );
        let state = State::new(Handles {
            access,
            admin,
            metering,
            verifier: Verifier::new(
                counters.clone(),
                store.clone(),
                policies.clone(),
                clock.clone(),
                late,
            ),
            webhooks,
            history: History::new(store.clone(), policies.clone(), clock.clone(), late),
            counters,
            store,
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
        Self::with_workers(state, &config, &policies, &opener, background)
    }

    /// The workers beside what answers requests: the same handles, with connections to Postgres of their own.
    fn with_workers(
        state: State,
        config: &Config,
        policies: &Policies,
        opener: &Opener,
        background: Store,
    ) -> Result<Self> {
        let (counters, clock, metrics) = (&state.counters, &state.clock, &state.metrics);
        let (policies, opener) = (
            policies.on(background.clone()),
            opener.on(background.clone()),
        );
        let access = state.access.on(background.clone());
        let admin = Admin::new(
            counters.clone(),
            background.clone(),
            policies.clone(),
            opener.clone(),
            access.clone(),
            clock.clone(),
            metrics.clone(),
        );
        let late = chrono::Duration::from_std(config.late)?;
        let remembered = chrono::Duration::from_std(config.idempotency)?;
        Ok(Self {
            flusher: Flusher::new(flusher::Handles {
                counters: counters.clone(),
                store: background.clone(),
                policies: policies.clone(),
                opener,
                clock: clock.clone(),
                metrics: metrics.clone(),
                interval: config.flush_interval,
                late,
            }),
            policies,
            webhooks: state.webhooks.on(background.clone()),
            scheduler: Scheduler::new(admin.clone(), config.scheduler, remembered, metrics.clone()),
            forgetter: Forgetter::new(counters.clone(), clock.clone(), late, metrics.clone()),
            access,
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
        let (access, stop_admitting) = (self.access.clone(), drained.clone());
        supervise(Box::pin(async move { access.run(stop_admitting).await }));
        let (admin, stop_erasing) = (self.admin.clone(), drained.clone());
        supervise(Box::pin(async move { admin.run(stop_erasing).await }));
        let (webhooks, stop_delivering) = (self.webhooks.clone(), drained.clone());
        supervise(Box::pin(async move { webhooks.run(stop_delivering).await }));
        let (forgetter, stop_forgetting) = (self.forgetter.clone(), drained.clone());
        supervise(Box::pin(
            async move { forgetter.run(stop_forgetting).await },
        ));
        if let Some(listener) = metrics {
            let (router, stop) = (api::metrics_router(self.state.clone()), drained.clone());
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
        let router = api::router(self.state.clone());
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
        self.state.store.close().await;
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
) -> Result<(Counters, Store, Store)> {
    let settings = redis_settings(config, servers.redis_url)?;
    let counters = Counters::new(settings, clock.clone(), metrics.clone())
        .context("TALLYMAN_REDIS_URL cannot be used")?;
    let half = config.database_connections / 2;
    let store = |connections| {
        Store::new(&servers.database_url, connections)
            .context("TALLYMAN_DATABASE_URL cannot be used")
    };
    let (store, background) = (store(config.database_connections - half)?, store(half)?);
    refuse_what_is_unfit(&counters).await?;
    Ok((counters, store, background))
}

fn redis_settings(config: &Config, url: String) -> Result<counters::Settings> {
    Ok(counters::Settings {
        url,
        prefix: config.redis_prefix.clone(),
        trust_restart: config.trust_redis_restart,
        record_lifetime_ms: u64::try_from(config.idempotency.as_millis())?,
    })
}

/// Makes this instance's settings the defaults of the service, and learns what seals the mirror of the keys, if Postgres
/// can be reached; otherwise the sweeps do so.
async fn learn(policies: &Policies, access: &Access) {
    let learned = async {
        policies.learn().await?;
        access.learn().await
    };
    if let Err(error) = learned.await {
        tracing::warn!(%error, "starting without Postgres");
    }
}

/// A Redis that counts cannot be trusted to.
async fn refuse_what_is_unfit(counters: &Counters) -> Result<()> {
    match counters.link().await {
        Err(error @ (counters::Error::Unfit(_) | counters::Error::Inconsistent(_))) => bail!(error),
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
