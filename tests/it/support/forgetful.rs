//! A way to Redis that loses what it is told to lose.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use tallyman::config::Servers;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::unix::{ReadHalf, WriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;

use super::World;

/// Forwards to the Redis of a [`World`].
pub struct Forgetful {
    dir: TempDir,
    plan: Arc<Plan>,
}

/// What is to be lost; with it goes the connection.
struct Plan {
    /// The socket that new connections lead to.
    target: Mutex<PathBuf>,
    next_reply: AtomicBool,
    /// Every so many pieces of traffic, whichever way they go; 0 = none.
    every: AtomicUsize,
    passed: AtomicUsize,
    closes: AtomicBool,
    open: watch::Sender<bool>,
}

impl Forgetful {
    pub fn new(world: &World) -> Self {
        let dir = TempDir::new().unwrap();
        let listener = UnixListener::bind(dir.path().join("redis.sock")).unwrap();
        let plan = Arc::new(Plan {
            target: Mutex::new(socket(world)),
            next_reply: AtomicBool::new(false),
            every: AtomicUsize::new(0),
            passed: AtomicUsize::new(0),
            closes: AtomicBool::new(false),
            open: watch::Sender::new(true),
        });
        let shared = Arc::clone(&plan);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let mut open = shared.open.subscribe();
                open.wait_for(|open| *open).await.unwrap();
                let target = shared.target.lock().unwrap().clone();
                let server = UnixStream::connect(target).await.unwrap();
                tokio::spawn(forward(client, server, Arc::clone(&shared)));
            }
        });
        Self { dir, plan }
    }

    /// The servers of an instance that goes this way.
    pub fn servers(&self, world: &World) -> Servers {
        Servers {
            redis_url: format!(
                "redis+unix://{}/redis.sock?protocol=resp3",
                self.dir.path().display()
            ),
            ..world.servers()
        }
    }

    /// From now on new connections lead to another Redis.
    pub fn lead_to(&self, other: &World) {
        *self.plan.target.lock().unwrap() = socket(other);
    }

    /// The next request is executed; instead of its reply, the connection ends.
    pub fn lose_one_reply(&self) {
        self.plan.next_reply.store(true, Ordering::SeqCst);
    }

    /// The same, and nobody gets through any more.
    pub fn lose_one_reply_and_close(&self) {
        self.plan.closes.store(true, Ordering::SeqCst);
        self.lose_one_reply();
    }

    /// Until the way has closed.
    pub async fn closed(&self) {
        let mut open = self.plan.open.subscribe();
        open.wait_for(|open| !open).await.unwrap();
    }

    pub fn open(&self) {
        self.plan.open.send_replace(true);
    }

    /// From now on every so many requests or replies end their connection instead of arriving; 0 = none.
    pub fn lose_every(&self, pieces: usize) {
        self.plan.every.store(pieces, Ordering::SeqCst);
    }
}

fn socket(world: &World) -> PathBuf {
    world.redis.as_ref().unwrap().socket().to_owned()
}

impl Plan {
    fn loses(&self) -> bool {
        let every = self.every.load(Ordering::SeqCst);
        every > 0 && self.passed.fetch_add(1, Ordering::SeqCst) % every == every - 1
    }

    fn loses_reply(&self) -> bool {
        let loses = self.next_reply.swap(false, Ordering::SeqCst);
        if loses && self.closes.swap(false, Ordering::SeqCst) {
            self.open.send_replace(false);
        }
        loses || self.loses()
    }
}

async fn forward(mut client: UnixStream, mut server: UnixStream, plan: Arc<Plan>) {
    let (from_client, to_client) = client.split();
    let (from_server, to_server) = server.split();
    tokio::select! {
        () = carry(from_client, to_server, || plan.loses()) => {}
        () = carry(from_server, to_client, || plan.loses_reply()) => {}
    }
}

async fn carry(mut from: ReadHalf<'_>, mut to: WriteHalf<'_>, loses: impl Fn() -> bool) {
    let mut piece = vec![0; 64 * 1024];
    while let Ok(length @ 1..) = from.read(&mut piece).await {
        if loses() || to.write_all(&piece[..length]).await.is_err() {
            return;
        }
    }
}
