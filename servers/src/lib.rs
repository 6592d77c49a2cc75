//! Private Redis and Postgres servers, for `tallyman dev`, the tests and the load tool.
//!
//! Each server owns one directory and keeps everything in it:
//!
//! ```text
//! redis/     redis.log       data and socket of Redis, and its output since its last start
//! postgres/  postgres.log    the same of Postgres
//! ```
//!
//! Guarantees:
//!
//! - Servers listen on unix sockets in directories that only their owner can read, never on a port.
//! - They stop cleanly when their parent process ends, even if it is killed. A terminal's Ctrl-C
//!   reaches only the parent.
//! - A start finds the data of the previous run. It waits for a server that is still stopping,
//!   removes what a killed one left, and restarts an interrupted initialization.
//! - Every error is one line that says what to do or where to look.

mod account;
mod paths;
mod postgres;
mod process;
mod redis;

pub use self::postgres::{PostgresOptions, PostgresServer};
pub use self::process::{Log, Process, watched};
pub use self::redis::{RedisOptions, RedisServer};
