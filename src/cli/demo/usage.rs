//! The usage of a demo organization: a year of hours with working days, growth, noise and bursts.

#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "invented figures need no more precision than f64 has"
)]

use anyhow::Result;
use chrono::{DateTime, Datelike as _, DurationRound as _, TimeDelta, Timelike as _, Utc, Weekday};
use fastrand::Rng;

use super::fleet::Member;
use crate::domain::calendar::Calendar;
use crate::domain::ids::MeterId;
use crate::domain::period::{Period, ResetMode};
use crate::domain::quantity::Count;
use crate::domain::schedule::Schedule;
use crate::postgres::demo::{PastHour, PastPeriod};

/// In a period that reached a hard limit, calls are denied in this last part of it.
const DENIED_PART: f64 = 0.06;

/// A limit that is about to be reached is reached within this time.
const RUNS_OUT_HOURS: f64 = 5.0;

/// The history of one meter, oldest period first, until the hour that `now` is in.
pub(super) fn history(
    member: &Member,
    (meter, fill): (&'static str, f64),
    now: DateTime<Utc>,
    random: &mut Rng,
) -> Result<Vec<PastPeriod>> {
    let calendar = Calendar::plain(member.reset_period, member.zone);
    let schedule = Schedule::new(ResetMode::Lazy, calendar);
    let id: MeterId = meter.parse()?;
    let mut periods = Vec::new();
    let mut at = member.joined;
    // A trend over the months, toward what the running period has.
    let mut trend = fill.min(0.9) * (0.3 + 0.4 * random.f64());
    while at < now {
        let period = schedule.period(at);
        let end = period.end.unwrap_or(now);
        let plan = member.plan(at);
        let limit = plan.limit(meter);
        let running = end > now;
        let part = match running {
            false => trend,
            // A limit is nearly reached late in a period only.
            true if fill < 0.8 => fill * elapsed(period, now),
            true => fill,
        };
        let total = Total {
            units: limit as f64 * part,
            denies: !plan.soft && part >= 1.0,
            runs_out_of: (running && member.bursts && meter == "api").then_some(limit as f64),
        };
        let hours = hours(member, &schedule, period, total, now, random);
        let used: u64 = hours.iter().map(|hour| hour.used).sum();
        periods.push(PastPeriod {
            meter: id.clone(),
            start: period.start,
            end,
            running,
            limit: Count::try_from(limit)?,
            soft: plan.soft,
            plan: plan.id,
            used: Count::try_from(used)?,
            denied: hours.iter().map(|hour| hour.denied).sum(),
            hours,
        });
        trend = (trend * (0.92 + 0.22 * random.f64())).clamp(0.05, 1.0);
        at = end;
    }
    Ok(periods)
}

/// Which part of a period is over.
fn elapsed(period: Period, now: DateTime<Utc>) -> f64 {
    let length = period.end.unwrap_or(now) - period.start;
    (now - period.start).as_seconds_f64() / length.as_seconds_f64()
}

/// What a period comes to.
#[derive(Clone, Copy)]
struct Total {
    units: f64,
    /// Whether it reached a hard limit.
    denies: bool,
    /// The limit that it will reach before it ends, at the pace of the last 24 hours; `units` does not matter then.
    runs_out_of: Option<f64>,
}

/// The count from which a limit is reached in some hours, before the period ends, when this share of the count is of the last
/// 24 hours.
fn nearly(limit: f64, share_of_last_day: f64, left: TimeDelta) -> f64 {
    let hours = (left.as_seconds_f64() / 3600.0 * 0.3).min(RUNS_OUT_HOURS);
    limit / (1.0 + share_of_last_day * hours / 24.0)
}

/// The hours of a period until the one that `now` is in, which add up to `total`.
fn hours(
    member: &Member,
    schedule: &Schedule,
    period: Period,
    total: Total,
    now: DateTime<Utc>,
    random: &mut Rng,
) -> Vec<PastHour> {
    let from = period.start.max(member.joined);
    let hour = TimeDelta::hours(1);
    let to = period
        .end
        .unwrap_or(now)
        .min(now.duration_trunc(hour).unwrap_or(now));
    let starts = std::iter::successors(Some(from), |at| Some(*at + hour)).take_while(|at| *at < to);
    let weights: Vec<(DateTime<Utc>, f64)> = starts
        .map(|at| (at, weight(member, at, now, random)))
        .collect();
    let sum: f64 = weights.iter().map(|(_, weight)| weight).sum();
    let end = period.end.unwrap_or(now);
    let units = total.runs_out_of.map_or(total.units, |limit| {
        let last_day = weights
            .iter()
            .filter(|(at, _)| now - *at < TimeDelta::hours(24));
        let last_day: f64 = last_day.map(|(_, weight)| weight).sum();
        nearly(limit, last_day / sum, end - now)
    });
    let (mut before, mut counted, mut hours) = (0.0, 0, Vec::new());
    for (at, weight) in weights {
        before += weight;
        // Rounding the running total makes the hours add up.
        let due = (units * (before / sum)).round() as u64;
        let used = due.saturating_sub(counted);
        counted = due;
        let is_denied = total.denies && before > sum * (1.0 - DENIED_PART);
        let denied = if is_denied { used / 3 + 1 } else { 0 };
        if used > 0 || denied > 0 {
            hours.push(PastHour {
                start: schedule.slot(at).start,
                used,
                denied,
            });
        }
    }
    hours
}

/// How busy an hour is.
fn weight(member: &Member, at: DateTime<Utc>, now: DateTime<Utc>, random: &mut Rng) -> f64 {
    let local = at.with_timezone(&member.zone);
    let day = match local.weekday() {
        Weekday::Sat => 0.25,
        Weekday::Sun => 0.15,
        _ => 1.0,
    };
    let hour = match local.hour() {
        9..=11 | 14..=16 => 1.0,
        8 | 12 | 13 | 17 => 0.75,
        7 | 18 | 19 => 0.4,
        20..=22 => 0.2,
        _ => 0.04,
    };
    let growth = 1.0 + (at - member.joined).num_days() as f64 / 400.0;
    let burst = if random.u16(..400) == 0 { 5.0 } else { 1.0 };
    let today = if member.bursts && now - at < TimeDelta::hours(20) {
        8.0
    } else {
        1.0
    };
    day * hour * growth * burst * today * (0.6 + 0.8 * random.f64())
}
