//! `tallyman keys`: creates, lists and revokes API keys without the service, for the first key and for lost ones.
//!
//! Needs only Postgres; running instances notice a change within seconds. Results are on standard output, messages on
//! standard error.

use anyhow::{Result, bail};
use chrono::{DateTime, SecondsFormat, SubsecRound as _, Utc};
use clap::{Args, Subcommand};
use serde_json::json;

use super::service::{escape, print, print_json};
use crate::clock::Clock;
use crate::config::DatabaseSettings;
use crate::domain::api_key::{ApiKey, NewApiKey, Scope};
use crate::domain::ids::{ApiKeyId, ApiKeyName, OrganizationId};
use crate::domain::instant::{InvalidInstant, parse_instant};
use crate::postgres::api_keys::{self, IssuedKey};
use crate::postgres::{Actor, Postgres};

/// Options of `tallyman keys`.
#[derive(Debug, Args)]
pub struct Options {
    #[command(subcommand)]
    action: Action,
    #[command(flatten)]
    database: DatabaseSettings,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Create a key and print it; it is not shown again
    Create {
        /// Descriptive name
        #[arg(long)]
        name: ApiKeyName,
        /// Permission: `ingest`, `refund`, `read`, `reset`, `provision` or `admin`; can be repeated
        #[arg(
            long = "scope",
            value_name = "SCOPE",
            value_delimiter = ',',
            required = true
        )]
        scopes: Vec<Scope>,
        /// Restrict it to this organization
        #[arg(long, value_name = "ID")]
        organization: Option<OrganizationId>,
        /// When it expires, such as 2030-01-31T00:00:00Z
        #[arg(long, value_name = "TIME", value_parser = instant)]
        expires: Option<DateTime<Utc>>,
        /// Print all properties as JSON
        #[arg(long)]
        json: bool,
    },
    /// List all keys, newest first, without their secrets
    List {
        /// Print them as JSON
        #[arg(long)]
        json: bool,
    },
    /// Revoke a key permanently
    Revoke {
        /// Its id: the part between `tm_` and the next `_`
        id: ApiKeyId,
    },
}

/// Keys per query.
const PAGE: u32 = 1000;

/// Runs `tallyman keys`.
pub async fn run(options: Options, clock: Clock) -> Result<()> {
    let postgres = Postgres::new(&options.database.url()?, 1)?;
    match options.action {
        Action::Create {
            name,
            scopes,
            organization,
            expires,
            json,
        } => {
            let new = NewApiKey {
                name,
                scopes: scopes.try_into()?,
                organization_id: organization,
                expires_at: expires,
            };
            if let Err(invalid) = new.check(clock.now()) {
                bail!("{}: {invalid}", invalid.field);
            }
            print_key(&api_keys::create(&postgres, &new, &actor()).await?, json)
        }
        Action::List { json } => print_list(&all(&postgres).await?, json),
        Action::Revoke { id } => {
            if !api_keys::revoke(&postgres, &id, &actor()).await? {
                bail!("there is no API key {id}");
            }
            eprintln!("Revoked. Running instances refuse it within 5 seconds.");
            Ok(())
        }
    }
}

/// The actor in the audit log.
fn actor() -> Actor {
    Actor {
        name: "tallyman keys".to_owned(),
        request_id: String::new(),
    }
}

fn instant(text: &str) -> Result<DateTime<Utc>, InvalidInstant> {
    Ok(parse_instant(text)?.trunc_subsecs(3))
}

async fn all(postgres: &Postgres) -> Result<Vec<ApiKey>> {
    let mut keys: Vec<ApiKey> = Vec::new();
    loop {
        let last = keys.last().map(|key| key.id.clone());
        let page = api_keys::list(postgres, last.as_ref(), PAGE).await?;
        if page.is_empty() {
            return Ok(keys);
        }
        keys.extend(page);
    }
}

fn print_key(issued: &IssuedKey, json: bool) -> Result<()> {
    if json {
        let mut shown = serde_json::to_value(&issued.key)?;
        shown["key"] = json!(issued.text);
        print_json(&shown)
    } else {
        eprintln!(
            "Created the API key {}. It is not shown again:",
            issued.key.id
        );
        print(&format!("{}\n", issued.text))
    }
}

fn print_list(keys: &[ApiKey], json: bool) -> Result<()> {
    if json {
        return print_json(&keys);
    }
    let headings = [
        "ID",
        "SCOPES",
        "ORGANIZATION",
        "EXPIRES",
        "LAST USED",
        "REVOKED",
        "NAME",
    ];
    let mut table = row(headings);
    for key in keys {
        let organization = key.organization_id.as_ref();
        table.push_str(&row([
            key.id.as_str(),
            &key.scopes.to_string(),
            organization.map_or("-", OrganizationId::as_str),
            &time(key.expires_at),
            &time(key.last_used_at),
            &time(key.revoked_at),
            &escape(key.name.as_str()),
        ]));
    }
    print(&table)
}

fn row([id, scopes, organization, expires, used, revoked, name]: [&str; 7]) -> String {
    format!(
        "{id:16}  {scopes:18}  {organization:20}  {expires:20}  {used:20}  {revoked:20}  {name}\n"
    )
}

fn time(at: Option<DateTime<Utc>>) -> String {
    at.map_or("-".to_owned(), |at| {
        at.to_rfc3339_opts(SecondsFormat::Secs, true)
    })
}
