//! One Postgres for the whole test process, with a fresh, migrated database for each test.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::{fs, process, thread};

use sqlx::{AssertSqlSafe, Connection as _, PgConnection};
use tallyman::postgres::Postgres;
use tallyman_servers::{PostgresOptions, PostgresServer};
use tokio::sync::Mutex;

const TEMPLATE: &str = "template_tallyman";
const DIRECTORY: &str = "tallyman-tests-";

/// The connection URLs of the server.
struct Shared {
    maintenance: String,
    address: Box<dyn Fn(&str) -> String + Send + Sync>,
}

static SHARED: OnceLock<Shared> = OnceLock::new();
static NEXT: AtomicUsize = AtomicUsize::new(0);

/// Creates a database and returns its URL.
pub(super) async fn create_database() -> String {
    // Postgres copies a template only while no session uses it.
    static COPYING: Mutex<()> = Mutex::const_new(());
    let shared = SHARED.get_or_init(start);
    let name = format!("test_{}", NEXT.fetch_add(1, Ordering::Relaxed));
    let _guard = COPYING.lock().await;
    execute(
        &shared.maintenance,
        format!("create database {name} template {TEMPLATE}"),
    )
    .await;
    (shared.address)(&name)
}

/// Starts the server on its own thread, because the runtime of the first test ends before the others do.
/// The server stops with this process, however that ends.
fn start() -> Shared {
    // A thousand databases take a while.
    thread::spawn(remove_leftovers);
    let (sender, receiver) = std::sync::mpsc::channel();
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let dir = std::env::temp_dir().join(format!("{DIRECTORY}{}", process::id()));
            let server = PostgresServer::start(&dir, &PostgresOptions { durable: false })
                .await
                .unwrap();
            let maintenance = server.url("postgres");
            execute(&maintenance, format!("create database {TEMPLATE}")).await;
            let store = Postgres::new(&server.url(TEMPLATE), 1).unwrap();
            store.migrate().await.unwrap();
            store.close().await;
            let server = std::sync::Arc::new(server);
            let addresses = std::sync::Arc::clone(&server);
            let address = Box::new(move |name: &str| addresses.url(name));
            sender
                .send(Shared {
                    maintenance,
                    address,
                })
                .unwrap();
            std::future::pending::<()>().await;
        });
    });
    receiver.recv().expect("Postgres has started")
}

async fn execute(url: &str, statement: String) {
    let mut connection = PgConnection::connect(url).await.unwrap();
    sqlx::query(AssertSqlSafe(statement))
        .execute(&mut connection)
        .await
        .unwrap();
    connection.close().await.unwrap();
}

/// Removes the data directories of test processes that have ended; a process cannot remove its own,
/// because the server uses it until the end.
fn remove_leftovers() {
    for entry in fs::read_dir(std::env::temp_dir())
        .into_iter()
        .flatten()
        .flatten()
    {
        let name = entry.file_name();
        let owner = name.to_str().and_then(|name| name.strip_prefix(DIRECTORY));
        if owner.is_some_and(|owner| !fs::exists(format!("/proc/{owner}")).unwrap_or(true)) {
            // Fails for another user's directory, which then stays.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}
