//! The settings: every one a flag and a `TALLYMAN_…` variable, listed by `--help`.
//!
//! The only reader of the environment. Everything missing or bad is reported together, because
//! somebody who deploys wants to hear it all at once.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;
use std::time::Duration;

use clap::Args;
use reqwest::Url;

use crate::domain::ids::{MeterId, PlanId};
use crate::domain::period::{ResetMode, ResetPeriod, parse_time_zone};
use crate::domain::policy::{DefaultCalendar, Defaults, Enforcement, MeterLimit};
use crate::domain::quantity::Count;

/// Where the Better Auth plugin's client expects its endpoints.
pub const PLUGIN_PATH: &str = "/api/auth/usage-tracking";

/// The settings as they are given, unchecked.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Settings")]
pub struct Settings {
    #[command(flatten)]
    #[expect(missing_docs, reason = "clap would print it as the help of the group")]
    pub listen: ListenSettings,

    /// Address to tell `/metrics` on, to anybody who reaches it; without one, it is told beside the API, to
    /// keys with the scope `read`
    #[arg(
        long,
        env = "TALLYMAN_METRICS_LISTEN",
        value_name = "ADDRESS",
        default_value = ""
    )]
    pub metrics_listen: String,

    /// Origins whose pages may call the API from a browser, separated by commas, or `*` for any
    #[arg(
        long,
        env = "TALLYMAN_CORS_ORIGINS",
        value_name = "ORIGINS",
        default_value = ""
    )]
    pub cors_origins: String,

    #[command(flatten)]
    #[expect(missing_docs, reason = "clap would print it as the help of the group")]
    pub jwt: JwtSettings,

    /// Path below which the Better Auth plugin's endpoints are
    #[arg(
        long,
        env = "TALLYMAN_PLUGIN_PATH",
        value_name = "PATH",
        default_value = PLUGIN_PATH
    )]
    pub plugin_path: String,

    /// What stands in front of every key in Redis, so that several services can share one
    #[arg(
        long,
        env = "TALLYMAN_REDIS_PREFIX",
        value_name = "TEXT",
        default_value = "tm:"
    )]
    pub redis_prefix: String,

    /// After a restart of Redis: `verify` takes every count up again from Postgres; `trust` believes that Redis
    /// has lost nothing, which only `appendfsync always` promises
    #[arg(
        long,
        env = "TALLYMAN_REDIS_RESTART",
        value_name = "verify|trust",
        default_value = "verify"
    )]
    pub redis_restart: String,

    /// Most connections to Postgres, half of which are for requests alone
    #[arg(
        long,
        env = "TALLYMAN_DATABASE_CONNECTIONS",
        value_name = "N",
        default_value = "10"
    )]
    pub database_connections: String,

    /// How often counts are stored in Postgres, milliseconds; less often while much changes
    #[arg(
        long,
        env = "TALLYMAN_FLUSH_INTERVAL_MS",
        value_name = "MS",
        default_value = "1000"
    )]
    pub flush_interval_ms: String,

    /// Whether this instance ends periods on time in scheduled mode: on or off; off is for those who call POST
    /// /v1/reset-expired
    #[arg(
        long,
        env = "TALLYMAN_SCHEDULER",
        value_name = "SWITCH",
        default_value = "on"
    )]
    pub scheduler: String,

    /// How long an idempotency key is remembered, hours
    #[arg(
        long,
        env = "TALLYMAN_IDEMPOTENCY_HOURS",
        value_name = "HOURS",
        default_value = "24"
    )]
    pub idempotency_hours: String,

    /// How long after its end a period still takes late events, hours
    #[arg(
        long,
        env = "TALLYMAN_LATE_HOURS",
        value_name = "HOURS",
        default_value = "48"
    )]
    pub late_hours: String,

    /// Whether webhooks may lead to addresses of this machine and of private networks: `refuse` or `allow`;
    /// `tallyman dev` always allows it
    #[arg(
        long,
        env = "TALLYMAN_WEBHOOK_PRIVATE_ADDRESSES",
        value_name = "refuse|allow",
        default_value = "refuse"
    )]
    pub webhook_private_addresses: String,

    #[command(flatten)]
    #[expect(missing_docs, reason = "clap would print it as the help of the group")]
    pub bounds: BoundSettings,

    /// How long a stop may take to answer what was accepted, seconds
    #[arg(
        long,
        env = "TALLYMAN_SHUTDOWN_SECONDS",
        value_name = "SECONDS",
        default_value = "20"
    )]
    pub shutdown_seconds: String,

    /// Threads that answer requests; auto is half as many as there are cores
    #[arg(
        long,
        env = "TALLYMAN_WORKERS",
        value_name = "N|auto",
        default_value = "auto"
    )]
    pub workers: String,

    /// Plan of an organization that has none
    #[arg(
        long,
        env = "TALLYMAN_DEFAULT_PLAN",
        value_name = "PLAN",
        default_value = "free"
    )]
    pub default_plan: String,

    /// Meter that the default plan limits
    #[arg(
        long,
        env = "TALLYMAN_DEFAULT_METER",
        value_name = "METER",
        default_value = "api"
    )]
    pub default_meter: String,

    /// Units that the default plan includes in a period, or `unlimited`
    #[arg(
        long,
        env = "TALLYMAN_DEFAULT_LIMIT",
        value_name = "UNITS",
        default_value = "1000"
    )]
    pub default_limit: String,

    /// Whether the default plan refuses what does not fit (`hard`) or lets it become overage (`soft`)
    #[arg(
        long,
        env = "TALLYMAN_DEFAULT_ENFORCEMENT",
        value_name = "hard|soft",
        default_value = "hard"
    )]
    pub default_enforcement: String,

    /// Who opens a new period: `lazy`, `scheduled` or `manual`
    #[arg(
        long,
        env = "TALLYMAN_DEFAULT_RESET_MODE",
        value_name = "MODE",
        default_value = "lazy"
    )]
    pub default_reset_mode: String,

    /// How long a period is: `hourly`, `daily`, `weekly`, `monthly` or `yearly`
    #[arg(
        long,
        env = "TALLYMAN_DEFAULT_RESET_PERIOD",
        value_name = "PERIOD",
        default_value = "monthly"
    )]
    pub default_reset_period: String,

    /// Where midnight is, an IANA time zone
    #[arg(
        long,
        env = "TALLYMAN_DEFAULT_TIME_ZONE",
        value_name = "ZONE",
        default_value = "UTC"
    )]
    pub default_time_zone: String,

    /// What to log, in the syntax of tracing's `EnvFilter`
    #[arg(
        long,
        env = "TALLYMAN_LOG",
        value_name = "FILTER",
        default_value = "info,sqlx=warn"
    )]
    pub log: String,

    /// How to log: `text` or `json`
    #[arg(
        long,
        env = "TALLYMAN_LOG_FORMAT",
        value_name = "FORMAT",
        default_value = "text"
    )]
    pub log_format: String,
}

