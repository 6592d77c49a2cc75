//! Calls of `count.lua`: lanes gather concurrent operations into batches.

pub(super) mod batch;
pub(super) mod lane;
