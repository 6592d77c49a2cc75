//! The dashboard over HTTP: sessions, forms and pages. The tests in a browser are in `packages/testing`.

use reqwest::StatusCode;
use serde_json::json;

use crate::support::{Browser, World, field};

const OWN: &str = "/dashboard/organizations/org_1";

#[tokio::test]
async fn only_a_key_that_may_read_everything_signs_in() {
    let world = World::new().await;
    let service = world.instance().await;
    let mut browser = Browser::new(&service);
    let page = browser.get("/dashboard?state=warning").await;
    assert_eq!(page.status, StatusCode::SEE_OTHER);
    assert_eq!(
        page.header("location"),
        "/dashboard/sign-in?to=%2Fdashboard%3Fstate%3Dwarning"
    );
    let ingest = world.key_with(&["ingest"]).await;
    let bound = json!({"name": "bound", "scopes": ["read"], "organizationId": "org_1"});
    let bound = service.http.post("/v1/api-keys", bound).await.body["key"].clone();
    for (key, reason) in [
        ("nonsense", "not accepted"),
        (ingest.as_str(), "may not read everything"),
        (bound.as_str().unwrap(), "may not read everything"),
    ] {
        let page = browser.post("/dashboard/sign-in", &[("key", key)]).await;
        assert_eq!(page.status, StatusCode::UNPROCESSABLE_ENTITY);
        assert!(page.text.contains(reason), "{}", page.text);
        assert!(!page.text.contains(key), "the key is repeated");
    }
    // A link to the sign-in page leads nowhere else.
    let fields = [("key", world.key.as_str()), ("to", "//elsewhere.example/")];
    let page = browser.post("/dashboard/sign-in", &fields).await;
    assert_eq!(page.header("location"), "/dashboard");
}

#[tokio::test]
async fn a_session_ends_with_its_key_and_a_changed_cookie_is_none() {
    let world = World::new().await;
    let (service, other) = (world.instance().await, world.instance().await);
    let key = world.key_with(&["admin"]).await;
    let mut browser = Browser::signed_in(&service, &key).await;
    let page = browser.get("/dashboard").await;
    assert_eq!(page.status, StatusCode::OK, "{}", page.text);
    assert!(
        page.header("content-security-policy")
            .contains("default-src 'none'"),
        "{}",
        page.header("content-security-policy")
    );
    // Any instance accepts the session.
    browser.base = other.http.base().to_owned();
    assert_eq!(browser.get("/dashboard").await.status, StatusCode::OK);
    let id = key.split('_').nth(1).unwrap();
    let revoked = service.http.delete(&format!("/v1/api-keys/{id}")).await;
    assert_eq!(revoked.status, 204);
    browser.base = service.http.base().to_owned();
    assert_eq!(
        browser.get("/dashboard").await.status,
        StatusCode::SEE_OTHER
    );

    let mut browser = Browser::signed_in(&service, &world.key).await;
    let session = browser.cookies["tallyman_session"].clone();
    let changed = session.replace(".1", ".2");
    assert_ne!(changed, session);
    browser
        .cookies
        .insert("tallyman_session".to_owned(), changed);
    assert_eq!(
        browser.get("/dashboard").await.status,
        StatusCode::SEE_OTHER
    );
}

#[tokio::test]
async fn an_adjustment_sent_twice_counts_once() {
    let world = World::new().await;
    let service = world.instance().await;
    service.count("org_1", "api", 50).await;
    let mut browser = Browser::signed_in(&service, &world.key).await;
    let form = browser.get(OWN).await;
    let (csrf, key) = (
        field(&form.text, "csrf"),
        field(&form.text, "idempotencyKey"),
    );
    let fields = [
        ("csrf", csrf.as_str()),
        ("idempotencyKey", &key),
        ("meter", "api"),
        ("amount", "1,0"),
        ("reason", "failed calls"),
        ("direction", "back"),
    ];
    for _ in 0..2 {
        let page = browser.post(&format!("{OWN}/adjust"), &fields).await;
        assert_eq!(page.status, StatusCode::SEE_OTHER, "{}", page.text);
        assert_eq!(page.header("location"), OWN);
    }
    assert_eq!(service.current("org_1", "api").await, 40);
    let without_reason = [&fields[..4], &[("reason", "")]].concat();
    let page = browser
        .post(&format!("{OWN}/adjust"), &without_reason)
        .await;
    assert!(page.status.is_client_error());
    assert!(page.text.contains("There is a problem"), "{}", page.text);
}

