//! Plans: named sets of limits and features that organizations share.

use std::collections::BTreeMap;

use super::display::MeterDisplays;
use super::feature::Features;
use super::ids::{MeterId, PlanId, PlanName};
use super::limit::LimitOverride;

/// A stored plan. The default plan always exists; it overrides the limits of the service's settings.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// Its id.
    pub id: PlanId,
    /// Its display name.
    pub name: PlanName,
    /// Its limits; absent meters and fields have the defaults: unlimited, hard, the default `warnAt`.
    pub limits: BTreeMap<MeterId, LimitOverride>,
    /// Its features, by name.
    pub features: Features,
    /// How its meters are shown.
    pub meters: MeterDisplays,
    /// The policy version of its last change.
    pub version: u64,
}
