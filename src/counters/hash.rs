//! A counter as Redis holds it: the fields of its hash, which `lua/README.md` names.

use chrono::{DateTime, Utc};

use super::error::Error;
use super::packed::Items;
use crate::domain::counter::{CounterId, Hour, Snapshot, Stamp};
use crate::domain::quantity::Count;
use crate::domain::threshold::Thresholds;
use crate::domain::verification::Counted;

/// Reads what `read.lua` answered: each counter, or none where there is no hash.
pub(super) fn held<'a>(
    counters: impl Iterator<Item = &'a CounterId>,
    answer: &[u8],
) -> Result<Vec<Option<Counted>>, Error> {
    let mut items = Items::new(answer);
    // As many as were asked for.
    let _ = items.length();
    let one = |counter| {
        let parsed = match items.length() {
            Some(0) => return Ok(None),
            Some(length) => parse_counter(counter, length / 2, &mut items),
            None => None,
        };
        parsed
            .map(Some)
            .ok_or_else(|| Error::Inconsistent(format!("what is held of the counter {counter:?}")))
    };
    counters.map(one).collect()
}

fn parse_counter(counter: &CounterId, fields: u32, items: &mut Items<'_>) -> Option<Counted> {
    let (mut used, mut stamp, mut settled) = (None, None, 0);
    let (mut denied, mut refunded, mut sequence, mut peak) = (0, 0, 0, 0_u64);
    let (mut oldest_unstored, mut adjusted, mut told, mut past) = (None, None, None, Vec::new());
    // A few, nearly always in order, so that a list is searched faster than a table.
    let mut hours: Vec<Hour> = Vec::new();
    for _ in 0..fields {
        let (field, text) = (items.text()?, items.text()?);
        match field {
            "u" => used = Some(Count::try_from(text.parse::<u64>().ok()?).ok()?),
            "p" => stamp = Some(Stamp::parse(text)?),
            "f" => settled = text.parse().ok()?,
            "d" => denied = text.parse().ok()?,
            "r" => refunded = text.parse().ok()?,
            "s" => sequence = text.parse().ok()?,
            "m" => peak = text.parse().ok()?,
            "o" => oldest_unstored = Some(instant(text)?),
            "a" => adjusted = Some(text.parse().ok()?),
            "t" => told = Some(text.parse().ok()?),
            "v" => {
                let words = text.split_whitespace().map(|word| word.parse().ok());
                past = words.collect::<Option<_>>()?;
            }
            _ => {
                let (kind, start) = field.split_at_checked(1)?;
                let start = instant(start)?;
                let place = hours.iter().rposition(|hour| hour.start == start);
                let place = place.unwrap_or(hours.len());
                if place == hours.len() {
                    hours.push(Hour {
                        start,
                        used: 0,
                        denied: 0,
                        refunded: 0,
                    });
                }
                let hour = hours.get_mut(place)?;
                match kind {
                    "h" => hour.used = text.parse().ok()?,
                    "x" => hour.denied = text.parse().ok()?,
                    "r" => hour.refunded = text.parse().ok()?,
                    _ => return None,
                }
            }
        }
    }
    hours.sort_unstable_by_key(|hour| hour.start);
    let snapshot = Snapshot {
        counter: counter.clone(),
        stamp: stamp?,
        used: used?,
        denied,
        refunded,
        sequence,
        hours,
        oldest_unstored,
        adjusted,
        thresholds: Thresholds {
            told: told.unwrap_or_default(),
            peak: Count::try_from(peak).ok()?,
            past,
        },
    };
    Some(Counted { snapshot, settled })
}

fn instant(ms: &str) -> Option<DateTime<Utc>> {
    DateTime::from_timestamp_millis(ms.parse().ok()?)
}
