//! Background jobs. Each has `run`, which loops until it is stopped, and a function that does one round, which tests call.

pub mod activity;
pub mod drain;
mod driver;
pub mod erase;
pub mod flush;
pub mod gc;
pub mod live;
pub mod periods;
pub mod retention;
pub mod summaries;
pub mod sync;
pub mod webhooks;

pub use driver::Supervisor;
