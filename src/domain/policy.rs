//! What an organization may use and when its periods begin: settings as people give them, and the
//! policy that they resolve to.
//!
//! An organization's own setting wins over its plan's, and that over the service's default. The
//! resolved policy carries the highest version of all that went into it, so that any change anywhere
//! makes it newer. Versions are drawn in steps larger than [`METERS_MAX`](super::ids::METERS_MAX), so that each
//! temporary limit that ends makes the policy newer as well, without anybody drawing a version at that instant.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::RangeInclusive;

use chrono::{DateTime, Utc};
use chrono_tz::Tz;
use serde::de::{self, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::openapi::schema::{ArrayBuilder, ObjectBuilder, SchemaType, Type};
use utoipa::openapi::{RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

use super::ids::{MeterId, PlanId};
use super::input::{Day, Instant, Month, WarnAt, Zone, nullable, optional, required};
use super::patch::{double_option, not_null};
use super::period::{Calendar, InvalidCalendar, ResetMode, ResetPeriod};
use super::plan::Plan;
use super::quantity::Count;
use super::schedule::{Activity, Reset, Schedule};

/// What happens to a consume that does not fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Enforcement {
    /// It is refused.
    #[default]
    Hard,
    /// It is allowed and becomes overage.
    Soft,
}

impl Enforcement {
    /// The word used in JSON and SQL.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Hard => "hard",
            Self::Soft => "soft",
        }
    }

    /// The inverse of [`Enforcement::as_str`].
    pub fn parse(word: &str) -> Option<Self> {
        match word {
            "hard" => Some(Self::Hard),
            "soft" => Some(Self::Soft),
            _ => None,
        }
    }
}

/// How far one meter may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Rule {
    /// Units that a period includes; none = unlimited.
    pub limit: Option<Count>,
    /// What happens beyond the limit.
    pub enforcement: Enforcement,
}

impl Rule {
    /// The count beyond which a consume is refused, if there is one.
    pub fn cap(&self) -> Option<Count> {
        self.limit.filter(|_| self.enforcement == Enforcement::Hard)
    }
}

/// Who set what is in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// Somebody, for this organization and for a time.
    Temporary,
    /// Somebody, for this organization.
    Organization,
    /// Somebody, for the plan that the organization is on.
    Plan,
    /// Nobody: it is the service's default.
    #[default]
    Default,
}

/// A limit as it is in force for one meter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct MeterLimit {
    /// Units that a period includes; null is unlimited.
    #[schema(required)]
    pub limit: Option<Count>,
    /// What happens beyond the limit.
    pub enforcement: Enforcement,
    /// Percentages of the limit at which people are told.
    pub warn_at: Vec<u16>,
    /// Who set it, or any part of it.
    #[serde(default)]
    #[schema(required)]
    pub source: Source,
    /// When the limit that is there for a time ends; only where `source` is `temporary`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = DateTime<Utc>, required = false)]
    pub until: Option<DateTime<Utc>>,
}

/// Where people are told, unless a limit says otherwise.
pub const WARN_AT_DEFAULT: [u16; 2] = [80, 100];

impl Default for MeterLimit {
    fn default() -> Self {
        Self {
            limit: None,
            enforcement: Enforcement::Hard,
            warn_at: WARN_AT_DEFAULT.to_vec(),
            source: Source::Default,
            until: None,
        }
    }
}

impl MeterLimit {
    fn rule(&self) -> Rule {
        Rule {
            limit: self.limit,
            enforcement: self.enforcement,
        }
    }

    fn overridden(&self, own: &LimitOverride, source: Source) -> Self {
        Self {
            limit: own.limit.map_or(self.limit, |Limit(limit)| limit),
            enforcement: own.enforcement.unwrap_or(self.enforcement),
            warn_at: own.warn_at.clone().unwrap_or_else(|| self.warn_at.clone()),
            source: if *own == LimitOverride::default() {
                self.source
            } else {
                source
            },
            until: None,
        }
    }
}

/// A limit that was named: a number of units, or `null` for unlimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(transparent)]
pub struct Limit(pub Option<Count>);

/// A limit that a plan or an organization sets on one meter; what is absent is inherited.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LimitOverride {
    /// Units that a period includes; null is unlimited, 0 is nothing.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "double_option"
    )]
    #[schema(value_type = Option<Count>)]
    pub limit: Option<Limit>,
    /// What happens beyond the limit.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "not_null"
    )]
    #[schema(nullable = false)]
    pub enforcement: Option<Enforcement>,
    /// Percentages of the limit at which people are told, ascending.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "optional::<WarnAt, _>"
    )]
    #[schema(schema_with = warn_at)]
    pub warn_at: Option<Vec<u16>>,
}

