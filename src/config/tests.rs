//! All problems at once, and the values that are accepted.

use std::time::Duration;

use clap::Parser;

use super::values::is_path;
use super::*;

#[derive(Parser)]
struct Settings {
    #[command(flatten)]
    config: Config,
    #[command(flatten)]
    servers: Servers,
}

fn check(arguments: &[&str]) -> Result<(Config, Servers), InvalidSettings> {
    let arguments = std::iter::once(&"tallyman").chain(arguments);
    let settings: Settings = parse(arguments)?;
    Ok((settings.config, settings.servers))
}

#[test]
fn all_invalid_settings_are_reported_together() {
    let problems = check(&[
        "--listen",
        "nowhere",
        "--default-limit=-1",
        "--database-url",
        "mysql://x:secret@y",
    ])
    .unwrap_err();
    insta::assert_snapshot!(problems, @r#"
    TALLYMAN_LISTEN (--listen) is "nowhere"; it must be an address such as 127.0.0.1:7400
    TALLYMAN_DEFAULT_LIMIT (--default-limit) is "-1"; it must be a number from 0 to 2^53 - 1, or unlimited
    TALLYMAN_REDIS_URL (--redis-url) is missing; it must begin with redis:// or rediss:// or redis+sentinel:// or rediss+sentinel:// or redis+unix:// or unix://
    TALLYMAN_DATABASE_URL (--database-url) is not a URL; it must begin with postgres:// or postgresql://
    "#);
}

#[test]
fn only_the_servers_lack_a_default() {
    let (config, _) =
        check(&["--redis-url", "redis://r", "--database-url", "postgres://p"]).unwrap();
    assert_eq!(config.defaults.plan_id.as_str(), "free");
    assert_eq!(config.defaults.limits.len(), 1);
}

#[test]
fn idempotency_records_are_kept_for_a_minute_to_a_month() {
    let servers = ["--redis-url", "redis://r", "--database-url", "postgres://p"];
    let minutes = |minutes: &str| {
        let flag = ["--idempotency-minutes", minutes];
        check(&[&servers[..], &flag].concat()).map(|(config, _)| config.idempotency)
    };
    let (default, _) = check(&servers).unwrap();
    assert_eq!(default.idempotency, Duration::from_hours(24));
    assert_eq!(minutes("1"), Ok(Duration::from_mins(1)));
    assert_eq!(minutes("44640"), Ok(Duration::from_hours(24 * 31)));
    let refused = |text: &str| minutes(text).unwrap_err().to_string();
    insta::assert_snapshot!(refused("0"), @r#"TALLYMAN_IDEMPOTENCY_MINUTES (--idempotency-minutes) is "0"; it must be a number from 1 to 44640"#);
    insta::assert_snapshot!(refused("44641"), @r#"TALLYMAN_IDEMPOTENCY_MINUTES (--idempotency-minutes) is "44641"; it must be a number from 1 to 44640"#);
}

#[test]
fn everything_is_kept_for_ever_unless_a_retention_is_given() {
    let servers = ["--redis-url", "redis://r", "--database-url", "postgres://p"];
    let check = |arguments: &[&str]| check(&[&servers, arguments].concat());
    let (config, _) = check(&[]).unwrap();
    assert_eq!(
        (config.hourly_retention, config.event_retention),
        (None, None)
    );
    let days = |days: u64| Some(Duration::from_hours(24) * u32::try_from(days).unwrap());
    let least = ["--hourly-retention-days=35", "--event-retention-days=7"];
    let (config, _) = check(&least).unwrap();
    assert_eq!(
        (config.hourly_retention, config.event_retention),
        (days(35), days(7))
    );
    let problems = check(&["--hourly-retention-days=34", "--event-retention-days=6"]).unwrap_err();
    insta::assert_snapshot!(problems, @r#"
    TALLYMAN_HOURLY_RETENTION_DAYS (--hourly-retention-days) is "34"; it must be a number from 35 to 36500
    TALLYMAN_EVENT_RETENTION_DAYS (--event-retention-days) is "6"; it must be a number from 7 to 36500
    "#);
}

#[test]
fn jwts_require_url_issuer_and_audience() {
    let servers = ["--redis-url", "redis://r", "--database-url", "postgres://p"];
    let check = |arguments: &[&str]| check(&[&servers, arguments].concat());
    assert!(check(&[]).unwrap().0.jwt.enabled().is_none());
    let (url, issuer) = (
        ["--jwt-jwks-url", "ftp://x:secret@y"],
        ["--jwt-issuer", "i"],
    );
    let problems = check(&[&url[..], &issuer, &["--jwt-role-claim", ""]].concat()).unwrap_err();
    insta::assert_snapshot!(problems, @r#"
    TALLYMAN_JWT_JWKS_URL (--jwt-jwks-url) is not a URL; it must begin with http:// or https://
    TALLYMAN_JWT_AUDIENCE (--jwt-audience) is ""; it must be given where one of jwt-jwks-url, jwt-issuer and jwt-audience is
    TALLYMAN_JWT_ROLE_CLAIM (--jwt-role-claim) is ""; it must be the name of a claim
    "#);
    let url = ["--jwt-jwks-url", "https://auth.example/jwks"];
    let rest = ["--jwt-audience", "a", "--jwt-admin-roles", "admin, staff,"];
    let (config, _) = check(&[&url[..], &issuer, &rest].concat()).unwrap();
    let jwt = config.jwt.enabled().unwrap();
    assert_eq!(jwt.organization_claim, "organizationId");
    assert_eq!(jwt.admin_roles, ["admin", "staff"]);
}

#[test]
fn a_path_has_segments_without_router_syntax() {
    for good in [PLUGIN_PATH, "/usage", "/a/b.c_d~e-1"] {
        assert!(is_path(good), "{good}");
    }
    for bad in [
        "", "/", "usage", "/usage/", "//usage", "/{id}", "/*x", "/a b", "/a?b", "/.", "/a/../b",
    ] {
        assert!(!is_path(bad), "{bad}");
    }
}

#[test]
fn the_plugin_path_must_not_collide_with_the_api() {
    let refused = |path: &str| {
        check(&[
            "--redis-url",
            "redis://r",
            "--database-url",
            "postgres://p",
            "--plugin-path",
            path,
        ])
        .is_err()
    };
    for path in [
        "/v1",
        "/v1/usage",
        "/docs",
        "/healthz",
        "/metrics",
        "/openapi.json",
        "/readyz/x",
    ] {
        assert!(refused(path), "{path}");
    }
    for path in [PLUGIN_PATH, "/v10", "/auth/v1"] {
        assert!(!refused(path), "{path}");
    }
    let problems = check(&["--plugin-path", "/v1"]).unwrap_err().to_string();
    assert!(
        problems.starts_with(
            r#"TALLYMAN_PLUGIN_PATH (--plugin-path) is "/v1"; it must be a path that does not begin with /v1, which is a path of the API"#
        ),
        "{problems}"
    );
}

#[test]
fn errors_of_urls_say_what_is_missing() {
    let problems = check(&[
        "--redis-url",
        "127.0.0.1:6379",
        "--database-url",
        "postgres://[p",
    ]);
    insta::assert_snapshot!(problems.unwrap_err(), @r#"
    TALLYMAN_REDIS_URL (--redis-url) has no scheme; it must begin with redis:// or rediss:// or redis+sentinel:// or rediss+sentinel:// or redis+unix:// or unix://
    TALLYMAN_DATABASE_URL (--database-url) is not a URL; it must begin with postgres:// or postgresql://
    "#);
}

#[test]
fn a_url_of_redis_may_name_several_hosts() {
    for url in [
        "redis://:p@a:1,b:2,[::1]:3?cluster=true",
        "redis+sentinel://a,b/main",
        "rediss+sentinel://:p@a:1/main?sentinel_password=q",
    ] {
        let (_, servers) = check(&["--redis-url", url, "--database-url", "postgres://p"]).unwrap();
        assert_eq!(servers.redis_url, url);
    }
}

#[test]
fn origins_are_spelled_as_browsers_send_them() {
    let only = |origins: &[&str]| {
        Ok(Origins::Only(
            origins.iter().map(|it| (*it).to_owned()).collect(),
        ))
    };
    assert_eq!("".parse(), only(&[]));
    assert_eq!("*".parse(), Ok(Origins::Any));
    assert_eq!(
        "https://a.example, http://localhost:3000,".parse(),
        only(&["https://a.example", "http://localhost:3000"])
    );
    for bad in [
        "a.example",
        "https://a.example/",
        "https://A.example",
        "https://*.example",
        "https://",
        "*,https://a.example",
    ] {
        assert_eq!(bad.parse::<Origins>(), Err(()), "{bad}");
    }
}

#[test]
fn passwords_are_not_printed() {
    let (_, servers) = check(&[
        "--redis-url",
        "redis://:hunter2@r",
        "--database-url",
        "postgres://p",
    ])
    .unwrap();
    assert!(!format!("{servers:?}").contains("hunter2"));
}

#[test]
fn metrics_need_another_address_than_the_api() {
    let problems = check(&[
        "--listen=127.0.0.1:1",
        "--metrics-listen=127.0.0.1:1",
        "--workers=many",
        "--scheduler=maybe",
        "--redis-url=redis://r",
        "--database-url=postgres://p",
    ]);
    insta::assert_snapshot!(problems.unwrap_err(), @r#"
    TALLYMAN_METRICS_LISTEN (--metrics-listen) is "127.0.0.1:1"; it must be another address than that of the API
    TALLYMAN_SCHEDULER (--scheduler) is "maybe"; it must be on or off
    TALLYMAN_WORKERS (--workers) is "many"; it must be a number from 1 to 1024
    "#);
}
