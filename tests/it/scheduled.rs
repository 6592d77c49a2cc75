//! Periods that end by the calendar: on time in scheduled mode, with or without calls; with the next call in lazy mode.

use chrono::Duration;
use serde_json::{Value, json};

use crate::support::{Instance, World, at_once, commit_reset};

const MONTH: &str = "2031-03-01T00:00:00Z";
const NEXT_MONTH: &str = "2031-04-01T00:00:00Z";
const MONTH_AFTER: &str = "2031-05-01T00:00:00Z";

impl Instance {
    async fn schedule(&self, organization: &str) {
        self.settings(organization, json!({"resetMode": "scheduled"}))
            .await;
    }

    async fn end_due_periods(&self) -> usize {
        self.app.periods.sweep_once().await.unwrap()
    }

    /// `(start, used, reset type, open)` of each period in the history.
    async fn period_summaries(&self, organization: &str) -> Vec<(String, i64, Value, bool)> {
        let path = format!("/v1/organizations/{organization}/history?granularity=period");
        let answer = self.http.get(&path).await;
        assert_eq!(answer.status, 200, "{}", answer.text);
        let rows = answer.body["data"].as_array().unwrap();
        rows.iter()
            .map(|row| {
                let start = row["start"].as_str().unwrap().to_owned();
                let used = row["used"].as_i64().unwrap();
                let open = row["open"].as_bool().unwrap();
                (start, used, row["resetType"].clone(), open)
            })
            .collect()
    }
}

fn period(start: &str, used: i64, reset_type: Value, open: bool) -> (String, i64, Value, bool) {
    (start.to_owned(), used, reset_type, open)
}

async fn resets(world: &World) -> Vec<Value> {
    let events = world
        .select("select data::text from events where type = 'usage.reset' order by id")
        .await;
    events
        .iter()
        .map(|it| serde_json::from_str(it).unwrap())
        .collect()
}

#[tokio::test]
async fn in_scheduled_mode_a_period_ends_on_time_without_any_call() {
    let world = World::new().await;
    let instance = world.instance().await;
    instance.schedule("org_1").await;
    instance.count("org_1", "api", 5).await;
    instance.flush().await;
    // These units are not flushed yet.
    instance.count("org_1", "api", 2).await;
    assert_eq!(instance.end_due_periods().await, 0);
    world.move_to(NEXT_MONTH);
    assert_eq!(instance.end_due_periods().await, 1);
    let ended = period(MONTH, 7, json!("scheduled"), false);
    assert_eq!(
        instance.period_summaries("org_1").await,
        [ended.clone(), period(NEXT_MONTH, 0, Value::Null, true)]
    );
    assert_eq!(
        resets(&world).await,
        [json!({
            "organizationId": "org_1", "meter": "api", "resetType": "scheduled", "previousCount": 7,
            "periodStart": NEXT_MONTH, "resetDate": MONTH_AFTER
        })]
    );
    // A second sweep ends nothing.
    assert_eq!(instance.end_due_periods().await, 0);
    assert_eq!(resets(&world).await.len(), 1);

    // The next period ends too, though it has no counts.
    world.move_to(MONTH_AFTER);
    assert_eq!(instance.end_due_periods().await, 1);
    let empty = period(NEXT_MONTH, 0, json!("scheduled"), false);
    assert_eq!(
        instance.period_summaries("org_1").await,
        [ended.clone(), empty.clone()]
    );
    assert_eq!(instance.count("org_1", "api", 3).await, 3);
    instance.flush().await;
    assert_eq!(
        instance.period_summaries("org_1").await,
        [ended, empty, period(MONTH_AFTER, 3, Value::Null, true)]
    );
}

