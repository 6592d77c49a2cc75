//! The views for analysts, the role that reads them, and the board over them.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions as _, PgConnection, Row as _};
use tallyman::postgres::{Postgres, readers};
use tokio::process::Command;

use crate::support::World;
use crate::tidy::source;

/// Connects as a new reader.
async fn reader(world: &World) -> PgConnection {
    // Roles are of the server, which all tests share.
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let role = format!("Read\"er {}", NEXT.fetch_add(1, Ordering::Relaxed));
    let store = Postgres::new(&world.database_url, 1).unwrap();
    for _ in 0..2 {
        readers::permit(&store, &role).await.unwrap();
    }
    store.close().await;
    let options: PgConnectOptions = world.database_url.parse().unwrap();
    let mut connection = options.connect().await.unwrap();
    let set = format!(
        "set session authorization \"{}\"",
        role.replace('"', "\"\"")
    );
    sqlx::query(AssertSqlSafe(set))
        .execute(&mut connection)
        .await
        .unwrap();
    connection
}

/// The rows of a query as JSON.
async fn rows(connection: &mut PgConnection, query: &str) -> Vec<Value> {
    let query = format!("select to_jsonb(found) from ({query}) as found");
    let rows = sqlx::query(AssertSqlSafe(query.clone()))
        .fetch_all(connection)
        .await;
    let rows = rows.unwrap_or_else(|error| panic!("{query}: {error}"));
    rows.iter().map(|row| row.get(0)).collect()
}

#[tokio::test]
async fn the_views_have_the_documented_columns() {
    let world = World::new().await;
    let views = world
        .select(
            "select format('| `analytics.%s` | %s |', table_name,
                           string_agg(format('`%s`', column_name), ', ' order by ordinal_position))
             from information_schema.columns where table_schema = 'analytics'
             group by table_name order by table_name",
        )
        .await;
    let document = source("docs/sql.md");
    let (_, table) = document.split_once("<!-- views: begin -->").unwrap();
    let (table, _) = table.split_once("<!-- views: end -->").unwrap();
    let documented: Vec<&str> = table
        .lines()
        .filter(|it| it.contains("| `analytics."))
        .collect();
    assert_eq!(views, documented);
}

#[tokio::test]
async fn the_role_reads_the_views_and_nothing_else() {
    let world = World::new().await;
    let mut reader = reader(&world).await;
    let relations = world
        .select(
            "select format('%I.%I', nspname, relname)
             from pg_class join pg_namespace as schema on schema.oid = relnamespace
             where relkind in ('r', 'p', 'v', 'm') and nspname in ('public', 'analytics')",
        )
        .await;
    assert!(relations.len() > 20);
    for relation in relations {
        let query = format!("select * from {relation} limit 1");
        let read = sqlx::query(AssertSqlSafe(query))
            .fetch_all(&mut reader)
            .await;
        let may = relation.starts_with("analytics.");
        assert_eq!(read.is_ok(), may, "{relation}: {read:?}");
    }
    for change in [
        "delete from analytics.organizations",
        "update analytics.usage_by_period set used = 0",
        "create table analytics.own (id int)",
        "create table public.own (id int)",
    ] {
        let changed = sqlx::query(change).execute(&mut reader).await;
        assert!(changed.is_err(), "{change}");
    }
}

#[tokio::test]
async fn migrate_makes_the_role() {
    let world = World::new().await;
    let output = Command::new(env!("CARGO_BIN_EXE_tallyman"))
        .args(["migrate", "--reader", "made_by_migrate"])
        .env_clear()
        .env("TALLYMAN_DATABASE_URL", &world.database_url)
        .output()
        .await
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let role = world
        .select(
            "select concat(rolcanlogin, ' ', rolsuper, ' ', rolcreaterole, ' ', rolconfig)
             from pg_roles where rolname = 'made_by_migrate'",
        )
        .await;
    assert_eq!(role, ["t f f {default_transaction_read_only=on}"]);
}

