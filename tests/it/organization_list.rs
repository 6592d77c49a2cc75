//! The list of organizations: each once, in any order, as of the last flush, and without usage of an
//! ended period.

use chrono::Duration;
use serde_json::{Value, json};

use crate::support::{BEGINNING, Instance, World, shard};

async fn track(service: &Instance, organization: &str, meter: &str, amount: u64) {
    let body = json!({"organizationId": organization, "meter": meter, "amount": amount});
    let answer = service.http.post("/v1/track", body).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
}

async fn list(service: &Instance, query: &str) -> Value {
    let answer = service
        .http
        .get(&format!("/v1/organizations?{query}"))
        .await;
    assert_eq!(answer.status, 200, "{query}: {}", answer.text);
    answer.body
}

/// The ids of all pages, in order.
async fn ids(service: &Instance, query: &str) -> Vec<String> {
    let mut ids = Vec::new();
    let mut page = list(service, query).await;
    loop {
        let data = page["data"].as_array().unwrap();
        ids.extend(
            data.iter()
                .map(|it| it["organizationId"].as_str().unwrap().to_owned()),
        );
        let Some(cursor) = page["nextCursor"].as_str() else {
            return ids;
        };
        page = list(service, &format!("{query}&cursor={cursor}")).await;
    }
}

/// The list's entry of one organization.
async fn listed(service: &Instance, organization: &str) -> Value {
    let page = list(service, &format!("search={organization}")).await;
    page["data"][0].clone()
}

async fn put(service: &Instance, organization: &str, settings: Value) {
    let path = format!("/v1/organizations/{organization}");
    let answer = service.http.put(&path, settings).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
}

async fn limit(service: &Instance, organization: &str, limits: Value) {
    put(service, organization, json!({})).await;
    let path = format!("/v1/organizations/{organization}/limits");
    let answer = service.http.patch(&path, limits).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
}

/// Five organizations: two over their limit, one near it, one far from it, and one without counts.
async fn create_five(service: &Instance) {
    for (organization, amount) in [("a", 100), ("b", 850), ("c", 1000), ("d", 1200)] {
        track(service, organization, "api", amount).await;
    }
    put(service, "e", json!({})).await;
    service.flush().await;
}

#[tokio::test]
async fn an_organization_is_listed_with_its_meters_and_its_usage_summary() {
    let world = World::new().await;
    let service = world.instance().await;
    limit(
        &service,
        "org_1",
        json!({"tokens": {"limit": 200, "enforcement": "soft"}}),
    )
    .await;
    track(&service, "org_1", "api", 250).await;
    track(&service, "org_1", "tokens", 190).await;
    service.flush().await;
    let period = ("2031-03-01T00:00:00Z", "2031-04-01T00:00:00Z");
    let entry = json!({
        "organizationId": "org_1", "name": null, "planId": "free", "state": "warning", "percentage": 95.0, "current": 250,
        "storedAt": BEGINNING, "periodOver": false, "exhausted": null,
        "fullest": {"meter": "tokens", "current": 190, "limit": 200, "remaining": 10, "overage": 0, "percentage": 95.0,
                    "enforcement": "soft", "periodStart": period.0, "resetDate": period.1},
        "meters": {
            "api": {"current": 250, "limit": 1000, "remaining": 750, "overage": 0, "percentage": 25.0,
                    "enforcement": "hard", "periodStart": period.0, "resetDate": period.1},
            "tokens": {"current": 190, "limit": 200, "remaining": 10, "overage": 0, "percentage": 95.0,
                       "enforcement": "soft", "periodStart": period.0, "resetDate": period.1},
        },
    });
    let page = list(&service, "").await;
    assert_eq!(page, json!({"data": [entry], "nextCursor": null}));
    let brief = list(&service, "view=brief").await;
    let mut expected = entry;
    expected["meters"] = json!({});
    assert_eq!(brief["data"], json!([expected]));
}

#[tokio::test]
async fn every_order_lists_everyone_once_whatever_the_size_of_the_page() {
    let world = World::new().await;
    let service = world.instance().await;
    create_five(&service).await;
    for (sort, order) in [
        ("id", "abcde"),
        ("-id", "edcba"),
        ("percentage", "eabcd"),
        ("-percentage", "dcbae"),
        ("current", "eabcd"),
        ("-current", "dcbae"),
    ] {
        for size in [1, 2, 5, 100] {
            let query = format!("sort={sort}&pageSize={size}");
            assert_eq!(ids(&service, &query).await.concat(), order, "{query}");
        }
    }
    assert_eq!(ids(&service, "").await.concat(), "abcde");
}

