//! A proxy in front of Redis that drops or delays traffic on command.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tallyman::config::Servers;
use tallyman_servers::RedisCluster;
use tokio::io::{
    AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadHalf, WriteHalf, split,
};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::watch;
use tokio::time::sleep;

use super::World;

/// Forwards to the Redis of a [`World`], or to a node of a cluster.
pub struct LossyProxy {
    port: u16,
    plan: Arc<Plan>,
}

/// Where a Redis listens.
#[derive(Clone)]
enum Target {
    Socket(PathBuf),
    Port(u16),
}

/// Which traffic to drop or to delay; dropping any closes its connection.
struct Plan {
    /// The server socket of new connections.
    target: Mutex<Target>,
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
    pub async fn new(world: &World) -> Self {
        Self::forwarding_to(socket(world)).await
    }

    /// A proxy that its node tells clients to connect to. Tests that use it cannot ask for the masters of slots any more,
    /// nor wait for agreement: nodes are known by their ports.
    pub async fn announced(cluster: &RedisCluster, node: usize) -> Self {
        let proxy = Self::forwarding_to(Target::Port(cluster.nodes()[node].port)).await;
        proxy.announce(cluster, node).await;
        proxy
    }

    /// Has one more node tell clients to connect to this proxy.
    pub async fn announce(&self, cluster: &RedisCluster, node: usize) {
        let port = self.port.to_string();
        let words = ["CONFIG", "SET", "cluster-announce-port", &port];
        let () = cluster.command(node, &words).await.unwrap();
    }

    async fn forwarding_to(target: Target) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let plan = Arc::new(Plan {
            target: Mutex::new(target),
            next_reply: AtomicBool::new(false),
            every: AtomicUsize::new(0),
            passed: AtomicUsize::new(0),
            closes: AtomicBool::new(false),
            delay: AtomicU64::new(0),
            open: watch::Sender::new(true),
            cut: watch::Sender::new(false),
        });
        tokio::spawn(accept(listener, Arc::clone(&plan)));
        Self { port, plan }
    }

    /// Where it listens, on loopback.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Server addresses with Redis behind this proxy.
    pub fn servers(&self, world: &World) -> Servers {
        Servers {
            redis_url: format!("redis://127.0.0.1:{}?protocol=resp3", self.port),
            ..world.servers()
        }
    }

    /// The URL of a cluster, one of whose nodes announces this proxy.
    pub fn cluster_url(&self, cluster: &RedisCluster) -> String {
        let url = cluster.url();
        let (account, _) = url.rsplit_once('@').unwrap();
        format!("{account}@127.0.0.1:{}?cluster=true", self.port)
    }

    /// From now on connects to this node.
    pub fn connect_to_node(&self, cluster: &RedisCluster, node: usize) {
        *self.plan.target.lock().unwrap() = Target::Port(cluster.nodes()[node].port);
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

fn socket(world: &World) -> Target {
    Target::Socket(world.redis.server().socket().to_owned())
}

impl Plan {
    fn drops(&self) -> bool {
        let every = self.every.load(Ordering::SeqCst);
        every > 0 && self.passed.fetch_add(1, Ordering::SeqCst) % every == every - 1
    }

    fn drops_reply(&self, reply: &[u8]) -> bool {
        let drops = !is_check(reply) && self.next_reply.swap(false, Ordering::SeqCst);
        if drops && self.closes.swap(false, Ordering::SeqCst) {
            self.open.send_replace(false);
        }
        drops || self.drops()
    }
}

/// Whether this is nothing but a reply to `INFO`, with which connections are checked at any time, so that no test waits for
/// it. A call's reply may come in the same chunk.
fn is_check(reply: &[u8]) -> bool {
    let length = || {
        let (header, text) = reply.split_at(reply.iter().position(|it| *it == b'\n')? + 1);
        let length = str::from_utf8(header).ok()?.trim_end();
        let length: usize = length.strip_prefix(['=', '$'])?.parse().ok()?;
        Some(text.len() - "\r\n".len() == length)
    };
    reply.windows(7).any(|it| it == b"run_id:") && length() == Some(true)
}

async fn accept(listener: TcpListener, plan: Arc<Plan>) {
    while let Ok((client, _)) = listener.accept().await {
        let mut open = plan.open.subscribe();
        open.wait_for(|open| *open).await.unwrap();
        if *plan.cut.borrow() {
            continue;
        }
        client.set_nodelay(true).unwrap();
        let target = plan.target.lock().unwrap().clone();
        let plan = Arc::clone(&plan);
        match target {
            Target::Socket(path) => {
                let server = UnixStream::connect(path).await.unwrap();
                tokio::spawn(forward(client, server, plan));
            }
            Target::Port(port) => {
                let server = TcpStream::connect((Ipv4Addr::LOCALHOST, port))
                    .await
                    .unwrap();
                server.set_nodelay(true).unwrap();
                tokio::spawn(forward(client, server, plan));
            }
        }
    }
}

async fn forward<S>(client: TcpStream, server: S, plan: Arc<Plan>)
where
    S: AsyncRead + AsyncWrite,
{
    let mut cut = plan.cut.subscribe();
    let (from_client, to_client) = split(client);
    let (from_server, to_server) = split(server);
    tokio::select! {
        () = carry(from_client, to_server, None, |_| plan.drops()) => {}
        () = carry(from_server, to_client, Some(&plan.delay), |reply| plan.drops_reply(reply)) => {}
        _ = cut.wait_for(|cut| *cut) => {}
    }
}

async fn carry(
    mut from: ReadHalf<impl AsyncRead>,
    mut to: WriteHalf<impl AsyncWrite>,
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
