//! Coalesces requests of concurrent callers into batches: while one batch is processed, the next gathers.
//!
//! No timer is involved: a lone caller is served immediately, and a thousand callers share a few round trips.
//! Callers with the same key share one request. Where a queue stays long, further callers are refused.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures::FutureExt as _;
use tokio::sync::oneshot;

use crate::pressure::Pressure;

/// The most distinct requests in one batch.
pub const COALESCED_MAX: usize = 1000;

/// The most callers that may wait; more are refused.
const WAITING_MAX: usize = 65_536;

/// How long callers may wait: a look-up of everything after a loss of Redis takes seconds, and nobody waits for longer.
const TARGET: Duration = Duration::from_secs(1);

/// How long they may wait for longer than that.
const TOLERANCE: Duration = Duration::from_secs(1);

/// Why a batch failed.
pub trait BatchError: Clone + Send + Sync + 'static {
    /// The error for a caller that was not served: too many wait, or its batch panicked.
    fn overloaded() -> Self;

    /// Whether a single request may have caused it, so that the halves of the batch are worth a retry.
    fn may_concern_one(&self) -> bool;
}

/// The callers that wait for the next batch; clones share them. A request `R` is identified by its key `K`, and
/// its reply is a `T`, or an `E` if its batch failed.
#[derive(Debug)]
pub struct Coalescer<K, R, T, E> {
    queue: Arc<Mutex<Queue<K, R, T, E>>>,
    pressure: Pressure,
}

#[derive(Debug)]
struct Queue<K, R, T, E> {
    /// In order of arrival.
    waiting: VecDeque<Waiting<K, R, T, E>>,
    /// Whether a task processes batches; it runs until nobody waits.
    busy: bool,
}

#[derive(Debug)]
struct Waiting<K, R, T, E> {
    key: K,
    request: R,
    caller: Caller<T, E>,
    since: Instant,
}

type Caller<T, E> = oneshot::Sender<Result<T, E>>;

/// Distinct requests, each with the callers that wait for it.
type Batch<R, T, E> = Vec<(R, Vec<Caller<T, E>>)>;

impl<K, R, T, E> Default for Coalescer<K, R, T, E> {
    fn default() -> Self {
        Self {
            queue: Arc::new(Mutex::new(Queue {
                waiting: VecDeque::new(),
                busy: false,
            })),
            pressure: Pressure::new(TARGET, TOLERANCE),
        }
    }
}

impl<K, R, T, E> Clone for Coalescer<K, R, T, E> {
    fn clone(&self) -> Self {
        Self {
            queue: Arc::clone(&self.queue),
            pressure: self.pressure.clone(),
        }
    }
}

impl<K, R, T, E> Coalescer<K, R, T, E>
where
    K: Eq + Hash + Send + 'static,
    R: Clone + Send + Sync + 'static,
    T: Clone + Send + Sync + 'static,
    E: BatchError,
{
    /// Waits until `process` has processed a batch with this request. All callers pass the same function and equal
    /// contexts. It returns one reply for each request, in order, or fails. If one request may have caused the failure,
    /// the halves of the batch are retried separately, so that the others succeed. Continues when the caller is
    /// cancelled.
    pub async fn process<C, F>(
        &self,
        key: K,
        request: R,
        context: C,
        process: fn(C, Vec<R>) -> F,
    ) -> Result<T, E>
    where
        C: Clone + Send + Sync + 'static,
        F: Future<Output = Result<Vec<T>, E>> + Send + 'static,
    {
        let (caller, reply) = oneshot::channel();
        let idle = {
            let mut queue = self.queue();
            if queue.waiting.len() >= WAITING_MAX || self.pressure.refuses() {
                return Err(E::overloaded());
            }
            queue.waiting.push_back(Waiting {
                key,
                request,
                caller,
                since: Instant::now(),
            });
            !std::mem::replace(&mut queue.busy, true)
        };
        if idle {
            #[expect(
                clippy::disallowed_methods,
                reason = "the task ends once no caller waits, and each caller waits for its reply"
            )]
            tokio::spawn(self.clone().run(context, process));
        }
        reply.await.unwrap_or_else(|_| Err(E::overloaded()))
    }

    async fn run<C: Clone, F>(self, context: C, process: fn(C, Vec<R>) -> F)
    where
        F: Future<Output = Result<Vec<T>, E>>,
    {
        while let Some(batch) = self.next_batch() {
            let mut batches = vec![batch];
            while let Some(mut batch) = batches.pop() {
                let requests = batch.iter().map(|(request, _)| request.clone()).collect();
                // After a panic the next callers must not wait forever.
                let processed = AssertUnwindSafe(process(context.clone(), requests));
                match processed.catch_unwind().await {
                    Ok(Ok(replies)) => {
                        for ((_, callers), reply) in batch.into_iter().zip(replies) {
                            send(callers, &Ok(reply));
                        }
                    }
                    Ok(Err(error)) if batch.len() > 1 && error.may_concern_one() => {
                        batches.push(batch.split_off(batch.len() / 2));
                        batches.push(batch);
                    }
                    Ok(Err(error)) => {
                        let failed = Err(error);
                        for (_, callers) in batch {
                            send(callers, &failed);
                        }
                    }
                    Err(_) => {}
                }
            }
        }
    }

    /// The requests that have waited longest. None if nobody waits: then the next caller starts a new task.
    fn next_batch(&self) -> Option<Batch<R, T, E>> {
        let mut queue = self.queue();
        let (mut batch, mut places) = (Batch::new(), HashMap::new());
        while batch.len() < COALESCED_MAX
            && let Some(Waiting {
                key,
                request,
                caller,
                ..
            }) = queue.waiting.pop_front()
        {
            if caller.is_closed() {
                continue;
            }
            let place = *places.entry(key).or_insert(batch.len());
            match batch.get_mut(place) {
                Some((_, callers)) => callers.push(caller),
                None => batch.push((request, vec![caller])),
            }
        }
        let oldest = queue.waiting.front().map(|it| it.since);
        self.pressure.observe(oldest, Instant::now());
        queue.busy = !batch.is_empty();
        queue.busy.then_some(batch)
    }

    fn queue(&self) -> MutexGuard<'_, Queue<K, R, T, E>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn send<T: Clone, E: Clone>(callers: Vec<Caller<T, E>>, reply: &Result<T, E>) {
    for caller in callers {
        // A cancelled caller needs no reply.
        let _ = caller.send(reply.clone());
    }
}

