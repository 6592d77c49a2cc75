//! `tallyman healthcheck`: checks whether the service on this machine is ready, for container runtimes and process
//! managers.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::config::TlsConfig;

/// Longer than `/readyz` waits for Redis and Postgres, shorter than the timeout in the Dockerfile.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Fails unless the service is ready or degraded.
pub(super) async fn run(listen: SocketAddr, tls: &TlsConfig) -> Result<()> {
    let url = format!("{}://{}/readyz", tls.scheme(), local(listen));
    // HTTP_PROXY and the like must not apply to this machine.
    let client = reqwest::Client::builder()
        .no_proxy()
        // It names the host that clients call; nothing secret is sent to this machine.
        .tls_danger_accept_invalid_certs(tls.enabled().is_some())
        .timeout(TIMEOUT)
        .build()?;
    let response = client
        .get(&url)
        .send()
        .await
        .map_err(reqwest::Error::without_url)
        .with_context(|| format!("no response from {url}"))?;
    let status = response.status();
    if !status.is_success() {
        let body = response.text().await.unwrap_or_default();
        bail!("not ready: {url} responds with {status} {}", body.trim());
    }
    Ok(())
}

/// The address to connect to from this machine: an unspecified one stands for all interfaces.
pub(super) fn local(mut listen: SocketAddr) -> SocketAddr {
    match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => listen.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => listen.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    listen
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unspecified_address_becomes_the_loopback_address() {
        for (listen, expected) in [
            ("0.0.0.0:7400", "127.0.0.1:7400"),
            ("[::]:7400", "[::1]:7400"),
            ("10.1.2.3:80", "10.1.2.3:80"),
        ] {
            assert_eq!(local(listen.parse().unwrap()), expected.parse().unwrap());
        }
    }
}