impl LimitOverride {
    /// This override with all that `change` names replaced.
    #[must_use]
    pub fn patched(&self, change: &Self) -> Self {
        Self {
            limit: change.limit.or(self.limit),
            enforcement: change.enforcement.or(self.enforcement),
            warn_at: change.warn_at.clone().or_else(|| self.warn_at.clone()),
        }
    }
}

/// A limit that lies on top of an organization's for a time, and ends by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"limit": 12000, "until": "2040-01-01T00:00:00Z"}))]
pub struct TemporaryLimit {
    /// Units that a period includes; null is unlimited.
    // Without this, serde would take an absent limit for null.
    #[serde(deserialize_with = "Limit::deserialize")]
    #[schema(value_type = Option<Count>, required)]
    pub limit: Limit,
    /// The first instant at which it does not hold any more; in the future.
    #[serde(deserialize_with = "required::<Instant, _>")]
    pub until: DateTime<Utc>,
}

/// The most thresholds that one limit may have.
pub const WARN_AT_MAX: usize = 10;

/// The percentages that a threshold may be at.
pub const WARN_AT: RangeInclusive<u16> = 1..=1000;

/// How thresholds are described.
pub fn warn_at() -> impl Into<RefOr<Schema>> {
    let percentage = ObjectBuilder::new()
        .schema_type(Type::Integer)
        .minimum(Some(*WARN_AT.start()))
        .maximum(Some(*WARN_AT.end()));
    ArrayBuilder::new()
        .schema_type(Type::Array)
        .items(percentage)
        .unique_items(true)
        .max_items(Some(WARN_AT_MAX))
        .description(Some(
            "Percentages of the limit at which people are told, ascending.",
        ))
        .examples([serde_json::json!(WARN_AT_DEFAULT)])
}

/// The value of one feature.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Feature {
    /// On or off.
    Switch(bool),
    /// A quantity, such as a number of seats.
    Number(serde_json::Number),
    /// A choice, such as a support tier.
    Text(String),
}

impl<'de> Deserialize<'de> for Feature {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Value;

        impl Visitor<'_> for Value {
            type Value = Feature;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("true, false, a number or a string")
            }

            fn visit_bool<E>(self, on: bool) -> Result<Feature, E> {
                Ok(Feature::Switch(on))
            }

            fn visit_u64<E>(self, number: u64) -> Result<Feature, E> {
                Ok(Feature::Number(number.into()))
            }

            fn visit_i64<E>(self, number: i64) -> Result<Feature, E> {
                Ok(Feature::Number(number.into()))
            }

            fn visit_f64<E: de::Error>(self, number: f64) -> Result<Feature, E> {
                let finite = serde_json::Number::from_f64(number);
                finite
                    .map(Feature::Number)
                    .ok_or_else(|| E::invalid_value(Unexpected::Float(number), &self))
            }

            fn visit_str<E>(self, text: &str) -> Result<Feature, E> {
                Ok(Feature::Text(text.to_owned()))
            }
        }

        deserializer.deserialize_any(Value)
    }
}

impl PartialSchema for Feature {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new()
            .schema_type(SchemaType::from_iter([
                Type::Boolean,
                Type::Number,
                Type::String,
            ]))
            .description(Some("On or off, a quantity, or a choice."))
            .into()
    }
}

impl ToSchema for Feature {}

impl Feature {
    /// Whether it is on: a switch that is, a number other than zero, a text that is not empty.
    pub fn is_enabled(&self) -> bool {
        match self {
            Self::Switch(on) => *on,
            Self::Number(number) => number.as_f64() != Some(0.0),
            Self::Text(text) => !text.is_empty(),
        }
    }
}

/// Features by name.
pub type Features = BTreeMap<String, Feature>;

/// What applies where nobody said otherwise: the service's own settings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Defaults {
    /// The plan of an organization that has none.
    pub plan_id: PlanId,
    /// The limits of that plan.
    pub limits: BTreeMap<MeterId, MeterLimit>,
    /// The calendar of an organization that sets no part of it.
    #[serde(flatten)]
    pub calendar: DefaultCalendar,
}

