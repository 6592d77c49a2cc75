//! The test harness: real servers, real HTTP, and a clock that tests move.
//!
//! One Postgres serves the whole test process, with a database for each [`World`]; each world has
//! its own redis-server, so that a test may flush it, stop it and roll it back. Background jobs do not
//! run: tests call `flush_once` and `sweep_once`, or start the executable with [`Process::serve`].

mod auth_server;
mod browser;
mod events;
mod histories;
mod inspect;
mod issuer;
mod lossy_proxy;
mod plugin_client;
mod postgres;
mod process;
mod receiver;
mod shortcuts;
mod slow_restore;
mod snapshot;
mod store;
mod tally;

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

pub use auth_server::AuthServer;
pub use browser::{Browser, field};
use chrono::{DateTime, Utc};
pub use events::{EVENT_TIMEOUT, Events};
pub use histories::each_history;
pub use inspect::*;
use redis::aio::MultiplexedConnection;
use reqwest::header::{HeaderMap, HeaderValue};
use reqwest::{Method, StatusCode};
use serde_json::Value;
use sqlx::PgPool;
use tallyman::app::App;
use tallyman::clock::Clock;
use tallyman::config::{
    Config, ConnectionLimits, JwtConfig, LogConfig, Origins, PLUGIN_PATH, Servers, TlsConfig,
};
use tallyman::domain::limit::{MeterLimit, OnOutage};
use tallyman::domain::organization::{DefaultCalendar, Defaults};
use tallyman::domain::period::{ResetMode, ResetPeriod};
use tallyman::domain::quantity::Count;
use tallyman::logging;
use tallyman::logging::Log;
use tallyman::metrics::Metrics;
use tallyman::postgres::{Postgres, api_keys};
use tallyman::server::Server;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

pub use issuer::*;
pub use lossy_proxy::LossyProxy;
pub use plugin_client::PluginClient;
pub use process::Process;
pub use receiver::{Example, Received, Receiver};
pub use shortcuts::{commit_reset, key_of, made_up_key};
pub use slow_restore::{SlowRestore, redis_settings};
pub use snapshot::CounterFields;
pub use store::TestRedis;
pub use tally::{Load, pause};

/// Initial time of every world: in the middle of a month, and in the future, so that no expiry timed
/// by Redis passes while a test runs.
pub const BEGINNING: &str = "2031-03-15T12:00:00Z";

/// Redis, a database and a clock, shared by any number of instances of the service.
pub struct World {
    pub clock: Clock,
    pub config: Config,
    pub database_url: String,
    /// An admin key.
    pub key: String,
    pub redis: TestRedis,
    instances: Instances,
}

impl World {
    /// A world with an empty Redis, an empty database and the default test settings.
    pub async fn new() -> Self {
        Self::with(|_| {}).await
    }

    /// A world with changed settings.
    pub async fn with(change: impl FnOnce(&mut Config)) -> Self {
        // To see the service's log in a test, change this filter.
        static LOG: OnceLock<Log> = OnceLock::new();
        LOG.get_or_init(|| {
            logging::start(&LogConfig {
                filter: "off".parse().unwrap(),
                json: false,
            })
        });
        let (database_url, redis) = tokio::join!(postgres::create_database(), TestRedis::start());
        let store = Postgres::new(&database_url, 1).unwrap();
        let key = api_keys::create_admin(&store, "tests").await.unwrap();
        store.close().await;
        let mut config = default_config();
        change(&mut config);
        let clock = Clock::manual(instant(BEGINNING));
        Self {
            clock,
            config,
            database_url,
            key,
            redis,
            instances: Instances::default(),
        }
    }

    /// An instance of the service with its own HTTP port; its background jobs do not run.
    pub async fn instance(&self) -> Instance {
        self.instance_with(self.servers()).await
    }

    /// An instance with other server addresses, such as those of a proxy.
    pub async fn instance_with(&self, servers: Servers) -> Instance {
        self.start(servers, self.clock.clone()).await
    }

    /// An instance with its own clock, which may be wrong.
    pub async fn instance_at(&self, clock: Clock) -> Instance {
        self.start(self.servers(), clock).await
    }

    async fn start(&self, servers: Servers, clock: Clock) -> Instance {
        let building = App::build(self.config.clone(), servers, clock);
        let app = Box::pin(building).await.unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let service = app.service();
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        self.instances.add(&app, &stop);
        let server = Server::new(
            self.config.connections.clone(),
            app.state.ctx.metrics.clone(),
            None,
        );
        tokio::spawn(async move {
            let grace = Duration::from_mins(1);
            server.serve(listener, service, stopped, grace).await;
        });
        Instance {
            app: Box::new(app),
            http: Http::new(format!("http://{address}"), &self.key),
            _stop: stop.drop_guard(),
        }
    }