/// Where the service is, unchecked; whoever asks it needs nothing else.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Settings")]
pub struct ListenSettings {
    /// Address to listen on
    #[arg(
        long,
        env = "TALLYMAN_LISTEN",
        value_name = "ADDRESS",
        default_value = "127.0.0.1:7400"
    )]
    pub listen: String,
}

/// What callers may take up, unchecked.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Settings")]
pub struct BoundSettings {
    /// Most connections at once, as far as the limit on open files allows; beyond, the one that has been idle
    /// longest is closed for a new one, and new ones are refused where none is idle
    #[arg(
        long,
        env = "TALLYMAN_CONNECTIONS",
        value_name = "N",
        default_value = "2048"
    )]
    pub connections: String,

    /// How long the head of a request may take to arrive, on a new connection from its beginning, seconds
    #[arg(
        long,
        env = "TALLYMAN_HEADER_SECONDS",
        value_name = "SECONDS",
        default_value = "10"
    )]
    pub header_seconds: String,

    /// How long the body of a request may take to arrive, and an answer to be taken, seconds
    #[arg(
        long,
        env = "TALLYMAN_BODY_SECONDS",
        value_name = "SECONDS",
        default_value = "30"
    )]
    pub body_seconds: String,

    /// How long a connection may wait for its next request, seconds; longer than whatever stands in front of the
    /// service keeps idle connections
    #[arg(
        long,
        env = "TALLYMAN_IDLE_SECONDS",
        value_name = "SECONDS",
        default_value = "75"
    )]
    pub idle_seconds: String,

    /// Most memory for the bodies of requests that are under way, MiB; those of one key get a quarter, and 8 at least
    #[arg(
        long,
        env = "TALLYMAN_BODY_MEMORY_MIB",
        value_name = "MIB",
        default_value = "64"
    )]
    pub body_memory_mib: String,
}

