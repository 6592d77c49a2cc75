//! Property tests over random histories.

use proptest::strategy::Strategy;
use proptest::test_runner::{Config, TestRunner};

/// Runs random histories, as many as `PROPTEST_CASES` says or else `cases`, and shrinks one that fails.
pub fn each_history<S: Strategy>(
    cases: u32,
    shrinks_max: u32,
    histories: S,
    run: impl AsyncFn(S::Value),
) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let mut config = Config {
        failure_persistence: None,
        max_shrink_iters: shrinks_max,
        ..Config::default()
    };
    if std::env::var("PROPTEST_CASES").is_err() {
        config.cases = cases;
    }
    let ran = TestRunner::new(config).run(&histories, |history| {
        runtime.block_on(run(history));
        Ok(())
    });
    ran.unwrap_or_else(|failure| panic!("{failure}"));
}
