//! The rules: what is counted, in which period, against which limit.
//!
//! Pure: no I/O, no async, no framework, no clock; instants are arguments.
//! Everything here is parsed once at the edge and trusted afterwards.
//!
//! The words used everywhere, in Rust, Lua, SQL, JSON and docs alike:
//!
//! - **organization**: the tenant being counted, under the auth server's own id.
//! - **meter**: what is counted (`api`, `tokens`, …).
//! - **period**: the half-open interval `[start, end)` that a count belongs to.
//! - **slot**: an hour, or the part of one between two instants at which days begin in some zone; what history adds up.
//! - **used** / **denied**: units counted, and calls refused, in a period.
//! - **limit**: units that a period includes; none = unlimited, 0 = nothing.
//! - **enforcement**: `hard` refuses what does not fit, `soft` lets it become overage.
//! - **event**: what happened to an organization and is worth telling, recorded once.
//! - **webhook**: somebody's URL that events are sent to; each event for each is a **delivery**.
//! - **plan**: a named set of limits and features, shared by the organizations on it.
//! - **feature**: one named value of a plan or an organization.
//! - **policy**: all that decides about one organization, resolved and versioned.
#![warn(clippy::arithmetic_side_effects)]

pub mod api_key;
pub mod counter;
pub mod decision;
pub mod event;
pub mod history;
pub mod ids;
pub mod input;
pub mod patch;
pub mod period;
pub mod plan;
pub mod policy;
pub mod precondition;
pub mod quantity;
pub mod retention;
pub mod retry;
pub mod schedule;
pub mod slot;
pub mod summary;
pub mod threshold;
pub mod verification;
pub mod webhook;