/// The parts of a calendar that have a default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DefaultCalendar {
    /// What ends a period.
    pub reset_mode: ResetMode,
    /// How long a period is.
    pub reset_period: ResetPeriod,
    /// Where midnight is.
    pub time_zone: Tz,
}

impl std::fmt::Display for DefaultCalendar {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{}, {}, {}",
            self.reset_mode, self.reset_period, self.time_zone
        )
    }
}

/// A calendar that is or was the default, and since when.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DefaultSince {
    /// When it became the default; none for the first of all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<DateTime<Utc>>,
    /// The policy version of that change.
    pub version: u64,
    /// The calendar.
    #[serde(flatten)]
    pub calendar: DefaultCalendar,
}

/// An organization's settings as people give them; what is absent is the default.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[schema(example = json!({
    "resetPeriod": "monthly", "resetDay": 15, "timeZone": "Europe/Berlin", "features": {"sso": true},
    "metadata": {"stripeCustomer": "cus_1"}
}))]
pub struct OrganizationSettings {
    /// The organization's plan, which must exist; the default plan always does.
    pub plan_id: Option<PlanId>,
    /// Its own features, by name.
    #[schema(value_type = BTreeMap<String, Feature>, example = json!({"sso": true, "seats": 5, "support": "email"}))]
    pub features: Features,
    /// What ends a period; in `manual` mode a period does not end by itself.
    pub reset_mode: Option<ResetMode>,
    /// How long a period is.
    pub reset_period: Option<ResetPeriod>,
    /// The day on which periods begin: 1 to 31 for monthly and yearly, clamped to the month's last day, 1 unless said;
    /// 0 (Sunday) to 6 for weekly, 1 unless said.
    #[serde(deserialize_with = "nullable::<Day, _, _>")]
    #[schema(maximum = 31)]
    pub reset_day: Option<u8>,
    /// The month in which yearly periods begin, 1 unless said.
    #[serde(deserialize_with = "nullable::<Month, _, _>")]
    #[schema(minimum = 1, maximum = 12)]
    pub reset_month: Option<u8>,
    /// An instant; every period begins at its day and time of day in `timeZone` instead. Not with `resetDay` or
    /// `resetMonth`.
    #[serde(deserialize_with = "nullable::<Instant, _, _>")]
    pub anchor: Option<DateTime<Utc>>,
    /// Where midnight is: an IANA name.
    #[serde(deserialize_with = "nullable::<Zone, _, _>")]
    #[schema(value_type = Option<String>, example = "Europe/Berlin")]
    pub time_zone: Option<Tz>,
    /// Any JSON object; whatever the caller wants to keep here.
    #[schema(value_type = Object)]
    pub metadata: serde_json::Map<String, serde_json::Value>,
}

impl OrganizationSettings {
    /// The mode and calendar that these settings come to.
    pub fn calendar(
        &self,
        defaults: DefaultCalendar,
    ) -> Result<(ResetMode, Calendar), InvalidCalendar> {
        let calendar = Calendar::new(
            self.reset_period.unwrap_or(defaults.reset_period),
            self.reset_day,
            self.reset_month,
            self.anchor,
            self.time_zone.unwrap_or(defaults.time_zone),
        )?;
        Ok((self.reset_mode.unwrap_or(defaults.reset_mode), calendar))
    }

    /// The same; a default that changed under an organization's own day must not lock the organization out, so that day is
    /// then left out.
    fn calendar_or_plain(&self, defaults: DefaultCalendar) -> (ResetMode, Calendar) {
        self.calendar(defaults).unwrap_or_else(|_| {
            let zone = self.time_zone.unwrap_or(defaults.time_zone);
            let period = self.reset_period.unwrap_or(defaults.reset_period);
            (
                self.reset_mode.unwrap_or(defaults.reset_mode),
                Calendar::plain(period, zone),
            )
        })
    }

    /// Whether these say the same of the calendar as others do.
    pub fn same_calendar(&self, other: &Self) -> bool {
        let own = |it: &Self| {
            (
                it.reset_mode,
                it.reset_period,
                it.reset_day,
                it.reset_month,
                it.anchor,
                it.time_zone,
            )
        };
        own(self) == own(other)
    }
}

