//! `tallyman import usage-history`: old rows of the Better Auth plugin become final periods of history.

use std::process::{Output, Stdio};

use serde_json::{Value, json};
use tallyman::clock::Clock;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use crate::support::{Instance, World};

/// Two organizations, not in the order of time. The first period of each begins by the calendar: on the first of a month.
const ROWS: &str = r#"[
  {"id": "1", "organizationId": "org_1", "metricType": "api", "value": 450, "date": "2020-02-01T00:00:00.000Z",
   "createdAt": "2020-02-01T00:00:00.000Z"},
  {"id": "3", "organizationId": "org_1", "metricType": "api", "value": 70, "date": "2020-03-05T10:12:00Z"},
  {"id": "2", "organizationId": "org_1", "metricType": "api", "value": 0, "date": "2020-03-01T00:00:00Z"},
  {"id": "4", "organizationId": "org_2", "metricType": "emails", "value": 9, "date": "2020-02-15T00:00:00Z"}
]"#;

async fn run(world: &World, arguments: &[&str], input: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_tallyman"))
        .args(["import", "usage-history"])
        .args(arguments)
        .env_clear()
        .env("TALLYMAN_DATABASE_URL", &world.database_url)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(input.as_bytes()).await.unwrap();
    drop(stdin);
    child.wait_with_output().await.unwrap()
}

/// Imports a text and expects success; returns standard output and standard error.
async fn import(world: &World, text: &str) -> (String, String) {
    let output = run(world, &["-"], text).await;
    let [stdout, stderr] = [output.stdout, output.stderr].map(|it| String::from_utf8(it).unwrap());
    assert!(output.status.success(), "{stderr}");
    (stdout, stderr)
}

/// Imports a text and expects a failure that changes nothing; returns the lines of standard error.
async fn fail(world: &World, text: &str) -> Vec<String> {
    let before = stored(world).await;
    let output = run(world, &["-"], text).await;
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert_eq!(output.stdout, b"", "{text}");
    assert_eq!(stored(world).await, before, "{text}");
    let stderr = String::from_utf8(output.stderr).unwrap();
    stderr.lines().map(str::to_owned).collect()
}

/// Every row that an import may add, as text.
async fn stored(world: &World) -> Vec<String> {
    world
        .select(
            "select usage_history::text from usage_history
             union all select id from organizations
             union all select action from audit_log
             order by 1",
        )
        .await
}

/// Start, end, count, end type and finality of the periods of an organization.
async fn periods(service: &Instance, organization: &str) -> Value {
    let path = format!("/v1/organizations/{organization}/history?granularity=period");
    let answer = service.http.get(&path).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    let rows = answer.body["data"].as_array().unwrap().iter();
    let rows = rows.map(|row| {
        json!([
            row["meter"],
            row["start"],
            row["end"],
            row["used"],
            row["resetType"],
            row["final"]
        ])
    });
    rows.collect()
}

fn row(fields: &Value) -> String {
    let mut row = json!({
        "organizationId": "org_1", "metricType": "api", "value": 1, "date": "2020-02-01T00:00:00Z"
    });
    let fields = fields.as_object().unwrap().clone();
    row.as_object_mut().unwrap().extend(fields);
    row.to_string()
}

#[tokio::test]
async fn old_rows_become_final_periods_once() {
    let world = World::new().await;
    let service = world.instance().await;
    service.count("org_1", "api", 5).await;
    service.flush().await;
    let (stdout, stderr) = import(&world, ROWS).await;
    assert_eq!(
        stdout,
        "org_1 api: 3 periods with 520 units, 2020-01-01T00:00:00Z to 2020-03-05T10:12:00Z\n\
         org_2 emails: 1 period with 9 units, 2020-01-15T00:00:00Z to 2020-02-15T00:00:00Z\n"
    );
    assert_eq!(
        stderr,
        "Imported 4 periods of 2 organizations, 1 of them new.\n"
    );
    let old = [
        json!([
            "api",
            "2020-01-01T00:00:00Z",
            "2020-02-01T00:00:00Z",
            450,
            "lazy",
            true
        ]),
        json!([
            "api",
            "2020-02-01T00:00:00Z",
            "2020-03-01T00:00:00Z",
            0,
            "lazy",
            true
        ]),
        json!([
            "api",
            "2020-03-01T00:00:00Z",
            "2020-03-05T10:12:00Z",
            70,
            "lazy",
            true
        ]),
    ];
    let running = json!([
        "api",
        "2031-03-01T00:00:00Z",
        "2031-04-01T00:00:00Z",
        5,
        null,
        false
    ]);
    let all: Value = old.into_iter().chain([running]).collect();
    assert_eq!(periods(&service, "org_1").await, all);
    assert_eq!(
        periods(&service, "org_2").await,
        json!([[
            "emails",
            "2020-01-15T00:00:00Z",
            "2020-02-15T00:00:00Z",
            9,
            "lazy",
            true
        ]])
    );
    let plugin = "/api/auth/usage-tracking/get-usage-history?organizationId=org_1&limit=1";
    let newest = service.http.get(plugin).await.body["history"][0].clone();
    assert_eq!(
        (&newest["value"], &newest["date"]),
        (&json!(70), &json!("2020-03-05T10:12:00Z"))
    );

    let before = stored(&world).await;
    let (stdout, stderr) = import(&world, ROWS).await;
    assert_eq!(stdout, "");
    assert_eq!(
        stderr,
        "Imported 0 periods of 0 organizations, 0 of them new; 4 imported before.\n"
    );
    assert_eq!(stored(&world).await, before);

    // A later file continues where the first one ended.
    let later = row(&json!({"value": 30, "date": "2020-04-01T00:00:00Z"}));
    let (stdout, _) = import(&world, &later).await;
    assert_eq!(
        stdout,
        "org_1 api: 1 period with 30 units, 2020-03-05T10:12:00Z to 2020-04-01T00:00:00Z\n"
    );
    let audit = world.select(
        "select after::text from audit_log where action = 'usage_history.import' order by id",
    );
    assert_eq!(
        audit.await,
        [
            r#"{"created": 1, "periods": 4, "organizations": 2}"#,
            r#"{"created": 0, "periods": 1, "organizations": 1}"#
        ]
    );
}

