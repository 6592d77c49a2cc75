//! TLS on the listener: both versions of HTTP, replacing the certificate, and clients that do not complete a handshake.

use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use rcgen::{CertificateParams, CertifiedIssuer, KeyPair};
use reqwest::{Certificate, Version};
use serde_json::json;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use crate::support::{Process, World};

/// Upper bound for each step; reaching it fails the test.
const TIMEOUT: Duration = Duration::from_mins(1);

/// A certificate authority, and the files that the service reads.
struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    dir: TempDir,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let authority = Self {
            issuer,
            dir: TempDir::new().unwrap(),
        };
        std::fs::write(authority.path("ca.pem"), authority.issuer.pem()).unwrap();
        authority.issue("localhost");
        authority
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }

    /// Replaces the certificate of the service by one for this host.
    fn issue(&self, host: &str) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![host.to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        std::fs::write(self.path("cert.pem"), certificate.pem()).unwrap();
        std::fs::write(self.path("key.pem"), key.serialize_pem()).unwrap();
    }

    /// Starts the service with the certificate and more settings.
    async fn serve(&self, world: &World, more: &[(&str, &str)]) -> Process {
        let (certificate, key) = (self.path("cert.pem"), self.path("key.pem"));
        let tls = [
            ("TALLYMAN_TLS_CERTIFICATE", certificate.as_str()),
            ("TALLYMAN_TLS_KEY", key.as_str()),
        ];
        Process::serve(world, world.servers(), &[&tls, more].concat()).await
    }

    /// A client that trusts this authority and reaches the service under the name of a host.
    fn client(&self, service: &Process, host: &str) -> reqwest::ClientBuilder {
        let root = Certificate::from_pem(self.issuer.pem().as_bytes()).unwrap();
        reqwest::Client::builder()
            .timeout(TIMEOUT)
            .no_proxy()
            .tls_certs_only([root])
            .resolve(host, service.address.parse().unwrap())
    }

    /// Whether a new connection gets a certificate for this host.
    async fn reaches(&self, service: &Process, host: &str) -> bool {
        let client = self.client(service, host).build().unwrap();
        let url = format!("{}/healthz", url(service, host));
        client.get(url).send().await.is_ok()
    }
}

fn url(service: &Process, host: &str) -> String {
    let (_, port) = service.address.rsplit_once(':').unwrap();
    format!("https://{host}:{port}")
}

/// Runs the executable; returns its exit code and standard error.
async fn tallyman(arguments: &[&str], variables: &[(&str, &str)]) -> (Option<i32>, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_tallyman"))
        .args(arguments)
        .env_clear()
        .envs(variables.iter().copied())
        .stdin(Stdio::null())
        .output();
    let output = timeout(TIMEOUT, output).await.unwrap().unwrap();
    (
        output.status.code(),
        String::from_utf8(output.stderr).unwrap(),
    )
}

#[tokio::test]
async fn calls_are_counted_over_both_versions_of_http() {
    let (world, authority) = (World::new().await, Authority::new());
    let service = authority.serve(&world, &[]).await;
    let client = || authority.client(&service, "localhost");
    for (client, version, current) in [
        (client(), Version::HTTP_2, 1),
        (client().http1_only(), Version::HTTP_11, 2),
    ] {
        let request = client
            .build()
            .unwrap()
            .post(format!("{}/v1/consume", url(&service, "localhost")));
        let request = request
            .bearer_auth(&world.key)
            .json(&json!({"organizationId": "org_1"}));
        let response = request.send().await.unwrap();
        assert_eq!(response.version(), version);
        let body: serde_json::Value = response.json().await.unwrap();
        assert_eq!(body["current"], current, "{body}");
    }
}

#[tokio::test]
async fn a_response_larger_than_the_buffers_arrives_complete() {
    let (world, authority) = (World::new().await, Authority::new());
    let service = authority.serve(&world, &[]).await;
    let client = authority
        .client(&service, "localhost")
        .http1_only()
        .build()
        .unwrap();
    let url = format!("{}/openapi.json", url(&service, "localhost"));
    let expected = tallyman::http::openapi().to_json().unwrap();
    for _ in 0..20 {
        let response = client.get(&url).send().await.unwrap();
        assert_eq!(response.text().await.unwrap(), expected);
    }
}

