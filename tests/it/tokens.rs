//! JWTs: a valid token reads its own organization, and every other token is refused.

use chrono::DateTime;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tallyman::clock::Clock;

use crate::support::{
    AUDIENCE, Answer, AuthServer, Http, ISSUER, Instance, Issuer, Publishes, Signer, World,
    at_once, decode_part, message, sign_with_secret,
};

const USAGE: &str = "/v1/organizations/org_1/usage";

/// A world that trusts these signers, its auth server, and an instance.
async fn world_trusting(signers: &[&Signer]) -> (World, Issuer, Instance) {
    let keys = signers.iter().map(|signer| signer.jwk()).collect();
    let issuer = Issuer::start(Publishes::Keys(keys)).await;
    let world = World::with(|config| config.jwt = issuer.config()).await;
    let service = world.instance().await;
    (world, issuer, service)
}

/// The claims of a valid token of `org_1` that expires in ten minutes.
fn claims(world: &World) -> Value {
    json!({
        "sub": "user_1", "iss": ISSUER, "aud": AUDIENCE, "organizationId": "org_1",
        "exp": world.clock.now().timestamp() + 600
    })
}

/// The same with changed claims; null removes a claim.
fn claims_with(world: &World, others: &Value) -> Value {
    let mut claims = claims(world);
    for (name, value) in others.as_object().unwrap() {
        claims[name] = value.clone();
    }
    claims
        .as_object_mut()
        .unwrap()
        .retain(|_, value| !value.is_null());
    claims
}

async fn read(http: &Http, token: &str) -> Answer {
    http.with_key(Some(token)).get(USAGE).await
}

fn refused(answer: &Answer, status: u16, code: &str) {
    let seen = (answer.status.as_u16(), answer.code());
    assert_eq!(seen, (status, code), "{}", answer.text);
}

#[tokio::test]
async fn a_token_of_better_auth_reads_its_organization_in_every_algorithm_and_does_nothing_else() {
    let auth = AuthServer::start().await;
    let world = World::with(|config| config.jwt = auth.config()).await;
    // The token's timestamps are from the system clock.
    let service = world.instance_at(Clock::System).await;
    let own = auth.text("organizationId");
    let path = format!("/v1/organizations/{own}");
    for (counted, algorithm) in (0..).zip(["EdDSA", "ES256", "RS256"]) {
        let user = service.http.with_key(Some(auth.token(algorithm)));
        let usage = user.get(&format!("{path}/usage")).await;
        assert_eq!(usage.status, 200, "{algorithm}: {}", usage.text);
        // Before the first count the usage is that of the default plan.
        assert_eq!(usage.body["planId"], "free");
        assert_eq!(usage.body["meters"]["api"]["current"], counted);
        assert_eq!(usage.body["meters"]["api"]["limit"], 1000);
        for path in [
            format!("{path}/limits"),
            format!("{path}/features/sso"),
            format!("{path}/history"),
            format!("/v1/history?organizationId={own}"),
            format!("/v1/events?organizationId={own}"),
        ] {
            let answer = user.get(&path).await;
            assert_eq!(answer.status, 200, "{algorithm} {path}: {}", answer.text);
        }
        service.count("another", "api", 1).await;
        for path in [
            "/v1/organizations/another/usage",
            "/v1/organizations/nobody/usage",
            "/v1/organizations/another/limits",
            "/v1/history",
            "/v1/history?organizationId=another",
            "/v1/events",
            "/v1/events?organizationId=another",
            "/v1/organizations",
            "/v1/api-keys",
            "/metrics",
            &path,
        ] {
            refused(&user.get(path).await, 403, "forbidden");
        }
        let body = json!({"organizationId": own});
        for path in ["/v1/track", "/v1/consume", "/v1/check", "/v1/refund"] {
            refused(&user.post(path, body.clone()).await, 403, "forbidden");
        }
        refused(&user.put(&path, json!({})).await, 403, "forbidden");
        let limits = json!({"api": {"limit": null}});
        let limits = user.patch(&format!("{path}/limits"), limits).await;
        refused(&limits, 403, "forbidden");
        service.count(own, "api", 1).await;
    }
    assert_eq!(service.current(own, "api").await, 3);
    // A user without an organization reads none.
    for token in ["outsiderToken", "adminToken"] {
        let user = service.http.with_key(Some(auth.text(token)));
        let usage = user.get(&format!("{path}/usage")).await;
        refused(&usage, 403, "forbidden");
    }
}