#[tokio::test]
async fn imported_periods_change_no_count_and_no_call_changes_them() {
    let world = World::new().await;
    let service = world.instance().await;
    // In manual mode the running period began in 1970, as that of the row did.
    service
        .settings("org_1", json!({"resetMode": "manual"}))
        .await;
    let first = row(&json!({"value": 400, "periodStart": 0}));
    let (stdout, _) = import(&world, &first).await;
    assert_eq!(
        stdout,
        "org_1 api: 1 period with 400 units, 1970-01-01T00:00:00.001Z to 2020-02-01T00:00:00Z\n"
    );
    assert_eq!(service.count("org_1", "api", 3).await, 3);
    service.flush().await;
    let reset = service
        .http
        .post("/v1/organizations/org_1/reset", json!({}))
        .await;
    assert_eq!(reset.body["meters"]["api"]["previousCount"], 3);
    assert_eq!(service.count("org_1", "api", 1).await, 1);
    service.flush().await;
    service.app.periods.sweep_once().await.unwrap();
    assert_eq!(
        periods(&service, "org_1").await[1],
        json!([
            "api",
            "1970-01-01T00:00:00.001Z",
            "2020-02-01T00:00:00Z",
            400,
            "manual",
            true
        ])
    );
    let verified = service.http.get("/v1/verify").await;
    assert_eq!(verified.body["data"], json!([]), "{}", verified.text);
    let events = service.http.get("/v1/events?type=usage.reset").await;
    assert_eq!(events.body["data"].as_array().unwrap().len(), 1);
    // A deletion erases them with the rest, and an import brings the organization back.
    assert_eq!(
        service.http.delete("/v1/organizations/org_1").await.status,
        200
    );
    service.app.eraser.erase_once().await.unwrap();
    assert_eq!(
        service.http.get("/v1/organizations/org_1").await.status,
        404
    );
    let left = world.select("select used::text from usage_history").await;
    assert!(left.is_empty(), "{left:?}");
    let (_, stderr) = import(&world, &first).await;
    assert_eq!(
        stderr,
        "Imported 1 period of 1 organization, 1 of them new.\n"
    );
    service.app.eraser.erase_once().await.unwrap();
    assert_eq!(periods(&service, "org_1").await[0][3], 400);
    assert_eq!(
        service.http.get("/v1/organizations/org_1").await.status,
        200
    );
}

#[tokio::test]
async fn every_format_has_the_same_result() {
    let world = World::new().await;
    let service = world.instance().await;
    let csv = "\u{feff}id,organization_id,metric_type,value,date,created_at\n\
               1,json,api,450,2020-02-01 00:00:00+00,x\n\
               2,json,\"api\",70, 2020-03-05 11:12:00.000+01 ,\n";
    let lines = "{\"organizationId\": \"json\", \"metricType\": \"api\", \"value\": \"450\", \"date\": 1580515200000}\n\n\
                 {\"organizationId\": \"json\", \"metricType\": \"api\", \"value\": 70, \"date\": 1583403120}\n";
    let naive = "organizationId,metricType,value,date,periodStart\n\
                 json,api,450,2020-02-01,2020-01-01T00:00:00\n\
                 json,api,70,1583403120000,\n";
    let mut results = Vec::new();
    for (index, text) in [csv, lines, naive].iter().enumerate() {
        let organization = format!("org_{index}");
        let text = text.replace("json", &organization);
        import(&world, &text).await;
        results.push(periods(&service, &organization).await);
    }
    let expected = json!([
        [
            "api",
            "2020-01-01T00:00:00Z",
            "2020-02-01T00:00:00Z",
            450,
            "lazy",
            true
        ],
        [
            "api",
            "2020-02-01T00:00:00Z",
            "2020-03-05T10:12:00Z",
            70,
            "lazy",
            true
        ]
    ]);
    for result in results {
        assert_eq!(result, expected);
    }
}

