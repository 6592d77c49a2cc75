//! The endpoints of the Better Auth plugin for usage tracking, called by its client.

use reqwest::Method;
use serde_json::{Value, json};
use tallyman::clock::Clock;

use crate::support::{
    AUDIENCE, Answer, AuthServer, Http, ISSUER, Issuer, PluginClient, Publishes, Signer, World,
};

const BASE: &str = "/api/auth/usage-tracking";

/// Calls an endpoint directly.
async fn get(http: &Http, path: &str) -> Answer {
    http.get(&format!("{BASE}/{path}")).await
}

async fn post(http: &Http, path: &str, body: Value) -> Answer {
    http.post(&format!("{BASE}/{path}"), body).await
}

/// Asserts a refusal in the plugin's error format.
fn refused(answer: &Answer, status: u16, error: &str) {
    assert_eq!(answer.status, status, "{}", answer.text);
    assert_eq!(answer.header("content-type"), "application/json");
    assert_eq!(answer.body, json!({ "error": error }));
    assert!(!answer.header("x-request-id").is_empty());
}

#[tokio::test]
async fn the_plugins_client_reads_and_administers_with_a_key() {
    let world = World::new().await;
    let service = world.instance().await;
    let settings = json!({"features": {"sso": true, "seats": 5}, "resetDay": 15});
    service.settings("org_1", settings).await;
    service.count("org_1", "api", 5).await;
    service.count("org_1", "tokens", 70).await;
    let org_1 = || json!({"organizationId": "org_1"});
    let mut client = PluginClient::start(&service.http, &world.key);
    assert_eq!(
        client.call("getUsage", org_1()).await,
        json!({
            "api": {"current": 5, "limit": 1000, "resetDate": "2031-04-15T00:00:00.000Z"},
            "features": {"sso": true, "seats": 5}, "planId": "free", "resetMode": "lazy", "resetPeriod": "monthly"
        })
    );
    assert_eq!(
        client.call("getUsageHistory", org_1()).await,
        json!({"history": []})
    );

    let success = json!({"success": true});
    world.clock.advance(chrono::Duration::hours(1));
    assert_eq!(client.call("resetUsage", org_1()).await, success);
    service.count("org_1", "api", 2).await;
    service.flush().await;
    world.move_to("2031-04-15T00:00:00Z");
    service.count("org_1", "api", 1).await;
    service.flush().await;
    let newest = |entries: &Value| entries["history"][0].clone();
    let history = client.call("getUsageHistory", org_1()).await;
    assert_eq!(
        history["history"]
            .as_array()
            .unwrap()
            .iter()
            .map(|it| it["value"].clone())
            .collect::<Vec<_>>(),
        [2, 5]
    );
    assert_eq!(newest(&history)["organizationId"], "org_1");
    assert_eq!(newest(&history)["metricType"], "api");
    for name in ["date", "createdAt"] {
        assert_eq!(newest(&history)[name], "2031-04-15T00:00:00.000Z");
        assert_eq!(history["history"][1][name], "2031-03-15T13:00:00.000Z");
    }
    assert_ne!(history["history"][0]["id"], history["history"][1]["id"]);
    let query = json!({"organizationId": "org_1", "limit": 1});
    let one = client.call("getUsageHistory", query).await;
    assert_eq!(one["history"], json!([newest(&history)]));

    let change = json!({"organizationId": "org_1", "apiLimit": 1, "resetMode": "manual", "resetPeriod": "weekly"});
    assert_eq!(client.call("updateLimits", change).await, success);
    let usage = client.call("getUsage", org_1()).await;
    assert_eq!(
        usage["api"],
        json!({"current": 1, "limit": 1, "resetDate": null})
    );
    assert_eq!(
        (&usage["resetMode"], &usage["resetPeriod"]),
        (&json!("manual"), &json!("weekly"))
    );
    assert_eq!(usage["features"]["sso"], true);
    assert_eq!(service.try_consume("org_1", "api", 1).await.status, 429);
    // The other meter is unaffected.
    assert_eq!(service.meter("org_1", "tokens").await["current"], 0);
    // The client returns errors with their status.
    let nobody = client
        .call("getUsage", json!({"organizationId": "nobody"}))
        .await;
    assert_eq!(nobody["data"], Value::Null);
    assert_eq!(nobody["error"]["status"], 404);
    assert_eq!(nobody["error"]["error"], "Organization not found");
}

