//! Decodes the value of a counter, which `lua/counter.lua` describes and scripts write.

use chrono::{DateTime, Duration, Utc};

use super::codec::Items;
use crate::domain::counter::{CounterId, Hour, Snapshot, Stamp};
use crate::domain::quantity::Count;
use crate::domain::threshold::Thresholds;
use crate::domain::verification::LiveCounter;

/// Decodes a value; none if it is corrupt.
pub(super) fn parse(counter: &CounterId, value: &[u8]) -> Option<LiveCounter> {
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
        never_stored: settled == 0,
        adjusted: None,
        drained: 0,
        thresholds: Thresholds::default(),
    };
    if !items.is_empty() {
        parse_rest(&mut snapshot, &mut items)?;
    }
    items
        .is_empty()
        .then_some(LiveCounter { snapshot, settled })
}

fn parse_rest(snapshot: &mut Snapshot, items: &mut Items<'_>) -> Option<()> {
    /// Items before the hours.
    const FIXED: u32 = 6;
    let mut left = items.length()?.checked_sub(FIXED)?;
    snapshot.refunded = items.number()?;
    snapshot.thresholds.peak = Count::try_from(items.number()?).ok()?;
    if let Some(notified) = some(items.text()?) {
        snapshot.thresholds.notified = notified.parse().ok()?;
    }
    let previous_limits = items.text()?.split_whitespace();
    snapshot.thresholds.previous_limits = previous_limits
        .map(|it| it.parse().ok())
        .collect::<Option<_>>()?;
    let corrections = items.text()?;
    let (adjusted, drained) = corrections.split_once(' ').unwrap_or((corrections, "0"));
    if let Some(adjusted) = some(adjusted) {
        snapshot.adjusted = Some(adjusted.parse().ok()?);
    }
    snapshot.drained = drained.parse().ok()?;
    let refunded = items.number()?;
    if let Some(newest) = snapshot.hours.first_mut() {
        newest.refunded = refunded;
    }
    // Pairs are hours; a single last item has the crossed thresholds.
    while left > 1 {
        let (gap, used) = (items.signed()?, items.signed()?);
        left = left.checked_sub(2)?;
        let (mut denied, mut refunded) = (0, 0);
        if gap < 0 {
            (denied, refunded) = (items.number()?, items.number()?);
            left = left.checked_sub(2)?;
        }
        let gap = Duration::try_seconds(gap.checked_abs()?)?;
        snapshot.hours.push(Hour {
            start: snapshot.hours.last()?.start.checked_sub_signed(gap)?,
            used,
            denied,
            refunded,
        });
    }
    if left > 0 {
        snapshot.thresholds.crossed = items.text()?.parse().ok()?;
    }
    snapshot.hours.reverse();
    Some(())
}

fn some(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}

#[expect(clippy::option_option, reason = "corrupt, nil, or an instant")]
fn instant(items: &mut Items<'_>) -> Option<Option<DateTime<Utc>>> {
    if items.skip_nil() {
        return Some(None);
    }
    DateTime::from_timestamp_millis(items.signed()?).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: i64 = 3_600_000;

    fn counter() -> CounterId {
        CounterId {
            organization: "org_1".parse().unwrap(),
            meter: "api".parse().unwrap(),
            start: DateTime::UNIX_EPOCH,
        }
    }

    /// A head, and the array that may follow it.
    fn value() -> (Vec<u8>, Vec<u8>) {
        let mut head = vec![7, 4, 3];
        rmp::encode::write_sint(&mut head, 9 * HOUR).unwrap();
        rmp::encode::write_str(&mut head, "3:17:1000:h:").unwrap();
        head.push(2);
        rmp::encode::write_sint(&mut head, 10 * HOUR).unwrap();
        head.extend([5, 2]);
        let mut rest = vec![0x9c, 4, 8];
        for text in ["80:0:17:0", "", "1:-3:4:32400000 12"] {
            rmp::encode::write_str(&mut rest, text).unwrap();
        }
        // An hour before the newest that gave back more than it counted, and a usual one two hours before that.
        rest.extend([1, 0xd1, 0xf1, 0xf0, 0xfe, 0, 3, 0xcd, 0x1c, 0x20, 4]);
        (head, rest)
    }

    fn hours(value: &[u8]) -> Vec<(i64, i64, u64, u64)> {
        let hours = parse(&counter(), value).unwrap().snapshot.hours.into_iter();
        hours
            .map(|it| {
                let start = it.start.timestamp_millis() / HOUR;
                (start, it.used, it.denied, it.refunded)
            })
            .collect()
    }

    #[test]
    fn hours_are_decoded_by_the_gaps_between_them() {
        let (head, rest) = value();
        assert_eq!(hours(&head), [(10, 5, 2, 0)]);
        let whole = [head, rest].concat();
        assert_eq!(hours(&whole), [(7, 4, 0, 0), (9, -2, 0, 3), (10, 5, 2, 1)]);
        let LiveCounter { snapshot, settled } = parse(&counter(), &whole).unwrap();
        assert_eq!((snapshot.used.get(), snapshot.sequence, settled), (7, 4, 3));
        assert_eq!((snapshot.denied, snapshot.refunded), (2, 4));
        assert_eq!(snapshot.thresholds.peak.get(), 8);
        assert_eq!(snapshot.thresholds.notified.percent, 80);
        assert_eq!(snapshot.adjusted.unwrap().applied, -3);
        assert_eq!(snapshot.drained, 12);
    }

    #[test]
    fn crossed_thresholds_follow_the_hours() {
        let (head, mut rest) = value();
        rest[0] += 1;
        rmp::encode::write_str(&mut rest, "80=801,!=1003,").unwrap();
        let whole = [head, rest].concat();
        assert_eq!(hours(&whole), [(7, 4, 0, 0), (9, -2, 0, 3), (10, 5, 2, 1)]);
        let snapshot = parse(&counter(), &whole).unwrap().snapshot;
        assert_eq!(snapshot.thresholds.crossed.to_string(), "80=801,!=1003,");
    }

    #[test]
    fn corrupt_values_are_not_decoded() {
        let (head, rest) = value();
        let whole = [head.clone(), rest].concat();
        for end in (0..whole.len()).filter(|end| *end != head.len()) {
            assert!(parse(&counter(), &whole[..end]).is_none(), "{end}");
        }
        assert!(parse(&counter(), &[whole, vec![0]].concat()).is_none());
        assert!(parse(&counter(), b"many").is_none());
        assert!(parse(&counter(), b"\xc0\xc0").is_none());
    }
}
