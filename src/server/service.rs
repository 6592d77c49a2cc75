//! Passes requests to the HTTP API and tracks their progress in the state of the connection.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use axum::body::{Body, Bytes};
use axum::http::header::CONNECTION;
use axum::http::{HeaderValue, Request, Response, Version};
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;
use hyper::service::Service;
use pin_project_lite::pin_project;
use tower::Service as _;

use super::state::{Connection, InFlight, ReceivingBody};
use crate::http::{Answering, Dispatch, Peer};

/// The HTTP API, as hyper's service for one connection.
#[derive(Debug)]
pub(super) struct ConnectionService {
    pub(super) service: Dispatch,
    pub(super) connection: Arc<Connection>,
    pub(super) peer: Peer,
    /// Whether HTTP/1 responses say `connection: close`.
    pub(super) draining: Arc<AtomicBool>,
}

impl Service<Request<Incoming>> for ConnectionService {
    type Response = Response<ResponseBody>;
    type Error = Infallible;
    type Future = ResponseFuture;

    fn call(&self, request: Request<Incoming>) -> ResponseFuture {
        let connection = &self.connection;
        connection.was_used.store(true, Ordering::Relaxed);
        connection.in_head.store(false, Ordering::Relaxed);
        connection.unread.store(false, Ordering::Relaxed);
        let request_version = request.version();
        if request_version == Version::HTTP_2 {
            connection.multiplexed.store(true, Ordering::Relaxed);
        }
        let in_flight = InFlight::new(connection);
        let mut request = request.map(|incoming| {
            if http_body::Body::is_end_stream(&incoming) {
                return Body::empty();
            }
            let receiving = ReceivingBody::new(connection);
            Body::new(RequestBody {
                incoming,
                receiving,
            })
        });
        request.extensions_mut().insert(self.peer);
        ResponseFuture {
            response: self.service.clone().call(request),
            in_flight: Some(in_flight),
            closing: request_version < Version::HTTP_2 && self.draining.load(Ordering::Acquire),
        }
    }
}

pin_project! {
    /// A request being answered.
    pub(super) struct ResponseFuture {
        #[pin]
        response: Answering,
        in_flight: Option<InFlight>,
        // Whether this is the last response on its connection.
        closing: bool,
    }
}

impl Future for ResponseFuture {
    type Output = Result<Response<ResponseBody>, Infallible>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let Ok(mut response) = ready!(this.response.poll(context));
        if *this.closing {
            let close = HeaderValue::from_static("close");
            response.headers_mut().insert(CONNECTION, close);
        }
        let in_flight = this.in_flight.take();
        Poll::Ready(Ok(response.map(|body| ResponseBody {
            body,
            _in_flight: in_flight,
        })))
    }
}

/// The body of a response; its request is in flight until this is dropped.
#[derive(Debug)]
pub(super) struct ResponseBody {
    body: Body,
    _in_flight: Option<InFlight>,
}

impl http_body::Body for ResponseBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The body of a request, which records when it is complete.
#[derive(Debug)]
struct RequestBody {
    incoming: Incoming,
    receiving: ReceivingBody,
}

impl http_body::Body for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = ready!(Pin::new(&mut self.incoming).poll_frame(context));
        if frame.is_none() || self.incoming.is_end_stream() {
            self.receiving.done();
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}
