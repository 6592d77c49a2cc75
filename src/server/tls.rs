//! TLS on the listener: the certificate and its key, read at start and again on SIGHUP.

use std::fmt;
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use arc_swap::ArcSwap;
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::TcpStream;
use tokio::signal::unix::Signal;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::transport::Transport;
use crate::config::TlsConfig;

/// The certificate that new connections get; clones share it.
#[derive(Clone)]
pub struct Tls(Arc<Shared>);

struct Shared {
    files: TlsConfig,
    current: ArcSwap<ServerConfig>,
}

impl Tls {
    /// Reads the files.
    pub fn load(files: TlsConfig) -> Result<Self> {
        let current = ArcSwap::from(read(&files)?);
        Ok(Self(Arc::new(Shared { files, current })))
    }

    /// Begins a handshake.
    pub(super) fn accept(&self, stream: TcpStream) -> Transport {
        let acceptor = TlsAcceptor::from(self.0.current.load_full());
        Transport::Handshake(Box::new(acceptor.accept(stream)))
    }

    /// Reads the files again at each of these signals, for new connections; keeps what it has if they cannot be used.
    pub async fn reload_at(self, mut signal: Signal, stop: CancellationToken) {
        while let Some(Some(())) = stop.run_until_cancelled(signal.recv()).await {
            match read(&self.0.files) {
                Ok(config) => {
                    self.0.current.store(config);
                    tracing::info!("new connections get the certificate that was read again");
                }
                Err(error) => {
                    let error = format!("{error:#}");
                    tracing::error!(%error, "new connections get the same certificate as before");
                }
            }
        }
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Tls").field(&self.0.files).finish()
    }
}

/// Reads the files; fails if the key is not that of the certificate.
fn read(files: &TlsConfig) -> Result<Arc<ServerConfig>> {
    let TlsConfig { certificate, key } = files;
    let setting = || format!("TALLYMAN_TLS_CERTIFICATE cannot be used: {certificate}");
    let chain = CertificateDer::pem_file_iter(certificate)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .with_context(setting)?;
    ensure!(!chain.is_empty(), "{} has no certificate", setting());
    let key = PrivateKeyDer::from_pem_file(key)
        .with_context(|| format!("TALLYMAN_TLS_KEY cannot be used: {key}"))?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .context("TALLYMAN_TLS_CERTIFICATE and TALLYMAN_TLS_KEY do not fit each other")?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}
