//! Schedules: the period of an instant, over all calendars of an organization.
//!
//! A schedule is a list of segments, each a calendar and the instant from which it defines periods. The period of an
//! instant is that of its segment, cut where a later segment begins. A change of calendar adds a segment and edits none,
//! so that late events and history find the periods effective then. Start with [`Schedule::period`], then
//! [`Schedule::changed`].
//!
//! **Invariants:** periods tile, over any sequence of changes. No change moves an ended period with usage, nor the start
//! of a running one.

use std::collections::BTreeMap;

use chrono::{DateTime, SubsecRound, Utc};
use chrono_tz::Tz;
use serde::{Deserialize, Serialize};

use super::calendar::Calendar;
use super::ids::MeterId;
use super::period::{Period, ResetMode};
use super::slot::{self, Slot};

/// The most segments of a schedule; beyond it the oldest is dropped. Only a client that changes the calendar in a loop
/// reaches it.
const SEGMENTS_MAX: usize = 1000;

/// An explicit reset of one meter, which cuts its period in two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Reset {
    /// The start of the period that the reset closed.
    pub closed_start: DateTime<Utc>,
    /// Where that period ends and the next begins; later than `closed_start`.
    pub at: DateTime<Utc>,
}

/// An organization's calendars, and the resets that deviate from them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Schedule {
    /// The effective calendar.
    #[serde(flatten)]
    pub present: Segment,
    /// The calendars before it, oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub past: Vec<Segment>,
    /// The last reset of each meter that was ever reset.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub resets: BTreeMap<MeterId, Reset>,
}

/// A calendar, and when it took effect.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Segment {
    /// What ends a period. Lazy and scheduled define the same periods; manual ignores the calendar.
    pub mode: ResetMode,
    /// Where periods begin.
    pub calendar: Calendar,
    /// How it replaced the segment before; none for the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub takeover: Option<Takeover>,
}

/// How a segment replaced the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Takeover {
    /// When the calendar changed. From here on time slots follow the new zone. The first period ends at the calendar's
    /// next boundary.
    pub at: DateTime<Utc>,
    /// When the first period of the segment begins: at the start of the period running at `at`, if that has usage.
    pub from: DateTime<Utc>,
}

/// When an organization last had usage, as far as a change of calendar depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activity {
    /// Never.
    Never,
    /// In the period with this start.
    LastPeriod(DateTime<Utc>),
    /// Possibly in the running period.
    Running,
}

/// A zone, and the half-open interval in which it is effective.
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
    /// A zone without changes.
    pub fn always(zone: Tz) -> Self {
        Self {
            zone,
            since: DateTime::<Utc>::MIN_UTC,
            until: DateTime::<Utc>::MAX_UTC,
        }
    }
}

impl Schedule {
    /// A schedule with one calendar.
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

    /// The period in which a meter counts an event of `at`.
    ///
    /// An event before a reset, in the period that the reset cut, counts in the period running at `now`, because the part
    /// before the reset is closed. The same holds if `now` lags behind the clock of the instance that reset it.
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

    /// The period of a meter running at `now`.
    pub fn running(&self, meter: &MeterId, now: DateTime<Utc>) -> Period {
        self.period_of(meter, now, now)
    }

    /// The period that contains `at`, for meters without resets: that of the latest segment begun by then, cut where a
    /// later one begins.
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

    /// The time slot of an event of `at`: of the zone effective then, cut where the zone changed.
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

    /// The zones, oldest first; they tile all time. Truncated to seconds, as the starts of slots in counters are.
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
    /// mode it has no end. Without usage in it, the new calendar defines the running period, but not before the end of the
    /// last period with usage.
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
        // Keeps changes in order although the clocks of instances differ.
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
        .without_empty_segments()
        .without_reverted_change(now)
    }

    /// The schedule without segments that define neither a period nor a slot from `reach` on.
    #[must_use]
    pub fn since(mut self, reach: DateTime<Utc>) -> Self {
        let kept = self.past.iter().enumerate().filter(|(index, _)| {
            let mut later = self.takeovers_after(*index).peekable();
            later.peek().is_none_or(|next| reach < next.at) || later.all(|it| reach < it.from)
        });
        self.past = kept.map(|(_, segment)| segment.clone()).collect();
        self
    }

    /// Drops segments that define no period, because a later one begins before them, unless their zone differs from the
    /// zone before and so defines slots.
    fn without_empty_segments(mut self) -> Self {
        let mut kept: Vec<Segment> = Vec::with_capacity(self.past.len());
        for (index, segment) in self.past.iter().enumerate() {
            let defines = segment.takeover.is_none_or(|own| {
                self.takeovers_after(index)
                    .all(|later| own.from < later.from)
            });
            if defines || kept.last().is_none_or(|it| it.zone() != segment.zone()) {
                kept.push(segment.clone());
            }
        }
        let excess = kept.len().saturating_add(1).saturating_sub(SEGMENTS_MAX);
        kept.drain(..excess.min(kept.len()));
        self.past = kept;
        self
    }

    /// The takeovers of the segments after a past one, oldest first.
    fn takeovers_after(&self, index: usize) -> impl Iterator<Item = Takeover> {
        self.past
            .iter()
            .skip(index)
            .skip(1)
            .chain([&self.present])
            .filter_map(|later| later.takeover)
    }

    /// Drops a change that was reverted within the same period.
    fn without_reverted_change(self, now: DateTime<Utc>) -> Self {
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

    /// The period of `at` by this calendar alone.
    fn regular(&self, at: DateTime<Utc>) -> Period {
        let epoch = DateTime::UNIX_EPOCH;
        match self.mode {
            ResetMode::Lazy | ResetMode::Scheduled => {
                let (start, end) = self.calendar.window(at);
                Period {
                    start,
                    end: Some(end),
                }
            }
            ResetMode::Manual if at < epoch => Period {
                start: DateTime::<Utc>::MIN_UTC,
                end: Some(epoch),
            },
            ResetMode::Manual => Period {
                start: epoch,
                end: None,
            },
        }
    }
}

#[cfg(test)]
mod tests;
