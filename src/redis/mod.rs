//! The only code that speaks Redis: key grammar, scripts, connections, and a typed call for each use.
//!
//! Decides nothing: what to count comes from `usage`, the rule is in `lua/count.lua`. A missing counter is *unknown*, never
//! zero, and no function of this module pretends otherwise. Start reading at [`Redis`].

mod address;
mod announcement;
mod api_keys;
mod channel;
mod client;
mod codec;
mod connection;
mod count;
mod counter_value;
mod counters;
mod deployment;
mod drain;
mod erase;
mod error;
pub mod facts;
mod fences;
mod flush;
mod gc;
mod keys;
mod node;
mod organizations;
mod pool;
mod recovery;
mod replication;
mod routes;
mod scan;
mod scripts;
mod shard;
mod stamp;
mod topology;
mod watermark;

pub use announcement::Announcement;
pub use api_keys::KeyChanges;
pub use client::Redis;
pub use connection::Connection;
pub use count::types::{Answer, Charge, IdempotencyUse, Miss, Operation, Outcome, Reading};
pub use counters::READ_MAX;
pub use deployment::{Settings, Unnumbered};
pub use drain::{Drain, DrainReply, DrainedOperation, Increment};
pub use erase::Erased;
pub use error::Error;
pub use flush::{Backlog, Settlement};
pub use gc::Collected;
pub use organizations::{Configuration, Configured, KnownOrganization, PolicyText};
pub use pool::Pooled;
pub use recovery::{Correction, Missing, Moved, Next, RecoveryReply};
pub use shard::{SHARDS, Shard};
pub use watermark::Watermark;
