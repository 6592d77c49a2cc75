//! The other end of the connection that a request came by.

use std::net::IpAddr;

/// The other end of a connection: a client, or a proxy in front of the service. An extension of each request from the
/// network.
#[derive(Debug, Clone, Copy)]
pub struct Peer {
    /// Its address.
    pub ip: IpAddr,
    /// Whether the connection is TLS.
    pub is_tls: bool,
}
