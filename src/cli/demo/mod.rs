//! `tallyman demo`: fills a running `tallyman dev` with a year of invented usage, so that there is something to look at.
//!
//! Plans, organizations, keys and webhooks, resets and adjustments go through the HTTP API, and so does the usage of the present
//! hour; the year before it is written to Postgres.

mod fleet;
mod usage;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use axum::Router;
use axum::routing::post;
use chrono::{DateTime, Days, SecondsFormat, Utc};
use clap::Args;
use fastrand::Rng;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio::time::sleep;
use tokio_util::task::TaskTracker;

use super::dev::Running;
use super::service::{Service, print};
use crate::clock::Clock;
use crate::postgres::Postgres;
use crate::postgres::demo::{Past, PastPlanChange, write};
use fleet::{Member, PLANS, fleet};

/// How many requests are sent at once.
const CONCURRENCY: usize = 8;

/// How often, and how many times, it looks whether something has happened.
const POLL_INTERVAL: Duration = Duration::from_millis(200);
const POLLS: usize = 600;

/// Options of `tallyman demo`.
#[derive(Debug, Args)]
pub(super) struct Options {
    /// Data directory of the running `tallyman dev`
    #[arg(
        long,
        env = "TALLYMAN_DATA_DIR",
        value_name = "DIR",
        default_value = ".tallyman"
    )]
    data_dir: PathBuf,
}

/// Runs `tallyman demo`.
pub(super) async fn run(options: Options, clock: &Clock) -> Result<()> {
    let started = Instant::now();
    let (running, key) = Running::read(&options.data_dir)?;
    let service = Service::new(running.url.parse()?, key, false)?;
    let now = clock.now();
    let members = fleet(now);
    if let Some(first) = members.first()
        && service.find(&["organizations", &first.id]).await?.is_some()
    {
        bail!(
            "the demo is in this service already; to start again, stop `tallyman dev` and remove {}",
            options.data_dir.display()
        );
    }
    configure(&service, &members, now).await?;
    let pasts = pasts(&members, now)?;
    let postgres = Postgres::new(&running.database_url, 1)?;
    write(&postgres, &pasts, now).await?;
    postgres.close().await;
    let receiver = Receiver::start().await?;
    administer(&service, &members, &receiver, now).await?;
    count(&service, &members).await?;
    until_listed(&service).await?;
    receiver.stop(&service).await?;
    let periods: usize = pasts.iter().map(|past| past.periods.len()).sum();
    let hours = pasts.iter().flat_map(|past| &past.periods);
    let hours: usize = hours.map(|period| period.hours.len()).sum();
    print(&format!(
        "Filled {} with {} organizations, {periods} periods and {hours} hours in {:.0} s.\n\n  Look at   {}/dashboard\n  sign in   with the key in {}\n  find out  who is about to hit the limit, and why\n",
        running.url,
        members.len(),
        started.elapsed().as_secs_f64(),
        running.url,
        options.data_dir.join("admin-key").display(),
    ))
}

/// Creates plans and organizations.
async fn configure(service: &Service, members: &[Member], now: DateTime<Utc>) -> Result<()> {
    for plan in &PLANS {
        let body = plan.body();
        service
            .call(Method::PUT, &["plans", plan.id], &[], Some(&body))
            .await?;
    }
    let create = async |member: &Member| {
        let body = member.body(now);
        let path = ["organizations", member.id.as_str()];
        service.call(Method::PUT, &path, &[], Some(&body)).await?;
        anyhow::Ok(())
    };
    stream::iter(members)
        .map(create)
        .buffer_unordered(CONCURRENCY)
        .try_collect()
        .await
}

/// The year before the present hour.
fn pasts(members: &[Member], now: DateTime<Utc>) -> Result<Vec<Past>> {
    let mut random = Rng::with_seed(1);
    let past = |member: &Member| {
        let mut periods = Vec::new();
        for meter in &member.meters {
            periods.extend(usage::history(member, *meter, now, &mut random)?);
        }
        let changes = member.plans.iter().zip(member.plans.iter().skip(1));
        Ok(Past {
            organization: member.id.parse()?,
            joined: member.joined,
            plan_changes: changes
                .map(|(before, after)| PastPlanChange {
                    at: after.at,
                    before: before.plan.id,
                    after: after.plan.id,
                })
                .collect(),
            periods,
        })
    };
    members.iter().map(past).collect()
}