#[tokio::test]
async fn the_session_cookie_is_for_https_only() {
    let (world, authority) = (World::new().await, Authority::new());
    let service = authority.serve(&world, &[]).await;
    let client = authority.client(&service, "localhost");
    let client = client.redirect(reqwest::redirect::Policy::none());
    let url = format!("{}/dashboard/sign-in", url(&service, "localhost"));
    let form = format!("key={}&to=", world.key);
    let response = client
        .build()
        .unwrap()
        .post(url)
        .header("content-type", "application/x-www-form-urlencoded")
        .body(form)
        .send()
        .await
        .unwrap();
    let cookie = response.headers()["set-cookie"].to_str().unwrap();
    assert!(cookie.ends_with("; Secure"), "{cookie}");
}

#[tokio::test]
async fn a_new_certificate_is_used_after_sighup_and_breaks_no_connection() {
    let (world, authority) = (World::new().await, Authority::new());
    let mut service = authority.serve(&world, &[]).await;
    let old = authority.client(&service, "localhost").build().unwrap();
    let health = format!("{}/healthz", url(&service, "localhost"));
    assert!(old.get(&health).send().await.is_ok());

    authority.issue("tallyman.example");
    assert!(authority.reaches(&service, "localhost").await);
    service.hang_up();
    service.line(|line| line.contains("was read again")).await;
    assert!(authority.reaches(&service, "tallyman.example").await);
    assert!(!authority.reaches(&service, "localhost").await);
    // Only the connection that is open already can succeed.
    assert!(old.get(&health).send().await.is_ok());
    let (code, _) = service.stop().await;
    assert_eq!(code, Some(0));
}

#[tokio::test]
async fn files_that_cannot_be_used_do_not_replace_the_certificate() {
    let (world, authority) = (World::new().await, Authority::new());
    let mut service = authority.serve(&world, &[]).await;
    let certificate = std::fs::read(authority.path("cert.pem")).unwrap();
    authority.issue("tallyman.example");
    // The key is no longer that of the certificate.
    std::fs::write(authority.path("cert.pem"), certificate).unwrap();
    service.hang_up();
    service.line(|line| line.contains("do not fit")).await;
    std::fs::remove_file(authority.path("key.pem")).unwrap();
    service.hang_up();
    service
        .line(|line| line.contains("TALLYMAN_TLS_KEY cannot be used"))
        .await;
    std::fs::write(authority.path("cert.pem"), "nothing").unwrap();
    service.hang_up();
    service
        .line(|line| line.contains("has no certificate"))
        .await;
    assert!(authority.reaches(&service, "localhost").await);
}

#[tokio::test]
async fn a_service_without_a_usable_certificate_does_not_start() {
    let (world, authority) = (World::new().await, Authority::new());
    let servers = world.servers();
    let path = |name: &str| authority.path(name);
    for (certificate, key, reason) in [
        (
            path("cert.pem"),
            String::new(),
            r#"TALLYMAN_TLS_KEY (--tls-key) is ""; it must be given"#,
        ),
        (
            String::new(),
            path("key.pem"),
            r#"TALLYMAN_TLS_CERTIFICATE (--tls-certificate) is ""; it must be given"#,
        ),
        (
            path("missing.pem"),
            path("key.pem"),
            "TALLYMAN_TLS_CERTIFICATE cannot be used",
        ),
        (
            path("cert.pem"),
            path("cert.pem"),
            "TALLYMAN_TLS_KEY cannot be used",
        ),
    ] {
        let variables = [
            ("TALLYMAN_LISTEN", "127.0.0.1:0"),
            ("TALLYMAN_REDIS_URL", &servers.redis_url),
            ("TALLYMAN_DATABASE_URL", &servers.database_url),
            ("TALLYMAN_TLS_CERTIFICATE", &certificate),
            ("TALLYMAN_TLS_KEY", &key),
        ];
        let (code, error) = tallyman(&["serve"], &variables).await;
        assert_eq!(code, Some(1), "{error}");
        assert!(error.contains(reason), "{error}");
        assert_eq!(error.lines().count(), 1, "{error}");
    }
}

#[tokio::test]
async fn a_client_that_sends_no_tls_is_disconnected() {
    let (world, authority) = (World::new().await, Authority::new());
    let service = authority
        .serve(&world, &[("TALLYMAN_HEADER_SECONDS", "3600")])
        .await;
    let mut plain = TcpStream::connect(&service.address).await.unwrap();
    let request = b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n";
    plain.write_all(request).await.unwrap();
    let mut rest = Vec::new();
    let closed = timeout(TIMEOUT, plain.read_to_end(&mut rest)).await;
    let _ = closed.expect("the connection is closed");
    // At most a TLS alert.
    assert!(rest.len() < 16, "{rest:?}");
    until_closed(&world, &authority, &service, "handshake_failed").await;
}

