//! The stream of a connection: notes what arrives and what does not leave, puts a body to what hyper answers by itself,
//! and reads on for a while where the caller was answered before it had sent everything.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Sleep, sleep};

use super::state::Connection;
use crate::http;

/// How long, and for how many bytes, is read on after an early answer: who closes while the other side sends has the
/// answer destroyed on its way.
const LINGER_TIME: Duration = Duration::from_secs(5);
const LINGER_BYTES: usize = 32 * 1024 * 1024;

/// Answers that hyper gives by itself are shorter than this, and all others are longer or have a request id.
const BARE_MAX: usize = 256;

/// A stream, and what is known of its connection.
#[derive(Debug)]
pub(super) struct Watched {
    stream: TcpStream,
    connection: Arc<Connection>,
    instead: Option<Instead>,
    linger: Option<Linger>,
}

/// What is sent in place of an answer without a body.
#[derive(Debug)]
struct Instead {
    text: String,
    sent: usize,
    /// How many bytes of the other answer it stands for.
    replaces: usize,
}

#[derive(Debug)]
struct Linger {
    over: Pin<Box<Sleep>>,
    left: usize,
}

impl Watched {
    pub(super) fn new(stream: TcpStream, connection: Arc<Connection>) -> Self {
        Self {
            stream,
            connection,
            instead: None,
            linger: None,
        }
    }

    fn poll_instead(&mut self, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        while let Some(instead) = &mut self.instead {
            let rest = instead.text.as_bytes().get(instead.sent..);
            let rest = rest.unwrap_or_default();
            if rest.is_empty() {
                let replaces = instead.replaces;
                self.instead = None;
                // The rest of what could not be understood is still on its way.
                self.connection.unread.store(true, Ordering::Relaxed);
                return Poll::Ready(Ok(replaces));
            }
            instead.sent += ready!(Pin::new(&mut self.stream).poll_write(context, rest))?;
        }
        Poll::Ready(Ok(0))
    }

    fn note_write<T>(&self, written: Poll<T>) -> Poll<T> {
        let blocked = &self.connection.blocked;
        if blocked.load(Ordering::Relaxed) != written.is_pending() {
            blocked.store(written.is_pending(), Ordering::Relaxed);
        }
        written
    }

    /// Reads on and throws away, until the caller has seen that nobody listens, or the bound is reached.
    fn poll_linger(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let linger = self.linger.get_or_insert_with(|| Linger {
            over: Box::pin(sleep(LINGER_TIME)),
            left: LINGER_BYTES,
        });
        let mut scratch = [0; 16 * 1024];
        while linger.left > 0 && linger.over.as_mut().poll(context).is_pending() {
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

/// What to send instead, where hyper has refused a head and says no more than a status.
fn instead_of(answer: &[u8]) -> Option<Instead> {
    let bare = answer.len() < BARE_MAX
        && answer.starts_with(b"HTTP/1.1 4")
        && answer.ends_with(b"\r\n\r\n");
    let text = std::str::from_utf8(answer).ok().filter(|_| bare)?;
    if text.contains("x-request-id") {
        return None;
    }
    let status = text.get(9..12)?.parse().ok()?;
    Some(Instead {
        text: http::refusal(status)?,
        sent: 0,
        replaces: answer.len(),
    })
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = ready!(Pin::new(&mut self.stream).poll_read(context, buffer));
        let connection = &self.connection;
        if buffer.filled().len() > before && connection.waits() {
            connection.head_begun.store(true, Ordering::Relaxed);
        }
        Poll::Ready(read)
    }
}

impl AsyncWrite for Watched {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.instead.is_none() {
            self.instead = instead_of(bytes);
        }
        let written = if self.instead.is_some() {
            self.poll_instead(context)
        } else {
            Pin::new(&mut self.stream).poll_write(context, bytes)
        };
        self.note_write(written)
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
        self.note_write(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
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
        // A stream of HTTP/2 ends by itself, without its connection.
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
    fn only_what_hyper_answers_by_itself_is_replaced() {
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
            let answer = bare(status);
            let instead = instead_of(answer.as_bytes()).unwrap();
            assert_eq!(instead.replaces, answer.len());
            let (head, body) = instead.text.split_once("\r\n\r\n").unwrap();
            assert!(head.starts_with(&format!("HTTP/1.1 {status}")), "{head}");
            let length = format!("content-length: {}", body.len());
            assert!(head.contains(&length), "{head}");
        }
        for other in [
            bare("200 OK"),
            bare("429 Too Many Requests").replace("date:", "x-request-id: 1\r\ndate:"),
            bare("404 Not Found") + "{}",
        ] {
            assert!(instead_of(other.as_bytes()).is_none(), "{other}");
        }
    }
}
