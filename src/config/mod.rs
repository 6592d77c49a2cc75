//! The settings: each one a flag and a `TALLYMAN_…` variable, listed by `--help`.
//!
//! The only reader of the environment. [`parse()`] reports all invalid settings together, so that a deployment is
//! corrected in one go.

mod parse;
mod servers;
mod settings;
#[cfg(test)]
mod tests;
mod values;

pub use self::parse::{InvalidSettings, parse};
pub use self::servers::{DatabaseSettings, Servers};
pub use self::settings::{Config, ConnectionLimits, JwtConfig, LogConfig, PLUGIN_PATH, TlsConfig};
pub use self::values::{API_PATHS, Origins, address};