#[tokio::test]
async fn a_temporary_limit_is_effective_at_once_and_a_conflict_saves_nothing() {
    let world = World::new().await;
    let service = world.instance().await;
    service.limits("org_1", json!({"api": {"limit": 10}})).await;
    let mut browser = Browser::signed_in(&service, &world.key).await;
    let form = browser.get(&format!("{OWN}?edit=api")).await;
    let (csrf, version) = (field(&form.text, "csrf"), field(&form.text, "version"));
    let fields = [
        ("csrf", csrf.as_str()),
        ("version", &version),
        ("meter", "api"),
        ("mode", "temporary"),
        ("limit", "1,500"),
        ("until", "7d"),
    ];
    let path = format!("{OWN}/limits");
    let page = browser.post(&path, &fields).await;
    assert_eq!(page.status, StatusCode::SEE_OTHER, "{}", page.text);
    let notice = &browser.cookies["tallyman_notice"];
    assert!(notice.contains("1%2C500"), "{notice}");
    assert_eq!(service.try_consume("org_1", "api", 1400).await.status, 200);
    // The version in the form is not the present one any more.
    let again = [&fields[..4], &[("limit", "7"), ("until", "1d")]].concat();
    let page = browser.post(&path, &again).await;
    assert_eq!(page.status, StatusCode::PRECONDITION_FAILED);
    assert!(
        page.text
            .contains("changed this organization while you were editing"),
        "{}",
        page.text
    );
    assert_eq!(service.meter("org_1", "api").await["limit"], 1500);
    let nonsense = [
        &fields[..2],
        &[("version", "1"), ("meter", "api"), ("limit", "many")],
    ]
    .concat();
    let page = browser.post(&path, &nonsense).await;
    assert!(page.status.is_client_error(), "{}", page.status);
}

#[tokio::test]
async fn a_reset_says_what_it_will_do_and_does_it() {
    let world = World::new().await;
    let service = world.instance().await;
    service.count("org_1", "api", 5).await;
    let mut browser = Browser::signed_in(&service, &world.key).await;
    let path = format!("{OWN}/reset");
    let form = browser.get(&path).await;
    assert!(form.text.contains("What will happen"), "{}", form.text);
    assert_eq!(service.current("org_1", "api").await, 5);
    let (csrf, key) = (
        field(&form.text, "csrf"),
        field(&form.text, "idempotencyKey"),
    );
    let fields = [
        ("csrf", csrf.as_str()),
        ("idempotencyKey", &key),
        ("meters", "api"),
    ];
    assert_eq!(browser.post(&path, &fields).await.header("location"), OWN);
    assert_eq!(service.current("org_1", "api").await, 0);
}

#[tokio::test]
async fn a_read_key_sees_pages_and_can_change_nothing() {
    let world = World::new().await;
    let service = world.instance().await;
    service.limits("org_1", json!({"api": {"limit": 10}})).await;
    service.count("org_1", "api", 5).await;
    let key = world.key_with(&["read"]).await;
    let mut browser = Browser::signed_in(&service, &key).await;
    let page = browser.get(OWN).await;
    assert_eq!(page.status, StatusCode::OK, "{}", page.text);
    assert!(page.text.contains("signed in with a read key"));
    assert!(!page.text.contains("Save limit"));
    let csrf = field(&page.text, "csrf");
    let fields = [
        ("csrf", csrf.as_str()),
        ("meter", "api"),
        ("mode", "inherit"),
        ("version", "1"),
    ];
    let refused = browser.post(&format!("{OWN}/limits"), &fields).await;
    assert_eq!(refused.status, StatusCode::FORBIDDEN);
    for path in ["keys", "webhooks", "audit"] {
        assert_eq!(
            browser.get(&format!("/dashboard/{path}")).await.status,
            StatusCode::FORBIDDEN,
            "{path}"
        );
    }
    // Plans have names for it, too.
    service
        .http
        .put("/v1/plans/pro", json!({"name": "The Pro plan"}))
        .await;
    service
        .settings(
            "org_1",
            json!({"planId": "pro", "timeZone": "Asia/Kolkata"}),
        )
        .await;
    for path in [
        OWN,
        "/dashboard",
        "/dashboard/plans",
        "/dashboard/plans/pro",
    ] {
        let page = browser.get(path).await;
        assert_eq!(page.status, StatusCode::OK, "{path}: {}", page.text);
        assert!(page.text.contains("The Pro plan"), "{path}: {}", page.text);
        assert!(!page.text.contains("Save plan"), "{path}");
    }
    let page = browser.get(OWN).await;
    assert!(page.text.contains("00:00 Asia/Kolkata"), "{}", page.text);
    let list = browser.get("/dashboard").await;
    assert_eq!(list.status, StatusCode::OK, "{}", list.text);
}