#[cfg(test)]
mod tests {
    use futures::future::join_all;
    use tokio::sync::Semaphore;

    use super::*;

    #[derive(Debug, Clone, Copy, PartialEq)]
    enum Failure {
        Overloaded,
        One,
        All,
    }

    impl BatchError for Failure {
        fn overloaded() -> Self {
            Self::Overloaded
        }

        fn may_concern_one(&self) -> bool {
            *self == Self::One
        }
    }

    type Numbers = Coalescer<u32, u32, u32, Failure>;

    type Batches = Arc<Mutex<Vec<Vec<u32>>>>;

    /// A batch with 13 or 66 fails, and one with 99 panics.
    async fn times_ten(
        (batches, gate): (Batches, Arc<Semaphore>),
        requests: Vec<u32>,
    ) -> Result<Vec<u32>, Failure> {
        gate.acquire().await.unwrap().forget();
        gate.add_permits(1);
        batches.lock().unwrap().push(requests.clone());
        match requests.iter().find(|it| [13, 66].contains(*it)) {
            Some(13) => Err(Failure::One),
            Some(_) => Err(Failure::All),
            None => {
                assert!(!requests.contains(&99), "a panic in a batch");
                Ok(requests.iter().map(|it| it * 10).collect())
            }
        }
    }

    /// Requests `numbers` concurrently; returns the replies and the batches. The first batch is in flight until
    /// all others wait.
    async fn process_all(numbers: Vec<u32>) -> (Vec<Result<u32, Failure>>, Vec<Vec<u32>>) {
        let (coalescer, batches) = (Numbers::default(), Arc::new(Mutex::new(Vec::new())));
        let gate = Arc::new(Semaphore::new(0));
        let context = (Arc::clone(&batches), Arc::clone(&gate));
        let replies = numbers
            .into_iter()
            .map(|number| coalescer.process(number, number, context.clone(), times_ten));
        let all = join_all(replies);
        let opened = async { gate.add_permits(1) };
        let (replies, ()) = tokio::join!(all, opened);
        let batches = batches.lock().unwrap().clone();
        (replies, batches)
    }

    #[tokio::test]
    async fn requests_that_arrive_during_a_batch_are_the_next_and_equal_ones_are_merged() {
        let (replies, batches) = process_all(vec![1, 2, 3, 2, 4]).await;
        assert_eq!(replies, [10, 20, 30, 20, 40].map(Ok));
        assert_eq!(batches, [vec![1, 2, 3, 4]]);
    }

    #[tokio::test]
    async fn batches_are_bounded() {
        let (replies, batches) = process_all((100..2600).collect()).await;
        assert_eq!(replies[2499], Ok(25_990));
        let sizes: Vec<usize> = batches.iter().map(Vec::len).collect();
        assert_eq!(sizes, [1000, 1000, 500]);
    }

    #[tokio::test]
    async fn a_request_that_fails_its_batch_fails_alone() {
        let (replies, _) = process_all((1..=40).collect()).await;
        for (number, reply) in (1..=40).zip(replies) {
            let expected = if number == 13 {
                Err(Failure::One)
            } else {
                Ok(number * 10)
            };
            assert_eq!(reply, expected);
        }
    }

    #[tokio::test]
    async fn a_failure_that_concerns_all_is_not_retried() {
        let (replies, batches) = process_all(vec![1, 66, 2]).await;
        assert_eq!(replies, [Err(Failure::All); 3]);
        assert_eq!(batches.len(), 1);
    }

    #[tokio::test]
    async fn a_cancelled_caller_does_not_affect_others() {
        async fn echo(gate: Arc<Semaphore>, requests: Vec<u32>) -> Result<Vec<u32>, Failure> {
            gate.acquire().await.unwrap().forget();
            Ok(requests)
        }
        let coalescer = Numbers::default();
        let gate = Arc::new(Semaphore::new(0));
        let request = |number| coalescer.process(number, number, Arc::clone(&gate), echo);
        // Both are polled once before they are cancelled; the first starts the task.
        let mut cancelled = Vec::from([Box::pin(request(1)), Box::pin(request(2))]);
        for request in &mut cancelled {
            assert!(request.as_mut().now_or_never().is_none());
        }
        let mut kept = Box::pin(request(3));
        assert!(kept.as_mut().now_or_never().is_none());
        drop(cancelled);
        gate.add_permits(2);
        assert_eq!(kept.await, Ok(3));
    }

    #[tokio::test]
    async fn a_panic_leaves_no_caller_waiting() {
        let (replies, _) = process_all(vec![1, 99]).await;
        assert_eq!(replies, [Err(Failure::Overloaded); 2]);
    }
}
