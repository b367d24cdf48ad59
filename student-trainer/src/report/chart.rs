//! Line charts as inline SVG.

use std::fmt::Write;

use super::escape;
use crate::table::number;

/// Size of a chart in its own units, and the room its plot leaves for labels.
const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 300.0;
const LEFT: f64 = 56.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 14.0;
const BOTTOM: f64 = 42.0;
/// Points a line is thinned to: more than this no screen shows.
const MOST_POINTS: usize = 240;

/// A chart of one quantity over another.
#[derive(Clone, Debug, Default)]
pub(crate) struct Chart {
    /// What it shows.
    pub(crate) title: String,
    /// Name of the horizontal axis.
    pub(crate) x_name: String,
    /// The curves; each series has a colour of its own, by its place.
    pub(crate) series: Vec<Series>,
    /// Horizontal lines to compare with: name and height.
    pub(crate) levels: Vec<(String, f64)>,
}

/// Curves that belong together.
#[derive(Clone, Debug, Default)]
pub(crate) struct Series {
    /// Name in the legend.
    pub(crate) name: String,
    /// The curves.
    pub(crate) lines: Vec<Line>,
}

/// One curve.
#[derive(Clone, Debug, Default)]
pub(crate) struct Line {
    /// Its points, from left to right.
    pub(crate) points: Vec<(f64, f64)>,
    /// Drawn thin and pale: one of several, or a noisy one behind its mean.
    pub(crate) faint: bool,
    /// Every point is marked.
    pub(crate) marked: bool,
}

impl Chart {
    /// The chart with its title and legend; None where there is nothing to draw.
    pub(crate) fn to_html(&self) -> Option<String> {
        let axes = Axes::of(self)?;
        let mut svg = String::new();
        axes.draw(&mut svg, &self.x_name);
        for (name, height) in &self.levels {
            axes.draw_level(&mut svg, name, *height);
        }
        for faint in [true, false] {
            for (slot, series) in self.series.iter().enumerate() {
                for line in series.lines.iter().filter(|line| line.faint == faint) {
                    axes.draw_line(&mut svg, line, slot + 1, &series.name);
                }
            }
        }
        let title = escape(&self.title);
        let legend: String = self
            .series
            .iter()
            .enumerate()
            .map(|(slot, series)| {
                let name = escape(&series.name);
                format!("<span class=\"key\"><i class=\"s{}\"></i>{name}</span>", slot + 1)
            })
            .collect();
        Some(format!(
            "<figure><figcaption>{title}<span class=\"legend\">{legend}</span></figcaption>\n\
             <svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{title}\">\n{svg}\
             </svg></figure>\n"
        ))
    }
}

/// From numbers to places.
struct Axes {
    x: (f64, f64),
    y: (f64, f64),
    x_ticks: Vec<f64>,
    y_ticks: Vec<f64>,
}

impl Axes {
    /// Axes that hold every point and level; the vertical one has round ends.
    fn of(chart: &Chart) -> Option<Self> {
        let lines = chart.series.iter().flat_map(|series| &series.lines);
        let points = lines.flat_map(|line| &line.points).filter(|(x, y)| (x + y).is_finite());
        let (xs, ys): (Vec<f64>, Vec<f64>) = points.copied().unzip();
        if xs.is_empty() {
            return None;
        }
        let ys = ys.into_iter().chain(chart.levels.iter().map(|&(_, height)| height));
        let (x, y_ticks) = (range(xs.into_iter()), ticks(range(ys), 5));
        let mut x_ticks = ticks(x, 6);
        x_ticks.retain(|tick| (x.0..=x.1).contains(tick));
        let y = (y_ticks[0], y_ticks[y_ticks.len() - 1]);
        Some(Self { x, y, x_ticks, y_ticks })
    }

    fn place(&self, x: f64, y: f64) -> (f64, f64) {
        let across = (x - self.x.0) / (self.x.1 - self.x.0);
        let up = (y - self.y.0) / (self.y.1 - self.y.0);
        (LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM))
    }

    fn draw(&self, svg: &mut String, x_name: &str) {
        let (right, floor) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
        for &tick in &self.y_ticks {
            let (_, y) = self.place(self.x.0, tick);
            let class = if tick == self.y.0 { "axis" } else { "grid" };
            let label = tick_label(tick, &self.y_ticks);
            let _ = writeln!(
                svg,
                "<path class=\"{class}\" d=\"M{LEFT} {y:.1}H{right}\"/>\
                 <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{label}</text>",
                LEFT - 8.0,
                y + 4.0
            );
        }
        for &tick in &self.x_ticks {
            let (x, _) = self.place(tick, self.y.0);
            let label = tick_label(tick, &self.x_ticks);
            let _ = writeln!(
                svg,
                "<text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{label}</text>",
                floor + 17.0
            );
        }
        let (middle, below) = ((LEFT + right) / 2.0, HEIGHT - 6.0);
        let name = escape(x_name);
        let _ = writeln!(
            svg,
            "<text x=\"{middle}\" y=\"{below}\" text-anchor=\"middle\">{name}</text>"
        );
    }

    fn draw_level(&self, svg: &mut String, name: &str, height: f64) {
        let ((_, y), right) = (self.place(self.x.0, height), WIDTH - RIGHT);
        let label = format!("{} {}", escape(name), number(height));
        let _ = writeln!(
            svg,
            "<path class=\"level\" d=\"M{LEFT} {y:.1}H{right}\"/>\
             <text class=\"level\" x=\"{right}\" y=\"{:.1}\" text-anchor=\"end\">{label}</text>",
            y - 5.0
        );
    }

    fn draw_line(&self, svg: &mut String, line: &Line, slot: usize, name: &str) {
        let points = thinned(&line.points);
        let places: Vec<_> = points.iter().map(|&(x, y)| self.place(x, y)).collect();
        let path: Vec<_> = places.iter().map(|(x, y)| format!("{x:.1} {y:.1}")).collect();
        let faint = if line.faint { " faint" } else { "" };
        let _ = writeln!(svg, "<path class=\"s{slot}{faint}\" d=\"M{}\"/>", path.join("L"));
        if line.marked {
            for ((x, y), (_, value)) in places.iter().zip(&points) {
                let title = format!("{} {}", escape(name), number(*value));
                let _ = writeln!(
                    svg,
                    "<circle class=\"s{slot}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4\">\
                     <title>{title}</title></circle>"
                );
            }
        }
    }
}

