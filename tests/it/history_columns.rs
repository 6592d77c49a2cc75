//! History by week and month, of several meters, with running totals and limits, and the first use.

use chrono::{DateTime, Duration, Utc};
use serde_json::{Value, json};

use crate::support::{Instance, World, instant};

#[tokio::test]
async fn days_add_up_to_weeks_and_months_in_every_zone() {
    let world = World::new().await;
    let service = world.instance().await;
    // The clocks change in Berlin on 2031-03-30, in Apia's zone on no day.
    let zones = [
        ("org_1", "Europe/Berlin"),
        ("org_2", "Pacific/Apia"),
        ("org_3", "America/Havana"),
    ];
    for (organization, zone) in zones {
        let settings = json!({"timeZone": zone});
        service.settings(organization, settings).await;
    }
    for step in 1..=30 {
        for (organization, _) in zones {
            service.count(organization, "api", step).await;
        }
        world.clock.advance(Duration::hours(37));
    }
    service.flush().await;
    for (organization, zone) in zones {
        let query = "from=2031-02-27T00:00:00Z&to=2031-06-01T00:00:00Z";
        let days = rows(&service, organization, &format!("granularity=day&{query}")).await;
        assert_eq!(sum(&days), 465, "{zone}");
        for granularity in ["week", "month"] {
            let query = format!("granularity={granularity}&{query}");
            let found = rows(&service, organization, &query).await;
            assert_eq!(sum(&found), 465, "{zone} {granularity}");
            assert!(found.len() > 1);
            for row in &found {
                let of_row = days.iter().filter(|it| contains(row, it));
                let of_row: Vec<Value> = of_row.cloned().collect();
                assert_eq!(sum(&of_row), used(row), "{zone} {row}");
                let local = at(row, "start").with_timezone(&zone.parse::<chrono_tz::Tz>().unwrap());
                let wanted = if granularity == "week" { "%a" } else { "%d" };
                let expected = if granularity == "week" { "Mon" } else { "01" };
                assert_eq!(local.format(wanted).to_string(), expected, "{zone} {row}");
            }
            let mut backwards = rows(&service, organization, &format!("{query}&order=desc")).await;
            backwards.reverse();
            assert_eq!(backwards, found);
        }
    }
    // Months of one zone for all, and those without usage.
    let query = "granularity=month&timeZone=UTC&fill=zero&meter=api&from=2031-01-01T00:00:00Z&to=2031-06-01T00:00:00Z";
    let months = rows(&service, "org_1", query).await;
    let starts: Vec<&str> = months
        .iter()
        .map(|it| it["start"].as_str().unwrap())
        .collect();
    let expected = ["01", "02", "03", "04", "05"].map(|month| format!("2031-{month}-01T00:00:00Z"));
    assert_eq!(starts, expected[..starts.len()]);
    assert!(starts.len() >= 4, "{starts:?}");
    assert_eq!(used(&months[1]), 0);
    assert_eq!(sum(&months), 465);
}

#[tokio::test]
async fn history_of_several_meters_contains_them_and_no_others() {
    let world = World::new().await;
    let service = world.instance().await;
    for (meter, amount) in [("api", 1), ("tokens", 2), ("seats", 3)] {
        service.count("org_1", meter, amount).await;
    }
    service.flush().await;
    let meters = async |query: &str| -> Vec<(String, i64)> {
        let rows = rows(&service, "org_1", query).await;
        let pair = |row: &Value| (row["meter"].as_str().unwrap().to_owned(), used(row));
        rows.iter().map(pair).collect()
    };
    let pair = |meter: &str, used| (meter.to_owned(), used);
    for granularity in ["hour", "day", "week", "month", "period"] {
        let query = format!("granularity={granularity}&meter=tokens&meter=api");
        assert_eq!(meters(&query).await, [pair("api", 1), pair("tokens", 2)]);
    }
    let filled = meters("meter=seats&meter=other&fill=zero&from=2031-03-15T00:00:00Z").await;
    assert_eq!(filled, [pair("other", 0), pair("seats", 3)]);

    let many: Vec<String> = (0..101).map(|n| format!("meter=m{n}")).collect();
    let path = format!("/v1/organizations/org_1/history?{}", many.join("&"));
    let refused = service.http.get(&path).await;
    assert_eq!(refused.code(), "invalid_field", "{}", refused.text);
    assert_eq!(refused.body["errors"][0]["pointer"], "/meter");
}