#[tokio::test]
async fn an_idle_organization_gets_one_event_for_an_empty_period_and_no_more() {
    let world = World::new().await;
    let instance = world.instance().await;
    let daily = json!({"resetMode": "scheduled", "resetPeriod": "daily"});
    instance.settings("org_1", daily).await;
    instance.count("org_1", "api", 5).await;
    instance.count("org_1", "tokens", 1).await;
    instance.flush().await;
    let mut ended = Vec::new();
    for day in 0..5 {
        world.clock.advance(Duration::days(1));
        if day < 3 {
            instance.count("org_1", "tokens", 1).await;
            instance.flush().await;
        }
        instance.end_due_periods().await;
        ended.push(resets(&world).await.len());
    }
    // Day by day: both meters; both, with `api` empty; then `tokens` alone, until it is empty too.
    assert_eq!(ended, [2, 4, 5, 6, 7]);
    for _ in 0..3 {
        world.clock.advance(Duration::days(1));
        assert_eq!(instance.end_due_periods().await, 0);
    }
    assert_eq!(resets(&world).await.len(), 7);
    // After new counts, events are recorded again.
    instance.count("org_1", "api", 2).await;
    instance.flush().await;
    world.clock.advance(Duration::days(1));
    assert_eq!(instance.end_due_periods().await, 1);
    let events = resets(&world).await;
    assert_eq!((events.len(), &events[7]["previousCount"]), (8, &json!(2)));
}

#[tokio::test]
async fn reset_expired_ends_periods_where_the_scheduler_is_off() {
    let world = World::with(|config| config.scheduler = false).await;
    let instance = world.instance().await;
    for organization in ["org_1", "org_2"] {
        instance.schedule(organization).await;
        instance.count(organization, "api", 5).await;
        instance.count(organization, "tokens", 5).await;
    }
    instance.count("org_lazy", "api", 5).await;
    instance
        .settings("org_manual", json!({"resetMode": "manual"}))
        .await;
    instance.count("org_manual", "api", 5).await;
    instance.flush().await;
    world.move_to(NEXT_MONTH);
    assert_eq!(instance.end_due_periods().await, 0);
    assert_eq!(resets(&world).await.len(), 0);

    let ingest = world.key_with(&["ingest", "refund", "read"]).await;
    let reset = world.key_with(&["reset"]).await;
    let path = "/v1/reset-expired";
    let forbidden = instance.http.with_key(Some(&ingest));
    assert_eq!(forbidden.post(path, json!({})).await.code(), "forbidden");
    let http = instance.http.with_key(Some(&reset));
    let answer = http.post_once(path, "april", json!({})).await;
    let expected =
        json!({"resetCount": 2, "organizations": ["org_1", "org_2"], "truncated": false});
    assert_eq!(answer.body, expected, "{}", answer.text);
    let again = http.post_once(path, "april", json!({})).await;
    assert_eq!(again.body, expected);
    assert_eq!(again.header("idempotent-replayed"), "true");
    let nothing = http.post(path, json!({})).await;
    assert_eq!(
        nothing.body,
        json!({"resetCount": 0, "organizations": [], "truncated": false})
    );
    assert_eq!(resets(&world).await.len(), 4);
    assert_eq!(
        instance.period_summaries("org_lazy").await,
        [period(MONTH, 5, Value::Null, false)]
    );
}

#[tokio::test]
async fn in_lazy_mode_the_first_call_afterwards_ends_the_period() {
    let world = World::new().await;
    let instance = world.instance().await;
    instance.count("org_1", "api", 5).await;
    instance.flush().await;
    world.move_to("2031-04-10T00:00:00Z");
    instance.flush().await;
    instance.end_due_periods().await;
    assert_eq!(
        instance.period_summaries("org_1").await,
        [period(MONTH, 5, Value::Null, false)]
    );
    instance.count("org_1", "api", 2).await;
    instance.flush().await;
    let expected = [
        period(MONTH, 5, json!("lazy"), false),
        period(NEXT_MONTH, 2, Value::Null, true),
    ];
    assert_eq!(instance.period_summaries("org_1").await, expected);
    assert_eq!(
        resets(&world).await,
        [json!({
            "organizationId": "org_1", "meter": "api", "resetType": "lazy", "previousCount": 5,
            "periodStart": NEXT_MONTH, "resetDate": MONTH_AFTER
        })]
    );
    instance.count("org_1", "api", 1).await;
    instance.flush().await;
    assert_eq!(resets(&world).await.len(), 1);
}

