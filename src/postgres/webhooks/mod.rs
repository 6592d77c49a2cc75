//! Webhooks and their deliveries.
//!
//! A delivery is written in the statement that records its event. A sender leases it by moving `next_at` ahead: the
//! lease expires by itself, and the value of `next_at` fences results that are reported after that.

mod deliveries;
mod endpoints;

pub use deliveries::{
    Attempt, Claimed, Health, Message, claim, deliveries, due, record, redeliver, test,
};
pub use endpoints::{change, create, delete, find, list, rotate, subscribed};
