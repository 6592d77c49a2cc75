//! The dashboard while Redis or Postgres is away: what is known, since when the rest is not, and what works meanwhile.

use chrono::Duration;
use serde_json::json;

use crate::support::{Answer, Browser, CuttableSocket, Instance, World};

/// A service with an organization that was stored, where Postgres can be cut.
async fn started(world: &World) -> (Instance, CuttableSocket) {
    let (servers, socket) = world.cuttable_postgres();
    let service = world.instance_with(servers).await;
    let name = json!({"metadata": {"name": "Acme"}});
    service.settings("org_1", name).await;
    service.count("org_1", "api", 900).await;
    service.flush().await;
    service.app.activity.observe().await.unwrap();
    // The executable mirrors keys within a second.
    service.app.state.auth.sweep_once().await.unwrap();
    (service, socket)
}

fn assert_shown(page: &Answer, texts: &[&str]) {
    assert_eq!(page.status, 200, "{}", page.text);
    for text in texts {
        assert!(page.text.contains(text), "{text}: {}", page.text);
    }
}

#[tokio::test]
async fn without_redis_the_overview_has_the_last_snapshots_and_says_how_old_they_are() {
    let mut world = World::new().await;
    let (service, _socket) = started(&world).await;
    let mut browser = Browser::signed_in(&service, &world.key).await;
    world.clock.advance(Duration::minutes(3));
    world.kill_redis().await;
    service.app.activity.observe().await.unwrap();
    let page = browser.get("/dashboard").await;
    assert_shown(
        &page,
        &[
            "Redis cannot be reached since 12:03:00 UTC",
            "Counts on this page are the last snapshots, <time",
            ">3 min ago<",
            "Calls that count are refused with 503",
            "unknown",
            "Acme",
            "class=\"stale\"",
        ],
    );
    assert!(!page.text.contains("data-live=\"/dashboard/live\""));
    let page = browser.get("/dashboard/organizations/org_1").await;
    assert_shown(
        &page,
        &[
            "Redis cannot be reached since 12:03:00 UTC",
            ">3 min ago<",
            ">900<",
        ],
    );
}

#[tokio::test]
async fn without_postgres_the_overview_has_the_last_totals_and_the_present_flush_lag() {
    let world = World::new().await;
    let (service, socket) = started(&world).await;
    let mut browser = Browser::signed_in(&service, &world.key).await;
    assert_shown(&browser.get("/dashboard").await, &["Acme"]);
    world.clock.advance(Duration::minutes(1));
    socket.cut(&world.postgres().await).await;
    service.app.activity.observe().await.unwrap_err();
    service.count("org_1", "api", 1).await;
    world.clock.advance(Duration::minutes(2));
    let page = browser.get("/dashboard").await;
    assert_shown(
        &page,
        &[
            "Postgres cannot be reached since 12:01:00 UTC",
            "Totals on this page are as of 12:00:00 UTC",
            "the last snapshot was stored <time",
            "data-live=\"orgs\">1<",
            "data-live=\"lag\">120.0 s<",
            "unknown",
            "are counted and limited as before",
            "Nothing can be changed until then",
            "The list is not known while Postgres is away",
        ],
    );
    assert!(!page.text.contains("data-live=\"/dashboard/live\""));
    let found = browser.get("/dashboard?search=org_1").await;
    let link = "href=\"/dashboard/organizations/org_1\"";
    assert_shown(&found, &[link]);

    socket.restore().await;
    service.app.activity.observe().await.unwrap();
    let page = browser.get("/dashboard").await;
    assert_shown(&page, &["Acme", "All servers fine"]);
}

#[tokio::test]
async fn without_postgres_and_totals_the_overview_says_so_at_once() {
    let world = World::new().await;
    let (service, socket) = started(&world).await;
    let mut browser = Browser::signed_in(&service, &world.key).await;
    socket.cut(&world.postgres().await).await;
    let page = browser.get("/dashboard").await;
    assert_shown(
        &page,
        &[
            "Postgres cannot be reached.",
            "This instance has not read the totals since it started",
        ],
    );
    for invented in ["curl", "class=\"strip\"", "As of"] {
        assert!(!page.text.contains(invented), "{invented}: {}", page.text);
    }
}

#[tokio::test]
async fn without_postgres_the_page_of_an_organization_has_the_present_counts_and_limits() {
    let world = World::new().await;
    let (service, socket) = started(&world).await;
    for key in [world.key.clone(), world.key_with(&["read"]).await] {
        let mut browser = Browser::signed_in(&service, &key).await;
        browser.get("/dashboard").await;
        socket.cut(&world.postgres().await).await;
        service.app.activity.observe().await.unwrap_err();
        service.count("org_1", "api", 1).await;
        let page = browser.get("/dashboard/organizations/org_1").await;
        let count = service.current("org_1", "api").await;
        assert_shown(
            &page,
            &[
                "Postgres cannot be reached since 12:00:00 UTC",
                &format!("data-live=\"api.current\">{count}<"),
                "of 1,000 units",
                "Not known while Postgres is away",
            ],
        );
        for invented in ["Nothing happened yet", "Nothing was counted"] {
            assert!(!page.text.contains(invented), "{invented}: {}", page.text);
        }
        let unknown = browser.get("/dashboard/organizations/nobody").await;
        assert_eq!(unknown.status, 503, "{}", unknown.text);
        socket.restore().await;
    }
}

#[tokio::test]
async fn without_both_the_pages_say_what_cannot_be_reached() {
    let mut world = World::new().await;
    let (service, socket) = started(&world).await;
    let mut browser = Browser::signed_in(&service, &world.key).await;
    browser.get("/dashboard").await;
    world.kill_redis().await;
    socket.cut(&world.postgres().await).await;
    service.app.activity.observe().await.unwrap_err();
    let page = browser.get("/dashboard").await;
    assert_shown(
        &page,
        &[
            "Redis cannot be reached since",
            "Postgres cannot be reached since",
        ],
    );
    let page = browser.get("/dashboard/organizations/org_1").await;
    assert_eq!(page.status, 503, "{}", page.text);
    assert!(page.text.contains("cannot be reached"), "{}", page.text);
}
