//! Live figures of the dashboard's pages.

use serde_json::json;

use crate::support::{Browser, Events, Instance, World};

const PAGE: &str = "/dashboard/organizations/org_1/live";

async fn watch(browser: &Browser, path: &str) -> Events {
    Events::new(browser.open(path).await)
}

/// A round of the reader, which runs every second in the executable.
async fn round(service: &Instance) {
    service.app.state.live.read_once().await;
}

/// How many commands Redis executes in a round after a count, until each stream has it.
async fn commands_of_a_round(world: &World, service: &Instance, streams: &mut [Events]) -> u64 {
    let executed = async || {
        let stats: String = world.redis_command(&["INFO", "commandstats"]).await;
        let commands = stats.lines().filter_map(|it| it.split_once(":calls="));
        // Connections are checked, and keys looked up again, by the clock.
        let by_clock = ["cmdstat_info", "cmdstat_hget"];
        let commands = commands.filter(|(name, _)| !by_clock.contains(name));
        let calls = commands.filter_map(|(_, figures)| figures.split(',').next());
        calls.map(|it| it.parse::<u64>().unwrap()).sum::<u64>()
    };
    service.count("org_1", "api", 1).await;
    let before = executed().await;
    round(service).await;
    for stream in streams {
        stream.data().await;
    }
    executed().await - before
}

#[tokio::test]
async fn the_pages_of_all_viewers_and_the_streams_of_the_api_share_one_read() {
    let world = World::new().await;
    let service = world.instance().await;
    service.count("org_1", "api", 1).await;
    let first = Browser::signed_in(&service, &world.key).await;
    let mut streams = vec![watch(&first, PAGE).await];
    streams[0].data().await;
    let of_one = commands_of_a_round(&world, &service, &mut streams).await;

    let other = world.key_with(&["read"]).await;
    let second = Browser::signed_in(&service, &other).await;
    for browser in [&first, &second, &second] {
        streams.push(watch(browser, PAGE).await);
    }
    let api = service.http.open("/v1/organizations/org_1/live").await;
    streams.push(Events::new(api));
    for stream in &mut streams[1..] {
        stream.data().await;
    }
    let of_five = commands_of_a_round(&world, &service, &mut streams).await;
    assert_eq!(of_five, of_one);
}

#[tokio::test]
async fn the_page_of_an_organization_gets_what_changes_as_texts() {
    let world = World::new().await;
    let service = world.instance().await;
    service
        .limits("org_1", json!({"api": {"limit": 2000}}))
        .await;
    service.count("org_1", "api", 1500).await;
    service.count("org_1", "seats", 3).await;
    let browser = Browser::signed_in(&service, &world.key).await;
    let mut page = watch(&browser, PAGE).await;
    assert_eq!(
        page.data().await,
        json!({"state": "Live", "api.current": "1,500", "api.pct": "75.00%", "api.bar": "75.00%", "seats.current": "3"})
    );
    service.count("org_1", "seats", 1).await;
    round(&service).await;
    let changed = json!({"state": "Live", "seats.current": "4"});
    assert_eq!(page.data().await, changed);
    service.app.state.live.close();
    page.ends().await;
}

#[tokio::test]
async fn the_overview_gets_the_figures_of_the_summary_and_says_when_a_server_is_away() {
    let mut world = World::new().await;
    let service = world.instance().await;
    service.count("org_1", "api", 1000).await;
    service.flush().await;
    let browser = Browser::signed_in(&service, &world.key).await;
    let mut page = watch(&browser, "/dashboard/live").await;
    let figures = json!({"state": "Live", "orgs": "1", "cpm": "0", "warning": "0", "exceeded": "1", "lag": "0.0 s"});
    assert_eq!(page.data().await, figures);
    world.kill_redis().await;
    service.app.activity.observe().await.unwrap();
    round(&service).await;
    let figures = page.data().await;
    assert_eq!(figures["cpm"], "unknown");
    assert_eq!(figures["state"], "Redis cannot be reached; reload for more");
}

#[tokio::test]
async fn pages_are_among_the_streams_of_their_key_and_a_refused_one_says_why() {
    let world = World::with(|config| config.connections.max = 2).await;
    let service = world.instance().await;
    let mut browser = Browser::signed_in(&service, &world.key).await;
    let _page = watch(&browser, "/dashboard/live").await;
    let refused = browser.get("/dashboard/live").await;
    assert_eq!(refused.status, 503, "{}", refused.text);
    assert!(refused.text.contains("live streams"), "{}", refused.text);
}

#[tokio::test]
async fn a_live_page_needs_a_session_and_ends_with_its_key() {
    let world = World::new().await;
    let service = world.instance().await;
    service.count("org_1", "api", 1).await;
    let anonymous = Browser::new(&service).open(PAGE).await;
    assert_eq!(anonymous.status(), 303);
    let created = json!({"name": "viewer", "scopes": ["read"]});
    let created = service.http.post("/v1/api-keys", created).await.body;
    let browser = Browser::signed_in(&service, created["key"].as_str().unwrap()).await;
    let unknown = browser.open("/dashboard/organizations/nobody/live").await;
    assert_eq!(unknown.status(), 404);
    let mut page = watch(&browser, PAGE).await;
    page.data().await;
    let key = format!("/v1/api-keys/{}", created["id"].as_str().unwrap());
    assert_eq!(service.http.delete(&key).await.status, 204);
    service.count("org_1", "api", 1).await;
    round(&service).await;
    page.ends().await;
}
