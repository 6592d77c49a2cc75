//! Months of UTC, by which hourly usage is partitioned and dropped.

use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, Datelike as _, NaiveDate, NaiveTime, Utc};

use super::text::Malformed;

/// A month of UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Month {
    year: i32,
    /// From 1 on.
    month: u32,
}

impl Month {
    /// The month that contains an instant.
    pub fn of(at: DateTime<Utc>) -> Self {
        Self {
            year: at.year(),
            month: at.month(),
        }
    }

    /// The month after this one.
    #[must_use]
    pub fn next(self) -> Self {
        match self.month {
            12 => Self {
                year: self.year.saturating_add(1),
                month: 1,
            },
            month => Self {
                month: month.saturating_add(1),
                ..self
            },
        }
    }

    /// The first instant; none beyond the years that can be represented.
    pub fn start(self) -> Option<DateTime<Utc>> {
        let first = NaiveDate::from_ymd_opt(self.year, self.month, 1)?;
        Some(first.and_time(NaiveTime::MIN).and_utc())
    }

    /// Whether it lies entirely before an instant.
    pub fn is_before(self, at: DateTime<Utc>) -> bool {
        self.next().start().is_some_and(|end| end <= at)
    }
}

/// Such as `2031-03`.
impl fmt::Display for Month {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04}-{:02}", self.year, self.month)
    }
}

/// Only what [`Display`](fmt::Display) writes.
impl FromStr for Month {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        let (year, month) = text.split_once('-').ok_or(Malformed)?;
        let parsed = Self {
            year: year.parse().map_err(|_| Malformed)?,
            month: month.parse().map_err(|_| Malformed)?,
        };
        if parsed.start().is_some() && parsed.to_string() == text {
            Ok(parsed)
        } else {
            Err(Malformed)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn utc(text: &str) -> DateTime<Utc> {
        text.parse().unwrap()
    }

    #[test]
    fn months_follow_each_other_and_end_where_the_next_begins() {
        let december = Month::of(utc("2031-12-31T23:59:59Z"));
        let january = december.next();
        assert_eq!(january.start(), Some(utc("2032-01-01T00:00:00Z")));
        assert_eq!(january, Month::of(utc("2032-01-01T00:00:00Z")));
        assert!(december < january);
        assert!(december.is_before(utc("2032-01-01T00:00:00Z")));
        assert!(!december.is_before(utc("2031-12-31T23:59:59Z")));
    }

    #[test]
    fn a_month_is_parsed_from_what_it_is_written_as_and_nothing_else() {
        for text in ["2031-12", "2032-01", "0033-04"] {
            assert_eq!(text.parse::<Month>().unwrap().to_string(), text);
        }
        for text in [
            "2031",
            "2031-13",
            "2031-00",
            "2031-1",
            "+2031-12",
            "2031-12-01",
            "all",
        ] {
            assert!(text.parse::<Month>().is_err(), "{text}");
        }
    }
}
