//! Whether Postgres is up: a connection of its own, apart from the pools, is checked all the time.

use std::sync::Arc;

use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{ConnectOptions as _, Connection as _};
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use super::error::Error;
use crate::link::Server;
use crate::metrics::{self, Metrics};

/// Where Postgres is.
#[derive(Debug)]
pub(super) struct Database {
    pub(super) options: PgConnectOptions,
    pub(super) metrics: Metrics,
}

/// A connection that is only checked.
#[derive(Debug, Clone)]
pub(super) struct Probe {
    connection: Arc<Mutex<PgConnection>>,
    broken: CancellationToken,
}

impl Server for Database {
    type Connection = Probe;
    type Error = Error;

    async fn connect(&self) -> Result<Probe, Error> {
        let mut connection = self.options.connect().await.map_err(unavailable)?;
        connection.ping().await.map_err(unavailable)?;
        Ok(Probe {
            connection: Arc::new(Mutex::new(connection)),
            broken: CancellationToken::new(),
        })
    }

    async fn check(&self, probe: &Probe) -> Result<(), Error> {
        probe
            .connection
            .lock()
            .await
            .ping()
            .await
            .map_err(unavailable)
    }

    fn is_broken(probe: &Probe) -> bool {
        probe.broken.is_cancelled()
    }

    async fn broken(probe: &Probe) {
        probe.broken.cancelled().await;
    }

    fn break_off(probe: &Probe) {
        probe.broken.cancel();
    }

    fn late() -> Error {
        let late = std::io::Error::new(std::io::ErrorKind::TimedOut, "it does not reply in time");
        unavailable(sqlx::Error::Io(late))
    }

    fn observe(&self, up: bool) {
        self.metrics.server_observed(metrics::Server::Postgres, up);
    }
}

/// Whatever the failure, no statement was sent.
fn unavailable(error: sqlx::Error) -> Error {
    Error::Unavailable(Arc::new(error))
}
