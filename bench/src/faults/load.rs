//! The load of a run: clients that count, and clients that change and read.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

use anyhow::Result;
use futures::future::{join, try_join_all};
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::{Value, json};
use tokio::time::sleep;

use super::client::{Call, Class, Client, Run, Settled};
use super::counting::{Charge, HARD, OPEN, SOFT, batch, items, record, record_batch};
use super::ledger::{Closed, Deletion, Effect, Entry, Ledger};
use super::organizations::{Group, Organization, Organizations};

/// How long the last calls are repeated after the end.
const LAST: Duration = Duration::from_secs(20);

/// What is not counted by this time is not known.
const NEVER: Duration = Duration::MAX;

/// Pauses between two calls of a client, in milliseconds.
const COUNTING_PAUSE: std::ops::Range<u64> = 20..180;
const CHANGING_PAUSE: std::ops::Range<u64> = 100..500;

/// A load in progress.
pub(super) struct Load<'a> {
    pub(super) run: &'a Run<'a>,
    pub(super) ledger: &'a Ledger,
    pub(super) organizations: Organizations,
    /// The hard limit.
    pub(super) limit: i64,
    pub(super) seed: u64,
    serial: Cell<u64>,
    /// When a call of an organization and a meter was last decided.
    decided: RefCell<HashMap<(Rc<str>, &'static str), Duration>>,
}

impl<'a> Load<'a> {
    pub(super) fn new(run: &'a Run<'a>, ledger: &'a Ledger, limit: i64, seed: u64) -> Self {
        Self {
            run,
            ledger,
            organizations: Organizations::new(),
            limit,
            seed,
            serial: Cell::new(0),
            decided: RefCell::default(),
        }
    }

    /// Creates the organizations that are not as by default; `anchor` is an end of hourly periods.
    pub(super) async fn prepare(&self, anchor: String) -> Result<()> {
        let mut client = self.client(0);
        let plan = json!({"limits": {
            HARD: {"limit": self.limit, "enforcement": "hard"},
            SOFT: {"limit": self.limit, "enforcement": "soft"},
        }});
        client
            .settle(&change("PUT", "/v1/plans/free".to_owned(), Some(plan)))
            .await?;
        for organization in &self.organizations.0 {
            let number = organization.id().ends_with(['0', '2', '4', '6', '8']);
            let settings = match (organization.group, number) {
                (Group::Hourly, true) => {
                    json!({"resetPeriod": "hourly", "anchor": anchor, "resetMode": "scheduled"})
                }
                (Group::Hourly, false) => json!({"resetPeriod": "hourly", "anchor": anchor}),
                (Group::Admitted, _) => json!({"limits": {
                    HARD: {"limit": self.limit, "enforcement": "hard", "onOutage": "allow"},
                    OPEN: {"onOutage": "allow"},
                }}),
                (Group::Limit, _) => json!({}),
                _ => continue,
            };
            let path = format!("/v1/organizations/{}", organization.id());
            client.settle(&change("PUT", path, Some(settings))).await?;
        }
        // From now on Redis knows all organizations and meters.
        for organization in &self.organizations.0 {
            let charge = Charge::first(&organization.id());
            let settled = client.settle(&charge.call(Class::Other, None)).await?;
            record(self.ledger, self.run.journal, &charge, &settled);
        }
        Ok(())
    }

    /// Calls until the run ends.
    pub(super) async fn run(&self, counting: u64, changing: u64) -> Result<()> {
        let counting = try_join_all((0..counting).map(|number| self.count(number)));
        let changing = try_join_all((0..changing).map(|number| self.change(1000 + number)));
        let (counted, changed) = join(counting, changing).await;
        counted.and(changed).map(drop)
    }

    /// Ends the load; calls of unknown outcome are repeated for a while.
    pub(super) fn end(&self) {
        self.run.end.set(Some(self.run.journal.now() + LAST));
    }

