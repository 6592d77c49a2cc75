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
//! The lane tells the script the last number that it was replied to: a data set without that receipt has lost something.

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ::redis::Value;
use tokio::sync::mpsc;
use tokio::task::yield_now;
use tokio::time::{sleep, timeout};
use uuid::Uuid;

use super::batch::{Batch, Header, RECEIPT_LIFETIME};
use super::types::Operation;
use super::waiting::{CHARGES_MAX, Call, Waiting, refuse};
use crate::pressure::Pressure;
use crate::redis::connection::Connection;
use crate::redis::deployment::{DeploymentLink, Identification};
use crate::redis::error::Error;
use crate::redis::node::Node;
use crate::redis::scripts::COUNT;
use crate::redis::shard::Shard;

/// With so many calls waiting, a batch is sent at once: Redis executes it while the service handles what else is ready.
const ENOUGH: usize = 16;

/// How long a reply may take before the batch is sent again.
const REPLY_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a batch without a reply is sent again.
const RETRY_TIMEOUT: Duration = Duration::from_secs(1);

/// Pause between retries.
const RETRY_INTERVAL: Duration = Duration::from_millis(20);

/// How many times a lane prepares a connection whose data sets change meanwhile.
const PREPARED_MAX: usize = 5;

/// A lane.
#[derive(Debug)]
pub(super) struct Lane {
    name: String,
    /// The shard that has its receipt.
    home: Shard,
    /// Of the last batch.
    number: u64,
    acknowledged: Option<Acknowledged>,
    /// The connection over which this lane is known to have a receipt.
    prepared: Option<Arc<Node>>,
    link: DeploymentLink,
}

/// The last batch that was replied to.
#[derive(Debug, Clone, Copy)]
struct Acknowledged {
    number: u64,
    /// Of the home, at that time.
    generation: Option<u64>,
    at: Instant,
}

/// The reply of `count.lua`.
enum Reply {
    Executed(Vec<u8>),
    /// The batch was sent before, and may have been executed in data that is lost.
    Unknown,
    /// Redis has other data than this instance believes; nothing was executed.
    Refused(Change),
}

/// How the data differs.
#[derive(Clone, Copy)]
enum Change {
    /// It has another generation.
    Generation,
    /// It lacks a batch that was acknowledged.
    Older,
}

impl Lane {
    pub(super) fn new(home: Shard, link: &DeploymentLink) -> Self {
        Self {
            name: Uuid::new_v4().simple().to_string(),
            home,
            number: 0,
            acknowledged: None,
            prepared: None,
            link: link.clone(),
        }
    }