#[tokio::test]
async fn a_handshake_that_does_not_end_is_timed_out_and_evicted() {
    let (world, authority) = (World::new().await, Authority::new());
    let short = [
        ("TALLYMAN_HEADER_SECONDS", "1"),
        ("TALLYMAN_CONNECTIONS", "16"),
    ];
    let service = authority.serve(&world, &short).await;
    let mut silent = TcpStream::connect(&service.address).await.unwrap();
    let mut half = TcpStream::connect(&service.address).await.unwrap();
    // The header of a record that is longer than what follows.
    half.write_all(&[22, 3, 1, 2, 0, 1]).await.unwrap();
    for stream in [&mut silent, &mut half] {
        let mut rest = Vec::new();
        let closed = timeout(TIMEOUT, stream.read_to_end(&mut rest)).await;
        let _ = closed.expect("the connection is closed");
        assert!(rest.is_empty(), "{rest:?}");
    }
    until_closed(&world, &authority, &service, "header_timeout").await;

    let mut waiting = Vec::new();
    for _ in 0..40 {
        waiting.push(TcpStream::connect(&service.address).await.unwrap());
    }
    assert!(authority.reaches(&service, "localhost").await);
    until_closed(&world, &authority, &service, "evicted").await;
}

/// Waits until the service has closed a connection for this reason.
async fn until_closed(world: &World, authority: &Authority, service: &Process, reason: &str) {
    let client = authority.client(service, "localhost").build().unwrap();
    let url = format!("{}/metrics", url(service, "localhost"));
    let sample = format!("tallyman_connections_closed_total{{reason=\"{reason}\"}} 0\n");
    let closed = async {
        loop {
            let response = client.get(&url).bearer_auth(&world.key).send().await;
            let text = response.unwrap().text().await.unwrap();
            if !text.contains(&sample) {
                assert!(text.contains(sample.trim_end_matches(" 0\n")), "{text}");
                return;
            }
        }
    };
    timeout(TIMEOUT, closed).await.unwrap();
}

#[tokio::test]
async fn a_client_that_does_not_read_is_disconnected() {
    let (world, authority) = (World::new().await, Authority::new());
    let service = authority
        .serve(&world, &[("TALLYMAN_BODY_SECONDS", "1")])
        .await;
    let mut roots = RootCertStore::empty();
    let root = CertificateDer::from_pem_slice(authority.issuer.pem().as_bytes()).unwrap();
    roots.add(root).unwrap();
    let config = ClientConfig::builder()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let stream = TcpStream::connect(&service.address).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let connector = TlsConnector::from(Arc::new(config));
    let mut unread = connector.connect(name, stream).await.unwrap();
    let request = "GET /openapi.json HTTP/1.1\r\nhost: x\r\n\r\n";
    // Until the peer closes: more responses than the buffers hold, and the client reads none.
    let sending = async { while unread.write_all(request.as_bytes()).await.is_ok() {} };
    tokio::select! {
        () = sending => {}
        () = until_closed(&world, &authority, &service, "write_timeout") => {}
    }
    until_closed(&world, &authority, &service, "write_timeout").await;
}

#[tokio::test]
async fn the_health_check_and_the_command_line_use_tls() {
    let (world, authority) = (World::new().await, Authority::new());
    let service = authority.serve(&world, &[]).await;
    let (certificate, key) = (authority.path("cert.pem"), authority.path("key.pem"));
    let variables = [
        ("TALLYMAN_LISTEN", service.address.as_str()),
        ("TALLYMAN_TLS_CERTIFICATE", &certificate),
        ("TALLYMAN_TLS_KEY", &key),
    ];
    let healthy = tallyman(&["healthcheck"], &variables).await;
    assert_eq!(healthy, (Some(0), String::new()));
    let (code, _) = tallyman(&["healthcheck"], &variables[..1]).await;
    assert_eq!(code, Some(1));

    let (url, root) = (url(&service, "localhost"), authority.path("ca.pem"));
    let variables = [
        ("TALLYMAN_API_KEY", world.key.as_str()),
        ("SSL_CERT_FILE", &root),
    ];
    let plans = ["plan", "list", "--url", &url];
    assert_eq!(tallyman(&plans, &variables).await, (Some(0), String::new()));
    let (code, error) = tallyman(&plans, &variables[..1]).await;
    assert_eq!(code, Some(1), "{error}");
    assert!(error.contains("certificate"), "{error}");
}
