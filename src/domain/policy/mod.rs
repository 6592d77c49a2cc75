//! Policies: the effective limits, features and schedule of an organization.
//!
//! An organization's own setting overrides its plan's, and that the service's default. A policy has the highest version
//! of everything that it results from, so that any change makes it newer. Versions are drawn in steps larger than
//! [`METERS_MAX`](super::ids::METERS_MAX), so that each temporary limit that ends makes the policy newer as well, without
//! drawing a version at that instant.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::display::{MeterDisplays, override_with};
use super::feature::{Feature, Features};
use super::ids::{MeterId, PlanId};
use super::limit::{MeterLimit, OnOutage, Rule, Source, TemporaryLimit};
use super::organization::{DefaultSince, Defaults, Organization};
use super::plan::Plan;
use super::quantity::Count;
use super::schedule::Schedule;

/// The effective value of a feature.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SetFeature {
    /// The value.
    pub value: Feature,
    /// Where it was set.
    pub source: Source,
}

/// Everything that decides about one organization: at any time, as stored, or at an instant ([`Policy::at`]).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Policy {
    /// Grows with every change of the defaults, the plan or the organization. Stored next to the JSON, so that equal
    /// policies have equal JSON.
    #[serde(skip)]
    pub version: u64,
    /// The organization's plan.
    pub plan_id: PlanId,
    /// Features by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub features: BTreeMap<String, SetFeature>,
    /// How meters are shown, by meter.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub meters: MeterDisplays,
    /// When its periods begin and end.
    pub schedule: Schedule,
    /// Limits by meter; other meters are unlimited.
    pub limits: BTreeMap<MeterId, MeterLimit>,
    /// Temporary limits over them; empty in a policy at an instant, where `limits` contains them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub temporary: BTreeMap<MeterId, TemporaryLimit>,
    /// In a policy at an instant, the limits below the temporary ones.
    #[serde(skip)]
    pub lasting: BTreeMap<MeterId, MeterLimit>,
    /// When the first temporary limit of a policy at an instant ends.
    #[serde(skip)]
    pub until: Option<DateTime<Utc>>,
}

impl Policy {
    /// Resolves an organization over its plan over the defaults, given all default calendars, oldest first. `None` is an
    /// organization without settings.
    pub fn resolve(
        defaults: &Defaults,
        defaults_version: u64,
        calendars: &[DefaultSince],
        plan: &Plan,
        organization: Option<&Organization>,
    ) -> Self {
        let unset = Organization::default();
        let organization = organization.unwrap_or(&unset);
        let settings = &organization.settings;
        let mut limits = if plan.id == defaults.plan_id {
            defaults.limits.clone()
        } else {
            BTreeMap::new()
        };
        let mut features = BTreeMap::new();
        for (overrides, values, source) in [
            (&plan.limits, &plan.features, Source::Plan),
            (
                &organization.limits,
                &settings.features,
                Source::Organization,
            ),
        ] {
            for (meter, own) in overrides {
                let inherited = limits.get(meter).cloned().unwrap_or_default();
                limits.insert(meter.clone(), inherited.overridden(own, source));
            }
            for (name, value) in values {
                let value = value.clone();
                features.insert(name.clone(), SetFeature { value, source });
            }
        }
        let mut meters = plan.meters.clone();
        override_with(&mut meters, &settings.meters);
        Self {
            meters,
            version: organization.version.max(plan.version).max(defaults_version),
            plan_id: plan.id.clone(),
            features,
            schedule: organization.schedule(defaults, calendars),
            limits,
            temporary: organization.temporary.clone(),
            lasting: BTreeMap::new(),
            until: None,
        }
    }

    /// The policy at an instant, valid until the next temporary limit ends. Each temporary limit that has ended adds one
    /// to the version.
    #[must_use]
    pub fn at(mut self, now: DateTime<Utc>) -> Self {
        for (meter, TemporaryLimit { limit, until }) in std::mem::take(&mut self.temporary) {
            if until <= now {
                self.version = self.version.saturating_add(1);
                continue;
            }
            let lasting = self.limits.remove(&meter).unwrap_or_default();
            let temporary = MeterLimit {
                limit: limit.0,
                source: Source::Temporary,
                until: Some(until),
                ..lasting.clone()
            };
            self.lasting.insert(meter.clone(), lasting);
            self.limits.insert(meter, temporary);
            self.until = Some(self.until.map_or(until, |first| first.min(until)));
        }
        self
    }

    /// The rule of a meter at a later instant, if the policy does not change.
    pub fn rule_at(&self, meter: &MeterId, at: DateTime<Utc>) -> Rule {
        let limits = match self.limits.get(meter).and_then(|limit| limit.until) {
            Some(until) if until <= at => &self.lasting,
            _ => &self.limits,
        };
        limits.get(meter).map(MeterLimit::rule).unwrap_or_default()
    }

    /// When the temporary limit of a meter ends, if the limit below it is higher.
    pub fn relief(&self, meter: &MeterId) -> Option<DateTime<Utc>> {
        let temporary = self.limits.get(meter)?;
        let until = temporary.until?;
        let included = |limit: Option<Count>| limit.map_or(u64::MAX, Count::get);
        let lasting = self.lasting.get(meter)?;
        (included(lasting.limit) > included(temporary.limit)).then_some(until)
    }

    /// The value of a feature, if it is set, and where.
    pub fn feature(&self, name: &str) -> (Option<&Feature>, Source) {
        match self.features.get(name) {
            Some(set) => (Some(&set.value), set.source),
            None => (None, Source::Default),
        }
    }

    /// Every feature that is set.
    pub fn feature_values(&self) -> Features {
        let values = self.features.iter();
        values
            .map(|(name, set)| (name.clone(), set.value.clone()))
            .collect()
    }

    /// What a consume of a meter does in an outage, if the organization or its plan sets it.
    pub fn on_outage(&self, meter: &MeterId) -> Option<OnOutage> {
        self.limits.get(meter)?.on_outage
    }

    /// The rule of a meter.
    pub fn rule(&self, meter: &MeterId) -> Rule {
        let limit = self.limits.get(meter);
        limit.map(MeterLimit::rule).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests;
