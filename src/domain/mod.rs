//! The rules: what is counted, in which period, against which limit.
//!
//! Pure: no I/O, no async, no framework, no clock; instants are arguments. Values are validated when they are parsed. The
//! files use each other in one direction only.
//!
//! Glossary, for Rust, Lua, SQL, JSON and docs alike:
//!
//! - **organization**: the tenant that is counted, under the auth server's own id.
//! - **meter**: what is counted (`api`, `tokens`, …).
//! - **period**: the half-open interval `[start, end)` that a count belongs to.
//! - **slot**: an hour, cut where a day of some time zone begins within it; history adds slots up.
//! - **used** / **denied**: units counted, net of refunds / calls denied, in a period.
//! - **limit**: units included in a period; none = unlimited, 0 = nothing.
//! - **enforcement**: `hard` denies what does not fit, `soft` counts it as overage.
//! - **threshold**: a percentage of the limit, or the limit itself, whose crossing is notified once in a period.
//! - **event**: a crossed threshold, a reset, a limit change or a deletion, recorded once.
//! - **webhook**: a registered URL that events are sent to.
//! - **delivery**: one event for one webhook, with its retries.
//! - **plan**: a named set of limits and features that organizations share.
//! - **feature**: one named value of a plan or an organization.
//! - **policy**: everything that decides about one organization: its settings over its plan over the defaults.
//! - **policy version**: the number of the newest change in a policy; drawn in one order for all organizations.
//! - **minimum version**: the version of a plan, or of the defaults, below which a cached policy is stale.
//! - **fence**: a mark that stops an organization's calls while a deletion or a calendar change is committed.
//! - **incarnation**: the policy version of an organization's last deletion; what older policies decided is stale.
//! - **generation**: the number of a shard's data set in Redis; a restart or loss of Redis starts another.
//! - **snapshot**: the absolute value of a counter, as stored in Postgres.
//! - **recovery**: opening a missing counter at zero, or restoring it from its snapshot.
//! - **pace**: how fast a meter has been used in the last 24 hours and 7 days; a **projection** concludes from it what follows.
//! - **usage summary**: state, percentage and count of an organization, for sorted lists.
//! - **walk**: a job that visits every organization, or every key of Redis, over and over.
//! - **lane**: a queue of counting calls that has one batch in flight at a time.
//! - **lease**: a claim on work that expires by itself.
//! - **idempotency record**: the stored response to an idempotency key.
#![warn(clippy::arithmetic_side_effects)]

pub mod api_key;
pub mod calendar;
pub mod checkup;
pub mod counter;
pub mod decision;
pub mod display;
pub mod event;
pub mod feature;
pub mod history;
pub mod ids;
pub mod input;
pub mod instant;
pub mod limit;
pub mod month;
pub mod organization;
pub mod past_usage;
pub mod patch;
pub mod period;
pub mod plan;
pub mod policy;
pub mod precondition;
pub mod projection;
pub mod quantity;
pub mod retention;
pub mod retry;
pub mod schedule;
pub mod slot;
pub mod summary;
pub mod text;
pub mod threshold;
pub mod threshold_events;
pub mod verification;
pub mod walk;
pub mod wall_clock;
pub mod webhook;
