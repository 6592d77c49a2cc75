//! Organizations, their settings, and the service's defaults.

use std::collections::BTreeMap;
use std::fmt;

use chrono::{DateTime, Utc};
use chrono_tz::Tz;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::calendar::{Calendar, InvalidCalendar, Zone};
use super::display::{MeterDisplay, MeterDisplays};
use super::feature::{Feature, Features};
use super::ids::{MeterId, PlanId};
use super::input::{Day, Instant, Month, not_null, nullable};
use super::limit::{LimitOverride, MeterLimit, TemporaryLimit};
use super::period::{ResetMode, ResetPeriod};
use super::schedule::{Activity, Reset, Schedule};

/// The service's own settings, for organizations and plans that set nothing else.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Defaults {
    /// The plan of organizations that set none.
    pub plan_id: PlanId,
    /// The limits of that plan.
    pub limits: BTreeMap<MeterId, MeterLimit>,
    /// The calendar of organizations that set no part of one.
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
    /// The time zone of calendars.
    pub time_zone: Tz,
}

impl fmt::Display for DefaultCalendar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}, {}, {}",
            self.reset_mode, self.reset_period, self.time_zone
        )
    }
}

/// A present or previous default calendar.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DefaultSince {
    /// When it became the default; none for the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<DateTime<Utc>>,
    /// The policy version of that change.
    pub version: u64,
    /// The calendar.
    #[serde(flatten)]
    pub calendar: DefaultCalendar,
}

/// An organization's own settings; absent fields have the default.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[schema(example = json!({
    "resetPeriod": "monthly", "resetDay": 15, "timeZone": "Europe/Berlin", "features": {"sso": true},
    "metadata": {"stripeCustomer": "cus_1"}
}))]
pub struct OrganizationSettings {
    /// The organization's plan, which must exist.
    pub plan_id: Option<PlanId>,
    /// Its own features, by name.
    #[schema(value_type = BTreeMap<String, Feature>, example = json!({"sso": true, "seats": 5, "support": "email"}))]
    pub features: Features,
    /// How its meters are shown, over its plan's.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schema(
        value_type = BTreeMap<MeterId, MeterDisplay>,
        example = json!({"tokens": {"label": "Language model", "unit": "tokens"}})
    )]
    pub meters: MeterDisplays,
    /// What ends a period; in `manual` mode a period does not end by itself.
    pub reset_mode: Option<ResetMode>,
    /// How long a period is.
    pub reset_period: Option<ResetPeriod>,
    /// The day on which periods begin: 1 to 31 for monthly and yearly, clamped to the month's last day; 0 (Sunday) to 6
    /// for weekly. Default 1.
    #[serde(deserialize_with = "nullable::<Day, _, _>")]
    #[schema(maximum = 31)]
    pub reset_day: Option<u8>,
    /// The month in which yearly periods begin. Default 1.
    #[serde(deserialize_with = "nullable::<Month, _, _>")]
    #[schema(minimum = 1, maximum = 12)]
    pub reset_month: Option<u8>,
    /// An instant; every period begins at its day and time of day in `timeZone`. Excludes `resetDay` and `resetMonth`.
    #[serde(deserialize_with = "nullable::<Instant, _, _>")]
    pub anchor: Option<DateTime<Utc>>,
    /// The IANA name of the time zone.
    #[serde(deserialize_with = "nullable::<Zone, _, _>")]
    #[schema(value_type = Option<String>, example = "Europe/Berlin")]
    pub time_zone: Option<Tz>,
    /// Any JSON object, for the client's own use.
    #[schema(value_type = Object)]
    pub metadata: serde_json::Map<String, serde_json::Value>,
    /// The organization's own limits, by meter, in a request that replaces them; absent, they stay.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "not_null")]
    #[schema(
        value_type = BTreeMap<MeterId, LimitOverride>,
        example = json!({"api": {"limit": 1000, "enforcement": "hard", "warnAt": [80, 100]}})
    )]
    pub limits: Option<BTreeMap<MeterId, LimitOverride>>,
}

impl OrganizationSettings {
    /// The mode and calendar that result from these settings.
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

    /// Like [`calendar`](Self::calendar), but drops day, month and anchor if they do not fit the defaults: a change of
    /// the defaults must not lock an organization out.
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

    /// Whether both set the same calendar.
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

/// A stored organization.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Organization {
    /// Its own settings.
    pub settings: OrganizationSettings,
    /// Its own limits.
    pub limits: BTreeMap<MeterId, LimitOverride>,
    /// Its temporary limits; ended ones stay until their end was recorded.
    pub temporary: BTreeMap<MeterId, TemporaryLimit>,
    /// Its schedule after its last own change of calendar; none if it never had one.
    pub timeline: Option<Timeline>,
    /// The last reset of each meter that was ever reset.
    pub resets: BTreeMap<MeterId, Reset>,
    /// The policy version of its last change.
    pub version: u64,
}

/// An organization's schedule after its last own change of calendar. Later changes of the defaults are applied when the
/// policy is resolved, so that they update no organization.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Timeline {
    /// The version of the default calendar that the schedule includes.
    pub defaults_version: u64,
    /// The schedule, without resets.
    #[serde(flatten)]
    pub schedule: Schedule,
}

impl Organization {
    /// The organization's schedule, given all default calendars, oldest first. For an organization that inherits it, a
    /// change of the default is a change of calendar.
    pub(super) fn schedule(&self, defaults: &Defaults, calendars: &[DefaultSince]) -> Schedule {
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
            // Usage is unknown here, so the running period keeps its start.
            schedule = schedule.changed(mode, calendar, since, Activity::Running);
        }
        schedule.resets.clone_from(&self.resets);
        schedule
    }
}
