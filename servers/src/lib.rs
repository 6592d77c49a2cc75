//! Private Redis and Postgres servers, for `tallyman dev`, the tests and the load tool; also, for tests,
//! a Redis Cluster and a Redis with Sentinel.
//!
//! Each server owns one directory and keeps everything in it:
//!
//! ```text
//! redis/     redis.log       data and socket of Redis, and its output since its last start
//! postgres/  postgres.log    the same of Postgres
//! ```
//!
//! The nodes of a cluster (`node-0`, `node-1`, …) and the sentinels (`sentinel-0`, …) have a directory with
//! the `redis` and `redis.log` of each.
//!
//! Guarantees:
//!
//! - Servers listen on unix sockets in directories that only their owner can read, never on a port.
//!   Nodes and sentinels, which need ports, listen on loopback. Nodes require a random password that only
//!   their owner can read; sentinels do so on request.
//! - They stop cleanly when their parent process ends, even if it is killed; nodes and sentinels, which
//!   may be paused, are killed. A terminal's Ctrl-C reaches only the parent.
//! - A start finds the data of the previous run, except that a cluster and a Redis with Sentinel start
//!   empty. It waits for a server that is still stopping, removes what a killed one left, and restarts an
//!   interrupted initialization.
//! - Redis is the program that the variable `TALLYMAN_TEST_REDIS` names, if it is set: another version, or
//!   Valkey.
//! - Every error is one line that says what to do or where to look.

mod account;
mod cluster;
mod node;
mod paths;
mod ports;
mod postgres;
mod process;
mod redis;
mod sentinel;
mod slots;
mod wait;

pub use self::cluster::{ClusterOptions, Migration, RedisCluster};
pub use self::node::NodeInfo;
pub use self::postgres::{PostgresOptions, PostgresServer};
pub use self::process::{Log, Process, watched};
pub use self::redis::{RedisOptions, RedisServer};
pub use self::sentinel::{RedisSentinel, SentinelOptions};
pub use self::slots::{SLOTS, key_slot};
