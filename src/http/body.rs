//! The bodies of requests, within bounds of size, of time, and of memory for all that are under way.

use std::ops::Deref;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};

use axum::body::{Body, Bytes, HttpBody as _};
use axum::extract::Request;
use futures::future::poll_fn;
use http_body_util::BodyExt as _;
use tokio::time::timeout;

use super::problem::Error;
use super::request_log::{CallerId, RequestInfo};
use crate::budget::{Exceeded, Share};
use crate::http::state::State;

/// The largest body of a batch, bytes: so many items with ids and keys of some length. No other is larger.
pub const BATCH_BODY_MAX: usize = 8 * 1024 * 1024;

/// A body as it came. Its share of the memory ends with it.
#[derive(Debug)]
pub(super) struct Text {
    bytes: Bytes,
    _share: Option<Share>,
}

impl Deref for Text {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

/// The body, unless it has more than `max` bytes.
pub(super) async fn read(request: Request, max: usize, state: &State) -> Result<Text, Error> {
    let seen = request.extensions().get::<RequestInfo>().cloned();
    let body = request.into_body();
    // One that says so is not waited for.
    if body.size_hint().lower() > max as u64 {
        return Err(Error::PayloadTooLarge(max));
    }
    let mut gathering = pin!(gather(body, max, state, seen));
    if let Some(text) = poll_twice(gathering.as_mut()).await {
        return text;
    }
    timeout(state.body_patience, gathering)
        .await
        .unwrap_or(Err(Error::RequestTimeout))
}

/// What a future comes to, if it does so as soon as its connection has had a turn. Nearly every body has arrived with
/// its head, and setting a timer for it would cost a good part of what reading it does.
async fn poll_twice<T>(mut future: Pin<&mut impl Future<Output = T>>) -> Option<T> {
    let mut again = true;
    let poll = |context: &mut Context<'_>| match future.as_mut().poll(context) {
        Poll::Ready(done) => Poll::Ready(Some(done)),
        Poll::Pending if again => {
            again = false;
            context.waker().wake_by_ref();
            Poll::Pending
        }
        Poll::Pending => Poll::Ready(None),
    };
    poll_fn(poll).await
}

/// Puts a body together. What is not there at once counts as under way, and so does all that came before it.
async fn gather(
    mut body: Body,
    max: usize,
    state: &State,
    seen: Option<RequestInfo>,
) -> Result<Text, Error> {
    let mut first = Bytes::new();
    let mut rest: Vec<u8> = Vec::new();
    let mut share: Option<Share> = None;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| unreadable())?;
        let Ok(data) = frame.into_data() else {
            continue;
        };
        if first.len() + rest.len() + data.len() > max {
            return Err(Error::PayloadTooLarge(max));
        }
        let more = data.len();
        if first.is_empty() && rest.is_empty() {
            first = data;
        } else {
            // In one piece, so that nothing holds more than has arrived.
            rest.extend_from_slice(&std::mem::take(&mut first));
            rest.extend_from_slice(&data);
        }
        if share.is_some() || !body.is_end_stream() {
            let share = share.get_or_insert_with(|| state.bodies.share(caller(seen.as_ref())));
            share.grow(more as u64).map_err(too_much)?;
        }
    }
    let bytes = if rest.is_empty() { first } else { rest.into() };
    Ok(Text {
        bytes,
        _share: share,
    })
}

fn caller(seen: Option<&RequestInfo>) -> String {
    match seen.and_then(RequestInfo::caller) {
        Some(CallerId::Key(id)) => id.to_string(),
        Some(CallerId::User(id)) => id.to_string(),
        None => String::new(),
    }
}

fn unreadable() -> Error {
    Error::MalformedRequest("the body could not be read".to_owned())
}

fn too_much(exceeded: Exceeded) -> Error {
    Error::Busy(match exceeded {
        Exceeded::All => {
            "the bodies that are under way take all the memory for them; nothing was counted"
        }
        Exceeded::Own => {
            "the bodies of this caller that are under way take all the memory for them; nothing was counted"
        }
    })
}
