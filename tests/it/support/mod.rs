//! The harness: real servers, real HTTP, a clock that tests move.
//!
//! One Postgres serves the whole test process, with a database of its own for every [`World`]; every
//! world has its own redis-server, so that a test may flush, stop and roll it back. Workers are not
//! started: tests drive `flush_once` and `sweep_once`, or start them by [`World::serve`].

mod auth_server;
mod forgetful;
mod inspect;
mod issuer;
mod plugin_client;
mod postgres;
mod process;
mod receiver;
mod shortcuts;
mod slow;
mod snapshot;

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

pub use auth_server::AuthServer;
use chrono::{DateTime, Utc};
pub use inspect::*;
use redis::AsyncConnectionConfig;
use redis::aio::MultiplexedConnection;
use reqwest::header::{HeaderMap, HeaderValue};
use reqwest::{Method, StatusCode};
use serde_json::Value;
use sqlx::PgPool;
use tallyman::app::App;
use tallyman::clock::Clock;
use tallyman::config::{
    Config, ConnectionLimits, JwtConfig, LogConfig, Origins, PLUGIN_PATH, Servers,
};
use tallyman::domain::limit::MeterLimit;
use tallyman::domain::organization::{DefaultCalendar, Defaults};
use tallyman::domain::period::{ResetMode, ResetPeriod};
use tallyman::domain::quantity::Count;
use tallyman::http;
use tallyman::logging;
use tallyman::logging::Log;
use tallyman::metrics::Metrics;
use tallyman::postgres::{Postgres, api_keys};
use tallyman::server::Server;
use tallyman_servers::{RedisOptions, RedisServer};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

pub use forgetful::Forgetful;
pub use issuer::*;
pub use plugin_client::PluginClient;
pub use process::Process;
pub use receiver::{Example, Received, Receiver};
pub use shortcuts::{commit_reset, key_of};
pub use slow::{Slow, settings_of};
pub use snapshot::Held;

/// When every world begins: in the middle of a month, and in the future, so that no expiry that
/// Redis times itself can pass while a test runs.
pub const BEGINNING: &str = "2031-03-15T12:00:00Z";

/// Servers, a database and a clock, shared by any number of instances of the service.
pub struct World {
    pub clock: Clock,
    pub config: Config,
    pub database_url: String,
    /// An admin key.
    pub key: String,
    redis: Option<RedisServer>,
    redis_url: String,
    redis_options: RedisOptions,
    redis_dir: TempDir,
}

impl World {
    /// A world with an empty Redis and an empty database.
    pub async fn new() -> Self {
        Self::with(|_| {}).await
    }

    /// A world with other settings than the usual ones.
    pub async fn with(change: impl FnOnce(&mut Config)) -> Self {
        // Set RUST_LOG-like filters here when a test needs to be watched.
        static LOG: OnceLock<Log> = OnceLock::new();
        LOG.get_or_init(|| {
            logging::start(&LogConfig {
                filter: "off".parse().unwrap(),
                json: false,
            })
        });
        let database_url = postgres::create_database().await;
        let store = Postgres::new(&database_url, 1).unwrap();
        let key = api_keys::create_admin(&store, "tests").await.unwrap();
        store.close().await;
        let redis_dir = TempDir::new().unwrap();
        let redis_options = RedisOptions {
            append_only: false,
            extra: Vec::new(),
        };
        let redis = RedisServer::start(redis_dir.path(), &redis_options)
            .await
            .unwrap();
        let redis_url = redis.url();
        let mut config = usual_config();
        change(&mut config);
        let clock = Clock::manual(instant(BEGINNING));
        Self {
            clock,
            config,
            database_url,
            key,
            redis: Some(redis),
            redis_url,
            redis_options,
            redis_dir,
        }
    }

    /// An instance of the service, answering HTTP on a port of its own; its workers do not run.
    pub async fn instance(&self) -> Instance {
        self.instance_with(self.servers()).await
    }

    /// An instance whose servers are elsewhere, such as behind a proxy.
    pub async fn instance_with(&self, servers: Servers) -> Instance {
        self.start(servers, self.clock.clone()).await
    }

    /// An instance with a clock of its own, which may be wrong.
    pub async fn instance_at(&self, clock: Clock) -> Instance {
        self.start(self.servers(), clock).await
    }

    async fn start(&self, servers: Servers, clock: Clock) -> Instance {
        let app = App::build(self.config.clone(), servers, clock)
            .await
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = http::router(app.state.clone());
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let server = Server::new(
            self.config.connections.clone(),
            app.state.ctx.metrics.clone(),
        );
        tokio::spawn(async move {
            let grace = Duration::from_mins(1);
            server.serve(listener, router, stopped, grace).await;
        });
        Instance {
            app,
            http: Http::new(format!("http://{address}"), &self.key),
            _stop: stop.drop_guard(),
        }
    }

    /// Where the servers are.
    pub fn servers(&self) -> Servers {
        Servers {
            redis_url: self.redis_url.clone(),
            database_url: self.database_url.clone(),
        }
    }

