//! The organizations of the demo: who they are, what they may use, and how full each is.

#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "invented figures need no more precision than f64 has"
)]

use chrono::{DateTime, Days, Utc};
use chrono_tz::Tz;
use fastrand::Rng;
use serde_json::{Value, json};

use crate::domain::period::ResetPeriod;

/// How many organizations there are.
const COUNT: usize = 200;

/// Equal in every run, so that what one reader sees another can see too.
const SEED: u64 = 7400;

/// The first half of a name, combined with [`TRADES`] in turn.
const NAMES: [&str; 40] = [
    "Aldgate",
    "Alpenglow",
    "Amber",
    "Aurora",
    "Banyan",
    "Bluefin",
    "Borealis",
    "Cedar",
    "Cobalt",
    "Copper",
    "Delta",
    "Ember",
    "Falcon",
    "Fjord",
    "Foxglove",
    "Granite",
    "Harbor",
    "Hawthorn",
    "Heron",
    "Indigo",
    "Juniper",
    "Kestrel",
    "Lantern",
    "Larch",
    "Lumen",
    "Marigold",
    "Meridian",
    "Monsoon",
    "Nimbus",
    "Northwind",
    "Opal",
    "Osprey",
    "Pinecone",
    "Quartz",
    "Redwood",
    "Saffron",
    "Summit",
    "Tamarind",
    "Verdant",
    "Willow",
];

/// The second half of a name.
const TRADES: [&str; 13] = [
    "Robotics",
    "Health",
    "Analytics",
    "Foods",
    "Energy",
    "Legal",
    "Travel",
    "Studios",
    "Freight",
    "Insurance",
    "Learning",
    "Games",
    "Biotech",
];

const ZONES: [Tz; 7] = [
    Tz::UTC,
    Tz::Europe__Berlin,
    Tz::America__New_York,
    Tz::America__Los_Angeles,
    Tz::Asia__Tokyo,
    Tz::Asia__Kolkata,
    Tz::Australia__Sydney,
];

/// A plan: its limits, and whether they are soft.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) id: &'static str,
    pub(super) name: &'static str,
    api: u64,
    tokens: u64,
    pub(super) soft: bool,
}

/// From the smallest to the largest.
pub(super) const PLANS: [Plan; 4] = [
    Plan {
        id: "hobby",
        name: "Hobby",
        api: 10_000,
        tokens: 500_000,
        soft: false,
    },
    Plan {
        id: "team",
        name: "Team",
        api: 100_000,
        tokens: 5_000_000,
        soft: false,
    },
    Plan {
        id: "business",
        name: "Business",
        api: 1_000_000,
        tokens: 60_000_000,
        soft: false,
    },
    Plan {
        id: "enterprise",
        name: "Enterprise",
        api: 10_000_000,
        tokens: 800_000_000,
        soft: true,
    },
];

impl Plan {
    pub(super) fn limit(&self, meter: &str) -> u64 {
        if meter == "tokens" {
            self.tokens
        } else {
            self.api
        }
    }

    /// The body of `PUT /v1/plans/{id}`.
    pub(super) fn body(&self) -> Value {
        let enforcement = if self.soft { "soft" } else { "hard" };
        let limit = |limit| json!({"limit": limit, "enforcement": enforcement, "warnAt": [80, 95]});
        json!({
            "name": self.name,
            "limits": {"api": limit(self.api), "tokens": limit(self.tokens)},
            "features": {"sso": self.soft, "seats": self.api / 2_000, "support": if self.soft { "phone" } else { "email" }},
        })
    }
}

/// When an organization crossed to another plan.
#[derive(Debug)]
pub(super) struct PlanChange {
    pub(super) at: DateTime<Utc>,
    pub(super) plan: &'static Plan,
}

/// An organization of the demo.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) id: String,
    pub(super) name: String,
    pub(super) zone: Tz,
    pub(super) reset_period: ResetPeriod,
    pub(super) joined: DateTime<Utc>,
    /// Its plans, the first since it joined; never empty.
    pub(super) plans: Vec<PlanChange>,
    /// What it counts, and which part of its limit it has used in the running period.
    pub(super) meters: Vec<(&'static str, f64)>,
    /// Whether today has eight times the usual traffic, so that its limit will be reached before the period ends.
    pub(super) bursts: bool,
}

impl Member {
    /// Its plan at an instant.
    pub(super) fn plan(&self, at: DateTime<Utc>) -> &'static Plan {
        let since = self.plans.iter().rev().find(|change| change.at <= at);
        since
            .or(self.plans.first())
            .map_or(&PLANS[0], |change| change.plan)
    }

    /// The body of `PUT /v1/organizations/{id}`.
    pub(super) fn body(&self, now: DateTime<Utc>) -> Value {
        json!({
            "planId": self.plan(now).id,
            "resetPeriod": self.reset_period,
            "timeZone": self.zone,
            "metadata": {"name": self.name},
        })
    }
}

