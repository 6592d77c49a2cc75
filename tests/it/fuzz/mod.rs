//! Fuzzing: every target, each a property that random input must not break.
//!
//! `make test` runs some hundred cases of each; `make fuzz` runs the same for ten minutes each, or `FUZZ_SECONDS`. A failure
//! is shrunk, and printed with the seed that repeats it.

mod calendars;
mod counters;
mod ids;
mod requests;

use std::cell::Cell;
use std::fmt::Debug;
use std::time::{Duration, Instant};

use proptest::strategy::Strategy;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseResult, TestRng, TestRunner};

/// The most attempts at a smaller failing case.
const SHRINKS_MAX: u32 = 500;

/// Runs a target with so many cases, or with as many as fit in `FUZZ_SECONDS`.
fn fuzz<S>(cases: u32, inputs: &S, check: impl Fn(S::Value) -> TestCaseResult)
where
    S: Strategy,
    S::Value: Debug,
{
    let started = Instant::now();
    let time = variable("FUZZ_SECONDS").map_or(Duration::ZERO, Duration::from_secs);
    let given = variable("FUZZ_SEED");
    let mut seed = given.unwrap_or_else(|| fastrand::u64(..));
    let checked = Cell::new(0_u64);
    loop {
        let config = Config {
            cases,
            max_shrink_iters: SHRINKS_MAX,
            failure_persistence: None,
            ..Config::default()
        };
        let bytes = seed.to_le_bytes().repeat(4);
        let random = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
        let mut runner = TestRunner::new_with_rng(config, random);
        let run = runner.run(inputs, |input| {
            checked.set(checked.get() + 1);
            check(input)
        });
        if let Err(failure) = run {
            panic!("{failure}\nrepeat it with FUZZ_SEED={seed}");
        }
        if given.is_some() || started.elapsed() >= time {
            break;
        }
        seed = seed.wrapping_add(1);
    }
    if !time.is_zero() {
        let test = std::thread::current();
        let name = test.name().unwrap_or_default();
        eprintln!("{name}: {} cases hold", checked.get());
    }
}

/// A number in the environment.
fn variable(name: &str) -> Option<u64> {
    let text = std::env::var_os(name)?;
    let number = text.to_str().and_then(|text| text.parse().ok());
    Some(number.unwrap_or_else(|| panic!("{name} must be a number")))
}