#[tokio::test]
async fn the_plugins_client_needs_no_organization_with_a_token_of_better_auth() {
    let auth = AuthServer::start().await;
    let world = World::with(|config| config.jwt = auth.config()).await;
    let service = world.instance_at(Clock::System).await;
    let own = auth.text("organizationId");
    let mut member = PluginClient::start(&service.http, auth.token("EdDSA"));
    let usage = member.call("getUsage", Value::Null).await;
    assert_eq!(
        (&usage["api"]["current"], &usage["api"]["limit"]),
        (&json!(0), &json!(1000))
    );
    assert_eq!(usage["features"], Value::Null);
    service.count(own, "api", 3).await;
    assert_eq!(
        member.call("getUsage", json!({})).await["api"]["current"],
        3
    );
    assert_eq!(
        member.call("getUsageHistory", json!({})).await,
        json!({"history": []})
    );
    let named = json!({ "organizationId": own });
    assert_eq!(
        member.call("getUsage", named.clone()).await["api"]["current"],
        3
    );

    // The owner of an organization may not change its limit.
    let change = json!({"organizationId": own, "apiLimit": 1_000_000});
    for (function, body) in [("resetUsage", &named), ("updateLimits", &change)] {
        assert_eq!(
            member.call(function, body.clone()).await["error"]["status"],
            403
        );
    }
    let mut outsider = PluginClient::start(&service.http, auth.text("outsiderToken"));
    let error = outsider.call("getUsage", Value::Null).await["error"].clone();
    assert_eq!(
        (&error["status"], &error["error"]),
        (&json!(400), &json!("No organization found"))
    );
    assert_eq!(
        outsider.call("getUsage", named.clone()).await["error"]["status"],
        403
    );

    // A platform role may change any organization, but reads only its own.
    let mut admin = PluginClient::start(&service.http, auth.text("adminToken"));
    let success = json!({"success": true});
    assert_eq!(admin.call("updateLimits", change).await, success);
    assert_eq!(admin.call("resetUsage", named.clone()).await, success);
    assert_eq!(admin.call("getUsage", named).await["error"]["status"], 403);
    let usage = member.call("getUsage", Value::Null).await;
    assert_eq!(
        (&usage["api"]["current"], &usage["api"]["limit"]),
        (&json!(0), &json!(1_000_000))
    );
    let actors = world
        .select("select distinct actor from audit_log where organization_id is not null")
        .await;
    assert_eq!(actors, [format!("user:{}", auth.text("adminId"))]);
}

#[tokio::test]
async fn a_platform_role_counts_only_where_the_settings_name_it() {
    let signer = Signer::eddsa("a");
    let issuer = Issuer::start(Publishes::Keys(vec![signer.jwk()])).await;
    let mut jwt = issuer.config();
    for (admin_roles, roles, status) in [
        (&["admin", "staff"][..], json!("admin"), 200),
        (&["admin", "staff"], json!("user,staff"), 200),
        (&["admin", "staff"], json!(["user", "staff"]), 200),
        (&["admin", "staff"], json!("user"), 403),
        (&["admin", "staff"], json!("administrator"), 403),
        (&["admin", "staff"], json!(["user,staff"]), 403),
        (&["admin", "staff"], json!(""), 403),
        (&["admin", "staff"], json!(null), 403),
        (&["admin", "staff"], json!(true), 403),
        (&[], json!("admin"), 403),
        (&[], json!(""), 403),
        (&[], json!("owner"), 403),
    ] {
        jwt.admin_roles = admin_roles.iter().map(|it| (*it).to_owned()).collect();
        let world = World::with(|config| config.jwt = jwt.clone()).await;
        let service = world.instance().await;
        let token = signer.sign(&json!({
            "sub": "user_1", "iss": ISSUER, "aud": AUDIENCE, "organizationId": "org_1", "role": roles,
            "exp": world.clock.now().timestamp() + 600
        }));
        let user = service.http.with_key(Some(&token));
        let change = json!({"organizationId": "org_2", "apiLimit": 5});
        let answer = post(&user, "update-limits", change).await;
        assert_eq!(
            answer.status, status,
            "{roles} {admin_roles:?}: {}",
            answer.text
        );
        // The role grants nothing outside the plugin's endpoints.
        let limits = user
            .patch("/v1/organizations/org_1/limits", json!({}))
            .await;
        assert_eq!(limits.status, 403);
    }
}

