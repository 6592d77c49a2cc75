//! Sentinels replace a master.

use tallyman_servers::{RedisSentinel, SentinelOptions};
use tempfile::TempDir;

use crate::in_workspace;

#[tokio::test]
async fn sentinels_replace_a_killed_master_which_comes_back_as_a_replica() {
    let dir = TempDir::new().unwrap();
    in_workspace();
    let options = SentinelOptions::default();
    let mut group = RedisSentinel::start(dir.path(), &options).await.unwrap();
    let ports = group.sentinels().into_iter().map(|node| node.port);
    let addresses: Vec<String> = ports.map(|port| format!("127.0.0.1:{port}")).collect();
    let expected = format!("@{}/tallyman", addresses.join(","));
    assert!(group.url().ends_with(&expected), "{}", group.url());
    assert_eq!(group.master().await.unwrap(), 0);

    group.kill(0).await;
    group.wait_until_ok().await.unwrap();
    let new = group.master().await.unwrap();
    assert!([1, 2].contains(&new));
    let () = group.command(new, &["SET", "key", "1"]).await.unwrap();

    group.restart(0).await.unwrap();
    group.wait_until_ok().await.unwrap();
    assert_eq!(group.master().await.unwrap(), new);
    let value: u32 = group.command(0, &["GET", "key"]).await.unwrap();
    assert_eq!(value, 1);
}

#[tokio::test]
async fn two_sentinels_of_three_suffice_and_may_require_the_password() {
    let dir = TempDir::new().unwrap();
    in_workspace();
    let options = SentinelOptions {
        replicas: 1,
        sentinel_password: true,
        ..SentinelOptions::default()
    };
    let mut group = RedisSentinel::start(dir.path(), &options).await.unwrap();
    let sentinel = group.sentinels()[0].index;
    group.kill(sentinel).await;
    group.signal(0, "STOP").await.unwrap();
    group.wait_until_ok().await.unwrap();
    assert_eq!(group.master().await.unwrap(), 1);

    group.signal(0, "CONT").await.unwrap();
    group.restart(sentinel).await.unwrap();
    group.wait_until_ok().await.unwrap();
    assert_eq!(group.master().await.unwrap(), 1);
}
