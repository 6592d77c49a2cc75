//! How numbers, states and times are written; templates call these.

use chrono::{DateTime, Datelike as _, SecondsFormat, TimeDelta, Timelike as _, Utc};
use chrono_tz::Tz;

/// From here on lists abbreviate.
const ABBREVIATED_MIN: u64 = 100_000_000;

/// All digits, in groups of three: `1,284,300,112`.
pub(super) fn number(count: u64) -> String {
    let digits = count.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3 + 1);
    for (position, digit) in digits.chars().enumerate() {
        if position > 0 && (digits.len() - position).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Up to 100 million in full, then rounded down: `1.28 B`.
pub(super) fn compact(count: u64) -> String {
    if count < ABBREVIATED_MIN {
        return number(count);
    }
    let (unit, letter) = if count < 1_000_000_000 {
        (1_000_000, 'M')
    } else if count < 1_000_000_000_000 {
        (1_000_000_000, 'B')
    } else {
        (1_000_000_000_000, 'T')
    };
    let hundredths = count / (unit / 100);
    format!(
        "{}.{:02} {letter}",
        number(hundredths / 100),
        hundredths % 100
    )
}

/// The percentage of a limit, rounded down from the integers: 99.996 % never reads as 100 %.
pub(super) fn percent(used: u64, limit: u64) -> String {
    match hundredths(used, limit) {
        None => "–".to_owned(),
        Some(0) if used > 0 => "<0.01%".to_owned(),
        Some(hundredths) => {
            let whole = u64::try_from(hundredths / 100).unwrap_or(u64::MAX);
            format!("{}.{:02}%", number(whole), hundredths % 100)
        }
    }
}

/// Hundredths of a percent; none without a limit that can be divided.
fn hundredths(used: u64, limit: u64) -> Option<u128> {
    let limit = Some(limit).filter(|limit| *limit > 0)?;
    Some(u128::from(used) * 10_000 / u128::from(limit))
}

/// A bar: how much of it is filled, and where it passes the limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Bar {
    /// The width up to the count or, beyond the limit, up to the limit.
    pub(super) width: String,
    /// Beyond the limit, the width of the rest.
    pub(super) more: Option<String>,
}

/// The bar of a count. One that is not full ends at 98.5 %.
pub(super) fn bar(used: u64, limit: u64) -> Bar {
    let share = |part: u64, whole: u64| {
        let hundredths = u128::from(part) * 10_000 / u128::from(whole.max(1));
        let hundredths = u64::try_from(hundredths).unwrap_or(10_000).min(10_000);
        format!("{}.{:02}%", hundredths / 100, hundredths % 100)
    };
    let full = |width| Bar { width, more: None };
    match used {
        _ if used > limit => Bar {
            width: share(limit, used),
            more: Some(share(used - limit, used)),
        },
        _ if used == limit => full("100%".to_owned()),
        _ if hundredths(used, limit).is_some_and(|it| it > 9850) => full("98.5%".to_owned()),
        _ => full(share(used, limit)),
    }
}

/// A state: text, shape and colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mark {
    /// The class of the colour; empty for none.
    pub(super) class: &'static str,
    /// The symbol.
    pub(super) icon: &'static str,
    pub(super) label: &'static str,
}

/// Whether a count has reached the percentage at which it is first notified.
pub(super) fn has_warned(used: u64, limit: Option<u64>, warn_at: Option<u64>) -> bool {
    limit.zip(warn_at).is_some_and(|(limit, percentage)| {
        u128::from(used) * 100 >= u128::from(limit) * u128::from(percentage)
    })
}

/// The state of a meter; `warns` is whether it has reached its lowest `warnAt`.
pub(super) fn mark(used: u64, limit: Option<u64>, is_hard: bool, warns: bool) -> Mark {
    let mark = |class, icon, label| Mark { class, icon, label };
    let Some(limit) = limit else {
        return mark("", "i-inf", "Unlimited");
    };
    if limit == 0 {
        return mark("", "i-none", "Not included");
    }
    if used >= limit && is_hard {
        mark("over", "i-over", "Limit reached")
    } else if used > limit {
        mark("over", "i-over", "Over limit")
    } else if hundredths(used, limit).is_some_and(|it| it >= 9500) {
        mark("near", "i-near", "Nearly full")
    } else if warns {
        mark("warn", "i-warn", "Warning")
    } else {
        mark("ok", "i-ok", "Within limit")
    }
}

/// The class of a bar for a state.
impl Mark {
    pub(super) fn bar_class(&self) -> &'static str {
        if self.class == "ok" { "" } else { self.class }
    }
}

/// The two largest units of a span: `1 d 7 h`.
pub(super) fn span(span: TimeDelta) -> String {
    const UNITS: [(&str, i64); 4] = [("d", 86_400), ("h", 3600), ("min", 60), ("s", 1)];
    let seconds = span.num_seconds();
    let Some(at) = UNITS.iter().position(|(_, length)| seconds >= *length) else {
        return "now".to_owned();
    };
    let (unit, length) = UNITS.get(at).copied().unwrap_or(("s", 1));
    let rest = UNITS.get(at + 1).filter(|_| unit != "min");
    let rest = rest
        .map(|(unit, smaller)| ((seconds % length) / smaller, unit))
        .filter(|(count, _)| *count > 0);
    let first = format!("{} {unit}", seconds / length);
    rest.map_or(first.clone(), |(count, unit)| {
        format!("{first} {count} {unit}")
    })
}