    /// Addresses of Redis and Postgres.
    pub fn servers(&self) -> Servers {
        Servers {
            redis_url: self.redis.url(),
            database_url: self.database_url.clone(),
        }
    }

    /// Metrics that are never exported.
    pub fn metrics(&self) -> Metrics {
        Metrics::new("tests", self.clock.now())
    }

    /// A pool for direct access to the database.
    pub async fn postgres(&self) -> PgPool {
        PgPool::connect(&self.database_url).await.unwrap()
    }

    /// A connection to the Redis that has a key.
    pub async fn redis_for(&self, key: &str) -> MultiplexedConnection {
        self.redis.connection_for(key).await
    }

    /// Executes one Redis command.
    pub async fn redis_command<T: redis::FromRedisValue>(&self, words: &[&str]) -> T {
        self.redis.command(words).await
    }

    /// Kills Redis without saving.
    pub async fn kill_redis(&mut self) {
        self.redis.kill().await;
    }

    /// Starts Redis again with the data on its disk.
    pub async fn start_redis(&mut self) {
        self.redis.restart().await;
        self.instances.until_up("redis").await;
    }
}

/// A running instance of the service.
pub struct Instance {
    pub app: Box<App>,
    pub http: Http,
    _stop: tokio_util::sync::DropGuard,
}

impl Instance {
    /// Flushes all shards, regardless of other instances' leases.
    pub async fn flush(&self) -> tallyman::jobs::flush::Report {
        self.app.flusher.flush_all().await.unwrap()
    }

    /// The current count of a meter, read over the API.
    pub async fn current(&self, organization: &str, meter: &str) -> u64 {
        let answer = self
            .http
            .get(&format!("/v1/organizations/{organization}/usage"))
            .await;
        assert_eq!(answer.status, 200, "{:?}", answer.body);
        answer.body["meters"][meter]["current"].as_u64().unwrap()
    }
}

/// An HTTP client of the service.
#[derive(Clone)]
pub struct Http {
    client: reqwest::Client,
    base: String,
    key: Option<String>,
}

/// A response, read to the end.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    /// Null if the body is not JSON.
    pub body: Value,
    pub text: String,
}

impl Answer {
    /// The `code` of a problem.
    pub fn code(&self) -> &str {
        self.body["code"].as_str().unwrap_or_default()
    }

    /// A header as text; empty if it is missing.
    pub fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .map_or("", |value| value.to_str().unwrap())
    }
}

impl Http {
    pub fn new(base: String, key: &str) -> Self {
        // As the executable does at start.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder()
            .timeout(Duration::from_mins(1))
            // No test uses TLS, and loading the system's certificates is slow.
            .tls_certs_only([])
            .build()
            .unwrap();
        Self {
            client,
            base,
            key: Some(key.to_owned()),
        }
    }

    /// The URL of the service.
    pub fn base(&self) -> &str {
        &self.base
    }

    /// The same client with another key, or with none.
    pub fn with_key(&self, key: Option<&str>) -> Self {
        Self {
            key: key.map(str::to_owned),
            ..self.clone()
        }
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.send(Method::GET, path, &[], None).await
    }

    /// A GET whose response is read while it arrives.
    pub async fn open(&self, path: &str) -> reqwest::Response {
        let request = self.client.get(format!("{}{path}", self.base));
        let key = self.key.as_deref().unwrap_or_default();
        request.bearer_auth(key).send().await.unwrap()
    }

    pub async fn post(&self, path: &str, body: Value) -> Answer {
        self.send(Method::POST, path, &[], Some(body)).await
    }

    /// A POST to a service that may be down; `None` without a response.
    pub async fn try_post(&self, path: &str, body: Value) -> Option<Answer> {
        let request = self.client.post(format!("{}{path}", self.base)).json(&body);
        let request = request.bearer_auth(self.key.as_deref().unwrap_or_default());
        let response = request.send().await.ok()?;
        let (status, headers) = (response.status(), response.headers().clone());
        let text = response.text().await.ok()?;
        Some(Answer {
            status,
            headers,
            body: serde_json::from_str(&text).unwrap_or(Value::Null),
            text,
        })
    }

    /// A POST with an idempotency key.
    pub async fn post_once(&self, path: &str, key: &str, body: Value) -> Answer {
        self.send(Method::POST, path, &[("idempotency-key", key)], Some(body))
            .await
    }

    pub async fn put(&self, path: &str, body: Value) -> Answer {
        self.send(Method::PUT, path, &[], Some(body)).await
    }