/// Whose JWTs are accepted beside API keys, unchecked.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Settings")]
pub struct JwtSettings {
    /// Where the auth server publishes the keys that it signs JWTs with, `http://` or `https://`; without it, no
    /// JWT is accepted
    #[arg(
        long,
        env = "TALLYMAN_JWT_JWKS_URL",
        value_name = "URL",
        default_value = ""
    )]
    pub jwt_jwks_url: String,

    /// The `iss` that a JWT must have
    #[arg(
        long,
        env = "TALLYMAN_JWT_ISSUER",
        value_name = "TEXT",
        default_value = ""
    )]
    pub jwt_issuer: String,

    /// The `aud` that a JWT must have, or have among others
    #[arg(
        long,
        env = "TALLYMAN_JWT_AUDIENCE",
        value_name = "TEXT",
        default_value = ""
    )]
    pub jwt_audience: String,

    /// The claim of a JWT that names the organization that it reads
    #[arg(
        long,
        env = "TALLYMAN_JWT_ORGANIZATION_CLAIM",
        value_name = "NAME",
        default_value = "organizationId"
    )]
    pub jwt_organization_claim: String,

    /// The claim of a JWT that names the user's platform roles: a list, or a text with commas
    #[arg(
        long,
        env = "TALLYMAN_JWT_ROLE_CLAIM",
        value_name = "NAME",
        default_value = "role"
    )]
    pub jwt_role_claim: String,

    /// Platform roles whose users may reset and limit any organization by the Better Auth plugin's endpoints,
    /// separated by commas
    #[arg(
        long,
        env = "TALLYMAN_JWT_ADMIN_ROLES",
        value_name = "ROLES",
        default_value = ""
    )]
    pub jwt_admin_roles: String,
}

/// Where the servers are, unchecked; `tallyman dev` brings its own.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Servers")]
pub struct ServerSettings {
    /// Redis 7 or newer: `redis://`, `rediss://` or `redis+unix://`
    #[arg(
        long,
        env = "TALLYMAN_REDIS_URL",
        value_name = "URL",
        hide_env_values = true
    )]
    pub redis_url: Option<String>,

    #[command(flatten)]
    #[expect(missing_docs, reason = "clap would print it as the help of the group")]
    pub database: DatabaseSettings,
}

/// Where Postgres is, unchecked.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Servers")]
pub struct DatabaseSettings {
    /// Postgres 15 or newer: `postgres://user:password@host/database`
    #[arg(
        long,
        env = "TALLYMAN_DATABASE_URL",
        value_name = "URL",
        global = true,
        hide_env_values = true
    )]
    pub database_url: Option<String>,
}

/// The settings, checked.
#[derive(Debug, Clone)]
pub struct Config {
    /// Address to listen on.
    pub listen: SocketAddr,
    /// Address to tell the metrics on, if not beside the API.
    pub metrics_listen: Option<SocketAddr>,
    /// Whose pages may call from a browser.
    pub cors_origins: Origins,
    /// Whose JWTs are accepted; none if nobody's.
    pub jwt: Option<JwtConfig>,
    /// Below which the Better Auth plugin's endpoints are.
    pub plugin_path: String,
    /// In front of every key in Redis.
    pub redis_prefix: String,
    /// Whether a restarted Redis is trusted to hold everything that it acknowledged.
    pub trust_redis_restart: bool,
    /// Most connections to Postgres, half of them for requests alone.
    pub database_connections: u32,
    /// Between two flushes.
    pub flush_interval: Duration,
    /// Whether periods are ended on time in scheduled mode.
    pub scheduler: bool,
    /// How long an idempotency key is remembered.
    pub idempotency: Duration,
    /// How long after its end a period takes late events.
    pub late: Duration,
    /// Whether webhooks may lead to addresses that are not public.
    pub webhook_private_addresses: bool,
    /// What connections may take up.
    pub connections: ConnectionLimits,
    /// Most bytes of bodies that are under way.
    pub body_memory: u64,
    /// How long a stop may take.
    pub shutdown: Duration,
    /// Threads that answer requests.
    pub workers: usize,
    /// What applies where nobody says otherwise.
    pub defaults: Defaults,
    /// How to log.
    pub log: LogConfig,
}

/// What connections may take up.
#[derive(Debug, Clone)]
pub struct ConnectionLimits {
    /// How many there are at once.
    pub max: usize,
    /// How long a head may take to arrive.
    pub header: Duration,
    /// How long a body may take to arrive, and an answer to be taken.
    pub body: Duration,
    /// How long a connection may wait for its next request.
    pub idle: Duration,
}

