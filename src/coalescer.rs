//! What concurrent callers want is seen to in groups: while one group is on its way, the next gathers.
//!
//! Nothing waits on a timer, so that a lone caller is served at once, and a thousand share a handful of
//! round trips. Callers that want the same share one wish. Knows nothing of what is wanted.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::FutureExt as _;
use tokio::sync::oneshot;

/// How many different wishes one group holds at most.
pub const COALESCED_MAX: usize = 1000;

/// How many callers may wait; more are refused.
const WAITING_MAX: usize = 65_536;

/// The callers that wait for the next group; clones share them. A wish `W` is told from others by its key `K`, and
/// is answered with an `A`, or with an `E` where its group failed.
#[derive(Debug)]
pub struct Coalescer<K, W, A, E>(Arc<Mutex<Gathering<K, W, A, E>>>);

#[derive(Debug)]
struct Gathering<K, W, A, E> {
    /// In the order in which they came.
    waiting: VecDeque<(K, W, Answer<A, E>)>,
    /// Whether a task sees to one group after the other until nobody waits.
    busy: bool,
}

type Answer<A, E> = oneshot::Sender<Result<A, E>>;

/// Different wishes, and who waits for each.
type Group<W, A, E> = Vec<(W, Vec<Answer<A, E>>)>;

impl<K, W, A, E> Default for Coalescer<K, W, A, E> {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Gathering {
            waiting: VecDeque::new(),
            busy: false,
        })))
    }
}

impl<K, W, A, E> Clone for Coalescer<K, W, A, E> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<K, W, A, E> Coalescer<K, W, A, E>
where
    K: Eq + Hash + Send + 'static,
    W: Clone + Send + Sync + 'static,
    A: Clone + Send + Sync + 'static,
    E: Clone + Send + Sync + 'static,
{
    /// Waits until a group with this wish was seen to. Every caller brings the same `see_to`, which answers
    /// wishes in their order, or fails. Where one wish may be to blame for that (`by_one`), the halves of the group
    /// are seen to apart, so that the others do not suffer. Goes on where the caller goes away.
    /// None where too many wait.
    pub async fn ask<F>(
        &self,
        key: K,
        wish: W,
        by_one: fn(&E) -> bool,
        see_to: impl Fn(Vec<W>) -> F + Send + Sync + 'static,
    ) -> Option<Result<A, E>>
    where
        F: Future<Output = Result<Vec<A>, E>> + Send + 'static,
    {
        let (answer, answered) = oneshot::channel();
        let idle = {
            let mut gathering = self.gathering();
            if gathering.waiting.len() >= WAITING_MAX {
                return None;
            }
            gathering.waiting.push_back((key, wish, answer));
            !std::mem::replace(&mut gathering.busy, true)
        };
        if idle {
            #[expect(
                clippy::disallowed_methods,
                reason = "it ends with the callers, each of whom waits for it"
            )]
            tokio::spawn(self.clone().run(by_one, see_to));
        }
        answered.await.ok()
    }

    async fn run<F>(self, by_one: fn(&E) -> bool, see_to: impl Fn(Vec<W>) -> F)
    where
        F: Future<Output = Result<Vec<A>, E>>,
    {
        while let Some(group) = self.next_group() {
            let mut groups = vec![group];
            while let Some(mut group) = groups.pop() {
                let wishes = group.iter().map(|(wish, _)| wish.clone()).collect();
                // A panic must not leave the next callers waiting for ever.
                let outcome = AssertUnwindSafe(see_to(wishes)).catch_unwind().await;
                match outcome {
                    Ok(Ok(answers)) => {
                        for ((_, askers), answer) in group.into_iter().zip(answers) {
                            tell(askers, &Ok(answer));
                        }
                    }
                    Ok(Err(error)) if group.len() > 1 && by_one(&error) => {
                        groups.push(group.split_off(group.len() / 2));
                        groups.push(group);
                    }
                    Ok(Err(error)) => {
                        let refused = Err(error);
                        for (_, askers) in group {
                            tell(askers, &refused);
                        }
                    }
                    Err(_) => {}
                }
            }
        }
    }

    /// Those that have waited longest; none if nobody waits, and then the next caller starts anew.
    fn next_group(&self) -> Option<Group<W, A, E>> {
        let mut gathering = self.gathering();
        let (mut group, mut places) = (Group::new(), HashMap::new());
        while group.len() < COALESCED_MAX
            && let Some((key, wish, answer)) = gathering.waiting.pop_front()
        {
            if answer.is_closed() {
                continue;
            }
            let place = *places.entry(key).or_insert(group.len());
            match group.get_mut(place) {
                Some((_, askers)) => askers.push(answer),
                None => group.push((wish, vec![answer])),
            }
        }
        gathering.busy = !group.is_empty();
        gathering.busy.then_some(group)
    }

    fn gathering(&self) -> MutexGuard<'_, Gathering<K, W, A, E>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn tell<A: Clone, E: Clone>(askers: Vec<Answer<A, E>>, answer: &Result<A, E>) {
    for asker in askers {
        // Who has gone away does not need to know.
        let _ = asker.send(answer.clone());
    }
}

