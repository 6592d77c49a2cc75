//! Calls that count, and what their answers say.

use std::rc::Rc;

use rand::RngExt as _;
use rand::rngs::SmallRng;
use serde_json::{Map, Value, json};

use super::client::{Call, Class, Settled};
use super::journal::{Journal, Rule};
use super::ledger::{Effect, Entry, Ledger};

/// The meters: one with a hard limit, one with a soft one, and one without.
pub(super) const HARD: &str = "api";
pub(super) const SOFT: &str = "soft";
pub(super) const OPEN: &str = "open";

/// Items of a batch.
const ITEMS: usize = 10;

/// A call, or an item of a batch.
#[derive(Debug, Clone)]
pub(super) struct Charge {
    path: &'static str,
    organization: Rc<str>,
    units: Vec<(&'static str, i64)>,
}

impl Charge {
    /// One unit of a meter with a hard limit.
    pub(super) fn consume(organization: &Rc<str>) -> Self {
        Self {
            path: "consume",
            organization: Rc::clone(organization),
            units: vec![(HARD, 1)],
        }
    }

    /// A unit of every meter.
    pub(super) fn first(organization: &Rc<str>) -> Self {
        Self {
            path: "consume",
            organization: Rc::clone(organization),
            units: [HARD, SOFT, OPEN].map(|meter| (meter, 1)).to_vec(),
        }
    }

    /// Any call. Nothing is tracked where a hard limit is, so that it holds.
    pub(super) fn random(organization: &Rc<str>, random: &mut SmallRng) -> Self {
        let mut units = random.random_range(1..=3);
        let (path, meters): (_, &[_]) = match random.random_range(0..100) {
            0..35 => ("consume", &[HARD]),
            35..45 => ("consume", &[SOFT]),
            45..55 => ("consume", &[HARD, SOFT]),
            55..65 => ("track", &[SOFT]),
            65..80 => ("track", &[OPEN]),
            80..84 => ("refund", &[HARD]),
            84..88 => ("refund", &[OPEN]),
            _ => ("check", &[HARD]),
        };
        let charge = |meter: &&'static str| {
            units += 1;
            (*meter, units)
        };
        Self {
            path,
            organization: Rc::clone(organization),
            units: meters.iter().map(charge).collect(),
        }
    }

    /// Its organization and meters.
    pub(super) fn counters(&self) -> impl Iterator<Item = (Rc<str>, &'static str)> {
        let meters = self.units.iter().map(|(meter, _)| *meter);
        meters.map(|meter| (Rc::clone(&self.organization), meter))
    }

    fn effect(&self) -> Option<Effect> {
        match self.path {
            "consume" => Some(Effect::Consume),
            "track" => Some(Effect::Track),
            "refund" => Some(Effect::Refund),
            _ => None,
        }
    }

    fn fields(&self) -> Map<String, Value> {
        let mut fields = Map::new();
        fields.insert("organizationId".to_owned(), json!(&*self.organization));
        if let [(meter, units)] = self.units[..] {
            fields.insert("meter".to_owned(), json!(meter));
            fields.insert("amount".to_owned(), json!(units));
        } else {
            let meters = self
                .units
                .iter()
                .map(|(meter, units)| ((*meter).to_owned(), json!(units)));
            fields.insert("meters".to_owned(), Value::Object(meters.collect()));
        }
        fields
    }

    pub(super) fn call(&self, class: Class, key: Option<String>) -> Call {
        Call {
            class,
            method: "POST",
            path: format!("/v1/{}", self.path),
            body: Some(Value::Object(self.fields())),
            key,
            is_change: false,
        }
    }
}

/// Items of tracks and consumes.
pub(super) fn batch(items: &[Charge], class: Class, key: Option<String>) -> Call {
    let items = items.iter().map(|item| {
        let mut fields = item.fields();
        fields.insert("op".to_owned(), json!(item.path));
        Value::Object(fields)
    });
    Call {
        class,
        method: "POST",
        path: "/v1/batch".to_owned(),
        body: Some(json!({"items": items.collect::<Vec<_>>()})),
        key,
        is_change: false,
    }
}

