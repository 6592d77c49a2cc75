//! A restore in separate steps.

use std::sync::Arc;

use tallyman::domain::counter::{CounterId, Stamp};
use tallyman::postgres::usage::{self, Move};
use tallyman::postgres::{self, Postgres};
use tallyman::redis::{Connection, Moved, RecoveryReply, Redis, Settings};

use super::{World, instant};

/// One instance's restore of a counter of `org_1`, in steps, between which the service may do anything.
pub struct SlowRestore {
    postgres: Postgres,
    connection: Arc<Connection>,
    counter: CounterId,
}

impl SlowRestore {
    pub async fn new(world: &World) -> Self {
        let redis =
            Redis::new(redis_settings(world), world.clock.clone(), world.metrics()).unwrap();
        Self {
            connection: redis.connection().await.unwrap(),
            postgres: Postgres::new(&world.database_url, 1).unwrap(),
            counter: CounterId {
                organization: "org_1".parse().unwrap(),
                meter: "api".parse().unwrap(),
                start: instant("2031-03-01T00:00:00Z"),
            },
        }
    }

    /// The stamp of the counter in Redis.
    pub async fn stamp(&self) -> Stamp {
        let counters = std::slice::from_ref(&self.counter);
        let snapshots = self.connection.read(counters).await.unwrap();
        snapshots[0].as_ref().unwrap().stamp
    }

    /// First step: Postgres moves the count to the generation of the stamp.
    pub async fn move_in_postgres(
        &self,
        stamp: &Stamp,
    ) -> Result<usage::Restored, postgres::Error> {
        let (from, now) = (self.counter.start, self.counter.start);
        let moves = [Move {
            counter: &self.counter,
            held: None,
            stamp,
        }];
        let restored = usage::restore(&self.postgres, &moves, from, now).await?;
        Ok(restored.into_iter().next().unwrap())
    }

    /// Second step: Redis stores the snapshot from Postgres.
    pub async fn write_to_redis(
        &self,
        moved: &usage::Restored,
        policy_version: u64,
    ) -> RecoveryReply {
        let moved = Moved {
            held: None,
            snapshot: &moved.snapshot,
            meters: &moved.meters,
            policy_version,
        };
        let written = self.connection.restore(&[moved], self.counter.start).await;
        written.unwrap()[0]
    }
}

/// Redis settings of an instance in this world.
pub fn redis_settings(world: &World) -> Settings {
    Settings {
        url: world.servers().redis_url,
        prefix: "tm:".to_owned(),
        trust_restart: false,
        wait_replicas: 0,
        record_lifetime_ms: 1000,
    }
}