    fn client(&self, number: u64) -> Client<'a> {
        let seed = self.seed.wrapping_mul(1_000_003).wrapping_add(number);
        Client::new(self.run, SmallRng::seed_from_u64(seed))
    }

    fn is_over(&self) -> bool {
        self.run.end.get().is_some()
    }

    fn key(&self) -> String {
        let serial = self.serial.get();
        self.serial.set(serial + 1);
        format!("key-{serial}")
    }

    async fn count(&self, number: u64) -> Result<()> {
        let mut client = self.client(number);
        while !self.is_over() {
            let key = (client.random.random_range(0..100) < 60).then(|| self.key());
            if client.random.random_range(0..10) == 0 {
                self.count_batch(&mut client, key).await?;
            } else {
                let organization = self.organizations.any(&mut client.random);
                let charge = Charge::random(&organization.id(), &mut client.random);
                let class = match organization.group {
                    Group::Steady => self.class([&charge]),
                    _ => Class::Other,
                };
                let call = charge.call(class, key);
                organization.calls.update(|it| it + 1);
                let settled = client.settle(&call).await;
                organization.calls.update(|it| it - 1);
                let settled = settled?;
                self.note([&charge], &settled);
                record(self.ledger, self.run.journal, &charge, &settled);
            }
            let pause = client.random.random_range(COUNTING_PAUSE);
            sleep(Duration::from_millis(pause)).await;
        }
        Ok(())
    }

    async fn count_batch(&self, client: &mut Client<'_>, key: Option<String>) -> Result<()> {
        let items = items(&mut client.random, |random| {
            self.organizations.of(Group::Steady, random).id()
        });
        let call = batch(&items, self.class(&items), key);
        let settled = client.settle(&call).await?;
        self.note(&items, &settled);
        record_batch(self.ledger, self.run.journal, &items, &settled);
        Ok(())
    }

    /// Whether Redis knows all counters of these calls.
    fn class<'c>(&self, charges: impl IntoIterator<Item = &'c Charge>) -> Class {
        let (decided, since) = (self.decided.borrow(), self.run.journal.redis_changed.get());
        let mut counters = charges.into_iter().flat_map(Charge::counters);
        if counters.all(|counter| decided.get(&counter).is_some_and(|at| *at > since)) {
            Class::Known
        } else {
            Class::Other
        }
    }

    /// Notes that these calls were decided, if they were.
    fn note<'c>(&self, charges: impl IntoIterator<Item = &'c Charge>, settled: &Settled) {
        let is_decided = |status: u64| matches!(status, 200 | 429);
        let Some((status, body)) = &settled.answer else {
            return;
        };
        let mut items = body["results"].as_array().into_iter().flatten();
        let all = items.all(|item| item["status"].as_u64().is_none_or(is_decided));
        if is_decided(u64::from(*status)) && all {
            let counters = charges.into_iter().flat_map(Charge::counters);
            let decided = counters.map(|counter| (counter, settled.sent));
            self.decided.borrow_mut().extend(decided);
        }
    }

    async fn change(&self, number: u64) -> Result<()> {
        let mut client = self.client(number);
        while !self.is_over() {
            match client.random.random_range(0..100) {
                0..10 => self.reset(&mut client).await?,
                10..25 => self.set_limit(&mut client).await?,
                25..40 => self.adjust(&mut client).await?,
                40..43 => self.delete(&mut client).await?,
                43..48 => self.replace(&mut client).await?,
                48..65 => {
                    let serial = self.serial.replace(self.serial.get() + 1);
                    let charge = Charge::consume(&format!("new-{serial}").into());
                    let call = charge.call(Class::Other, Some(self.key()));
                    let settled = client.settle(&call).await?;
                    record(self.ledger, self.run.journal, &charge, &settled);
                }
                _ => self.read(&mut client).await?,
            }
            let pause = client.random.random_range(CHANGING_PAUSE);
            sleep(Duration::from_millis(pause)).await;
        }
        Ok(())
    }

    async fn read(&self, client: &mut Client<'_>) -> Result<()> {
        let id = self.organizations.any(&mut client.random).id();
        let path = match client.random.random_range(0..6) {
            0 => format!("/v1/organizations/{id}/history?granularity=hour"),
            1 => "/v1/history?granularity=period".to_owned(),
            2 => format!("/v1/organizations/{id}/limits"),
            3 => format!("/v1/audit?organizationId={id}"),
            _ => format!("/v1/organizations/{id}/usage"),
        };
        client.settle(&read(path)).await?;
        Ok(())
    }

    async fn set_limit(&self, client: &mut Client<'_>) -> Result<()> {
        let organization = self.organizations.of(Group::Limit, &mut client.random);
        // No limit comes twice, so that an event tells under which limit its threshold was crossed.
        let number = organization.changes.get() + 1;
        organization.changes.set(number);
        let limit = self.limit + if number % 2 == 0 { 5 * number } else { -number };
        let limit = limit.max(1);
        let id = organization.id();
        self.ledger.request_limit(&id, limit);
        let path = format!("/v1/organizations/{id}/limits");
        let body = json!({HARD: {"limit": limit}});
        client.settle(&change("PATCH", path, Some(body))).await?;
        Ok(())
    }

    async fn reset(&self, client: &mut Client<'_>) -> Result<()> {
        let organization = self.organizations.of(Group::Reset, &mut client.random).id();
        let meters = [HARD, SOFT, OPEN][client.random.random_range(0..3)];
        let path = format!("/v1/organizations/{organization}/reset");
        let mut call = change("POST", path, Some(json!({"meters": [meters]})));
        call.key = Some(self.key());
        let settled = client.settle(&call).await?;
        let Some((200, body)) = settled.answer else {
            return Ok(());
        };
        for (meter, result) in body["meters"].as_object().into_iter().flatten() {
            let (period, count) = (&result["previousPeriodStart"], &result["previousCount"]);
            if let (Some(period), Some(count)) = (period.as_str(), count.as_i64()) {
                self.ledger.closed.borrow_mut().push(Closed {
                    organization: Rc::clone(&organization),
                    meter: meter.clone(),
                    period: period.to_owned(),
                    count,
                });
            }
        }
        Ok(())
    }

    async fn adjust(&self, client: &mut Client<'_>) -> Result<()> {
        let organization = self
            .organizations
            .of(Group::Adjusted, &mut client.random)
            .id();
        let meter = [HARD, OPEN][client.random.random_range(0..2)];
        let mut amount = client.random.random_range(-5..=5);
        if amount == 0 {
            amount = 1;
        }
        let path = format!("/v1/organizations/{organization}/adjust");
        let body = json!({"meter": meter, "amount": amount, "reason": "a test of faults"});
        let mut call = change("POST", path, Some(body));
        call.key = Some(self.key());
        let settled = client.settle(&call).await?;
        let Settled {
            answer, unknown, ..
        } = &settled;
        let known = answer.as_ref().filter(|(status, _)| *status == 200);
        let result = known.map_or(&Value::Null, |(_, body)| body);
        let entry = Entry {
            organization,
            meter,
            effect: Effect::Adjust,
            counted: result["applied"].as_i64().unwrap_or(0),
            unknown: if answer.is_none() && *unknown > 0 {
                amount
            } else {
                0
            },
            repeated: 0,
            period: result["periodStart"].as_str().map(Rc::from),
            queued: false,
            sent: settled.sent,
            answered: settled.answered,
        };
        self.ledger.add(entry);
        Ok(())
    }

    /// Deletes an organization, which is called meanwhile and afterwards.
    async fn delete(&self, client: &mut Client<'_>) -> Result<()> {
        let organization = self.organizations.of(Group::Reborn, &mut client.random);
        self.delete_now(client, organization).await.map(drop)
    }

    /// Deletes an organization after its last call; another one takes its place.
    async fn replace(&self, client: &mut Client<'_>) -> Result<()> {
        let organization = self.organizations.of(Group::Replaced, &mut client.random);
        if organization.is_leaving.replace(true) {
            return Ok(());
        }
        while organization.calls.get() > 0 {
            sleep(Duration::from_millis(10)).await;
        }
        let id = organization.id();
        if self.delete_now(client, organization).await? {
            self.ledger.gone.borrow_mut().push(id);
        }
        organization.replace();
        organization.is_leaving.set(false);
        Ok(())
    }

    async fn delete_now(
        &self,
        client: &mut Client<'_>,
        organization: &Organization,
    ) -> Result<bool> {
        let organization = organization.id();
        let path = format!("/v1/organizations/{organization}");
        let settled = client.settle(&change("DELETE", path, None)).await?;
        let is_known = settled.answer.is_some();
        self.ledger.deletions.borrow_mut().push(Deletion {
            organization,
            sent: settled.sent,
            answered: if is_known { settled.answered } else { NEVER },
        });
        Ok(is_known)
    }
}

/// A read.
pub(super) fn read(path: String) -> Call {
    Call {
        class: Class::Other,
        method: "GET",
        path,
        body: None,
        key: None,
        is_change: false,
    }
}

fn change(method: &'static str, path: String, body: Option<Value>) -> Call {
    Call {
        class: Class::Other,
        method,
        path,
        body,
        key: None,
        is_change: true,
    }
}
