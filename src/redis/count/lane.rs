//! Group commit: what callers want counted while one batch is in flight makes the next.
//!
//! A *lane* has at most one batch in flight. Nothing waits on a timer, so that an idle service adds no
//! latency, and a busy one turns thousands of waiting calls into a handful of script calls.
//!
//! A batch carries its lane's name and a number, and the script leaves a receipt under them (rule 5 of the
//! protocol). So a lane may send a batch again, over a new connection, until it is answered or gives up: every
//! operation is executed at most once, and each one that is acknowledged exactly once.

use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::BuildHasher as _;
use std::sync::Arc;
use std::time::Duration;

use foldhash::fast::RandomState;
use tokio::sync::{mpsc, oneshot};
use tokio::task::yield_now;
use tokio::time::{Instant, sleep, timeout};
use uuid::Uuid;

use crate::metrics::Script;
use crate::redis::connection::Connection;
use crate::redis::count::batch::Batch;
use crate::redis::error::Error;
use crate::redis::keys::Shard;
use crate::redis::scripts::{self, Sending};
use crate::redis::{Inner, Operation, Outcome};

/// How many batches may be in flight: one that Redis executes, one on its way.
const LANES: usize = 2;

/// How many counters one batch names at most; Redis does nothing else in the meantime. One call's operations are
/// never divided.
const COUNTERS_MAX: usize = 128;

/// How many charges the operations of one batch have at most together, for the same reason.
const CHARGES_MAX: usize = 512;

/// Where so many calls wait, their batch goes at once: Redis works on it while the service sees to what else is ready.
const ENOUGH: usize = 16;

/// How many calls may wait for a lane; more are refused.
const QUEUE_MAX: usize = 32_768;

/// How long the answer to a batch may take before it is asked for again.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a batch that was not answered is sent again.
const GIVE_UP_AFTER: Duration = Duration::from_secs(6);

/// Between two attempts to reach Redis again.
const RETRY_INTERVAL: Duration = Duration::from_millis(20);

/// The queues of all lanes.
#[derive(Debug, Clone)]
pub(in crate::redis) struct Lanes([mpsc::Sender<Call>; LANES]);

/// Operations of one caller, who waits for all of them.
#[derive(Debug)]
struct Call {
    /// The connection that the operations were put together over.
    connection: Arc<Connection>,
    operations: Vec<Operation>,
    answer: oneshot::Sender<Result<Option<Vec<Outcome>>, Error>>,
}

impl Lanes {
    /// Starts the lanes; they end with the last handle on them.
    pub(in crate::redis) fn start(inner: &Arc<Inner>) -> Self {
        Self(std::array::from_fn(|_| {
            let (sender, queue) = mpsc::channel(QUEUE_MAX);
            let lane = Lane {
                name: Uuid::new_v4().simple().to_string(),
                number: 0,
                receipt: None,
                inner: Arc::clone(inner),
            };
            #[expect(
                clippy::disallowed_methods,
                reason = "it ends with the handles, each of which waits for what it has asked"
            )]
            tokio::spawn(lane.run(queue));
            sender
        }))
    }

    /// Has operations executed together.
    pub(in crate::redis) async fn count(
        &self,
        connection: &Arc<Connection>,
        operations: Vec<Operation>,
    ) -> Result<Option<Vec<Outcome>>, Error> {
        let Some(first) = operations.first() else {
            return Ok(Some(Vec::new()));
        };
        // What concurrent calls want of one organization meets in one batch.
        let lane = Shard::of(&first.organization).index() % LANES;
        let (answer, answered) = oneshot::channel();
        let call = Call {
            connection: Arc::clone(connection),
            operations,
            answer,
        };
        let queue = self.0.get(lane).ok_or(Error::Overloaded)?;
        queue.try_send(call).map_err(|_| Error::Overloaded)?;
        answered
            .await
            .unwrap_or_else(|_| Err(Error::Unknown("its lane has ended".to_owned())))
    }
}

struct Lane {
    name: String,
    /// Of the last batch.
    number: u64,
    /// The connection over which there is known to be a receipt of this lane.
    receipt: Option<Arc<Connection>>,
    inner: Arc<Inner>,
}

impl Lane {
    async fn run(mut self, mut queue: mpsc::Receiver<Call>) {
        let mut waiting = Waiting::default();
        let mut arrived = Vec::new();
        loop {
            if waiting.is_empty() {
                queue.recv_many(&mut arrived, QUEUE_MAX).await;
                if arrived.is_empty() {
                    return;
                }
            }
            // Whatever else is ready to run goes first, so that a request that has arrived by now is in this batch.
            if waiting.is_empty() && arrived.len() + queue.len() < ENOUGH {
                yield_now().await;
            }
            while let Ok(call) = queue.try_recv() {
                arrived.push(call);
            }
            arrived.drain(..).for_each(|call| waiting.push(call));
            let calls = waiting.next_batch();
            self.execute(calls).await;
        }
    }

