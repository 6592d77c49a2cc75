//! Live figures: one reader for all streams of an instance. Once a second it reads what any stream watches, so that
//! counting does no more work however many streams there are, and nothing is read while there is none.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::stream;
use futures::{FutureExt as _, StreamExt as _};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::activity::{Activity, Outages, Summary};
use crate::budget::{Turn, Turns};
use crate::domain::ids::OrganizationId;
use crate::metrics::Metrics;
use crate::usage::{self, OrganizationUsage, Usage};

/// Between two rounds.
const INTERVAL: Duration = Duration::from_secs(1);

/// The most streams of an instance.
pub const STREAMS_MAX: usize = 128;

/// The most streams of one caller.
pub const STREAMS_EACH: usize = 32;

/// How many organizations are read concurrently.
const READERS: usize = 4;

/// Reads for all streams; clones share everything.
#[derive(Debug, Clone)]
pub struct Live(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    usage: Usage,
    activity: Activity,
    metrics: Metrics,
    permits: Arc<Semaphore>,
    turns: Turns,
    watched: Mutex<Watched>,
    rounds: watch::Sender<Arc<Round>>,
    closed: CancellationToken,
}

/// How many streams watch what.
#[derive(Debug, Default)]
struct Watched {
    organizations: HashMap<OrganizationId, usize>,
    summary: usize,
}

/// What one round has read.
#[derive(Debug, Default)]
pub struct Round {
    /// The summary, if a stream watches it and it could be read.
    pub summary: Option<(Arc<Summary>, Outages)>,
    /// The usage of each organization that a stream watches; none of one that does not exist.
    pub usage: HashMap<OrganizationId, Result<Option<OrganizationUsage>, usage::Error>>,
}

/// Which maximum of streams is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Full {
    /// That of the instance.
    All,
    /// That of the caller.
    Own,
}

impl Live {
    /// A reader for at most so many streams, which never exceed [`STREAMS_MAX`].
    pub fn new(usage: Usage, activity: Activity, metrics: Metrics, streams: usize) -> Self {
        Self(Arc::new(Shared {
            usage,
            activity,
            metrics,
            permits: Arc::new(Semaphore::new(streams.min(STREAMS_MAX))),
            turns: Turns::new(STREAMS_EACH),
            watched: Mutex::default(),
            rounds: watch::Sender::default(),
            closed: CancellationToken::new(),
        }))
    }

    /// Watches organizations, or the summary, until the subscription is dropped. Refused if there are too many streams.
    pub fn subscribe(
        &self,
        caller: &str,
        organizations: Vec<OrganizationId>,
        summary: bool,
    ) -> Result<Subscription, Full> {
        let turn = self.0.turns.turn(caller).now_or_never().ok_or(Full::Own)?;
        let permit = Arc::clone(&self.0.permits).try_acquire_owned();
        let permit = permit.map_err(|_| Full::All)?;
        self.0.metrics.live_streams().inc();
        let mut watched = self.watched();
        for organization in &organizations {
            *watched
                .organizations
                .entry(organization.clone())
                .or_default() += 1;
        }
        watched.summary += usize::from(summary);
        Ok(Subscription {
            live: self.clone(),
            organizations,
            summary,
            rounds: self.0.rounds.subscribe(),
            _permit: permit,
            _turn: turn,
        })
    }

    /// Ends all streams, so that a stop does not wait for them.
    pub fn close(&self) {
        self.0.closed.cancel();
    }

    /// Reads what is watched, and publishes it.
    pub async fn read_once(&self) {
        let (organizations, summary) = {
            let watched = self.watched();
            let organizations: Vec<_> = watched.organizations.keys().cloned().collect();
            (organizations, watched.summary > 0)
        };
        if organizations.is_empty() && !summary {
            return;
        }
        let usage = stream::iter(organizations)
            .map(async |organization| {
                let usage = self.0.usage.usage(&organization).await;
                (organization, usage)
            })
            .buffer_unordered(READERS)
            .collect();
        let summary = async {
            let read = self.0.activity.summary();
            let summary = if summary { read.await.ok() } else { None };
            summary.map(|summary| (summary, self.0.activity.outages()))
        };
        let (usage, summary) = futures::join!(usage, summary);
        self.0
            .rounds
            .send_replace(Arc::new(Round { summary, usage }));
    }

    /// Reads every second until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        while let Some(()) = stop.run_until_cancelled(sleep(INTERVAL)).await {
            let round = Box::pin(self.read_once());
            stop.run_until_cancelled(round).await;
        }
    }

    fn watched(&self) -> MutexGuard<'_, Watched> {
        let watched = &self.0.watched;
        watched.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What one stream watches.
#[derive(Debug)]
pub struct Subscription {
    live: Live,
    organizations: Vec<OrganizationId>,
    summary: bool,
    rounds: watch::Receiver<Arc<Round>>,
    _permit: OwnedSemaphorePermit,
    _turn: Turn,
}

impl Subscription {
    /// The watched organizations.
    pub fn organizations(&self) -> &[OrganizationId] {
        &self.organizations
    }

    /// The next round; none once the service stops. A slow stream skips rounds.
    pub async fn next(&mut self) -> Option<Arc<Round>> {
        let closed = &self.live.0.closed;
        closed
            .run_until_cancelled(self.rounds.changed())
            .await?
            .ok()?;
        Some(Arc::clone(&self.rounds.borrow_and_update()))
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.live.0.metrics.live_streams().dec();
        let mut watched = self.live.watched();
        watched.summary -= usize::from(self.summary);
        for organization in &self.organizations {
            if let Some(streams) = watched.organizations.get_mut(organization) {
                *streams -= 1;
            }
        }
        watched.organizations.retain(|_, streams| *streams > 0);
    }
}
