//! The settings: each one a flag and a `TALLYMAN_…` variable, listed by `--help`.
//!
//! The only reader of the environment. [`parse()`] reports all invalid settings together, so that a deployment is
//! corrected in one go.

mod parse;
mod settings;
#[cfg(test)]
mod tests;
mod values;

pub use self::parse::{InvalidSettings, parse};
pub use self::settings::{
    Config, ConnectionLimits, DatabaseSettings, JwtConfig, LogConfig, PLUGIN_PATH, Servers,
    TlsConfig,
};
pub use self::values::{API_PATHS, Origins, address};
