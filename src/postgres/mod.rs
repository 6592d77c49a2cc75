//! The only module that speaks SQL.
//!
//! Postgres holds the newest snapshot of every count, in absolute numbers, and all settings. It is off the hot path:
//! it is queried for what Redis does not have. A test runs every statement.

pub mod adjustments;
pub mod api_keys;
pub mod audit;
mod defaults;
pub mod deletions;
pub mod demo;
mod error;
pub mod events;
pub mod facts;
mod health;
pub mod history;
pub mod idempotency;
mod incarnations;
pub mod organizations;
pub mod overview;
pub mod past_limits;
pub mod past_usage;
mod pending;
pub mod pending_increments;
pub mod periods;
pub mod plans;
mod pool;
pub mod readers;
pub mod resets;
pub mod running_totals;
mod sources;
pub mod summaries;
mod types;
pub mod usage;
pub mod verification;
pub mod walk;
pub mod webhooks;
pub mod zoned_history;

pub use audit::Actor;
pub use error::Error;
pub use pool::{Patience, Postgres, Uncommitted};
