//! The dashboard's frame and its overview: what cookies, forms and headers forbid, the search and the first run.

use chrono::Duration;
use reqwest::Method;
use serde_json::json;

use crate::support::{Answer, Browser, Instance, World, field, made_up_key};

const SESSION: &str = "tallyman_session";

fn location(answer: &Answer) -> &str {
    answer.header("location")
}

fn is_signed_out(answer: &Answer) -> bool {
    answer.status == 303 && location(answer).starts_with("/dashboard/sign-in")
}

/// The `set-cookie` header that starts with this name.
fn set_cookie<'a>(answer: &'a Answer, name: &str) -> &'a str {
    let all = answer.headers.get_all("set-cookie").iter();
    let mut all = all.map(|cookie| cookie.to_str().unwrap());
    all.find(|cookie| cookie.starts_with(&format!("{name}=")))
        .unwrap_or_default()
}

/// Counts until a name is in the list of organizations.
async fn named(service: &Instance, organization: &str, name: &str) {
    service
        .settings(organization, json!({"metadata": {"name": name}}))
        .await;
    service.count(organization, "api", 900).await;
    service.flush().await;
}

#[tokio::test]
async fn signing_in_starts_a_session_that_scripts_and_other_sites_cannot_use() {
    let world = World::new().await;
    let service = world.instance().await;
    let mut browser = Browser::new(&service);
    let asked = browser.get("/dashboard?state=warning").await;
    assert!(is_signed_out(&asked), "{}", asked.text);
    let page = browser.get(location(&asked)).await;
    let to = field(&page.text, "to");
    let fields = [("key", world.key.as_str()), ("to", to.as_str())];
    let signed_in = browser.post("/dashboard/sign-in", &fields).await;
    assert_eq!(signed_in.status, 303, "{}", signed_in.text);
    assert_eq!(location(&signed_in), "/dashboard?state=warning");
    let cookie = set_cookie(&signed_in, SESSION);
    for attribute in ["HttpOnly", "SameSite=Strict", "Path=/dashboard"] {
        assert!(cookie.contains(attribute), "{cookie}");
    }
    assert!(!cookie.contains("Secure"), "{cookie}");
    let secret = world.key.split('_').next_back().unwrap();
    assert!(!cookie.contains(secret), "{cookie}");
    assert_eq!(browser.get("/dashboard").await.status, 200);

    let https = [("x-forwarded-proto", "https")];
    let again = browser
        .send(Method::POST, "/dashboard/sign-in", &https, &fields)
        .await;
    assert!(set_cookie(&again, SESSION).contains("; Secure"));
}

#[tokio::test]
async fn after_ten_refused_keys_others_are_turned_away_and_valid_ones_sign_in() {
    let world = World::new().await;
    let service = world.instance().await;
    let mut browser = Browser::new(&service);
    let wrong = made_up_key(1);
    for attempt in 0..12 {
        let answer = browser
            .post("/dashboard/sign-in", &[("key", wrong.as_str())])
            .await;
        let turned_away = answer.text.contains("too many keys from this address");
        assert_eq!(turned_away, attempt >= 10, "{attempt}: {}", answer.text);
        assert_eq!(answer.status, if turned_away { 429 } else { 422 });
    }
    let signed_in = browser
        .post("/dashboard/sign-in", &[("key", world.key.as_str())])
        .await;
    assert_eq!(signed_in.status, 303, "{}", signed_in.text);
}

#[tokio::test]
async fn a_session_expires_and_cannot_be_forged() {
    let world = World::new().await;
    let service = world.instance().await;
    let mut browser = Browser::signed_in(&service, &world.key).await;
    let session = browser.cookies[SESSION].clone();
    let other = Browser::signed_in(&service, &world.key_with(&["read"]).await).await;
    let (signature, rest) = session.split_once('.').unwrap();
    let (of_other, _) = other.cookies[SESSION].split_once('.').unwrap();
    for forged in [
        format!("{of_other}.{rest}"),
        format!("{signature}.{rest}9"),
        rest.to_owned(),
        String::new(),
    ] {
        let mut forger = Browser::new(&service);
        forger.cookies.insert(SESSION.to_owned(), forged.clone());
        let answer = forger.get("/dashboard").await;
        assert!(is_signed_out(&answer), "{forged}: {}", answer.text);
    }
    assert_eq!(browser.get("/dashboard").await.status, 200);
    world.clock.advance(Duration::hours(12));
    assert!(is_signed_out(&browser.get("/dashboard").await));
}

