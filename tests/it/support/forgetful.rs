//! A way to Redis that carries every request, and loses a reply when it is told to.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tallyman::config::Servers;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};

use super::World;

/// Forwards to the Redis of a [`World`].
pub struct Forgetful {
    dir: TempDir,
    losing: Arc<AtomicBool>,
}

impl Forgetful {
    pub fn new(world: &World) -> Self {
        let dir = TempDir::new().unwrap();
        let listener = UnixListener::bind(dir.path().join("redis.sock")).unwrap();
        let target = world.redis.as_ref().unwrap().socket().to_owned();
        let losing = Arc::new(AtomicBool::new(false));
        let lose = Arc::clone(&losing);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let server = UnixStream::connect(&target).await.unwrap();
                tokio::spawn(forward(client, server, Arc::clone(&lose)));
            }
        });
        Self { dir, losing }
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

    /// The next request is executed; instead of its reply, the connection ends.
    pub fn lose_one_reply(&self) {
        self.losing.store(true, Ordering::SeqCst);
    }
}

async fn forward(mut client: UnixStream, mut server: UnixStream, losing: Arc<AtomicBool>) {
    let (mut from_client, mut to_client) = client.split();
    let (mut from_server, mut to_server) = server.split();
    let requests = tokio::io::copy(&mut from_client, &mut to_server);
    let replies = async {
        let mut reply = vec![0; 64 * 1024];
        while let Ok(length @ 1..) = from_server.read(&mut reply).await {
            if losing.swap(false, Ordering::SeqCst)
                || to_client.write_all(&reply[..length]).await.is_err()
            {
                return;
            }
        }
    };
    tokio::select! {
        _ = requests => {}
        () = replies => {}
    }
}
