//! Prevents requests to private addresses (SSRF), unless they are allowed.
//!
//! A URL is checked when it is registered, so that users notice a mistake. For security, every address is checked again
//! before connecting, because a name may resolve to another address then.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use reqwest::Url;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

use crate::domain::input::quoted;
use crate::domain::webhook::InvalidWebhook;

/// The longest URL.
const URL_MAX: usize = 2048;

/// How long a name look-up may take when a URL is registered.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(2);

/// Which addresses are allowed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Targets {
    allow_private: bool,
}

/// An address that is not allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("leads to {0}, which is not a public address")]
pub(super) struct Private(IpAddr);

impl Targets {
    pub(super) fn new(allow_private: bool) -> Self {
        Self { allow_private }
    }

    /// Refuses a URL to which nothing would be sent. A name that cannot be resolved now is accepted.
    pub(super) async fn check(self, url: &str) -> Result<(), InvalidWebhook> {
        if url.len() > URL_MAX {
            let detail = format!(
                "must be at most {URL_MAX} bytes; got {} bytes: {}",
                url.len(),
                quoted(url)
            );
            return Err(InvalidWebhook::url(detail));
        }
        let malformed = || {
            let example = "an http:// or https:// URL, such as https://example.com/tallyman";
            InvalidWebhook::url(format!("must be {example}; got {}", quoted(url)))
        };
        // The URL parser removes these, so the stored URL would differ from the requested one.
        if url.contains(|c: char| c.is_control() || c.is_whitespace()) {
            return Err(malformed());
        }
        let url: Url = url.parse().map_err(|_| malformed())?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(malformed());
        }
        if !url.username().is_empty() || url.password().is_some() {
            let detail =
                "must not hold a user or a password, and does; deliveries are signed instead";
            return Err(InvalidWebhook::url(detail));
        }
        self.check_literal(&url)
            .map_err(|private| InvalidWebhook::url(private.to_string()))?;
        let Some(name) = url.domain().filter(|_| !self.allow_private) else {
            return Ok(());
        };
        // Always this machine (RFC 6761).
        let last = name.trim_end_matches('.').rsplit('.').next();
        if last == Some("localhost") {
            return Err(InvalidWebhook::url("leads to this machine"));
        }
        let found = tokio::time::timeout(LOOKUP_TIMEOUT, tokio::net::lookup_host((name, 0))).await;
        if let Ok(Ok(addresses)) = found {
            self.check_addresses(&addresses.collect::<Vec<_>>())
                .map_err(|private| InvalidWebhook::url(private.to_string()))?;
        }
        Ok(())
    }

    /// Refuses a literal address in the URL, in any notation: it is not resolved, so no other check sees it.
    pub(super) fn check_literal(self, url: &Url) -> Result<(), Private> {
        let host = url.host_str().unwrap_or_default();
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        match bare.parse() {
            Ok(address) => self.check_address(address),
            Err(_) => Ok(()),
        }
    }

    /// Refuses all addresses of a name if one of them is not allowed.
    fn check_addresses(self, addresses: &[SocketAddr]) -> Result<(), Private> {
        addresses
            .iter()
            .try_for_each(|address| self.check_address(address.ip()))
    }

    fn check_address(self, address: IpAddr) -> Result<(), Private> {
        if self.allow_private || is_public(address) {
            Ok(())
        } else {
            Err(Private(address))
        }
    }
}

/// Resolves names for the HTTP client.
impl Resolve for Targets {
    fn resolve(&self, name: Name) -> Resolving {
        let targets = *self;
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let addresses: Vec<SocketAddr> = found.collect();
            targets.check_addresses(&addresses)?;
            let addresses: Addrs = Box::new(addresses.into_iter());
            Ok(addresses)
        })
    }
}