#[tokio::test]
async fn a_form_needs_the_token_of_its_session_and_comes_from_our_pages() {
    let world = World::new().await;
    let service = world.instance().await;
    let mut browser = Browser::signed_in(&service, &world.key).await;
    let mut other = Browser::signed_in(&service, &world.key_with(&["read"]).await).await;
    let (own, foreign) = (browser.csrf().await, other.csrf().await);
    service.count("org_1", "api", 5).await;
    let out = "/dashboard/sign-out";
    let adjust = [("meter", "api"), ("amount", "5"), ("reason", "x")];
    for token in [None, Some(("csrf", "")), Some(("csrf", foreign.as_str()))] {
        for (path, fields) in [
            (out, &[][..]),
            ("/dashboard/organizations/org_1/adjust", &adjust),
        ] {
            let fields: Vec<(&str, &str)> =
                token.into_iter().chain(fields.iter().copied()).collect();
            let refused = browser.post(path, &fields).await;
            assert_eq!(refused.status, 403, "{path}, {fields:?}");
        }
    }
    assert_eq!(service.current("org_1", "api").await, 5);
    let fields = [("csrf", own.as_str())];
    for headers in [
        ("origin", "https://evil.example"),
        ("sec-fetch-site", "cross-site"),
        ("sec-fetch-site", "same-site"),
    ] {
        let refused = browser.send(Method::POST, out, &[headers], &fields).await;
        assert_eq!(refused.status, 403, "{headers:?}");
    }
    assert!(browser.cookies.contains_key(SESSION));
    let own_site = [("sec-fetch-site", "same-origin"), ("origin", "null")];
    let signed_out = browser.send(Method::POST, out, &own_site, &fields).await;
    assert!(is_signed_out(&signed_out), "{}", signed_out.text);
    assert!(!browser.cookies.contains_key(SESSION));
}

#[tokio::test]
async fn every_page_forbids_inline_code_and_frames_and_is_not_stored() {
    let world = World::new().await;
    let service = world.instance().await;
    named(&service, "org_1", "Acme").await;
    let mut browser = Browser::signed_in(&service, &world.key).await;
    for (path, status) in [
        ("/dashboard", 200),
        ("/dashboard/sign-in", 200),
        ("/dashboard/organizations/org_1", 200),
        ("/dashboard/organizations/org_1/reset", 200),
        ("/dashboard/organizations/org_2", 404),
        ("/dashboard/no/such/page", 404),
    ] {
        let page = browser.get(path).await;
        assert_eq!(page.status, status, "{path}: {}", page.text);
        let policy = page.header("content-security-policy");
        for part in [
            "default-src 'none'",
            "script-src 'self'",
            "frame-ancestors 'none'",
        ] {
            assert!(policy.contains(part), "{path}: {policy}");
        }
        assert!(!policy.contains("unsafe"), "{policy}");
        assert_eq!(page.header("cache-control"), "no-store", "{path}");
        assert!(
            page.header("content-type").starts_with("text/html"),
            "{path}"
        );
        for inline in [
            "<style",
            " style=",
            " onclick=",
            "<script>",
            "http://www.w3.org",
        ] {
            assert!(!page.text.contains(inline), "{path} has {inline}");
        }
    }
}

#[tokio::test]
async fn assets_are_revalidated_by_their_etag() {
    let world = World::new().await;
    let service = world.instance().await;
    for (file, kind) in [
        ("tallyman.css", "text/css; charset=utf-8"),
        ("tallyman.js", "text/javascript; charset=utf-8"),
        ("icon.svg", "image/svg+xml"),
    ] {
        let path = format!("/dashboard/assets/{file}");
        let answer = service.http.get(&path).await;
        assert_eq!(
            (answer.status.as_u16(), answer.header("content-type")),
            (200, kind)
        );
        let etag = [("if-none-match", answer.header("etag"))];
        let again = service.http.send(Method::GET, &path, &etag, None).await;
        assert_eq!(again.status, 304, "{file}");
    }
    assert_eq!(
        service.http.get("/dashboard/assets/other").await.status,
        404
    );
}

#[tokio::test]
async fn the_search_offers_eight_that_have_the_text_anywhere() {
    let world = World::new().await;
    let service = world.instance().await;
    for number in 0..10 {
        named(
            &service,
            &format!("org_{number}"),
            &format!("The Acme {number}"),
        )
        .await;
    }
    named(&service, "zeta", "Zeta").await;
    let mut browser = Browser::signed_in(&service, &world.key).await;
    let hits = browser.get("/dashboard/hits?q=acme").await;
    assert_eq!(hits.body.as_array().unwrap().len(), 8, "{}", hits.text);
    let hits = browser.get("/dashboard/hits?q=ETA").await;
    assert_eq!(
        hits.body,
        json!([{"id": "zeta", "name": "Zeta", "meter": "api", "percent": "90.00%", "state": "warn", "label": "Warning"}])
    );
    let none = browser.get("/dashboard?search=nobody").await;
    assert!(
        none.text.contains("No organization matches"),
        "{}",
        none.text
    );
}

