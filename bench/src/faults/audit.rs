//! Compares what the service has counted with the ledger, once all faults are undone.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;
use tokio::time::sleep;

use super::client::Client;
use super::counting::{HARD, SOFT};
use super::journal::{Journal, Rule};
use super::ledger::{Bounds, Ledger};
use super::load::{Load, read};
use super::organizations::Group;

/// How long the service may take to store everything.
const WAIT_MAX: Duration = Duration::from_mins(1);

const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// Percentages that are notified by default.
const PERCENTAGES: [i64; 2] = [80, 100];

/// Counts by organization, meter and start of the period.
type Counts = BTreeMap<(String, String, String), i64>;

/// Audits everything; `dir` is for the calls of what is wrong.
pub(super) async fn run(load: &Load<'_>, client: &mut Client<'_>, dir: &Path) -> Result<()> {
    let journal = load.run.journal;
    let counts = settled_history(load, client).await?;
    let hourly = counts.keys().filter(|(id, ..)| id.starts_with("hourly-"));
    if hourly
        .map(|(.., start)| start)
        .collect::<BTreeSet<_>>()
        .len()
        < 2
    {
        bail!("no hour has ended");
    }
    compare_counts(load.ledger, journal, &counts, dir)?;
    for closed in load.ledger.closed.borrow().iter() {
        let key = (
            closed.organization.to_string(),
            closed.meter.clone(),
            closed.period.clone(),
        );
        let count = counts.get(&key).copied().unwrap_or(0);
        if count != closed.count {
            let text = format!("{key:?} was closed with {}, and has {count}", closed.count);
            journal.violation(Rule::Reset, text);
        }
    }
    check_events(load, client, &counts).await?;
    for difference in pages(client, "/v1/verify?pageSize=1000").await? {
        journal.violation(Rule::Verified, difference.to_string());
    }
    check_gone(load, client, &counts).await
}

/// Reads history until it equals the counters, and nothing waits to be counted.
async fn settled_history(load: &Load<'_>, client: &mut Client<'_>) -> Result<Counts> {
    let started = Instant::now();
    loop {
        // Read first: what is pending is deleted once history has it.
        let pending = "select count(*) from pending_increments";
        let mut session = load.run.setup.postgres().await?;
        let pending: i64 = sqlx::query_scalar(pending).fetch_one(&mut session).await?;
        let history = history(client).await?;
        let mut different = Vec::new();
        if pending > 0 {
            different.push(format!("{pending} increments are pending"));
        }
        for organization in &load.organizations.0 {
            let id = organization.id();
            let path = format!("/v1/organizations/{id}/usage");
            let usage = get(client, &path).await?;
            if usage["exact"] == false {
                different.push(format!("the usage of {id} is not exact"));
            }
            for (meter, figures) in usage["meters"].as_object().into_iter().flatten() {
                let current = figures["current"]
                    .as_i64()
                    .context("usage without a count")?;
                let start = figures["periodStart"].as_str().unwrap_or_default();
                let key = (id.to_string(), meter.clone(), start.to_owned());
                let stored = history.get(&key).copied().unwrap_or(0);
                if current != stored {
                    different.push(format!(
                        "{key:?}: history has {stored}, Redis has {current}"
                    ));
                }
            }
        }
        if different.is_empty() {
            return Ok(history);
        }
        if started.elapsed() > WAIT_MAX {
            for text in different {
                load.run.journal.violation(Rule::History, text);
            }
            return Ok(history);
        }
        sleep(POLL_INTERVAL).await;
    }
}

/// All periods, also those that a clock ahead has begun.
async fn history(client: &mut Client<'_>) -> Result<Counts> {
    let all = "from=2000-01-01T00:00:00Z&to=2100-01-01T00:00:00Z";
    let mut counts = Counts::new();
    for row in pages(
        client,
        &format!("/v1/history?granularity=period&pageSize=1000&{all}"),
    )
    .await?
    {
        let text = |name: &str| row[name].as_str().unwrap_or_default().to_owned();
        let used = row["used"].as_i64().context("history without a count")?;
        counts.insert((text("organizationId"), text("meter"), text("start")), used);
    }
    Ok(counts)
}

