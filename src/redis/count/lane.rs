//! Coalesces concurrent operations: those that arrive while a batch is in flight make the next.
//!
//! A *lane* has at most one batch in flight. Nothing waits on a timer, so that an idle service adds no latency, and a busy
//! one turns thousands of waiting calls into a few calls of the script.
//!
//! While calls stay in the queue for too long ([`Pressure`]), no further request is admitted; one that was admitted is
//! refused only if the queue is full, however many rounds it takes.
//!
//! A batch has its lane's name and a number, and the script leaves a receipt under them. So a lane may send a batch again
//! over a new connection until it gets a reply: every operation is executed at most once, and acknowledged only if it was.

use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::BuildHasher as _;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use foldhash::fast::RandomState;
use tokio::sync::{mpsc, oneshot};
use tokio::task::yield_now;
use tokio::time::{sleep, timeout};
use uuid::Uuid;

use super::batch::{Batch, Header};
use super::types::{Operation, Outcome};
use crate::pressure::Pressure;
use crate::redis::connection::Connection;
use crate::redis::error::Error;
use crate::redis::keys::Shard;
use crate::redis::node::NodeLink;
use crate::redis::scripts::COUNT;

/// How many batches may be in flight: Redis executes one while another travels.
const LANES: usize = 2;

/// Counters of one batch at most, because Redis does nothing else in the meantime. The operations of one call are never
/// divided.
const COUNTERS_MAX: usize = 128;

/// Charges of one batch at most, for the same reason.
const CHARGES_MAX: usize = 512;

/// With so many calls waiting, a batch is sent at once: Redis executes it while the service handles what else is ready.
const ENOUGH: usize = 16;

/// How many calls may wait for a lane; more are refused.
const QUEUE_MAX: usize = 32_768;

/// How long calls may wait for their batch.
const TARGET: Duration = Duration::from_millis(20);

/// How long they may wait for longer: while Redis pauses, as it does to fork.
const TOLERANCE: Duration = Duration::from_millis(300);

/// How long a reply may take before the batch is sent again.
const REPLY_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a batch without a reply is sent again.
const RETRY_TIMEOUT: Duration = Duration::from_secs(1);

/// Pause between retries.
const RETRY_INTERVAL: Duration = Duration::from_millis(20);

/// The queues of all lanes.
#[derive(Debug, Clone)]
pub(in crate::redis) struct Lanes(Arc<[Entrance; LANES]>);

/// The end of a lane at which calls enter.
#[derive(Debug)]
struct Entrance {
    queue: mpsc::Sender<Call>,
    pressure: Pressure,
}

/// Operations of one caller, who waits for all of them.
#[derive(Debug)]
struct Call {
    /// The connection whose generations the operations were prepared for.
    connection: Arc<Connection>,
    operations: Vec<Operation>,
    since: Instant,
    reply: oneshot::Sender<Result<Option<Vec<Outcome>>, Error>>,
}

impl Lanes {
    /// Starts the lanes; they end with the last handle on them.
    pub(in crate::redis) fn start(link: &NodeLink) -> Self {
        Self(Arc::new(std::array::from_fn(|_| {
            let (sender, queue) = mpsc::channel(QUEUE_MAX);
            let pressure = Pressure::new(TARGET, TOLERANCE);
            let lane = Lane {
                name: Uuid::new_v4().simple().to_string(),
                number: 0,
                receipt: None,
                link: link.clone(),
            };
            #[expect(
                clippy::disallowed_methods,
                reason = "it ends with its handles, each of which waits for its reply"
            )]
            tokio::spawn(lane.run(queue, pressure.clone()));
            Entrance {
                queue: sender,
                pressure,
            }
        })))
    }

    /// Fails if calls of this shard wait for too long.
    pub(in crate::redis) fn admits(&self, shard: Shard) -> Result<(), Error> {
        if self.entrance(shard)?.pressure.refuses() {
            return Err(Error::Overloaded);
        }
        Ok(())
    }

    /// Concurrent calls for one organization share a batch.
    fn entrance(&self, shard: Shard) -> Result<&Entrance, Error> {
        self.0.get(shard.index() % LANES).ok_or(Error::Overloaded)
    }

    /// Executes operations together. None, and nothing is counted, if `connection` is not the one in use any more.
    pub(in crate::redis) async fn count(
        &self,
        connection: &Arc<Connection>,
        operations: Vec<Operation>,
    ) -> Result<Option<Vec<Outcome>>, Error> {
        let Some(first) = operations.first() else {
            return Ok(Some(Vec::new()));
        };
        let entrance = self.entrance(Shard::of(&first.organization))?;
        let (sender, reply) = oneshot::channel();
        let call = Call {
            connection: Arc::clone(connection),
            operations,
            since: Instant::now(),
            reply: sender,
        };
        let queue = &entrance.queue;
        queue.try_send(call).map_err(|_| Error::Overloaded)?;
        reply
            .await
            .unwrap_or_else(|_| Err(Error::Unknown("its lane has ended".to_owned())))
    }
}