#[tokio::test]
async fn the_running_total_is_that_of_the_period_at_the_end_of_each_row() {
    let world = World::new().await;
    let service = world.instance().await;
    let reset = async || {
        let path = "/v1/organizations/org_1/reset";
        let answer = service.http.post(path, json!({})).await;
        assert_eq!(answer.status, 200, "{}", answer.text);
    };
    // In April, in May with a reset at 10:20, and again in July.
    for (time, amount) in [
        ("2031-04-29T10:10:00Z", 5),
        ("2031-04-30T23:10:00Z", 7),
        ("2031-05-01T00:10:00Z", 11),
        ("2031-05-02T10:10:00Z", 13),
    ] {
        world.move_to(time);
        service.count("org_1", "api", amount).await;
    }
    service.flush().await;
    world.move_to("2031-05-02T10:20:00Z");
    reset().await;
    for (time, amount) in [("2031-05-02T10:30:00Z", 17), ("2031-05-03T09:00:00Z", 19)] {
        world.move_to(time);
        service.count("org_1", "api", amount).await;
    }
    world.move_to("2031-05-03T09:30:00Z");
    let refund = json!({"organizationId": "org_1", "amount": 4});
    let refunded = service.http.post("/v1/refund", refund).await;
    assert_eq!(refunded.status, 200, "{}", refunded.text);
    world.move_to("2031-07-02T00:00:00Z");
    service.count("org_1", "api", 1).await;
    service.flush().await;

    let query = "fill=zero&from=2031-04-28T00:00:00Z&to=2031-07-03T00:00:00Z&totals=true";
    let days = rows(&service, "org_1", &format!("granularity=day&{query}")).await;
    let totals = |day: &str| {
        let row = days
            .iter()
            .find(|it| it["start"].as_str().unwrap().starts_with(day));
        row.unwrap()["total"].as_i64().unwrap()
    };
    for (day, total) in [
        ("2031-04-28", 0),
        ("2031-04-29", 5),
        ("2031-04-30", 12),
        ("2031-05-01", 11),
        ("2031-05-02", 17),
        ("2031-05-03", 32),
        ("2031-05-04", 32),
        ("2031-05-31", 32),
        // A period without a count.
        ("2031-06-01", 0),
        ("2031-06-30", 0),
        ("2031-07-02", 1),
    ] {
        assert_eq!(totals(day), total, "{day}");
    }
    // In any order, page size and format.
    for granularity in ["hour", "day", "week", "month"] {
        let list = format!("granularity={granularity}&{query}");
        let whole = every_page(&service, &format!("{list}&pageSize=1000")).await;
        let mut backwards = every_page(&service, &format!("{list}&order=desc&pageSize=1000")).await;
        backwards.reverse();
        assert_eq!(backwards, whole, "{granularity}");
        let size = if granularity == "hour" { 97 } else { 2 };
        assert_eq!(
            every_page(&service, &format!("{list}&pageSize={size}")).await,
            whole
        );
        let path = format!("/v1/organizations/org_1/history?{list}");
        let headers = [("accept", "application/x-ndjson")];
        let stream = service
            .http
            .send(reqwest::Method::GET, &path, &headers, None)
            .await;
        let lines = stream
            .text
            .lines()
            .map(|line| serde_json::from_str(line).unwrap());
        assert_eq!(lines.collect::<Vec<Value>>(), whole);
    }
    // A period's is its count, and without the parameter there is none.
    for period in rows(&service, "org_1", "granularity=period&totals=true").await {
        assert_eq!(period["total"], period["used"]);
    }
    assert!(
        rows(&service, "org_1", "from=2031-04-28T00:00:00Z")
            .await
            .iter()
            .all(|it| it["total"].is_null())
    );
}