/// Whose JWTs are accepted, and how they are read.
#[derive(Debug, Clone)]
pub struct JwtConfig {
    /// Where the keys are.
    pub jwks_url: String,
    /// The `iss` of every one.
    pub issuer: String,
    /// In the `aud` of every one.
    pub audience: String,
    /// The claim that names the organization.
    pub organization_claim: String,
    /// The claim that names the platform roles.
    pub role_claim: String,
    /// The platform roles of those who may change things.
    pub admin_roles: Vec<String>,
}

/// Whose pages may call from a browser.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origins {
    /// Anybody's.
    Any,
    /// These, each spelled as browsers send it; nobody's if there are none.
    Only(Vec<String>),
}

impl FromStr for Origins {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        if text.trim() == "*" {
            return Ok(Self::Any);
        }
        let origins = words(text);
        if origins.iter().all(|origin| is_origin(origin)) {
            Ok(Self::Only(origins))
        } else {
            Err(())
        }
    }
}

/// Whether a browser could send this: `scheme://host` or `scheme://host:port`, in lower case.
fn is_origin(text: &str) -> bool {
    let fit = |c: u8| c.is_ascii_graphic() && !c.is_ascii_uppercase() && !b"/*?#@".contains(&c);
    text.split_once("://").is_some_and(|(scheme, host)| {
        !scheme.is_empty() && !host.is_empty() && scheme.bytes().chain(host.bytes()).all(fit)
    })
}

/// How the paths of the API begin, so that the plugin's cannot.
pub const API_PATHS: [&str; 6] = ["docs", "healthz", "metrics", "openapi.json", "readyz", "v1"];

/// Whether it is a path of one or more parts, none of them empty, nor one that a client would resolve.
fn is_path(text: &str) -> bool {
    let fit = |part: &str| {
        let mut bytes = part.bytes();
        !matches!(part, "" | "." | "..")
            && bytes.all(|c| c.is_ascii_alphanumeric() || b"-._~".contains(&c))
    };
    text.strip_prefix('/')
        .is_some_and(|rest| rest.split('/').all(fit))
}

/// How to log.
#[derive(Debug, Clone)]
pub struct LogConfig {
    /// In the syntax of tracing's `EnvFilter`.
    pub filter: String,
    /// Whether lines are JSON.
    pub json: bool,
}

/// Where the servers are, checked. Printing it for debugging hides the URLs, which hold passwords.
#[derive(Clone)]
pub struct Servers {
    /// Where Redis is.
    pub redis_url: String,
    /// Where Postgres is.
    pub database_url: String,
}

impl fmt::Debug for Servers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Servers { … }")
    }
}

/// Everything that is missing or bad, one line each.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct InvalidSettings(Vec<String>);

impl Settings {
    /// Checks the settings that need no servers.
    pub fn check(&self) -> Result<Config, InvalidSettings> {
        let mut problems = Problems::default();
        let config = self.parse(&mut problems);
        problems.into_result(config)
    }

    /// Checks these and the servers' together.
    pub fn check_with(
        &self,
        servers: &ServerSettings,
    ) -> Result<(Config, Servers), InvalidSettings> {
        let mut problems = Problems::default();
        let config = self.parse(&mut problems);
        let servers = servers.parse(&mut problems);
        problems.into_result(config.zip(servers))
    }

