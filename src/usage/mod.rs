//! Counting (track, consume, check and refund), and reading usage.
//!
//! Redis decides and counts (`lua/count.lua`). This module plans the call, with the policy and the period that apply
//! now ([`plan`]), and provides what Redis lacks: a missing counter is opened or restored ([`recovery`]), and a newer
//! policy is looked up. Single requests ([`count`]) and batches ([`batch`]) take the same steps. Start reading at
//! [`Usage::decide`].

mod admission;
mod batch;
mod count;
pub mod drain;
mod effective;
mod error;
pub mod history;
mod list;
mod plan;
mod projections;
mod read;
pub mod recovery;
mod restore;
mod types;
pub mod verify;

pub use count::Usage;
pub use error::Error;
pub use list::{Entry, Page};
pub use read::OrganizationUsage;
pub use types::{Decided, Degraded, MeterUsage, Refused, Request};