#[tokio::test]
async fn a_token_of_better_auth_expires() {
    let auth = AuthServer::start().await;
    let world = World::with(|config| config.jwt = auth.config()).await;
    let token = auth.token("EdDSA");
    let end = decode_part(token, 1)["exp"].as_i64().unwrap();
    let path = format!("/v1/organizations/{}/usage", auth.text("organizationId"));
    for (seconds, status) in [(-900, 200), (-1, 200), (5, 401), (86_400, 401)] {
        let now = DateTime::from_timestamp_secs(end + seconds).unwrap();
        let service = world.instance_at(Clock::manual(now)).await;
        let answer = service.http.with_key(Some(token)).get(&path).await;
        assert_eq!(answer.status, status, "{seconds}: {}", answer.text);
    }
}

#[tokio::test]
async fn a_new_key_of_better_auth_is_known_a_minute_after_the_last_fetch() {
    let auth = AuthServer::start().await;
    let world = World::with(|config| config.jwt = auth.config()).await;
    let begin = decode_part(auth.token("EdDSA"), 1)["iat"].as_i64().unwrap();
    let clock = Clock::manual(DateTime::from_timestamp_secs(begin).unwrap());
    let service = world.instance_at(clock.clone()).await;
    let path = format!("/v1/organizations/{}/usage", auth.text("organizationId"));
    let (old, new) = (auth.token("EdDSA"), auth.rotate().await);
    let read = async |token: &str| service.http.with_key(Some(token)).get(&path).await.status;
    assert_eq!(read(old).await, 200);
    let newest = auth.rotate().await;
    assert_eq!(read(&new).await, 200);
    assert_eq!(read(&newest).await, 401);
    clock.advance(chrono::Duration::seconds(60));
    for token in [&newest, &new, old] {
        assert_eq!(read(token).await, 200);
    }
}

#[tokio::test]
async fn only_what_a_key_of_the_auth_server_has_signed_is_a_token() {
    let (signer, other) = (Signer::eddsa("a"), Signer::es256("b"));
    let (world, _issuer, service) = world_trusting(&[&signer, &other]).await;
    let claims = claims(&world);
    for signer in [&signer, &other] {
        let answer = read(&service.http, &signer.sign(&claims)).await;
        assert_eq!(answer.status, 200, "{}", answer.text);
    }
    let header = |alg: &str, kid: &str| json!({"alg": alg, "kid": kid});
    let right = signer.sign(&claims);
    let (unsigned, signature) = right.rsplit_once('.').unwrap();
    let escalated = message(
        &header("EdDSA", "a"),
        &claims_with(&world, &json!({"role": "admin"})),
    );
    let mut wrong = vec![
        // Without a signature.
        format!("{}.", message(&header("none", "a"), &claims)),
        format!("{}.", message(&header("None", "a"), &claims)),
        format!("{}.", message(&header("EdDSA", "a"), &claims)),
        unsigned.to_owned(),
        format!("{}.{signature}", message(&header("none", "a"), &claims)),
        // Changed claims, another key, another `kid`, another algorithm.
        format!("{escalated}.{signature}"),
        Signer::eddsa("a").sign(&claims),
        Signer::es256("a").sign(&claims),
        signer.sign_under(&header("EdDSA", "b"), &claims),
        signer.sign_under(&header("EdDSA", "unknown"), &claims),
        signer.sign_under(&header("ES256", "a"), &claims),
        signer.sign_under(&json!({"alg": "EdDSA"}), &claims),
        // A key in the header, and an unknown critical header.
        Signer::eddsa("a").sign_under(
            &json!({"alg": "EdDSA", "kid": "a", "jwk": Signer::eddsa("a").jwk()}),
            &claims,
        ),
        signer.sign_under(
            &json!({"alg": "EdDSA", "kid": "a", "crit": ["x"], "x": 1}),
            &claims,
        ),
        // Malformed tokens.
        format!("{right}.{signature}"),
        format!("{right}x"),
        String::new(),
        ".".to_owned(),
        "..".to_owned(),
        "a.b.c".to_owned(),
        "e30.e30.e30".to_owned(),
        "eyJ".to_owned() + &"x".repeat(6000),
    ];
    // The public key is not accepted as an HMAC secret in any encoding.
    for (name, key) in [("a", &signer), ("b", &other)] {
        let jwk = key.jwk();
        for secret in [
            key.public(),
            jwk["x"].as_str().unwrap().as_bytes().to_vec(),
            jwk.to_string().into_bytes(),
        ] {
            for alg in ["HS256", key.algorithm()] {
                wrong.push(sign_with_secret(&header(alg, name), &claims, &secret));
            }
        }
    }
    for token in &wrong {
        let answer = read(&service.http, token).await;
        refused(&answer, 401, "unauthenticated");
        assert_eq!(answer.header("www-authenticate"), "Bearer");
    }
    // Without the setting, every token is refused.
    let untrusting = World::new().await;
    let service = untrusting.instance().await;
    refused(&read(&service.http, &right).await, 401, "unauthenticated");
}