struct Lane {
    name: String,
    /// Of the last batch.
    number: u64,
    /// The connection over which this lane is known to have a receipt.
    receipt: Option<Arc<Connection>>,
    link: NodeLink,
}

impl Lane {
    async fn run(mut self, mut queue: mpsc::Receiver<Call>, pressure: Pressure) {
        let mut waiting = Waiting::default();
        let mut arrived = Vec::new();
        loop {
            if waiting.is_empty() {
                queue.recv_many(&mut arrived, QUEUE_MAX).await;
                if arrived.is_empty() {
                    return;
                }
            }
            // Other ready tasks run first, so that the requests they handle are part of this batch.
            if waiting.is_empty() && arrived.len() + queue.len() < ENOUGH {
                yield_now().await;
            }
            while let Ok(call) = queue.try_recv() {
                arrived.push(call);
            }
            arrived.drain(..).for_each(|call| waiting.push(call));
            let calls = waiting.next_batch();
            pressure.observe(waiting.oldest(), Instant::now());
            let link = self.link.clone();
            let mut executed = pin!(self.execute(calls));
            let failure = tokio::select! {
                () = &mut executed => continue,
                failure = link.down() => failure,
            };
            // Nothing of the calls that wait was sent, and this batch may take a while: what it did is not known.
            refuse(waiting.drain(), &failure);
            pressure.observe(None, Instant::now());
            loop {
                tokio::select! {
                    () = &mut executed => break,
                    Some(call) = queue.recv() => refuse([call], &failure),
                    else => break,
                }
            }
        }
    }

    async fn execute(&mut self, calls: Vec<Call>) {
        let connection = match self.prepared().await {
            Ok(connection) => connection,
            // Nothing of these calls was sent.
            Err(Error::Unknown(cause)) => return refuse(calls, &Error::Unavailable(cause)),
            Err(error) => return refuse(calls, &error),
        };
        // Generations are facts about a connection: calls prepared for another one must be prepared again.
        let (calls, outdated): (Vec<_>, Vec<_>) = calls
            .into_iter()
            .partition(|call| Arc::ptr_eq(&call.connection, &connection));
        for call in outdated {
            let _ = call.reply.send(Ok(None));
        }
        if calls.is_empty() {
            return;
        }
        let mut operations: Vec<&Operation> = Vec::with_capacity(CHARGES_MAX);
        operations.extend(calls.iter().flat_map(|call| &call.operations));
        let batch = Batch::new(&self.link.server().keys, &operations);
        let charges = operations.iter().map(|it| it.charges.len()).sum();
        connection.metrics.batch_sent(calls.len(), charges);
        let reply = self.send_until_replied(&connection, &batch).await;
        let outcomes = reply.and_then(|reply| {
            let outcomes = batch.outcomes(&operations, &reply);
            outcomes.ok_or_else(|| Error::Inconsistent("the reply of count.lua".to_owned()))
        });
        match outcomes {
            Ok(outcomes) => {
                let mut outcomes = outcomes.into_iter();
                for call in calls {
                    let own = outcomes.by_ref().take(call.operations.len()).collect();
                    // Fails if the caller has gone away.
                    let _ = call.reply.send(Ok(Some(own)));
                }
            }
            // One corrupt key fails the whole script before anything is written, and must not fail the other calls.
            Err(Error::Inconsistent(_)) if calls.len() > 1 => {
                for call in calls {
                    Box::pin(self.execute(vec![call])).await;
                }
            }
            Err(error) => refuse(calls, &error),
        }
    }