/// An organization as it is stored.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Organization {
    /// What people set.
    pub settings: OrganizationSettings,
    /// Its own limits.
    pub limits: BTreeMap<MeterId, LimitOverride>,
    /// What lies on top of them, until it has ended and that was noted.
    pub temporary: BTreeMap<MeterId, TemporaryLimit>,
    /// Its schedule as its last own change of the calendar left it; none if it never had one of its own.
    pub timeline: Option<Timeline>,
    /// The last reset of each meter that ever had one.
    pub resets: BTreeMap<MeterId, Reset>,
    /// The policy version of the last change to any of these.
    pub version: u64,
}

/// An organization's schedule as its last own change of the calendar left it. Changes of the defaults since then are
/// added when it is resolved, so that they write no organization.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Timeline {
    /// The version of the default calendar that this schedule takes into account.
    pub defaults_version: u64,
    /// The schedule, without resets.
    #[serde(flatten)]
    pub schedule: Schedule,
}

impl Organization {
    /// The schedule of an organization, given all calendars that were the default, oldest first. Each change of the
    /// default is a change of the calendar for whoever inherits it.
    fn schedule(&self, defaults: &Defaults, calendars: &[DefaultSince]) -> Schedule {
        let known = self.timeline.as_ref().map(|it| it.defaults_version);
        let mut later = calendars
            .iter()
            .filter(|it| known.is_none_or(|known| known < it.version))
            .map(|it| (it.since, self.settings.calendar_or_plain(it.calendar)));
        let mut schedule = if let Some(timeline) = &self.timeline {
            timeline.schedule.clone()
        } else {
            let (mode, calendar) = later.next().map_or_else(
                || self.settings.calendar_or_plain(defaults.calendar),
                |(_, first)| first,
            );
            Schedule::new(mode, calendar)
        };
        for (since, (mode, calendar)) in later {
            let since = since.unwrap_or(DateTime::<Utc>::MIN_UTC);
            // Nobody knows here what was counted in the running period, so its start stays.
            schedule = schedule.changed(mode, calendar, since, Activity::Running);
        }
        schedule.resets.clone_from(&self.resets);
        schedule
    }
}

/// The value of a feature, and who set it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SetFeature {
    /// What it was set to.
    pub value: Feature,
    /// Whoever did.
    pub source: Source,
}

/// All that decides about one organization: whenever, as it is held, or at an instant ([`Policy::at`]).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Policy {
    /// Grows with every change to anything that the policy came from. Kept beside the JSON, so that the same policy reads
    /// the same.
    #[serde(skip)]
    pub version: u64,
    /// The plan that the organization is on.
    pub plan_id: PlanId,
    /// Features by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub features: BTreeMap<String, SetFeature>,
    /// When its periods begin and end.
    pub schedule: Schedule,
    /// Limits by meter; a meter that is not named is counted without limit.
    pub limits: BTreeMap<MeterId, MeterLimit>,
    /// What lies on top of them for a time; nothing in a policy at an instant, which has it in `limits`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub temporary: BTreeMap<MeterId, TemporaryLimit>,
    /// In a policy at an instant, what lies below those that are in force.
    #[serde(skip)]
    pub lasting: BTreeMap<MeterId, MeterLimit>,
    /// How long a policy at an instant holds, where something in it ends by itself.
    #[serde(skip)]
    pub until: Option<DateTime<Utc>>,
}