#[tokio::test]
async fn a_token_is_for_this_service_and_for_now() {
    let signer = Signer::eddsa("a");
    let (world, _issuer, service) = world_trusting(&[&signer]).await;
    let now = world.clock.now().timestamp();
    for (others, status) in [
        (json!({}), 200),
        (json!({"iss": "https://other.example"}), 401),
        (json!({"iss": format!("{ISSUER}/")}), 401),
        (json!({"iss": null}), 401),
        (json!({"iss": 1}), 401),
        // `iss` is a single value, while `aud` may be a list (RFC 7519).
        (json!({"iss": [ISSUER]}), 401),
        (json!({"iss": [ISSUER, "https://other.example"]}), 401),
        (json!({"iss": []}), 401),
        (json!({"aud": "other"}), 401),
        (json!({"aud": null}), 401),
        (json!({"aud": []}), 401),
        (json!({"aud": ["other", AUDIENCE]}), 200),
        (json!({"exp": null}), 401),
        (json!({"exp": "never"}), 401),
        (json!({"exp": (now + 600).to_string()}), 401),
        (json!({"exp": now + 1}), 200),
        // Clocks may differ by a few seconds.
        (json!({"exp": now - 4}), 200),
        (json!({"exp": now - 5}), 401),
        (json!({"exp": 1e300}), 200),
        (json!({"exp": -1e300}), 401),
        (
            json!({"exp": f64::from(u32::try_from(now).unwrap()) + 0.5}),
            200,
        ),
        (json!({"nbf": now + 5}), 200),
        (json!({"nbf": now + 6}), 401),
        (json!({"nbf": "x"}), 401),
        (json!({"sub": null}), 401),
        (json!({"sub": ""}), 401),
        (json!({"sub": "a\nb"}), 401),
        (json!({"sub": "x".repeat(256)}), 401),
        (json!({"organizationId": "org_2"}), 403),
        (json!({"organizationId": null}), 403),
        (json!({"organizationId": ["org_1"]}), 403),
        (json!({"organizationId": "org 1"}), 403),
        // A role grants no access here.
        (json!({"organizationId": "org_2", "role": "admin"}), 403),
    ] {
        let token = signer.sign(&claims_with(&world, &others));
        let answer = read(&service.http, &token).await;
        assert_eq!(answer.status, status, "{others}: {}", answer.text);
    }
}

#[tokio::test]
async fn the_claims_have_the_configured_names() {
    let signer = Signer::eddsa("a");
    let issuer = Issuer::start(Publishes::Keys(vec![signer.jwk()])).await;
    let mut jwt = issuer.config();
    jwt.organization_claim = "https://example.com/tenant".to_owned();
    let world = World::with(|config| config.jwt = jwt).await;
    let service = world.instance().await;
    let usual = signer.sign(&claims(&world));
    refused(&read(&service.http, &usual).await, 403, "forbidden");
    let named = claims_with(&world, &json!({"https://example.com/tenant": "org_1"}));
    assert_eq!(read(&service.http, &signer.sign(&named)).await.status, 200);
}