#[tokio::test]
async fn names_of_clients_are_text_and_never_markup() {
    let world = World::new().await;
    let service = world.instance().await;
    let hostile = "<script>alert(1)</script>\"'";
    service
        .settings(
            "org_1",
            json!({"metadata": {"name": hostile}, "features": {"a<b": hostile}}),
        )
        .await;
    service.count("org_1", "api", 1).await;
    service.flush().await;
    let mut browser = Browser::signed_in(&service, &world.key).await;
    let hits = "/dashboard/hits?q=%3Cscript";
    for path in [
        "/dashboard",
        OWN,
        "/dashboard/audit",
        &format!("{OWN}/reset"),
    ] {
        let page = browser.get(path).await;
        assert_eq!(page.status, StatusCode::OK, "{path}");
        assert!(!page.text.contains("<script>alert"), "{path}");
    }
    assert_eq!(browser.get(hits).await.status, StatusCode::OK);
    let missing = browser.get("/dashboard/organizations/nobody").await;
    assert_eq!(missing.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn secrets_are_shown_once() {
    let world = World::new().await;
    let service = world.instance().await;
    let mut browser = Browser::signed_in(&service, &world.key).await;
    let keys = browser.get("/dashboard/keys").await;
    let csrf = field(&keys.text, "csrf");
    let fields = [
        ("csrf", csrf.as_str()),
        ("name", "gateway"),
        ("scopes", "ingest"),
        ("scopes", "read"),
    ];
    let created = browser.post("/dashboard/keys", &fields).await;
    assert_eq!(created.status, StatusCode::OK, "{}", created.text);
    let (_, rest) = created
        .text
        .split_once("id=\"nk\" readonly value=\"")
        .unwrap();
    let key = rest.split('"').next().unwrap();
    let http = service.http.with_key(Some(key));
    assert_eq!(
        http.post("/v1/track", json!({"organizationId": "org_1"}))
            .await
            .status,
        200
    );
    let keys = browser.get("/dashboard/keys").await;
    assert!(keys.text.contains("gateway") && !keys.text.contains(key));
    let id = key.split('_').nth(1).unwrap();
    let revoked = browser
        .post(&format!("/dashboard/keys/{id}/revoke"), &fields[..1])
        .await;
    assert_eq!(revoked.header("location"), "/dashboard/keys");
    let refused = browser
        .post("/dashboard/keys", &[("csrf", &csrf), ("name", "")])
        .await;
    assert!(
        refused.text.contains("There is a problem"),
        "{}",
        refused.text
    );
}

#[tokio::test]
async fn a_plan_is_made_checked_and_changed() {
    let world = World::new().await;
    let service = world.instance().await;
    let mut browser = Browser::signed_in(&service, &world.key).await;
    let csrf = field(&browser.get("/dashboard/plans/new").await.text, "csrf");
    let fields = [
        ("csrf", csrf.as_str()),
        ("id", "pro"),
        ("name", "Pro"),
        ("meter-0", "api"),
        ("limit-0", "50,000"),
        ("enforcement-0", "soft"),
        ("warnAt-0", "80, 100"),
        ("feature-0", "sso"),
        ("value-0", "true"),
        ("do", "save"),
    ];
    let saved = browser.post("/dashboard/plans/new", &fields).await;
    assert_eq!(
        saved.header("location"),
        "/dashboard/plans/pro",
        "{}",
        saved.text
    );
    let again = browser.post("/dashboard/plans/new", &fields).await;
    assert_eq!(again.status, StatusCode::PRECONDITION_FAILED);
    service.settings("org_1", json!({"planId": "pro"})).await;
    let version = field(&browser.get("/dashboard/plans/pro").await.text, "version");
    let mut changed = fields.to_vec();
    changed[4] = ("limit-0", "60,000");
    changed[9] = ("do", "check");
    changed.push(("version", &version));
    let checked = browser.post("/dashboard/plans/pro", &changed).await;
    assert!(
        checked.text.contains("reaches 1 organizations"),
        "{}",
        checked.text
    );
    let plan = service.http.get("/v1/plans/pro").await.body;
    assert_eq!(plan["limits"]["api"]["limit"], 50_000);
    changed[9] = ("do", "save");
    assert_eq!(
        browser.post("/dashboard/plans/pro", &changed).await.status,
        StatusCode::SEE_OTHER
    );
    let plan = service.http.get("/v1/plans/pro").await.body;
    let limit = json!({"limit": 60_000, "enforcement": "soft", "warnAt": [80, 100]});
    assert_eq!(
        (&plan["limits"]["api"], &plan["features"]["sso"]),
        (&limit, &json!(true))
    );
}

#[tokio::test]
async fn a_webhook_is_made_tested_disabled_and_deleted() {
    let world = World::with(|config| config.webhook_private_addresses = true).await;
    let service = world.instance().await;
    let mut browser = Browser::signed_in(&service, &world.key).await;
    let csrf = field(&browser.get("/dashboard/webhooks").await.text, "csrf");
    let own = [("csrf", csrf.as_str())];
    let fields = [
        own[0],
        ("url", "http://127.0.0.1:9/hook"),
        ("events", "usage.warning"),
    ];
    let created = browser.post("/dashboard/webhooks", &fields).await;
    assert!(
        created.text.contains("Copy its secret now"),
        "{}",
        created.text
    );
    let webhook = service.http.get("/v1/webhooks").await.body["data"][0].clone();
    assert_eq!(webhook["events"], json!(["usage.warning"]));
    let path = format!("/dashboard/webhooks/{}", webhook["id"].as_str().unwrap());
    for action in ["test", "disable", "enable"] {
        assert_eq!(
            browser
                .post(&format!("{path}/{action}"), &own)
                .await
                .header("location"),
            path,
            "{action}"
        );
    }
    let page = browser.get(&path).await;
    assert!(page.text.contains("webhook.test"), "{}", page.text);
    let rotated = browser.post(&format!("{path}/rotate"), &own).await;
    assert!(
        rotated.text.contains("The secret is rotated"),
        "{}",
        rotated.text
    );
    let deleted = browser.post(&format!("{path}/delete"), &own).await;
    assert_eq!(deleted.header("location"), "/dashboard/webhooks");
    let refused = browser
        .post("/dashboard/webhooks", &[own[0], ("url", "nonsense")])
        .await;
    assert!(
        refused.text.contains("There is a problem"),
        "{}",
        refused.text
    );
}

#[tokio::test]
async fn the_chart_has_the_limit_where_a_bar_is_a_period_and_marks_the_open_bucket() {
    let world = World::new().await;
    let service = world.instance().await;
    service
        .settings(
            "org_1",
            json!({"resetPeriod": "daily", "timeZone": "Asia/Kolkata"}),
        )
        .await;
    service
        .limits("org_1", json!({"api": {"limit": 4000}}))
        .await;
    service.count("org_1", "api", 5).await;
    service.flush().await;
    let mut browser = Browser::signed_in(&service, &world.key).await;
    let bars = browser.get(&format!("{OWN}?range=7d")).await.text;
    assert!(bars.contains("<line class=\"lim\""), "{bars}");
    assert!(bars.contains("Limit 4,000"), "{bars}");
    assert!(bars.contains("class=\"b open\""), "{bars}");
    let hours = browser.get(&format!("{OWN}?range=24h")).await.text;
    assert!(hours.contains("Even pace, 166 an hour"), "{hours}");
    for query in ["range=7d&type=line", "range=7d&measure=total&type=area"] {
        let page = browser.get(&format!("{OWN}?{query}")).await.text;
        assert!(page.contains("<path class=\"ln open\" d=\"M"), "{page}");
    }
}

#[tokio::test]
async fn changes_of_one_organization_are_listed_in_its_zone() {
    let world = World::new().await;
    let service = world.instance().await;
    service
        .settings("org_1", json!({"timeZone": "Pacific/Kiritimati"}))
        .await;
    let mut browser = Browser::signed_in(&service, &world.key).await;
    let all = browser.get("/dashboard/audit").await.text;
    assert!(all.contains("At (UTC)"), "{all}");
    let own = "/dashboard/audit?organizationId=org_1";
    let page = browser.get(own).await.text;
    assert!(page.contains("At (Pacific/Kiritimati)"), "{page}");
    let entries = service
        .http
        .get("/v1/audit?organizationId=org_1")
        .await
        .body;
    let at: chrono::DateTime<chrono::Utc> =
        entries["data"][0]["at"].as_str().unwrap().parse().unwrap();
    let today = (at + chrono::TimeDelta::hours(14)).date_naive();
    let dated = format!("{own}&from={today}");
    let page = browser.get(&dated).await.text;
    assert!(page.contains("organization.p"), "{dated} {page}");
    let page = browser.get(&format!("{own}&to={today}")).await.text;
    assert!(page.contains("No change matches"), "{page}");
    let gone = browser.get("/dashboard/audit?organizationId=nobody").await;
    assert_eq!(gone.status, StatusCode::OK, "{}", gone.text);
}
