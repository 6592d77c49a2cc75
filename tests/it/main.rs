//! Tests that need servers: one binary, one file for each guarantee.
#![expect(clippy::unwrap_used, reason = "a test fails at the first error")]
#![expect(
    clippy::disallowed_methods,
    reason = "tests have no task tracker and set environment variables of child processes"
)]
#![expect(unreachable_pub, reason = "a test binary exports nothing")]

mod adjustments;
mod analytics;
mod audit;
mod batch;
mod bench;
mod calendars;
mod command_line;
mod conditional;
mod connections;
mod cors;
mod counting;
mod credentials;
mod dashboard;
mod dashboard_forms;
mod dashboard_live;
mod dashboard_outages;
mod dashboard_pages;
mod deletion;
mod deployment;
mod dev;
mod displays;
mod doctor;
mod documents;
mod dry_runs;
mod effective;
mod embed_links;
mod events;
mod exactly_once;
mod faults;
mod flushing;
mod gc;
mod headers;
mod healthcheck;
mod history;
mod history_columns;
mod idempotency;
mod interrupted_changes;
mod keys;
mod late_and_refunds;
mod lessons;
mod limits;
mod live;
mod logs;
mod metrics;
mod model;
mod notified_once;
mod openapi;
mod organization_list;
mod outages;
mod patching;
mod periods;
mod plans;
mod plugin;
mod pool;
mod problems;
mod projections;
mod protocol;
mod provisioning;
mod receivers;
mod recovery;
mod resets;
mod restore;
mod scheduled;
mod sessions;
mod shared_policies;
mod structure;
mod summary;
mod support;
mod temporary;
mod thresholds;
mod throttling;
mod tidy;
mod tls;
mod tokens;
mod usage;
mod usage_import;
mod verify;
mod webhooks;
mod words;
mod wrong_values;
