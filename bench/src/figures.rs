//! The results of several rounds, as a table and as JSON.

use std::fmt::Write as _;

use serde_json::{Value, json};

/// One line of the table.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Figure {
    name: &'static str,
    title: &'static str,
    unit: &'static str,
    target: Option<Target>,
}

/// The target of a figure.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Target {
    AtLeast(f64),
    AtMost(f64),
}

/// The rounds of every figure.
#[derive(Debug)]
pub(crate) struct Figures {
    lines: Vec<(Figure, Vec<f64>)>,
}

impl Figure {
    /// `name` is for JSON, `title` for the table.
    pub(crate) const fn new(name: &'static str, title: &'static str, unit: &'static str) -> Self {
        Self {
            name,
            title,
            unit,
            target: None,
        }
    }

    pub(crate) const fn target(mut self, target: Target) -> Self {
        self.target = Some(target);
        self
    }
}

impl Target {
    fn is_met(self, value: f64) -> bool {
        match self {
            Self::AtLeast(least) => value >= least,
            Self::AtMost(most) => value <= most,
        }
    }
}

impl Figures {
    pub(crate) fn new(figures: &[Figure]) -> Self {
        Self {
            lines: figures.iter().map(|it| (*it, Vec::new())).collect(),
        }
    }

    /// Adds a round of the figure of this name.
    pub(crate) fn add(&mut self, name: &str, value: f64) {
        let line = self.lines.iter_mut().find(|(it, _)| it.name == name);
        debug_assert!(line.is_some(), "{name} is not a figure");
        if let Some((_, rounds)) = line {
            rounds.push(value);
        }
    }

    /// A Markdown table.
    pub(crate) fn to_table(&self) -> String {
        let mut text =
            "| | median | lowest to highest | target |\n|---|---:|---:|---:|\n".to_owned();
        for (figure, rounds) in &self.lines {
            let (median, lowest, highest) = spread(rounds);
            let target = figure.target.map_or_else(String::new, |target| {
                let (sign, value) = match target {
                    Target::AtLeast(value) => ('≥', value),
                    Target::AtMost(value) => ('≤', value),
                };
                let missed = if target.is_met(median) {
                    ""
                } else {
                    ", missed"
                };
                format!("{sign} {}{missed}", number(value))
            });
            let unit = if figure.unit.is_empty() {
                String::new()
            } else {
                format!(" {}", figure.unit)
            };
            let _ = writeln!(
                text,
                "| {} | {}{unit} | {} to {} | {target} |",
                figure.title,
                number(median),
                number(lowest),
                number(highest),
            );
        }
        text
    }

    pub(crate) fn to_json(&self) -> Value {
        let figures = self.lines.iter().map(|(figure, rounds)| {
            let (median, ..) = spread(rounds);
            let met = figure.target.map(|target| target.is_met(median));
            let value =
                json!({"unit": figure.unit, "median": median, "rounds": rounds, "targetMet": met});
            (figure.name.to_owned(), value)
        });
        Value::Object(figures.collect())
    }
}

/// Median, lowest and highest.
fn spread(rounds: &[f64]) -> (f64, f64, f64) {
    let mut sorted = rounds.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = |index: usize| sorted.get(index).copied().unwrap_or(f64::NAN);
    (
        at(sorted.len() / 2),
        at(0),
        at(sorted.len().saturating_sub(1)),
    )
}

/// At least three digits, thousands separated by commas.
fn number(value: f64) -> String {
    let text = match value.abs() {
        large if large >= 100.0 => format!("{value:.0}"),
        medium if medium >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    };
    let whole = text.find('.').unwrap_or(text.len());
    let mut spaced = String::new();
    for (at, digit) in text.chars().enumerate() {
        if at > 0 && at < whole && (whole - at) % 3 == 0 {
            spaced.push(',');
        }
        spaced.push(digit);
    }
    spaced
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_the_median_of_the_rounds_and_the_target() {
        let mut figures = Figures::new(&[
            Figure::new("speed", "speed", "requests/s").target(Target::AtLeast(2_000.0)),
            Figure::new("ratio", "ratio", "").target(Target::AtMost(0.5)),
        ]);
        for (speed, ratio) in [(3_000.0, 0.7), (1_000.0, 0.123), (1_234_567.0, 0.6)] {
            figures.add("speed", speed);
            figures.add("ratio", ratio);
        }
        let table = figures.to_table();
        assert!(
            table.contains("| speed | 3,000 requests/s | 1,000 to 1,234,567 | ≥ 2,000 |"),
            "{table}"
        );
        assert!(
            table.contains("| ratio | 0.60 | 0.12 to 0.70 | ≤ 0.50, missed |"),
            "{table}"
        );
        assert_eq!(figures.to_json()["speed"]["targetMet"], true);
    }
}
