//! What may be under way at once: for all callers together, and for each.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// An amount of something that callers share; clones share it too.
#[derive(Debug, Clone)]
pub struct Budget(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    all: u64,
    each: u64,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    all: u64,
    /// By caller, as long as there is something.
    by_caller: HashMap<String, u64>,
}

/// What one request has taken of it, until it is dropped.
#[derive(Debug)]
pub struct Share {
    budget: Budget,
    caller: String,
    amount: u64,
}

/// Which bound a request would pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exceeded {
    /// That of all callers together.
    All,
    /// The caller's own.
    Own,
}

impl Budget {
    /// A budget for all, and for each.
    pub fn new(all: u64, each: u64) -> Self {
        Self(Arc::new(Shared {
            all,
            each,
            taken: Mutex::default(),
        }))
    }

    /// A share of a caller's, with nothing in it.
    pub fn share(&self, caller: String) -> Share {
        Share {
            budget: self.clone(),
            caller,
            amount: 0,
        }
    }

    /// How much is under way.
    pub fn taken(&self) -> u64 {
        self.lock().all
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.0.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Share {
    /// Takes more, if that is within both bounds.
    pub fn grow(&mut self, by: u64) -> Result<(), Exceeded> {
        let Shared { all, each, .. } = *self.budget.0;
        let mut taken = self.budget.lock();
        let of_all = taken.all.saturating_add(by);
        let own = taken.by_caller.get(&self.caller).copied();
        let own = own.unwrap_or_default().saturating_add(by);
        if own > each {
            return Err(Exceeded::Own);
        }
        if of_all > all {
            return Err(Exceeded::All);
        }
        taken.all = of_all;
        taken.by_caller.insert(self.caller.clone(), own);
        self.amount = self.amount.saturating_add(by);
        Ok(())
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        if self.amount == 0 {
            return;
        }
        let mut taken = self.budget.lock();
        taken.all = taken.all.saturating_sub(self.amount);
        if let Some(own) = taken.by_caller.get_mut(&self.caller) {
            *own = own.saturating_sub(self.amount);
            if *own == 0 {
                taken.by_caller.remove(&self.caller);
            }
        }
    }
}

/// Places for callers, so many for each; whoever finds none waits. Clones share them.
#[derive(Debug, Clone)]
pub struct Turns {
    each: usize,
    places: Arc<Mutex<HashMap<String, Arc<Semaphore>>>>,
}

/// A place, until it is dropped.
#[derive(Debug)]
pub struct Turn {
    turns: Turns,
    caller: String,
    permit: Option<OwnedSemaphorePermit>,
}

impl Turns {
    /// So many places for each caller.
    pub fn new(each: usize) -> Self {
        Self {
            each,
            places: Arc::default(),
        }
    }

    /// Waits for a place, behind whoever of the same caller has come before.
    pub async fn turn(&self, caller: &str) -> Turn {
        // Forgets a caller who has gone away while waiting, too.
        let mut turn = Turn {
            turns: self.clone(),
            caller: caller.to_owned(),
            permit: None,
        };
        let places = {
            let mut places = self.lock();
            let new = || Arc::new(Semaphore::new(self.each));
            Arc::clone(places.entry(caller.to_owned()).or_insert_with(new))
        };
        turn.permit = places.acquire_owned().await.ok();
        turn
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Arc<Semaphore>>> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut places = self.turns.lock();
        drop(self.permit.take());
        // Nobody has or awaits a place of this caller.
        if places
            .get(&self.caller)
            .is_some_and(|it| Arc::strong_count(it) == 1)
        {
            places.remove(&self.caller);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[test]
    fn callers_wait_for_their_own_places_alone_and_are_forgotten_behind_the_last() {
        let turns = Turns::new(2);
        let take = |caller: &str| turns.turn(caller).now_or_never();
        let (first, second) = (take("a").unwrap(), take("a").unwrap());
        assert!(take("a").is_none());
        assert!(take("b").is_some());
        drop(first);
        let third = take("a").unwrap();
        assert!(take("a").is_none());
        drop((second, third));
        assert!(turns.lock().is_empty());
    }

    #[test]
    fn what_is_dropped_can_be_taken_again_and_nobody_takes_more_than_their_own() {
        let budget = Budget::new(100, 60);
        let (mut a, mut b) = (budget.share("a".to_owned()), budget.share("b".to_owned()));
        assert_eq!(a.grow(60), Ok(()));
        assert_eq!(a.grow(1), Err(Exceeded::Own));
        assert_eq!(budget.share("a".to_owned()).grow(1), Err(Exceeded::Own));
        assert_eq!(b.grow(41), Err(Exceeded::All));
        assert_eq!(b.grow(40), Ok(()));
        drop(a);
        assert_eq!(budget.taken(), 40);
        assert_eq!(b.grow(20), Ok(()));
        drop(b);
        assert_eq!(budget.taken(), 0);
        assert!(budget.lock().by_caller.is_empty());
    }
}
