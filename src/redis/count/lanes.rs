//! Which lane a call goes to. On one server, where a script may have keys of any shard, two lanes serve all shards; on a
//! cluster each shard has a lane of its own, so that none waits for another server.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};

use super::lane::Lane;
use super::types::{Operation, Outcome};
use super::waiting::Call;
use crate::pressure::Pressure;
use crate::redis::connection::Connection;
use crate::redis::deployment::DeploymentLink;
use crate::redis::error::Error;
use crate::redis::shard::{SHARDS, Shard};

/// How long they may wait for longer: while Redis pauses, as it does to fork.
const TOLERANCE: Duration = Duration::from_millis(300);

/// How long calls may wait for their batch.
const TARGET: Duration = Duration::from_millis(20);

/// How many calls may wait for a lane; more are refused.
const QUEUE_MAX: usize = 32_768;

/// How many batches may be in flight on one server: Redis executes one while another travels.
const LANES: u16 = 2;

/// The queues of all lanes.
#[derive(Debug, Clone)]
pub(in crate::redis) struct Lanes(Arc<[Entrance]>);

/// The end of a lane at which calls enter.
#[derive(Debug)]
struct Entrance {
    queue: mpsc::Sender<Call>,
    pressure: Pressure,
}

impl Lanes {
    /// Starts the lanes; they end with the last handle on them.
    pub(in crate::redis) fn start(link: &DeploymentLink) -> Self {
        let keys = &link.server().keys;
        let count = if keys.clustered() { SHARDS } else { LANES };
        let entrances = Shard::all().take(usize::from(count)).map(|shard| {
            let (sender, queue) = mpsc::channel(QUEUE_MAX);
            let pressure = Pressure::new(TARGET, TOLERANCE);
            let lane = Lane::new(keys.home(shard), link);
            #[expect(
                clippy::disallowed_methods,
                reason = "it ends with its handles, each of which waits for its reply"
            )]
            tokio::spawn(lane.run(queue, pressure.clone()));
            Entrance {
                queue: sender,
                pressure,
            }
        });
        Self(entrances.collect())
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
        let lane = shard.index().checked_rem(self.0.len());
        lane.and_then(|it| self.0.get(it)).ok_or(Error::Overloaded)
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