#[tokio::test]
async fn the_limit_of_a_row_is_the_one_at_its_end() {
    let world = World::new().await;
    let service = world.instance().await;
    for (time, set) in [
        ("2031-04-10T10:00:00Z", None),
        ("2031-04-12T10:00:00Z", Some(json!(50_000))),
        ("2031-04-14T10:00:00Z", Some(Value::Null)),
        ("2031-04-16T10:00:00Z", Some(json!(70_000))),
    ] {
        world.move_to(time);
        if let Some(set) = set {
            let changes = json!({"api": {"limit": set}});
            service.limits("org_1", changes).await;
        }
        service.count("org_1", "api", 1).await;
        service.flush().await;
    }
    world.move_to("2031-04-17T12:00:00Z");
    let query = "fill=zero&limits=true&from=2031-04-10T00:00:00Z&to=2031-04-18T00:00:00Z";
    let days = rows(&service, "org_1", &format!("granularity=day&{query}")).await;
    let limits: Vec<Value> = days.iter().map(|it| it["limit"].clone()).collect();
    let (first, second, third) = (json!(1000), json!(50_000), json!(70_000));
    assert_eq!(
        limits,
        [
            &first,
            &first,
            &second,
            &second,
            &Value::Null,
            &Value::Null,
            &third,
            &third
        ]
        .map(Clone::clone)
    );
    let hours = rows(&service, "org_1", &format!("granularity=hour&{query}")).await;
    let of_hour = |hour: &str| {
        let row = hours
            .iter()
            .find(|it| it["start"].as_str().unwrap().starts_with(hour));
        row.unwrap()["limit"].clone()
    };
    assert_eq!(
        (of_hour("2031-04-12T09"), of_hour("2031-04-12T10")),
        (first, second)
    );
    assert!(
        rows(&service, "org_1", "from=2031-04-10T00:00:00Z")
            .await
            .iter()
            .all(|it| it["limit"].is_null())
    );
}

#[tokio::test]
async fn history_tells_when_an_organization_first_used_its_meters() {
    let world = World::new().await;
    let service = world.instance().await;
    let first_use = async |query: &str| {
        let path = format!("/v1/organizations/org_1/history?{query}");
        let answer = service.http.get(&path).await;
        assert_eq!(answer.status, 200, "{}", answer.text);
        answer.body["firstUse"].clone()
    };
    service.settings("org_1", json!({})).await;
    assert_eq!(first_use("").await, Value::Null);
    world.move_to("2031-04-10T10:20:00Z");
    service.count("org_1", "api", 1).await;
    world.move_to("2031-05-20T08:59:00Z");
    service.count("org_1", "tokens", 1).await;
    service.flush().await;
    world.move_to("2032-05-20T08:59:00Z");
    // Whatever the range.
    assert_eq!(first_use("").await, json!("2031-04-10T10:15:00Z"));
    assert_eq!(
        first_use("meter=tokens").await,
        json!("2031-05-20T08:00:00Z")
    );
    assert_eq!(first_use("meter=other").await, Value::Null);
    assert_eq!(
        first_use("meter=tokens&meter=api").await,
        json!("2031-04-10T10:15:00Z")
    );
    let all = service.http.get("/v1/history").await;
    assert_eq!(all.body["firstUse"], Value::Null, "{}", all.text);
    // Hours are deleted before their periods.
    sqlx::query("delete from usage_hourly")
        .execute(&world.postgres().await)
        .await
        .unwrap();
    assert_eq!(first_use("meter=api").await, json!("2031-04-01T00:00:00Z"));
}

/// All rows of an organization, on one page.
async fn rows(service: &Instance, organization: &str, query: &str) -> Vec<Value> {
    let path = format!("/v1/organizations/{organization}/history?pageSize=1000&{query}");
    let answer = service.http.get(&path).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    assert_eq!(answer.body["nextCursor"], Value::Null, "{}", answer.text);
    answer.body["data"].as_array().unwrap().clone()
}

/// All rows of `org_1`, page by page.
async fn every_page(service: &Instance, query: &str) -> Vec<Value> {
    let mut all = Vec::new();
    let mut cursor = String::new();
    loop {
        let path = format!("/v1/organizations/org_1/history?{query}{cursor}");
        let answer = service.http.get(&path).await;
        assert_eq!(answer.status, 200, "{}", answer.text);
        all.extend(answer.body["data"].as_array().unwrap().clone());
        match answer.body["nextCursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return all,
        }
    }
}

fn contains(row: &Value, other: &Value) -> bool {
    (at(row, "start")..at(row, "end")).contains(&at(other, "start"))
}

fn at(row: &Value, field: &str) -> DateTime<Utc> {
    instant(row[field].as_str().unwrap())
}

fn used(row: &Value) -> i64 {
    row["used"].as_i64().unwrap()
}

fn sum(rows: &[Value]) -> i64 {
    rows.iter().map(used).sum()
}
