//! Calls of `count.lua`: lanes gather concurrent operations into batches.

mod batch;
mod lane;
pub(super) mod lanes;
pub(super) mod reply;
pub(super) mod types;
mod waiting;