#[tokio::test]
async fn a_change_of_mode_or_calendar_is_rescheduled() {
    let world = World::new().await;
    let instance = world.instance().await;
    instance.count("org_1", "api", 5).await;
    instance.flush().await;
    instance.end_due_periods().await;
    let daily = json!({"resetMode": "scheduled", "resetPeriod": "daily"});
    instance.settings("org_1", daily).await;
    world.move_to("2031-03-16T00:00:00Z");
    assert_eq!(instance.end_due_periods().await, 1);
    instance
        .settings("org_1", json!({"resetMode": "manual"}))
        .await;
    world.clock.advance(Duration::days(100));
    assert_eq!(instance.end_due_periods().await, 0);
}

#[tokio::test]
async fn only_what_the_scheduler_opened_itself_is_deleted_where_no_period_begins() {
    let world = World::new().await;
    let instance = world.instance().await;
    instance.schedule("org_1").await;
    let postgres = world.postgres().await;
    for (meter, used, sequence) in [("empty", 0_i64, 0_i64), ("of_the_demo", 50, 1000)] {
        sqlx::query(
            "insert into usage_history (organization_id, meter, period_start, period_end, used, denied, refunded,
                                        enforcement, policy_version, epoch, seq, stored_at)
             values ('org_1', $1, '2031-03-10T00:00:00Z', '2031-04-01T00:00:00Z', $2, 0, 0, 'hard', 0, 0, $3, now())",
        )
        .bind(meter)
        .bind(used)
        .bind(sequence)
        .execute(&postgres)
        .await
        .unwrap();
    }
    world.move_to(NEXT_MONTH);
    instance.end_due_periods().await;
    let left = "select meter from usage_history where period_start = '2031-03-10T00:00:00Z'";
    let left: Vec<String> = sqlx::query_scalar(left).fetch_all(&postgres).await.unwrap();
    assert_eq!(left, ["of_the_demo"]);
}

#[tokio::test]
async fn a_reset_in_scheduled_mode_does_not_move_the_next_one() {
    let world = World::new().await;
    let instance = world.instance().await;
    instance.schedule("org_1").await;
    instance.count("org_1", "api", 5).await;
    let path = "/v1/organizations/org_1/reset";
    assert_eq!(instance.http.post(path, json!({})).await.status, 200);
    instance.count("org_1", "api", 2).await;
    instance.flush().await;
    instance.end_due_periods().await;
    world.move_to(NEXT_MONTH);
    assert_eq!(instance.end_due_periods().await, 1);
    let periods = instance.period_summaries("org_1").await;
    let types: Vec<&Value> = periods
        .iter()
        .map(|(_, _, reset_type, _)| reset_type)
        .collect();
    assert_eq!(types, [&json!("manual"), &json!("scheduled"), &Value::Null]);
}

