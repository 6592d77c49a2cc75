//! Waiting for several servers to agree.

use std::time::Duration;

use anyhow::{Result, bail};
use tokio::time::{Instant, sleep};

const WAIT_MAX: Duration = Duration::from_mins(1);
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Repeats `probe` until it succeeds. After a minute, fails with its last error.
pub(crate) async fn until(awaited: &str, mut probe: impl AsyncFnMut() -> Result<()>) -> Result<()> {
    let deadline = Instant::now() + WAIT_MAX;
    while let Err(error) = probe().await {
        if Instant::now() >= deadline {
            bail!("{awaited} took more than {WAIT_MAX:?}: {error:#}");
        }
        sleep(POLL_INTERVAL).await;
    }
    Ok(())
}
