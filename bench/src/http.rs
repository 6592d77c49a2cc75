//! Keep-alive HTTP/1.1 connections, one request at a time each.
//!
//! The tool shares its cores with what it measures. Hence a connection is polled by the task that
//! waits for its response, which saves the switch between two tasks, and request heads are built once and cloned.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};

use anyhow::{Context as _, Result, bail};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::{AUTHORIZATION, HOST, HeaderMap, HeaderValue};
use hyper::{Request, Uri};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// A service and the credentials for it.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    /// Such as `127.0.0.1:7400`.
    authority: String,
    /// Of every request.
    headers: HeaderMap,
}

impl Target {
    /// `url` is that of a service without TLS, such as `http://127.0.0.1:7400`; `key` is an API key, or empty.
    pub(crate) fn new(url: &str, key: &str) -> Result<Self> {
        let uri: Uri = url.parse().unwrap_or_default();
        let (Some("http"), Some(authority), "/") = (uri.scheme_str(), uri.authority(), uri.path())
        else {
            bail!("{url:?} is not an address such as http://127.0.0.1:7400");
        };
        let mut headers = HeaderMap::new();
        headers.insert(HOST, HeaderValue::from_str(authority.as_str())?);
        if !key.is_empty() {
            let bearer = HeaderValue::try_from(format!("Bearer {key}"));
            headers.insert(AUTHORIZATION, bearer.context("this is no API key")?);
        }
        Ok(Self {
            authority: authority.to_string(),
            headers,
        })
    }

    /// A request with nothing but the headers that all have.
    pub(crate) fn request(&self, method: &str, path: &str) -> Result<Request<()>> {
        let mut request = Request::builder().method(method).uri(path).body(())?;
        request.headers_mut().clone_from(&self.headers);
        Ok(request)
    }

    /// Whether the service says that it is ready.
    pub(crate) async fn ready(&self) -> Result<()> {
        let request = self.request("GET", "/readyz")?.map(|()| Full::default());
        let response = Connection::new(self).send(request).await?;
        if response.status != 200 {
            bail!("/readyz responds with {}", response.status);
        }
        Ok(())
    }
}

/// A complete response.
#[derive(Debug)]
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) body: Bytes,
}

/// Connects when needed, and again after an error.
#[derive(Debug)]
pub(crate) struct Connection {
    authority: String,
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    sender: http1::SendRequest<Full<Bytes>>,
    /// Reads and writes the socket when polled; none once the socket is closed.
    driver: Option<Driver>,
}

impl Connection {
    pub(crate) fn new(target: &Target) -> Self {
        Self {
            authority: target.authority.clone(),
            open: None,
        }
    }

    /// Connects unless connected.
    pub(crate) async fn open(&mut self) -> Result<()> {
        if let Some(Open { driver, .. }) = &mut self.open {
            // Notices that the server has closed the connection meanwhile.
            if !poll_fn(|context| Poll::Ready(poll_driver(driver, context))).await {
                self.open = None;
            }
        }
        if self.open.is_none() {
            let stream = TcpStream::connect(self.authority.as_str()).await?;
            stream.set_nodelay(true)?;
            let (sender, driver) = http1::handshake(TokioIo::new(stream)).await?;
            self.open = Some(Open {
                sender,
                driver: Some(driver),
            });
        }
        Ok(())
    }

    /// Sends a request and reads its response. After an error on an open connection, the outcome of the
    /// request is unknown.
    pub(crate) async fn send(&mut self, request: Request<Full<Bytes>>) -> Result<Response> {
        self.open().await?;
        let open = self.open.as_mut().context("not connected")?;
        let response = open.exchange(request).await;
        if response.is_err() {
            self.open = None;
        }
        Ok(response?)
    }

    /// Sends a request, passes the body of its response on as it arrives, and returns the status.
    pub(crate) async fn read(
        &mut self,
        request: Request<Full<Bytes>>,
        mut each: impl FnMut(&[u8]),
    ) -> Result<u16> {
        self.open().await?;
        let Open { sender, driver } = self.open.as_mut().context("not connected")?;
        let exchange = async {
            sender.ready().await?;
            let response = sender.send_request(request).await?;
            let status = response.status().as_u16();
            let mut body = response.into_body();
            while let Some(frame) = body.frame().await {
                if let Some(chunk) = frame?.data_ref() {
                    each(chunk);
                }
            }
            Ok(status)
        };
        Ok(drive(driver, exchange).await?)
    }
}

impl Open {
    async fn exchange(&mut self, request: Request<Full<Bytes>>) -> hyper::Result<Response> {
        let Self { sender, driver } = self;
        let exchange = async {
            sender.ready().await?;
            let response = sender.send_request(request).await?;
            let status = response.status().as_u16();
            let body = response.into_body().collect().await?.to_bytes();
            Ok(Response { status, body })
        };
        drive(driver, exchange).await
    }
}

type Driver = http1::Connection<TokioIo<TcpStream>, Full<Bytes>>;

/// Polls a connection until an exchange over it has ended.
async fn drive<T>(
    driver: &mut Option<Driver>,
    exchange: impl Future<Output = hyper::Result<T>>,
) -> hyper::Result<T> {
    let mut exchange = pin!(exchange);
    poll_fn(|context| {
        // Reads what has arrived.
        poll_driver(driver, context);
        if let Poll::Ready(response) = exchange.as_mut().poll(context) {
            return Poll::Ready(response);
        }
        // Writes what the exchange has queued.
        poll_driver(driver, context);
        Poll::Pending
    })
    .await
}

/// Reads and writes what is possible, and drops a driver that has ended: an exchange would wait for it. Whether the
/// connection is open.
fn poll_driver(driver: &mut Option<Driver>, context: &mut Context<'_>) -> bool {
    let ended = driver.as_mut().map(|it| Pin::new(it).poll(context));
    if ended.is_some_and(|it| it.is_ready()) {
        *driver = None;
    }
    driver.is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_without_tls_are_targets() {
        let target = Target::new("http://127.0.0.1:7400/", "key").unwrap();
        assert_eq!(target.authority, "127.0.0.1:7400");
        for url in ["https://a", "http://", "http://a/b", "a:1"] {
            assert!(Target::new(url, "key").is_err(), "{url}");
        }
    }
}
