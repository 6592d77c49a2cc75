//! What is sent: whole requests, rendered once, in which only the digits of organizations and of
//! idempotency keys are replaced before each use.

use std::fmt::Write as _;

use clap::ValueEnum;
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use rand_distr::{Distribution as _, Zipf};

use crate::http::Target;

/// How many digits the number of an organization has.
const DIGITS: usize = 7;

/// The most organizations that fit into them.
pub(crate) const ORGANIZATIONS_MAX: u32 = 10_000_000;

/// What is done to an organization.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Op {
    /// Counts if it fits
    Consume,
    /// Counts always
    Track,
    /// Asks, and counts nothing
    Check,
}

impl Op {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Consume => "consume",
            Self::Track => "track",
            Self::Check => "check",
        }
    }
}

/// How the items of a batch are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// One document
    Json,
    /// One item a line
    Ndjson,
}

/// Which organization is next.
#[derive(Debug, Clone, Copy, PartialEq, ValueEnum)]
pub(crate) enum Spread {
    /// One after the other
    Turns,
    /// Each as likely as any other
    Uniform,
    /// Few of them most of the time
    Zipf,
}

/// What the requests of one load have in common.
#[derive(Debug, Clone)]
pub(crate) struct Shape {
    pub(crate) op: Op,
    /// Units of each item.
    pub(crate) amount: u64,
    /// Whether each request has an idempotency key of its own.
    pub(crate) keyed: bool,
    /// None for the call itself, else how many items of it a batch has, and how they are written.
    pub(crate) batch: Option<(usize, Format)>,
}

/// The name of an organization, as it stands in requests.
pub(crate) fn organization(number: u32) -> String {
    format!("org_{number:0DIGITS$}")
}

/// A rendered request.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    bytes: Vec<u8>,
    /// Where the digits of the organizations are, one place an item.
    organizations_at: Vec<usize>,
    /// Where the digits of the idempotency key are.
    key_at: Option<usize>,
}

impl Request {
    /// `run` tells the idempotency keys of one run of the tool from those of another.
    pub(crate) fn new(shape: &Shape, target: &Target, run: u64) -> Self {
        let path = match shape.batch {
            Some(_) => "/v1/batch?results=denied".to_owned(),
            None => format!("/v1/{}", shape.op.name()),
        };
        let media_type = match shape.batch {
            Some((_, Format::Ndjson)) => "application/x-ndjson",
            _ => "application/json",
        };
        let (body, places) = body(shape);
        let mut head = target.head("POST", &path);
        let _ = write!(head, "content-type: {media_type}\r\n");
        let key_at = shape.keyed.then(|| {
            let _ = write!(head, "idempotency-key: {run:016x}-");
            let at = head.len();
            let _ = write!(head, "{:016x}\r\n", 0);
            at
        });
        let _ = write!(head, "content-length: {}\r\n\r\n", body.len());
        Self {
            organizations_at: places.into_iter().map(|at| head.len() + at).collect(),
            key_at,
            bytes: (head + &body).into_bytes(),
        }
    }

    /// How many items it has; 1 if it is no batch.
    pub(crate) fn items(&self) -> usize {
        self.organizations_at.len()
    }

    /// The request for organizations that are chosen now, and noted in `chosen`.
    pub(crate) fn prepare(
        &mut self,
        organizations: &mut Organizations,
        serial: u64,
        chosen: &mut Vec<u32>,
    ) -> &[u8] {
        chosen.clear();
        for at in &self.organizations_at {
            let organization = organizations.choose();
            chosen.push(organization);
            write_digits(&mut self.bytes[*at..*at + DIGITS], organization);
        }
        if let Some(at) = self.key_at {
            let digits = format!("{serial:016x}");
            self.bytes[at..at + digits.len()].copy_from_slice(digits.as_bytes());
        }
        &self.bytes
    }
}

