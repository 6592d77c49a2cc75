//! Other people's auth server: Better Auth with its jwt plugin, a process of its own.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use tallyman::config::JwtConfig;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use super::{Answer, Http};

/// More than any start takes.
const PATIENCE: Duration = Duration::from_mins(1);

/// A running auth server, and whom it has signed up. It ends with this.
pub struct AuthServer {
    /// Its first line; see `tests/peers/auth-server.mjs`.
    pub said: Value,
    _child: Child,
}

impl AuthServer {
    pub async fn start() -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peers");
        assert!(
            folder.join("node_modules").exists(),
            "scripts/setup test has not run"
        );
        let mut child = Command::new("node")
            .arg("auth-server.mjs")
            .current_dir(folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let line = timeout(PATIENCE, lines.next_line()).await;
        let line = line.expect("it starts").unwrap().expect("it has ended");
        Self {
            said: serde_json::from_str(&line).unwrap(),
            _child: child,
        }
    }

    /// What it has said of this.
    pub fn text(&self, name: &str) -> &str {
        self.said[name].as_str().unwrap()
    }

    /// The member's token, signed so.
    pub fn token(&self, algorithm: &str) -> &str {
        self.said["tokens"][algorithm].as_str().unwrap()
    }

    /// The settings that trust it.
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

    /// Makes a new key, and a token that is signed with it.
    pub async fn rotate(&self) -> String {
        let http = Http::new(self.text("url").to_owned(), "").with_key(None);
        let Answer { body, text, .. } = http.post("/rotate", json!({})).await;
        body["token"].as_str().expect(&text).to_owned()
    }
}
