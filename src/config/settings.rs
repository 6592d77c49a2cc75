//! The settings, and where each comes from.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use clap::builder::ArgAction;
use clap::{ArgMatches, Args, FromArgMatches};
use tracing_subscriber::filter::Targets;

use super::values::{
    Origins, address, choice, claim, days, duration, id, jwks_url, limit, list, log_filter,
    mebibytes, metrics_address, number, plugin_path, redis_prefix, time_zone, value, workers,
};
use crate::domain::ids::{MeterId, PlanId};
use crate::domain::limit::{Enforcement, MeterLimit, OnOutage};
use crate::domain::organization::{DefaultCalendar, Defaults};
use crate::domain::period::{ResetMode, ResetPeriod};
use crate::domain::quantity::Count;
use crate::domain::retention::{EVENTS_KEPT_MIN_DAYS, HOURS_KEPT_MIN_DAYS};

/// Where the Better Auth plugin's client expects its endpoints.
pub const PLUGIN_PATH: &str = "/api/auth/usage-tracking";

const MILLISECOND: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_mins(1);
const HOUR: Duration = Duration::from_hours(1);

/// The settings of the service.
// `std::option::Option`: clap would take `Option` for an argument that may be missing, whose parser returns the value
// in it.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Settings")]
pub struct Config {
    /// Address to listen on
    #[arg(long, env = "TALLYMAN_LISTEN", value_name = "ADDRESS", default_value = "127.0.0.1:7400", value_parser = address)]
    pub listen: SocketAddr,

    #[command(flatten)]
    #[expect(missing_docs, reason = "clap would print it as the help of the group")]
    pub tls: TlsConfig,

    /// Address to serve `/metrics` on, without authentication; if empty, `/metrics` is part of the API and requires the
    /// scope `read`
    #[arg(long, env = "TALLYMAN_METRICS_LISTEN", value_name = "ADDRESS", default_value = "", value_parser = metrics_address)]
    pub metrics_listen: std::option::Option<SocketAddr>,

