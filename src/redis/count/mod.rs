//! Calls of `count.lua`: lanes gather concurrent operations into batches.

mod batch;
pub(super) mod lane;
pub(super) mod reply;
pub(super) mod types;