    fn parse(&self, problems: &mut Problems) -> Option<Config> {
        let listen = self.listen.parse(problems);
        let metrics_listen = self.metrics_listen(problems, listen);
        let cors_origins = problems.parsed(
            "cors-origins",
            &self.cors_origins,
            "* or origins such as https://app.example.com, separated by commas",
        );
        let jwt = self.jwt.parse(problems);
        let trust_redis_restart = problems.chosen(
            "redis-restart",
            &self.redis_restart,
            &[("verify", false), ("trust", true)],
        );
        let database_connections =
            problems.number("database-connections", &self.database_connections, 2, 1000);
        let flush_interval =
            problems.number("flush-interval-ms", &self.flush_interval_ms, 10, 3_600_000);
        let scheduler = problems.chosen(
            "scheduler",
            &self.scheduler,
            &[("on", true), ("off", false)],
        );
        let idempotency = problems.number("idempotency-hours", &self.idempotency_hours, 1, 24 * 31);
        let late = problems.number("late-hours", &self.late_hours, 0, 24 * 31);
        let webhook_private_addresses = problems.chosen(
            "webhook-private-addresses",
            &self.webhook_private_addresses,
            &[("refuse", false), ("allow", true)],
        );
        let bounds = self.bounds.parse(problems);
        let shutdown = problems.number("shutdown-seconds", &self.shutdown_seconds, 1, 3600);
        let workers = match self.workers.as_str() {
            // Waking another core costs more than it brings until there is work for all, and Redis needs one too.
            "auto" => {
                Some(std::thread::available_parallelism().map_or(1, |it| it.get().div_ceil(2)))
            }
            number => problems
                .number("workers", number, 1, 1024)
                .and_then(|number| usize::try_from(number).ok()),
        };
        let log_json = problems.chosen(
            "log-format",
            &self.log_format,
            &[("text", false), ("json", true)],
        );
        self.check_texts(problems);
        let defaults = self.defaults(problems);
        let (connections, body_memory) = bounds?;
        Some(Config {
            listen: listen?,
            metrics_listen,
            cors_origins: cors_origins?,
            jwt,
            plugin_path: self.plugin_path.clone(),
            redis_prefix: self.redis_prefix.clone(),
            trust_redis_restart: trust_redis_restart?,
            database_connections: u32::try_from(database_connections?).ok()?,
            flush_interval: Duration::from_millis(flush_interval?),
            scheduler: scheduler?,
            idempotency: Duration::from_secs(idempotency?.checked_mul(3600)?),
            late: Duration::from_secs(late?.checked_mul(3600)?),
            webhook_private_addresses: webhook_private_addresses?,
            connections,
            body_memory,
            shutdown: Duration::from_secs(shutdown?),
            workers: workers?,
            defaults: defaults?,
            log: LogConfig {
                filter: self.log.clone(),
                json: log_json?,
            },
        })
    }

    /// None where they are told beside the API, or the address is wrong.
    fn metrics_listen(
        &self,
        problems: &mut Problems,
        listen: Option<SocketAddr>,
    ) -> Option<SocketAddr> {
        let (flag, text) = ("metrics-listen", self.metrics_listen.as_str());
        if text.is_empty() {
            return None;
        }
        let address = problems.parsed(flag, text, "an address such as 127.0.0.1:7401")?;
        if Some(address) == listen && address.port() != 0 {
            return problems.add(flag, text, "another address than that of the API");
        }
        Some(address)
    }

    /// Those that stay texts.
    fn check_texts(&self, problems: &mut Problems) {
        if !is_path(&self.plugin_path) {
            problems.add::<()>(
                "plugin-path",
                &self.plugin_path,
                "a path such as /usage, of letters, digits and - . _ ~, that does not end with a slash",
            );
        }
        let begins = self.plugin_path.split('/').nth(1).unwrap_or_default();
        if API_PATHS.contains(&begins) {
            problems.add::<()>(
                "plugin-path",
                &self.plugin_path,
                &format!("a path that does not begin with /{begins}, which is the API's own"),
            );
        }
        if self.redis_prefix.len() > 64 || self.redis_prefix.contains(['{', '}']) {
            problems.add::<()>(
                "redis-prefix",
                &self.redis_prefix,
                "at most 64 characters without { and }",
            );
        }
        if self.log.parse::<tracing_subscriber::EnvFilter>().is_err() {
            problems.add::<()>("log", &self.log, "a filter such as info or tallyman=debug");
        }
    }

    fn defaults(&self, problems: &mut Problems) -> Option<Defaults> {
        let plan_id: Option<PlanId> = problems.valid("default-plan", &self.default_plan);
        let meter: Option<MeterId> = problems.valid("default-meter", &self.default_meter);
        let limit = match self.default_limit.as_str() {
            "unlimited" => Some(None),
            text => match text
                .parse::<u64>()
                .ok()
                .and_then(|units| Count::try_from(units).ok())
            {
                Some(units) => Some(Some(units)),
                None => problems.add::<Option<Count>>(
                    "default-limit",
                    text,
                    "a number from 0 to 2^53 - 1, or unlimited",
                ),
            },
        };
        let enforcement = problems.chosen(
            "default-enforcement",
            &self.default_enforcement,
            &[("hard", Enforcement::Hard), ("soft", Enforcement::Soft)],
        );
        let reset_mode: Option<ResetMode> = problems.parsed(
            "default-reset-mode",
            &self.default_reset_mode,
            "lazy, scheduled or manual",
        );
        let reset_period: Option<ResetPeriod> = problems.parsed(
            "default-reset-period",
            &self.default_reset_period,
            "hourly, daily, weekly, monthly or yearly",
        );
        let time_zone = match parse_time_zone(&self.default_time_zone) {
            Ok(zone) => Some(zone),
            Err(rule) => {
                problems.refused("default-time-zone", &self.default_time_zone, rule.detail)
            }
        };
        let limit = MeterLimit {
            limit: limit?,
            enforcement: enforcement?,
            ..MeterLimit::default()
        };
        Some(Defaults {
            plan_id: plan_id?,
            limits: BTreeMap::from([(meter?, limit)]),
            calendar: DefaultCalendar {
                reset_mode: reset_mode?,
                reset_period: reset_period?,
                time_zone: time_zone?,
            },
        })
    }
}

