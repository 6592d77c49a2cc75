//! Policies: resolution over plan and defaults, temporary limits, JSON.

use chrono_tz::Tz;

use super::*;
use crate::domain::limit::{Enforcement, Limit};
use crate::domain::organization::{DefaultCalendar, OrganizationSettings};
use crate::domain::period::{ResetMode, ResetPeriod};

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
        meters: BTreeMap::new(),
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
fn an_override_inherits_absent_fields() {
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
fn setting_any_part_of_a_limit_makes_the_organization_its_source() {
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
fn a_temporary_limit_ends_on_time_and_makes_the_policy_newer() {
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
    // A policy at an instant does not change.
    let at = policy.at(instant(9));
    assert_eq!(at.clone().at(instant(99)), at);
}

#[test]
fn a_meter_without_limit_is_unlimited() {
    let policy = resolve(&defaults(), None);
    assert_eq!(policy.rule(&"storage".parse().unwrap()), Rule::default());
}

#[test]
fn a_default_that_contradicts_an_organizations_day_falls_back_to_the_plain_calendar() {
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
fn a_policy_round_trips_through_json_without_its_version() {
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
