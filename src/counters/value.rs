//! What a counter's value in Redis says; `lua/counter.lua` describes the format, and is its writer.

use chrono::{DateTime, Duration, Utc};

use super::packed::Items;
use crate::domain::counter::{CounterId, Hour, Snapshot, Stamp};
use crate::domain::quantity::Count;
use crate::domain::threshold::Thresholds;
use crate::domain::verification::Counted;

/// Reads the value of a counter; none for what no script has written.
pub(super) fn parse(counter: &CounterId, value: &[u8]) -> Option<Counted> {
    let mut items = Items::new(value);
    let used = Count::try_from(items.number()?).ok()?;
    let sequence = items.number()?;
    let settled = items.number()?;
    let oldest_unstored = instant(&mut items)?;
    let stamp = Stamp::parse(items.text()?)?;
    let denied = items.number()?;
    let newest = instant(&mut items)?;
    let (hour_used, hour_denied) = (items.signed()?, items.number()?);
    let newest = newest.map(|start| Hour {
        start,
        used: hour_used,
        denied: hour_denied,
        refunded: 0,
    });
    let mut snapshot = Snapshot {
        counter: counter.clone(),
        stamp,
        used,
        denied,
        refunded: 0,
        sequence,
        hours: newest.into_iter().collect(),
        oldest_unstored,
        adjusted: None,
        thresholds: Thresholds::default(),
    };
    if !items.is_empty() {
        parse_rest(&mut snapshot, &mut items)?;
    }
    Some(Counted { snapshot, settled })
}

fn parse_rest(snapshot: &mut Snapshot, items: &mut Items<'_>) -> Option<()> {
    items.length()?;
    snapshot.refunded = items.number()?;
    snapshot.thresholds.peak = Count::try_from(items.number()?).ok()?;
    if let Some(told) = some(items.text()?) {
        snapshot.thresholds.told = told.parse().ok()?;
    }
    let past = items.text()?.split_whitespace();
    snapshot.thresholds.past = past.map(|it| it.parse().ok()).collect::<Option<_>>()?;
    if let Some(adjusted) = some(items.text()?) {
        snapshot.adjusted = Some(adjusted.parse().ok()?);
    }
    let refunded = items.number()?;
    if let Some(newest) = snapshot.hours.first_mut() {
        newest.refunded = refunded;
    }
    while !items.is_empty() {
        let gap = items.signed()?;
        let used = items.signed()?;
        let (denied, refunded) = if gap < 0 {
            (items.number()?, items.number()?)
        } else {
            (0, 0)
        };
        let gap = Duration::try_seconds(gap.checked_abs()?)?;
        snapshot.hours.push(Hour {
            start: snapshot.hours.last()?.start.checked_sub_signed(gap)?,
            used,
            denied,
            refunded,
        });
    }
    snapshot.hours.reverse();
    Some(())
}

fn some(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}

#[expect(clippy::option_option, reason = "unreadable, nothing, or an instant")]
fn instant(items: &mut Items<'_>) -> Option<Option<DateTime<Utc>>> {
    if items.nothing() {
        return Some(None);
    }
    DateTime::from_timestamp_millis(items.signed()?).map(Some)
}
