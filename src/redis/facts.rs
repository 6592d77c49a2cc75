//! What Redis says about itself, for `tallyman doctor`.

use std::collections::HashMap;

use ::redis::aio::MultiplexedConnection;
use ::redis::{Client, Cmd, ErrorKind, FromRedisValue, RedisResult, cmd};
use chrono::{DateTime, Utc};

use super::channel;
use super::error::Error;
use super::keys::{Keys, LAYOUT};
use crate::clock::Clock;
use crate::domain::checkup::RedisFacts;

/// Asks a server, which may be unfit for counting.
pub async fn read(url: &str, prefix: &str, clock: &Clock) -> Result<RedisFacts, Error> {
    let unavailable = |error: ::redis::RedisError| Error::Unavailable(error.to_string());
    let client = Client::open(url).map_err(|error| Error::Unfit(error.to_string()))?;
    let mut connection = client
        .get_multiplexed_async_connection_with_config(&channel::config())
        .await
        .map_err(unavailable)?;
    let distance = clock.distance(async || {
        let (seconds, micros) = ask(&mut connection, &cmd("TIME")).await?;
        instant(seconds, micros).ok_or_else(|| (ErrorKind::Parse, "TIME is no instant").into())
    });
    let distance = distance.await.map_err(unavailable)?;
    let info: String = ask(&mut connection, &cmd("INFO"))
        .await
        .map_err(unavailable)?;
    let layout = Keys::new(prefix).layout();
    let mut get = cmd("GET");
    let layout = ask(&mut connection, get.arg(layout))
        .await
        .map_err(unavailable)?;
    Ok(RedisFacts {
        info: info
            .lines()
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
            .collect(),
        append_fsync: setting(&mut connection, "appendfsync").await,
        clients_max: setting(&mut connection, "maxclients")
            .await
            .and_then(|it| it.parse().ok()),
        layout,
        layout_needed: LAYOUT.to_owned(),
        distance,
    })
}

/// A setting; none where a managed service does not tell it.
async fn setting(connection: &mut MultiplexedConnection, name: &str) -> Option<String> {
    let mut get = cmd("CONFIG");
    get.arg(("GET", name));
    let found: RedisResult<HashMap<String, String>> = ask(connection, &get).await;
    found.ok()?.remove(name)
}

async fn ask<T: FromRedisValue>(
    connection: &mut MultiplexedConnection,
    command: &Cmd,
) -> RedisResult<T> {
    command.query_async(connection).await
}

fn instant(seconds: i64, micros: i64) -> Option<DateTime<Utc>> {
    let micros = seconds.checked_mul(1_000_000)?.checked_add(micros)?;
    DateTime::from_timestamp_micros(micros)
}