fn compare_counts(ledger: &Ledger, journal: &Journal, counts: &Counts, dir: &Path) -> Result<()> {
    let all = ledger.bounds(journal);
    for ((organization, meter), bounds) in &all {
        let of_it: BTreeMap<&str, i64> = counts
            .iter()
            .filter(|((id, name, _), _)| **id == **organization && name == meter)
            .map(|((_, _, period), used)| (period.as_str(), *used))
            .collect();
        let mut wrong = compare(bounds, &of_it);
        for (period, it) in bounds.periods.iter().filter(|_| *meter == HARD) {
            let granted = it.granted - it.lost + bounds.unknown.0;
            let limit = ledger.limit(organization) + it.unlimited;
            if granted > limit {
                let text = format!("in {period}, {granted} were granted, and the limit is {limit}");
                wrong.push((Rule::Granted, text));
            }
        }
        for (rule, text) in &wrong {
            journal.violation(*rule, format!("{organization} {meter}: {text}"));
        }
        if !wrong.is_empty() {
            let calls = ledger.describe(organization, meter, journal);
            fs::write(dir.join(format!("{organization}-{meter}.txt")), calls)?;
        }
    }
    let known: BTreeSet<(&str, &str)> = all.keys().map(|(id, meter)| (&**id, *meter)).collect();
    for ((id, meter, period), used) in counts {
        if *used != 0 && !known.contains(&(id, meter)) {
            let text = format!("{id} {meter}: {used} in {period}, and nothing was sent");
            journal.violation(Rule::Counted, text);
        }
    }
    Ok(())
}

/// What is wrong with the counts of one meter.
fn compare(bounds: &Bounds, counts: &BTreeMap<&str, i64>) -> Vec<(Rule, String)> {
    let mut wrong = Vec::new();
    let mut check = |what: &str, least: i64, most: i64, used: i64| {
        // No count falls below 0.
        if !(least.max(0)..=most.max(0)).contains(&used) {
            let text = format!("{used} in {what}, and not {least} to {most}");
            wrong.push((Rule::Counted, text));
        }
    };
    let (low, high) = bounds.unknown;
    let periods: BTreeSet<&str> = bounds
        .periods
        .keys()
        .map(|it| &**it)
        .chain(counts.keys().copied())
        .collect();
    for period in periods {
        let used = counts.get(period).copied().unwrap_or(0);
        let it = bounds.periods.get(period).copied().unwrap_or_default();
        check(
            period,
            it.least + low,
            it.most + high + bounds.somewhere.max(0),
            used,
        );
    }
    let (least, most) = bounds.total();
    check("all periods", least, most, counts.values().sum());
    wrong
}

async fn check_events(load: &Load<'_>, client: &mut Client<'_>, counts: &Counts) -> Result<()> {
    let journal = load.run.journal;
    let mut seen = BTreeSet::new();
    for name in ["usage.warning", "usage.limit_exceeded"] {
        for event in pages(client, &format!("/v1/events?type={name}&pageSize=1000")).await? {
            let data = &event["data"];
            let text = |name: &str| data[name].as_str().unwrap_or_default().to_owned();
            let key = (
                (text("organizationId"), text("meter"), text("periodStart")),
                (
                    name,
                    data["threshold"].as_i64().unwrap_or(0),
                    data["limit"].as_i64().unwrap_or(0),
                ),
            );
            if !seen.insert(key.clone()) {
                journal.violation(Rule::Events, format!("twice: {key:?}"));
            }
        }
    }
    let constant = [Group::Steady, Group::Hourly, Group::Reset];
    let constant = load
        .organizations
        .0
        .iter()
        .filter(|it| constant.contains(&it.group));
    let constant: BTreeSet<String> = constant.map(|it| it.id().to_string()).collect();
    for (key, used) in counts {
        if !constant.contains(&key.0) || ![HARD, SOFT].contains(&key.1.as_str()) {
            continue;
        }
        for percentage in PERCENTAGES {
            let crossed = used * 100 >= load.limit * percentage;
            let event = (key.clone(), ("usage.warning", percentage, load.limit));
            if crossed && !seen.contains(&event) {
                journal.violation(Rule::Events, format!("never: {event:?} at {used}"));
            }
        }
    }
    Ok(())
}

