//! The bytes of a connection: plain, or TLS. A handshake happens within the first read, so the limits on a connection that
//! has not sent a request yet apply to it as well.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::Accept;
use tokio_rustls::server::TlsStream;
use tokio_util::either::Either;

/// A stream that application data can pass.
type Open = Either<TcpStream, Box<TlsStream<TcpStream>>>;

/// The stream of a connection.
pub(super) enum Transport {
    /// The TLS handshake is incomplete.
    Handshake(Box<Accept<TcpStream>>),
    /// Application data can pass.
    Open(Open),
    /// The handshake failed.
    Failed,
}

impl Transport {
    pub(super) fn plain(stream: TcpStream) -> Self {
        Self::Open(Either::Left(stream))
    }

    /// Whether the TLS handshake failed.
    pub(super) fn has_failed(&self) -> bool {
        matches!(self, Self::Failed)
    }

    /// Completes the handshake.
    fn poll_open(&mut self, context: &mut Context<'_>) -> Poll<io::Result<Pin<&mut Open>>> {
        if let Self::Handshake(accept) = self {
            match ready!(Pin::new(accept).poll(context)) {
                Ok(stream) => *self = Self::Open(Either::Right(Box::new(stream))),
                Err(error) => {
                    *self = Self::Failed;
                    return Poll::Ready(Err(error));
                }
            }
        }
        Poll::Ready(match self {
            Self::Open(open) => Ok(Pin::new(open)),
            Self::Handshake(_) | Self::Failed => Err(io::ErrorKind::ConnectionAborted.into()),
        })
    }
}

impl AsyncRead for Transport {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        ready!(self.poll_open(context))?.poll_read(context, buffer)
    }
}

impl AsyncWrite for Transport {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_open(context))?.poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_open(context))?.poll_write_vectored(context, parts)
    }

    fn is_write_vectored(&self) -> bool {
        matches!(self, Self::Open(open) if open.is_write_vectored())
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_open(context))?.poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_open(context))?.poll_shutdown(context)
    }
}
