//! `tallyman healthcheck`: asks the service on this machine whether it takes requests, for whoever
//! starts and stops it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

/// More than `/readyz` waits for the servers, and less than whoever asks waits for this.
const PATIENCE: Duration = Duration::from_secs(5);

/// Nothing if the service is ready, or degraded; else why it is not.
pub(super) async fn run(listen: SocketAddr) -> Result<()> {
    let url = format!("http://{}/readyz", own(listen));
    // What variables say of proxies is not meant for this machine.
    let client = reqwest::Client::builder()
        .no_proxy()
        .timeout(PATIENCE)
        .build()?;
    let answer = client
        .get(&url)
        .send()
        .await
        .map_err(reqwest::Error::without_url)
        .with_context(|| format!("nothing answers at {url}"))?;
    let status = answer.status();
    if !status.is_success() {
        let body = answer.text().await.unwrap_or_default();
        bail!("not ready: {url} answers {status} {}", body.trim());
    }
    Ok(())
}

/// Where a service that listens there is reached from its own machine.
fn own(mut listen: SocketAddr) -> SocketAddr {
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
    fn a_service_that_listens_everywhere_is_asked_at_home() {
        for (listen, asked) in [
            ("0.0.0.0:7400", "127.0.0.1:7400"),
            ("[::]:7400", "[::1]:7400"),
            ("10.1.2.3:80", "10.1.2.3:80"),
        ] {
            assert_eq!(own(listen.parse().unwrap()), asked.parse().unwrap());
        }
    }
}
