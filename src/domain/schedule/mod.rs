//! Schedules: which period an instant belongs to, over all calendars that an organization has had.
//!
//! A schedule is a list of segments, each a calendar and the instant from which it chooses periods. The period of an
//! instant is that of the segment that the instant lies in, cut where a later segment begins. A change of calendar adds
//! a segment; it never edits one, so that late events and history find the periods that were in force then. Start with
//! [`Schedule::period`], then [`Schedule::changed`].
//!
//! **Invariants:** periods tile, over any sequence of changes. No change moves a period that is over and in which
//! anything was counted, nor the start of a running one.

use std::collections::BTreeMap;

use chrono::{DateTime, SubsecRound, Utc};
use chrono_tz::Tz;
use serde::{Deserialize, Serialize};

use super::ids::MeterId;
use super::period::{Calendar, Period, ResetMode};
use super::slot::{self, Slot};

/// The most segments that a schedule keeps: the oldest goes first. Only a client that changes the calendar in a loop
/// reaches it.
const SEGMENTS_MAX: usize = 1000;

/// An explicit reset of one meter: it cuts the period in which it happened in two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Reset {
    /// When the period began that the reset closed.
    pub closed_start: DateTime<Utc>,
    /// Where that period ends and the next begins; later than `closed_start`.
    pub at: DateTime<Utc>,
}

/// An organization's rule for choosing periods: the calendars that it has had, and what deviates from them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Schedule {
    /// The calendar in force.
    #[serde(flatten)]
    pub present: Segment,
    /// The calendars before it, oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub past: Vec<Segment>,
    /// The last reset of each meter that ever had one.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub resets: BTreeMap<MeterId, Reset>,
}

/// A calendar, and when it took over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Segment {
    /// What ends a period. Lazy and scheduled choose the same periods; manual ignores the calendar.
    pub mode: ResetMode,
    /// Where periods begin.
    pub calendar: Calendar,
    /// How it took over from the segment before; none for the first, which has been in force since ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub takeover: Option<Takeover>,
}

/// How a segment took over from the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Takeover {
    /// When the calendar changed. Time slots follow the new zone from here on, and the first period of the segment ends at
    /// the calendar's next boundary after it.
    pub at: DateTime<Utc>,
    /// When the first period of the segment begins: that of the period which ran at `at`, if anything was counted in it.
    pub from: DateTime<Utc>,
}

/// When an organization has counted anything, as far as a change of its calendar depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activity {
    /// Never.
    Never,
    /// Last in the period that began at this instant.
    LastPeriod(DateTime<Utc>),
    /// Perhaps in the running period.
    Running,
}

/// A zone, and the half-open stretch of time in which it was in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ZoneSpan {
    /// The zone.
    pub zone: Tz,
    /// Its first instant.
    pub since: DateTime<Utc>,
    /// The first instant of the next zone.
    pub until: DateTime<Utc>,
}

impl ZoneSpan {
    /// A zone that has always been in force.
    pub fn always(zone: Tz) -> Self {
        Self {
            zone,
            since: DateTime::<Utc>::MIN_UTC,
            until: DateTime::<Utc>::MAX_UTC,
        }
    }
}

impl Schedule {
    /// A schedule that has only ever had one calendar.
    pub fn new(mode: ResetMode, calendar: Calendar) -> Self {
        Self {
            present: Segment {
                mode,
                calendar,
                takeover: None,
            },
            past: Vec::new(),
            resets: BTreeMap::new(),
        }
    }

    /// What ends a period now.
    pub fn mode(&self) -> ResetMode {
        self.present.mode
    }

    /// Where periods begin now.
    pub fn calendar(&self) -> &Calendar {
        &self.present.calendar
    }

