//! Background jobs: each has `run`, a loop, and a function that does the work once, which is what tests call.

pub mod flush;
pub mod gc;
pub mod periods;
pub mod summaries;
pub mod webhooks;
