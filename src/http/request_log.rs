//! What is said of every request: an id, a line in the log, and numbers.
//!
//! Never a path, a query, a body or a header as it came, because each may hold a secret; the route
//! that matched, and the id of a key that was accepted.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use axum::extract::{MatchedPath, Request};
use axum::http::header::{CACHE_CONTROL, X_CONTENT_TYPE_OPTIONS};
use axum::http::{HeaderName, HeaderValue, Method, Response};
use pin_project_lite::pin_project;
use tower::{Layer, Service};
use tracing::Instrument as _;
use tracing::instrument::Instrumented;
use uuid::Uuid;

use super::problem::Reason;
use crate::auth;
use crate::domain::ids::ApiKeyId;
use crate::metrics::Metrics;
use crate::postgres::api_keys;

/// Where lines and spans of requests are filtered by.
const TARGET: &str = "tallyman::request";

/// What the log calls a path that no route matches.
const NO_ROUTE: &str = "none";

/// The calls that auth servers make on every request of theirs. What is answered as it should be has a line only
/// where the log tells of everything, because writing the line costs more than the counting.
const COUNTING: [&str; 5] = [
    "/v1/track",
    "/v1/consume",
    "/v1/check",
    "/v1/refund",
    "/v1/batch",
];

/// The header that names a request, given or made.
pub(super) const REQUEST_ID: &str = "x-request-id";

/// A request's id and, once that is known, who calls; shared with the extractors by way of the request's extensions.
#[derive(Debug, Clone)]
pub(super) struct RequestInfo(Arc<About>);

#[derive(Debug)]
struct About {
    id: HeaderValue,
    caller: OnceLock<CallerId>,
}

/// What was accepted.
#[derive(Debug)]
pub(super) enum CallerId {
    /// A key.
    Key(ApiKeyId),
    /// A user's JWT.
    User(Arc<str>),
}

impl RequestInfo {
    /// Notes who was accepted.
    pub(super) fn set_caller(&self, id: CallerId) {
        // Several extractors may ask for the caller; they find the same one.
        let _ = self.0.caller.set(id);
    }

    /// The caller's id of the request, or one of our own.
    pub(super) fn request_id(&self) -> &str {
        self.header().to_str().unwrap_or_default()
    }

    fn header(&self) -> &HeaderValue {
        &self.0.id
    }

    /// Who was accepted, if anybody was yet.
    pub(super) fn caller(&self) -> Option<&CallerId> {
        self.0.caller.get()
    }
}

const NAME: HeaderName = HeaderName::from_static(REQUEST_ID);

/// Names requests, and tells of each when it is answered or its caller has gone away. A service of our own, because
/// axum's middleware from functions puts two boxes around every request.
#[derive(Debug, Clone)]
pub(super) struct Observe<S> {
    metrics: Metrics,
    inner: S,
}

impl<S> Observe<S> {
    /// The layer.
    pub(super) fn layer(metrics: Metrics) -> impl Layer<S, Service = Self> + Clone {
        tower::layer::layer_fn(move |inner| Self {
            metrics: metrics.clone(),
            inner,
        })
    }
}

impl<S, B> Service<Request> for Observe<S>
where
    S: Service<Request, Response = Response<B>, Error = Infallible>,
{
    type Response = Response<B>;
    type Error = Infallible;
    type Future = Observed<S::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request) -> Self::Future {
        let seen = RequestInfo(Arc::new(About {
            id: request_id(request.headers().get(NAME)),
            caller: OnceLock::new(),
        }));
        request.extensions_mut().insert(seen.clone());
        let line = Line {
            metrics: self.metrics.clone(),
            begun: Instant::now(),
            method: request.method().clone(),
            route: request.extensions().get().cloned(),
            seen,
            told: false,
        };
        let span = if line.is_counting() {
            tracing::debug_span!(target: TARGET, "request", request_id = line.id())
        } else {
            tracing::info_span!(target: TARGET, "request", request_id = line.id())
        };
        Observed {
            answer: span
                .in_scope(|| self.inner.call(request))
                .instrument(span.clone()),
            line,
        }
    }
}