    /// Origins whose pages may call the API from a browser, separated by commas, or `*` for all
    #[arg(long, env = "TALLYMAN_CORS_ORIGINS", value_name = "ORIGINS", default_value = "",
          value_parser = value::<Origins>("* or origins such as https://app.example.com, separated by commas"))]
    pub cors_origins: Origins,

    /// Origins whose pages may embed the usage cards of embed links in a frame, separated by commas, or `*` for all
    #[arg(long, env = "TALLYMAN_EMBED_ORIGINS", value_name = "ORIGINS", default_value = "",
          value_parser = value::<Origins>("* or origins such as https://app.example.com, separated by commas"))]
    pub embed_origins: Origins,

    #[command(flatten)]
    #[expect(missing_docs, reason = "clap would print it as the help of the group")]
    pub jwt: JwtConfig,

    /// Path prefix of the Better Auth plugin's endpoints
    #[arg(long, env = "TALLYMAN_PLUGIN_PATH", value_name = "PATH", default_value = PLUGIN_PATH, value_parser = plugin_path)]
    pub plugin_path: String,

    /// Prefix of every key in Redis, so that several services can share one
    #[arg(long, env = "TALLYMAN_REDIS_PREFIX", value_name = "TEXT", default_value = "tm:", value_parser = redis_prefix)]
    pub redis_prefix: String,

    /// After a restart of Redis: `verify` restores every counter from Postgres; `trust` assumes that Redis has lost
    /// nothing, which only `appendfsync always` guarantees
    #[arg(long = "redis-restart", env = "TALLYMAN_REDIS_RESTART", value_name = "verify|trust", default_value = "verify",
          action = ArgAction::Set, value_parser = choice([("verify", false), ("trust", true)]))]
    pub trust_redis_restart: bool,

    /// How many Redis replicas must have what was counted before it is acknowledged, so that a failover loses nothing;
    /// with fewer replicas, calls fail with 504
    #[arg(long, env = "TALLYMAN_REDIS_WAIT_REPLICAS", value_name = "N", default_value = "0", value_parser = number::<u16>(0, 5))]
    pub redis_wait_replicas: u16,

    /// Maximum number of connections to Postgres; half of them are reserved for requests
    #[arg(long, env = "TALLYMAN_DATABASE_CONNECTIONS", value_name = "N", default_value = "10", value_parser = number::<u32>(2, 1000))]
    pub database_connections: u32,

    /// Interval between flushes of counts to Postgres, in milliseconds; while many counters change up to half a minute, or
    /// ten where Redis is trusted after a restart or replicas are waited for
    #[arg(long = "flush-interval-ms", env = "TALLYMAN_FLUSH_INTERVAL_MS", value_name = "MS", default_value = "1000",
          value_parser = duration(MILLISECOND, 10, 3_600_000))]
    pub flush_interval: Duration,

    /// Whether this instance ends periods on time in scheduled mode: `on`, or `off` if something else calls POST
    /// /v1/reset-expired
    #[arg(long, env = "TALLYMAN_SCHEDULER", value_name = "SWITCH", default_value = "on",
          action = ArgAction::Set, value_parser = choice([("on", true), ("off", false)]))]
    pub scheduler: bool,

    /// What a consume does while Redis is down, for meters whose plan or organization does not say: `deny` fails it with
    /// 503, `allow` grants it without a decision and counts it once Redis is back
    #[arg(long, env = "TALLYMAN_ON_OUTAGE", value_name = "deny|allow", default_value = "deny",
          action = ArgAction::Set, value_parser = choice([("deny", OnOutage::Deny), ("allow", OnOutage::Allow)]))]
    pub on_outage: OnOutage,

    /// Maximum number of increments that wait in Postgres while Redis is down; beyond it calls fail with 503
    #[arg(long, env = "TALLYMAN_PENDING_MAX", value_name = "N", default_value = "1000000", value_parser = number::<u64>(0, 1_000_000_000))]
    pub pending_max: u64,

    /// Retention of idempotency records, in minutes; Redis holds each record as long
    #[arg(long = "idempotency-minutes", env = "TALLYMAN_IDEMPOTENCY_MINUTES", value_name = "MINUTES", default_value = "1440",
          value_parser = duration(MINUTE, 1, 60 * 24 * 31))]
    pub idempotency: Duration,

    /// How long after its end a period accepts late events, in hours
    #[arg(long = "late-hours", env = "TALLYMAN_LATE_HOURS", value_name = "HOURS", default_value = "48",
          value_parser = duration(HOUR, 0, 24 * 31))]
    pub late: Duration,

    /// Retention of hourly usage, in days, at least 35; whole months are dropped. If empty, it is kept for ever; the counts of
    /// periods always are
    #[arg(long = "hourly-retention-days", env = "TALLYMAN_HOURLY_RETENTION_DAYS", value_name = "DAYS", default_value = "",
          value_parser = days(HOURS_KEPT_MIN_DAYS))]
    pub hourly_retention: std::option::Option<Duration>,

    /// Retention of events and their deliveries, in days, at least 7; if empty, they are kept for ever
    #[arg(long = "event-retention-days", env = "TALLYMAN_EVENT_RETENTION_DAYS", value_name = "DAYS", default_value = "",
          value_parser = days(EVENTS_KEPT_MIN_DAYS))]
    pub event_retention: std::option::Option<Duration>,

    /// Whether webhooks may call addresses of this machine and of private networks: `refuse` or `allow`; `tallyman dev`
    /// always allows them
    #[arg(long, env = "TALLYMAN_WEBHOOK_PRIVATE_ADDRESSES", value_name = "refuse|allow", default_value = "refuse",
          action = ArgAction::Set, value_parser = choice([("refuse", false), ("allow", true)]))]
    pub webhook_private_addresses: bool,

    #[command(flatten)]
    #[expect(missing_docs, reason = "clap would print it as the help of the group")]
    pub connections: ConnectionLimits,

    /// Memory for the bodies of requests in flight, in MiB; a single key may use a quarter of it, and at least 8 MiB
    #[arg(long = "body-memory-mib", env = "TALLYMAN_BODY_MEMORY_MIB", value_name = "MIB", default_value = "64", value_parser = mebibytes)]
    pub body_memory: u64,

    /// How long a request may take until it is answered, in milliseconds; a caller may ask for less with `Prefer: wait=`
    #[arg(long = "request-timeout-ms", env = "TALLYMAN_REQUEST_TIMEOUT_MS", value_name = "MS", default_value = "5000",
          value_parser = duration(MILLISECOND, 100, 300_000))]
    pub request_timeout: Duration,

    /// How long `/readyz` responds with 503 before a stop closes the listener, in seconds: long enough for a load balancer
    /// to notice
    #[arg(long = "drain-seconds", env = "TALLYMAN_DRAIN_SECONDS", value_name = "SECONDS", default_value = "5",
          value_parser = duration(SECOND, 0, 3600))]
    pub drain: Duration,

    /// Timeout of a graceful shutdown, in seconds: for accepted requests, and again for the last flush
    #[arg(long = "shutdown-seconds", env = "TALLYMAN_SHUTDOWN_SECONDS", value_name = "SECONDS", default_value = "20",
          value_parser = duration(SECOND, 1, 3600))]
    pub shutdown: Duration,

    /// Worker threads; `auto` is half the number of cores
    #[arg(long, env = "TALLYMAN_WORKERS", value_name = "N|auto", default_value = "auto", value_parser = workers)]
    pub workers: usize,

    #[command(flatten)]
    #[expect(missing_docs, reason = "clap would print it as the help of the group")]
    pub defaults: Defaults,

    #[command(flatten)]
    #[expect(missing_docs, reason = "clap would print it as the help of the group")]
    pub log: LogConfig,

    /// Seconds that this instance is ahead of the machine's clock; only the fault harness sets it, so releases do not
    /// have it
    #[cfg(debug_assertions)]
    #[arg(
        long,
        env = "TALLYMAN_CLOCK_OFFSET_SECONDS",
        value_name = "SECONDS",
        default_value_t = 0,
        hide = true,
        allow_hyphen_values = true
    )]
    pub clock_offset_seconds: i64,
}