    /// The period in which a meter counts what happened at `at`.
    ///
    /// What happened before a reset, in the period that this has cut, counts in the one that runs at `now`: the part
    /// before the reset is closed. The same goes for a `now` that lags behind the clock which dated the reset.
    pub fn period_of(&self, meter: &MeterId, at: DateTime<Utc>, now: DateTime<Utc>) -> Period {
        let period = self.period(at);
        let Some(reset) = self.resets.get(meter) else {
            return period;
        };
        if !period.contains(reset.at) {
            return period;
        }
        let period = if at < reset.at {
            self.period(now.max(reset.at))
        } else {
            period
        };
        Period {
            start: period.start.max(reset.at),
            ..period
        }
    }

    /// The period of a meter that runs at `now`.
    pub fn running(&self, meter: &MeterId, now: DateTime<Utc>) -> Period {
        self.period_of(meter, now, now)
    }

    /// The period, of every meter that was never reset, which contains `at`: that of the latest segment which begins by
    /// then, cut where a later one begins.
    pub fn period(&self, at: DateTime<Utc>) -> Period {
        let mut cut: Option<DateTime<Utc>> = None;
        for segment in self.newest_first() {
            match segment.takeover {
                Some(takeover) if at < takeover.from => {
                    cut = Some(cut.map_or(takeover.from, |cut| cut.min(takeover.from)));
                }
                _ => return segment.period(at).ending_by(cut),
            }
        }
        let oldest = self.past.first().unwrap_or(&self.present);
        oldest.regular(at).ending_by(cut)
    }

    /// The time slot in which usage is recorded that happened at `at`: of the zone that was in force then, cut where
    /// another took over.
    pub fn slot(&self, at: DateTime<Utc>) -> Slot {
        let mut span = ZoneSpan::always(self.past.first().unwrap_or(&self.present).zone());
        for next in self.zones() {
            if at < next.since {
                break;
            }
            span = next;
        }
        let slot = slot::of(span.zone, at);
        Slot {
            start: slot.start.max(span.since),
            end: slot.end.min(span.until),
        }
    }

    /// The zones that were in force, oldest first; they tile all time. Counters tell slots apart by whole seconds, and so
    /// do these.
    pub fn zones(&self) -> Vec<ZoneSpan> {
        let mut spans: Vec<ZoneSpan> = Vec::new();
        for segment in self.past.iter().chain([&self.present]) {
            let zone = segment.zone();
            match (spans.last_mut(), segment.takeover) {
                (Some(last), _) if last.zone == zone => {}
                (Some(last), Some(takeover)) => {
                    let since = takeover.at.trunc_subsecs(0);
                    last.until = since;
                    spans.push(ZoneSpan {
                        since,
                        ..ZoneSpan::always(zone)
                    });
                }
                _ => spans.push(ZoneSpan::always(zone)),
            }
        }
        spans
    }

    /// The schedule after a change of mode or calendar at `now`.
    ///
    /// The running period keeps its start, and so its count, and ends at the new calendar's next boundary; in manual
    /// mode it no longer ends by itself. Where nothing was counted in it, the new calendar chooses the running period,
    /// back to the end of the last one in which anything was counted.
    #[must_use]
    pub fn changed(
        &self,
        mode: ResetMode,
        calendar: Calendar,
        now: DateTime<Utc>,
        activity: Activity,
    ) -> Self {
        if mode == self.mode() && calendar == *self.calendar() {
            return self.clone();
        }
        // The clocks of two servers differ a little, and changes stay in their order.
        let now = self
            .present
            .takeover
            .map_or(now, |takeover| now.max(takeover.at));
        let running = self.period(now);
        let mut next = Segment {
            mode,
            calendar,
            takeover: None,
        };
        let counted_until = match activity {
            Activity::Never => {
                return Self {
                    resets: self.resets.clone(),
                    ..Self::new(mode, next.calendar)
                };
            }
            Activity::LastPeriod(start) => self.period(start).end,
            Activity::Running => None,
        };
        let from = match counted_until {
            Some(until) if until <= running.start => next.regular(now).start.max(until),
            _ => running.start,
        };
        next.takeover = Some(Takeover { at: now, from });
        let mut past = self.past.clone();
        past.push(self.present.clone());
        Self {
            present: next,
            past,
            resets: self.resets.clone(),
        }
        .without_void()
        .without_return(now)
    }