pin_project! {
    /// A request on its way.
    pub(super) struct Observed<F> {
        #[pin]
        answer: Instrumented<F>,
        line: Line,
    }
}

impl<F, B> Future for Observed<F>
where
    F: Future<Output = Result<Response<B>, Infallible>>,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let observed = self.project();
        let Ok(mut response) = ready!(observed.answer.poll(context));
        observed.line.answered(&response);
        let line = observed.line;
        let headers = response.headers_mut();
        headers.insert(NAME, line.seen.header().clone());
        headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        if line.seen.caller().is_some() && matches!(line.method, Method::GET | Method::HEAD) {
            headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        }
        Poll::Ready(Ok(response))
    }
}

/// The caller's id, if it may be repeated in headers and logs, or a new one.
fn request_id(given: Option<&HeaderValue>) -> HeaderValue {
    let fit = |id: &&HeaderValue| {
        let id = id.as_bytes();
        (1..=128).contains(&id.len())
            && id.iter().all(u8::is_ascii_graphic)
            && !api_keys::may_hold_key(id)
            && !auth::may_hold_token(id)
    };
    given.filter(fit).cloned().unwrap_or_else(|| {
        let mut buffer = Uuid::encode_buffer();
        let id = Uuid::now_v7().hyphenated().encode_lower(&mut buffer);
        HeaderValue::from_str(id).unwrap_or(HeaderValue::from_static("none"))
    })
}

/// What is known of a request; told once, at the latest when the request is dropped.
struct Line {
    metrics: Metrics,
    begun: Instant,
    method: Method,
    route: Option<MatchedPath>,
    seen: RequestInfo,
    told: bool,
}

impl Line {
    fn id(&self) -> &str {
        self.seen.request_id()
    }

    fn route(&self) -> &str {
        self.route.as_ref().map_or(NO_ROUTE, MatchedPath::as_str)
    }

    fn is_counting(&self) -> bool {
        COUNTING.contains(&self.route())
    }

    fn answered<B>(&mut self, response: &Response<B>) {
        let status = response.status().as_u16();
        let took = self.measure(Some(status));
        let reason = response.extensions().get::<Reason>();
        macro_rules! say {
            ($level:ident) => {
                tracing::$level!(
                    target: TARGET,
                    method = self.method.as_str(),
                    route = self.route(),
                    status,
                    code = reason.map(|reason| reason.code),
                    duration_ms = milliseconds(took),
                    request_id = self.id(),
                    key_id = self.key_id(),
                    user_id = self.user_id(),
                    error = reason.and_then(|reason| reason.error.as_deref()),
                    "answered"
                )
            };
        }
        match status {
            500 => say!(error),
            501.. => say!(warn),
            200..300 | 429 if self.is_counting() => say!(debug),
            _ => say!(info),
        }
    }

    fn measure(&mut self, status: Option<u16>) -> Duration {
        self.told = true;
        let took = self.begun.elapsed();
        let (method, route) = (self.method.as_str(), self.route());
        self.metrics.request_completed(method, route, status, took);
        took
    }

    fn key_id(&self) -> Option<&str> {
        match self.seen.caller() {
            Some(CallerId::Key(id)) => Some(id.as_str()),
            _ => None,
        }
    }

    fn user_id(&self) -> Option<&str> {
        match self.seen.caller() {
            Some(CallerId::User(id)) => Some(id),
            _ => None,
        }
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if self.told {
            return;
        }
        let took = self.measure(None);
        tracing::info!(
            target: TARGET,
            method = self.method.as_str(),
            route = self.route(),
            duration_ms = milliseconds(took),
            request_id = self.id(),
            key_id = self.key_id(),
            user_id = self.user_id(),
            "the caller went away"
        );
    }
}

/// With microseconds, and no digits beyond.
fn milliseconds(took: Duration) -> f64 {
    (took.as_secs_f64() * 1_000_000.0).round() / 1000.0
}
