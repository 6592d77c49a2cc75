//! Somebody's endpoint: records what it receives, and answers what it is told.

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::hmac;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::watch;

/// One request, as it came.
#[derive(Debug, Clone)]
pub struct Received {
    pub headers: HeaderMap,
    pub text: String,
}

impl Received {
    /// One header as text; empty where it is missing.
    pub fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .map_or("", |value| value.to_str().unwrap())
    }

    /// The event's id.
    pub fn id(&self) -> &str {
        self.header("webhook-id")
    }

    pub fn body(&self) -> Value {
        serde_json::from_str(&self.text).unwrap()
    }

    /// How many of its signatures a secret verifies.
    pub fn signed_by(&self, secret: &str) -> usize {
        let key = STANDARD
            .decode(secret.strip_prefix("whsec_").unwrap())
            .unwrap();
        let signed = format!(
            "{}.{}.{}",
            self.id(),
            self.header("webhook-timestamp"),
            self.text
        );
        let key = hmac::Key::new(hmac::HMAC_SHA256, &key);
        let signature = STANDARD.encode(hmac::sign(&key, signed.as_bytes()));
        let expected = format!("v1,{signature}");
        let signatures = self.header("webhook-signature").split(' ');
        signatures
            .filter(|signature| **signature == expected)
            .count()
    }
}

/// What is answered.
type Rule = Box<dyn Fn(&Received) -> Response + Send + Sync>;

struct Shared {
    received: watch::Sender<Vec<Received>>,
    rule: Mutex<Rule>,
    /// While this is so, nothing is answered.
    held: watch::Sender<bool>,
}

/// A server of its own. Answers 204 until it is told otherwise.
pub struct Receiver {
    pub url: String,
    shared: Arc<Shared>,
}

impl Receiver {
    pub async fn new() -> Self {
        let shared = Arc::new(Shared {
            received: watch::Sender::new(Vec::new()),
            rule: Mutex::new(Box::new(|_| StatusCode::NO_CONTENT.into_response())),
            held: watch::Sender::new(false),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/hook", listener.local_addr().unwrap());
        let router = Router::new()
            .fallback(receive)
            .with_state(Arc::clone(&shared));
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { url, shared }
    }

    /// Answers this from now on.
    pub fn answer(&self, status: u16) {
        let status = StatusCode::from_u16(status).unwrap();
        self.answer_by(move |_| status.into_response());
    }

    /// Answers what this says from now on.
    pub fn answer_by(&self, rule: impl Fn(&Received) -> Response + Send + Sync + 'static) {
        *self.shared.rule.lock().unwrap() = Box::new(rule);
    }

    /// Answers nobody, until it is told to go on.
    pub fn hold(&self, held: bool) {
        self.shared.held.send_replace(held);
    }

    /// Everything so far.
    pub fn received(&self) -> Vec<Received> {
        self.shared.received.borrow().clone()
    }

    /// Waits until it has all of something.
    pub async fn until(&self, enough: impl Fn(&[Received]) -> bool) -> Vec<Received> {
        let mut received = self.shared.received.subscribe();
        received.wait_for(|all| enough(all)).await.unwrap().clone()
    }
}

async fn receive(State(shared): State<Arc<Shared>>, headers: HeaderMap, body: Bytes) -> Response {
    let request = Received {
        headers,
        text: String::from_utf8(body.to_vec()).unwrap(),
    };
    shared.received.send_modify(|all| all.push(request.clone()));
    let mut held = shared.held.subscribe();
    held.wait_for(|held| !held).await.unwrap();
    let rule = shared.rule.lock().unwrap();
    rule(&request)
}
