//! Reads request bodies, within limits of size, of time, and of memory for all bodies being received.

use std::ops::Deref;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};

use axum::body::{Body, Bytes, HttpBody as _};
use axum::http::request::Parts;
use futures::future::poll_fn;
use http_body_util::BodyExt as _;
use tokio::time::{Instant, timeout};

use super::problem::Error;
use super::request_log::{CallerId, RequestInfo, Time};
use super::state::State;
use crate::budget::{Exceeded, Share};

/// The largest body of a batch, and of all calls, bytes: `ITEMS_MAX` items with ids and keys of usual length.
pub const BATCH_BODY_MAX: usize = 8 * 1024 * 1024;

/// A received body. Dropping it returns its share of the memory budget.
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

/// Reads a body of at most `max` bytes.
pub(super) async fn read(
    parts: &Parts,
    body: Body,
    max: usize,
    state: &State,
) -> Result<Text, Error> {
    let info = parts.extensions.get::<RequestInfo>().cloned();
    // A Content-Length beyond the limit is refused before reading.
    if body.size_hint().lower() > max as u64 {
        return Err(Error::PayloadTooLarge(max));
    }
    let mut gathering = pin!(gather(body, max, state, info.clone()));
    if let Some(text) = poll_twice(gathering.as_mut()).await {
        return text;
    }
    let allow = |time| info.iter().for_each(|info| info.allow(time));
    allow(Time::Receiving);
    let text = timeout(state.body_patience, gathering).await;
    allow(Time::From(Instant::now()));
    text.unwrap_or(Err(Error::RequestTimeout))
}

/// Polls a future twice, with a turn of its connection between. Nearly every body arrives with its head, and a timer
/// would cost a good part of reading it.
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

/// Collects a body. Memory is taken from the budget as soon as the body needs more than one frame.
async fn gather(
    mut body: Body,
    max: usize,
    state: &State,
    info: Option<RequestInfo>,
) -> Result<Text, Error> {
    let mut first = Bytes::new();
    let mut rest: Vec<u8> = Vec::new();
    let mut share: Option<Share> = None;
    while let Some(frame) = body.frame().await {
        let frame =
            frame.map_err(|_| Error::MalformedRequest("the body could not be read".to_owned()))?;
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
            // Copied, so that no frame's larger buffer stays allocated.
            rest.extend_from_slice(&std::mem::take(&mut first));
            rest.extend_from_slice(&data);
        }
        if share.is_some() || !body.is_end_stream() {
            let share = share.get_or_insert_with(|| {
                let caller = info.as_ref().and_then(RequestInfo::caller);
                let owner = caller.map(CallerId::as_str).unwrap_or_default();
                state.bodies.share(owner.to_owned())
            });
            share.grow(more as u64).map_err(over_budget)?;
        }
    }
    let bytes = if rest.is_empty() { first } else { rest.into() };
    Ok(Text {
        bytes,
        _share: share,
    })
}

fn over_budget(exceeded: Exceeded) -> Error {
    Error::Overloaded(match exceeded {
        Exceeded::All => {
            "the bodies being received take all the memory for them; nothing was counted"
        }
        Exceeded::Own => {
            "the bodies being received from this caller take all the memory for them; nothing was counted"
        }
    })
}