    /// The schedule without segments that choose neither period nor slot of any instant from `reach` on.
    #[must_use]
    pub fn since(mut self, reach: DateTime<Utc>) -> Self {
        let kept = self.past.iter().enumerate().filter(|(index, _)| {
            let mut later = self.takeovers_after(*index).peekable();
            later.peek().is_none_or(|next| reach < next.at) || later.all(|it| reach < it.from)
        });
        self.past = kept.map(|(_, segment)| segment.clone()).collect();
        self
    }

    /// Drops segments that choose no period, because a later one begins before them, unless their zone differs from the
    /// zone before: slots of their time follow it.
    fn without_void(mut self) -> Self {
        let mut kept: Vec<Segment> = Vec::with_capacity(self.past.len());
        for (index, segment) in self.past.iter().enumerate() {
            let chooses = segment.takeover.is_none_or(|own| {
                self.takeovers_after(index)
                    .all(|later| own.from < later.from)
            });
            if chooses || kept.last().is_none_or(|it| it.zone() != segment.zone()) {
                kept.push(segment.clone());
            }
        }
        let excess = kept.len().saturating_add(1).saturating_sub(SEGMENTS_MAX);
        kept.drain(..excess.min(kept.len()));
        self.past = kept;
        self
    }

    /// How the segments behind a former one took over, the oldest first.
    fn takeovers_after(&self, index: usize) -> impl Iterator<Item = Takeover> {
        self.past
            .iter()
            .skip(index)
            .skip(1)
            .chain([&self.present])
            .filter_map(|later| later.takeover)
    }

    /// A change back to the calendar before, within one of its periods, leaves no trace.
    fn without_return(self, now: DateTime<Utc>) -> Self {
        let Some((before, past)) = self.past.split_last() else {
            return self;
        };
        if before.mode != self.present.mode || before.calendar != self.present.calendar {
            return self;
        }
        let without = Self {
            present: before.clone(),
            past: past.to_vec(),
            resets: self.resets.clone(),
        };
        if without.period(now) == self.period(now) {
            without
        } else {
            self
        }
    }

    fn newest_first(&self) -> impl Iterator<Item = &Segment> {
        [&self.present].into_iter().chain(self.past.iter().rev())
    }
}

impl Segment {
    fn zone(&self) -> Tz {
        self.calendar.time_zone()
    }

    /// The period that contains `at`, which is not before this segment.
    fn period(&self, at: DateTime<Utc>) -> Period {
        let Some(takeover) = self.takeover else {
            return self.regular(at);
        };
        let first = Period {
            start: takeover.from,
            end: self.regular(takeover.at).end,
        };
        if first.contains(at) {
            first
        } else {
            self.regular(at)
        }
    }

    /// What the period of `at` is by this calendar alone.
    fn regular(&self, at: DateTime<Utc>) -> Period {
        let generation = DateTime::UNIX_EPOCH;
        match self.mode {
            ResetMode::Lazy | ResetMode::Scheduled => {
                let (start, end) = self.calendar.window(at);
                Period {
                    start,
                    end: Some(end),
                }
            }
            ResetMode::Manual if at < generation => Period {
                start: DateTime::<Utc>::MIN_UTC,
                end: Some(generation),
            },
            ResetMode::Manual => Period {
                start: generation,
                end: None,
            },
        }
    }
}

impl Period {
    /// The period up to `cut`, where it would end later.
    fn ending_by(self, cut: Option<DateTime<Utc>>) -> Self {
        let end = match (self.end, cut) {
            (Some(end), Some(cut)) => Some(end.min(cut)),
            (end, cut) => end.or(cut),
        };
        Self { end, ..self }
    }
}

#[cfg(test)]
mod tests;
