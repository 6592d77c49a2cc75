//! Sends calls to either instance, measures the answers, and repeats calls until their outcome is known.

use std::cell::{Cell, RefCell};
use std::time::Duration;

use anyhow::Result;
use http_body_util::Full;
use hyper::Request;
use hyper::body::Bytes;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use rand::RngExt as _;
use rand::rngs::SmallRng;
use serde_json::Value;
use tokio::time::{sleep, timeout};

use super::journal::{Journal, Rule};
use super::setup::Setup;
use crate::http::Connection;

/// The deadline of the service.
pub(super) const DEADLINE: Duration = Duration::from_secs(5);

/// How long the tool waits for an answer.
const ANSWER_MAX: Duration = Duration::from_secs(30);

/// The service has less CPU than the tool, so what the tool had to wait for CPU counts so many times.
const STARVATION: u32 = 4;

/// How long a call is repeated.
const REPEAT_MAX: Duration = Duration::from_mins(1);

/// What is measured together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    /// Counts for an organization that Redis knows.
    Known,
    Other,
}

/// A call.
#[derive(Debug, Clone)]
pub(super) struct Call {
    pub(super) class: Class,
    pub(super) method: &'static str,
    pub(super) path: String,
    pub(super) body: Option<Value>,
    pub(super) key: Option<String>,
    /// Whether it changes settings: such a call may have had an effect although it was answered with 503.
    pub(super) is_change: bool,
}

/// A measured answer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Answer {
    pub(super) class: Class,
    pub(super) status: u16,
    pub(super) sent: Duration,
    pub(super) took: Duration,
}

/// What became of one attempt.
enum Attempt {
    Answered(u16, Value),
    /// Sent, and not answered.
    Unanswered,
    NotSent,
}

/// What became of a call.
#[derive(Debug)]
pub(super) struct Settled {
    /// The last answer, unless the outcome is unknown.
    pub(super) answer: Option<(u16, Value)>,
    /// Attempts whose outcome is unknown by themselves.
    pub(super) unknown: i64,
    pub(super) sent: Duration,
    pub(super) answered: Duration,
}

/// What all clients share.
pub(super) struct Run<'a> {
    pub(super) setup: &'a Setup,
    pub(super) journal: &'a Journal,
    pub(super) answers: RefCell<Vec<Answer>>,
    /// How much later than its deadline an answer may arrive.
    pub(super) margin: Duration,
    /// The time after which no call is repeated.
    pub(super) end: Cell<Option<Duration>>,
}

/// One client, with a connection to each instance.
pub(super) struct Client<'a> {
    run: &'a Run<'a>,
    connections: [Connection; 2],
    pub(super) random: SmallRng,
}

impl<'a> Client<'a> {
    pub(super) fn new(run: &'a Run<'a>, random: SmallRng) -> Self {
        let connections = [0, 1].map(|which| Connection::new(&run.setup.instances[which].target));
        Self {
            run,
            connections,
            random,
        }
    }

    /// Sends a call; repeats it until its outcome is known, if it may be repeated.
    pub(super) async fn settle(&mut self, call: &Call) -> Result<Settled> {
        let journal = self.run.journal;
        let (sent, mut unknown) = (journal.now(), 0);
        let mut class = call.class;
        let repeats = call.key.is_some() || call.is_change;
        loop {
            let answer = match self.attempt(call, class).await? {
                Attempt::Answered(status, body) if is_known(call, status, &body, unknown) => {
                    Some((status, body))
                }
                Attempt::Answered(..) | Attempt::Unanswered => {
                    unknown += 1;
                    None
                }
                Attempt::NotSent => None,
            };
            let answered = journal.now();
            let is_over = match self.run.end.get() {
                Some(end) => answered > end,
                None => answered > sent + REPEAT_MAX,
            };
            if answer.is_some() || is_over || (!repeats && unknown > 0) {
                return Ok(Settled {
                    answer,
                    unknown,
                    sent,
                    answered,
                });
            }
            // Redis may have lost what it knew.
            class = Class::Other;
            let pause = self.random.random_range(50..300);
            sleep(Duration::from_millis(pause)).await;
        }
    }

    async fn attempt(&mut self, call: &Call, class: Class) -> Result<Attempt> {
        let first = self.random.random_range(0..2);
        for which in [first, 1 - first] {
            if self.connections[which].open().await.is_ok() {
                return self.exchange(which, call, class).await;
            }
        }
        Ok(Attempt::NotSent)
    }

