//! The deadline of every request: it is answered in time, or told that it was not.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::extract::Request;
use axum::http::HeaderMap;
use axum::response::{IntoResponse as _, Response};
use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep, sleep_until};
use tower::{Layer, Service};

use super::extract::preference;
use super::problem::Error;
use super::request_log::{RequestInfo, Time};

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
        let info: Option<RequestInfo> = request.extensions().get().cloned();
        let started = info
            .as_ref()
            .map_or_else(Instant::now, RequestInfo::started);
        InTime {
            info,
            response: self.inner.call(request),
            timer: sleep_until(started + limit),
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
            let now = Instant::now();
            let time = this
                .info
                .as_ref()
                .map_or(Time::FromStart, RequestInfo::time);
            let ends = match time {
                Time::FromStart => now,
                Time::From(start) => start + *this.limit,
                Time::Receiving | Time::Unlimited => now + *this.limit,
            };
            if ends <= now {
                return Poll::Ready(Ok(Error::DeadlineExceeded.into_response()));
            }
            this.timer.as_mut().reset(ends);
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use axum::http::StatusCode;
    use chrono::DateTime;
    use tokio::time::sleep;
    use tower::{ServiceBuilder, ServiceExt as _, service_fn};

    use super::*;
    use crate::http::request_log::RequestLog;
    use crate::metrics::Metrics;

    /// The response of a handler to a request with this `Prefer`, within 5 seconds, and how long it took.
    async fn call<F>(prefer: &str, handler: fn(RequestInfo) -> F) -> (StatusCode, Duration)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let service = ServiceBuilder::new()
            .layer(RequestLog::layer(
                Metrics::new("tests", DateTime::UNIX_EPOCH),
                None,
            ))
            .layer(Deadline::layer(Duration::from_secs(5)))
            .service(service_fn(move |request: Request| async move {
                let info = request.extensions().get().cloned().unwrap();
                handler(info).await;
                Ok(Response::new(Body::empty()))
            }));
        let request = Request::builder().header("prefer", prefer);
        let started = Instant::now();
        let response = service.oneshot(request.body(Body::empty()).unwrap()).await;
        let Ok(response) = response;
        (response.status(), started.elapsed())
    }

    async fn slow(_: RequestInfo) {
        sleep(Duration::from_secs(30)).await;
    }

    async fn slow_and_long(info: RequestInfo) {
        info.allow(Time::Unlimited);
        sleep(Duration::from_secs(30)).await;
    }

    /// The body takes 8 seconds, and the rest 4.
    async fn slow_body(info: RequestInfo) {
        info.allow(Time::Receiving);
        sleep(Duration::from_secs(8)).await;
        info.allow(Time::From(Instant::now()));
        sleep(Duration::from_secs(4)).await;
    }

    async fn slow_body_and_rest(info: RequestInfo) {
        slow_body(info).await;
        sleep(Duration::from_secs(4)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_has_its_time_after_its_body_and_less_if_its_caller_says_so() {
        let late = StatusCode::GATEWAY_TIMEOUT;
        let seconds = Duration::from_secs;
        assert_eq!(call("", slow).await, (late, seconds(5)));
        assert_eq!(call("wait=2", slow).await, (late, seconds(2)));
        assert_eq!(call("wait=60", slow).await, (late, seconds(5)));
        assert_eq!(call("", slow_and_long).await, (StatusCode::OK, seconds(30)));
        assert_eq!(call("", slow_body).await, (StatusCode::OK, seconds(12)));
        assert_eq!(call("", slow_body_and_rest).await, (late, seconds(13)));
    }
}