#[tokio::test]
async fn a_first_run_shows_the_first_call_and_then_the_organization() {
    let world = World::new().await;
    let service = world.instance().await;
    let mut browser = Browser::signed_in(&service, &world.key).await;
    assert_eq!(location(&browser.get("/").await), "/dashboard");
    let page = browser.get("/dashboard").await;
    let url = format!("curl -sS {}/v1/track", service.http.base());
    assert!(page.text.contains(&url), "{}", page.text);
    assert!(page.text.contains("Nothing has been counted yet"));
    assert!(page.text.contains("data-first=\"/dashboard/hits\""));
    assert!(page.text.contains("<noscript><meta http-equiv=\"refresh\""));
    let secret = world.key.split('_').next_back().unwrap();
    assert!(!page.text.contains(secret), "the key is shown");
    let https = [("x-forwarded-proto", "https"), ("host", "tallyman.example")];
    let page = browser.send(Method::GET, "/dashboard", &https, &[]).await;
    assert!(
        page.text
            .contains("curl -sS https://tallyman.example/v1/track")
    );
    assert_eq!(browser.get("/dashboard/hits").await.body, json!([]));

    service.count("my-first-org", "api", 1).await;
    service.flush().await;
    assert_eq!(
        browser.get("/dashboard/hits").await.body[0]["id"],
        "my-first-org"
    );
    let page = browser.get("/dashboard").await;
    assert!(page.text.contains("/dashboard/organizations/my-first-org"));
    assert!(!page.text.contains("curl"), "{}", page.text);
}

#[tokio::test]
async fn the_overview_tells_who_runs_out_first_and_why() {
    let world = World::new().await;
    let service = world.instance().await;
    named(&service, "org_calm", "Calm").await;
    for _ in 0..8 {
        service.count("org_1", "api", 10).await;
        service.flush().await;
        world.clock.advance(Duration::days(1));
    }
    service.count("org_1", "api", 500).await;
    service.flush().await;
    world.clock.advance(Duration::hours(1));
    let mut browser = Browser::signed_in(&service, &world.key).await;
    let page = browser.get("/dashboard").await.text;
    let (_, risk) = page
        .split_once("class=\"risk\"")
        .unwrap_or_else(|| panic!("{page}"));
    let (risk, _) = risk.split_once("</ol>").unwrap();
    assert!(
        risk.contains("times its usual day") || risk.contains("in the last 24 h"),
        "{risk}"
    );
    assert!(
        risk.contains("/dashboard/organizations/org_1?edit=api#limits"),
        "{risk}"
    );
    assert!(risk.contains("<path d=\"M"), "no chart: {risk}");
}

#[tokio::test]
async fn the_rows_of_the_chart_are_downloaded_as_csv() {
    let world = World::new().await;
    let service = world.instance().await;
    service.count("org_1", "api", 5).await;
    service.flush().await;
    let mut browser = Browser::signed_in(&service, &world.key).await;
    let own = "/dashboard/organizations/org_1";
    let page = browser.get(&format!("{own}?range=7d")).await.text;
    let link = "history.csv?meter=api&#38;range=7d";
    assert!(page.contains(&format!("href=\"{own}/{link}\"")), "{page}");
    let csv = browser
        .get(&format!("{own}/history.csv?meter=api&range=7d"))
        .await;
    assert_eq!(csv.status, 200, "{}", csv.text);
    assert!(
        csv.text.starts_with("meter,start,end,used,total,"),
        "{}",
        csv.text
    );
    assert!(csv.text.contains(",5,5,0,0,0,1000,"), "{}", csv.text);
    let unknown = browser.get(&format!("{own}/history.csv?meter=A%22")).await;
    assert_eq!(unknown.status, 400, "{}", unknown.text);
}

#[tokio::test]
async fn an_empty_range_says_when_the_meter_was_first_used() {
    let world = World::new().await;
    let service = world.instance().await;
    service.count("org_1", "api", 5).await;
    service.flush().await;
    world.clock.advance(Duration::days(60));
    let mut browser = Browser::signed_in(&service, &world.key).await;
    let page = browser
        .get("/dashboard/organizations/org_1?range=7d&meter=api")
        .await
        .text;
    assert!(page.contains("was first used on 15 March 2031"), "{page}");
}
