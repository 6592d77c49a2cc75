//! The stream of a connection: records what arrives and whether writes block, replaces hyper's own error responses by
//! problem documents, and lingers after a response that preceded the end of its request.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

use super::state::Connection;
use super::transport::Transport;
use crate::http;

/// Bounds of lingering: after an early response the rest of the request is read and discarded, because closing a socket
/// with unread data resets the connection, and the client may lose the response.
const LINGER_TIME: Duration = Duration::from_secs(5);
const LINGER_BYTES: usize = 32 * 1024 * 1024;

/// Responses by hyper itself are shorter than this; all others are longer or have a request id.
const BARE_MAX: usize = 256;

/// A stream that keeps the state of its connection up to date.
pub(super) struct ObservedStream {
    stream: Transport,
    connection: Arc<Connection>,
    replacement: Option<Replacement>,
    linger: Option<Linger>,
}

/// Sent in place of a response without a body.
#[derive(Debug)]
struct Replacement {
    text: String,
    sent: usize,
    /// Length of the replaced response.
    replaces: usize,
}

#[derive(Debug)]
struct Linger {
    timeout: Pin<Box<Sleep>>,
    left: usize,
}

impl ObservedStream {
    pub(super) fn new(stream: Transport, connection: Arc<Connection>) -> Self {
        Self {
            stream,
            connection,
            replacement: None,
            linger: None,
        }
    }

    fn poll_replacement(&mut self, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        while let Some(replacement) = &mut self.replacement {
            let rest = replacement.text.as_bytes().get(replacement.sent..);
            let rest = rest.unwrap_or_default();
            if rest.is_empty() {
                let replaces = replacement.replaces;
                self.replacement = None;
                // The rest of the rejected request was not read.
                self.connection.unread.store(true, Ordering::Relaxed);
                return Poll::Ready(Ok(replaces));
            }
            replacement.sent += ready!(Pin::new(&mut self.stream).poll_write(context, rest))?;
        }
        Poll::Ready(Ok(0))
    }

    fn record_write<T>(&self, written: Poll<T>) -> Poll<T> {
        let blocked = &self.connection.blocked;
        if blocked.load(Ordering::Relaxed) != written.is_pending() {
            blocked.store(written.is_pending(), Ordering::Relaxed);
        }
        written
    }

    /// Reads and discards until the client closes, or a bound is reached.
    fn poll_linger(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let linger = self.linger.get_or_insert_with(|| Linger {
            timeout: Box::pin(sleep(LINGER_TIME)),
            left: LINGER_BYTES,
        });
        let mut scratch = [0; 16 * 1024];
        while linger.left > 0 && linger.timeout.as_mut().poll(context).is_pending() {
            let mut buffer = ReadBuf::new(&mut scratch);
            let read = ready!(Pin::new(&mut self.stream).poll_read(context, &mut buffer));
            if read.is_err() || buffer.filled().is_empty() {
                break;
            }
            linger.left = linger.left.saturating_sub(buffer.filled().len());
        }
        Poll::Ready(())
    }
}

/// The problem document for a request that hyper rejected with a bare status.
fn replacement_of(response: &[u8]) -> Option<Replacement> {
    let bare = response.len() < BARE_MAX
        && response.starts_with(b"HTTP/1.1 4")
        && response.ends_with(b"\r\n\r\n");
    let text = std::str::from_utf8(response).ok().filter(|_| bare)?;
    if text.contains("x-request-id") {
        return None;
    }
    let status = text.get(9..12)?.parse().ok()?;
    Some(Replacement {
        text: http::refusal(status)?,
        sent: 0,
        replaces: response.len(),
    })
}

impl AsyncRead for ObservedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = ready!(Pin::new(&mut self.stream).poll_read(context, buffer));
        let connection = &self.connection;
        if self.stream.has_failed() {
            connection.handshake_failed.store(true, Ordering::Relaxed);
        }
        if buffer.filled().len() > before && connection.is_idle() {
            connection.in_head.store(true, Ordering::Relaxed);
        }
        Poll::Ready(read)
    }
}

impl AsyncWrite for ObservedStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.replacement.is_none() {
            self.replacement = replacement_of(bytes);
        }
        let written = if self.replacement.is_some() {
            self.poll_replacement(context)
        } else {
            Pin::new(&mut self.stream).poll_write(context, bytes)
        };
        self.record_write(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if let [only] = parts {
            return self.poll_write(context, only);
        }
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, parts);
        self.record_write(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        // TLS accepts more than the socket does, and holds it back until a flush.
        let flushed = Pin::new(&mut self.stream).poll_flush(context);
        self.record_write(flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.linger.is_none() {
            ready!(Pin::new(&mut self.stream).poll_shutdown(context))?;
        }
        let Connection {
            unread,
            multiplexed,
            ..
        } = &*self.connection;
        // An HTTP/2 stream ends independently of its connection.
        if unread.load(Ordering::Relaxed) && !multiplexed.load(Ordering::Relaxed) {
            ready!(self.poll_linger(context));
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_responses_by_hyper_itself_are_replaced() {
        let bare = |status: &str| {
            format!(
                "HTTP/1.1 {status}\r\ncontent-length: 0\r\ndate: Sun, 06 Nov 1994 08:49:37 GMT\r\n\r\n"
            )
        };
        for status in [
            "400 Bad Request",
            "414 URI Too Long",
            "431 Request Header Fields Too Large",
        ] {
            let response = bare(status);
            let replacement = replacement_of(response.as_bytes()).unwrap();
            assert_eq!(replacement.replaces, response.len());
            let (head, body) = replacement.text.split_once("\r\n\r\n").unwrap();
            assert!(head.starts_with(&format!("HTTP/1.1 {status}")), "{head}");
            let length = format!("content-length: {}", body.len());
            assert!(head.contains(&length), "{head}");
        }
        for other in [
            bare("200 OK"),
            bare("429 Too Many Requests").replace("date:", "x-request-id: 1\r\ndate:"),
            bare("404 Not Found") + "{}",
        ] {
            assert!(replacement_of(other.as_bytes()).is_none(), "{other}");
        }
    }
}
