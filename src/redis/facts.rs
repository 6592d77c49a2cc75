//! What Redis says about itself, for `tallyman doctor`.

use std::collections::HashMap;

use ::redis::aio::MultiplexedConnection;
use ::redis::{Cmd, ErrorKind, FromRedisValue, RedisResult, ServerErrorKind, cmd};
use chrono::{DateTime, Utc};
use futures::future::join_all;

use super::address::{Address, Place};
use super::channel;
use super::error::Error;
use super::keys::Keys;
use super::node::connect;
use super::topology;
use crate::clock::Clock;
use crate::domain::checkup::RedisFacts;

/// Asks every master, which may be unfit for counting; each with its address.
pub async fn read(
    url: &str,
    prefix: &str,
    clock: &Clock,
) -> Result<Vec<(String, Result<RedisFacts, Error>)>, Error> {
    let place = Place::parse(url)?;
    let keys = Keys::new(prefix, place.is_cluster());
    let topology = topology::read(&place, &[]).await?;
    let masters = topology.masters.iter().map(async |address| {
        let facts = read_one(address, &keys, clock).await;
        (address.to_string(), facts)
    });
    Ok(join_all(masters).await)
}

async fn read_one(address: &Address, keys: &Keys, clock: &Clock) -> Result<RedisFacts, Error> {
    let unavailable = |error: ::redis::RedisError| Error::Unavailable(error.to_string());
    let mut connection = connect(address, &channel::config()).await?;
    let distance = clock.distance(async || {
        let (seconds, micros) = ask(&mut connection, &cmd("TIME")).await?;
        instant(seconds, micros).ok_or_else(|| (ErrorKind::Parse, "TIME is no instant").into())
    });
    let distance = distance.await.map_err(unavailable)?;
    let info: String = ask(&mut connection, &cmd("INFO"))
        .await
        .map_err(unavailable)?;
    let mut get = cmd("GET");
    let layout = match ask(&mut connection, get.arg(keys.layout())).await {
        // Another master has it.
        Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::Moved) => None,
        reply => reply.map_err(unavailable)?,
    };
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
        layout_needed: keys.layout_needed().to_owned(),
        needs_cluster: keys.clustered(),
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
