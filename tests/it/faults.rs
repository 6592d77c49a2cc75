//! A short run of the fault harness: a few faults of the instances, Redis and Postgres, with fixed seeds.

use clap::Parser as _;
use tallyman_bench::Arguments;

#[test]
fn faults_under_load_lose_and_double_nothing_and_every_call_is_answered() {
    for (seed, faults) in [
        (
            "1",
            "instance-killed,instance-stopped,clock-ahead,redis-hangs",
        ),
        (
            "2",
            "redis-killed,redis-replies-lost,postgres-killed,postgres-locked",
        ),
        ("3", "redis-flushed"),
    ] {
        let service = env!("CARGO_BIN_EXE_tallyman");
        let mut all = vec!["bench", "faults", "--quick", "--service", service];
        all.extend(["--seed", seed, "--minutes", "0.15", "--only", faults]);
        let mut out = Vec::new();
        let passed = tallyman_bench::run(Arguments::parse_from(all), &mut out).unwrap();
        assert!(passed, "{}", String::from_utf8_lossy(&out));
    }
}