#[tokio::test]
async fn the_views_tell_what_was_counted_limited_and_deleted() {
    let world = World::new().await;
    let service = world.instance().await;
    let settings = json!({"timeZone": "Asia/Tokyo", "metadata": {"name": "One"}});
    service.settings("org_1", settings).await;
    service.count("org_1", "api", 5).await;
    service.count("gone", "api", 5).await;
    service.flush().await;
    // Already the next day in Tokyo.
    world.move_to("2031-03-15T15:00:00Z");
    service.count("org_1", "api", 995).await;
    service.try_consume("org_1", "api", 1).await;
    service.flush().await;
    service
        .limits("org_1", json!({"api": {"limit": 2000}}))
        .await;
    service.flush().await;
    service.http.delete("/v1/organizations/gone").await;

    let mut reader = reader(&world).await;
    let query = "select organization_id, name, plan_id, time_zone from analytics.organizations";
    assert_eq!(
        rows(&mut reader, query).await,
        [
            json!({"organization_id": "org_1", "name": "One", "plan_id": "free", "time_zone": "Asia/Tokyo"})
        ]
    );
    let query = "select day, used, denied from analytics.usage_by_day order by day";
    assert_eq!(
        rows(&mut reader, query).await,
        [
            json!({"day": "2031-03-15", "used": 5, "denied": 0}),
            json!({"day": "2031-03-16", "used": 995, "denied": 1}),
        ]
    );
    let query = "select organization_id, meter, used, denied, plan_id, reset_type from analytics.usage_by_period";
    assert_eq!(
        rows(&mut reader, query).await,
        [json!({
            "organization_id": "org_1", "meter": "api", "used": 1000, "denied": 1, "plan_id": "free", "reset_type": null
        })]
    );
    let query = "select type, meter, threshold, current from analytics.events where meter = 'api' order by event_id";
    let events = rows(&mut reader, query).await;
    let event = |kind: &str, threshold, current| json!({"type": kind, "meter": "api", "threshold": threshold, "current": current});
    assert!(
        events.contains(&event("usage.warning", 80, 1000)),
        "{events:?}"
    );
}

#[tokio::test]
async fn limits_are_told_since_when_they_changed() {
    let world = World::new().await;
    let service = world.instance().await;
    service.count("org_1", "api", 1).await;
    service.flush().await;
    world.move_to("2031-04-10T00:00:00Z");
    service.count("org_1", "api", 1).await;
    service.flush().await;
    service
        .limits("org_1", json!({"api": {"limit": 2000}}))
        .await;
    service.count("org_1", "api", 1).await;
    service.flush().await;
    world.move_to("2031-05-10T00:00:00Z");
    service.count("org_1", "api", 1).await;
    service.flush().await;
    service
        .limits("org_1", json!({"api": {"enforcement": "soft"}}))
        .await;

    let mut reader = reader(&world).await;
    let query = "select limit_units, enforcement, until is null as last from analytics.limits_over_time order by since";
    assert_eq!(
        rows(&mut reader, query).await,
        [
            json!({"limit_units": 1000, "enforcement": "hard", "last": false}),
            json!({"limit_units": 2000, "enforcement": "hard", "last": false}),
            json!({"limit_units": 2000, "enforcement": "soft", "last": true}),
        ]
    );
    let query = "select since from analytics.limits_over_time order by since limit 1";
    let first = rows(&mut reader, query).await;
    assert!(
        first[0]["since"]
            .as_str()
            .unwrap()
            .starts_with("2031-03-01T00:00:00")
    );
}

/// Every text of the board with this name.
fn texts<'a>(board: &'a Value, name: &str) -> Vec<&'a str> {
    let panels = board["panels"].as_array().unwrap().iter();
    let targets = panels.flat_map(|panel| panel["targets"].as_array().unwrap());
    targets.filter_map(|target| target[name].as_str()).collect()
}

#[tokio::test]
async fn the_board_names_views_and_metrics_that_exist() {
    let world = World::new().await;
    let mut reader = reader(&world).await;
    let board: Value = serde_json::from_str(&source("grafana/tallyman.json")).unwrap();
    let variables = board["templating"]["list"].as_array().unwrap().iter();
    let variables = variables.filter(|it| it["type"] == "query");
    let queries = variables.map(|it| it["query"].as_str().unwrap());
    let queries: Vec<&str> = queries.chain(texts(&board, "rawSql")).collect();
    assert!(queries.len() > 5);
    for query in queries {
        let query = query
            .replace("${organization:sqlstring}", "'org_1'")
            .replace("$__timeFilter(", "now() > (");
        rows(&mut reader, &query).await;
    }
    let document = source("docs/metrics.md");
    let metrics: BTreeSet<&str> = document
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split('`').next())
        .collect();
    let expressions = texts(&board, "expr");
    assert!(expressions.len() > 5);
    for expression in expressions {
        let part = |it: char| it.is_ascii_alphanumeric() || it == '_';
        let names = expression.split(|it| !part(it));
        for name in names.filter(|it| it.starts_with("tallyman_")) {
            assert!(metrics.contains(name.trim_end_matches("_bucket")), "{name}");
        }
        assert!(expression.contains("tallyman_"), "{expression}");
    }
}