/// The items of a batch for these organizations.
pub(super) fn items(
    random: &mut SmallRng,
    mut organization: impl FnMut(&mut SmallRng) -> Rc<str>,
) -> Vec<Charge> {
    let mut items = Vec::new();
    while items.len() < ITEMS {
        let item = Charge::random(&organization(random), random);
        if matches!(item.path, "consume" | "track") {
            items.push(item);
        }
    }
    items
}

/// Records what is known of one call after its last answer.
pub(super) fn record(ledger: &Ledger, journal: &Journal, charge: &Charge, settled: &Settled) {
    let (status, body) = match &settled.answer {
        Some((status, body)) => (Some(*status), body),
        None => (None, &Value::Null),
    };
    record_one(ledger, journal, charge, settled, status, body);
}

/// Records what is known of each item of a batch.
pub(super) fn record_batch(
    ledger: &Ledger,
    journal: &Journal,
    items: &[Charge],
    settled: &Settled,
) {
    let status = settled.answer.as_ref().map(|(status, _)| *status);
    let results = settled
        .answer
        .as_ref()
        .and_then(|(_, body)| body["results"].as_array());
    if status == Some(200) && results.is_none_or(|results| results.len() != items.len()) {
        journal.violation(Rule::Answers, "a batch has other results than items");
    }
    for (index, item) in items.iter().enumerate() {
        let result = results
            .and_then(|results| results.get(index))
            .unwrap_or(&Value::Null);
        let own = result["status"]
            .as_u64()
            .and_then(|it| u16::try_from(it).ok());
        record_one(ledger, journal, item, settled, own.or(status), result);
    }
}

fn record_one(
    ledger: &Ledger,
    journal: &Journal,
    charge: &Charge,
    settled: &Settled,
    status: Option<u16>,
    body: &Value,
) {
    ledger.calls.update(|calls| calls + 1);
    let Some(effect) = charge.effect() else {
        return;
    };
    let is_unknown = matches!(status, None | Some(500 | 504));
    for (meter, units) in &charge.units {
        let units = if effect == Effect::Refund {
            -units
        } else {
            *units
        };
        let result = match charge.units.len() {
            1 => body,
            _ => &body["meters"][meter],
        };
        let applied = result["applied"].as_i64().map(|it| -it);
        let is_queued = result["queued"] == true || body["queued"] == true;
        // A reset may close the period before the units are counted, which are then in the next one.
        let period = result["periodStart"].as_str().filter(|_| !is_queued);
        let period = period.map(Rc::from);
        let counted = match status {
            Some(200) => applied.unwrap_or(units),
            _ => 0,
        };
        if status == Some(200) && period.is_none() && !is_queued {
            journal.violation(Rule::Answers, format!("an answer without a period: {body}"));
        }
        let entry = Entry {
            organization: Rc::clone(&charge.organization),
            meter,
            effect,
            counted,
            unknown: if is_unknown && settled.unknown > 0 || matches!(status, Some(500 | 504)) {
                units
            } else {
                0
            },
            repeated: units
                * if is_unknown {
                    (settled.unknown - 1).max(0)
                } else {
                    settled.unknown
                },
            period,
            queued: is_queued,
            sent: settled.sent,
            answered: settled.answered,
        };
        check_grant(journal, &entry, result);
        ledger.add(entry);
    }
}

/// A granted consume is within a hard limit.
fn check_grant(journal: &Journal, entry: &Entry, result: &Value) {
    let granted = entry.effect == Effect::Consume && entry.counted > 0 && !entry.queued;
    if !granted || result["enforcement"] != "hard" {
        return;
    }
    if let (Some(current), Some(limit)) = (result["current"].as_i64(), result["limit"].as_i64())
        && current > limit
    {
        let at = entry.sent.as_secs_f64();
        journal.violation(
            Rule::Granted,
            format!("at {at:.3} s, beyond the limit: {result}"),
        );
    }
}