#[tokio::test]
async fn organizations_that_are_equally_full_are_all_listed_across_pages() {
    let world = World::new().await;
    let service = world.instance().await;
    for number in 0..7 {
        track(&service, &format!("o{number}"), "api", 500).await;
    }
    service.flush().await;
    let up = ["o0", "o1", "o2", "o3", "o4", "o5", "o6"];
    let mut down = up;
    down.reverse();
    assert_eq!(ids(&service, "sort=percentage&pageSize=2").await, up);
    assert_eq!(ids(&service, "sort=-percentage&pageSize=2").await, down);
}

#[tokio::test]
async fn states_distinguish_warned_stopped_and_exceeded_organizations() {
    let world = World::new().await;
    let service = world.instance().await;
    create_five(&service).await;
    for sort in ["id", "-percentage", "current"] {
        let of = async |state: &str| {
            let mut ids = ids(&service, &format!("state={state}&sort={sort}&pageSize=1")).await;
            ids.sort_unstable();
            ids.concat()
        };
        assert_eq!(of("ok").await, "ae", "{sort}");
        assert_eq!(of("warning").await, "b", "{sort}");
        assert_eq!(of("exceeded").await, "cd", "{sort}");
    }
}

#[tokio::test]
async fn a_limits_own_thresholds_decide_about_the_warning() {
    let world = World::new().await;
    let service = world.instance().await;
    for (organization, levels) in [("early", json!([10, 90])), ("never", json!([]))] {
        limit(&service, organization, json!({"api": {"warnAt": levels}})).await;
    }
    for organization in ["early", "never", "usual"] {
        track(&service, organization, "api", 100).await;
    }
    service.flush().await;
    assert_eq!(ids(&service, "state=warning").await, ["early"]);
    for organization in ["early", "never", "usual"] {
        track(&service, organization, "api", 750).await;
    }
    service.flush().await;
    assert_eq!(ids(&service, "state=warning").await, ["early", "usual"]);
}

#[tokio::test]
async fn a_limit_that_changes_shows_after_a_flush_though_nothing_was_counted() {
    let world = World::new().await;
    let service = world.instance().await;
    track(&service, "org_1", "api", 500).await;
    service.flush().await;
    assert_eq!(listed(&service, "org_1").await["percentage"], 50.0);
    limit(&service, "org_1", json!({"api": {"limit": 500}})).await;
    service.flush().await;
    let entry = listed(&service, "org_1").await;
    assert_eq!(
        (&entry["percentage"], &entry["state"]),
        (&json!(100.0), &json!("exceeded"))
    );
}

#[tokio::test]
async fn an_ended_period_shows_no_usage_before_and_after_its_summary_is_removed() {
    let world = World::new().await;
    let service = world.instance().await;
    create_five(&service).await;
    world.clock.advance(Duration::days(20));
    for aged in [false, true] {
        if aged {
            assert_eq!(service.app.flusher.summaries.age_once().await.unwrap(), 4);
        }
        for sort in ["id", "percentage", "current"] {
            let query = format!("sort={sort}&pageSize=2");
            assert_eq!(ids(&service, &query).await.concat(), "abcde", "{query}");
            let query = format!("sort=-{sort}&pageSize=2&state=ok");
            assert_eq!(ids(&service, &query).await.concat(), "edcba", "{query}");
            let query = format!("sort={sort}&state=exceeded");
            assert!(ids(&service, &query).await.is_empty(), "{query}");
        }
        let entry = listed(&service, "d").await;
        assert_eq!(
            (&entry["state"], &entry["current"]),
            (&json!("ok"), &json!(0))
        );
        assert_eq!(
            (&entry["percentage"], &entry["meters"]),
            (&Value::Null, &json!({}))
        );
    }
    // The new period is listed as usual.
    track(&service, "b", "api", 900).await;
    service.flush().await;
    assert_eq!(ids(&service, "state=warning").await, ["b"]);
    assert_eq!(listed(&service, "b").await["current"], 900);
}