#[tokio::test]
async fn refusals_have_the_plugins_error_format() {
    let world = World::new().await;
    let service = world.instance().await;
    let http = &service.http;
    service.count("org_1", "api", 1).await;
    let org_1 = json!({"organizationId": "org_1"});
    let anonymous = http.with_key(None);
    for path in [
        "get-usage?organizationId=org_1",
        "get-usage-history?organizationId=org_1",
    ] {
        refused(&get(&anonymous, path).await, 401, "Unauthorized");
    }
    for path in ["reset", "update-limits"] {
        let answer = post(&anonymous, path, org_1.clone()).await;
        refused(&answer, 401, "Unauthorized");
        assert_eq!(answer.header("www-authenticate"), "Bearer");
        let cookie = [("cookie", "better-auth.session_token=x")];
        let path = format!("{BASE}/{path}");
        let answer = anonymous
            .send(Method::POST, &path, &cookie, Some(org_1.clone()))
            .await;
        refused(&answer, 401, "Unauthorized");
    }
    for path in ["get-usage", "get-usage?", "get-usage-history?limit=3"] {
        refused(&get(http, path).await, 400, "No organization found");
    }
    let missing = "Organization not found";
    refused(
        &get(http, "get-usage?organizationId=nobody").await,
        404,
        missing,
    );
    for reset_api in [true, false] {
        let body = json!({"organizationId": "nobody", "resetApi": reset_api});
        refused(&post(http, "reset", body).await, 404, missing);
    }
    let history = get(http, "get-usage-history?organizationId=nobody").await;
    assert_eq!(
        (history.status.as_u16(), history.body),
        (200, json!({"history": []}))
    );
    let request = json!({"name": "bound", "scopes": ["read"], "organizationId": "org_2"});
    let bound = http.post("/v1/api-keys", request).await;
    let bound = http.with_key(bound.body["key"].as_str());
    let error = "this key is bound to another organization";
    refused(
        &get(&bound, "get-usage?organizationId=org_1").await,
        403,
        error,
    );
}

#[tokio::test]
async fn a_wrong_field_is_named_and_changes_nothing() {
    let world = World::new().await;
    let service = world.instance().await;
    let http = &service.http;
    service.count("org_1", "api", 1).await;
    for (path, names) in [
        ("get-usage?organization=org_1", "/organization"),
        ("get-usage?organizationId=a%20b", "/organizationId"),
        ("get-usage-history?organizationId=org_1&limit=0", "/limit"),
        (
            "get-usage-history?organizationId=org_1&limit=1001",
            "/limit",
        ),
        ("get-usage-history?organizationId=org_1&limit=x", "/limit"),
        (
            "get-usage-history?organizationId=org_1&granularity=decade",
            "/granularity",
        ),
        ("get-usage-history?organizationId=org_1&from=x", "/from"),
        (
            "get-usage-history?organizationId=org_1&from=2031-03-02T00:00:00Z&to=2031-03-01T00:00:00Z",
            "/from",
        ),
    ] {
        let answer = get(http, path).await;
        assert_eq!(answer.status, 400, "{path}");
        assert!(
            answer.body["error"].as_str().unwrap().starts_with(names),
            "{}",
            answer.text
        );
    }
    for (path, body, names) in [
        ("reset", json!({}), ""),
        (
            "reset",
            json!({"organizationId": "org_1", "resetApi": "no"}),
            "/resetApi",
        ),
        (
            "reset",
            json!({"organizationId": "org_1", "api": true}),
            "/api",
        ),
        (
            "update-limits",
            json!({"organizationId": "org_1", "apiLimit": -1}),
            "/apiLimit",
        ),
        (
            "update-limits",
            json!({"organizationId": "org_1", "enforcement": null}),
            "/enforcement",
        ),
        (
            "update-limits",
            json!({"organizationId": "org_1", "enforcement": "Hard"}),
            "/enforcement",
        ),
        (
            "update-limits",
            json!({"organizationId": "org_1", "resetMode": "never"}),
            "/resetMode",
        ),
        (
            "update-limits",
            json!({"organizationId": "org_1", "resetPeriod": null}),
            "/resetPeriod",
        ),
    ] {
        let answer = post(http, path, body.clone()).await;
        assert_eq!(answer.status, 400, "{body}");
        assert!(
            answer.body["error"].as_str().unwrap().starts_with(names),
            "{}",
            answer.text
        );
    }
    let path = format!("{BASE}/reset");
    let answer = http.post_raw(&path, Some("text/plain"), "{}").await;
    refused(
        &answer,
        415,
        "send the body as Content-Type: application/json",
    );
    assert_eq!(service.meter("org_1", "api").await["limit"], 1000);
    assert_eq!(service.current("org_1", "api").await, 1);
}

