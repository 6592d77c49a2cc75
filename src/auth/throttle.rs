//! Failed authentications by address, so that made-up keys cost no look-ups.
//!
//! Each address has a bucket of failures. While it is empty, a key that may not exist is refused without a look-up; a key
//! that exists is looked up in any case, so no caller can lock out the others behind the same proxy.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use chrono::{DateTime, TimeDelta, Utc};
use quick_cache::sync::Cache;

/// How many failures a full bucket admits.
const FAILURES_MAX: i32 = 10;

/// How long it takes until one more is admitted.
const REFILL: TimeDelta = TimeDelta::seconds(6);

/// The most addresses in memory; those that failed least recently are forgotten.
const ADDRESSES_MAX: usize = 10_000;

/// Minimum interval between two log lines about an address.
const LOG_INTERVAL: TimeDelta = TimeDelta::minutes(1);

/// The failures of all addresses; clones share them.
#[derive(Debug, Clone)]
pub(super) struct Throttle(Arc<Cache<IpAddr, Arc<Mutex<Bucket>>>>);

#[derive(Debug)]
struct Bucket {
    /// When it will be full again.
    full_at: DateTime<Utc>,
    logged_at: Option<DateTime<Utc>>,
}

impl Throttle {
    pub(super) fn new() -> Self {
        Self(Arc::new(Cache::new(ADDRESSES_MAX)))
    }

    /// How long an address has to wait, if its bucket is empty.
    pub(super) fn wait(&self, address: IpAddr, now: DateTime<Utc>) -> Option<TimeDelta> {
        let address = network(address);
        let bucket = self.0.get(&address)?;
        let mut bucket = lock(&bucket);
        let wait = bucket.wait(now)?;
        if bucket.logged_at.is_none_or(|at| now - at >= LOG_INTERVAL) {
            bucket.logged_at = Some(now);
            tracing::warn!(
                %address,
                "too many failed authentications; keys that do not exist are refused without a look-up"
            );
        }
        Some(wait)
    }

    /// Records a failure. Returns how long the address has to wait, if its bucket was empty before.
    pub(super) fn fail(&self, address: IpAddr, now: DateTime<Utc>) -> Option<TimeDelta> {
        if let Some(wait) = self.wait(address, now) {
            return Some(wait);
        }
        let address = network(address);
        let bucket = self.0.get(&address).unwrap_or_else(|| {
            let bucket = Arc::new(Mutex::new(Bucket {
                full_at: now,
                logged_at: None,
            }));
            self.0.insert(address, Arc::clone(&bucket));
            bucket
        });
        let mut bucket = lock(&bucket);
        // A clock that was set back must not extend the wait.
        let full_at = bucket.full_at.clamp(now, now + REFILL * FAILURES_MAX);
        bucket.full_at = full_at + REFILL;
        None
    }
}

fn lock(bucket: &Mutex<Bucket>) -> MutexGuard<'_, Bucket> {
    bucket.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Bucket {
    fn wait(&self, now: DateTime<Utc>) -> Option<TimeDelta> {
        let until_full = (self.full_at - now).min(REFILL * FAILURES_MAX);
        let wait = until_full - REFILL * (FAILURES_MAX - 1);
        (wait > TimeDelta::zero()).then_some(wait)
    }
}

/// What counts as one address: of IPv6 the network of a site, which has as many addresses as it likes.
fn network(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() & (u128::MAX << 64)).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: DateTime<Utc> = DateTime::UNIX_EPOCH;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn ten_failures_are_admitted_and_one_more_every_six_seconds() {
        let (throttle, address) = (Throttle::new(), ip("192.0.2.1"));
        for _ in 0..10 {
            assert_eq!(throttle.fail(address, START), None);
        }
        assert_eq!(throttle.wait(address, START), Some(TimeDelta::seconds(6)));
        let later = START + TimeDelta::milliseconds(5999);
        assert_eq!(
            throttle.fail(address, later),
            Some(TimeDelta::milliseconds(1))
        );
        let later = START + TimeDelta::seconds(6);
        assert_eq!(throttle.fail(address, later), None);
        assert_eq!(throttle.wait(address, later), Some(TimeDelta::seconds(6)));
        assert_eq!(throttle.wait(ip("192.0.2.2"), later), None);
        let full = later + TimeDelta::minutes(1);
        for _ in 0..10 {
            assert_eq!(throttle.fail(address, full), None);
        }
        assert!(throttle.fail(address, full).is_some());
        let set_back = START - TimeDelta::days(1);
        assert_eq!(throttle.wait(address, set_back), Some(REFILL));
    }

    #[test]
    fn a_network_of_ipv6_is_one_address() {
        let throttle = Throttle::new();
        for host in 0..10 {
            throttle.fail(ip(&format!("2001:db8:1:2::{host:x}")), START);
        }
        assert!(throttle.wait(ip("2001:db8:1:2:ffff::1"), START).is_some());
        assert!(throttle.wait(ip("2001:db8:1:3::1"), START).is_none());
    }

    #[test]
    fn memory_is_bounded() {
        let throttle = Throttle::new();
        for number in 0..100_000_u32 {
            throttle.fail(IpAddr::V4(number.into()), START);
        }
        assert!(throttle.0.len() <= ADDRESSES_MAX);
    }
}
