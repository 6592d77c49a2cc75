//! The history chart, drawn as SVG: x in percent and y in pixels, so that text keeps its size at any width.

use super::format::number;

/// The height of the plot in pixels; the template draws labels below it.
pub(super) const HEIGHT: f64 = 220.0;

/// How many labels fit below the plot.
const LABELS_MAX: usize = 8;

/// A bucket of time.
#[derive(Debug, Clone)]
pub(super) struct Bucket {
    /// Names the interval: `Sat 31 Oct`.
    pub(super) label: String,
    /// The label below the plot: `31 Oct`.
    pub(super) short: String,
    /// Units net of refunds and adjustments; may be negative.
    pub(super) used: i64,
    pub(super) adjusted: i64,
    pub(super) denied: u64,
    /// Whether it has not ended.
    pub(super) open: bool,
    /// Whether a period begins with it.
    pub(super) begins: bool,
}

/// How values are drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Bars,
    Line,
    Area,
}

/// A horizontal line across the plot.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Line {
    /// The limit: only where a mark is the count of a period.
    Limit(u64),
    /// The limit spread over its period.
    Pace(u64),
}

/// A chart, ready for its template.
#[derive(Debug)]
pub(super) struct Chart {
    pub(super) kind: Kind,
    pub(super) marks: Vec<Mark>,
    /// The y of each grid line and its label, from the bottom.
    pub(super) ticks: Vec<(String, String)>,
    pub(super) curves: Curves,
    pub(super) line: Option<(bool, String, String)>,
}

/// The paths of a line.
#[derive(Debug, Default)]
pub(super) struct Curves {
    /// Up to the last bucket that has ended.
    pub(super) ended: String,
    /// On to the open bucket.
    pub(super) open: String,
    /// The area below both.
    pub(super) below: String,
}

/// A bucket in the plot.
#[derive(Debug)]
pub(super) struct Mark {
    pub(super) x: String,
    pub(super) y: String,
    pub(super) width: String,
    pub(super) height: String,
    /// The column that the pointer hits.
    pub(super) hit_x: String,
    pub(super) hit_width: String,
    pub(super) center: String,
    pub(super) value: i64,
    pub(super) bucket: Bucket,
    /// The label below the plot, if there is room for it.
    pub(super) below: Option<String>,
    /// Whether that label is left out on a narrow page.
    pub(super) is_minor: bool,
}

/// Draws buckets; `values` are what to draw for each, and are running totals if `is_total`.
pub(super) fn draw(
    buckets: &[Bucket],
    values: &[i64],
    is_total: bool,
    kind: Kind,
    line: Option<Line>,
) -> Chart {
    let level = line.map(|line| match line {
        Line::Limit(units) | Line::Pace(units) => units,
    });
    let most = values
        .iter()
        .map(|value| value.unsigned_abs())
        .max()
        .unwrap_or(0);
    let (top, step) = scale(most.max(level.unwrap_or(0)).max(1));
    let y = |value: f64| HEIGHT - HEIGHT * (value / top).clamp(0.0, 1.0);
    let width = 100.0 / real(buckets.len().max(1) as u64);
    let every = buckets.len().div_ceil(LABELS_MAX).max(1);
    let marks = buckets
        .iter()
        .zip(values)
        .enumerate()
        .map(|(position, (bucket, value))| {
            let left = width * real(position as u64);
            let height = HEIGHT - y(real(u64::try_from(*value).unwrap_or(0)));
            Mark {
                x: format!("{:.2}%", left + width * 0.14),
                y: format!("{:.1}", HEIGHT - height),
                width: format!("{:.2}%", width * 0.72),
                height: format!("{height:.1}"),
                hit_x: format!("{left:.2}%"),
                hit_width: format!("{width:.2}%"),
                center: format!("{:.2}%", left + width / 2.0),
                value: *value,
                bucket: bucket.clone(),
                below: (position % every == every / 2).then(|| bucket.short.clone()),
                is_minor: (position / every) % 2 == 1,
            }
        });
    let marks: Vec<Mark> = marks.collect();
    let point = |(position, value): (usize, &i64)| {
        let x = width * (real(position as u64) + 0.5);
        let y = y(real(u64::try_from(*value).unwrap_or(0)));
        (format!("{x:.2}"), format!("{y:.1}"))
    };
    let points = values.iter().enumerate().map(point);
    Chart {
        kind,
        ticks: ticks(top, step, y),
        curves: curves(buckets, points, is_total),
        line: line.map(|line| {
            let at = y(real(level.unwrap_or(0)));
            (
                matches!(line, Line::Limit(_)),
                format!("{at:.1}"),
                // Above the line where there is room.
                format!("{:.1}", if at < 17.0 { at + 15.0 } else { at - 7.0 }),
            )
        }),
        marks,
    }
}