    async fn execute(&mut self, calls: Vec<Call>) {
        let connection = match self.prepared().await {
            Ok(connection) => connection,
            // Of these calls nothing was sent.
            Err(Error::Unknown(cause)) => return refuse(calls, &Error::Unavailable(cause)),
            Err(error) => return refuse(calls, &error),
        };
        // Generations are facts about a connection, so what was put together over another one is put together again.
        let (calls, outdated): (Vec<_>, Vec<_>) = calls
            .into_iter()
            .partition(|call| Arc::ptr_eq(&call.connection, &connection));
        for call in outdated {
            let _ = call.answer.send(Ok(None));
        }
        if calls.is_empty() {
            return;
        }
        let mut operations: Vec<&Operation> = Vec::with_capacity(CHARGES_MAX);
        operations.extend(calls.iter().flat_map(|it| &it.operations));
        let batch = Batch::new(&self.inner.keys, &operations);
        let charges = operations.iter().map(|it| it.charges.len()).sum();
        connection.metrics.count_called(calls.len(), charges);
        let answer = self.send_until_answered(&connection, &batch).await;
        let outcomes = answer.and_then(|answer| {
            batch
                .outcomes(&operations, &answer)
                .ok_or_else(|| Error::Inconsistent("count.lua answered something else".to_owned()))
        });
        match outcomes {
            Ok(outcomes) => {
                let mut outcomes = outcomes.into_iter();
                for call in calls {
                    let own = outcomes.by_ref().take(call.operations.len()).collect();
                    // Who has gone away does not need to know.
                    let _ = call.answer.send(Ok(Some(own)));
                }
            }
            // A key that somebody has broken fails the whole script, before anything is written. The others must
            // not suffer for it.
            Err(Error::Inconsistent(_)) if calls.len() > 1 => {
                for call in calls {
                    Box::pin(self.execute(vec![call])).await;
                }
            }
            Err(error) => refuse(calls, &error),
        }
    }

    /// A connection over which this lane has a receipt: without one, a batch that is sent again could not be told
    /// from one that was executed in a data set that is lost.
    async fn prepared(&mut self) -> Result<Arc<Connection>, Error> {
        let connection = self.inner.connection().await?;
        let prepared = self
            .receipt
            .as_ref()
            .is_some_and(|known| Arc::ptr_eq(known, &connection));
        if !prepared {
            self.number = self.number.saturating_add(1);
            let nothing = Batch::new(&self.inner.keys, &[]);
            self.send(&connection, &nothing, false).await?;
            self.receipt = Some(Arc::clone(&connection));
        }
        Ok(connection)
    }

    async fn send_until_answered(
        &mut self,
        connection: &Arc<Connection>,
        batch: &Batch,
    ) -> Result<Vec<u8>, Error> {
        self.number = self.number.saturating_add(1);
        let deadline = Instant::now() + GIVE_UP_AFTER;
        let mut result = self.send(connection, batch, false).await;
        while let Err(Error::Unknown(_)) = &result
            && Instant::now() < deadline
        {
            sleep(RETRY_INTERVAL).await;
            let Ok(connection) = self.inner.connection().await else {
                continue;
            };
            match self.send(&connection, batch, true).await {
                // Nobody knows whether it was executed before, so that a refusal means nothing.
                Err(Error::Unavailable(_)) => {}
                other => {
                    if other.is_ok() {
                        self.receipt = Some(connection);
                    }
                    result = other;
                }
            }
        }
        let unknown = || Error::Unknown("nobody can say whether it has counted".to_owned());
        result?.ok_or_else(unknown)
    }

    async fn send(
        &self,
        connection: &Connection,
        batch: &Batch,
        again: bool,
    ) -> Result<Option<Vec<u8>>, Error> {
        let Inner {
            keys,
            settings,
            clock,
            ..
        } = &*self.inner;
        let sending = Sending {
            lane: &self.name,
            number: self.number,
            again,
            batch,
        };
        let sent = scripts::count(
            connection,
            keys,
            &sending,
            clock.now(),
            settings.record_lifetime_ms,
        );
        let begun = Instant::now();
        let answer = timeout(ANSWER_TIMEOUT, sent).await.unwrap_or_else(|_| {
            connection.mark_broken();
            Err(Error::Unknown("the answer is late".to_owned()))
        });
        connection
            .metrics
            .script_answered(Script::Count, begun.elapsed());
        answer
    }
}

fn refuse(calls: Vec<Call>, error: &Error) {
    for call in calls {
        let _ = call.answer.send(Err(error.clone()));
    }
}

/// The calls that have arrived, by shard, so that what several callers want of one counter meets in one batch.
#[derive(Debug, Default)]
struct Waiting {
    by_shard: HashMap<Shard, VecDeque<Call>, RandomState>,
    /// The shards with calls; the one whose turn is longest ago comes first.
    shards: VecDeque<Shard>,
}

impl Waiting {
    fn is_empty(&self) -> bool {
        self.shards.is_empty()
    }

    fn push(&mut self, call: Call) {
        let Some(first) = call.operations.first() else {
            return;
        };
        let shard = Shard::of(&first.organization);
        let calls = self.by_shard.entry(shard).or_default();
        if calls.is_empty() {
            self.shards.push_back(shard);
        }
        calls.push_back(call);
    }

    /// Takes as many calls as fit into one batch, and at least one; those whose callers have gone away are dropped. A
    /// shard of which some are left goes behind all others, so that none has to wait for everything that another wants.
    fn next_batch(&mut self) -> Vec<Call> {
        let (mut batch, mut total) = (Vec::new(), 0_usize);
        // By hash; a collision makes a batch one counter larger.
        let hasher = RandomState::default();
        let mut counters = HashSet::with_hasher(RandomState::default());
        while let Some(shard) = self.shards.pop_front() {
            let calls = self.by_shard.entry(shard).or_default();
            while let Some(call) = calls.pop_front() {
                if call.answer.is_closed() {
                    continue;
                }
                let charges = call.operations.iter().flat_map(|it| &it.charges);
                let more = charges.clone().count();
                let known = counters.len();
                counters.extend(charges.map(|charge| hasher.hash_one(&charge.counter)));
                let fits =
                    counters.len() <= COUNTERS_MAX && total.saturating_add(more) <= CHARGES_MAX;
                if known > 0 && !fits {
                    calls.push_front(call);
                    self.shards.push_back(shard);
                    return batch;
                }
                total = total.saturating_add(more);
                batch.push(call);
            }
        }
        batch
    }
}
