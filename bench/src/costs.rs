//! What a call costs: CPU time of the processes that share the work, and instructions of the service. Unlike rates, costs
//! change little while something else uses the machine.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::load::{self, Load, Report, Until, float};
use crate::requests::Op;
use crate::stage::{NO_FLUSH, Scratch, Service, Stage, postgres_processes};
use crate::suite::{Options, open_all, single};

/// Clock ticks a second in `/proc`, on every Linux.
const TICKS: f64 = 100.0;

/// How many calls are counted instruction by instruction, which takes fifty times as long.
const CALLS: u64 = 20_000;

/// Microseconds of CPU a call.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cpu {
    pub(crate) service: f64,
    pub(crate) redis: f64,
    pub(crate) postgres: f64,
}

/// Runs a load, and measures the CPU of all servers meanwhile.
pub(crate) async fn measure(
    stage: &Stage,
    service: &Service,
    load: &Load,
) -> Result<(Report, Cpu)> {
    let mut connection = stage.postgres().await?;
    let mut used = async || {
        let sessions = postgres_processes(&mut connection).await?;
        Ok::<_, anyhow::Error>((
            cpu(&[service.pid()])?,
            cpu(&[stage.redis_pid()])?,
            cpu(&sessions)?,
        ))
    };
    let before = used().await?;
    let report = load::run(load, None).await?.flawless("a closed loop")?;
    let after = used().await?;
    let calls = float(report.requests);
    let each = |before: f64, after: f64| (after - before).max(0.0) * 1e6 / calls;
    let cpu = Cpu {
        service: each(before.0, after.0),
        redis: each(before.1, after.1),
        postgres: each(before.2, after.2),
    };
    Ok((report, cpu))
}

/// Seconds of CPU that processes have used.
pub(crate) fn cpu(processes: &[u32]) -> Result<f64> {
    let mut ticks = 0.0;
    for process in processes {
        let stat = match fs::read_to_string(format!("/proc/{process}/stat")) {
            // A session of Postgres may have ended.
            Err(error)
                if error.kind() == ErrorKind::NotFound && Path::new("/proc/self").exists() =>
            {
                continue;
            }
            stat => stat.context("there is no /proc")?,
        };
        // The name of the program, in parentheses, may have spaces; user and system time are 12 and 13 fields behind it.
        let fields = stat
            .rsplit(')')
            .next()
            .unwrap_or_default()
            .split_whitespace();
        for field in fields.skip(11).take(2) {
            ticks += field.parse::<f64>()?;
        }
    }
    Ok(ticks / TICKS)
}

/// Whether instructions can be counted on this machine.
pub(crate) fn has_valgrind() -> bool {
    let version = Command::new("valgrind").arg("--version").output();
    version.is_ok_and(|it| it.status.success())
}

/// The instructions that the service executes for a consume, with nothing flushed meanwhile.
pub(crate) async fn instructions(stage: &Stage, program: &Path, options: &Options) -> Result<f64> {
    let dir = Scratch::new(&format!("tallyman-callgrind-{}", std::process::id()))?;
    let counts = options.counts.clone();
    let counts = counts.unwrap_or_else(|| dir.path().join("callgrind.out"));
    let wrapper = [
        "valgrind".to_owned(),
        "--tool=callgrind".to_owned(),
        "--instr-atstart=no".to_owned(),
        format!("--callgrind-out-file={}", counts.display()),
    ];
    let service = stage.serve_as(program, &wrapper, &[NO_FLUSH]).await?;
    open_all(&service, options).await?;
    let mut load = single(&service, options, Op::Consume, false);
    load.warm_up = Duration::ZERO;
    load.until = Until::Requests(CALLS);
    let pid = service.pid();
    instrument(pid, "on")?;
    load::run(&load, None).await?.flawless("a closed loop")?;
    instrument(pid, "off")?;
    service.stop().await?;
    let text = fs::read_to_string(&counts).context("valgrind has counted nothing")?;
    let totals = text.lines().filter_map(|it| it.strip_prefix("totals:"));
    let totals: Option<Vec<u64>> = totals.map(|it| it.trim().parse().ok()).collect();
    let total = totals.map_or(0, |it| it.iter().sum());
    if total == 0 {
        bail!("valgrind has counted nothing");
    }
    Ok(float(total) / float(CALLS))
}

fn instrument(pid: u32, state: &str) -> Result<()> {
    let output = Command::new("vgdb")
        .arg(format!("--pid={pid}"))
        .args(["instrumentation", state])
        .output()
        .context("vgdb, a part of valgrind, is missing")?;
    if !output.status.success() {
        bail!("vgdb: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
