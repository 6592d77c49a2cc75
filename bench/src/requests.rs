//! Requests: head and body are rendered once; only the digits of organizations and the idempotency
//! key are replaced before each use.

use std::fmt::Write as _;

use anyhow::Result;
use clap::ValueEnum;
use http_body_util::Full;
use hyper::Request;
use hyper::body::Bytes;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use rand_distr::{Distribution as _, Zipf};

use crate::http::Target;

/// Digits in the number of an organization.
const DIGITS: usize = 7;

/// Limited by the digits.
pub(crate) const ORGANIZATIONS_MAX: u32 = 10_000_000;

/// The operation of a call or an item.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Op {
    /// Count within the limit
    Consume,
    /// Count regardless of the limit
    Track,
    /// Check the limit without counting
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

/// The format of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// A JSON document
    Json,
    /// One item per line
    Ndjson,
}

/// How the next organization is chosen.
#[derive(Debug, Clone, Copy, PartialEq, ValueEnum)]
pub(crate) enum Spread {
    /// In turns
    Turns,
    /// All equally likely
    Uniform,
    /// By Zipf's distribution: few of them most of the time
    Zipf,
}

/// The common properties of the requests of one load.
#[derive(Debug, Clone)]
pub(crate) struct Shape {
    pub(crate) op: Op,
    /// Units of each call or item.
    pub(crate) amount: u64,
    /// Whether each request has its own idempotency key.
    pub(crate) keyed: bool,
    /// Number and format of the items of a batch; none for single calls.
    pub(crate) batch: Option<(usize, Format)>,
}

/// The id of an organization.
pub(crate) fn organization(number: u32) -> String {
    format!("org_{number:0DIGITS$}")
}

/// A rendered request.
#[derive(Debug, Clone)]
pub(crate) struct Template {
    head: Request<()>,
    body: Vec<u8>,
    /// Offsets in the body of the digits of organizations, one per item.
    organizations_at: Vec<usize>,
    /// The prefix of idempotency keys, if the requests have one.
    key_prefix: Option<String>,
}

impl Template {
    /// `run` distinguishes the idempotency keys of one run of the tool from those of another.
    pub(crate) fn new(shape: &Shape, target: &Target, run: u64) -> Result<Self> {
        let path = match shape.batch {
            Some(_) => "/v1/batch?results=denied".to_owned(),
            None => format!("/v1/{}", shape.op.name()),
        };
        let media_type = match shape.batch {
            Some((_, Format::Ndjson)) => "application/x-ndjson",
            _ => "application/json",
        };
        let mut head = target.request("POST", &path)?;
        let media_type = HeaderValue::from_static(media_type);
        head.headers_mut().insert(CONTENT_TYPE, media_type);
        let (body, organizations_at) = body(shape);
        Ok(Self {
            head,
            body: body.into_bytes(),
            organizations_at,
            key_prefix: shape.keyed.then(|| format!("{run:016x}")),
        })
    }

    /// Number of items; 1 for a single call.
    pub(crate) fn items(&self) -> usize {
        self.organizations_at.len()
    }

    /// A request for newly chosen organizations, which it puts into `chosen`.
    pub(crate) fn request(
        &mut self,
        organizations: &mut Organizations,
        serial: u64,
        chosen: &mut Vec<u32>,
    ) -> Result<Request<Full<Bytes>>> {
        chosen.clear();
        for at in &self.organizations_at {
            let organization = organizations.choose();
            chosen.push(organization);
            write_digits(&mut self.body[*at..*at + DIGITS], organization);
        }
        let body = Bytes::copy_from_slice(&self.body);
        let mut request = self.head.clone().map(|()| Full::new(body));
        if let Some(prefix) = &self.key_prefix {
            let key = HeaderValue::try_from(format!("{prefix}-{serial:016x}"))?;
            request.headers_mut().insert("idempotency-key", key);
        }
        Ok(request)
    }
}

/// A body, and the offsets in it of the digits of organizations.
fn body(shape: &Shape) -> (String, Vec<usize>) {
    let (items, op, before, between, after) = match shape.batch {
        None => (1, None, "", "", ""),
        Some((items, Format::Json)) => (items, Some(shape.op), r#"{"items":["#, ",", "]}"),
        Some((items, Format::Ndjson)) => (items, Some(shape.op), "", "\n", "\n"),
    };
    let (mut text, mut offsets) = (before.to_owned(), Vec::with_capacity(items));
    for item in 0..items {
        if item > 0 {
            text.push_str(between);
        }
        text.push('{');
        if let Some(op) = op {
            let _ = write!(text, r#""op":"{}","#, op.name());
        }
        text.push_str(r#""organizationId":"org_"#);
        offsets.push(text.len());
        let _ = write!(text, r#"{:0DIGITS$}""#, 0);
        if shape.amount != 1 {
            let _ = write!(text, r#","amount":{}"#, shape.amount);
        }
        text.push('}');
    }
    text.push_str(after);
    (text, offsets)
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
    /// `exponent` is that of Zipf's distribution.
    pub(crate) fn new(count: u32, spread: Spread, exponent: f64) -> anyhow::Result<Self> {
        Ok(Self {
            count,
            spread,
            zipf: Zipf::new(f64::from(count), exponent)?,
            // The same seed in every run, so that runs can be compared.
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
    use http_body_util::BodyExt as _;
    use hyper::http::request::Parts;

    use super::*;

    async fn request(shape: &Shape, serial: u64) -> (Parts, String) {
        let target = Target::new("http://h", "k").unwrap();
        let mut organizations = Organizations::new(43, Spread::Turns, 1.0).unwrap();
        organizations.turn = 42;
        let mut template = Template::new(shape, &target, 1).unwrap();
        let mut chosen = Vec::new();
        let request = template.request(&mut organizations, serial, &mut chosen);
        let (head, body) = request.unwrap().into_parts();
        assert_eq!(chosen.len(), template.items());
        let body = body.collect().await.unwrap().to_bytes();
        (head, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn a_call_names_its_organization_and_its_key() {
        let shape = Shape {
            op: Op::Track,
            amount: 5,
            keyed: true,
            batch: None,
        };
        let (head, body) = request(&shape, 0xab).await;
        assert_eq!(
            (head.method.as_str(), head.uri.path()),
            ("POST", "/v1/track")
        );
        assert_eq!(head.headers["host"], "h");
        assert_eq!(head.headers["authorization"], "Bearer k");
        let key = "0000000000000001-00000000000000ab";
        assert_eq!(head.headers["idempotency-key"], key);
        assert_eq!(body, r#"{"organizationId":"org_0000042","amount":5}"#);
    }

    #[tokio::test]
    async fn batches_have_the_format_of_their_media_type() {
        let mut shape = Shape {
            op: Op::Consume,
            amount: 1,
            keyed: false,
            batch: Some((3, Format::Json)),
        };
        let (head, body) = request(&shape, 0).await;
        assert_eq!(head.headers["content-type"], "application/json");
        let json: serde_json::Value = serde_json::from_str(&body).unwrap();
        let items = json["items"].as_array().unwrap();
        assert_eq!(items.len(), 3);
        assert_eq!(items[0]["organizationId"], organization(42));
        assert_eq!(items[1]["organizationId"], organization(0));
        shape.batch = Some((3, Format::Ndjson));
        let (head, body) = request(&shape, 0).await;
        assert_eq!(head.headers["content-type"], "application/x-ndjson");
        let lines: Vec<serde_json::Value> = body
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert_eq!(&lines, items);
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