impl ListenSettings {
    /// Where the service listens.
    pub fn check(&self) -> Result<SocketAddr, InvalidSettings> {
        let mut problems = Problems::default();
        let address = self.parse(&mut problems);
        problems.into_result(address)
    }

    fn parse(&self, problems: &mut Problems) -> Option<SocketAddr> {
        problems.parsed("listen", &self.listen, "an address such as 127.0.0.1:7400")
    }
}

impl BoundSettings {
    fn parse(&self, problems: &mut Problems) -> Option<(ConnectionLimits, u64)> {
        let max = problems.number("connections", &self.connections, 1, 1_000_000);
        let mut seconds = |flag, text| problems.number(flag, text, 1, 3600);
        let header = seconds("header-seconds", &self.header_seconds);
        let body = seconds("body-seconds", &self.body_seconds);
        let idle = seconds("idle-seconds", &self.idle_seconds);
        let memory = problems.number("body-memory-mib", &self.body_memory_mib, 8, 1024 * 1024);
        let limits = ConnectionLimits {
            max: usize::try_from(max?).ok()?,
            header: Duration::from_secs(header?),
            body: Duration::from_secs(body?),
            idle: Duration::from_secs(idle?),
        };
        Some((limits, memory?.checked_mul(1024 * 1024)?))
    }
}

impl JwtSettings {
    /// None where no JWT is to be accepted, or something is missing.
    fn parse(&self, problems: &mut Problems) -> Option<JwtConfig> {
        let given = [
            ("jwt-jwks-url", &self.jwt_jwks_url),
            ("jwt-issuer", &self.jwt_issuer),
            ("jwt-audience", &self.jwt_audience),
        ];
        if given.iter().all(|(_, text)| text.is_empty()) {
            return None;
        }
        for (flag, text) in given {
            if text.is_empty() {
                problems.add::<()>(
                    flag,
                    text,
                    "given where one of jwt-jwks-url, jwt-issuer and jwt-audience is",
                );
            }
        }
        let url = &self.jwt_jwks_url;
        if !url.is_empty() {
            problems.url("jwt-jwks-url", Some(url), &["http", "https"]);
        }
        for (flag, name) in [
            ("jwt-organization-claim", &self.jwt_organization_claim),
            ("jwt-role-claim", &self.jwt_role_claim),
        ] {
            if name.is_empty() {
                problems.add::<()>(flag, name, "the name of a claim");
            }
        }
        Some(JwtConfig {
            jwks_url: url.clone(),
            issuer: self.jwt_issuer.clone(),
            audience: self.jwt_audience.clone(),
            organization_claim: self.jwt_organization_claim.clone(),
            role_claim: self.jwt_role_claim.clone(),
            admin_roles: words(&self.jwt_admin_roles),
        })
    }
}

impl ServerSettings {
    fn parse(&self, problems: &mut Problems) -> Option<Servers> {
        let redis_url = problems.url(
            "redis-url",
            self.redis_url.as_deref(),
            &["redis", "rediss", "redis+unix", "unix"],
        );
        let database_url = self.database.parse(problems);
        Some(Servers {
            redis_url: redis_url?,
            database_url: database_url?,
        })
    }
}

impl DatabaseSettings {
    /// Where Postgres is.
    pub fn check(&self) -> Result<String, InvalidSettings> {
        let mut problems = Problems::default();
        let url = self.parse(&mut problems);
        problems.into_result(url)
    }

    fn parse(&self, problems: &mut Problems) -> Option<String> {
        problems.url(
            "database-url",
            self.database_url.as_deref(),
            &["postgres", "postgresql"],
        )
    }
}

/// Collects what is wrong; every function returns none where it has added something.
#[derive(Default)]
struct Problems(Vec<String>);

