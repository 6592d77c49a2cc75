//! A stamp as text: one short string that Lua compares.
//!
//! `generation:version:limit:enforcement:end`, such as `3:17:1000:h:1764547200000`. Limit and end
//! are empty without a limit and for a period that has no end of its own. Enforcement is `h` hard or `s` soft; in capitals,
//! the counter is closed, and `end` is when.

use std::fmt;

use chrono::DateTime;

use crate::domain::counter::Stamp;
use crate::domain::limit::{Enforcement, Rule};
use crate::domain::quantity::Count;

impl Stamp {
    /// Parses a stamp; none for anything else.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split(':');
        let mut next = || parts.next();
        let (generation, version, limit, enforcement, end) =
            (next()?, next()?, next()?, next()?, next()?);
        if parts.next().is_some() {
            return None;
        }
        let limit = match limit {
            "" => None,
            units => Some(Count::try_from(units.parse::<u64>().ok()?).ok()?),
        };
        let (enforcement, closed) = match enforcement {
            "h" => (Enforcement::Hard, false),
            "s" => (Enforcement::Soft, false),
            "H" => (Enforcement::Hard, true),
            "S" => (Enforcement::Soft, true),
            _ => return None,
        };
        Some(Self {
            generation: generation.parse().ok()?,
            version: version.parse().ok()?,
            rule: Rule { limit, enforcement },
            end: match end {
                "" => None,
                ms => Some(DateTime::from_timestamp_millis(ms.parse().ok()?)?),
            },
            closed,
        })
    }

    /// The part that `configure.lua` appends to the counter's generation.
    pub(super) fn without_generation(&self) -> String {
        let text = self.to_string();
        text.split_once(':')
            .map_or(text.clone(), |(_, rest)| rest.to_owned())
    }
}

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without formatting machinery: this is the hot path.
        let mut number = itoa::Buffer::new();
        f.write_str(number.format(self.generation))?;
        f.write_str(":")?;
        f.write_str(number.format(self.version))?;
        f.write_str(":")?;
        if let Some(limit) = self.rule.limit {
            f.write_str(number.format(limit.get()))?;
        }
        f.write_str(match (self.rule.enforcement, self.closed) {
            (Enforcement::Hard, false) => ":h:",
            (Enforcement::Soft, false) => ":s:",
            (Enforcement::Hard, true) => ":H:",
            (Enforcement::Soft, true) => ":S:",
        })?;
        self.end.map_or(Ok(()), |end| {
            f.write_str(number.format(end.timestamp_millis()))
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::domain::quantity::COUNT_MAX;

    proptest! {
        #[test]
        fn a_stamp_parses_back(
            generation: u64, version: u64, closed: bool, soft: bool,
            limit in proptest::option::of(0..=COUNT_MAX),
            end in proptest::option::of(0..253_402_300_799_999_i64),
        ) {
            let stamp = Stamp {
                generation,
                version,
                rule: Rule {
                    limit: limit.map(|units| Count::try_from(units).unwrap()),
                    enforcement: if soft { Enforcement::Soft } else { Enforcement::Hard },
                },
                end: end.map(|ms| DateTime::from_timestamp_millis(ms).unwrap()),
                closed,
            };
            prop_assert_eq!(Stamp::parse(&stamp.to_string()), Some(stamp));
        }
    }

    #[test]
    fn other_texts_do_not_parse() {
        for text in ["", "1:2:3:h", "1:2:3:z:4", "a:2:3:h:4", "1:2:3:h:4:5"] {
            assert_eq!(Stamp::parse(text), None, "{text}");
        }
    }
}