/// A body, and where in it the digits of organizations are.
fn body(shape: &Shape) -> (String, Vec<usize>) {
    let (items, op, before, between, after) = match shape.batch {
        None => (1, None, "", "", ""),
        Some((items, Format::Json)) => (items, Some(shape.op), r#"{"items":["#, ",", "]}"),
        Some((items, Format::Ndjson)) => (items, Some(shape.op), "", "\n", "\n"),
    };
    let (mut text, mut places) = (before.to_owned(), Vec::with_capacity(items));
    for item in 0..items {
        if item > 0 {
            text.push_str(between);
        }
        text.push('{');
        if let Some(op) = op {
            let _ = write!(text, r#""op":"{}","#, op.name());
        }
        text.push_str(r#""organizationId":"org_"#);
        places.push(text.len());
        let _ = write!(text, r#"{:0DIGITS$}""#, 0);
        if shape.amount != 1 {
            let _ = write!(text, r#","amount":{}"#, shape.amount);
        }
        text.push('}');
    }
    text.push_str(after);
    (text, places)
}

fn write_digits(place: &mut [u8], mut number: u32) {
    for digit in place.iter_mut().rev() {
        *digit = b"0123456789"[(number % 10) as usize];
        number /= 10;
    }
}

/// Chooses organizations.
#[derive(Debug)]
pub(crate) struct Organizations {
    count: u32,
    spread: Spread,
    zipf: Zipf<f64>,
    random: SmallRng,
    turn: u32,
}

impl Organizations {
    /// `exponent` is Zipf's: how much more often the first is chosen than the others.
    pub(crate) fn new(count: u32, spread: Spread, exponent: f64) -> anyhow::Result<Self> {
        Ok(Self {
            count,
            spread,
            zipf: Zipf::new(f64::from(count), exponent)?,
            // The same in every run, so that runs can be compared.
            random: SmallRng::seed_from_u64(7400),
            turn: 0,
        })
    }

    fn choose(&mut self) -> u32 {
        match self.spread {
            Spread::Turns => {
                let turn = self.turn;
                self.turn = (turn + 1) % self.count;
                turn
            }
            Spread::Uniform => self.random.random_range(0..self.count),
            Spread::Zipf => {
                let rank = self.zipf.sample(&mut self.random);
                #[expect(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    reason = "a whole number from 1 to the count"
                )]
                let rank = rank as u32;
                rank.clamp(1, self.count) - 1
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prepared(shape: &Shape, serial: u64) -> String {
        let target = Target::new("http://h", "k").unwrap();
        let mut organizations = Organizations::new(43, Spread::Turns, 1.0).unwrap();
        organizations.turn = 42;
        let mut request = Request::new(shape, &target, 1);
        let mut chosen = Vec::new();
        let bytes = request.prepare(&mut organizations, serial, &mut chosen);
        let text = String::from_utf8(bytes.to_vec()).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("content-length: {}", body.len())));
        assert_eq!(chosen.len(), request.items());
        text
    }

    #[test]
    fn a_call_names_its_organization_and_its_key() {
        let shape = Shape {
            op: Op::Track,
            amount: 5,
            keyed: true,
            batch: None,
        };
        let text = prepared(&shape, 0xab);
        assert!(
            text.starts_with("POST /v1/track HTTP/1.1\r\nhost: h\r\nauthorization: Bearer k\r\n")
        );
        assert!(text.contains("idempotency-key: 0000000000000001-00000000000000ab\r\n"));
        assert!(text.ends_with(r#"{"organizationId":"org_0000042","amount":5}"#));
    }

    #[test]
    fn batches_are_what_their_media_type_says() {
        let mut shape = Shape {
            op: Op::Consume,
            amount: 1,
            keyed: false,
            batch: Some((3, Format::Json)),
        };
        let items = |text: &str| text.split_once("\r\n\r\n").unwrap().1.to_owned();
        let json: serde_json::Value = serde_json::from_str(&items(&prepared(&shape, 0))).unwrap();
        let named: Vec<_> = json["items"].as_array().unwrap().iter().collect();
        assert_eq!(named.len(), 3);
        assert_eq!(named[0]["organizationId"], organization(42));
        assert_eq!(named[1]["organizationId"], organization(0));
        shape.batch = Some((3, Format::Ndjson));
        let text = items(&prepared(&shape, 0));
        let lines: Vec<serde_json::Value> = text
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert_eq!(lines.iter().collect::<Vec<_>>(), named);
    }

    #[test]
    fn every_spread_stays_within_the_count() {
        for spread in [Spread::Turns, Spread::Uniform, Spread::Zipf] {
            let mut organizations = Organizations::new(10, spread, 1.1).unwrap();
            let mut seen = [0_u32; 10];
            for _ in 0..10_000 {
                seen[organizations.choose() as usize] += 1;
            }
            assert!(seen.iter().all(|times| *times > 0), "{spread:?} {seen:?}");
            assert_eq!(spread == Spread::Zipf, seen[0] > 3000, "{seen:?}");
        }
    }
}
