//! Where requests arrive. Calls that count go straight to their handler, because the router boxes and clones a service at
//! each of its stations; all others go through the router. Both pass the same layers.

use std::convert::Infallible;
use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::http::Method;
use axum::response::Response;
use axum::routing::future::RouteFuture;
use futures::future::{BoxFuture, Either};
use futures::{FutureExt as _, TryFutureExt as _};
use tower::{Layer as _, Service, service_fn};

use super::hot_path::OPERATIONS;
use super::layers::layers;
use super::routes::counting;
use super::state::State;
use crate::domain::decision::Operation;

/// A request being answered.
pub type Answering = Either<Answered, RouteFuture<Infallible>>;

type Answered = BoxFuture<'static, Result<Response, Infallible>>;

/// Answers the requests of one route.
type Handler = Box<dyn Fn(Request) -> Answered + Send + Sync>;

/// Every route with its layers; clones share them.
#[derive(Clone)]
pub struct Dispatch {
    /// By path, the handlers of calls that count.
    counting: Arc<[(&'static str, Handler)]>,
    others: Router,
}

impl fmt::Debug for Dispatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dispatch").finish_non_exhaustive()
    }
}

impl Dispatch {
    /// Calls that count, and this router, which has its layers already, for everything else.
    pub(super) fn new(state: &State, others: Router) -> Self {
        let counting = OPERATIONS.map(|(path, operation)| (path, handler(state, path, operation)));
        Self {
            counting: Arc::new(counting),
            others,
        }
    }
}

/// A router alone.
impl From<Router> for Dispatch {
    fn from(others: Router) -> Self {
        Self {
            counting: Arc::new([]),
            others,
        }
    }
}

fn handler(state: &State, path: &'static str, operation: Operation) -> Handler {
    let own = state.clone();
    let answer = service_fn(move |request| {
        // Boxed here as well: the layers move what they wrap, and this is large.
        let answered = Box::pin(counting::answer(own.clone(), operation, request));
        answered.map(Ok)
    });
    let service = layers(state, Some(path)).layer(answer);
    Box::new(move |request| {
        let response = service.clone().call(request);
        Box::pin(response.map_ok(|response| response.map(Body::new)))
    })
}

impl Service<Request> for Dispatch {
    type Response = Response;
    type Error = Infallible;
    type Future = Answering;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        // Neither the router nor a handler is ever busy.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request) -> Answering {
        let path = request.uri().path();
        let found = self.counting.iter().find(|(own, _)| *own == path);
        match found.filter(|_| *request.method() == Method::POST) {
            Some((_, handler)) => Either::Left(handler(request)),
            None => Either::Right(self.others.call(request)),
        }
    }
}
