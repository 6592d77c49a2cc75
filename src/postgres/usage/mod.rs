//! Snapshots of counts: absolute, fenced, and moved from one generation to the next.
//!
//! `(generation, sequence)` of a row only grows and its policy version never shrinks, so that snapshots can be stored
//! repeatedly, late, or out of order, and none from before the organization's deletion overwrites a newer one. Rows are
//! locked in key order. Slots are stored only together with an accepted snapshot.

mod ended;
mod paces;
mod partitions;
mod read;
mod restore;
mod store;

pub use paces::paces;
pub(super) use paces::paces_of;
pub use partitions::{Dropped, drop_month, ensure_partitions, hours_kept_since, months_before};
pub use read::{last_counted, last_stored, running_meters, unfinished};
pub(super) use read::{running_meters_of, unfinished_of};
pub use restore::{Move, Restored, restore};
pub use store::{ThresholdEvents, store};
