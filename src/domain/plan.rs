//! Plans: named sets of limits and features, under which organizations share what they may use.

use std::collections::BTreeMap;

use super::ids::{MeterId, PlanId, PlanName};
use super::policy::{Features, LimitOverride};

/// A plan as it is stored. The default plan always is, and lies over the limits of the settings.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// What organizations name it by.
    pub id: PlanId,
    /// What people know it by.
    pub name: PlanName,
    /// Its limits; a meter, or a part of a limit, that it does not name is unlimited, hard, and warned of as usual.
    pub limits: BTreeMap<MeterId, LimitOverride>,
    /// Its features, by name.
    pub features: Features,
    /// The policy version of the last change to any of these.
    pub version: u64,
}
