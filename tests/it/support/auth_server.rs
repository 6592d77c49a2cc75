//! A real auth server: Better Auth with its jwt plugin, in its own process.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use tallyman::config::JwtConfig;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use super::{Answer, Http};

/// Upper bound for the start; reaching it fails the test.
const TIMEOUT: Duration = Duration::from_mins(1);

/// A running auth server with its signed-up users. Dropping it stops the process.
pub struct AuthServer {
    /// The JSON of its first output line; see `tests/peers/auth-server.mjs`.
    pub started: Value,
    _child: Child,
}

impl AuthServer {
    pub async fn start() -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        assert!(
            root.join("node_modules/better-auth").exists(),
            "scripts/setup test has not run"
        );
        let folder = root.join("tests/peers");
        let mut child = Command::new("node")
            .arg("auth-server.mjs")
            .current_dir(folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let line = timeout(TIMEOUT, lines.next_line()).await;
        let line = line
            .expect("the auth server starts in time")
            .unwrap()
            .expect("the auth server runs");
        Self {
            started: serde_json::from_str(&line).unwrap(),
            _child: child,
        }
    }

    /// A string member of that JSON.
    pub fn text(&self, name: &str) -> &str {
        self.started[name].as_str().unwrap()
    }

    /// The member's token, signed with this algorithm.
    pub fn token(&self, algorithm: &str) -> &str {
        self.started["tokens"][algorithm].as_str().unwrap()
    }

    /// Settings that trust this server.
    pub fn config(&self) -> JwtConfig {
        JwtConfig {
            jwks_url: self.text("jwksUrl").to_owned(),
            issuer: self.text("issuer").to_owned(),
            audience: self.text("audience").to_owned(),
            organization_claim: "organizationId".to_owned(),
            role_claim: "role".to_owned(),
            admin_roles: vec!["admin".to_owned()],
        }
    }

    /// Creates a signing key and returns a token signed with it.
    pub async fn rotate(&self) -> String {
        let http = Http::new(self.text("url").to_owned(), "").with_key(None);
        let Answer { body, text, .. } = http.post("/rotate", json!({})).await;
        body["token"].as_str().expect(&text).to_owned()
    }
}
