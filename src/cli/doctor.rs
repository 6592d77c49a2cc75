//! `tallyman doctor`: checks the servers and this machine before a service relies on them.

use std::fmt::Write as _;

use anyhow::{Result, bail};
use clap::Args;

use super::service::{escape, print};
use crate::clock::Clock;
use crate::config::{Config, Servers, TlsConfig};
use crate::domain::checkup::{Finding, Needs, Severity};
use crate::postgres::{self, Postgres};
use crate::redis;
use crate::server::{Tls, files_needed};

/// What the service would be started with.
#[derive(Debug, Args)]
pub(super) struct Options {
    #[command(flatten)]
    config: Box<Config>,
    #[command(flatten)]
    servers: Servers,
}

/// Prints a line for each check; fails if there is a failure among them.
pub(super) async fn run(options: Options, clock: Clock) -> Result<()> {
    let Options { config, servers } = options;
    let connections = config.database_connections;
    let (files, files_max) = files_needed(config.connections.max, connections);
    let needs = Needs {
        database_connections: u64::from(connections) + 1,
        files,
        files_max,
    };
    let failed = |error: &dyn std::fmt::Display| {
        let text =
            format!("it cannot be asked: {error}; check the URL, the network and the password");
        let severity = Severity::Failure;
        vec![Finding { severity, text }]
    };
    let from_redis = async {
        let facts = redis::facts::read(&servers.redis_url, &config.redis_prefix, &clock).await;
        let masters = match facts {
            Ok(masters) => masters,
            Err(error) => return vec![("Redis".to_owned(), failed(&error))],
        };
        let is_one = masters.len() == 1;
        let findings = masters.into_iter().map(|(address, facts)| {
            let findings = facts.map_or_else(|error| failed(&error), |facts| facts.findings());
            let subject = if is_one {
                "Redis".to_owned()
            } else {
                format!("Redis {address}")
            };
            (subject, findings)
        });
        findings.collect()
    };
    let from_postgres = async {
        let facts = async {
            let postgres = Postgres::new(&servers.database_url, 1)?;
            postgres::facts::read(&postgres, &clock).await
        };
        let facts = facts.await;
        facts.map_or_else(|error| failed(&error), |facts| facts.findings(&needs))
    };
    let mut of_machine = needs.findings();
    of_machine.extend(config.tls.enabled().map(certificate));
    let (of_redis, of_postgres) = tokio::join!(from_redis, from_postgres);
    let mut text = String::new();
    let mut failures = 0_usize;
    let mut subjects = of_redis;
    subjects.push(("Postgres".to_owned(), of_postgres));
    subjects.push(("This machine".to_owned(), of_machine));
    for (subject, findings) in subjects {
        let _ = writeln!(text, "{subject}");
        for Finding {
            severity,
            text: found,
        } in findings
        {
            failures += usize::from(severity == Severity::Failure);
            let _ = writeln!(text, "  {:<8} {}", severity.to_string(), escape(&found));
        }
    }
    print(&text)?;
    match failures {
        0 => Ok(()),
        1 => bail!("1 failure: the service cannot run safely with these servers and settings"),
        _ => bail!(
            "{failures} failures: the service cannot run safely with these servers and settings"
        ),
    }
}

/// Whether the certificate of the listener can be used.
fn certificate(files: TlsConfig) -> Finding {
    match Tls::load(files) {
        Ok(_) => Finding {
            severity: Severity::Good,
            text: "its certificate and the key of it fit each other".to_owned(),
        },
        Err(error) => Finding {
            severity: Severity::Failure,
            text: format!("{error:#}"),
        },
    }
}