/// At most `MOST_POINTS` points: the means of as many equal stretches.
fn thinned(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let finite: Vec<_> = points.iter().copied().filter(|(x, y)| (x + y).is_finite()).collect();
    let stretch = finite.len().div_ceil(MOST_POINTS).max(1);
    let mean = |part: &[(f64, f64)]| {
        let n = part.len() as f64;
        let (x, y) = part.iter().fold((0.0, 0.0), |(a, b), (x, y)| (a + x, b + y));
        (x / n, y / n)
    };
    finite.chunks(stretch).map(mean).collect()
}

/// The running mean over `window` points, for a noisy curve.
pub(crate) fn smoothed(points: &[(f64, f64)], window: usize) -> Vec<(f64, f64)> {
    let window = window.max(1);
    (0..points.len())
        .map(|i| {
            let part = &points[(i + 1).saturating_sub(window)..=i];
            (points[i].0, part.iter().map(|p| p.1).sum::<f64>() / part.len() as f64)
        })
        .collect()
}

fn range(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let (low, high) = values
        .filter(|value| value.is_finite())
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)));
    // One value alone still wants an axis with two ends.
    if high > low { (low, high) } else { (low - 0.5, low + 0.5) }
}

/// Round numbers from at or below `low` to at or above `high`, about `wanted` of them.
fn ticks((low, high): (f64, f64), wanted: usize) -> Vec<f64> {
    let rough = (high - low) / wanted as f64;
    let power = 10_f64.powf(rough.log10().floor());
    let steps = [1.0, 2.0, 2.5, 5.0, 10.0];
    let step = power * steps.into_iter().find(|s| s * power >= rough * 0.999).unwrap_or(10.0);
    let (first, last) = ((low / step + 1e-9).floor() as i64, (high / step - 1e-9).ceil() as i64);
    (first..=last.max(first + 1)).map(|n| n as f64 * step).collect()
}

/// A tick's number with the digits its step needs.
fn tick_label(tick: f64, ticks: &[f64]) -> String {
    let step = ticks.get(1).map_or(1.0, |next| next - ticks[0]);
    if step < 1e-4 || tick.abs() >= 1e6 {
        return format!("{tick:.1e}");
    }
    let whole = |value: f64| (value - value.round()).abs() < 1e-6;
    let digits = (0..=5).find(|&d| whole(step * 10_f64.powi(d))).unwrap_or(5);
    format!("{tick:.*}", digits as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_hold_the_range() {
        assert_eq!(ticks((0.0, 10.0), 5), [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]);
        let small = ticks((1.27, 2.04), 5);
        let wanted = [1.2, 1.4, 1.6, 1.8, 2.0, 2.2];
        assert_eq!(small.len(), wanted.len());
        assert!(small.iter().zip(wanted).all(|(a, b)| (a - b).abs() < 1e-12), "{small:?}");
        let all = ticks((37.0, 361.0), 6);
        assert!(all[0] <= 37.0 && all[all.len() - 1] >= 361.0 && all.len() < 9, "{all:?}");
        assert_eq!(tick_label(0.25, &[0.0, 0.25]), "0.25");
        assert_eq!(tick_label(40.0, &[0.0, 20.0]), "40");
        let tenths = ticks((0.383, 0.684), 5);
        let labels: Vec<_> = tenths.iter().map(|&tick| tick_label(tick, &tenths)).collect();
        assert_eq!(labels, ["0.3", "0.4", "0.5", "0.6", "0.7"]);
    }

    #[test]
    fn points_lie_where_their_numbers_say() {
        let chart = Chart {
            series: vec![Series {
                name: "s".into(),
                lines: vec![Line { points: vec![(0.0, 0.0), (10.0, 10.0)], ..Line::default() }],
            }],
            ..Chart::default()
        };
        let html = chart.to_html().unwrap();
        let (left, right) = (LEFT, WIDTH - RIGHT);
        let (top, floor) = (TOP, HEIGHT - BOTTOM);
        let path = format!("M{left:.1} {floor:.1}L{right:.1} {top:.1}");
        assert!(html.contains(&path), "{path} not in {html}");
    }

    #[test]
    fn long_curves_are_thinned_to_their_means_and_gaps_left_out() {
        let long: Vec<_> = (0..10_000).map(|n| (n as f64, (n % 2) as f64)).collect();
        let few = thinned(&long);
        assert!(few.len() <= MOST_POINTS && few.len() > MOST_POINTS / 2);
        assert!(few.iter().all(|(_, y)| (y - 0.5).abs() < 0.02));
        assert_eq!(thinned(&[(0.0, f64::NAN), (1.0, 2.0)]), [(1.0, 2.0)]);
        assert!(Chart::default().to_html().is_none());
        assert_eq!(smoothed(&[(0.0, 2.0), (1.0, 4.0), (2.0, 6.0)], 2)[2], (2.0, 5.0));
    }
}
