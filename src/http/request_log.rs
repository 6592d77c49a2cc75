//! The id, the log line and the metrics of every request.
//!
//! The line has no path, query, body or header as received, because each may hold a secret: only the route that
//! matched and the id of an accepted credential.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::extract::{MatchedPath, Request};
use axum::http::header::{CACHE_CONTROL, X_CONTENT_TYPE_OPTIONS};
use axum::http::{HeaderName, HeaderValue, Method, Response};
use pin_project_lite::pin_project;
use tokio::time::Instant;
use tower::{Layer, Service};
use tracing::Instrument as _;
use tracing::instrument::Instrumented;
use uuid::Uuid;

use super::hot_path;
use super::problem::Reason;
use crate::auth;
use crate::domain::ids::ApiKeyId;
use crate::metrics::Metrics;
use crate::postgres::api_keys;

/// The log target of requests.
const TARGET: &str = "tallyman::request";

/// The route of a request that none matches.
const NO_ROUTE: &str = "none";

/// The header with the request's id, the caller's or a new one.
pub(super) const REQUEST_ID: &str = "x-request-id";

const NAME: HeaderName = HeaderName::from_static(REQUEST_ID);

/// A request's id and caller, shared with the extractors through the request's extensions.
#[derive(Debug, Clone)]
pub(super) struct RequestInfo(Arc<Info>);

#[derive(Debug)]
struct Info {
    id: HeaderValue,
    started: Instant,
    caller: OnceLock<CallerId>,
    time: Mutex<Time>,
}

/// Which time a request may take.
#[derive(Debug, Clone, Copy)]
pub(super) enum Time {
    /// The usual, from its start.
    FromStart,
    /// Its body is incomplete, which has a timeout of its own.
    Receiving,
    /// The usual, from when its body was complete.
    From(Instant),
    /// Any: its work grows with the number of organizations.
    Unlimited,
}

/// The id of an accepted credential.
#[derive(Debug)]
pub(super) enum CallerId {
    /// An API key's.
    Key(ApiKeyId),
    /// A user's, from a JWT.
    User(Arc<str>),
}

impl CallerId {
    /// The id as text.
    pub(super) fn as_str(&self) -> &str {
        match self {
            Self::Key(id) => id.as_str(),
            Self::User(id) => id,
        }
    }
}

impl RequestInfo {
    /// Sets the caller, once.
    pub(super) fn set_caller(&self, id: CallerId) {
        // Several extractors may authenticate the same caller.
        let _ = self.0.caller.set(id);
    }

    /// The request's id.
    pub(super) fn request_id(&self) -> &str {
        self.0.id.to_str().unwrap_or_default()
    }

    /// When it arrived.
    pub(super) fn started(&self) -> Instant {
        self.0.started
    }

    /// Sets which time it may take.
    pub(super) fn allow(&self, time: Time) {
        *self.0.time.lock().unwrap_or_else(PoisonError::into_inner) = time;
    }