    /// A connection over which this lane has a receipt. Without one, a batch that is sent again could not be distinguished
    /// from one that was executed in a lost data set.
    async fn prepared(&mut self) -> Result<Arc<Connection>, Error> {
        let connection = self.link.connection().await?;
        let known = self.receipt.as_ref();
        if !known.is_some_and(|known| Arc::ptr_eq(known, &connection)) {
            self.number = self.number.saturating_add(1);
            let nothing = Batch::new(&self.link.server().keys, &[]);
            self.send(&connection, &nothing, false).await?;
            self.receipt = Some(Arc::clone(&connection));
        }
        Ok(connection)
    }

    async fn send_until_replied(
        &mut self,
        connection: &Arc<Connection>,
        batch: &Batch,
    ) -> Result<Vec<u8>, Error> {
        self.number = self.number.saturating_add(1);
        let deadline = Instant::now() + RETRY_TIMEOUT;
        let mut result = self.send(connection, batch, false).await;
        while let Err(Error::Unknown(_)) = &result
            && Instant::now() < deadline
        {
            sleep(RETRY_INTERVAL).await;
            let Ok(connection) = self.link.connection().await else {
                continue;
            };
            match self.send(&connection, batch, true).await {
                // The batch may have been executed before, so the outcome stays unknown.
                Err(Error::Unavailable(_)) => {}
                other => {
                    if other.is_ok() {
                        self.receipt = Some(connection);
                    }
                    result = other;
                }
            }
        }
        let unknown = || Error::Unknown("the data set that may have counted it is lost".to_owned());
        result?.ok_or_else(unknown)
    }

    /// None if the batch was sent before and its outcome is unknown.
    async fn send(
        &self,
        connection: &Connection,
        batch: &Batch,
        again: bool,
    ) -> Result<Option<Vec<u8>>, Error> {
        let header = Header {
            lane: &self.name,
            number: self.number,
            again,
            now: self.link.server().clock.now(),
            record_lifetime_ms: self.link.server().settings.record_lifetime_ms,
        };
        let call = batch.call(&self.link.server().keys, &header);
        let started = Instant::now();
        let reply = timeout(REPLY_TIMEOUT, connection.evaluate(&COUNT, &call)).await;
        let reply = reply.unwrap_or_else(|_| {
            connection.mark_broken();
            Err(Error::Unknown("the reply is late".to_owned()))
        });
        connection
            .metrics
            .script_completed(COUNT.label, started.elapsed());
        reply
    }
}

fn refuse(calls: impl IntoIterator<Item = Call>, error: &Error) {
    for call in calls {
        let _ = call.reply.send(Err(error.clone()));
    }
}

/// The calls that have arrived, by shard, so that concurrent calls on one counter share a batch.
#[derive(Debug, Default)]
struct Waiting {
    by_shard: HashMap<Shard, VecDeque<Call>, RandomState>,
    /// The shards with calls, in turn.
    shards: VecDeque<Shard>,
}

impl Waiting {
    fn is_empty(&self) -> bool {
        self.shards.is_empty()
    }

    /// Since when the call that has waited longest has done so.
    fn oldest(&self) -> Option<Instant> {
        let fronts = self
            .shards
            .iter()
            .filter_map(|it| self.by_shard.get(it)?.front());
        fronts.map(|call| call.since).min()
    }

    fn drain(&mut self) -> impl Iterator<Item = Call> {
        self.shards.clear();
        self.by_shard.drain().flat_map(|(_, calls)| calls)
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

    /// Takes as many calls as fit into one batch, and at least one; those whose callers have gone away are dropped. A shard
    /// with calls left goes to the end of the queue, so that no shard waits for all calls of another.
    fn next_batch(&mut self) -> Vec<Call> {
        let (mut batch, mut total) = (Vec::new(), 0_usize);
        // By hash: a collision makes a batch one counter larger.
        let hasher = RandomState::default();
        let mut counters = HashSet::with_hasher(RandomState::default());
        while let Some(shard) = self.shards.pop_front() {
            let calls = self.by_shard.entry(shard).or_default();
            while let Some(call) = calls.pop_front() {
                if call.reply.is_closed() {
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
