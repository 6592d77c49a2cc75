//! Records what was sent for each organization and how the service responded, and compares that with its counts.
//!
//! A count agrees if it has grown by at least the acknowledged units, and by at most the acknowledged units plus those
//! with an unknown outcome. Requires that nobody else uses the organizations meanwhile and that no period ends.

use std::cell::{Cell, RefCell};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use futures::future::try_join_all;
use http_body_util::Full;
use serde::Serialize;
use serde_json::Value;
use tokio::time::sleep;

use crate::http::{Connection, Target};
use crate::requests::organization;

/// How long usage may be inexact or unavailable before the audit fails.
const WAIT_MAX: Duration = Duration::from_mins(1);

/// Between two attempts to read a count.
const PAUSE: Duration = Duration::from_millis(50);

/// Counts that are read concurrently.
const READERS: usize = 32;

/// Differences that are listed.
const SHOWN_MAX: usize = 20;

/// The expected counts of all organizations.
#[derive(Debug)]
pub(crate) struct Ledger {
    /// Units of each call or item.
    amount: u64,
    entries: Vec<Entry>,
}

/// Units of one organization.
#[derive(Debug, Clone, Copy, Default)]
struct Entry {
    /// Counted before the first request.
    before: u64,
    acknowledged: u64,
    refused: u64,
    /// Without a response, or with an error that leaves the outcome open.
    unknown: u64,
}

/// The result of an audit.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Verdict {
    pub(crate) organizations: usize,
    pub(crate) acknowledged: u64,
    pub(crate) refused: u64,
    pub(crate) unknown: u64,
    /// Organizations whose count differs.
    pub(crate) differing: usize,
    /// The first of them.
    pub(crate) differences: Vec<Difference>,
}

/// An impossible count.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Difference {
    pub(crate) organization_id: String,
    pub(crate) current: u64,
    /// The lowest and the highest possible count.
    pub(crate) least: u64,
    pub(crate) most: u64,
}

impl Ledger {
    /// Starts with the current counts.
    pub(crate) async fn open(target: &Target, organizations: u32, amount: u64) -> Result<Self> {
        let entries = read(target, organizations)
            .await?
            .into_iter()
            .map(|before| Entry {
                before,
                ..Entry::default()
            })
            .collect();
        Ok(Self { amount, entries })
    }

    /// An item for each of these organizations is sent; until the response its outcome is unknown.
    pub(crate) fn sent(&mut self, organizations: &[u32]) {
        for organization in organizations {
            let amount = self.amount;
            self.entry(*organization).unknown += amount;
        }
    }

    /// The response to an item has arrived.
    pub(crate) fn settled(&mut self, organization: u32, status: u16) {
        let amount = self.amount;
        let entry = self.entry(organization);
        match status {
            200 | 204 => entry.acknowledged += amount,
            429 => entry.refused += amount,
            // Nothing was counted.
            400..=499 | 503 => {}
            _ => return,
        }
        entry.unknown -= amount;
    }

    fn entry(&mut self, organization: u32) -> &mut Entry {
        &mut self.entries[organization as usize]
    }

    /// Compares with the current counts.
    pub(crate) async fn compare(&self, target: &Target) -> Result<Verdict> {
        let organizations = u32::try_from(self.entries.len())?;
        let counts = read(target, organizations).await?;
        let mut differences = Vec::new();
        for ((number, entry), current) in (0..organizations).zip(&self.entries).zip(counts) {
            let least = entry.before + entry.acknowledged;
            let most = least + entry.unknown;
            if !(least..=most).contains(&current) {
                differences.push(Difference {
                    organization_id: organization(number),
                    current,
                    least,
                    most,
                });
            }
        }
        let sum = |of: fn(&Entry) -> u64| self.entries.iter().map(of).sum();
        let differing = differences.len();
        differences.truncate(SHOWN_MAX);
        Ok(Verdict {
            organizations: self.entries.len(),
            acknowledged: sum(|entry| entry.acknowledged),
            refused: sum(|entry| entry.refused),
            unknown: sum(|entry| entry.unknown),
            differing,
            differences,
        })
    }
}

/// The count of each organization.
async fn read(target: &Target, organizations: u32) -> Result<Vec<u64>> {
    let next = Cell::new(0);
    let counts = RefCell::new(vec![0; organizations as usize]);
    try_join_all((0..READERS).map(async |_| {
        let mut connection = Connection::new(target);
        loop {
            let number = next.replace(next.get() + 1);
            if number >= organizations {
                return anyhow::Ok(());
            }
            let count = read_one(&mut connection, target, number).await?;
            counts.borrow_mut()[number as usize] = count;
        }
    }))
    .await?;
    Ok(counts.into_inner())
}

/// Reads the usage until it is exact.
async fn read_one(connection: &mut Connection, target: &Target, number: u32) -> Result<u64> {
    let path = format!("/v1/organizations/{}/usage", organization(number));
    let request = target.request("GET", &path)?;
    let start = Instant::now();
    loop {
        let why = match connection
            .send(request.clone().map(|()| Full::default()))
            .await
        {
            Ok(response) if response.status == 404 => return Ok(0),
            Ok(response) if response.status == 200 => {
                let usage: Value =
                    serde_json::from_slice(&response.body).context("usage is not JSON")?;
                if usage["exact"] == true {
                    let current = &usage["meters"]["api"]["current"];
                    return current.as_u64().context("usage without a count");
                }
                "it is not exact".to_owned()
            }
            Ok(response) if response.status < 500 => {
                bail!(
                    "cannot read usage: {path} responds with {}",
                    response.status
                )
            }
            Ok(response) => format!("status {}", response.status),
            Err(cause) => cause.to_string(),
        };
        if start.elapsed() > WAIT_MAX {
            bail!("cannot read usage: {why}");
        }
        sleep(PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_unknown_until_the_response() {
        let mut ledger = Ledger {
            amount: 3,
            entries: vec![Entry::default()],
        };
        ledger.sent(&[0, 0, 0, 0, 0]);
        ledger.settled(0, 200);
        ledger.settled(0, 429);
        ledger.settled(0, 503);
        ledger.settled(0, 504);
        let entry = ledger.entries[0];
        let units = (entry.acknowledged, entry.refused, entry.unknown);
        assert_eq!(units, (3, 3, 6));
    }
}