#[cfg(test)]
mod tests {
    use futures::future::join_all;
    use tokio::sync::Semaphore;

    use super::*;

    type Numbers = Coalescer<u32, u32, u32, &'static str>;

    /// What asked for `numbers` at once gets, and the groups that it was seen to in. The first group is on its way
    /// until all others wait.
    async fn ask_all(numbers: Vec<u32>) -> (Vec<Option<Result<u32, &'static str>>>, Vec<Vec<u32>>) {
        let (groups, seen) = (Numbers::default(), Arc::new(Mutex::new(Vec::new())));
        let gate = Arc::new(Semaphore::new(0));
        let asked = numbers.into_iter().map(|number| {
            let (seen, gate) = (Arc::clone(&seen), Arc::clone(&gate));
            let by_one = |error: &&str| *error == "odd";
            groups.ask(number, number, by_one, move |wishes| {
                let (seen, gate) = (Arc::clone(&seen), Arc::clone(&gate));
                async move {
                    gate.acquire().await.unwrap().forget();
                    gate.add_permits(1);
                    seen.lock().unwrap().push(wishes.clone());
                    match wishes.iter().find(|it| [13, 66].contains(*it)) {
                        Some(13) => Err("odd"),
                        Some(_) => Err("all"),
                        None => {
                            assert!(!wishes.contains(&99), "a defect");
                            Ok(wishes.iter().map(|it| it * 10).collect())
                        }
                    }
                }
            })
        });
        let all = join_all(asked);
        let opened = async { gate.add_permits(1) };
        let (answers, ()) = tokio::join!(all, opened);
        let seen = seen.lock().unwrap().clone();
        (answers, seen)
    }

    #[tokio::test]
    async fn what_gathers_meanwhile_is_one_group_and_equal_wishes_are_one() {
        let (answers, seen) = ask_all(vec![1, 2, 3, 2, 4]).await;
        assert_eq!(answers, [10, 20, 30, 20, 40].map(|it| Some(Ok(it))));
        assert_eq!(seen, [vec![1, 2, 3, 4]]);
    }

    #[tokio::test]
    async fn a_group_has_a_bound() {
        let (answers, seen) = ask_all((100..2600).collect()).await;
        assert_eq!(answers[2499], Some(Ok(25_990)));
        let sizes: Vec<usize> = seen.iter().map(Vec::len).collect();
        assert_eq!(sizes, [1000, 1000, 500]);
    }

    #[tokio::test]
    async fn one_wish_that_fails_its_group_fails_alone() {
        let (answers, _) = ask_all((1..=40).collect()).await;
        for (number, answer) in (1..=40).zip(answers) {
            let expected = if number == 13 {
                Err("odd")
            } else {
                Ok(number * 10)
            };
            assert_eq!(answer, Some(expected));
        }
    }

    #[tokio::test]
    async fn what_fails_for_all_is_not_tried_again() {
        let (answers, seen) = ask_all(vec![1, 66, 2]).await;
        assert_eq!(answers, [Some(Err("all")); 3]);
        assert_eq!(seen.len(), 1);
    }

    #[tokio::test]
    async fn a_caller_that_goes_away_takes_no_other_along() {
        let groups = Numbers::default();
        let gate = Arc::new(Semaphore::new(0));
        let ask = |number| {
            let gate = Arc::clone(&gate);
            groups.ask(
                number,
                number,
                |_| false,
                move |wishes| {
                    let gate = Arc::clone(&gate);
                    async move {
                        gate.acquire().await.unwrap().forget();
                        Ok(wishes)
                    }
                },
            )
        };
        // Each has been asked for when it goes away; the first sees to the groups.
        let mut going = Vec::from([Box::pin(ask(1)), Box::pin(ask(2))]);
        for asked in &mut going {
            assert!(asked.as_mut().now_or_never().is_none());
        }
        let mut staying = Box::pin(ask(3));
        assert!(staying.as_mut().now_or_never().is_none());
        drop(going);
        gate.add_permits(2);
        assert_eq!(staying.await, Some(Ok(3)));
    }

    #[tokio::test]
    async fn a_defect_leaves_nobody_waiting() {
        let (answers, _) = ask_all(vec![1, 99]).await;
        assert_eq!(answers, [None, None]);
    }
}