async fn check_gone(load: &Load<'_>, client: &mut Client<'_>, counts: &Counts) -> Result<()> {
    let (journal, setup) = (load.run.journal, load.run.setup);
    let gone: Vec<String> = load
        .ledger
        .gone
        .borrow()
        .iter()
        .map(ToString::to_string)
        .collect();
    for (id, meter, period) in counts.keys().filter(|(id, ..)| gone.contains(id)) {
        journal.violation(Rule::Deleted, format!("history has {id} {meter} {period}"));
    }
    for id in &gone {
        let usage = get(client, &format!("/v1/organizations/{id}/usage")).await?;
        if !usage.is_null() {
            journal.violation(Rule::Deleted, format!("{id} exists: {usage}"));
        }
    }
    let started = Instant::now();
    loop {
        let mut left = Vec::new();
        let keys: Vec<String> = setup.redis(&["KEYS", "tm:*:replaced-*"]).await?;
        left.extend(
            keys.into_iter()
                .filter(|key| key.split(':').any(|part| gone.iter().any(|id| id == part))),
        );
        let mut session = setup.postgres().await?;
        for table in [
            "usage_history",
            "usage_hourly",
            "limits",
            "temporary_limits",
            "standings",
            "resets",
            "adjustments",
            "pending_increments",
        ] {
            let rows = format!("select count(*) from {table} where organization_id = any($1)");
            let rows: i64 = sqlx::query_scalar(sqlx::AssertSqlSafe(rows))
                .bind(&gone)
                .fetch_one(&mut session)
                .await?;
            if rows > 0 {
                left.push(format!("{rows} rows of {table}"));
            }
        }
        if left.is_empty() {
            return Ok(());
        }
        if started.elapsed() > WAIT_MAX {
            for text in left {
                journal.violation(Rule::Deleted, format!("remains: {text}"));
            }
            return Ok(());
        }
        sleep(POLL_INTERVAL).await;
    }
}

/// All rows of a list.
async fn pages(client: &mut Client<'_>, path: &str) -> Result<Vec<Value>> {
    let (mut rows, mut cursor) = (Vec::new(), String::new());
    loop {
        let mut page = get(client, &format!("{path}{cursor}")).await?;
        if let Value::Array(data) = page["data"].take() {
            rows.extend(data);
        }
        match page["nextCursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return Ok(rows),
        }
    }
}

/// Reads until it is answered; null if it is not found.
async fn get(client: &mut Client<'_>, path: &str) -> Result<Value> {
    let started = Instant::now();
    loop {
        let settled = client.settle(&read(path.to_owned())).await?;
        match settled.answer {
            Some((200, body)) => return Ok(body),
            Some((404, _)) => return Ok(Value::Null),
            other if started.elapsed() > WAIT_MAX => bail!("cannot read {path}: {other:?}"),
            _ => sleep(POLL_INTERVAL).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use super::super::ledger::{Effect, Entry};
    use super::*;

    #[test]
    fn a_count_outside_of_its_bounds_is_found_in_its_period_and_in_the_sum() {
        let (journal, ledger) = (Journal::new(), Ledger::new(100));
        for (period, counted, unknown) in [("1", 5, 0), ("2", 7, 2)] {
            let entry = Entry {
                organization: "org".into(),
                meter: HARD,
                effect: Effect::Consume,
                counted,
                unknown,
                repeated: 0,
                period: Some(Rc::from(period)),
                queued: false,
                sent: Duration::ZERO,
                answered: Duration::ZERO,
            };
            ledger.add(entry);
        }
        let bounds = ledger.bounds(&journal);
        let bounds = &bounds[&("org".into(), HARD)];
        let wrong = |one, two| compare(bounds, &BTreeMap::from([("1", one), ("2", two)])).len();
        assert_eq!(wrong(5, 7), 0);
        assert_eq!(wrong(5, 9), 0);
        assert_eq!(wrong(7, 7), 0);
        // The unknown units are in one period only.
        assert_eq!(wrong(7, 9), 1);
        assert_eq!(wrong(4, 7), 2);
        assert_eq!(wrong(4, 9), 1);
        assert_eq!(wrong(5, 10), 2);
    }
}
