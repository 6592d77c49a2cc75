//! A proxy in front of Redis that swallows replies and then cuts their connections.
//!
//! The service connects to Redis through a symbolic link, which leads to this proxy only while replies are to be lost.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::thread;

use anyhow::{Context as _, Result};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy};
use tokio::net::{UnixListener, UnixStream};
use tokio::runtime::Builder;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// One in so many replies is lost.
const LOST: u64 = 60;

/// The link to Redis, and the proxy, which ends with it.
#[derive(Debug)]
pub(super) struct RedisLink {
    link: PathBuf,
    server: PathBuf,
    proxy: PathBuf,
    /// Whether the proxy may keep its connections.
    open: watch::Sender<bool>,
}

impl RedisLink {
    /// Creates the link in `dir`, to the Redis that listens on `server`.
    pub(super) fn new(dir: &Path, server: &Path) -> Result<Self> {
        let link = Self {
            link: dir.join("link.sock"),
            server: server.to_owned(),
            proxy: dir.join("proxy.sock"),
            open: watch::Sender::new(false),
        };
        link.lead_to(server)?;
        let runtime = Builder::new_current_thread().enable_io().build()?;
        let (proxy, server, open) = (link.proxy.clone(), server.to_owned(), link.open.subscribe());
        let listener = {
            let _context = runtime.enter();
            UnixListener::bind(proxy).context("cannot start the proxy")?
        };
        // A thread of its own: replies must not wait for the load tool.
        thread::Builder::new()
            .name("proxy".to_owned())
            .spawn(move || runtime.block_on(serve(&listener, &server, open)))?;
        Ok(link)
    }

    /// The URL of Redis, for the service.
    pub(super) fn url(&self) -> String {
        format!("redis+unix://{}?protocol=resp3", self.link.display())
    }

    /// New connections lose replies.
    pub(super) fn lose_replies(&self) -> Result<()> {
        self.open.send_replace(true);
        self.lead_to(&self.proxy)
    }

    /// New connections lead to Redis itself, and those of the proxy are cut.
    pub(super) fn keep_replies(&self) -> Result<()> {
        self.lead_to(&self.server)?;
        self.open.send_replace(false);
        Ok(())
    }

    /// Atomic: there is a link at all times.
    fn lead_to(&self, socket: &Path) -> Result<()> {
        let new = self.link.with_extension("new");
        symlink(socket, &new)
            .and_then(|()| fs::rename(&new, &self.link))
            .context("cannot link the socket of Redis")
    }
}

/// Accepts connections until the link is gone.
async fn serve(listener: &UnixListener, server: &Path, mut open: watch::Receiver<bool>) {
    let mut connections = JoinSet::new();
    loop {
        let client = tokio::select! {
            client = listener.accept() => client,
            changed = open.changed() => match changed {
                Ok(()) => continue,
                Err(_) => return,
            },
        };
        let (Ok((client, _)), Ok(server)) = (client, UnixStream::connect(server).await) else {
            continue;
        };
        let mut open = open.clone();
        connections.spawn(async move {
            tokio::select! {
                () = forward(client, server) => {}
                _ = open.wait_for(|open| !open) => {}
            }
        });
        while connections.try_join_next().is_some() {}
    }
}

async fn forward(mut client: UnixStream, mut server: UnixStream) {
    let (mut from_client, mut to_client) = client.split();
    let (mut from_server, mut to_server) = server.split();
    let replies = async {
        let (mut chunk, mut passed) = (vec![0; 64 * 1024], 0_u64);
        while let Ok(length @ 1..) = from_server.read(&mut chunk).await {
            passed += 1;
            if passed.is_multiple_of(LOST) || to_client.write_all(&chunk[..length]).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        _ = copy(&mut from_client, &mut to_server) => {}
        () = replies => {}
    }
}