/// Limits on TCP connections.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Settings")]
pub struct ConnectionLimits {
    /// Maximum number of connections, as far as the limit on open files allows; a new one replaces the one that has
    /// been idle longest, and is refused if none is idle
    #[arg(long = "connections", env = "TALLYMAN_CONNECTIONS", value_name = "N", default_value = "2048", value_parser = number::<usize>(1, 1_000_000))]
    pub max: usize,

    /// Timeout for the head of a request, in seconds; on a new connection from its start
    #[arg(long = "header-seconds", env = "TALLYMAN_HEADER_SECONDS", value_name = "SECONDS", default_value = "10",
          value_parser = duration(SECOND, 1, 3600))]
    pub header: Duration,

    /// Timeout for receiving the body of a request, and for sending a response, in seconds
    #[arg(long = "body-seconds", env = "TALLYMAN_BODY_SECONDS", value_name = "SECONDS", default_value = "30",
          value_parser = duration(SECOND, 1, 3600))]
    pub body: Duration,

    /// How long a connection may be idle, in seconds; longer than a proxy in front of the service keeps idle connections
    #[arg(long = "idle-seconds", env = "TALLYMAN_IDLE_SECONDS", value_name = "SECONDS", default_value = "75",
          value_parser = duration(SECOND, 1, 3600))]
    pub idle: Duration,
}

/// TLS on the listener: none if both paths are empty.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Settings")]
pub struct TlsConfig {
    /// PEM file with the certificate of this service, followed by the intermediate ones; with it, the service is reached
    /// by `https://` only. Read again on SIGHUP
    #[arg(
        id = "tls_certificate",
        long = "tls-certificate",
        env = "TALLYMAN_TLS_CERTIFICATE",
        value_name = "PATH",
        default_value = ""
    )]
    pub certificate: String,

    /// PEM file with the private key of the certificate
    #[arg(
        id = "tls_key",
        long = "tls-key",
        env = "TALLYMAN_TLS_KEY",
        value_name = "PATH",
        default_value = ""
    )]
    pub key: String,
}

impl TlsConfig {
    /// None if the listener is plain.
    pub fn enabled(&self) -> Option<Self> {
        (!self.certificate.is_empty()).then(|| self.clone())
    }

    /// The scheme of the URLs of the listener.
    pub fn scheme(&self) -> &'static str {
        if self.certificate.is_empty() {
            "http"
        } else {
            "https"
        }
    }
}

/// Which JWTs are accepted in addition to API keys: none if the URL is empty.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Settings")]
pub struct JwtConfig {
    /// URL of the auth server's JSON Web Key Set, `http://` or `https://`; without it, no JWT is accepted
    #[arg(long = "jwt-jwks-url", env = "TALLYMAN_JWT_JWKS_URL", value_name = "URL", default_value = "", value_parser = jwks_url)]
    pub jwks_url: String,

