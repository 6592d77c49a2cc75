//! The settings of the servers that the service needs.

use std::collections::BTreeSet;
use std::fmt;

use clap::Args;

use super::parse::InvalidSettings;
use super::values::{database_url, redis_url};

/// URLs of the servers; `tallyman dev` starts its own. `Debug` hides the URLs, which contain passwords.
#[derive(Clone, Args)]
#[command(next_help_heading = "Servers")]
pub struct Servers {
    /// Redis 7 or newer: `redis://`, `rediss://` or `redis+unix://`; a cluster: `redis://host,host,host?cluster=true`; a
    /// master that sentinels name: `redis+sentinel://host,host,host/name`
    #[arg(long, env = "TALLYMAN_REDIS_URL", value_name = "URL", default_value = "", hide_default_value = true, hide_env_values = true, value_parser = redis_url)]
    pub redis_url: String,

    /// Postgres 15 or newer: `postgres://user:password@host/database`
    #[arg(long, env = "TALLYMAN_DATABASE_URL", value_name = "URL", default_value = "", hide_default_value = true, hide_env_values = true, value_parser = database_url)]
    pub database_url: String,
}

impl fmt::Debug for Servers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Servers { … }")
    }
}

/// The URL of Postgres, for commands that need nothing else.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Servers")]
pub struct DatabaseSettings {
    /// Postgres 15 or newer: `postgres://user:password@host/database`
    #[arg(long, env = "TALLYMAN_DATABASE_URL", value_name = "URL", global = true, hide_env_values = true, value_parser = database_url)]
    database_url: Option<String>,
}

impl DatabaseSettings {
    /// The URL, unless it is missing.
    pub fn url(&self) -> Result<String, InvalidSettings> {
        let url = self.database_url.as_deref().unwrap_or_default();
        database_url(url).map_err(|rule| {
            let line = format!("TALLYMAN_DATABASE_URL (--database-url) {rule}");
            InvalidSettings(BTreeSet::from([(0, line)]))
        })
    }
}
