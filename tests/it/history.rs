//! History: every unit is in its hour, its day and its period, and paging returns every row once.

use chrono::{DateTime, Duration, Utc};
use serde_json::{Value, json};
use tallyman::config::Servers;

use crate::support::{Answer, Instance, World, instant};

// --- hours, days and periods add up ---

#[tokio::test]
async fn hours_add_up_to_days_and_days_to_the_period_in_every_zone() {
    let world = World::new().await;
    let service = world.instance().await;
    // Around changes of daylight saving time, where there are any; with the hours of the first two days.
    let zones = [
        ("Asia/Kolkata", "2031-03-16T18:30:00Z", [24, 24]),
        ("Asia/Kathmandu", "2031-03-20T18:15:00Z", [24, 24]),
        ("Europe/Berlin", "2031-03-28T23:00:00Z", [24, 23]),
        // 24.5 hours, of which the half hour is a separate row.
        ("Australia/Lord_Howe", "2031-04-04T13:00:00Z", [24, 25]),
        ("Australia/Lord_Howe", "2031-10-03T13:30:00Z", [24, 24]),
        ("Europe/Berlin", "2031-10-24T22:00:00Z", [24, 25]),
    ];
    for (number, (zone, from, lengths)) in zones.into_iter().enumerate() {
        let organization = format!("org_{number}");
        set_zone(&service, &organization, zone).await;
        let from = instant(from);
        move_to(&world, from);
        // Almost three days with a different amount every half hour.
        let mut counted = 0;
        for step in 0..140 {
            track(&service, &organization, json!({"amount": step + 1})).await;
            counted += step + 1;
            world.clock.advance(Duration::minutes(30));
        }
        service.flush().await;

        let to = world.clock.now();
        let hours = rows(
            &service,
            &organization,
            &format!("granularity=hour&{}", range(from, to)),
        )
        .await;
        let days = rows(
            &service,
            &organization,
            &format!("granularity=day&{}", range(from, to)),
        )
        .await;
        assert_tiles(&hours);
        assert_tiles(&days);
        assert_eq!(start(&days[0]), from, "{zone}");
        for (day, length) in days.iter().zip(lengths) {
            let of_day: Vec<_> = hours
                .iter()
                .filter(|hour| (start(day)..end(day)).contains(&start(hour)))
                .collect();
            assert_eq!(of_day.len(), length, "{zone} {day}");
            assert_eq!(
                of_day.iter().map(|it| used(it)).sum::<i64>(),
                used(day),
                "{zone} {day}"
            );
        }
        assert_eq!(days.iter().map(used).sum::<i64>(), counted);
        let periods = rows(&service, &organization, "granularity=period").await;
        assert_eq!(periods.iter().map(used).sum::<i64>(), counted);
        // All samples are in one month of their zone.
        assert_eq!(periods.len(), 1, "{zone}");
        assert_eq!(periods[0]["limit"], 1000);
        assert!(hours.iter().chain(&days).all(|row| row["limit"].is_null()));
    }
}

#[tokio::test]
async fn days_are_those_of_each_organization_or_of_one_zone_for_all() {
    let world = World::new().await;
    let service = world.instance().await;
    set_zone(&service, "berlin", "Europe/Berlin").await;
    set_zone(&service, "tokyo", "Asia/Tokyo").await;
    for organization in ["berlin", "london", "tokyo"] {
        track(&service, organization, json!({})).await;
    }
    service.flush().await;
    let starts = async |query: &str| -> Vec<(String, String)> {
        let answer = service.http.get(&format!("/v1/history?{query}")).await;
        data(&answer)
            .iter()
            .map(|row| (text(row, "organizationId"), text(row, "start")))
            .collect()
    };
    let expected = |rows: [(&str, &str); 3]| {
        rows.map(|(organization, start)| (organization.to_owned(), start.to_owned()))
            .to_vec()
    };
    let own = [
        ("tokyo", "2031-03-14T15:00:00Z"),
        ("berlin", "2031-03-14T23:00:00Z"),
        ("london", "2031-03-15T00:00:00Z"),
    ];
    assert_eq!(starts("granularity=day").await, expected(own));
    let newest_first = [own[2], own[1], own[0]];
    assert_eq!(
        starts("granularity=day&order=desc").await,
        expected(newest_first)
    );
    let of_one_zone = ["berlin", "london", "tokyo"].map(|it| (it, "2031-03-14T18:30:00Z"));
    assert_eq!(
        starts("granularity=day&timeZone=Asia/Kolkata").await,
        expected(of_one_zone)
    );
    assert_eq!(
        starts("granularity=day&organizationId=tokyo&organizationId=berlin").await,
        expected(own)[..2]
    );
    assert_eq!(starts("organizationId=nobody").await, []);
}

