//! The deadline of every request: it is answered in time, or told that it was not.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::extract::Request;
use axum::http::HeaderMap;
use axum::response::{IntoResponse as _, Response};
use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep, sleep};
use tower::{Layer, Service};

use super::extract::preference;
use super::problem::Error;
use super::request_log::RequestInfo;

/// Answers every request in time.
#[derive(Debug, Clone)]
pub(super) struct Deadline<S> {
    limit: Duration,
    inner: S,
}

impl<S> Deadline<S> {
    /// The layer; a caller may ask for less time with `Prefer: wait=`.
    pub(super) fn layer(limit: Duration) -> impl Layer<S, Service = Self> + Clone {
        tower::layer::layer_fn(move |inner| Self { limit, inner })
    }
}

impl<S> Service<Request> for Deadline<S>
where
    S: Service<Request, Response = Response, Error = Infallible>,
{
    type Response = Response;
    type Error = Infallible;
    type Future = InTime<S::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request) -> Self::Future {
        let limit = preferred(request.headers()).map_or(self.limit, |it| it.min(self.limit));
        InTime {
            info: request.extensions().get().cloned(),
            response: self.inner.call(request),
            timer: sleep(limit),
            limit,
        }
    }
}

/// The whole seconds of `Prefer: wait=` (RFC 7240).
fn preferred(headers: &HeaderMap) -> Option<Duration> {
    let seconds: u32 = preference(headers, "wait")?.parse().ok()?;
    Some(Duration::from_secs(seconds.into()))
}

pin_project! {
    /// A response in time.
    pub(super) struct InTime<F> {
        #[pin]
        response: F,
        #[pin]
        timer: Sleep,
        limit: Duration,
        info: Option<RequestInfo>,
    }
}

impl<F: Future<Output = Result<Response, Infallible>>> Future for InTime<F> {
    type Output = Result<Response, Infallible>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        if let Poll::Ready(response) = this.response.poll(context) {
            return Poll::Ready(response);
        }
        while this.timer.as_mut().poll(context).is_ready() {
            // A body that is still being received has a timeout of its own, and the time begins after it.
            let begins = this.info.as_ref().and_then(RequestInfo::body_received);
            let ends = begins.unwrap_or_else(Instant::now) + *this.limit;
            let receiving = this.info.as_ref().is_some_and(RequestInfo::is_receiving);
            if !receiving && (begins.is_none() || ends <= Instant::now()) {
                return Poll::Ready(Ok(Error::DeadlineExceeded.into_response()));
            }
            this.timer.as_mut().reset(ends);
        }
        Poll::Pending
    }
}