    /// Metrics that nobody reads.
    pub fn metrics(&self) -> Metrics {
        Metrics::new("tests", self.clock.now())
    }

    /// A connection to the database, for looking behind the scenes.
    pub async fn postgres(&self) -> PgPool {
        PgPool::connect(&self.database_url).await.unwrap()
    }

    /// A connection to Redis, for looking behind the scenes and for sabotage.
    pub async fn redis(&self) -> MultiplexedConnection {
        // The library's half a second is less than a busy machine may need for `SAVE`.
        let patient = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(Duration::from_mins(1)))
            .set_response_timeout(Some(Duration::from_mins(1)));
        redis::Client::open(self.redis_url.as_str())
            .unwrap()
            .get_multiplexed_async_connection_with_config(&patient)
            .await
            .unwrap()
    }

    /// Runs one Redis command.
    pub async fn redis_command<T: redis::FromRedisValue>(&self, words: &[&str]) -> T {
        let mut command = redis::cmd(words[0]);
        command.arg(&words[1..]);
        command.query_async(&mut self.redis().await).await.unwrap()
    }

    /// Kills Redis as a power cut would.
    pub async fn kill_redis(&mut self) {
        self.redis.take().expect("Redis is running").kill().await;
    }

    /// Starts Redis again, with whatever is on its disk.
    pub async fn start_redis(&mut self) {
        self.redis = Some(
            RedisServer::start(self.redis_dir.path(), &self.redis_options)
                .await
                .unwrap(),
        );
    }

    /// Where Redis keeps `dump.rdb`, the copy that it loads when it starts.
    pub fn redis_data(&self) -> std::path::PathBuf {
        self.redis_dir.path().join("redis")
    }
}

/// One running instance of the service.
pub struct Instance {
    pub app: App,
    pub http: Http,
    _stop: tokio_util::sync::DropGuard,
}

impl Instance {
    /// What a flush by this instance did, whoever else has leases.
    pub async fn flush(&self) -> tallyman::jobs::flush::Report {
        self.app.flusher.flush_all().await.unwrap()
    }

    /// The running count of one meter, as the API tells it.
    pub async fn current(&self, organization: &str, meter: &str) -> u64 {
        let answer = self
            .http
            .get(&format!("/v1/organizations/{organization}/usage"))
            .await;
        assert_eq!(answer.status, 200, "{:?}", answer.body);
        answer.body["meters"][meter]["current"].as_u64().unwrap()
    }
}

/// A caller of the API.
#[derive(Clone)]
pub struct Http {
    client: reqwest::Client,
    base: String,
    key: Option<String>,
}

/// An answer, read to the end.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    /// Null where the body is no JSON.
    pub body: Value,
    pub text: String,
}

impl Answer {
    /// The stable code of a problem.
    pub fn code(&self) -> &str {
        self.body["code"].as_str().unwrap_or_default()
    }

    /// One header as text; empty where it is missing.
    pub fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .map_or("", |value| value.to_str().unwrap())
    }
}

impl Http {
    pub fn new(base: String, key: &str) -> Self {
        // As the program does when it starts.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder()
            .timeout(Duration::from_mins(1))
            // Nobody here speaks TLS, and reading the machine's certificates takes its time.
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

    /// The same caller with another key, or with none.
    pub fn with_key(&self, key: Option<&str>) -> Self {
        Self {
            key: key.map(str::to_owned),
            ..self.clone()
        }
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.send(Method::GET, path, &[], None).await
    }

    pub async fn post(&self, path: &str, body: Value) -> Answer {
        self.send(Method::POST, path, &[], Some(body)).await
    }

    /// A POST to whom may be gone; none if there is no answer.
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

    /// A POST under an idempotency key.
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

    /// Any request; a body is sent as JSON.
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
            // From bytes, so that tests can send what a header should not hold.
            request = request.header(*name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        if let Some(body) = body {
            request = request.json(&body);
        }
        Self::answer(request).await
    }

    /// A POST of any text, declared as anything.
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

    /// Any request with a text that is declared as JSON, whatever it is.
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

/// Runs `count` calls at once and gathers what they return.
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

fn usual_config() -> Config {
    let limit = MeterLimit {
        limit: Some(Count::try_from(1000).unwrap()),
        ..MeterLimit::default()
    };
    Config {
        listen: "127.0.0.1:0".parse().unwrap(),
        metrics_listen: None,
        cors_origins: Origins::Only(Vec::new()),
        jwt: JwtConfig::default(),
        plugin_path: PLUGIN_PATH.to_owned(),
        redis_prefix: "tm:".to_owned(),
        trust_redis_restart: false,
        database_connections: 10,
        flush_interval: Duration::from_secs(1),
        scheduler: true,
        idempotency: Duration::from_hours(24),
        late: Duration::from_hours(48),
        webhook_private_addresses: true,
        connections: ConnectionLimits {
            max: 256,
            header: Duration::from_mins(1),
            body: Duration::from_mins(1),
            idle: Duration::from_mins(1),
        },
        body_memory: 64 * 1024 * 1024,
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
    }
}