    /// Sends what arrives, until nobody can send more; `pressure` learns how long it waits.
    pub(super) async fn run(mut self, mut queue: mpsc::Receiver<Call>, pressure: Pressure) {
        let mut waiting = Waiting::default();
        let mut arrived = Vec::new();
        loop {
            if waiting.is_empty() {
                queue.recv_many(&mut arrived, queue.max_capacity()).await;
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
            .partition(|call| call.connection.agrees(&connection, self.home));
        prepare_again(outdated);
        if calls.is_empty() {
            return;
        }
        let mut operations: Vec<&Operation> = Vec::with_capacity(CHARGES_MAX);
        operations.extend(calls.iter().flat_map(|call| &call.operations));
        let batch = Batch::new(&self.link.server().keys, self.home, &operations);
        let charges = operations.iter().map(|it| it.charges.len()).sum();
        connection.metrics().batch_sent(calls.len(), charges);
        let outcomes = match self.send_until_replied(&connection, &batch).await {
            Ok(Reply::Executed(reply)) => batch
                .outcomes(&operations, &reply)
                .ok_or_else(|| Error::Inconsistent("the reply of count.lua".to_owned())),
            Ok(Reply::Refused(change)) => match self.identify(&connection, change).await {
                Ok(()) => return prepare_again(calls),
                Err(Error::Unknown(cause)) => Err(Error::Unavailable(cause)),
                Err(error) => Err(error),
            },
            Ok(Reply::Unknown) => Err(Error::Unknown(
                "the data set that may have counted it is lost".to_owned(),
            )),
            Err(error) => Err(error),
        };
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
        for _ in 0..PREPARED_MAX {
            let connection = self.link.connection().await?;
            let node = connection.node(self.home)?;
            if self
                .prepared
                .as_ref()
                .is_some_and(|it| Arc::ptr_eq(it, node))
            {
                return Ok(connection);
            }
            self.number = self.number.saturating_add(1);
            let nothing = Batch::new(&self.link.server().keys, self.home, &[]);
            match self.send(&connection, &nothing, false).await? {
                Reply::Executed(_) | Reply::Unknown => {}
                Reply::Refused(change) => self.identify(&connection, change).await?,
            }
        }
        let reason = "its data sets are replaced again and again";
        Err(Error::Unavailable(reason.to_owned()))
    }

    /// Reads which data sets there are, after the script has found others than this instance knows.
    async fn identify(&self, connection: &Connection, change: Change) -> Result<(), Error> {
        let keys = &self.link.server().keys;
        let concerned = Shard::all().filter(|shard| keys.home(*shard) == self.home);
        let concerned: Vec<Shard> = concerned.collect();
        let why = match change {
            Change::Generation => Identification::Read,
            Change::Older => {
                connection.metrics().data_sets_rolled_back(concerned.len());
                let (first, count) = (self.home.index(), concerned.len());
                tracing::warn!(
                    shard = format!("{first:02x}"),
                    count,
                    "Redis has older data than it has acknowledged; counters are restored from Postgres"
                );
                Identification::Abandon(connection)
            }
        };
        let identified = self.link.server().identify(connection, &concerned, why);
        identified.await.map(drop)
    }

    async fn send_until_replied(
        &mut self,
        connection: &Arc<Connection>,
        batch: &Batch,
    ) -> Result<Reply, Error> {
        self.number = self.number.saturating_add(1);
        let deadline = Instant::now() + RETRY_TIMEOUT;
        let mut result = self.send(connection, batch, false).await;
        // Whether the batch may have been executed.
        let mut sent = matches!(result, Err(Error::Unknown(_)));
        while matches!(result, Err(Error::Unknown(_) | Error::Redirected(_)))
            && Instant::now() < deadline
        {
            sleep(RETRY_INTERVAL).await;
            let Ok(connection) = self.link.connection().await else {
                continue;
            };
            match self.send(&connection, batch, sent).await {
                // The batch may have been executed before, so the outcome stays unknown.
                Err(Error::Unavailable(_) | Error::Redirected(_)) if sent => {}
                Ok(Reply::Refused(Change::Older)) if sent => {
                    self.identify(&connection, Change::Older).await?;
                    return Ok(Reply::Unknown);
                }
                other => {
                    sent |= matches!(other, Err(Error::Unknown(_)));
                    result = other;
                }
            }
        }
        result
    }

    async fn send(
        &mut self,
        connection: &Connection,
        batch: &Batch,
        again: bool,
    ) -> Result<Reply, Error> {
        let node = connection.node(self.home)?;
        let generation = node.generation(self.home);
        let last = self.acknowledged.filter(|last| {
            last.generation == generation && last.at.elapsed() < RECEIPT_LIFETIME / 2
        });
        let header = Header {
            lane: &self.name,
            number: self.number,
            again,
            generation,
            acknowledged: last.map_or(0, |it| it.number),
            now: self.link.server().clock.now(),
            record_lifetime_ms: self.link.server().settings.record_lifetime_ms,
        };
        let call = batch.call(&self.link.server().keys, &header);
        let started = Instant::now();
        let replied = async {
            let reply: Value = node.evaluate(&COUNT, &call).await?;
            if matches!(reply, Value::BulkString(_)) {
                node.replicated(self.home).await?;
            }
            Ok(reply)
        };
        let reply = timeout(REPLY_TIMEOUT, replied).await;
        let reply = reply.unwrap_or_else(|_| {
            node.mark_broken();
            Err(Error::Unknown("the reply is late".to_owned()))
        });
        connection
            .metrics()
            .script_completed(COUNT.label, started.elapsed());
        match reply? {
            Value::BulkString(outcomes) => {
                self.acknowledged = Some(Acknowledged {
                    number: self.number,
                    generation,
                    at: started,
                });
                self.prepared = Some(Arc::clone(node));
                Ok(Reply::Executed(outcomes))
            }
            Value::Nil => Ok(Reply::Unknown),
            Value::SimpleString(status) if status == "generation" => {
                Ok(Reply::Refused(Change::Generation))
            }
            Value::SimpleString(status) if status == "older" => Ok(Reply::Refused(Change::Older)),
            other => Err(Error::Inconsistent(format!("count.lua replied {other:?}"))),
        }
    }
}

/// Answers calls of which nothing was executed, because they were prepared for other data.
fn prepare_again(calls: Vec<Call>) {
    for call in calls {
        let _ = call.reply.send(Ok(None));
    }
}