/// All organizations, as of `now`; about a dozen of them are at, beyond or near a limit.
pub(super) fn fleet(now: DateTime<Utc>) -> Vec<Member> {
    let mut random = Rng::with_seed(SEED);
    (0..COUNT)
        .map(|index| member(index, now, &mut random))
        .collect()
}

fn member(index: usize, now: DateTime<Utc>, random: &mut Rng) -> Member {
    // 40 names in five trades each, so that no name repeats.
    let (name, trade) = (NAMES[index % 40], TRADES[(index * 7 + index / 40) % 13]);
    let name = format!("{name} {trade}");
    // Most joined long ago, some this week.
    let age = (365.0 * random.f64().sqrt()) as u64 + u64::from(!index.is_multiple_of(50)) * 3;
    let joined = now - Days::new(age.min(365));
    let level = [0, 0, 0, 1, 1, 1, 1, 2, 2, 3][random.usize(..10)];
    // Only a soft limit is exceeded.
    let level = if index == 21 { 3 } else { level };
    let mut plans = vec![PlanChange {
        at: joined,
        plan: &PLANS[level],
    }];
    if age > 120 && level < 3 && random.u8(..3) == 0 {
        let at = joined + Days::new(40 + random.u64(..age - 80));
        plans.push(PlanChange {
            at,
            plan: &PLANS[level + 1],
        });
    }
    let reset_period = match index % 25 {
        11 => ResetPeriod::Daily,
        17 => ResetPeriod::Weekly,
        _ => ResetPeriod::Monthly,
    };
    let fill = fill(index, random);
    let mut meters = vec![("api", fill)];
    if index % 5 < 2 {
        meters.push(("tokens", fill * (0.3 + 0.5 * random.f64())));
    }
    Member {
        id: name.to_lowercase().replace(' ', "-"),
        name,
        zone: ZONES[random.usize(..ZONES.len())],
        reset_period,
        joined,
        plans,
        meters,
        bursts: index % 41 == 14,
    }
}

/// Which part of its limit an organization has used.
fn fill(index: usize, random: &mut Rng) -> f64 {
    match index {
        3 | 110 => 1.0,
        21 => 1.18,
        29 => 0.972,
        70 => 0.985,
        129 => 0.86,
        150 => 0.957,
        171 => 0.83,
        _ => 0.04 + 0.7 * random.f64(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use chrono::TimeDelta;

    use super::*;
    use crate::cli::demo::usage;
    use crate::domain::ids::OrganizationId;
    use crate::postgres::demo::PastHour;

    fn now() -> DateTime<Utc> {
        "2031-03-15T12:34:56Z".parse().unwrap()
    }

    #[test]
    fn organizations_have_valid_ids_that_differ() {
        let ids = fleet(now()).into_iter().map(|member| member.id);
        let ids: BTreeSet<OrganizationId> = ids.map(|id| id.parse().unwrap()).collect();
        assert_eq!(ids.len(), COUNT);
    }

    #[test]
    fn hours_are_in_their_period_and_add_up_to_it_and_periods_tile() {
        let mut random = Rng::with_seed(3);
        for member in fleet(now()).iter().step_by(9) {
            let periods = usage::history(member, member.meters[0], now(), &mut random).unwrap();
            for period in &periods {
                let used: u64 = period.hours.iter().map(|hour| hour.used).sum();
                assert_eq!(used, period.used.get(), "{}", member.id);
                let is_inside =
                    |hour: &PastHour| period.start <= hour.start && hour.start < period.end;
                assert!(period.hours.iter().all(is_inside), "{}", member.id);
            }
            assert!(periods.windows(2).all(|pair| pair[0].end == pair[1].start));
            assert!(periods.last().unwrap().running);
        }
    }

    #[test]
    fn a_burst_reaches_its_limit_before_its_period_ends_at_any_hour_of_any_day() {
        let hours = |count| now() + TimeDelta::hours(count);
        for at in (0..24 * 40).step_by(13).map(hours) {
            let members = fleet(at);
            let bursting: Vec<&Member> = members.iter().filter(|member| member.bursts).collect();
            assert_eq!(bursting.len(), 5);
            for member in bursting {
                let mut random = Rng::with_seed(4);
                let periods = usage::history(member, member.meters[0], at, &mut random).unwrap();
                let hours = periods.iter().flat_map(|period| &period.hours);
                let last_day = hours.filter(|hour| at - hour.start < TimeDelta::hours(24));
                let pace: u64 = last_day.map(|hour| hour.used).sum();
                let running = periods.last().unwrap();
                let left = running.limit.get().checked_sub(running.used.get()).unwrap();
                let minutes = u64::try_from((running.end - at).num_minutes()).unwrap();
                assert!(left * 24 * 60 <= pace * minutes, "{} at {at}", member.id);
            }
        }
    }
}
