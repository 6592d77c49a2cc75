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
    lines: Vec<Line>,
}

#[derive(Debug)]
struct Line {
    figure: Figure,
    rounds: Vec<f64>,
    /// Those of the build that it is compared with.
    before: Vec<f64>,
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
        let lines = figures.iter().map(|figure| Line {
            figure: *figure,
            rounds: Vec::new(),
            before: Vec::new(),
        });
        Self {
            lines: lines.collect(),
        }
    }

    /// Adds a round of the figure of this name.
    pub(crate) fn add(&mut self, name: &str, value: f64) {
        if let Some(line) = self.line(name) {
            line.rounds.push(value);
        }
    }

    /// Adds a round of the build that this one is compared with.
    pub(crate) fn add_before(&mut self, name: &str, value: f64) {
        if let Some(line) = self.line(name) {
            line.before.push(value);
        }
    }

    fn line(&mut self, name: &str) -> Option<&mut Line> {
        let line = self.lines.iter_mut().find(|it| it.figure.name == name);
        debug_assert!(line.is_some(), "{name} is not a figure");
        line
    }

    /// A Markdown table of the figures that were measured, with a column for the build that this one is compared with.
    pub(crate) fn to_table(&self) -> String {
        let compares = self.lines.iter().any(|line| !line.before.is_empty());
        let mut text = if compares {
            "| | before | median | lowest to highest | target |\n|---|---:|---:|---:|---:|\n"
        } else {
            "| | median | lowest to highest | target |\n|---|---:|---:|---:|\n"
        }
        .to_owned();
        for line in self.lines.iter().filter(|line| !line.rounds.is_empty()) {
            let figure = &line.figure;
            let (median, lowest, highest) = spread(&line.rounds);
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
            let before = match (compares, line.before.is_empty()) {
                (false, _) => String::new(),
                (true, true) => " |".to_owned(),
                (true, false) => format!(" {}{unit} |", number(spread(&line.before).0)),
            };
            let _ = writeln!(
                text,
                "| {} |{before} {}{unit} | {} to {} | {target} |",
                figure.title,
                number(median),
                number(lowest),
                number(highest),
            );
        }
        text
    }

    pub(crate) fn to_json(&self) -> Value {
        let measured = self.lines.iter().filter(|line| !line.rounds.is_empty());
        let figures = measured.map(|line| {
            let Line {
                figure,
                rounds,
                before,
            } = line;
            let (median, ..) = spread(rounds);
            let met = figure.target.map(|target| target.is_met(median));
            let mut value =
                json!({"unit": figure.unit, "median": median, "rounds": rounds, "targetMet": met});
            if !before.is_empty() {
                value["before"] = json!(before);
            }
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

    #[test]
    fn the_build_before_has_a_column_where_it_was_measured() {
        let mut figures = Figures::new(&[
            Figure::new("speed", "speed", "requests/s"),
            Figure::new("ceiling", "ceiling", "requests/s"),
            Figure::new("absent", "absent", ""),
        ]);
        figures.add("speed", 300.0);
        figures.add_before("speed", 200.0);
        figures.add("ceiling", 900.0);
        let table = figures.to_table();
        assert!(
            table.contains("| speed | 200 requests/s | 300 requests/s | 300 to 300 |  |"),
            "{table}"
        );
        assert!(
            table.contains("| ceiling | | 900 requests/s | 900 to 900 |  |"),
            "{table}"
        );
        assert!(!table.contains("absent"), "{table}");
    }
}
