//! A webhook receiver: records requests and sends the configured responses.

use std::path::Path;
use std::process::Stdio;
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
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::net::TcpListener;
use tokio::process::{Child, ChildStdout, Command};
use tokio::sync::watch;

/// A received request.
#[derive(Debug, Clone)]
pub struct Received {
    pub headers: HeaderMap,
    pub text: String,
}

impl Received {
    /// A header as text; empty if it is missing.
    pub fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .map_or("", |value| value.to_str().unwrap())
    }

    /// The id of the event.
    pub fn id(&self) -> &str {
        self.header("webhook-id")
    }

    pub fn body(&self) -> Value {
        serde_json::from_str(&self.text).unwrap()
    }

    /// How many of its signatures this secret verifies.
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

/// Computes the response to a request.
type Rule = Box<dyn Fn(&Received) -> Response + Send + Sync>;

struct Shared {
    received: watch::Sender<Vec<Received>>,
    rule: Mutex<Rule>,
    /// While true, no response is sent.
    held_back: watch::Sender<bool>,
}

/// A server with its own port. Responds 204 unless configured otherwise.
pub struct Receiver {
    pub url: String,
    shared: Arc<Shared>,
}

impl Receiver {
    pub async fn new() -> Self {
        let shared = Arc::new(Shared {
            received: watch::Sender::new(Vec::new()),
            rule: Mutex::new(Box::new(|_| StatusCode::NO_CONTENT.into_response())),
            held_back: watch::Sender::new(false),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/hook", listener.local_addr().unwrap());
        let router = Router::new()
            .fallback(receive)
            .with_state(Arc::clone(&shared));
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { url, shared }
    }

    /// Responds with this status from now on.
    pub fn answer(&self, status: u16) {
        let status = StatusCode::from_u16(status).unwrap();
        self.answer_by(move |_| status.into_response());
    }

    /// Responds with the result of this function from now on.
    pub fn answer_by(&self, rule: impl Fn(&Received) -> Response + Send + Sync + 'static) {
        *self.shared.rule.lock().unwrap() = Box::new(rule);
    }

    /// Holds responses back (`true`) or sends them (`false`).
    pub fn hold(&self, held_back: bool) {
        self.shared.held_back.send_replace(held_back);
    }

    /// All requests received so far.
    pub fn received(&self) -> Vec<Received> {
        self.shared.received.borrow().clone()
    }

    /// Waits until the received requests satisfy a condition.
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
    let mut held_back = shared.held_back.subscribe();
    held_back.wait_for(|held_back| !held_back).await.unwrap();
    let rule = shared.rule.lock().unwrap();
    rule(&request)
}

/// An example receiver of the documentation, run unchanged.
pub struct Example {
    pub url: String,
    lines: Lines<BufReader<ChildStdout>>,
    _child: Child,
}

impl Example {
    /// Runs the first code block of this language in `docs/webhooks.md` with this secret.
    pub async fn start(language: &str, secret: &str) -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let document = std::fs::read_to_string(root.join("docs/webhooks.md")).unwrap();
        let (_, rest) = document.split_once(&format!("```{language}\n")).unwrap();
        let (code, _) = rest.split_once("\n```").unwrap();
        let mut command = match language {
            // The example has no type annotations, so that it is valid JavaScript.
            "ts" => {
                let mut node = Command::new("node");
                node.args(["--input-type=module", "--eval", code]);
                node
            }
            "python" => {
                let mut python = Command::new("python3");
                python.args(["-c", code]);
                python
            }
            _ => panic!("{language}"),
        };
        let port = free_port().await;
        let mut child = command
            // `node_modules` with the packages that the example imports.
            .current_dir(root.join("tests/peers"))
            .env("WEBHOOK_SECRET", secret)
            .env("PORT", port.to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        // `None` if the process has ended.
        let first = lines.next_line().await.unwrap();
        assert_eq!(first.as_deref(), Some("listening"), "{language}");
        Self {
            url: format!("http://127.0.0.1:{port}/"),
            lines,
            _child: child,
        }
    }

    /// The next event that it prints: type and data.
    pub async fn event(&mut self) -> (String, Value) {
        let line = self.lines.next_line().await.unwrap().unwrap();
        let (kind, data) = line.split_once(' ').unwrap();
        (kind.to_owned(), serde_json::from_str(data).unwrap())
    }
}

/// A port without a listener.
async fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    listener.local_addr().unwrap().port()
}