// --- fields of a row ---

#[tokio::test]
async fn a_row_has_usage_refunds_and_refusals_separately() {
    let world = World::new().await;
    let service = world.instance().await;
    track(&service, "org_1", json!({"amount": 900})).await;
    for _ in 0..2 {
        let refused = service
            .http
            .post(
                "/v1/consume",
                json!({"organizationId": "org_1", "amount": 101}),
            )
            .await;
        assert_eq!(refused.status, 429);
    }
    world.clock.advance(Duration::hours(1));
    let refund = json!({"organizationId": "org_1", "amount": 300});
    assert_eq!(service.http.post("/v1/refund", refund).await.status, 200);
    service.flush().await;
    let answer = history(&service, "org_1", "granularity=hour").await;
    insta::assert_json_snapshot!(answer.body, @r#"
    {
      "data": [
        {
          "adjusted": 0,
          "denied": 2,
          "end": "2031-03-15T13:00:00Z",
          "final": false,
          "limit": null,
          "meter": "api",
          "open": false,
          "planId": null,
          "refunded": 0,
          "resetType": null,
          "start": "2031-03-15T12:00:00Z",
          "total": null,
          "used": 900
        },
        {
          "adjusted": 0,
          "denied": 0,
          "end": "2031-03-15T14:00:00Z",
          "final": false,
          "limit": null,
          "meter": "api",
          "open": true,
          "planId": null,
          "refunded": 300,
          "resetType": null,
          "start": "2031-03-15T13:00:00Z",
          "total": null,
          "used": -300
        }
      ],
      "firstUse": "2031-03-15T12:00:00Z",
      "nextCursor": null
    }
    "#);
    let answer = service.http.get("/v1/history?granularity=period").await;
    insta::assert_json_snapshot!(answer.body, @r#"
    {
      "data": [
        {
          "adjusted": 0,
          "denied": 2,
          "end": "2031-04-01T00:00:00Z",
          "final": false,
          "limit": 1000,
          "meter": "api",
          "open": true,
          "organizationId": "org_1",
          "planId": "free",
          "refunded": 300,
          "resetType": null,
          "start": "2031-03-01T00:00:00Z",
          "total": null,
          "used": 600
        }
      ],
      "firstUse": null,
      "nextCursor": null
    }
    "#);
}

#[tokio::test]
async fn late_events_land_in_their_hour_and_period_until_both_are_final() {
    let world = World::new().await;
    let service = world.instance().await;
    move_to(&world, instant("2031-04-01T10:00:00Z"));
    track(&service, "org_1", json!({"amount": 1})).await;
    track(
        &service,
        "org_1",
        json!({"amount": 5, "timestamp": "2031-03-31T23:10:00Z"}),
    )
    .await;
    service.flush().await;
    let seen = async |granularity: &str| -> Vec<(String, i64, bool, bool)> {
        let query = format!("granularity={granularity}&from=2031-03-01T00:00:00Z");
        let rows = rows(&service, "org_1", &query).await;
        rows.iter()
            .map(|it| {
                (
                    text(it, "start"),
                    used(it),
                    it["open"] == true,
                    it["final"] == true,
                )
            })
            .collect()
    };
    let row = |start: &str, used, open, settled| (start.to_owned(), used, open, settled);
    let march = row("2031-03-01T00:00:00Z", 5, false, false);
    assert_eq!(
        seen("period").await,
        [march, row("2031-04-01T00:00:00Z", 1, true, false)]
    );
    let late = row("2031-03-31T23:00:00Z", 5, false, false);
    assert_eq!(
        seen("hour").await,
        [late, row("2031-04-01T10:00:00Z", 1, true, false)]
    );

    // The last instant at which the period accepts events, and the end of that grace.
    move_to(&world, instant("2031-04-02T23:59:59.999Z"));
    assert_eq!(
        seen("period").await[0],
        row("2031-03-01T00:00:00Z", 5, false, false)
    );
    let last = json!({"amount": 2, "timestamp": "2031-03-31T23:59:59.999Z"});
    track(&service, "org_1", last.clone()).await;
    service.flush().await;
    world.clock.advance(Duration::milliseconds(1));
    assert_eq!(
        seen("period").await[0],
        row("2031-03-01T00:00:00Z", 7, false, true)
    );
    assert_eq!(
        seen("hour").await[0],
        row("2031-03-31T23:00:00Z", 7, false, true)
    );
    assert_eq!(
        seen("day").await[0],
        row("2031-03-31T00:00:00Z", 7, false, true)
    );
    let mut body = last;
    body["organizationId"] = json!("org_1");
    let refused = service.http.post("/v1/track", body).await;
    assert_eq!(refused.code(), "timestamp_out_of_range");
}

#[tokio::test]
async fn a_period_that_does_not_end_is_open_and_never_final() {
    let world = World::new().await;
    let service = world.instance().await;
    let settings = json!({"resetMode": "manual"});
    assert_eq!(
        service
            .http
            .put("/v1/organizations/org_1", settings)
            .await
            .status,
        200
    );
    track(&service, "org_1", json!({})).await;
    service.flush().await;
    world.clock.advance(Duration::days(900));
    let periods = rows(&service, "org_1", "granularity=period").await;
    assert_eq!(periods.len(), 1);
    assert_eq!(
        (
            &periods[0]["end"],
            &periods[0]["open"],
            &periods[0]["final"]
        ),
        (&Value::Null, &json!(true), &json!(false))
    );
}

// --- ranges and zeros ---

#[tokio::test]
async fn a_row_belongs_to_the_range_in_which_it_starts() {
    let world = World::new().await;
    let service = world.instance().await;
    for _ in 0..3 {
        track(&service, "org_1", json!({})).await;
        world.clock.advance(Duration::hours(1));
    }
    service.flush().await;
    let count = async |from: &str, to: &str| {
        let query = format!("granularity=hour&from=2031-03-15T{from}Z&to=2031-03-15T{to}Z");
        rows(&service, "org_1", &query).await.len()
    };
    assert_eq!(count("12:00:00", "15:00:00").await, 3);
    assert_eq!(count("12:00:00", "14:00:00").await, 2);
    assert_eq!(count("12:00:00.0001", "14:00:00.0001").await, 2);
    assert_eq!(count("12:59:59", "13:00:00.000001").await, 1);
    assert_eq!(count("13:00:00", "13:00:00").await, 0);
    // Without `from` and `to`, the range ends now and has a default length.
    world.clock.advance(Duration::days(40));
    assert_eq!(rows(&service, "org_1", "granularity=hour").await.len(), 0);
    assert_eq!(
        rows(&service, "org_1", "granularity=hour&fill=zero")
            .await
            .len(),
        24
    );
    assert_eq!(rows(&service, "org_1", "granularity=day").await.len(), 0);
    assert_eq!(rows(&service, "org_1", "fill=zero").await.len(), 31);
    assert_eq!(rows(&service, "org_1", "granularity=period").await.len(), 1);
    let far = "from=2031-03-01T00:00:00Z&to=9999-12-31T23:59:59Z";
    assert_eq!(rows(&service, "org_1", far).await.len(), 1);
    assert_eq!(
        rows(&service, "org_1", "from=0001-01-01T00:00:00Z&order=desc")
            .await
            .len(),
        1
    );
}

#[tokio::test]
async fn zero_rows_fill_started_ranges_for_every_meter_ever_counted() {
    let world = World::new().await;
    let service = world.instance().await;
    track(&service, "org_1", json!({"meter": "api"})).await;
    world.clock.advance(Duration::hours(2));
    track(&service, "org_1", json!({"meter": "tokens", "amount": 9})).await;
    service.flush().await;
    let query = "granularity=hour&fill=zero&from=2031-03-15T11:00:00Z&to=2031-03-16T00:00:00Z";
    let seen = async |query: &str| -> Vec<(String, String, i64)> {
        let rows = rows(&service, "org_1", query).await;
        rows.iter()
            .map(|it| {
                (
                    text(it, "start")[11..13].to_owned(),
                    text(it, "meter"),
                    used(it),
                )
            })
            .collect()
    };
    let row = |hour: &str, meter: &str, used| (hour.to_owned(), meter.to_owned(), used);
    let mut expected = vec![
        row("11", "api", 0),
        row("11", "tokens", 0),
        row("12", "api", 1),
        row("12", "tokens", 0),
        row("13", "api", 0),
        row("13", "tokens", 0),
        row("14", "api", 0),
        row("14", "tokens", 9),
    ];
    assert_eq!(seen(query).await, expected);
    expected.reverse();
    assert_eq!(seen(&format!("{query}&order=desc")).await, expected);
    // A requested meter has rows even without counts.
    let named = seen(&format!("{query}&meter=seats")).await;
    assert_eq!(
        named,
        ["11", "12", "13", "14"].map(|hour| row(hour, "seats", 0))
    );

    let answer = history(
        &service,
        "org_1",
        "granularity=hour&fill=zero&from=2025-01-01T00:00:00Z",
    )
    .await;
    assert_eq!(invalid_pointer(&answer), "/fill");
    // The length is limited only for zero rows.
    assert_eq!(
        rows(
            &service,
            "org_1",
            "granularity=hour&from=2025-01-01T00:00:00Z"
        )
        .await
        .len(),
        2
    );
}

// --- paging ---

#[tokio::test]
async fn pages_of_any_size_and_order_give_every_row_once_while_counting_goes_on() {
    let world = World::new().await;
    let service = world.instance().await;
    set_zone(&service, "org_2", "Asia/Kathmandu").await;
    for _ in 0..40 {
        for organization in ["org_1", "org_2", "org_3"] {
            track(
                &service,
                organization,
                json!({"meters": {"api": 1, "tokens": 5}}),
            )
            .await;
        }
        world.clock.advance(Duration::hours(5));
    }
    service.flush().await;
    // The range ends in the future, so that it includes counts made while paging.
    let to = instant("2031-04-30T00:00:00Z");
    for (granularity, from) in [
        ("hour", "2031-03-22T09:00:00Z"),
        ("day", "2031-03-01T00:00:00Z"),
        ("period", "2031-02-01T00:00:00Z"),
    ] {
        let range = range(instant(from), to);
        for order in ["asc", "desc"] {
            for fill in ["", "&fill=zero"] {
                if granularity == "period" && !fill.is_empty() {
                    continue;
                }
                let query = format!("granularity={granularity}&order={order}&{range}{fill}");
                let before = identities(&whole(&service, &query).await);
                let mut paged = Vec::new();
                let mut cursor = String::new();
                loop {
                    let path = format!("/v1/history?{query}&pageSize=7{cursor}");
                    let answer = service.http.get(&path).await;
                    assert!(data(&answer).len() <= 7);
                    paged.extend(data(&answer).iter().cloned());
                    let Some(next) = answer.body["nextCursor"].as_str() else {
                        break;
                    };
                    cursor = format!("&cursor={next}");
                    // Creates rows that no page has returned yet, and changes existing ones.
                    world.clock.advance(Duration::minutes(10));
                    track(&service, "org_0", json!({})).await;
                    track(&service, "org_2", json!({})).await;
                    service.flush().await;
                }
                let paged = identities(&paged);
                let mut distinct = paged.clone();
                distinct.sort();
                distinct.dedup();
                assert_eq!(distinct.len(), paged.len(), "{query}");
                assert!(before.iter().all(|row| paged.contains(row)), "{query}");
                // Later pages may have new rows, in order with the others.
                let mut ordered = distinct;
                if order == "desc" {
                    ordered.reverse();
                }
                assert_eq!(paged, ordered, "{query}");
            }
        }
    }
}

#[tokio::test]
async fn paging_keeps_the_range_of_its_first_page() {
    let world = World::new().await;
    let service = world.instance().await;
    for _ in 0..6 {
        track(&service, "org_1", json!({})).await;
        world.clock.advance(Duration::hours(1));
    }
    service.flush().await;
    let query = "granularity=hour&order=desc&pageSize=3";
    let first = history(&service, "org_1", query).await;
    let next = text(&first.body, "nextCursor");
    // The first page's oldest row is now older than the default range.
    world.clock.advance(Duration::hours(23));
    let second = history(&service, "org_1", &format!("{query}&cursor={next}")).await;
    let hours: Vec<_> = data(&first)
        .iter()
        .chain(data(&second))
        .map(|it| text(it, "start")[11..13].to_owned())
        .collect();
    assert_eq!(hours, ["17", "16", "15", "14", "13", "12"]);
    assert_eq!(second.body["nextCursor"], Value::Null);
}

#[tokio::test]
async fn csv_and_ndjson_have_the_same_rows_as_json() {
    let world = World::new().await;
    let service = world.instance().await;
    set_zone(&service, "org_2", "Asia/Kolkata").await;
    for _ in 0..5 {
        track(&service, "org_1", json!({"amount": 7})).await;
        track(&service, "org_2", json!({"meter": "tokens", "amount": 3})).await;
        world.clock.advance(Duration::hours(7));
    }
    service.flush().await;
    for path in ["/v1/history", "/v1/organizations/org_1/history"] {
        for granularity in ["hour", "day", "period"] {
            for order in ["asc", "desc"] {
                let path = format!("{path}?granularity={granularity}&order={order}");
                let json = service.http.get(&path).await;
                let expected = data(&json);
                assert!(!expected.is_empty());

                let ndjson = accepting(&service, &path, "application/x-ndjson").await;
                assert_eq!(ndjson.header("content-type"), "application/x-ndjson");
                assert_eq!(ndjson.header("vary"), "accept");
                let lines: Vec<Value> = ndjson
                    .text
                    .lines()
                    .map(|line| serde_json::from_str(line).unwrap())
                    .collect();
                assert_eq!(lines, expected);

                let csv = accepting(&service, &path, "text/csv").await;
                assert_eq!(
                    csv.header("content-type"),
                    "text/csv; charset=utf-8; header=present"
                );
                assert_eq!(from_csv(&csv.text), expected);
            }
        }
    }
    let empty = "/v1/organizations/org_1/history?meter=none";
    let csv = accepting(&service, empty, "text/csv, application/json;q=0.5").await;
    assert_eq!(
        csv.text,
        "meter,start,end,used,total,refunded,adjusted,denied,limit,planId,resetType,open,final\r\n"
    );
    assert_eq!(
        accepting(&service, empty, "application/x-ndjson")
            .await
            .text,
        ""
    );
    assert_eq!(
        accepting(&service, empty, "text/html").await.body["data"],
        json!([])
    );
}

#[tokio::test]
async fn fifty_thousand_hours_are_streamed_whole_and_in_order() {
    let world = World::new().await;
    let service = world.instance().await;
    let sql = world.postgres().await;
    for month in 1..=12 {
        let (next_year, next) = if month == 12 {
            (2031, 1)
        } else {
            (2030, month + 1)
        };
        let statement = format!(
            "create table usage_hourly_2030_{month:02} partition of usage_hourly
             for values from ('2030-{month:02}-01Z') to ('{next_year}-{next:02}-01Z')"
        );
        sqlx::query(sqlx::AssertSqlSafe(statement))
            .execute(&sql)
            .await
            .unwrap();
    }
    sqlx::query("insert into organizations (id) select 'org_' || n from generate_series(1, 6) n")
        .execute(&sql)
        .await
        .unwrap();
    let inserted = sqlx::query(
        "insert into usage_hourly
         select 'org_' || n, 'api', '2030-01-01Z', '2030-01-01Z'::timestamptz + h * interval '1 hour', h + n, 0, 0
         from generate_series(1, 6) n, generate_series(0, 8759) h",
    )
    .execute(&sql)
    .await
    .unwrap()
    .rows_affected();
    assert_eq!(inserted, 52_560);
    let range = "from=2030-01-01T00:00:00Z&to=2031-01-01T00:00:00Z";
    let path = format!("/v1/history?granularity=hour&{range}");
    let csv = from_csv(&accepting(&service, &path, "text/csv").await.text);
    assert_eq!(csv.len(), 52_560);
    let identities = identities(&csv);
    assert!(identities.is_sorted_by(|one, other| one < other));
    let total: i64 = csv.iter().map(used).sum();
    assert_eq!(total, (0..8760).map(|h| 6 * h + 21).sum::<i64>());

    let days = accepting(
        &service,
        &format!("/v1/history?granularity=day&{range}"),
        "application/x-ndjson",
    )
    .await;
    let days: Vec<Value> = days
        .text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(days.len(), 365 * 6);
    assert_eq!(days.iter().map(used).sum::<i64>(), total);
}

/// The unreadable row is after the first page, when the status has been sent.
#[tokio::test]
async fn a_stream_that_fails_half_way_is_aborted_and_not_mistaken_for_complete() {
    let world = World::new().await;
    let service = world.instance().await;
    let sql = world.postgres().await;
    sqlx::query("insert into organizations (id) values ('org_1')")
        .execute(&sql)
        .await
        .unwrap();
    sqlx::query(
        "insert into usage_history
         select 'org_1', case n when 15000 then 'NO METER' else 'api' end, '2030-01-01Z'::timestamptz + n * interval '10 minutes',
                '2030-01-01Z'::timestamptz + (n + 1) * interval '10 minutes', 1, 0, 0, null, 'hard', 1, 1, 1, now()
         from generate_series(1, 20000) n",
    )
    .execute(&sql)
    .await
    .unwrap();
    let path = "/v1/history?granularity=period";
    assert_eq!(data(&service.http.get(path).await).len(), 100);
    let http = service.http.clone();
    // The harness panics when it cannot read the response to its end.
    let reading = tokio::spawn(async move {
        let headers = [("accept", "text/csv")];
        http.send(reqwest::Method::GET, path, &headers, None).await
    });
    assert!(reading.await.unwrap_err().is_panic());
}

// --- refusals ---

#[tokio::test]
async fn an_invalid_parameter_is_refused_by_name() {
    let world = World::new().await;
    let service = world.instance().await;
    for number in 0..3 {
        let timestamp = world.clock.now() - Duration::hours(number);
        track(&service, "org_1", json!({"timestamp": timestamp})).await;
    }
    service.flush().await;
    let first = history(&service, "org_1", "granularity=hour&pageSize=1").await;
    let cursor = text(&first.body, "nextCursor");
    assert!(
        cursor
            .bytes()
            .all(|c| c.is_ascii_alphanumeric() || b"-_".contains(&c))
    );
    let cases = [
        ("granularity=decade", "/granularity"),
        ("granularity=day&granularity=hour", "/granularity"),
        ("order=up", "/order"),
        ("fill=null", "/fill"),
        ("granularity=period&fill=zero", "/fill"),
        ("meter=API", "/meter/0"),
        ("from=yesterday", "/from"),
        ("to=2031-02-30T00:00:00Z", "/to"),
        ("to=%2B12031-02-01T00:00:00Z", "/to"),
        ("from=2031-03-02T00:00:00Z&to=2031-03-01T00:00:00Z", "/from"),
        ("timeZone=Mars/Olympus", "/timeZone"),
        ("granularity=hour&timeZone=UTC", "/timeZone"),
        ("pageSize=0", "/pageSize"),
        ("pageSize=1001", "/pageSize"),
        ("pageSize=many", "/pageSize"),
        ("pageSize=", "/pageSize"),
        ("cursor=", "/cursor"),
        ("cursor=Zm9v", "/cursor"),
        ("unknown=1", "/unknown"),
    ];
    for (query, pointer) in cases {
        let answer = history(&service, "org_1", query).await;
        assert_eq!(
            (answer.status.as_u16(), invalid_pointer(&answer).as_str()),
            (400, pointer),
            "{query}: {}",
            answer.text
        );
    }
    // A cursor is valid for its own list only, with any page size.
    for (query, fits) in [
        ("granularity=hour", true),
        ("granularity=hour&pageSize=2&order=asc", true),
        ("granularity=day", false),
        ("granularity=hour&order=desc", false),
        ("granularity=hour&meter=api", false),
        ("granularity=hour&fill=zero", false),
        ("granularity=hour&from=2031-03-15T00:00:00Z", false),
    ] {
        let answer = history(&service, "org_1", &format!("{query}&cursor={cursor}")).await;
        assert_eq!(answer.status == 200, fits, "{query}");
        if !fits {
            assert_eq!(invalid_pointer(&answer), "/cursor");
        }
    }
    let other_list = service
        .http
        .get(&format!("/v1/history?granularity=hour&cursor={cursor}"))
        .await;
    assert_eq!(invalid_pointer(&other_list), "/cursor");
    let own = history(&service, "org_1", "organizationId=org_1").await;
    assert_eq!(invalid_pointer(&own), "/organizationId");
    let bad = service
        .http
        .get("/v1/history?organizationId=org_1&organizationId=a:b")
        .await;
    assert!(
        invalid_pointer(&bad).starts_with("/organizationId"),
        "{}",
        bad.text
    );
    let many: Vec<String> = (0..101)
        .map(|n| format!("organizationId=org_{n}"))
        .collect();
    let many = many.join("&");
    assert_eq!(
        invalid_pointer(&service.http.get(&format!("/v1/history?{many}")).await),
        "/organizationId"
    );
    for parameter in ["pageSize=10".to_owned(), format!("cursor={cursor}")] {
        let path = format!("/v1/organizations/org_1/history?granularity=hour&{parameter}");
        let answer = accepting(&service, &path, "text/csv").await;
        assert_eq!(
            (answer.status.as_u16(), answer.header("content-type")),
            (400, "application/problem+json")
        );
    }
}

#[tokio::test]
async fn an_unknown_organization_has_no_history_and_a_new_one_an_empty_one() {
    let world = World::new().await;
    let service = world.instance().await;
    for (id, refusal) in [
        ("nobody", (404, "not_found")),
        ("a:b", (400, "invalid_field")),
    ] {
        let answer = history(&service, id, "").await;
        assert_eq!((answer.status.as_u16(), answer.code()), refusal);
    }
    let anonymous = service.http.with_key(None);
    assert_eq!(anonymous.get("/v1/history").await.status, 401);
    assert_eq!(
        anonymous
            .get("/v1/organizations/org_1/history")
            .await
            .status,
        401
    );
    // Counted, but not flushed yet.
    track(&service, "org_1", json!({})).await;
    assert_eq!(rows(&service, "org_1", "").await, Vec::<Value>::new());
    service.flush().await;
    assert_eq!(rows(&service, "org_1", "").await.len(), 1);
}

#[tokio::test]
async fn without_the_database_there_is_no_history_in_any_format() {
    let world = World::new().await;
    let service = world.instance().await;
    // The key is cached in Redis before the database is unreachable.
    track(&service, "org_1", json!({})).await;
    let servers = Servers {
        database_url: "postgres://nobody@127.0.0.1:1/nothing".to_owned(),
        ..world.servers()
    };
    let cut_off = world.instance_with(servers).await;
    for path in ["/v1/organizations/org_1/history", "/v1/history"] {
        let answer = accepting(&cut_off, path, "text/csv").await;
        assert_eq!(
            (answer.status.as_u16(), answer.code()),
            (503, "database_unavailable")
        );
        assert_eq!(answer.header("retry-after"), "1");
    }
}

// --- helpers ---

async fn set_zone(service: &Instance, organization: &str, zone: &str) {
    let path = format!("/v1/organizations/{organization}");
    let answer = service.http.put(&path, json!({"timeZone": zone})).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
}

async fn track(service: &Instance, organization: &str, mut body: Value) {
    body["organizationId"] = json!(organization);
    let answer = service.http.post("/v1/track", body).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
}

fn move_to(world: &World, at: DateTime<Utc>) {
    world.clock.advance(at - world.clock.now());
}

async fn history(service: &Instance, organization: &str, query: &str) -> Answer {
    let path = format!("/v1/organizations/{organization}/history?{query}");
    service.http.get(&path).await
}

async fn accepting(service: &Instance, path: &str, media_type: &str) -> Answer {
    let headers = [("accept", media_type)];
    service
        .http
        .send(reqwest::Method::GET, path, &headers, None)
        .await
}

/// All rows of an organization, on one page.
async fn rows(service: &Instance, organization: &str, query: &str) -> Vec<Value> {
    let answer = history(service, organization, &format!("pageSize=1000&{query}")).await;
    assert_eq!(answer.body["nextCursor"], Value::Null, "{}", answer.text);
    data(&answer).to_vec()
}

/// All rows of all organizations, on one page.
async fn whole(service: &Instance, query: &str) -> Vec<Value> {
    let answer = service
        .http
        .get(&format!("/v1/history?pageSize=1000&{query}"))
        .await;
    assert_eq!(answer.body["nextCursor"], Value::Null, "{}", answer.text);
    data(&answer).to_vec()
}

fn data(answer: &Answer) -> &[Value] {
    assert_eq!(answer.status, 200, "{}", answer.text);
    answer.body["data"].as_array().unwrap()
}

/// The unique key of each row.
fn identities(rows: &[Value]) -> Vec<(String, String, String)> {
    rows.iter()
        .map(|row| {
            (
                text(row, "start"),
                text(row, "organizationId"),
                text(row, "meter"),
            )
        })
        .collect()
}

fn from_csv(text: &str) -> Vec<Value> {
    let mut reader = csv::Reader::from_reader(text.as_bytes());
    let names = reader.headers().unwrap().clone();
    let value = |name: &str, field: &str| match name {
        "organizationId" | "meter" | "start" => json!(field),
        "end" | "planId" | "resetType" if !field.is_empty() => json!(field),
        _ => serde_json::from_str(field).unwrap_or(Value::Null),
    };
    reader
        .records()
        .map(|record| {
            let record = record.unwrap();
            names
                .iter()
                .zip(&record)
                .map(|(name, field)| (name.to_owned(), value(name, field)))
                .collect()
        })
        .collect()
}

fn range(from: DateTime<Utc>, to: DateTime<Utc>) -> String {
    let text =
        |instant: DateTime<Utc>| instant.to_rfc3339_opts(chrono::SecondsFormat::Millis, true);
    format!("from={}&to={}", text(from), text(to))
}

fn assert_tiles(rows: &[Value]) {
    for pair in rows.windows(2) {
        assert_eq!(end(&pair[0]), start(&pair[1]));
    }
}

fn invalid_pointer(answer: &Answer) -> String {
    assert_eq!(answer.code(), "invalid_field", "{}", answer.text);
    text(&answer.body["errors"][0], "pointer")
}

fn text(value: &Value, field: &str) -> String {
    value[field].as_str().unwrap().to_owned()
}

fn start(row: &Value) -> DateTime<Utc> {
    instant(row["start"].as_str().unwrap())
}

fn end(row: &Value) -> DateTime<Utc> {
    instant(row["end"].as_str().unwrap())
}

fn used(row: &Value) -> i64 {
    row["used"].as_i64().unwrap()
}