impl Policy {
    /// Resolves an organization, or one that nobody has set anything for, over its plan, over the defaults, given all
    /// calendars that were the default, oldest first.
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
        Self {
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

    /// What this comes to at an instant, and until the next of its temporary limits ends. Each that has ended
    /// makes it newer by one.
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

    /// How far a meter may go at an instant from that of this policy on, unless somebody changes it.
    pub fn rule_at(&self, meter: &MeterId, at: DateTime<Utc>) -> Rule {
        let limits = match self.limits.get(meter).and_then(|limit| limit.until) {
            Some(until) if until <= at => &self.lasting,
            _ => &self.limits,
        };
        limits.get(meter).map(MeterLimit::rule).unwrap_or_default()
    }

    /// When a temporary limit of a meter ends below which more is included.
    pub fn relief(&self, meter: &MeterId) -> Option<DateTime<Utc>> {
        let temporary = self.limits.get(meter)?;
        let until = temporary.until?;
        let included = |limit: Option<Count>| limit.map_or(u64::MAX, Count::get);
        let lasting = self.lasting.get(meter)?;
        (included(lasting.limit) > included(temporary.limit)).then_some(until)
    }

    /// The value of a feature and who set it; none if nobody did.
    pub fn feature(&self, name: &str) -> (Option<&Feature>, Source) {
        match self.features.get(name) {
            Some(set) => (Some(&set.value), set.source),
            None => (None, Source::Default),
        }
    }

    /// Every feature that anybody has set.
    pub fn feature_values(&self) -> Features {
        let values = self.features.iter();
        values
            .map(|(name, set)| (name.clone(), set.value.clone()))
            .collect()
    }

    /// How far a meter may go.
    pub fn rule(&self, meter: &MeterId) -> Rule {
        let limit = self.limits.get(meter);
        limit.map(MeterLimit::rule).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn defaults() -> Defaults {
        Defaults {
            plan_id: "free".parse().unwrap(),
            limits: BTreeMap::from([("api".parse().unwrap(), limited(1000))]),
            calendar: DefaultCalendar {
                reset_mode: ResetMode::Lazy,
                reset_period: ResetPeriod::Monthly,
                time_zone: Tz::UTC,
            },
        }
    }

    fn plan(id: &str, limits: &str) -> Plan {
        Plan {
            id: id.parse().unwrap(),
            name: "Plan".parse().unwrap(),
            limits: serde_json::from_str(limits).unwrap(),
            features: Features::default(),
            version: 5,
        }
    }

    fn resolve(defaults: &Defaults, organization: Option<&Organization>) -> Policy {
        let plan = Plan {
            version: 0,
            ..plan("free", "{}")
        };
        Policy::resolve(defaults, 3, &[], &plan, organization)
    }

    fn limited(units: u64) -> MeterLimit {
        MeterLimit {
            limit: Some(Count::try_from(units).unwrap()),
            ..MeterLimit::default()
        }
    }

    fn overriding(meter: &str, json: &str) -> Organization {
        let own = serde_json::from_str(json).unwrap();
        Organization {
            limits: BTreeMap::from([(meter.parse().unwrap(), own)]),
            version: 7,
            ..Organization::default()
        }
    }

    #[test]
    fn an_unknown_organization_is_on_the_default_plan() {
        let policy = resolve(&defaults(), None);
        assert_eq!((policy.version, policy.plan_id.as_str()), (3, "free"));
        assert_eq!(
            policy.rule(&"api".parse().unwrap()).limit,
            Count::try_from(1000).ok()
        );
    }

    #[test]
    fn a_limit_of_zero_stays_zero_and_null_means_unlimited() {
        let api: MeterId = "api".parse().unwrap();
        let zero = resolve(&defaults(), Some(&overriding("api", r#"{"limit": 0}"#)));
        assert_eq!(zero.rule(&api).limit, Some(Count::ZERO));
        let unlimited = resolve(&defaults(), Some(&overriding("api", r#"{"limit": null}"#)));
        assert_eq!(unlimited.rule(&api).limit, None);
    }

    #[test]
    fn an_override_inherits_what_it_does_not_name() {
        let policy = resolve(
            &defaults(),
            Some(&overriding("api", r#"{"enforcement": "soft"}"#)),
        );
        let rule = policy.rule(&"api".parse().unwrap());
        assert_eq!(
            (rule.limit, rule.enforcement),
            (Count::try_from(1000).ok(), Enforcement::Soft)
        );
        assert_eq!(policy.version, 7);
    }

    #[test]
    fn a_limit_is_the_organizations_own_as_soon_as_it_sets_any_part_of_it() {
        let api: MeterId = "api".parse().unwrap();
        let source = |own: Option<&Organization>| resolve(&defaults(), own).limits[&api].source;
        assert_eq!(source(None), Source::Default);
        assert_eq!(source(Some(&overriding("api", "{}"))), Source::Default);
        assert_eq!(
            source(Some(&overriding("api", r#"{"warnAt": [50]}"#))),
            Source::Organization
        );
    }

    #[test]
    fn a_part_of_a_limit_comes_from_the_organization_else_the_plan_else_the_default() {
        let (api, tokens) = ("api".parse().unwrap(), "tokens".parse().unwrap());
        let own = overriding("api", r#"{"warnAt": [50]}"#);
        let over_settings = plan("free", r#"{"api": {"enforcement": "soft"}}"#);
        let policy = Policy::resolve(&defaults(), 3, &[], &over_settings, Some(&own));
        let all_three = MeterLimit {
            enforcement: Enforcement::Soft,
            warn_at: vec![50],
            source: Source::Organization,
            ..limited(1000)
        };
        assert_eq!(policy.limits[&api], all_three);
        // The settings limit the default plan alone.
        let pro = plan("pro", r#"{"tokens": {"limit": 7}}"#);
        let policy = Policy::resolve(&defaults(), 3, &[], &pro, Some(&own));
        assert_eq!(policy.rule(&api).limit, None);
        let planned = MeterLimit {
            source: Source::Plan,
            ..limited(7)
        };
        assert_eq!(policy.limits[&tokens], planned);
        assert_eq!((policy.plan_id.as_str(), policy.version), ("pro", 7));
        assert_eq!(Policy::resolve(&defaults(), 3, &[], &pro, None).version, 5);
    }

    #[test]
    fn a_temporary_limit_ends_by_the_clock_and_makes_the_policy_newer() {
        let api: MeterId = "api".parse().unwrap();
        let instant = |second: i64| DateTime::from_timestamp(second, 0).unwrap();
        let mut organization = overriding("api", r#"{"limit": 5, "enforcement": "soft"}"#);
        for (meter, limit, second) in [("api", Count::try_from(9).ok(), 20), ("tokens", None, 10)] {
            let temporary = TemporaryLimit {
                limit: Limit(limit),
                until: instant(second),
            };
            let meter = meter.parse().unwrap();
            organization.temporary.insert(meter, temporary);
        }
        let policy = resolve(&defaults(), Some(&organization));
        let seen = |second: i64| {
            let at = policy.clone().at(instant(second));
            let MeterLimit { limit, source, .. } = at.limits[&api];
            assert_eq!(at.limits[&api].enforcement, Enforcement::Soft);
            (limit.unwrap().get(), source, at.version, at.until)
        };
        assert_eq!(seen(9), (9, Source::Temporary, 7, Some(instant(10))));
        assert_eq!(seen(10), (9, Source::Temporary, 8, Some(instant(20))));
        assert_eq!(seen(20), (5, Source::Organization, 9, None));
        assert!(
            policy
                .clone()
                .at(instant(9))
                .limits
                .contains_key(&"tokens".parse().unwrap())
        );
        assert!(
            !policy
                .clone()
                .at(instant(10))
                .limits
                .contains_key(&"tokens".parse().unwrap())
        );
        // An instant's policy stays what it is.
        let at = policy.at(instant(9));
        assert_eq!(at.clone().at(instant(99)), at);
    }

    #[test]
    fn a_feature_is_on_unless_it_is_off_zero_or_empty() {
        for (json, enabled) in [
            ("true", true),
            ("false", false),
            ("3", true),
            ("-0.5", true),
            ("0", false),
            ("0.0", false),
            (r#""email""#, true),
            (r#""""#, false),
        ] {
            let feature: Feature = serde_json::from_str(json).unwrap();
            assert_eq!(feature.is_enabled(), enabled, "{json}");
        }
    }

    #[test]
    fn a_meter_that_nobody_names_is_unlimited() {
        let policy = resolve(&defaults(), None);
        assert_eq!(policy.rule(&"storage".parse().unwrap()), Rule::default());
    }

    #[test]
    fn a_default_that_no_longer_fits_an_organizations_day_falls_back_to_the_plain_calendar() {
        let mut daily = defaults();
        daily.calendar.reset_period = ResetPeriod::Daily;
        let settings = OrganizationSettings {
            reset_day: Some(15),
            ..OrganizationSettings::default()
        };
        let organization = Organization {
            settings,
            ..Organization::default()
        };
        let policy = resolve(&daily, Some(&organization));
        assert_eq!(
            policy.schedule.calendar().reset_period(),
            ResetPeriod::Daily
        );
    }

    #[test]
    fn a_policy_survives_its_json_which_has_no_version() {
        let mut organization = overriding("api", r#"{"limit": null}"#);
        let temporary = r#"{"limit": null, "until": "2031-03-15T12:00:00.123456Z"}"#;
        let temporary = serde_json::from_str(temporary).unwrap();
        organization
            .temporary
            .insert("api".parse().unwrap(), temporary);
        let policy = resolve(&defaults(), Some(&organization));
        let json = serde_json::to_string(&policy).unwrap();
        let read = Policy {
            version: policy.version,
            ..serde_json::from_str(&json).unwrap()
        };
        assert_eq!(read, policy);
        let newer = Policy {
            version: policy.version + 1,
            ..policy
        };
        assert_eq!(serde_json::to_string(&newer).unwrap(), json);
    }
}