/// Whether an address is public.
fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => is_public_v4(v4),
        IpAddr::V6(v6) => is_public_v6(v6),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let octets = address.octets();
    // This network, private, loopback; link-local, where clouds serve their metadata; shared by carriers.
    let inside = matches!(
        octets,
        [0 | 10 | 127, ..]
            | [172, 16..=31, ..]
            | [192, 168, ..]
            | [169, 254, ..]
            | [100, 64..=127, ..]
    );
    // Protocols, documentation and benchmarks; multicast, reserved, broadcast.
    let special = matches!(
        octets,
        [192, 0, 0 | 2, _]
            | [192, 88, 99, _]
            | [198, 18 | 19, ..]
            | [198, 51, 100, _]
            | [203, 0, 113, _]
            | [224..=255, ..]
    );
    // Azure serves its metadata here.
    let metadata = octets == [168, 63, 129, 16];
    !inside && !special && !metadata
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    let embedded = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        is_public_v4(Ipv4Addr::new(a, b, c, d))
    };
    match address.segments() {
        // An embedded IPv4 address: mapped, translated by NAT64, tunnelled by 6to4.
        [0, 0, 0, 0, 0, 0xffff, high, low]
        | [0x64, 0xff9b, 0, 0, 0, 0, high, low]
        | [0x2002, high, low, ..] => embedded(high, low),
        // Teredo, other protocols, documentation.
        [0x2001, 0..=0x1ff | 0xdb8, ..] | [0x3fff, 0..=0xfff, ..] => false,
        // The rest is loopback, private, link-local, multicast, or not assigned.
        [first, ..] => (0x2000..=0x3fff).contains(&first),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(url: &str) -> bool {
        let url: Url = url.parse().unwrap();
        Targets::new(false).check_literal(&url).is_err()
    }

    #[test]
    fn private_addresses_are_refused_in_any_notation() {
        for url in [
            "http://127.0.0.1/",
            "http://127.1/",
            "http://2130706433/",
            "http://0x7f000001/",
            "http://0x7f.1/",
            "http://0177.0.0.1/",
            "http://127.0.0.1./",
            "http://１２７.0.0.1/",
            "http://0/",
            "http://0.0.0.0/",
            "http://10.0.0.1/",
            "http://100.64.0.1/",
            "http://100.100.100.200/",
            "http://169.254.169.254/latest/meta-data",
            "http://168.63.129.16/",
            "http://172.16.0.1/",
            "http://172.31.255.255/",
            "http://192.0.0.192/",
            "http://192.168.1.1/",
            "http://198.18.0.1/",
            "http://224.0.0.1/",
            "http://240.0.0.1/",
            "http://255.255.255.255/",
            "http://[::]/",
            "http://[::1]/",
            "http://[::127.0.0.1]/",
            "http://[::ffff:127.0.0.1]/",
            "http://[::ffff:a9fe:a9fe]/",
            "http://[::ffff:0:127.0.0.1]/",
            "http://[64:ff9b::127.0.0.1]/",
            "http://[64:ff9b::a9fe:a9fe]/",
            "http://[64:ff9b:1::1]/",
            "http://[2002:7f00:1::]/",
            "http://[2002:a9fe:a9fe::1]/",
            "http://[2001:0:1::1]/",
            "http://[2001:db8::1]/",
            "http://[fc00::1]/",
            "http://[fd00:ec2::254]/",
            "http://[fe80::1]/",
            "http://[fec0::1]/",
            "http://[ff02::1]/",
        ] {
            assert!(refused(url), "{url}");
        }
    }

    #[test]
    fn public_addresses_are_accepted_and_all_if_private_ones_are_allowed() {
        for url in [
            "http://1.1.1.1/",
            "http://9.255.255.255/",
            "http://11.0.0.0/",
            "http://100.63.255.255/",
            "http://100.128.0.0/",
            "http://126.255.255.255/",
            "http://128.0.0.0/",
            "http://169.253.255.255/",
            "http://172.15.255.255/",
            "http://172.32.0.0/",
            "http://192.167.255.255/",
            "http://223.255.255.255/",
            "http://[2606:4700:4700::1111]/",
            "http://[::ffff:1.1.1.1]/",
            "http://[64:ff9b::1.1.1.1]/",
            "http://[2002:101:101::1]/",
            "http://example.com/",
        ] {
            assert!(!refused(url), "{url}");
        }
        let loopback: Url = "http://[::1]:7400/".parse().unwrap();
        assert_eq!(Targets::new(true).check_literal(&loopback), Ok(()));
    }

    #[test]
    fn a_name_is_refused_if_one_of_its_addresses_is() {
        let at = |address: &str| SocketAddr::new(address.parse().unwrap(), 0);
        let targets = Targets::new(false);
        assert_eq!(targets.check_addresses(&[at("1.1.1.1")]), Ok(()));
        let mixed = [at("1.1.1.1"), at("10.0.0.1")];
        assert_eq!(targets.check_addresses(&mixed), Err(Private(mixed[1].ip())));
    }
}
