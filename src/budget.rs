//! Limits on concurrent work: in total, and for each caller.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// A limited amount of a resource, in total and for each caller; clones share it.
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
    /// By caller; entries of 0 are removed.
    by_caller: HashMap<String, u64>,
}

/// The part that a request holds; returned on drop.
#[derive(Debug)]
pub struct Share {
    budget: Budget,
    caller: String,
    amount: u64,
}

/// The limit that a request would exceed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exceeded {
    /// The limit of all callers together.
    All,
    /// The limit of each caller.
    Own,
}

impl Budget {
    /// A budget with a limit in total and one for each caller.
    pub fn new(all: u64, each: u64) -> Self {
        Self(Arc::new(Shared {
            all,
            each,
            taken: Mutex::default(),
        }))
    }

    /// An empty share for a caller.
    pub fn share(&self, caller: String) -> Share {
        Share {
            budget: self.clone(),
            caller,
            amount: 0,
        }
    }

    /// The amount that all shares hold.
    pub fn taken(&self) -> u64 {
        self.lock().all
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.0.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Share {
    /// Takes more, if that exceeds neither limit.
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

/// A semaphore for each caller; clones share them.
#[derive(Debug, Clone)]
pub struct Turns {
    each: usize,
    semaphores: Arc<Mutex<HashMap<String, Arc<Semaphore>>>>,
}

/// A permit; returned on drop.
#[derive(Debug)]
pub struct Turn {
    turns: Turns,
    caller: String,
    permit: Option<OwnedSemaphorePermit>,
}

impl Turns {
    /// This many permits for each caller.
    pub fn new(each: usize) -> Self {
        Self {
            each,
            semaphores: Arc::default(),
        }
    }

    /// Waits for a permit, in the order of the requests of this caller.
    pub async fn turn(&self, caller: &str) -> Turn {
        // Created before waiting, so that its drop also cleans up after a request that is cancelled.
        let mut turn = Turn {
            turns: self.clone(),
            caller: caller.to_owned(),
            permit: None,
        };
        let semaphores = {
            let mut semaphores = self.lock();
            let new = || Arc::new(Semaphore::new(self.each));
            Arc::clone(semaphores.entry(caller.to_owned()).or_insert_with(new))
        };
        turn.permit = semaphores.acquire_owned().await.ok();
        turn
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Arc<Semaphore>>> {
        self.semaphores
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut semaphores = self.turns.lock();
        drop(self.permit.take());
        // No other request of this caller holds or awaits a permit.
        if semaphores
            .get(&self.caller)
            .is_some_and(|it| Arc::strong_count(it) == 1)
        {
            semaphores.remove(&self.caller);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[test]
    fn callers_wait_only_for_themselves_and_are_removed_after_the_last() {
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
    fn dropped_shares_are_returned_and_both_limits_hold() {
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