impl Problems {
    fn add<T>(&mut self, flag: &str, given: &str, needed: &str) -> Option<T> {
        self.0
            .push(format!("{} is {given:?}; it must be {needed}", name(flag)));
        None
    }

    fn parsed<T: FromStr>(&mut self, flag: &str, text: &str, needed: &str) -> Option<T> {
        text.parse().ok().or_else(|| self.add(flag, text, needed))
    }

    fn valid<T: FromStr<Err: fmt::Display>>(&mut self, flag: &str, text: &str) -> Option<T> {
        match text.parse() {
            Ok(value) => Some(value),
            Err(rule) => self.refused(flag, text, rule),
        }
    }

    fn refused<T>(&mut self, flag: &str, text: &str, rule: impl fmt::Display) -> Option<T> {
        self.0
            .push(format!("{} is {text:?}; it {rule}", name(flag)));
        None
    }

    fn number(&mut self, flag: &str, text: &str, min: u64, max: u64) -> Option<u64> {
        let number = text
            .parse()
            .ok()
            .filter(|number| (min..=max).contains(number));
        number.or_else(|| self.add(flag, text, &format!("a number from {min} to {max}")))
    }

    fn chosen<T: Copy>(&mut self, flag: &str, text: &str, choices: &[(&str, T)]) -> Option<T> {
        let choice = choices
            .iter()
            .find(|(word, _)| *word == text)
            .map(|(_, value)| *value);
        let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
        choice.or_else(|| self.add(flag, text, &words.join(" or ")))
    }

    /// Never repeats the URL, which may hold a password.
    fn url(&mut self, flag: &str, url: Option<&str>, schemes: &[&str]) -> Option<String> {
        let problem = match url {
            None => "is missing",
            Some(url)
                if schemes
                    .iter()
                    .any(|scheme| url.starts_with(&format!("{scheme}://")))
                    && url.parse::<Url>().is_ok() =>
            {
                return Some(url.to_owned());
            }
            Some(url) if !url.contains("://") => "has no scheme",
            Some(_) => "is not a URL",
        };
        self.0.push(format!(
            "{} {problem}; it must begin with {}://",
            name(flag),
            schemes.join(":// or ")
        ));
        None
    }

    fn into_result<T>(self, value: Option<T>) -> Result<T, InvalidSettings> {
        match value {
            Some(value) if self.0.is_empty() => Ok(value),
            _ => Err(InvalidSettings(self.0)),
        }
    }
}

/// What stands between commas.
fn words(text: &str) -> Vec<String> {
    let words = text.split(',').map(str::trim).filter(|it| !it.is_empty());
    words.map(str::to_owned).collect()
}

