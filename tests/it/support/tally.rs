//! Load on many organizations, and what may have become of each call.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures::future::join_all;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::{Http, Instance};

/// How many calls are in flight.
const WORKERS: usize = 8;

/// The calls of an organization.
#[derive(Debug, Clone, Copy, Default)]
struct Calls {
    acknowledged: u64,
    /// Those that may have been counted.
    unknown: u64,
}

/// What was answered.
#[derive(Debug, Default)]
pub struct Tally {
    calls: BTreeMap<String, Calls>,
    /// Calls that were answered with 503.
    pub refused: u64,
    /// The longest time without an acknowledged call.
    pub longest_pause: Duration,
}

/// Load that runs until it is stopped.
pub struct Load {
    stop: CancellationToken,
    workers: Vec<tokio::task::JoinHandle<()>>,
    tally: Arc<Mutex<(Tally, Instant)>>,
}

impl Load {
    /// Starts to consume units of so many organizations.
    pub fn start(instance: &Instance, organizations: usize) -> Self {
        let stop = CancellationToken::new();
        let tally = Arc::new(Mutex::new((Tally::default(), Instant::now())));
        let workers = (0..WORKERS).map(|worker| {
            let names = (worker..organizations).step_by(WORKERS);
            let names: Vec<String> = names.map(|it| format!("org_{it}")).collect();
            let work = consume(instance.http.clone(), names, stop.clone(), tally.clone());
            tokio::spawn(work)
        });
        Self {
            workers: workers.collect(),
            stop,
            tally,
        }
    }

    /// Returns when so many more calls were acknowledged.
    pub async fn acknowledged(&self, more: u64) {
        let count = || {
            let tally = self.tally.lock().unwrap();
            tally
                .0
                .calls
                .values()
                .map(|it| it.acknowledged)
                .sum::<u64>()
        };
        let target = count() + more;
        let deadline = Instant::now() + Duration::from_mins(1);
        while count() < target {
            assert!(Instant::now() < deadline, "calls fail for a minute");
            pause().await;
        }
    }

    /// Ends the load.
    pub async fn stop(self) -> Tally {
        self.stop.cancel();
        for worker in join_all(self.workers).await {
            worker.unwrap();
        }
        let mut tally = self.tally.lock().unwrap();
        std::mem::take(&mut tally.0)
    }
}

impl Tally {
    /// Asserts that nothing was counted that nobody asked for; returns how many acknowledged units are lost, and of which
    /// organizations.
    pub async fn lost(&self, instance: &Instance) -> (u64, Vec<String>) {
        let counts = self.calls.iter().map(async |(organization, calls)| {
            let counted = exact(instance, organization).await;
            assert!(
                counted <= calls.acknowledged + calls.unknown,
                "{organization}: {counted} are counted, {calls:?}"
            );
            (
                calls.acknowledged.saturating_sub(counted),
                organization.clone(),
            )
        });
        let mut lost = join_all(counts).await;
        lost.retain(|(units, _)| *units > 0);
        let units = lost.iter().map(|(units, _)| units).sum();
        (units, lost.into_iter().map(|(_, it)| it).collect())
    }

    /// Prints what happened, which `--nocapture` shows.
    pub fn report(&self, fault: &str, lost: u64) {
        let acknowledged: u64 = self.calls.values().map(|it| it.acknowledged).sum();
        let (unknown, refused, pause) = (self.unknown(), self.refused, self.longest_pause);
        eprintln!(
            "{fault}: {acknowledged} acknowledged, {unknown} unknown, {refused} refused, {lost} lost, longest pause {pause:?}"
        );
    }

    /// How many calls may have been counted.
    pub fn unknown(&self) -> u64 {
        self.calls.values().map(|it| it.unknown).sum()
    }
}

/// The count, once Redis tells it: until its server is connected, the last snapshot is what is known.
async fn exact(instance: &Instance, organization: &str) -> u64 {
    let path = format!("/v1/organizations/{organization}/usage");
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let answer = instance.http.get(&path).await;
        if answer.body["exact"] == true {
            let current = &answer.body["meters"]["api"]["current"];
            return current.as_u64().unwrap_or_default();
        }
        assert!(Instant::now() < deadline, "{answer:?}");
        pause().await;
    }
}

/// Between two looks at something that a test waits for.
pub async fn pause() {
    tokio::time::sleep(Duration::from_millis(10)).await;
}

async fn consume(
    http: Http,
    organizations: Vec<String>,
    stop: CancellationToken,
    tally: Arc<Mutex<(Tally, Instant)>>,
) {
    for organization in organizations.iter().cycle() {
        if stop.is_cancelled() {
            return;
        }
        let body = json!({"organizationId": organization, "meter": "api"});
        let answer = http.post("/v1/consume", body).await;
        let mut tally = tally.lock().unwrap();
        let (tally, last) = &mut *tally;
        let calls = tally.calls.entry(organization.clone()).or_default();
        match answer.status.as_u16() {
            200 => {
                calls.acknowledged += 1;
                tally.longest_pause = tally.longest_pause.max(last.elapsed());
                *last = Instant::now();
            }
            503 => tally.refused += 1,
            504 => calls.unknown += 1,
            _ => panic!("{answer:?}"),
        }
    }
}
