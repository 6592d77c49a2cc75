//! Loopback ports.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher as _;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};

use anyhow::{Context as _, Result};

/// Below the ports that systems assign to outgoing connections: one of those could take the port of a
/// server that is killed and starts again.
const FIRST: u16 = 15_000;
const COUNT: u16 = 15_000;

/// A TCP port on loopback for a server. It belongs to this value even while the server does not run.
#[derive(Debug)]
pub(crate) struct Port {
    number: u16,
    /// The UDP port of the same number, which no Redis uses. It is what keeps other users of this module away, in
    /// other processes too, and the system releases it when this process ends.
    _reservation: UdpSocket,
}

impl Port {
    /// Reserves a port that nothing listens on.
    pub(crate) fn reserve() -> Result<Self> {
        // Random, so that concurrent processes seldom try the same ones.
        let random = RandomState::new().hash_one(()).to_le_bytes();
        let offset = u16::from_le_bytes([random[0], random[1]]) % COUNT;
        let candidates = (offset..COUNT).chain(0..offset).map(|it| FIRST + it);
        candidates
            .into_iter()
            .find_map(|number| {
                let reservation = UdpSocket::bind((Ipv4Addr::LOCALHOST, number)).ok()?;
                TcpListener::bind((Ipv4Addr::LOCALHOST, number)).ok()?;
                Some(Self {
                    number,
                    _reservation: reservation,
                })
            })
            .with_context(|| format!("no port from {FIRST} to {} is free", FIRST + COUNT - 1))
    }

    pub(crate) fn number(&self) -> u16 {
        self.number
    }
}
