//! Requests on their way through the router, and what the connection knows of them.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::{Request, Response, Version};
use axum::routing::future::RouteFuture;
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;
use hyper::service::Service;
use pin_project_lite::pin_project;
use tower::Service as _;

use super::state::{Arriving, Connection, InFlight};

/// The router, for one connection.
#[derive(Debug)]
pub(super) struct Answerer {
    pub(super) router: Router,
    pub(super) connection: Arc<Connection>,
}

impl Service<Request<Incoming>> for Answerer {
    type Response = Response<Answer>;
    type Error = Infallible;
    type Future = Answering;

    fn call(&self, request: Request<Incoming>) -> Answering {
        let connection = &self.connection;
        connection.asked.store(true, Ordering::Relaxed);
        connection.head_begun.store(false, Ordering::Relaxed);
        connection.unread.store(false, Ordering::Relaxed);
        if request.version() == Version::HTTP_2 {
            connection.multiplexed.store(true, Ordering::Relaxed);
        }
        let in_flight = InFlight::new(connection);
        let request = request.map(|incoming| {
            if http_body::Body::is_end_stream(&incoming) {
                return Body::empty();
            }
            let arriving = Arriving::new(connection);
            Body::new(Asked { incoming, arriving })
        });
        Answering {
            answer: self.router.clone().call(request),
            in_flight: Some(in_flight),
        }
    }
}

pin_project! {
    /// A request that is being answered.
    pub(super) struct Answering {
        #[pin]
        answer: RouteFuture<Infallible>,
        in_flight: Option<InFlight>,
    }
}

impl Future for Answering {
    type Output = Result<Response<Answer>, Infallible>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let Ok(response) = ready!(this.answer.poll(context));
        let in_flight = this.in_flight.take();
        Poll::Ready(Ok(response.map(|body| Answer {
            body,
            _in_flight: in_flight,
        })))
    }
}

/// The body of an answer; its request is in flight until it is dropped.
#[derive(Debug)]
pub(super) struct Answer {
    body: Body,
    _in_flight: Option<InFlight>,
}

impl http_body::Body for Answer {
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

/// The body of a request, which says when it has arrived.
#[derive(Debug)]
struct Asked {
    incoming: Incoming,
    arriving: Arriving,
}

impl http_body::Body for Asked {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = ready!(Pin::new(&mut self.incoming).poll_frame(context));
        if frame.is_none() || self.incoming.is_end_stream() {
            self.arriving.done();
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
