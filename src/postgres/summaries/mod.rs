//! Usage summaries: how full every organization is, sorted and filtered by lists of organizations.
//!
//! One row an organization, computed from its snapshots some time after they were stored ([`refresh()`]). Only running
//! periods count: a row whose period is over reads as blank, until [`age`] has blanked it.

mod page;
mod read;
mod refresh;

pub use page::{Exhausted, Listed, Listing, Position, Sort, page};
pub use refresh::{age, outlived, refresh};