#[tokio::test]
async fn the_jwks_is_fetched_at_most_once_a_minute_for_unknown_keys() {
    let signer = Signer::eddsa("a");
    let (world, issuer, service) = world_trusting(&[&signer]).await;
    let right = signer.sign(&claims(&world));
    at_once(20, |_| {
        let (http, right) = (service.http.clone(), right.clone());
        async move { assert_eq!(read(&http, &right).await.status, 200) }
    })
    .await;
    assert_eq!(issuer.requests(), 1);
    for minute in 1..3 {
        world.clock.advance(chrono::Duration::seconds(59));
        let claims = claims(&world);
        let unknown = |number: usize| Signer::eddsa(&format!("unknown_{number}")).sign(&claims);
        let tries = |_| {
            at_once(20, |number| {
                let (http, token) = (service.http.clone(), unknown(number));
                async move { refused(&read(&http, &token).await, 401, "unauthenticated") }
            })
        };
        tries(0).await;
        assert_eq!(issuer.requests(), minute, "the pause has not ended");
        world.clock.advance(chrono::Duration::seconds(1));
        tries(1).await;
        assert_eq!(issuer.requests(), minute + 1);
    }
}

#[tokio::test]
async fn a_key_that_was_withdrawn_is_refused_after_ten_minutes() {
    let (old, new) = (Signer::eddsa("old"), Signer::eddsa("new"));
    let (world, issuer, service) = world_trusting(&[&old]).await;
    let ends = json!({"exp": world.clock.now().timestamp() + 86_400});
    let [old_token, new_token] = [&old, &new].map(|it| it.sign(&claims_with(&world, &ends)));
    assert_eq!(read(&service.http, &old_token).await.status, 200);
    issuer.publish(Publishes::Keys(vec![new.jwk()]));
    world.clock.advance(chrono::Duration::seconds(599));
    assert_eq!(read(&service.http, &old_token).await.status, 200);
    world.clock.advance(chrono::Duration::seconds(1));
    refused(
        &read(&service.http, &old_token).await,
        401,
        "unauthenticated",
    );
    assert_eq!(read(&service.http, &new_token).await.status, 200);
    assert_eq!(issuer.requests(), 2);
}