/// The paths through these points. A running total has a gap where a period begins, unless one began just before: a line
/// of a single point would not be seen.
fn curves(
    buckets: &[Bucket],
    points: impl Iterator<Item = (String, String)>,
    is_total: bool,
) -> Curves {
    let mut curves = Curves::default();
    let mut last: Option<(String, String)> = None;
    let mut began = false;
    for (bucket, (x, y)) in buckets.iter().zip(points) {
        let before_began = std::mem::replace(&mut began, bucket.begins);
        let is_gap = is_total && bucket.begins && !before_began;
        let from = last.take().filter(|_| !is_gap);
        // A point without a line to it is a dot.
        let (ended, open) = match &from {
            Some((before, above)) => (format!(" L{x},{y}"), format!("M{before},{above} L{x},{y}")),
            None => (format!("M{x},{y}h0"), format!("M{x},{y}h0")),
        };
        if bucket.open {
            curves.open.push_str(&open);
        } else {
            curves.ended.push_str(&ended);
        }
        let (before, above) = from.unwrap_or_else(|| (x.clone(), y.clone()));
        let area = format!("M{before},{HEIGHT} L{before},{above} L{x},{y} L{x},{HEIGHT}z");
        curves.below.push_str(&area);
        last = Some((x, y));
    }
    curves
}

fn ticks(top: f64, step: u64, y: impl Fn(f64) -> f64) -> Vec<(String, String)> {
    let all = (0..=10).map(|times| times * step);
    let within = all.take_while(|value| real(*value) <= top);
    within
        .map(|value| (format!("{:.1}", y(real(value))), short(value)))
        .collect()
}

/// The top of the axis and the distance of its grid lines: 1, 2 or 5 times a power of ten.
fn scale(most: u64) -> (f64, u64) {
    let mut step: u64 = 1;
    for factor in [2, 5, 2].iter().cycle() {
        // At most four intervals.
        if most.div_ceil(step) <= 4 || step > u64::MAX / 10 {
            break;
        }
        step = match (step.to_string().starts_with('2'), factor) {
            (true, _) => step / 2 * 5,
            (false, _) => step * 2,
        };
    }
    (real(most.div_ceil(step) * step), step)
}

/// A tick: `2k`, `1.5M`.
fn short(value: u64) -> String {
    let (unit, letter) = match value {
        0..10_000 => return number(value),
        10_000..1_000_000 => (1_000, "k"),
        1_000_000..1_000_000_000 => (1_000_000, "M"),
        1_000_000_000.. => (1_000_000_000, "B"),
    };
    let tenths = value / (unit / 10);
    let (whole, rest) = (tenths / 10, tenths % 10);
    if rest == 0 {
        format!("{whole}{letter}")
    } else {
        format!("{whole}.{rest}{letter}")
    }
}

#[expect(clippy::cast_precision_loss, reason = "a pixel needs no more")]
fn real(value: u64) -> f64 {
    value as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bucket(used: i64, begins: bool) -> Bucket {
        Bucket {
            label: "Sat 31 Oct".to_owned(),
            short: "31 Oct".to_owned(),
            used,
            adjusted: 0,
            denied: 0,
            open: false,
            begins,
        }
    }

    #[test]
    fn the_axis_has_round_steps_and_room_for_the_highest_value_and_the_limit() {
        for (most, top, step) in [
            (1, 1.0, 1),
            (4, 4.0, 1),
            (5, 6.0, 2),
            (5204, 6000.0, 2000),
            (1_180_000, 1_500_000.0, 500_000),
        ] {
            assert_eq!(scale(most), (top, step), "{most}");
        }
        assert!(scale(u64::MAX >> 11).0 >= 9e15);
    }

    #[test]
    fn marks_are_inside_the_plot_also_if_negative_or_beyond() {
        let buckets: Vec<Bucket> = (0..30).map(|day| bucket(day - 5, false)).collect();
        let values: Vec<i64> = buckets.iter().map(|it| it.used).collect();
        let chart = draw(&buckets, &values, false, Kind::Bars, Some(Line::Limit(100)));
        assert_eq!(chart.marks.len(), 30);
        for mark in &chart.marks {
            let height: f64 = mark.height.parse().unwrap();
            assert!((0.0..=HEIGHT).contains(&height), "{mark:?}");
        }
        assert!(chart.marks.iter().filter(|it| it.below.is_some()).count() <= LABELS_MAX);
        assert_eq!(chart.line.as_ref().map(|it| it.0), Some(true));
    }

    #[test]
    fn a_line_is_open_to_the_open_bucket_and_a_running_total_has_a_gap_at_a_period() {
        let mut buckets = [bucket(2, false), bucket(2, true), bucket(2, false)];
        buckets[2].open = true;
        let curves = |is_total| draw(&buckets, &[4, 2, 4], is_total, Kind::Line, None).curves;
        let total = curves(true);
        assert_eq!(total.ended, "M16.67,0.0h0M50.00,110.0h0");
        assert_eq!(total.open, "M50.00,110.0 L83.33,0.0");
        let each = curves(false);
        assert_eq!(each.ended, "M16.67,0.0h0 L50.00,110.0");
        assert_eq!(each.open, total.open);
        assert_eq!(each.below.matches('z').count(), 3);
    }

    #[test]
    fn running_totals_of_periods_as_long_as_a_bucket_are_one_line() {
        let buckets = [
            bucket(2, false),
            bucket(2, true),
            bucket(2, true),
            bucket(2, true),
        ];
        let curves = draw(&buckets, &[4, 4, 2, 2], true, Kind::Line, None).curves;
        assert_eq!(
            curves.ended,
            "M12.50,0.0h0M37.50,0.0h0 L62.50,110.0 L87.50,110.0"
        );
    }

    #[test]
    fn no_bucket_makes_an_empty_chart() {
        assert!(draw(&[], &[], false, Kind::Line, None).marks.is_empty());
    }
}