/// The process dies after settling, before it updates the summaries.
#[tokio::test]
async fn a_summary_that_a_crash_left_stale_is_repaired_by_the_walk() {
    let world = World::new().await;
    let service = world.instance().await;
    create_five(&service).await;
    track(&service, "a", "api", 800).await;
    let flusher = &service.app.flusher;
    let batch = flusher.read(&[shard("a")]).await.unwrap();
    let stored = flusher.store(&batch).await.unwrap();
    assert_eq!(flusher.settle(&batch, &stored).await.unwrap(), 1);

    let other = world.instance().await;
    assert_eq!(other.flush().await.read, 0);
    assert!(!ids(&other, "state=warning").await.contains(&"a".to_owned()));
    let walked = other.app.flusher.summaries.walk_once().await.unwrap();
    assert_eq!(walked.visited, 5);
    assert_eq!(ids(&other, "state=warning").await, ["a", "b"]);
}

#[tokio::test]
async fn a_late_event_does_not_change_the_summary_of_the_running_period() {
    let world = World::new().await;
    let service = world.instance().await;
    world.clock.advance(Duration::days(17));
    track(&service, "org_1", "api", 100).await;
    let late =
        json!({"organizationId": "org_1", "amount": 900, "timestamp": "2031-03-31T23:00:00Z"});
    let answer = service.http.post("/v1/track", late).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    service.flush().await;
    let entry = listed(&service, "org_1").await;
    assert_eq!(
        (&entry["current"], &entry["state"]),
        (&json!(100), &json!("ok"))
    );
}

#[tokio::test]
async fn an_unlimited_meter_has_no_percentage_and_a_limit_of_zero_sorts_first() {
    let world = World::new().await;
    let service = world.instance().await;
    limit(&service, "nothing", json!({"api": {"limit": 0}})).await;
    limit(&service, "unlimited", json!({"api": {"limit": null}})).await;
    limit(&service, "unused", json!({"api": {"limit": 0}})).await;
    track(&service, "nothing", "api", 1).await;
    track(&service, "twice", "api", 2000).await;
    track(&service, "unlimited", "api", 1_000_000).await;
    service.flush().await;
    let order = ["nothing", "twice", "unused", "unlimited"];
    assert_eq!(ids(&service, "sort=-percentage&pageSize=1").await, order);
    assert_eq!(ids(&service, "state=exceeded").await, ["nothing", "twice"]);
    assert_eq!(
        ids(&service, "sort=-current&pageSize=1").await[0],
        "unlimited"
    );
    assert_eq!(listed(&service, "nothing").await["percentage"], Value::Null);
    assert_eq!(
        listed(&service, "unlimited").await["percentage"],
        Value::Null
    );
}

#[tokio::test]
async fn a_search_matches_any_part_of_the_id_or_the_name_in_any_case() {
    let world = World::new().await;
    let service = world.instance().await;
    for id in ["org_1", "org_12", "Org-1", "user@example.com"] {
        track(&service, id, "api", 1).await;
    }
    for (id, name) in [
        ("org_12", json!("Müller & Söhne")),
        ("org_3", json!("100% _real_")),
        ("org_4", json!({"first": "Müller"})),
    ] {
        put(&service, id, json!({"metadata": {"name": name}})).await;
    }
    service.flush().await;
    for (search, found) in [
        ("org_1", vec!["org_1", "org_12"]),
        ("ORG", vec!["Org-1", "org_1", "org_12", "org_3", "org_4"]),
        ("rg_1", vec!["org_1", "org_12"]),
        ("user%40", vec!["user@example.com"]),
        ("LE.C", vec!["user@example.com"]),
        ("M%C3%BCLL", vec!["org_12"]),
        ("ller+%26", vec!["org_12"]),
        ("%25", vec!["org_3"]),
        ("0%25+_", vec!["org_3"]),
        ("%5C", vec![]),
        ("org~", vec![]),
    ] {
        for sort in ["id", "percentage", "current"] {
            let query = format!("search={search}&sort={sort}&pageSize=1");
            let mut ids = ids(&service, &query).await;
            ids.sort();
            assert_eq!(ids, found, "{query}");
        }
    }
    assert_eq!(ids(&service, "search=").await.len(), 6);
    assert_eq!(listed(&service, "org_12").await["name"], "Müller & Söhne");
    assert_eq!(listed(&service, "org_4").await["name"], Value::Null);
}

