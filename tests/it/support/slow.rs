//! A restore, step by step.

use std::sync::Arc;

use tallyman::domain::counter::{CounterId, Stamp};
use tallyman::postgres::usage::{self, Move};
use tallyman::postgres::{self, Postgres};
use tallyman::redis::{Connection, Moved, RecoveryReply, Redis, Settings};

use super::{World, instant};

/// One instance's restore of `org_1`, step by step, while the service goes on.
pub struct Slow {
    postgres: Postgres,
    connection: Arc<Connection>,
    counter: CounterId,
}

impl Slow {
    pub async fn of(world: &World) -> Self {
        let redis = Redis::new(settings_of(world), world.clock.clone(), world.metrics()).unwrap();
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

    /// What the counter in Redis has for a stamp.
    pub async fn stamp(&self) -> Stamp {
        let redis = std::slice::from_ref(&self.counter);
        let held = self.connection.read(redis).await.unwrap();
        held[0].as_ref().unwrap().stamp
    }

    /// The first half: Postgres moves the count to the generation of the stamp.
    pub async fn moved(&self, stamp: &Stamp) -> Result<usage::Restored, postgres::Error> {
        let (from, now) = (self.counter.start, self.counter.start);
        let moves = [Move {
            counter: &self.counter,
            held: None,
            stamp,
        }];
        let restored = usage::restore(&self.postgres, &moves, from, now).await?;
        Ok(restored.into_iter().next().unwrap())
    }

    /// The second half: Redis takes what Postgres holds.
    pub async fn written(&self, moved: &usage::Restored, policy_version: u64) -> RecoveryReply {
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

/// How an instance of this world would speak to Redis.
pub fn settings_of(world: &World) -> Settings {
    Settings {
        url: world.servers().redis_url,
        prefix: "tm:".to_owned(),
        trust_restart: false,
        record_lifetime_ms: 1000,
    }
}