    async fn exchange(&mut self, which: usize, call: &Call, class: Class) -> Result<Attempt> {
        let run = self.run;
        let target = &run.setup.instances[which].target;
        let mut request = target.request(call.method, &call.path)?;
        if let Some(key) = &call.key {
            let key = HeaderValue::try_from(key)?;
            request.headers_mut().insert("idempotency-key", key);
        }
        if call.body.is_some() {
            let json = HeaderValue::from_static("application/json");
            request.headers_mut().insert(CONTENT_TYPE, json);
        }
        let body = call.body.as_ref().map(Value::to_string).unwrap_or_default();
        let request: Request<Full<Bytes>> = request.map(|()| Full::new(Bytes::from(body)));
        let sent = run.journal.now();
        let response = timeout(ANSWER_MAX, self.connections[which].send(request)).await;
        let took = run.journal.now().saturating_sub(sent);
        let wrong = |what: &str| describe(call, which, sent, what);
        let response = match response {
            Ok(Ok(response)) => response,
            Ok(Err(cause)) => {
                let broken = (run.journal.now(), wrong(&cause.to_string()));
                run.journal.broken.borrow_mut().push(broken);
                return Ok(Attempt::Unanswered);
            }
            Err(_) => {
                self.connections[which] = Connection::new(target);
                run.journal.violation(Rule::Deadline, wrong("no answer"));
                return Ok(Attempt::Unanswered);
            }
        };
        let starved = STARVATION * run.journal.stalled(sent, sent + took);
        if took > DEADLINE + run.margin + starved {
            let took = format!("{} after {:.3} s", response.status, took.as_secs_f64());
            run.journal.violation(Rule::Deadline, wrong(&took));
        }
        let status = response.status;
        let is_expected = match status {
            200 | 429 | 503 | 504 => true,
            404 => call.class == Class::Other,
            _ => false,
        };
        if !is_expected {
            let body = String::from_utf8_lossy(&response.body);
            run.journal
                .violation(Rule::Answers, wrong(&format!("{status} {body}")));
        }
        run.answers.borrow_mut().push(Answer {
            class,
            status,
            sent,
            took,
        });
        let body = serde_json::from_slice(&response.body).unwrap_or(Value::Null);
        Ok(Attempt::Answered(status, body))
    }
}

/// A call, and what is wrong with its answer.
fn describe(call: &Call, which: usize, sent: Duration, what: &str) -> String {
    let (at, which) = (sent.as_secs_f64(), ["a", "b"][which]);
    let (method, path) = (call.method, &call.path);
    let body = call.body.as_ref().map(Value::to_string).unwrap_or_default();
    let key = call.key.as_deref().unwrap_or("none");
    format!("at {at:.3} s on {which}: {method} {path} {body:.300} with key {key}: {what}")
}

/// Whether the outcome of a call is known after this answer, and so many attempts of unknown outcome.
fn is_known(call: &Call, status: u16, body: &Value, unknown: i64) -> bool {
    let is_known = |status: u64| match status {
        500 | 504 => false,
        503 => unknown == 0 && !call.is_change,
        _ => true,
    };
    let mut items = body["results"].as_array().into_iter().flatten();
    // An item of a batch has a status of its own. Without a key, the others count.
    let items_known =
        call.key.is_none() || items.all(|item| item["status"].as_u64().is_none_or(is_known));
    is_known(status.into()) && items_known
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_503_is_an_outcome_unless_an_earlier_attempt_may_have_counted() {
        let call = |key: Option<&str>, is_change| Call {
            class: Class::Known,
            method: "POST",
            path: String::new(),
            body: None,
            key: key.map(str::to_owned),
            is_change,
        };
        assert!(is_known(&call(None, false), 503, &Value::Null, 0));
        assert!(!is_known(&call(None, false), 503, &Value::Null, 1));
        assert!(!is_known(&call(None, true), 503, &Value::Null, 0));
        assert!(!is_known(&call(None, false), 504, &Value::Null, 0));
        let batch = json!({"results": [{"status": 200}, {"status": 504}]});
        assert!(!is_known(&call(Some("k"), false), 200, &batch, 0));
        assert!(is_known(&call(None, false), 200, &batch, 0));
    }
}