#[tokio::test]
async fn a_dry_run_checks_and_prints_and_changes_nothing() {
    let world = World::new().await;
    world.instance().await;
    let before = stored(&world).await;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("usage.json");
    std::fs::write(&file, ROWS).unwrap();
    let file = file.to_str().unwrap();
    let output = run(&world, &["--dry-run", file], "").await;
    assert!(output.status.success());
    assert_eq!(String::from_utf8(output.stdout).unwrap().lines().count(), 2);
    assert_eq!(
        String::from_utf8(output.stderr).unwrap(),
        "Would import 4 periods of 2 organizations, 2 of them new.\n"
    );
    assert_eq!(stored(&world).await, before);
    assert!(run(&world, &[file], "").await.status.success());
    assert_ne!(stored(&world).await, before);
}

#[tokio::test]
async fn an_invalid_row_is_named_by_line_and_field_and_nothing_is_imported() {
    let world = World::new().await;
    world.instance().await;
    for (fields, error) in [
        (json!({"organizationId": null}), "organizationId is missing"),
        (
            json!({"organizationId": "a b"}),
            "organizationId must be 1 to 128 characters",
        ),
        (json!({"metricType": ""}), "metricType is missing"),
        (
            json!({"metricType": "API calls"}),
            "metricType must be 1 to 64 characters",
        ),
        (
            json!({"metricType": true}),
            "metricType must be a string; got \"true\"",
        ),
        (
            json!({"value": -1}),
            "value must be an integer from 0 to 2^53 - 1; got \"-1\"",
        ),
        (json!({"value": 1.5}), "value must be an integer"),
        (json!({"value": "many"}), "value must be an integer"),
        (
            json!({"date": "soon"}),
            "date must be a time such as 2026-11-01T00:00:00Z",
        ),
        (
            json!({"date": "2999-01-01T00:00:00Z"}),
            "date must not be in the future",
        ),
        (
            json!({"periodStart": "2020-02-01T00:00:00Z"}),
            "periodStart must be before the date",
        ),
        (
            json!({"value": 2, "date": "2019-12-01T00:00:00Z"}),
            "value must be 1 as before",
        ),
        (
            json!({"periodStart": "2019-11-30T23:00:00Z"}),
            "periodStart must not be before 2019-12-01T00:00:00Z",
        ),
    ] {
        let valid = row(&json!({"date": "2019-12-01T00:00:00Z"}));
        let text = format!("{valid}\n{}\n", row(&fields));
        let lines = fail(&world, &text).await;
        assert_eq!(lines.len(), 2, "{lines:?}");
        assert_eq!(lines[0], "error: nothing was imported:");
        assert!(
            lines[1].starts_with(&format!("line 2: {error}")),
            "{lines:?}"
        );
    }
    for (text, error) in [
        ("[{]", "the file is not JSON: "),
        ("[\n\n 5]", "line 3: must be a JSON object"),
        ("organizationId,date\na,b,c\n", "the file is not CSV: "),
    ] {
        let lines = fail(&world, text).await;
        assert!(
            lines[0].starts_with(&format!("error: {error}")),
            "{lines:?}"
        );
    }
    let lines = fail(
        &world,
        "organizationId,metricType,value,date\n\"org_1\",api,1,2019-01-01\norg_1,api,x,2020-01-01\n",
    )
    .await;
    assert!(
        lines[1].starts_with("line 3: value must be an integer"),
        "{lines:?}"
    );
    let many = format!("{}\n", row(&json!({"value": -1}))).repeat(12);
    let lines = fail(&world, &many).await;
    assert_eq!(lines.len(), 12);
    assert_eq!(lines[11], "… and 2 more errors");
    let missing = run(&world, &["/nowhere.json"], "").await;
    assert!(
        String::from_utf8(missing.stderr)
            .unwrap()
            .starts_with("error: cannot read /nowhere.json")
    );
}

#[tokio::test]
async fn a_row_within_what_tallyman_counted_is_refused() {
    let world = World::new().await;
    let service = world.instance_at(Clock::System).await;
    let now = Clock::System.now();
    let ago = |hours| (now - chrono::Duration::hours(hours)).to_rfc3339();
    let late = json!({"organizationId": "org_1", "timestamp": ago(40)});
    assert_eq!(service.http.post("/v1/track", late).await.status, 200);
    service.flush().await;
    let overlapping = row(&json!({"date": ago(30)}));
    let lines = fail(&world, &overlapping).await;
    assert!(
        lines[1].contains("because Tallyman has counted this meter since then"),
        "{lines:?}"
    );
    // Another meter, and what ended before, are not affected.
    import(
        &world,
        &row(&json!({"date": ago(30), "metricType": "tokens"})),
    )
    .await;
    import(&world, &row(&json!({"date": ago(42)}))).await;
}

#[tokio::test]
async fn a_database_without_a_service_is_refused() {
    let world = World::new().await;
    let output = run(&world, &["-"], ROWS).await;
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.contains("start the service once"), "{stderr}");
}
