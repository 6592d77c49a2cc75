//! Steps that many tests share.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use sqlx::Row as _;

use tallyman::domain::api_key::{NewApiKey, Scope};
use tallyman::postgres::resets::{self, Outcome, ResetRequest};
use tallyman::postgres::{Actor, Postgres, api_keys};

use super::{Answer, CounterFields, Instance, World, instant, sharded};

impl World {
    /// Moves the clock forward to an instant.
    pub fn move_to(&self, time: &str) {
        let by = instant(time) - self.clock.now();
        assert!(
            by >= chrono::Duration::zero(),
            "time does not run backwards"
        );
        self.clock.advance(by);
    }

    /// The fields of a counter in Redis.
    pub async fn snapshot_of(&self, organization: &str, meter: &str, start: &str) -> CounterFields {
        self.snapshot(&key_of(organization, meter, start)).await
    }

    /// A new key with these scopes.
    pub async fn key_with(&self, scopes: &[&str]) -> String {
        let request = NewApiKey {
            name: "tests".parse().unwrap(),
            scopes: scopes
                .iter()
                .map(|scope| scope.parse::<Scope>().unwrap())
                .collect::<Vec<_>>()
                .try_into()
                .unwrap(),
            organization_id: None,
            expires_at: None,
        };
        let actor = Actor {
            name: "tests".to_owned(),
            request_id: String::new(),
        };
        let store = Postgres::new(&self.database_url, 1).unwrap();
        api_keys::create(&store, &request, &actor)
            .await
            .unwrap()
            .text
    }

    /// The first column of each row of a query.
    pub async fn select(&self, query: &'static str) -> Vec<String> {
        let rows = sqlx::query(query)
            .fetch_all(&self.postgres().await)
            .await
            .unwrap();
        rows.iter().map(|row| row.get(0)).collect()
    }
}

impl Instance {
    /// Consumes units of a meter, granted or not.
    pub async fn try_consume(&self, organization: &str, meter: &str, amount: u64) -> Answer {
        let body = json!({"organizationId": organization, "meter": meter, "amount": amount});
        self.http.post("/v1/consume", body).await
    }

    /// Tracks units of a meter; returns the new count.
    pub async fn count(&self, organization: &str, meter: &str, amount: u64) -> u64 {
        let body = json!({"organizationId": organization, "meter": meter, "amount": amount});
        let answer = self.http.post("/v1/track", body).await;
        assert_eq!(answer.status, 200, "{}", answer.text);
        answer.body["current"].as_u64().unwrap()
    }

    /// Replaces the settings of an organization.
    pub async fn settings(&self, organization: &str, settings: Value) -> Value {
        let path = format!("/v1/organizations/{organization}");
        let answer = self.http.put(&path, settings).await;
        assert_eq!(answer.status, 200, "{}", answer.text);
        answer.body
    }

    /// Changes limits of an organization; creates it if it does not exist.
    pub async fn limits(&self, organization: &str, changes: Value) -> Value {
        let known = self
            .http
            .get(&format!("/v1/organizations/{organization}"))
            .await;
        if known.status == 404 {
            self.settings(organization, json!({})).await;
        }
        let path = format!("/v1/organizations/{organization}/limits");
        let answer = self.http.patch(&path, changes).await;
        assert_eq!(answer.status, 200, "{}", answer.text);
        answer.body
    }

    /// One meter of an organization's usage, read over the API.
    pub async fn meter(&self, organization: &str, meter: &str) -> Value {
        let path = format!("/v1/organizations/{organization}/usage");
        let answer = self.http.get(&path).await;
        assert_eq!(answer.status, 200, "{}", answer.text);
        answer.body["meters"][meter].clone()
    }
}

/// The Redis key of a counter.
pub fn key_of(organization: &str, meter: &str, start: &str) -> String {
    let start = instant(start).timestamp_millis();
    sharded(organization, &format!("u:{organization}:{meter}:{start}"))
}

/// Commits a reset as a process would that dies before it writes to Redis.
pub async fn commit_reset(world: &World, organization: &str, meters: Option<&[&str]>) {
    let store = Postgres::new(&world.database_url, 1).unwrap();
    let organization = organization.parse().unwrap();
    let meters: Option<BTreeSet<_>> =
        meters.map(|meters| meters.iter().map(|meter| meter.parse().unwrap()).collect());
    let request = ResetRequest {
        organization: &organization,
        incarnation: 0,
        meters: meters.as_ref(),
        counted: &[],
        reason: None,
        idempotency: None,
        dry_run: false,
    };
    let actor = Actor {
        name: "tests".to_owned(),
        request_id: String::new(),
    };
    let outcome = resets::commit(&store, &request, &actor, world.clock.now()).await;
    assert!(matches!(outcome, Ok(Outcome::Committed { .. })));
}

/// A key that does not exist.
pub fn made_up_key(number: u64) -> String {
    format!("tm_{number:016x}_{}", "0".repeat(64))
}
