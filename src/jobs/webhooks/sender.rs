//! Sends one delivery over HTTP, and reads the status and the beginning of the response.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use reqwest::header::{CONTENT_TYPE, USER_AGENT};
use reqwest::redirect::Policy;
use reqwest::{Client, Url};
use serde::Serialize;
use serde_json::value::RawValue;

use super::targets::Targets;
use crate::domain::event::EventType;
use crate::domain::ids::EventId;
use crate::postgres::webhooks::Message;

/// The timeout of a delivery, including the beginning of the response body.
const TIMEOUT: Duration = Duration::from_secs(10);

/// How much of a response body is kept, bytes.
const BODY_MAX: usize = 1024;

const AGENT: &str = concat!("Tallyman/", env!("CARGO_PKG_VERSION"));

/// Sends deliveries; clones share the connections.
#[derive(Debug, Clone)]
pub(super) struct Sender {
    targets: Targets,
    /// Created at the first delivery, because it loads the certificates of the machine.
    client: Arc<OnceLock<Client>>,
}

/// The outcome of one attempt.
#[derive(Debug)]
pub(super) struct Response {
    /// None if there was no response.
    pub(super) status: Option<u16>,
    /// Until the response or the timeout.
    pub(super) latency_ms: u32,
    /// The first KiB.
    pub(super) body: Option<String>,
    /// Why there was no response.
    pub(super) error: Option<String>,
}

/// The request body.
#[derive(Serialize)]
struct Payload<'a> {
    r#type: EventType,
    timestamp: DateTime<Utc>,
    data: &'a RawValue,
}

/// The request body of every attempt to deliver a message.
pub(super) fn payload(message: &Message) -> String {
    let payload = Payload {
        r#type: message.event_type,
        timestamp: message.at,
        data: &message.data,
    };
    // Cannot fail: its parts are JSON already.
    serde_json::to_string(&payload).unwrap_or_default()
}

impl Sender {
    pub(super) fn new(targets: Targets) -> Self {
        Self {
            targets,
            client: Arc::default(),
        }
    }

    /// Posts a payload.
    pub(super) async fn post(
        &self,
        url: &str,
        id: &EventId,
        at: i64,
        signatures: &str,
        payload: String,
    ) -> Response {
        let started = Instant::now();
        let sent = self.try_post(url, id, at, signatures, payload).await;
        let latency_ms = u32::try_from(started.elapsed().as_millis()).unwrap_or(u32::MAX);
        match sent {
            Ok(response) => Response {
                status: Some(response.status().as_u16()),
                latency_ms,
                body: Some(beginning(response).await),
                error: None,
            },
            Err(error) => Response {
                status: None,
                latency_ms,
                body: None,
                error: Some(error),
            },
        }
    }

    async fn try_post(
        &self,
        url: &str,
        id: &EventId,
        at: i64,
        signatures: &str,
        payload: String,
    ) -> Result<reqwest::Response, String> {
        let url: Url = url.parse().map_err(|_| "this is not a URL".to_owned())?;
        self.targets
            .check_literal(&url)
            .map_err(|private| format!("the URL {private}"))?;
        self.client()
            .map_err(reason)?
            .post(url)
            .header(CONTENT_TYPE, "application/json")
            .header(USER_AGENT, AGENT)
            .header("webhook-id", id.as_str())
            .header("webhook-timestamp", at)
            .header("webhook-signature", signatures)
            .body(payload)
            .send()
            .await
            .map_err(reason)
    }

    fn client(&self) -> Result<&Client, reqwest::Error> {
        if let Some(client) = self.client.get() {
            return Ok(client);
        }
        // A redirect or a proxy could lead to an unchecked address.
        let client = Client::builder()
            .dns_resolver(Arc::new(self.targets))
            .redirect(Policy::none())
            .no_proxy()
            .timeout(TIMEOUT)
            .build()?;
        Ok(self.client.get_or_init(|| client))
    }
}

/// The innermost cause, without the URL, which readers of the delivery see anyway.
#[expect(clippy::needless_pass_by_value, reason = "what `map_err` calls")]
fn reason(error: reqwest::Error) -> String {
    if error.is_timeout() {
        return format!("no response within {} seconds", TIMEOUT.as_secs());
    }
    let mut deepest: &dyn std::error::Error = &error;
    while let Some(source) = deepest.source() {
        deepest = source;
    }
    deepest.to_string()
}

/// The beginning of a body as text that Postgres accepts, as far as it can be read.
async fn beginning(mut response: reqwest::Response) -> String {
    let mut bytes = Vec::new();
    while bytes.len() < BODY_MAX
        && let Ok(Some(piece)) = response.chunk().await
    {
        bytes.extend_from_slice(&piece);
    }
    bytes.truncate(BODY_MAX);
    String::from_utf8_lossy(&bytes).replace('\0', "\u{fffd}")
}
