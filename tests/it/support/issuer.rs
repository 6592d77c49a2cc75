//! A fake auth server: signs any token, and publishes any JWKS or fails to.

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

/// Permits for concurrent responses; more than any test sends.
const MAX_RESPONSES: usize = 1000;

/// A running fake auth server.
pub struct Issuer {
    url: String,
    shared: Arc<Shared>,
}

struct Shared {
    requests: AtomicUsize,
    published: Mutex<Publishes>,
    /// Permits to respond; none while responses are held back.
    gate: Semaphore,
}

/// What the JWKS URL responds.
#[derive(Clone)]
pub enum Publishes {
    /// A JWKS with these keys.
    Keys(Vec<Value>),
    /// This text as the body.
    Text(String),
    /// This status and no body.
    Status(StatusCode),
    /// A redirect to this URL.
    Elsewhere(String),
}

impl Issuer {
    /// Starts a server that publishes this.
    pub async fn start(publishes: Publishes) -> Self {
        let shared = Arc::new(Shared {
            requests: AtomicUsize::new(0),
            published: Mutex::new(publishes),
            gate: Semaphore::new(MAX_RESPONSES),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/jwks", listener.local_addr().unwrap());
        let router = Router::new()
            .route("/jwks", get(publish))
            .with_state(Arc::clone(&shared));
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { url, shared }
    }

    /// Replaces what is published.
    pub fn publish(&self, publishes: Publishes) {
        *self.shared.published.lock().unwrap() = publishes;
    }

    /// Holds back all responses until [`Issuer::resume`].
    pub async fn hang(&self) {
        let all = u32::try_from(MAX_RESPONSES).unwrap();
        self.shared.gate.acquire_many(all).await.unwrap().forget();
    }

    /// Sends the responses that were held back.
    pub fn resume(&self) {
        self.shared.gate.add_permits(MAX_RESPONSES);
    }

    /// Waits until the JWKS was requested this many times.
    pub async fn until_requested(&self, times: usize) {
        while self.requests() < times {
            tokio::task::yield_now().await;
        }
    }

    /// The number of requests for the JWKS.
    pub fn requests(&self) -> usize {
        self.shared.requests.load(Ordering::SeqCst)
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    /// Settings that trust this server.
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
    shared.requests.fetch_add(1, Ordering::SeqCst);
    let _gate = shared.gate.acquire().await.unwrap();
    let published = shared.published.lock().unwrap().clone();
    match published {
        Publishes::Keys(keys) => axum::Json(json!({ "keys": keys })).into_response(),
        Publishes::Text(text) => text.into_response(),
        Publishes::Status(status) => status.into_response(),
        Publishes::Elsewhere(url) => Redirect::temporary(&url).into_response(),
    }
}

/// A private key and its `kid`.
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
        let (algorithm, random) = (&ECDSA_P256_SHA256_FIXED_SIGNING, SystemRandom::new());
        let key = EcdsaKeyPair::generate_pkcs8(algorithm, &random).unwrap();
        let pair = EcdsaKeyPair::from_pkcs8(algorithm, key.as_ref(), &random).unwrap();
        Self {
            name: name.to_owned(),
            pair: Pair::Es256(pair),
        }
    }

    /// The `alg` of its tokens.
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

    /// A correctly signed token with these claims.
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

/// A token with an HMAC under this secret as its signature.
pub fn sign_with_secret(header: &Value, claims: &Value, secret: &[u8]) -> String {
    let message = message(header, claims);
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, secret);
    let signature = ring::hmac::sign(&key, message.as_bytes());
    format!("{message}.{}", BASE64.encode(signature))
}

/// The signed part of a token.
pub fn message(header: &Value, claims: &Value) -> String {
    let part = |value: &Value| BASE64.encode(value.to_string());
    format!("{}.{}", part(header), part(claims))
}

/// The decoded header (0) or claims (1) of a token.
pub fn decode_part(token: &str, part: usize) -> Value {
    let part = token.split('.').nth(part).unwrap();
    serde_json::from_slice(&BASE64.decode(part).unwrap()).unwrap()
}