    /// Which time it may take.
    pub(super) fn time(&self) -> Time {
        *self.0.time.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The caller, if authenticated yet.
    pub(super) fn caller(&self) -> Option<&CallerId> {
        self.0.caller.get()
    }
}

/// Identifies, logs and measures requests. A service of our own: axum's middleware from functions boxes every request
/// twice.
#[derive(Debug, Clone)]
pub(super) struct RequestLog<S> {
    metrics: Metrics,
    route: Option<&'static str>,
    inner: S,
}

impl<S> RequestLog<S> {
    /// The layer of one `route`, or of a router, which tells the route of each request.
    pub(super) fn layer(
        metrics: Metrics,
        route: Option<&'static str>,
    ) -> impl Layer<S, Service = Self> + Clone {
        tower::layer::layer_fn(move |inner| Self {
            metrics: metrics.clone(),
            route,
            inner,
        })
    }
}

/// The route of a request.
enum Route {
    Known(&'static str),
    Matched(MatchedPath),
    /// No route matches.
    None,
}

impl Route {
    fn as_str(&self) -> &str {
        match self {
            Self::Known(route) => route,
            Self::Matched(route) => route.as_str(),
            Self::None => NO_ROUTE,
        }
    }
}

impl<S, B> Service<Request> for RequestLog<S>
where
    S: Service<Request, Response = Response<B>, Error = Infallible>,
{
    type Response = Response<B>;
    type Error = Infallible;
    type Future = Logged<S::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request) -> Self::Future {
        let info = RequestInfo(Arc::new(Info {
            id: request_id(request.headers().get(NAME)),
            started: Instant::now(),
            caller: OnceLock::new(),
            time: Mutex::new(Time::FromStart),
        }));
        request.extensions_mut().insert(info.clone());
        let line = Line {
            metrics: self.metrics.clone(),
            method: request.method().clone(),
            route: match (self.route, request.extensions().get()) {
                (Some(route), _) => Route::Known(route),
                (None, Some(matched)) => Route::Matched(MatchedPath::clone(matched)),
                (None, None) => Route::None,
            },
            info,
            logged: false,
        };
        let request_id = line.info.request_id();
        let span = if line.is_counting() {
            tracing::debug_span!(target: TARGET, "request", request_id)
        } else {
            tracing::info_span!(target: TARGET, "request", request_id)
        };
        let response = span.in_scope(|| self.inner.call(request));
        Logged {
            response: response.instrument(span),
            line,
        }
    }
}

pin_project! {
    /// A request being processed.
    pub(super) struct Logged<F> {
        #[pin]
        response: Instrumented<F>,
        line: Line,
    }
}

impl<F, B> Future for Logged<F>
where
    F: Future<Output = Result<Response<B>, Infallible>>,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        let Ok(mut response) = ready!(this.response.poll(context));
        let status = response.status().as_u16();
        this.line.log(Some(status), response.extensions().get());
        let info = &this.line.info;
        let headers = response.headers_mut();
        headers.insert(NAME, info.0.id.clone());
        headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        if info.caller().is_some() && matches!(this.line.method, Method::GET | Method::HEAD) {
            headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        }
        Poll::Ready(Ok(response))
    }
}

/// The caller's id, if it is safe in headers and logs, or a new one.
fn request_id(given: Option<&HeaderValue>) -> HeaderValue {
    let safe = |id: &&HeaderValue| {
        let id = id.as_bytes();
        (1..=128).contains(&id.len())
            && id.iter().all(u8::is_ascii_graphic)
            && !api_keys::may_hold_key(id)
            && !auth::may_hold_token(id)
    };
    given.filter(safe).cloned().unwrap_or_else(|| {
        let mut buffer = Uuid::encode_buffer();
        let id = Uuid::now_v7().hyphenated().encode_lower(&mut buffer);
        HeaderValue::from_str(id).unwrap_or(HeaderValue::from_static("none"))
    })
}

/// The log line of a request; written once, at the latest on drop.
struct Line {
    metrics: Metrics,
    method: Method,
    route: Route,
    info: RequestInfo,
    logged: bool,
}

impl Line {
    fn is_counting(&self) -> bool {
        hot_path::counts(self.route.as_str())
    }

    /// Logs and measures the request; without a status the client disconnected.
    fn log(&mut self, status: Option<u16>, reason: Option<&Reason>) {
        self.logged = true;
        let duration = self.info.started().elapsed();
        let (method, route) = (self.method.as_str(), self.route.as_str());
        self.metrics
            .request_completed(method, route, status, duration);
        let caller = self.info.caller();
        let is_user = matches!(caller, Some(CallerId::User(_)));
        let id = caller.map(CallerId::as_str);
        let (key_id, user_id) = if is_user { (None, id) } else { (id, None) };
        let message = match status {
            Some(_) => "answered",
            None => "client disconnected",
        };
        macro_rules! line {
            ($level:ident) => {
                tracing::$level!(
                    target: TARGET,
                    method,
                    route,
                    status,
                    code = reason.map(|reason| reason.code),
                    duration_ms = milliseconds(duration),
                    request_id = self.info.request_id(),
                    key_id,
                    user_id,
                    error = reason.and_then(|reason| reason.error.as_deref()),
                    "{message}"
                )
            };
        }
        match status {
            Some(500) => line!(error),
            Some(501..) => line!(warn),
            Some(200..300 | 429) if self.is_counting() => line!(debug),
            _ => line!(info),
        }
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if !self.logged {
            self.log(None, None);
        }
    }
}

/// Milliseconds with three decimals.
fn milliseconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1_000_000.0).round() / 1000.0
}