/// Both names of a setting.
fn name(flag: &str) -> String {
    format!(
        "TALLYMAN_{} (--{flag})",
        flag.to_uppercase().replace('-', "_")
    )
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        settings: Settings,
        #[command(flatten)]
        servers: ServerSettings,
    }

    fn check(arguments: &[&str]) -> Result<(Config, Servers), InvalidSettings> {
        let command = Command::parse_from(std::iter::once(&"tallyman").chain(arguments));
        command.settings.check_with(&command.servers)
    }

    #[test]
    fn everything_missing_or_bad_is_reported_together() {
        let problems = check(&[
            "--listen",
            "nowhere",
            "--default-limit=-1",
            "--database-url",
            "mysql://x:secret@y",
        ])
        .unwrap_err();
        insta::assert_snapshot!(problems, @r#"
        TALLYMAN_LISTEN (--listen) is "nowhere"; it must be an address such as 127.0.0.1:7400
        TALLYMAN_DEFAULT_LIMIT (--default-limit) is "-1"; it must be a number from 0 to 2^53 - 1, or unlimited
        TALLYMAN_REDIS_URL (--redis-url) is missing; it must begin with redis:// or rediss:// or redis+unix:// or unix://
        TALLYMAN_DATABASE_URL (--database-url) is not a URL; it must begin with postgres:// or postgresql://
        "#);
    }

    #[test]
    fn the_defaults_are_complete_but_for_the_servers() {
        let (config, _) =
            check(&["--redis-url", "redis://r", "--database-url", "postgres://p"]).unwrap();
        assert_eq!(config.defaults.plan_id.as_str(), "free");
        assert_eq!(config.defaults.limits.len(), 1);
    }

    #[test]
    fn jwts_are_accepted_by_issuer_and_audience_or_not_at_all() {
        let servers = ["--redis-url", "redis://r", "--database-url", "postgres://p"];
        let check = |arguments: &[&str]| check(&[&servers, arguments].concat());
        assert!(check(&[]).unwrap().0.jwt.is_none());
        let (url, issuer) = (
            ["--jwt-jwks-url", "ftp://x:secret@y"],
            ["--jwt-issuer", "i"],
        );
        let problems = check(&[&url[..], &issuer, &["--jwt-role-claim", ""]].concat()).unwrap_err();
        insta::assert_snapshot!(problems, @r#"
        TALLYMAN_JWT_AUDIENCE (--jwt-audience) is ""; it must be given where one of jwt-jwks-url, jwt-issuer and jwt-audience is
        TALLYMAN_JWT_JWKS_URL (--jwt-jwks-url) is not a URL; it must begin with http:// or https://
        TALLYMAN_JWT_ROLE_CLAIM (--jwt-role-claim) is ""; it must be the name of a claim
        "#);
        let url = ["--jwt-jwks-url", "https://auth.example/jwks"];
        let rest = ["--jwt-audience", "a", "--jwt-admin-roles", "admin, staff,"];
        let (config, _) = check(&[&url[..], &issuer, &rest].concat()).unwrap();
        let jwt = config.jwt.unwrap();
        assert_eq!(jwt.organization_claim, "organizationId");
        assert_eq!(jwt.admin_roles, ["admin", "staff"]);
    }

    #[test]
    fn a_path_has_parts_and_nothing_that_a_router_reads_otherwise() {
        for good in [PLUGIN_PATH, "/usage", "/a/b.c_d~e-1"] {
            assert!(is_path(good), "{good}");
        }
        for bad in [
            "", "/", "usage", "/usage/", "//usage", "/{id}", "/*x", "/a b", "/a?b", "/.", "/a/../b",
        ] {
            assert!(!is_path(bad), "{bad}");
        }
    }

    #[test]
    fn the_plugins_path_collides_with_none_of_the_apis() {
        let refused = |path: &str| {
            check(&[
                "--redis-url",
                "redis://r",
                "--database-url",
                "postgres://p",
                "--plugin-path",
                path,
            ])
            .is_err()
        };
        for path in [
            "/v1",
            "/v1/usage",
            "/docs",
            "/healthz",
            "/metrics",
            "/openapi.json",
            "/readyz/x",
        ] {
            assert!(refused(path), "{path}");
        }
        for path in [PLUGIN_PATH, "/v10", "/auth/v1"] {
            assert!(!refused(path), "{path}");
        }
        let problems = check(&["--plugin-path", "/v1"]).unwrap_err().to_string();
        assert!(
            problems.starts_with(
                r#"TALLYMAN_PLUGIN_PATH (--plugin-path) is "/v1"; it must be a path that does not begin with /v1, which is the API's own"#
            ),
            "{problems}"
        );
    }

    #[test]
    fn a_url_that_none_is_told_what_it_lacks() {
        let problems = check(&[
            "--redis-url",
            "127.0.0.1:6379",
            "--database-url",
            "postgres://[p",
        ]);
        insta::assert_snapshot!(problems.unwrap_err(), @r#"
        TALLYMAN_REDIS_URL (--redis-url) has no scheme; it must begin with redis:// or rediss:// or redis+unix:// or unix://
        TALLYMAN_DATABASE_URL (--database-url) is not a URL; it must begin with postgres:// or postgresql://
        "#);
    }

    #[test]
    fn origins_are_spelled_as_browsers_send_them() {
        let only = |origins: &[&str]| {
            Ok(Origins::Only(
                origins.iter().map(|it| (*it).to_owned()).collect(),
            ))
        };
        assert_eq!("".parse(), only(&[]));
        assert_eq!("*".parse(), Ok(Origins::Any));
        assert_eq!(
            "https://a.example, http://localhost:3000,".parse(),
            only(&["https://a.example", "http://localhost:3000"])
        );
        for bad in [
            "a.example",
            "https://a.example/",
            "https://A.example",
            "https://*.example",
            "https://",
            "*,https://a.example",
        ] {
            assert_eq!(bad.parse::<Origins>(), Err(()), "{bad}");
        }
    }

    #[test]
    fn passwords_are_not_printed() {
        let (_, servers) = check(&[
            "--redis-url",
            "redis://:hunter2@r",
            "--database-url",
            "postgres://p",
        ])
        .unwrap();
        assert!(!format!("{servers:?}").contains("hunter2"));
    }
}