    pub async fn patch(&self, path: &str, body: Value) -> Answer {
        self.send(Method::PATCH, path, &[], Some(body)).await
    }

    pub async fn delete(&self, path: &str) -> Answer {
        self.send(Method::DELETE, path, &[], None).await
    }

    /// A request; the body is sent as JSON.
    pub async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<Value>,
    ) -> Answer {
        let mut request = self.client.request(method, format!("{}{path}", self.base));
        if let Some(key) = &self.key {
            request = request.bearer_auth(key);
        }
        for (name, value) in headers {
            // From bytes, so that tests can send invalid header values.
            request = request.header(*name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        if let Some(body) = body {
            request = request.json(&body);
        }
        Self::answer(request).await
    }

    /// A POST of any text with any content type.
    pub async fn post_raw(&self, path: &str, declared: Option<&str>, text: &str) -> Answer {
        let mut request = self.client.post(format!("{}{path}", self.base));
        if let Some(key) = &self.key {
            request = request.bearer_auth(key);
        }
        if let Some(declared) = declared {
            request = request.header("content-type", declared);
        }
        Self::answer(request.body(text.to_owned())).await
    }

    /// A request with any text as its body, declared as JSON.
    pub async fn send_text(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        text: &str,
    ) -> Answer {
        let mut request = self.client.request(method, format!("{}{path}", self.base));
        if let Some(key) = &self.key {
            request = request.bearer_auth(key);
        }
        request = request.header("content-type", "application/json");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        Self::answer(request.body(text.to_owned())).await
    }

    async fn answer(request: reqwest::RequestBuilder) -> Answer {
        let response = request.send().await.unwrap();
        let (status, headers) = (response.status(), response.headers().clone());
        let text = response.text().await.unwrap();
        Answer {
            status,
            headers,
            body: serde_json::from_str(&text).unwrap_or(Value::Null),
            text,
        }
    }
}

/// Runs `count` calls concurrently, starting them together, and collects their results.
pub async fn at_once<F, T>(count: usize, call: impl Fn(usize) -> F) -> Vec<T>
where
    F: Future<Output = T> + Send + 'static,
    T: Send + 'static,
{
    let barrier = Arc::new(tokio::sync::Barrier::new(count));
    let calls: Vec<_> = (0..count)
        .map(|number| {
            let (barrier, call) = (Arc::clone(&barrier), call(number));
            tokio::spawn(async move {
                barrier.wait().await;
                call.await
            })
        })
        .collect();
    let mut results = Vec::with_capacity(count);
    for call in calls {
        results.push(call.await.unwrap());
    }
    results
}

pub fn instant(text: &str) -> DateTime<Utc> {
    text.parse().unwrap()
}

fn default_config() -> Config {
    let limit = MeterLimit {
        limit: Some(Count::try_from(1000).unwrap()),
        ..MeterLimit::default()
    };
    Config {
        listen: "127.0.0.1:0".parse().unwrap(),
        metrics_listen: None,
        tls: TlsConfig::default(),
        cors_origins: Origins::Only(Vec::new()),
        embed_origins: Origins::Only(Vec::new()),
        jwt: JwtConfig::default(),
        plugin_path: PLUGIN_PATH.to_owned(),
        redis_prefix: "tm:".to_owned(),
        trust_redis_restart: false,
        redis_wait_replicas: 0,
        database_connections: 10,
        flush_interval: Duration::from_secs(1),
        scheduler: true,
        on_outage: OnOutage::Deny,
        pending_max: 1000,
        idempotency: Duration::from_hours(24),
        late: Duration::from_hours(48),
        hourly_retention: None,
        event_retention: None,
        webhook_private_addresses: true,
        connections: ConnectionLimits {
            max: 256,
            header: Duration::from_mins(1),
            body: Duration::from_mins(1),
            idle: Duration::from_mins(1),
        },
        body_memory: 64 * 1024 * 1024,
        request_timeout: Duration::from_secs(5),
        drain: Duration::ZERO,
        shutdown: Duration::from_secs(20),
        workers: 1,
        defaults: Defaults {
            plan_id: "free".parse().unwrap(),
            limits: BTreeMap::from([("api".parse().unwrap(), limit)]),
            calendar: DefaultCalendar {
                reset_mode: ResetMode::Lazy,
                reset_period: ResetPeriod::Monthly,
                time_zone: chrono_tz::Tz::UTC,
            },
        },
        log: LogConfig {
            filter: "off".parse().unwrap(),
            json: false,
        },
        #[cfg(debug_assertions)]
        clock_offset_seconds: 0,
    }
}
