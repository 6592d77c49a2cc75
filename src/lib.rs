//! Tallyman counts what organizations use and stops them where their plan ends.
//!
//! Read it in this order; a module uses lower floors only, which a test enforces:
//!
//! | floor | modules | what they hold |
//! |---|---|---|
//! | 0 | [`domain`] | the rules, pure |
//! | 1 | [`clock`], [`config`], [`budget`], [`link`], [`pressure`], [`metrics`] | the only readers of wall time and of the environment; bounds on concurrent work and on queues, and links to servers; what is measured |
//! | 2 | [`redis`], [`postgres`], [`coalescer`] | the only code that speaks Redis, and SQL; coalesced batches of what callers ask them |
//! | 3 | [`context`], [`failure`] | the handles, settings and failures that every use case shares |
//! | 4 | [`policies`], [`auth`] | effective policies, and authentication |
//! | 5 | [`usage`] | counting, reading, history, recovery and verification |
//! | 6 | [`admin`] | what administrators change |
//! | 7 | [`jobs`] | background jobs: flushing, usage summaries, ending periods, garbage collection, webhooks |
//! | 8 | [`http`] | HTTP and JSON |
//! | 9 | [`dashboard`], [`server`], [`logging`] | pages over the HTTP API, connections, and the log |
//! | 10 | [`app`] | wires everything; starts, supervises and stops it |
//! | 11 | [`cli`] | commands of the executable, and private servers for development |

pub mod admin;
pub mod app;
pub mod auth;
pub mod budget;
pub mod cli;
pub mod clock;
pub mod coalescer;
pub mod config;
pub mod context;
pub mod dashboard;
pub mod domain;
pub mod failure;
pub mod http;
pub mod jobs;
pub mod link;
pub mod logging;
pub mod metrics;
pub mod policies;
pub mod postgres;
pub mod pressure;
pub mod redis;
pub mod server;
pub mod usage;