/// Makes the changes that an administrator makes now and then.
async fn administer(
    service: &Service,
    members: &[Member],
    receiver: &Receiver,
    now: DateTime<Utc>,
) -> Result<()> {
    let post =
        async |path: &[&str], body: Value| service.call(Method::POST, path, &[], Some(&body)).await;
    for (name, scopes) in [
        ("Auth server", &["ingest"][..]),
        ("Grafana", &["read"]),
        ("Support desk", &["read"]),
    ] {
        post(&["api-keys"], json!({"name": name, "scopes": scopes})).await?;
    }
    let url = receiver.url("/billing");
    post(
        &["webhooks"],
        json!({"url": url, "events": ["usage.warning", "usage.limit_exceeded", "usage.reset"]}),
    )
    .await?;
    let chat = post(&["webhooks"], json!({"url": receiver.url("/chat")})).await?;
    let id = chat["id"].as_str().context("a webhook has no id")?;
    post(&["webhooks", id, "test"], json!({})).await?;
    for (index, days, percent) in [(29, 5, 150), (70, 7, 130), (129, 3, 200)] {
        let member = &members[index];
        let limit = member.plan(now).limit("api") * percent / 100;
        let until = (now + Days::new(days)).to_rfc3339_opts(SecondsFormat::Secs, true);
        let body = json!({"api": {"temporary": {"limit": limit, "until": until}}});
        let path = ["organizations", &member.id, "limits"];
        service.call(Method::PATCH, &path, &[], Some(&body)).await?;
    }
    for (index, reason) in [(12, "moved to a yearly contract"), (81, "outage in May")] {
        let path = ["organizations", &members[index].id, "reset"];
        post(&path, json!({"meters": ["api"], "reason": reason})).await?;
    }
    for (index, amount, reason) in [
        (29, -40, "calls that failed on our side"),
        (60, 250, "calls of the old gateway"),
    ] {
        let path = ["organizations", &members[index].id, "adjust"];
        let body = json!({"meter": "api", "amount": amount, "reason": reason});
        post(&path, body).await?;
    }
    Ok(())
}

/// Counts in the present hour, as auth servers do.
async fn count(service: &Service, members: &[Member]) -> Result<()> {
    let mut random = Rng::with_seed(2);
    let mut items = Vec::new();
    for member in members {
        for (meter, _) in &member.meters {
            for _ in 0..random.u8(1..12) {
                items.push(json!({
                    "op": "consume",
                    "idempotencyKey": format!("demo-{}", items.len()),
                    "organizationId": member.id,
                    "meter": meter,
                    "amount": if *meter == "tokens" { random.u16(200..4000) } else { 1 },
                }));
            }
        }
    }
    random.shuffle(&mut items);
    for _ in 0..POLLS {
        let body = json!({ "items": items });
        let counted = service.call(Method::POST, &["batch"], &[], Some(&body));
        let counted = counted.await?;
        let results = counted["results"].as_array().into_iter().flatten();
        // On a slow machine, some may be refused because others wait for too long.
        let failed = results.filter(|it| it["status"].as_u64().is_some_and(|it| it >= 500));
        let failed = failed.filter_map(|it| {
            let index = usize::try_from(it["index"].as_u64()?).ok()?;
            items.get(index).cloned()
        });
        items = failed.collect();
        if items.is_empty() {
            return Ok(());
        }
        sleep(POLL_INTERVAL).await;
    }
    bail!("the service does not count; see its log")
}

/// Waits until the list of organizations shows what was counted, and who runs out, which takes a flush.
async fn until_listed(service: &Service) -> Result<()> {
    let rows = async |query: &[(&str, &str)]| {
        let listed = service.call(Method::GET, &["organizations"], query, None);
        anyhow::Ok(listed.await?["data"].as_array().map_or(0, Vec::len))
    };
    for _ in 0..POLLS {
        let exceeded = rows(&[("state", "exceeded")]).await?;
        if exceeded > 1 && rows(&[("sort", "exhausted")]).await? > 0 {
            return Ok(());
        }
        sleep(POLL_INTERVAL).await;
    }
    bail!("the service has not stored what was counted; see its log")
}

/// Receives the webhooks of the demo while it runs.
struct Receiver {
    base: String,
    serving: JoinHandle<std::io::Result<()>>,
}

impl Receiver {
    async fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let base = format!("http://{}", listener.local_addr()?);
        let routes = Router::new().route("/{name}", post(async || "received"));
        let serving = TaskTracker::new().spawn(axum::serve(listener, routes).into_future());
        Ok(Self { base, serving })
    }

    fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }

    /// Waits until each webhook has received something, and disables the webhooks, because nobody receives them from now on.
    async fn stop(self, service: &Service) -> Result<()> {
        let webhooks = service.pages(&["webhooks"], |_| {}).await?;
        let ids = webhooks.iter().filter_map(|it| it["id"].as_str());
        for id in ids {
            let path = ["webhooks", id, "deliveries"];
            for _ in 0..POLLS {
                let deliveries = service.call(Method::GET, &path, &[], None).await?;
                let deliveries = deliveries["data"].as_array();
                let is_pending = |it: &Value| it["status"] == "pending";
                if deliveries.is_some_and(|all| !all.is_empty() && !all.iter().any(is_pending)) {
                    break;
                }
                sleep(POLL_INTERVAL).await;
            }
            let disabled = json!({"enabled": false});
            service
                .call(Method::PATCH, &["webhooks", id], &[], Some(&disabled))
                .await?;
        }
        self.serving.abort();
        Ok(())
    }
}
