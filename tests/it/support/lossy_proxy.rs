//! A proxy in front of Redis that drops or delays traffic on command.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tallyman::config::Servers;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::unix::{ReadHalf, WriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::time::sleep;

use super::World;

/// Forwards to the Redis of a [`World`].
pub struct LossyProxy {
    dir: TempDir,
    plan: Arc<Plan>,
}

/// Which traffic to drop or to delay; dropping any closes its connection.
struct Plan {
    /// The server socket of new connections.
    target: Mutex<PathBuf>,
    next_reply: AtomicBool,
    /// Drops every n-th chunk, in either direction; 0 = none.
    every: AtomicUsize,
    passed: AtomicUsize,
    closes: AtomicBool,
    /// How many milliseconds later than Redis it replies.
    delay: AtomicU64,
    open: watch::Sender<bool>,
    cut: watch::Sender<bool>,
}

impl LossyProxy {
    pub fn new(world: &World) -> Self {
        let dir = TempDir::new().unwrap();
        let listener = UnixListener::bind(dir.path().join("redis.sock")).unwrap();
        let plan = Arc::new(Plan {
            target: Mutex::new(socket(world)),
            next_reply: AtomicBool::new(false),
            every: AtomicUsize::new(0),
            passed: AtomicUsize::new(0),
            closes: AtomicBool::new(false),
            delay: AtomicU64::new(0),
            open: watch::Sender::new(true),
            cut: watch::Sender::new(false),
        });
        let shared = Arc::clone(&plan);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let mut open = shared.open.subscribe();
                open.wait_for(|open| *open).await.unwrap();
                if *shared.cut.borrow() {
                    continue;
                }
                let target = shared.target.lock().unwrap().clone();
                let server = UnixStream::connect(target).await.unwrap();
                tokio::spawn(forward(client, server, Arc::clone(&shared)));
            }
        });
        Self { dir, plan }
    }

    /// Server addresses with Redis behind this proxy.
    pub fn servers(&self, world: &World) -> Servers {
        Servers {
            redis_url: format!(
                "redis+unix://{}/redis.sock?protocol=resp3",
                self.dir.path().display()
            ),
            ..world.servers()
        }
    }

    /// From now on connects to another Redis.
    pub fn connect_to(&self, other: &World) {
        *self.plan.target.lock().unwrap() = socket(other);
    }

    /// Lets Redis execute the next request and closes the connection instead of replying.
    pub fn lose_one_reply(&self) {
        self.plan.next_reply.store(true, Ordering::SeqCst);
    }

    /// The same, and accepts no further connection until [`LossyProxy::open`].
    pub fn lose_one_reply_and_close(&self) {
        self.plan.closes.store(true, Ordering::SeqCst);
        self.lose_one_reply();
    }

    /// Waits until the proxy no longer accepts connections.
    pub async fn until_closed(&self) {
        let mut open = self.plan.open.subscribe();
        open.wait_for(|open| !open).await.unwrap();
    }

    pub fn open(&self) {
        self.plan.open.send_replace(true);
    }

    /// Closes every connection, and each new one, until [`LossyProxy::restore`].
    pub fn cut(&self) {
        self.plan.cut.send_replace(true);
    }

    pub fn restore(&self) {
        self.plan.cut.send_replace(false);
    }

    /// From now on replies so many milliseconds later than Redis.
    pub fn delay_replies(&self, milliseconds: u64) {
        self.plan.delay.store(milliseconds, Ordering::SeqCst);
    }

    /// From now on drops every n-th chunk and closes its connection; 0 = none.
    pub fn lose_every(&self, chunks: usize) {
        self.plan.every.store(chunks, Ordering::SeqCst);
    }
}

fn socket(world: &World) -> PathBuf {
    world.redis.server().socket().to_owned()
}

impl Plan {
    fn drops(&self) -> bool {
        let every = self.every.load(Ordering::SeqCst);
        every > 0 && self.passed.fetch_add(1, Ordering::SeqCst) % every == every - 1
    }

    /// What replies to a check of the connection comes at any time, and is none that a test waits for.
    fn drops_reply(&self, reply: &[u8]) -> bool {
        let is_check = reply.windows(7).any(|it| it == b"run_id:");
        let drops = !is_check && self.next_reply.swap(false, Ordering::SeqCst);
        if drops && self.closes.swap(false, Ordering::SeqCst) {
            self.open.send_replace(false);
        }
        drops || self.drops()
    }
}

async fn forward(mut client: UnixStream, mut server: UnixStream, plan: Arc<Plan>) {
    let mut cut = plan.cut.subscribe();
    let (from_client, to_client) = client.split();
    let (from_server, to_server) = server.split();
    tokio::select! {
        () = carry(from_client, to_server, None, |_| plan.drops()) => {}
        () = carry(from_server, to_client, Some(&plan.delay), |reply| plan.drops_reply(reply)) => {}
        _ = cut.wait_for(|cut| *cut) => {}
    }
}

async fn carry(
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    delay: Option<&AtomicU64>,
    drops: impl Fn(&[u8]) -> bool,
) {
    let mut chunk = vec![0; 64 * 1024];
    while let Ok(length @ 1..) = from.read(&mut chunk).await {
        let delay = delay.map_or(0, |it| it.load(Ordering::SeqCst));
        if delay > 0 {
            sleep(Duration::from_millis(delay)).await;
        }
        if drops(&chunk[..length]) || to.write_all(&chunk[..length]).await.is_err() {
            return;
        }
    }
}
