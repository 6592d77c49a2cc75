//! Keeps this instance and Redis up to date with Postgres: policies, plans and API keys.

use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::driver::Job;
use crate::auth::Auth;
use crate::context::Context;
use crate::failure::Failure;
use crate::metrics::Worker;
use crate::policies::Policies;

/// Between two sweeps.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// Between two updates of when API keys were last used.
const USES_INTERVAL: Duration = Duration::from_mins(1);

/// Applies changes of policies until `stop`, and listens to the announcements of other instances.
pub async fn policies(ctx: Context, policies: Policies, stop: CancellationToken) {
    let mut sweep = Job::new(&ctx, Some(Worker::PolicySweep), "sync policies");
    // Next to the sweep, which may have much to apply, so that no instance uses a stale plan for longer than documented.
    let mut plans = Job::new(&ctx, None, "load changes of plans");
    tokio::join!(
        sweep.paced(SWEEP_INTERVAL, &stop, || async {
            let started = Instant::now();
            let swept = policies.sweep_once().await?;
            // As after a loss of Redis: for half of the time.
            let pause = if swept.more {
                started.elapsed()
            } else {
                SWEEP_INTERVAL
            };
            Ok::<_, Failure>(pause.min(SWEEP_INTERVAL))
        }),
        plans.every(SWEEP_INTERVAL, &stop, || policies.learn()),
        policies.listen(&stop),
    );
}

/// Mirrors API keys in Redis until `stop`, and stores in Postgres when they were last used.
pub async fn api_keys(ctx: Context, auth: Auth, stop: CancellationToken) {
    let mut sweep = Job::new(&ctx, Some(Worker::KeySweep), "mirror API keys in Redis");
    let mut uses = Job::new(&ctx, None, "store when API keys were last used");
    let mirror = async {
        // At once, because a Redis that is new has no keys.
        Box::pin(sweep.round(auth.sweep_once())).await;
        sweep
            .every(SWEEP_INTERVAL, &stop, || auth.sweep_once())
            .await;
    };
    tokio::join!(
        mirror,
        uses.every(USES_INTERVAL, &stop, || auth.store_uses()),
    );
    uses.round(auth.store_uses()).await;
}