#[tokio::test]
async fn while_the_jwks_cannot_be_fetched_unknown_keys_are_503_and_known_keys_verify() {
    let (signer, new) = (Signer::eddsa("a"), Signer::eddsa("new"));
    let (world, issuer, service) = world_trusting(&[&signer]).await;
    let ends = json!({"exp": world.clock.now().timestamp() + 86_400});
    let [token, unknown] = [&signer, &new].map(|it| it.sign(&claims_with(&world, &ends)));
    let redirect_target = Issuer::start(Publishes::Keys(vec![signer.jwk()])).await;
    for broken in [
        Publishes::Status(StatusCode::INTERNAL_SERVER_ERROR),
        Publishes::Status(StatusCode::NO_CONTENT),
        Publishes::Text("<html>".to_owned()),
        Publishes::Text(r#"{"keys": {}}"#.to_owned()),
        Publishes::Text(format!(r#"{{"keys": ["{}"]}}"#, "x".repeat(256 * 1024))),
        Publishes::Elsewhere(redirect_target.url().to_owned()),
    ] {
        issuer.publish(broken);
        let answer = read(&service.http, &token).await;
        refused(&answer, 503, "auth_server_unavailable");
        assert_eq!(answer.header("retry-after"), "1");
        world.clock.advance(chrono::Duration::seconds(1));
    }
    assert_eq!(redirect_target.requests(), 0);
    // API keys and malformed tokens need no JWKS.
    assert_eq!(service.count("org_1", "api", 1).await, 1);
    refused(&read(&service.http, "a.b.c").await, 401, "unauthenticated");

    issuer.publish(Publishes::Keys(vec![
        signer.jwk(),
        json!({"kty": "new", "kid": 1}),
        json!(7),
    ]));
    assert_eq!(read(&service.http, &token).await.status, 200);
    issuer.publish(Publishes::Status(StatusCode::BAD_GATEWAY));
    world.clock.advance(chrono::Duration::hours(1));
    assert_eq!(read(&service.http, &token).await.status, 200);
    refused(
        &read(&service.http, &unknown).await,
        503,
        "auth_server_unavailable",
    );
    let requests = issuer.requests();
    for token in [&token, &token, &unknown] {
        read(&service.http, token).await;
    }
    assert_eq!(
        issuer.requests(),
        requests,
        "a failed fetch is not repeated immediately"
    );
    issuer.publish(Publishes::Keys(vec![new.jwk()]));
    world.clock.advance(chrono::Duration::minutes(1));
    assert_eq!(read(&service.http, &unknown).await.status, 200);
    refused(&read(&service.http, &token).await, 401, "unauthenticated");
}

#[tokio::test]
async fn concurrent_callers_share_a_failed_fetch_and_the_pause_starts_at_its_end() {
    let signer = Signer::eddsa("known");
    let (world, issuer, service) = world_trusting(&[&signer]).await;
    let ends = json!({"exp": world.clock.now().timestamp() + 86_400});
    let known = signer.sign(&claims_with(&world, &ends));
    assert_eq!(read(&service.http, &known).await.status, 200);
    world.clock.advance(chrono::Duration::minutes(1));
    issuer.publish(Publishes::Status(StatusCode::BAD_GATEWAY));
    issuer.hang().await;
    let claims = claims_with(&world, &ends);
    let (http, same_claims) = (service.http.clone(), claims.clone());
    let waiting = tokio::spawn(at_once(30, move |number| {
        let http = http.clone();
        let token = Signer::eddsa(&format!("unknown_{number}")).sign(&same_claims);
        async move { refused(&read(&http, &token).await, 503, "auth_server_unavailable") }
    }));
    issuer.until_requested(2).await;
    // The fetch takes as long as the pause between fetches.
    world.clock.advance(chrono::Duration::minutes(1));
    issuer.resume();
    waiting.await.unwrap();
    assert_eq!(issuer.requests(), 2, "waiting callers share one fetch");
    let late = Signer::eddsa("late").sign(&claims);
    world.clock.advance(chrono::Duration::seconds(59));
    refused(
        &read(&service.http, &late).await,
        503,
        "auth_server_unavailable",
    );
    assert_eq!(
        issuer.requests(),
        2,
        "the pause starts at the end of the fetch"
    );
    world.clock.advance(chrono::Duration::seconds(1));
    read(&service.http, &late).await;
    assert_eq!(issuer.requests(), 3);
}

#[tokio::test]
async fn an_unreachable_auth_server_is_503() {
    let signer = Signer::eddsa("a");
    let mut jwt = Issuer::start(Publishes::Keys(Vec::new())).await.config();
    // No server listens on port 1.
    jwt.jwks_url = "http://127.0.0.1:1/jwks".to_owned();
    let world = World::with(|config| config.jwt = jwt).await;
    let service = world.instance().await;
    let answer = read(&service.http, &signer.sign(&claims(&world))).await;
    refused(&answer, 503, "auth_server_unavailable");
}

#[tokio::test]
async fn keys_for_other_uses_verify_nothing() {
    let signer = Signer::eddsa("a");
    for (field, value, status) in [
        ("use", json!("enc"), 401),
        ("alg", json!("RS256"), 401),
        ("crv", json!("X25519"), 401),
        ("kty", json!("oct"), 401),
        ("kid", Value::Null, 401),
        ("use", json!("sig"), 200),
        ("alg", Value::Null, 200),
    ] {
        let mut jwk = signer.jwk();
        jwk[field] = value;
        jwk.as_object_mut()
            .unwrap()
            .retain(|_, value| !value.is_null());
        let (world, issuer, service) = world_trusting(&[]).await;
        issuer.publish(Publishes::Keys(vec![jwk.clone()]));
        let answer = read(&service.http, &signer.sign(&claims(&world))).await;
        assert_eq!(answer.status, status, "{jwk}");
    }
}

#[tokio::test]
async fn a_token_is_accepted_as_a_bearer_token_only() {
    let signer = Signer::eddsa("a");
    let (world, _issuer, service) = world_trusting(&[&signer]).await;
    let token = signer.sign(&claims(&world));
    let http = service.http.with_key(None);
    for (name, value) in [
        ("cookie", format!("better-auth.session_token={token}")),
        ("authorization", format!("Basic {token}")),
        ("authorization", token.clone()),
    ] {
        let answer = http.send(Method::GET, USAGE, &[(name, &value)], None).await;
        refused(&answer, 401, "unauthenticated");
    }
}
