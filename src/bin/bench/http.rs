//! HTTP/1.1 as far as a load tool needs it: keep-alive connections, requests that were rendered
//! beforehand, and a reader that wants the status, the length and the body.
//!
//! The tool shares its cores with what it measures, hence no client library.

use std::fmt::Write as _;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;

use anyhow::{Result, bail};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// What is asked to be read at once.
const READ_SIZE: usize = 16 * 1024;

/// Who is asked, and as whom.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    /// Such as `127.0.0.1:7400`.
    pub(crate) authority: String,
    /// An API key.
    pub(crate) key: String,
}

impl Target {
    /// A service without TLS, such as `http://127.0.0.1:7400`.
    pub(crate) fn new(url: &str, key: &str) -> Result<Self> {
        let authority = url.strip_prefix("http://").unwrap_or_default();
        let authority = authority.trim_end_matches('/');
        if authority.is_empty() || authority.contains('/') {
            bail!("{url:?} is not an address such as http://127.0.0.1:7400");
        }
        Ok(Self {
            authority: authority.to_owned(),
            key: key.to_owned(),
        })
    }

    /// What listens there.
    pub(crate) fn at(address: SocketAddr, key: &str) -> Self {
        Self {
            authority: address.to_string(),
            key: key.to_owned(),
        }
    }

    /// The head of a request without a body.
    pub(crate) fn get(&self, path: &str) -> Vec<u8> {
        let mut head = self.head("GET", path);
        head.push_str("\r\n");
        head.into_bytes()
    }

    /// A head that takes more lines, and lacks the empty one.
    pub(crate) fn head(&self, method: &str, path: &str) -> String {
        let mut head = format!("{method} {path} HTTP/1.1\r\nhost: {}\r\n", self.authority);
        if !self.key.is_empty() {
            let _ = write!(head, "authorization: Bearer {}\r\n", self.key);
        }
        head
    }
}

/// An answer, read to its end.
#[derive(Debug)]
pub(crate) struct Answer<'a> {
    pub(crate) status: u16,
    pub(crate) body: &'a [u8],
}

/// A connection that is made when it is needed, and made again once it has broken.
#[derive(Debug)]
pub(crate) struct Connection {
    authority: String,
    stream: Option<TcpStream>,
    received: Vec<u8>,
}

impl Connection {
    pub(crate) fn new(target: &Target) -> Self {
        Self {
            authority: target.authority.clone(),
            stream: None,
            received: Vec::new(),
        }
    }

    /// Connects, unless that has been done and has lasted.
    pub(crate) async fn open(&mut self) -> io::Result<()> {
        if self.stream.is_none() {
            let stream = TcpStream::connect(self.authority.as_str()).await?;
            stream.set_nodelay(true)?;
            self.stream = Some(stream);
        }
        Ok(())
    }

    /// Sends a request and reads its answer. After an error on an open connection, what became of the
    /// request is unknown.
    pub(crate) async fn ask(&mut self, request: &[u8]) -> io::Result<Answer<'_>> {
        self.open().await?;
        match self.exchange(request).await {
            Ok(head) => Ok(Answer {
                status: head.status,
                body: self.received.get(head.length..).unwrap_or_default(),
            }),
            Err(cause) => {
                self.stream = None;
                Err(cause)
            }
        }
    }

    async fn exchange(&mut self, request: &[u8]) -> io::Result<Head> {
        let Some(stream) = &mut self.stream else {
            return Err(ErrorKind::NotConnected.into());
        };
        stream.write_all(request).await?;
        self.received.clear();
        loop {
            self.received.reserve(READ_SIZE);
            if stream.read_buf(&mut self.received).await? == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
            let Some(head) = Head::read(&self.received)? else {
                continue;
            };
            let end = head.length + head.body;
            while self.received.len() < end {
                self.received.reserve(end - self.received.len());
                if stream.read_buf(&mut self.received).await? == 0 {
                    return Err(ErrorKind::UnexpectedEof.into());
                }
            }
            if self.received.len() > end {
                return Err(nonsense("more than one answer to one request"));
            }
            return Ok(head);
        }
    }
}

/// What the head of an answer says.
#[derive(Debug, PartialEq, Eq)]
struct Head {
    status: u16,
    /// Of the head itself, its empty line included.
    length: usize,
    /// Of the body.
    body: usize,
}

impl Head {
    /// None while the head is not complete.
    fn read(bytes: &[u8]) -> io::Result<Option<Self>> {
        let (mut status, mut body, mut at) = (None, None, 0);
        while let Some(length) = bytes[at..].iter().position(|byte| *byte == b'\n') {
            let line = bytes[at..at + length].trim_ascii_end();
            at += length + 1;
            if line.is_empty() {
                let status = status.ok_or_else(|| nonsense("no status line"))?;
                let body = match (status, body) {
                    (204, _) => 0,
                    (_, Some(body)) => body,
                    (_, None) => return Err(nonsense("an answer without content-length")),
                };
                return Ok(Some(Self {
                    status,
                    length: at,
                    body,
                }));
            }
            if status.is_none() {
                let code = line.strip_prefix(b"HTTP/1.1 ").and_then(|it| it.get(..3));
                status = Some(number(code).ok_or_else(|| nonsense("no status"))?);
            } else if let Some((name, value)) = line.split_at_checked(15)
                && name.eq_ignore_ascii_case(b"content-length:")
            {
                let length = number(Some(value.trim_ascii()));
                body = Some(length.ok_or_else(|| nonsense("no content-length"))?);
            }
        }
        Ok(None)
    }
}

fn number<T: std::str::FromStr>(text: Option<&[u8]>) -> Option<T> {
    std::str::from_utf8(text?).ok()?.parse().ok()
}

fn nonsense(what: &str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, what)
}

/// Whether the service is ready to be asked.
pub(crate) async fn is_ready(target: &Target) -> bool {
    let mut connection = Connection::new(target);
    let answer = connection.ask(&target.get("/readyz")).await;
    answer.is_ok_and(|answer| answer.status == 200)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_read_once_it_is_complete() {
        let text = b"HTTP/1.1 429 Too Many Requests\r\nratelimit: x\r\nContent-Length: 12\r\n\r\n";
        let head = Head {
            status: 429,
            length: text.len(),
            body: 12,
        };
        assert_eq!(Head::read(text).unwrap(), Some(head));
        for end in 0..text.len() {
            assert_eq!(Head::read(&text[..end]).unwrap(), None, "{end}");
        }
    }

    #[test]
    fn a_head_that_does_not_tell_where_its_answer_ends_is_an_error() {
        for text in [
            "HTTP/1.1 200 OK\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n",
            "200 OK\r\ncontent-length: 1\r\n\r\n",
            "\r\n",
        ] {
            assert!(Head::read(text.as_bytes()).is_err(), "{text:?}");
        }
        assert!(Head::read(b"HTTP/1.1 204 No Content\r\n\r\n").is_ok());
    }

    #[test]
    fn only_addresses_without_tls_are_targets() {
        let target = Target::new("http://127.0.0.1:7400/", "key").unwrap();
        assert_eq!(target.authority, "127.0.0.1:7400");
        for url in ["https://a", "http://", "http://a/b", "a:1"] {
            assert!(Target::new(url, "key").is_err(), "{url}");
        }
    }
}
