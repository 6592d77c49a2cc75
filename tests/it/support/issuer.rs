//! An auth server that does what a test wants: signs anything, and publishes its keys or fails to.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::get;
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD as BASE64;
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _,
};
use serde_json::{Value, json};
use tallyman::config::JwtConfig;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

pub const ISSUER: &str = "https://auth.example";
pub const AUDIENCE: &str = "tallyman";

/// As many answers at once as any test needs.
const OPEN: usize = 1000;

/// A running auth server.
pub struct Issuer {
    url: String,
    shared: Arc<Shared>,
}

struct Shared {
    asked: AtomicUsize,
    answer: Mutex<Publishes>,
    /// Permits for answers; none while they are held back.
    gate: Semaphore,
}

/// What is at the URL of the keys.
#[derive(Clone)]
pub enum Publishes {
    /// A JWKS of these.
    Keys(Vec<Value>),
    /// Any text.
    Text(String),
    /// Nothing but a status.
    Status(StatusCode),
    /// Another URL.
    Elsewhere(String),
}

impl Issuer {
    /// Starts one that publishes this.
    pub async fn start(publishes: Publishes) -> Self {
        let shared = Arc::new(Shared {
            asked: AtomicUsize::new(0),
            answer: Mutex::new(publishes),
            gate: Semaphore::new(OPEN),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/jwks", listener.local_addr().unwrap());
        let router = Router::new()
            .route("/jwks", get(publish))
            .with_state(Arc::clone(&shared));
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { url, shared }
    }

    /// Publishes something else from now on.
    pub fn publish(&self, publishes: Publishes) {
        *self.shared.answer.lock().unwrap() = publishes;
    }

    /// Answers nobody until [`Issuer::go_on`].
    pub async fn hang(&self) {
        let all = u32::try_from(OPEN).unwrap();
        self.shared.gate.acquire_many(all).await.unwrap().forget();
    }

    /// Answers all who wait.
    pub fn go_on(&self) {
        self.shared.gate.add_permits(OPEN);
    }

    /// Waits until the keys were asked for so often.
    pub async fn is_asked(&self, times: usize) {
        while self.asked() < times {
            tokio::task::yield_now().await;
        }
    }

    /// How often the keys were asked for.
    pub fn asked(&self) -> usize {
        self.shared.asked.load(Ordering::SeqCst)
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    /// The settings that trust it.
    pub fn config(&self) -> JwtConfig {
        JwtConfig {
            jwks_url: self.url.clone(),
            issuer: ISSUER.to_owned(),
            audience: AUDIENCE.to_owned(),
            organization_claim: "organizationId".to_owned(),
            role_claim: "role".to_owned(),
            admin_roles: vec!["admin".to_owned(), "staff".to_owned()],
        }
    }
}

async fn publish(State(shared): State<Arc<Shared>>) -> Response {
    shared.asked.fetch_add(1, Ordering::SeqCst);
    let _gate = shared.gate.acquire().await.unwrap();
    let answer = shared.answer.lock().unwrap().clone();
    match answer {
        Publishes::Keys(keys) => axum::Json(json!({ "keys": keys })).into_response(),
        Publishes::Text(text) => text.into_response(),
        Publishes::Status(status) => status.into_response(),
        Publishes::Elsewhere(url) => Redirect::temporary(&url).into_response(),
    }
}

/// A private key under a name.
pub struct Signer {
    pub name: String,
    pair: Pair,
}

enum Pair {
    EdDsa(Ed25519KeyPair),
    Es256(EcdsaKeyPair),
}

impl Signer {
    pub fn eddsa(name: &str) -> Self {
        let key = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
        let pair = Ed25519KeyPair::from_pkcs8(key.as_ref()).unwrap();
        Self {
            name: name.to_owned(),
            pair: Pair::EdDsa(pair),
        }
    }

    pub fn es256(name: &str) -> Self {
        let (how, random) = (&ECDSA_P256_SHA256_FIXED_SIGNING, SystemRandom::new());
        let key = EcdsaKeyPair::generate_pkcs8(how, &random).unwrap();
        let pair = EcdsaKeyPair::from_pkcs8(how, key.as_ref(), &random).unwrap();
        Self {
            name: name.to_owned(),
            pair: Pair::Es256(pair),
        }
    }

    /// What the token's header calls the algorithm.
    pub fn algorithm(&self) -> &'static str {
        match self.pair {
            Pair::EdDsa(_) => "EdDSA",
            Pair::Es256(_) => "ES256",
        }
    }

    /// The public key as raw bytes.
    pub fn public(&self) -> Vec<u8> {
        match &self.pair {
            Pair::EdDsa(pair) => pair.public_key().as_ref().to_vec(),
            Pair::Es256(pair) => pair.public_key().as_ref().to_vec(),
        }
    }

    /// The public key as a JWK.
    pub fn jwk(&self) -> Value {
        let public = self.public();
        match self.pair {
            Pair::EdDsa(_) => json!({
                "kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "kid": self.name, "x": BASE64.encode(public)
            }),
            Pair::Es256(_) => json!({
                "kty": "EC", "crv": "P-256", "alg": "ES256", "kid": self.name,
                "x": BASE64.encode(&public[1..33]), "y": BASE64.encode(&public[33..])
            }),
        }
    }

    /// A token with these claims, as it should be made.
    pub fn sign(&self, claims: &Value) -> String {
        self.sign_under(&json!({"alg": self.algorithm(), "kid": self.name}), claims)
    }

    /// A token with any header.
    pub fn sign_under(&self, header: &Value, claims: &Value) -> String {
        let message = message(header, claims);
        let signature = match &self.pair {
            Pair::EdDsa(pair) => pair.sign(message.as_bytes()).as_ref().to_vec(),
            Pair::Es256(pair) => {
                let signature = pair.sign(&SystemRandom::new(), message.as_bytes());
                signature.unwrap().as_ref().to_vec()
            }
        };
        format!("{message}.{}", BASE64.encode(signature))
    }
}

/// A token whose signature is an HMAC under this secret.
pub fn sign_with_secret(header: &Value, claims: &Value, secret: &[u8]) -> String {
    let message = message(header, claims);
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, secret);
    let signature = ring::hmac::sign(&key, message.as_bytes());
    format!("{message}.{}", BASE64.encode(signature))
}

/// What of a token is signed.
pub fn message(header: &Value, claims: &Value) -> String {
    let part = |value: &Value| BASE64.encode(value.to_string());
    format!("{}.{}", part(header), part(claims))
}

/// What is in a part of a token.
pub fn opened(token: &str, part: usize) -> Value {
    let part = token.split('.').nth(part).unwrap();
    serde_json::from_slice(&BASE64.decode(part).unwrap()).unwrap()
}