    /// The `iss` that a JWT must have
    #[arg(
        long = "jwt-issuer",
        env = "TALLYMAN_JWT_ISSUER",
        value_name = "TEXT",
        default_value = ""
    )]
    pub issuer: String,

    /// The `aud` that a JWT must have, alone or among others
    #[arg(
        long = "jwt-audience",
        env = "TALLYMAN_JWT_AUDIENCE",
        value_name = "TEXT",
        default_value = ""
    )]
    pub audience: String,

    /// The claim of a JWT that names the organization that it may read
    #[arg(long = "jwt-organization-claim", env = "TALLYMAN_JWT_ORGANIZATION_CLAIM", value_name = "NAME",
          default_value = "organizationId", value_parser = claim)]
    pub organization_claim: String,

    /// The claim of a JWT that has the user's platform roles: a list, or a text with commas
    #[arg(long = "jwt-role-claim", env = "TALLYMAN_JWT_ROLE_CLAIM", value_name = "NAME", default_value = "role", value_parser = claim)]
    pub role_claim: String,

    /// Platform roles whose users may reset and limit any organization with the Better Auth plugin's endpoints,
    /// separated by commas
    #[arg(long = "jwt-admin-roles", env = "TALLYMAN_JWT_ADMIN_ROLES", value_name = "ROLES", default_value = "", value_parser = |text: &str| Ok::<_, String>(list(text)))]
    pub admin_roles: std::vec::Vec<String>,
}

impl JwtConfig {
    /// None if no JWT is accepted.
    pub fn enabled(&self) -> Option<Self> {
        (!self.jwks_url.is_empty()).then(|| self.clone())
    }
}

/// The settings that make up [`Defaults`].
#[derive(Args)]
#[command(next_help_heading = "Settings")]
struct DefaultSettings {
    /// Plan of organizations without one
    #[arg(long = "default-plan", env = "TALLYMAN_DEFAULT_PLAN", value_name = "PLAN", default_value = "free", value_parser = id::<PlanId>)]
    plan: PlanId,

    /// Meter that the default plan limits
    #[arg(long = "default-meter", env = "TALLYMAN_DEFAULT_METER", value_name = "METER", default_value = "api", value_parser = id::<MeterId>)]
    meter: MeterId,

    /// Units per period of the default plan, or `unlimited`
    #[arg(long = "default-limit", env = "TALLYMAN_DEFAULT_LIMIT", value_name = "UNITS", default_value = "1000", value_parser = limit)]
    limit: std::option::Option<Count>,

    /// Whether the default plan denies usage beyond its limit (`hard`) or counts it as overage (`soft`)
    #[arg(long = "default-enforcement", env = "TALLYMAN_DEFAULT_ENFORCEMENT", value_name = "hard|soft", default_value = "hard",
          value_parser = choice([("hard", Enforcement::Hard), ("soft", Enforcement::Soft)]))]
    enforcement: Enforcement,

    /// What starts a new period: `lazy`, `scheduled` or `manual`
    #[arg(long = "default-reset-mode", env = "TALLYMAN_DEFAULT_RESET_MODE", value_name = "MODE", default_value = "lazy",
          value_parser = value::<ResetMode>("lazy, scheduled or manual"))]
    reset_mode: ResetMode,

    /// Length of a period: `hourly`, `daily`, `weekly`, `monthly` or `yearly`
    #[arg(long = "default-reset-period", env = "TALLYMAN_DEFAULT_RESET_PERIOD", value_name = "PERIOD", default_value = "monthly",
          value_parser = value::<ResetPeriod>("hourly, daily, weekly, monthly or yearly"))]
    reset_period: ResetPeriod,

    /// IANA time zone in which periods start at midnight
    #[arg(long = "default-time-zone", env = "TALLYMAN_DEFAULT_TIME_ZONE", value_name = "ZONE", default_value = "UTC", value_parser = time_zone)]
    time_zone: chrono_tz::Tz,
}

impl Args for Defaults {
    fn augment_args(command: clap::Command) -> clap::Command {
        DefaultSettings::augment_args(command)
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        DefaultSettings::augment_args_for_update(command)
    }
}

impl FromArgMatches for Defaults {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let settings = DefaultSettings::from_arg_matches(matches)?;
        let limit = MeterLimit {
            limit: settings.limit,
            enforcement: settings.enforcement,
            ..MeterLimit::default()
        };
        Ok(Self {
            plan_id: settings.plan,
            limits: BTreeMap::from([(settings.meter, limit)]),
            calendar: DefaultCalendar {
                reset_mode: settings.reset_mode,
                reset_period: settings.reset_period,
                time_zone: settings.time_zone,
            },
        })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// Content and format of the log.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Settings")]
pub struct LogConfig {
    /// Log level, also per module: `LEVEL` or `MODULE=LEVEL`, separated by commas
    #[arg(long = "log", env = "TALLYMAN_LOG", value_name = "FILTER", default_value = "info,sqlx=warn", value_parser = log_filter)]
    pub filter: Targets,

    /// Log format: `text` or `json`
    #[arg(long = "log-format", env = "TALLYMAN_LOG_FORMAT", value_name = "FORMAT", default_value = "text",
          action = ArgAction::Set, value_parser = choice([("text", false), ("json", true)]))]
    pub json: bool,
}
