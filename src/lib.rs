//! Tallyman counts what organizations use and stops them where their plan ends.
//!
//! Read it in this order; a module uses lower floors only, which a test enforces:
//!
//! | floor | modules | what they hold |
//! |---|---|---|
//! | 0 | [`domain`] | the rules, pure |
//! | 1 | [`clock`], [`config`], [`groups`], [`budget`], [`metrics`] | the only readers of wall time and of the environment; how callers share round trips, and what each may have under way; what is measured |
//! | 2 | [`counters`], [`store`] | the only code that speaks Redis, and SQL |
//! | 3 | [`policies`], [`access`], [`opening`] | what is in force, who may call, and counters that Redis does not know |
//! | 4 | [`metering`], [`history`], [`flusher`], [`forgetter`], [`admin`], [`webhooks`], [`verifier`] | use cases and workers |
//! | 5 | [`state`], [`scheduler`] | the handles that the HTTP faces share; what is done on time |
//! | 6 | [`api`] | HTTP and JSON |
//! | 7 | [`server`], [`telemetry`] | connections, and the log |
//! | 8 | [`app`] | wire everything; start, supervise and stop it |
//! | 9 | [`dev`] | the same with private servers |
//! | 10 | [`commands`] | what the executable can do |

pub mod access;
pub mod admin;
pub mod api;
pub mod app;
pub mod budget;
pub mod clock;
pub mod commands;
pub mod config;
pub mod counters;
pub mod dev;
pub mod domain;
pub mod flusher;
pub mod forgetter;
pub mod groups;
pub mod history;
pub mod metering;
pub mod metrics;
pub mod opening;
pub mod policies;
pub mod scheduler;
pub mod server;
pub mod state;
pub mod store;
pub mod telemetry;
pub mod verifier;
pub mod webhooks;