/// An instant for `<time>`: relative text, absolute title.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TimeText {
    /// For `datetime`.
    pub(super) iso: String,
    /// `1 Dec 2026, 00:00 UTC`.
    pub(super) absolute: String,
    /// `in 1 d 7 h`, `2 min ago`.
    pub(super) relative: String,
    /// `16:57:12`.
    pub(super) clock: String,
}

/// An instant, as seen at `now` in this zone.
pub(super) fn time_text(at: DateTime<Utc>, now: DateTime<Utc>, zone: Tz) -> TimeText {
    let local = at.with_timezone(&zone);
    let distance = at - now;
    let relative = match distance.num_seconds() {
        1.. => format!("in {}", span(distance)),
        0 => "now".to_owned(),
        _ => format!("{} ago", span(-distance)),
    };
    let zone = if zone == Tz::UTC { "UTC" } else { zone.name() };
    TimeText {
        iso: at.to_rfc3339_opts(SecondsFormat::AutoSi, true),
        absolute: format!(
            "{} {}, {:02}:{:02} {zone}",
            local.day(),
            local.format("%b %Y"),
            local.hour(),
            local.minute()
        ),
        relative,
        clock: local.format("%H:%M:%S").to_string(),
    }
}

/// A detail of a problem as a sentence on a page.
pub(super) fn sentence(detail: &str) -> String {
    let mut letters = detail.chars();
    let first = letters.next().map(|it| it.to_uppercase().to_string());
    let end = if detail.ends_with(['.', '!', '?']) {
        ""
    } else {
        "."
    };
    format!("{}{}{end}", first.unwrap_or_default(), letters.as_str())
}

/// A long id as its first and last characters; none if it is short.
pub(super) fn shortened(id: &str) -> Option<(&str, &str, &str)> {
    const MAX: usize = 44;
    if id.len() <= MAX || !id.is_ascii() {
        return None;
    }
    let (first, rest) = id.split_at_checked(22)?;
    let (middle, last) = rest.split_at_checked(rest.len().checked_sub(18)?)?;
    Some((first, middle, last))
}

/// Points of a small line: `x,y` pairs in a box of this height, with the largest value at the top.
pub(super) fn spark(values: &[u64], height: f64) -> String {
    let max = values.iter().copied().max().unwrap_or(0).max(1);
    let last = values.len().saturating_sub(1).max(1);
    let points = values.iter().enumerate().map(|(position, value)| {
        let (x, y) = (ratio(position as u64, last as u64), ratio(*value, max));
        format!("{:.1},{:.1}", 100.0 * x, height - 2.0 - (height - 4.0) * y)
    });
    points.collect::<Vec<_>>().join(" ")
}

#[expect(clippy::cast_precision_loss, reason = "a pixel needs no more")]
fn ratio(part: u64, whole: u64) -> f64 {
    part as f64 / whole as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentage_is_rounded_down_and_never_reads_as_full_or_empty_before_it_is() {
        for (used, limit, text) in [
            (0, 10, "0.00%"),
            (1, 100_000, "<0.01%"),
            (2_499_900, 2_500_000, "99.99%"),
            (10, 10, "100.00%"),
            (5_620_000, 5_000_000, "112.40%"),
            (u64::MAX >> 11, 1, "900,719,925,474,099,100.00%"),
            (5, 0, "–"),
        ] {
            assert_eq!(percent(used, limit), text);
        }
    }

    #[test]
    fn a_bar_is_full_only_at_the_limit() {
        assert_eq!(bar(2_499_900, 2_500_000).width, "98.5%");
        assert_eq!(bar(10, 10).width, "100%");
        let over = bar(5_620_000, 5_000_000);
        assert_eq!(
            (over.width.as_str(), over.more.as_deref()),
            ("88.96%", Some("11.03%"))
        );
        assert_eq!(bar(0, 0).width, "100%");
    }

    #[test]
    fn lists_abbreviate_from_100_million_on_rounded_down() {
        assert_eq!(compact(99_999_999), "99,999,999");
        assert_eq!(compact(1_289_999_999), "1.28 B");
        assert_eq!(compact(2_000_000_000), "2.00 B");
    }

    #[test]
    fn a_state_is_the_worst_that_applies() {
        let label = |used, limit, is_hard, warns| mark(used, limit, is_hard, warns).label;
        assert_eq!(label(5, None, true, false), "Unlimited");
        assert_eq!(label(0, Some(0), true, false), "Not included");
        assert_eq!(label(10, Some(10), true, true), "Limit reached");
        assert_eq!(label(10, Some(10), false, true), "Nearly full");
        assert_eq!(label(11, Some(10), false, true), "Over limit");
        assert_eq!(label(94, Some(100), true, true), "Warning");
        assert_eq!(label(95, Some(100), true, false), "Nearly full");
        assert_eq!(label(5, Some(10), true, false), "Within limit");
    }

    #[test]
    fn a_span_has_two_units() {
        assert_eq!(span(TimeDelta::seconds(111_600)), "1 d 7 h");
        assert_eq!(span(TimeDelta::seconds(7320)), "2 h 2 min");
        assert_eq!(span(TimeDelta::seconds(119)), "1 min");
        assert_eq!(span(TimeDelta::zero()), "now");
    }

    #[test]
    fn a_long_id_keeps_its_beginning_and_its_end() {
        let id = "tenant.eu-central-1.customer-success-sandbox_2f7c1e90@staging.example";
        let (first, middle, last) = shortened(id).unwrap();
        assert_eq!(format!("{first}{middle}{last}"), id);
        assert_eq!((first.len(), last.len()), (22, 18));
        assert_eq!(shortened("acme"), None);
    }
}