#[tokio::test]
async fn without_a_server_nothing_is_half_done_and_the_client_gets_an_error() {
    let mut world = World::new().await;
    let service = world.instance().await;
    service.count("org_1", "api", 1).await;
    service.flush().await;
    world.kill_redis().await;
    for (path, body) in [
        ("reset", json!({"organizationId": "org_1"})),
        (
            "update-limits",
            json!({"organizationId": "org_1", "apiLimit": 5, "resetMode": "manual"}),
        ),
    ] {
        let answer = post(&service.http, path, body).await;
        assert_eq!(answer.status, 503, "{}", answer.text);
        assert_eq!(answer.header("retry-after"), "1");
        assert!(answer.body["error"].is_string(), "{}", answer.text);
    }
    let usage = get(&service.http, "get-usage?organizationId=org_1").await;
    assert_eq!(usage.body["api"]["limit"], 1000);
    assert_eq!(usage.body["resetMode"], "lazy");
}

#[tokio::test]
async fn the_endpoints_are_at_the_configured_path() {
    let world = World::with(|config| config.plugin_path = "/auth/usage".to_owned()).await;
    let service = world.instance().await;
    service.count("org_1", "api", 1).await;
    let query = "get-usage?organizationId=org_1";
    assert_eq!(
        service
            .http
            .get(&format!("/auth/usage/{query}"))
            .await
            .status,
        200
    );
    assert_eq!(get(&service.http, query).await.status, 404);
}

#[tokio::test]
async fn an_organization_that_the_auth_server_has_just_made_can_be_limited() {
    let world = World::new().await;
    let service = world.instance().await;
    let change = json!({"organizationId": "new", "apiLimit": 0, "resetPeriod": "daily"});
    let answer = post(&service.http, "update-limits", change).await;
    assert_eq!(
        (answer.status.as_u16(), answer.body),
        (200, json!({"success": true}))
    );
    assert_eq!(service.try_consume("new", "api", 1).await.status, 429);
    let usage = get(&service.http, "get-usage?organizationId=new").await;
    assert_eq!(
        usage.body["api"],
        json!({"current": 0, "limit": 0, "resetDate": "2031-03-16T00:00:00Z"})
    );
    // A reset without counts succeeds.
    let body = json!({"organizationId": "new", "resetApi": false});
    assert_eq!(post(&service.http, "reset", body).await.status, 200);
}

#[tokio::test]
async fn a_limit_of_null_is_unlimited_and_enforcement_is_hard_or_soft() {
    let world = World::new().await;
    let service = world.instance().await;
    let update = async |fields: Value| {
        let mut body = json!({"organizationId": "org_1"});
        let fields = fields.as_object().unwrap().clone();
        body.as_object_mut().unwrap().extend(fields);
        let answer = post(&service.http, "update-limits", body).await;
        assert_eq!(answer.status, 200, "{}", answer.text);
        let meter = service.meter("org_1", "api").await;
        json!([meter["limit"], meter["enforcement"]])
    };
    assert_eq!(update(json!({"apiLimit": 5})).await, json!([5, "hard"]));
    assert_eq!(service.try_consume("org_1", "api", 6).await.status, 429);
    let soft = update(json!({"enforcement": "soft"})).await;
    assert_eq!(soft, json!([5, "soft"]));
    assert_eq!(service.try_consume("org_1", "api", 6).await.status, 200);
    let unlimited = json!({"apiLimit": null, "enforcement": "hard"});
    assert_eq!(update(unlimited).await, json!([null, "hard"]));
    assert_eq!(service.try_consume("org_1", "api", 5000).await.status, 200);
    let usage = get(&service.http, "get-usage?organizationId=org_1").await;
    assert_eq!(usage.body["api"]["limit"], Value::Null);
}