#[tokio::test]
async fn a_period_that_a_reset_is_closing_is_not_ended_by_the_scheduler() {
    let world = World::new().await;
    let instance = world.instance().await;
    instance.schedule("org_1").await;
    instance.count("org_1", "api", 5).await;
    instance.flush().await;
    commit_reset(&world, "org_1", None).await;
    let expired = instance.http.post("/v1/reset-expired", json!({})).await;
    assert_eq!(expired.body["resetCount"], 0, "{}", expired.text);
    instance.count("org_1", "api", 2).await;
    instance.flush().await;
    instance.end_due_periods().await;
    let types = resets(&world).await;
    let types: Vec<&Value> = types.iter().map(|it| &it["resetType"]).collect();
    assert_eq!(types, ["manual"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_instances_end_each_period_once_and_traffic_stays_exact_meanwhile() {
    const ORGANIZATIONS: usize = 40;
    const CALLS: usize = 60;
    let world = World::new().await;
    let instances = [world.instance().await, world.instance().await];
    for number in 0..ORGANIZATIONS {
        let organization = format!("org_{number}");
        instances[0].schedule(&organization).await;
        instances[0].count(&organization, "api", 1).await;
    }
    instances[0].flush().await;
    instances[0].end_due_periods().await;
    world.move_to(NEXT_MONTH);
    let (calls, sweeps) = tokio::join!(
        at_once(CALLS, |call| {
            let http = instances[call % 2].http.clone();
            async move {
                let body = json!({"organizationId": "org_0"});
                let answer = http.post("/v1/consume", body).await;
                answer.body["current"].as_u64().unwrap()
            }
        }),
        at_once(4, |sweep| {
            let scheduler = instances[sweep % 2].app.periods.clone();
            async move { scheduler.sweep_once().await.unwrap() }
        })
    );
    assert_eq!(sweeps.iter().sum::<usize>(), ORGANIZATIONS);
    assert_eq!(resets(&world).await.len(), ORGANIZATIONS);
    let mut calls = calls;
    calls.sort_unstable();
    let expected: Vec<u64> = (1..=CALLS as u64).collect();
    assert_eq!(calls, expected);
    instances[1].flush().await;
    let periods = instances[1].period_summaries("org_0").await;
    let used: Vec<i64> = periods.iter().map(|(_, used, ..)| *used).collect();
    assert_eq!(used, [1, i64::try_from(CALLS).unwrap()]);
}

#[tokio::test]
async fn an_organization_that_cannot_be_processed_does_not_block_the_others() {
    let world = World::new().await;
    let instance = world.instance().await;
    for organization in ["org_1", "org_bad", "org_2"] {
        instance.schedule(organization).await;
        instance.count(organization, "api", 5).await;
    }
    instance.flush().await;
    let postgres = world.postgres().await;
    sqlx::raw_sql(
        "create function refuse() returns trigger language plpgsql as $$
         begin
             if new.organization_id = 'org_bad' and new.reset_type is not null then
                 raise exception 'no';
             end if;
             return new;
         end $$;
         create trigger refuse before update on usage_history for each row execute function refuse()",
    )
    .execute(&postgres)
    .await
    .unwrap();
    world.move_to(NEXT_MONTH);
    assert_eq!(instance.end_due_periods().await, 2);
    assert_eq!(instance.end_due_periods().await, 0);
    sqlx::raw_sql("drop trigger refuse on usage_history")
        .execute(&postgres)
        .await
        .unwrap();
    world.clock.advance(Duration::minutes(2));
    assert_eq!(instance.end_due_periods().await, 1);
}

#[tokio::test]
async fn thousands_of_due_periods_are_ended_in_one_call() {
    let world = World::new().await;
    let instance = world.instance().await;
    let due = 2500;
    let postgres = world.postgres().await;
    sqlx::query(
        "insert into organizations (id, reset_mode, due_at)
         select 'org_' || number, 'scheduled', '2031-04-01Z' from generate_series(1, $1) as number",
    )
    .bind(due)
    .execute(&postgres)
    .await
    .unwrap();
    sqlx::query(
        "insert into usage_history (organization_id, meter, period_start, period_end, used, denied, refunded, limit_units,
                                    enforcement, policy_version, epoch, seq, stored_at)
         select id, 'api', '2031-03-01Z', '2031-04-01Z', 5, 0, 0, 1000, 'hard', 1, 1, 1, now() from organizations",
    )
    .execute(&postgres)
    .await
    .unwrap();
    world.move_to(NEXT_MONTH);
    let answer = instance.http.post("/v1/reset-expired", json!({})).await;
    assert_eq!(answer.body["resetCount"], due, "{}", answer.text);
    assert_eq!(answer.body["truncated"], true);
    assert_eq!(answer.body["organizations"].as_array().unwrap().len(), 1000);
    let rows = world
        .select("select count(*)::text from usage_history where period_start = '2031-04-01Z' and used = 0")
        .await;
    assert_eq!(rows, [due.to_string()]);
    let organizations = world
        .select(
            "select count(distinct organization_id)::text from events where type = 'usage.reset'",
        )
        .await;
    assert_eq!(organizations, [due.to_string()]);
}
