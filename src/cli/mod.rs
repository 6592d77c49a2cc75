//! What the executable can do: serve, here or with servers elsewhere, and commands that do one thing
//! and end.

pub mod administer;
pub mod dev;
mod healthcheck;
pub mod keys;
mod service;

use anyhow::{Context as _, Result};
use clap::Subcommand;
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};

use crate::app::{App, shutdown_signal};
use crate::clock::Clock;
use crate::config::{Config, DatabaseSettings, ListenSettings, ServerSettings, Servers, Settings};
use crate::http;
use crate::logging;
use crate::postgres::Postgres;

/// After so many turns of tasks a thread looks for what has arrived, so that new requests are on their way to Redis while
/// the answers to others are written. Tokio's own 61 are as many as clients often have connections.
const EVENT_INTERVAL: u32 = 16;

/// What the executable can do.
#[derive(Debug, Subcommand)]
#[expect(
    missing_docs,
    reason = "clap would print them as the help of a whole group"
)]
pub enum Command {
    /// Serve, with a Redis and a Postgres that run elsewhere
    Serve {
        #[command(flatten)]
        settings: Settings,
        #[command(flatten)]
        servers: ServerSettings,
        /// Bring the database's schema up to date first
        #[arg(long, env = "TALLYMAN_MIGRATE", value_parser = clap::builder::BoolishValueParser::new())]
        migrate: bool,
    },
    /// Serve on this machine, with private servers and nothing to configure
    Dev {
        #[command(flatten)]
        options: dev::Options,
        #[command(flatten)]
        settings: Settings,
    },
    /// Bring the database's schema up to date
    Migrate {
        #[command(flatten)]
        database: DatabaseSettings,
    },
    /// Ask the service on this machine whether it is ready; ends with 1 if it is not
    Healthcheck {
        #[command(flatten)]
        listen: ListenSettings,
    },
    /// Print the OpenAPI document
    Openapi,
    /// Make, list and revoke API keys, without the service
    Keys(keys::Options),
    /// Show and change an organization, by way of the service
    Org(administer::OrgOptions),
    /// List, make, change and delete plans, by way of the service
    Plan(administer::PlanOptions),
    /// Reset every organization whose time has come, by way of the service
    ResetExpired(administer::ResetExpiredOptions),
    /// Compare what Redis and Postgres hold, by way of the service; ends with 1 if it does not fit
    Verify(administer::VerifyOptions),
}

/// What went wrong, causes included, as lines that a terminal does not obey.
pub fn readable(error: &anyhow::Error) -> String {
    let text = format!("{error:#}");
    let lines: Vec<String> = text.lines().map(service::harmless).collect();
    lines.join("\n")
}

/// Does it.
pub fn run(command: Command) -> Result<()> {
    // Neither Redis nor HTTP brings a TLS provider of its own. An error means that there is one already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    match command {
        Command::Serve {
            settings,
            servers,
            migrate,
        } => {
            let (config, servers) = settings.check_with(&servers)?;
            runtime(config.workers)?.block_on(serve(config, servers, migrate))
        }
        Command::Dev { options, settings } => {
            let config = settings.check()?;
            let _log = logging::start(&config.log);
            logging::log_panics();
            runtime(config.workers)?.block_on(dev::run(options, config))
        }
        Command::Migrate { database } => {
            let url = database.check()?;
            runtime(1)?.block_on(async { Ok(Postgres::new(&url, 1)?.migrate().await?) })
        }
        Command::Openapi => print_openapi(),
        Command::Healthcheck { listen } => runtime(1)?.block_on(healthcheck::run(listen.check()?)),
        Command::Keys(options) => runtime(1)?.block_on(keys::run(options, Clock::System)),
        Command::Org(options) => runtime(1)?.block_on(administer::org(options)),
        Command::Plan(options) => runtime(1)?.block_on(administer::plan(options)),
        Command::ResetExpired(options) => runtime(1)?.block_on(administer::reset_expired(options)),
        Command::Verify(options) => runtime(1)?.block_on(administer::verify(options)),
    }
}

fn runtime(workers: usize) -> Result<Runtime> {
    // One thread needs no scheduler that shares work among several.
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
    let address = config.listen;
    let listener = TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot listen on {address}"))?;
    let address = listener.local_addr()?;
    let app = App::build(config, servers, Clock::System).await?;
    tracing::info!("listening on http://{address}");
    app.serve(listener, stop).await
}

#[expect(clippy::print_stdout, reason = "the document is what was asked for")]
fn print_openapi() -> Result<()> {
    println!("{}", http::openapi().to_pretty_json()?);
    Ok(())
}
