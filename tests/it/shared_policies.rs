//! A policy shared by many organizations is stored once in each shard, while any of them references it.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::json;
use tallyman::config::Servers;
use tallyman::redis::Shard;

use crate::support::{World, shard};

/// The shared policies of all shards, with their number of references.
async fn shared(world: &World) -> Vec<(String, u64)> {
    let mut all = Vec::new();
    for shard in Shard::all() {
        let key = format!("tm:{{{:02x}}}:policies", shard.index());
        let policies: BTreeMap<String, String> = world.redis_command(&["HGETALL", &key]).await;
        for (name, text) in policies.iter().filter(|(name, _)| !name.contains(':')) {
            let references = policies[&format!("{name}:organizations")].parse().unwrap();
            all.push((text.clone(), references));
        }
        assert_eq!(policies.len() % 2, 0, "{policies:?}");
    }
    all
}

async fn encoding(world: &World, organization: &str) -> String {
    let hash = world.hash_of(organization).await.unwrap();
    world.redis_command(&["OBJECT", "ENCODING", &hash]).await
}

/// Names of organizations in the same shard.
fn names_in_one_shard<const N: usize>() -> [String; N] {
    let names = (0..).map(|number| format!("org_{number}"));
    let mut same_shard = names.filter(|name| shard(name) == shard("org_0"));
    std::array::from_fn(|_| same_shard.next().unwrap())
}

#[tokio::test]
async fn organizations_on_one_plan_hold_its_text_once_in_each_shard() {
    let world = World::new().await;
    let service = world.instance().await;
    let names: Vec<String> = (0..200).map(|number| format!("org_{number}")).collect();
    for name in &names {
        service.track(name, 1).await;
    }
    // An organization with its own settings has its own version, but the same policy text.
    service
        .settings("org_7", json!({"metadata": {"name": "Seven"}}))
        .await;
    let shards: BTreeSet<usize> = names.iter().map(|name| shard(name).index()).collect();
    let policies = shared(&world).await;
    let references: u64 = policies.iter().map(|(_, references)| references).sum();
    let texts: BTreeSet<&String> = policies.iter().map(|(text, _)| text).collect();
    assert_eq!((policies.len(), references), (shards.len(), 200));
    assert_eq!(texts.len(), 1, "{texts:?}");
    for name in &names {
        assert_eq!(encoding(&world, name).await, "listpack");
    }
}

#[tokio::test]
async fn a_shared_policy_is_removed_with_its_last_reference() {
    let world = World::new().await;
    let service = world.instance().await;
    let [one, other] = names_in_one_shard();
    service.track(&one, 1).await;
    service.track(&other, 1).await;
    let common = shared(&world).await;
    assert_eq!(common.len(), 1);
    assert_eq!(common[0].1, 2);
    service.limits(&one, json!({"api": {"limit": 20}})).await;
    service.limits(&one, json!({"api": {"limit": 30}})).await;
    let mut separate = shared(&world).await;
    separate.sort_by_key(|(text, _)| text != &common[0].0);
    assert_eq!(separate.len(), 2);
    assert_eq!(separate[0], (common[0].0.clone(), 1));
    assert!(separate[1].0.contains("\"limit\":30"), "{separate:?}");
    assert_eq!(separate[1].1, 1);
    assert_eq!(encoding(&world, &one).await, "listpack");
    for name in [&one, &other] {
        let path = format!("/v1/organizations/{name}");
        let deleted = service.http.delete(&path).await;
        assert_eq!(deleted.status, 200, "{}", deleted.text);
    }
    // A deleted organization is on the default policy.
    assert_eq!(shared(&world).await, common);
    service.track(&one, 1).await;
    assert_eq!(shared(&world).await, common);
}

#[tokio::test]
async fn an_instance_that_starts_without_postgres_enforces_shared_policies() {
    let world = World::new().await;
    let here = world.instance().await;
    let [one, other] = names_in_one_shard();
    here.track(&one, 1).await;
    here.track(&other, 1).await;
    here.limits(&one, json!({"api": {"limit": 5}})).await;
    here.limits(&other, json!({"api": {"limit": 7}})).await;
    here.app.state.auth.sweep_once().await.unwrap();
    let servers = Servers {
        database_url: "postgres://nobody@127.0.0.1:1/nowhere".to_owned(),
        ..world.servers()
    };
    let cut_off = world.instance_with(servers).await;
    for (name, limit) in [(&one, 5), (&other, 7)] {
        let granted = cut_off.try_consume(name, "api", limit - 1).await;
        assert_eq!(granted.body["limit"], limit, "{}", granted.text);
        assert_eq!(cut_off.try_consume(name, "api", 1).await.status, 429);
    }
}
