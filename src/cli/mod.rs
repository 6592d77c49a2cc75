//! The command line: `serve`, `dev`, and commands that do one thing and end.

pub mod administer;
mod demo;
pub mod dev;
mod doctor;
mod healthcheck;
mod import;
pub mod keys;
mod service;

use std::ffi::OsString;
use std::net::SocketAddr;

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};

use crate::app::{App, shutdown_signal};
use crate::clock::Clock;
use crate::config::{self, Config, DatabaseSettings, Servers, TlsConfig};
use crate::http;
use crate::logging;
use crate::postgres::{Postgres, readers};

/// A thread polls sockets after this many task polls. Tokio's default, 61, is about the number of connections that
/// clients have, so new requests would wait until all responses are written.
const EVENT_INTERVAL: u32 = 16;

/// Counts what organizations use and stops them where their plan ends.
#[derive(Debug, Parser)]
#[command(name = "tallyman", version, about)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve, with a Redis and a Postgres that run elsewhere
    Serve {
        #[command(flatten)]
        config: Box<Config>,
        #[command(flatten)]
        servers: Servers,
        /// Apply the database migrations first
        #[arg(long, env = "TALLYMAN_MIGRATE", value_parser = clap::builder::BoolishValueParser::new())]
        migrate: bool,
    },
    /// Serve on this machine, with private servers and nothing to configure
    Dev {
        #[command(flatten)]
        options: dev::Options,
        #[command(flatten)]
        config: Box<Config>,
    },
    /// Fill a running `tallyman dev` with a year of invented usage of 200 organizations
    Demo(demo::Options),
    /// Apply the database migrations
    Migrate {
        #[command(flatten)]
        database: DatabaseSettings,
        /// Also create this role, which can read the views for analysts and nothing else; see docs/sql.md
        #[arg(long, value_name = "ROLE")]
        reader: Option<String>,
    },
    /// Check whether the service on this machine is ready; exits with 1 if not
    #[command(next_help_heading = "Settings")]
    Healthcheck {
        /// Address to listen on
        #[arg(long, env = "TALLYMAN_LISTEN", value_name = "ADDRESS", default_value = "127.0.0.1:7400", value_parser = config::address)]
        listen: SocketAddr,
        #[command(flatten)]
        tls: TlsConfig,
    },
    /// Check Redis, Postgres and this machine with the settings of `serve`; exits with 1 if the service cannot count safely
    Doctor(doctor::Options),
    /// Print the OpenAPI document
    Openapi,
    /// Create, list and revoke API keys, without the service
    Keys(keys::Options),
    /// Add what another system has counted to history, without the service
    Import(import::Options),
    /// Show and change an organization through the service
    Org(administer::OrgOptions),
    /// List, create, change and delete plans through the service
    Plan(administer::PlanOptions),
    /// Reset every organization whose period has ended, through the service
    ResetExpired(administer::ResetExpiredOptions),
    /// Compare the counts in Redis and Postgres through the service; exits with 1 if they differ
    Verify(administer::VerifyOptions),
}

/// The text of an error and its causes, without control characters that a terminal would obey.
pub fn readable(error: &anyhow::Error) -> String {
    let text = format!("{error:#}");
    let lines: Vec<String> = text.lines().map(service::escape).collect();
    lines.join("\n")
}

/// Runs the command of this command line.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> Result<()> {
    let arguments: Arguments = config::parse(arguments)?;
    // Neither the Redis nor the HTTP client installs a TLS provider. An error means that there is one already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    match arguments.command {
        Command::Serve {
            config,
            servers,
            migrate,
        } => runtime(config.workers)?.block_on(serve(*config, servers, migrate)),
        Command::Dev { options, config } => {
            let _log = logging::start(&config.log);
            logging::log_panics();
            runtime(config.workers)?.block_on(dev::run(options, *config))
        }
        Command::Demo(options) => runtime(1)?.block_on(demo::run(options, &Clock::System)),
        Command::Migrate { database, reader } => {
            let url = database.url()?;
            runtime(1)?.block_on(async {
                let postgres = Postgres::new(&url, 1)?;
                postgres.migrate().await?;
                if let Some(role) = reader {
                    readers::permit(&postgres, &role).await?;
                }
                Ok(())
            })
        }
        Command::Openapi => {
            let document = http::openapi().to_pretty_json()?;
            service::print(&format!("{document}\n"))
        }
        Command::Doctor(options) => runtime(1)?.block_on(doctor::run(options, Clock::System)),
        Command::Healthcheck { listen, tls } => {
            runtime(1)?.block_on(healthcheck::run(listen, &tls))
        }
        Command::Keys(options) => runtime(1)?.block_on(keys::run(options, Clock::System)),
        Command::Import(options) => runtime(1)?.block_on(import::run(options, Clock::System)),
        Command::Org(options) => runtime(1)?.block_on(administer::org(options)),
        Command::Plan(options) => runtime(1)?.block_on(administer::plan(options)),
        Command::ResetExpired(options) => runtime(1)?.block_on(administer::reset_expired(options)),
        Command::Verify(options) => runtime(1)?.block_on(administer::verify(options)),
    }
}

fn runtime(workers: usize) -> Result<Runtime> {
    // A single thread does not need the work-stealing scheduler.
    let mut builder = match workers {
        1 => Builder::new_current_thread(),
        _ => Builder::new_multi_thread(),
    };
    builder
        .worker_threads(workers)
        .event_interval(EVENT_INTERVAL)
        .enable_all()
        .build()
        .context("threads cannot be started")
}

async fn serve(config: Config, servers: Servers, migrate: bool) -> Result<()> {
    let _log = logging::start(&config.log);
    logging::log_panics();
    let stop = shutdown_signal();
    if migrate {
        Postgres::new(&servers.database_url, 1)?.migrate().await?;
    }
    let (address, scheme) = (config.listen, config.tls.scheme());
    let listener = TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot listen on {address}"))?;
    let address = listener.local_addr()?;
    let clock = clock(&config);
    let app = App::build(config, servers, clock).await?;
    tracing::info!("listening on {scheme}://{address}");
    Box::pin(app.serve(listener, stop)).await
}

#[cfg(debug_assertions)]
fn clock(config: &Config) -> Clock {
    match config.clock_offset_seconds {
        0 => Clock::System,
        seconds => Clock::Shifted(chrono::Duration::seconds(seconds)),
    }
}

#[cfg(not(debug_assertions))]
fn clock(_: &Config) -> Clock {
    Clock::System
}