#[tokio::test]
async fn history_is_by_period_day_or_hour_in_a_range() {
    let world = World::new().await;
    let service = world.instance().await;
    for (time, amount) in [
        ("2031-03-15T12:30:00Z", 1),
        ("2031-03-15T13:30:00Z", 2),
        ("2031-03-16T00:30:00Z", 4),
        ("2031-04-01T10:00:00Z", 8),
    ] {
        world.move_to(time);
        service.count("org_1", "api", amount).await;
        service.count("org_1", "tokens", 100).await;
        service.flush().await;
    }
    let history = async |query: &str| {
        let path = format!("get-usage-history?organizationId=org_1{query}");
        let answer = get(&service.http, &path).await;
        assert_eq!(answer.status, 200, "{}", answer.text);
        let entries = answer.body["history"].as_array().unwrap().clone();
        let entries = entries.iter().map(|entry| {
            assert_eq!(
                (&entry["createdAt"], &entry["metricType"]),
                (&entry["date"], &json!("api"))
            );
            json!([entry["date"], entry["value"]])
        });
        entries.collect::<Value>()
    };
    let march = json!([["2031-04-01T00:00:00Z", 7]]);
    assert_eq!(history("").await, march);
    assert_eq!(history("&granularity=period").await, march);
    assert_eq!(
        history("&granularity=day").await,
        json!([
            ["2031-04-01T00:00:00Z", 8],
            ["2031-03-16T00:00:00Z", 4],
            ["2031-03-15T00:00:00Z", 3]
        ])
    );
    assert_eq!(
        history("&granularity=day&limit=1").await,
        json!([["2031-04-01T00:00:00Z", 8]])
    );
    assert_eq!(
        history("&granularity=hour").await,
        json!([["2031-04-01T10:00:00Z", 8]])
    );
    assert_eq!(
        history("&granularity=hour&from=2031-03-15T13:00:00Z&to=2031-03-16T01:00:00Z").await,
        json!([["2031-03-16T00:00:00Z", 4], ["2031-03-15T13:00:00Z", 2]])
    );
    assert_eq!(history("&to=2031-03-01T00:00:00Z").await, json!([]));
    assert_eq!(history("&from=2031-03-01T00:00:00Z").await, march);
}

#[tokio::test]
async fn the_plugins_scheduler_resets_expired_periods_with_a_key_in_the_body() {
    let world = World::new().await;
    let service = world.instance().await;
    for (organization, mode) in [("org_1", "scheduled"), ("org_2", "lazy")] {
        let settings = json!({"resetMode": mode});
        service.settings(organization, settings).await;
        service.count(organization, "api", 5).await;
    }
    service.flush().await;
    world.move_to("2031-04-01T00:00:00Z");
    let scheduler = world.key_with(&["reset"]).await;
    // Authentication is by the body alone.
    let mut client = PluginClient::start(&service.http, "");
    let expected = |count: u64, organizations: &[&str]| json!({"success": true, "resetCount": count, "organizations": organizations});
    let body = json!({ "apiKey": scheduler });
    let first = client.call("resetExpired", body.clone()).await;
    assert_eq!(first, expected(1, &["org_1"]));
    assert_eq!(client.call("resetExpired", body).await, expected(0, &[]));
    let other = format!("{}{}", &scheduler[..20], "0".repeat(64));
    for body in [
        json!({}),
        json!({ "apiKey": null }),
        json!({ "apiKey": "" }),
        json!({ "apiKey": other }),
        json!({ "apiKey": "tm_" }),
    ] {
        refused(
            &post(&service.http, "reset-expired", body).await,
            401,
            "Unauthorized",
        );
    }
    let reader = json!({ "apiKey": world.key_with(&["read", "ingest"]).await });
    let error = "this needs a key with the scope reset";
    refused(
        &post(&service.http, "reset-expired", reader).await,
        403,
        error,
    );
    assert_eq!(service.current("org_1", "api").await, 0);
}