#[tokio::test]
async fn searches_have_an_index_of_trigrams() {
    let world = World::new().await;
    let index = world
        .select("select indexdef from pg_indexes where indexname = 'organizations_search'")
        .await;
    assert!(index[0].contains("gin_trgm_ops"), "{index:?}");
}

#[tokio::test]
async fn a_least_percentage_lists_the_fullest_organizations() {
    let world = World::new().await;
    let service = world.instance().await;
    create_five(&service).await;
    track(&service, "f", "api", 949).await;
    track(&service, "g", "api", 950).await;
    service.flush().await;
    for (query, found) in [
        ("minPercentage=95", "cdg"),
        ("minPercentage=95&sort=-percentage", "dcg"),
        ("minPercentage=95&state=warning", "g"),
        ("minPercentage=95&sort=current&search=d", "d"),
        ("minPercentage=121", ""),
        ("minPercentage=0", "abcdefg"),
    ] {
        for size in [1, 100] {
            let query = format!("{query}&pageSize={size}");
            assert_eq!(ids(&service, &query).await.concat(), found, "{query}");
        }
    }
    world.move_to("2031-04-01T00:00:00Z");
    assert!(ids(&service, "minPercentage=1").await.is_empty());
}

#[tokio::test]
async fn an_organization_whose_period_is_over_says_so_and_when_it_was_stored() {
    let world = World::new().await;
    let service = world.instance().await;
    track(&service, "org_1", "api", 500).await;
    put(&service, "org_2", json!({})).await;
    service.flush().await;
    let told = async || {
        let entry = listed(&service, "org_1").await;
        let stored_at = entry["storedAt"].as_str().map(str::to_owned);
        (stored_at, entry["periodOver"].as_bool().unwrap())
    };
    let stored = Some(BEGINNING.to_owned());
    assert_eq!(told().await, (stored.clone(), false));
    world.move_to("2031-04-01T00:00:00Z");
    assert_eq!(told().await, (stored.clone(), true));
    service.app.flusher.summaries.age_once().await.unwrap();
    assert_eq!(told().await, (stored, true));
    assert_eq!(listed(&service, "org_1").await["fullest"], Value::Null);
    world.clock.advance(Duration::hours(1));
    track(&service, "org_1", "api", 1).await;
    service.flush().await;
    let stored = Some("2031-04-01T01:00:00Z".to_owned());
    assert_eq!(told().await, (stored, false));
    let unused = listed(&service, "org_2").await;
    assert_eq!(
        (&unused["storedAt"], &unused["periodOver"]),
        (&Value::Null, &json!(false))
    );
}

#[tokio::test]
async fn the_default_plan_lists_organizations_without_a_plan() {
    let world = World::new().await;
    let service = world.instance().await;
    track(&service, "a", "api", 1).await;
    put(&service, "b", json!({"planId": "free"})).await;
    service.flush().await;
    assert_eq!(ids(&service, "planId=free&pageSize=1").await, ["a", "b"]);
    assert!(ids(&service, "planId=pro").await.is_empty());
    assert_eq!(listed(&service, "a").await["planId"], "free");
}

#[tokio::test]
async fn a_list_refuses_unknown_parameters() {
    let world = World::new().await;
    let service = world.instance().await;
    for (query, pointer) in [
        ("sort=name", "/sort"),
        ("state=full", "/state"),
        ("pageSize=0", "/pageSize"),
        ("pageSize=1001", "/pageSize"),
        ("pageSize=many", "/pageSize"),
        ("pageSize=", "/pageSize"),
        ("planId=a%20b", "/planId"),
        ("cursor=nonsense", "/cursor"),
        ("sort=percentage&cursor=i0.org_1", "/cursor"),
        ("search=%00", "/search"),
        ("minPercentage=many", "/minPercentage"),
        ("minPercentage=-1", "/minPercentage"),
        ("view=long", "/view"),
        ("limit=10", "/limit"),
    ] {
        let answer = service
            .http
            .get(&format!("/v1/organizations?{query}"))
            .await;
        assert_eq!(answer.code(), "invalid_field", "{query}");
        assert_eq!(answer.body["errors"][0]["pointer"], pointer, "{query}");
    }
}
