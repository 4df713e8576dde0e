//! Plots as SVG, by hand: a few axes and circles need no library.

use std::fmt::Write;

use crate::stats::Estimate;

/// Size of the picture and of the area inside the axes, in pixels.
const SIZE: (f64, f64) = (820.0, 500.0);
const AREA: (f64, f64, f64, f64) = (70.0, 50.0, 560.0, 450.0);

/// Width of a bar, with its gap, below which its name may be wider.
const NARROW: f64 = 80.0;

/// Points of one colour.
#[derive(Debug, Clone)]
pub(crate) struct Series {
    pub(crate) name: String,
    pub(crate) colour: &'static str,
    /// Whether the points are joined, in the order of `x`.
    pub(crate) joined: bool,
    pub(crate) points: Vec<Point>,
}

/// A point with the interval of its height and what hovering over it says; without that it is not marked.
#[derive(Debug, Clone)]
pub(crate) struct Point {
    pub(crate) x: f64,
    pub(crate) y: f64,
    pub(crate) low: f64,
    pub(crate) high: f64,
    pub(crate) label: String,
}

/// How an axis runs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Scale {
    Linear,
    /// By the powers of a base; values must be above zero.
    Powers(f64),
}

/// What a picture says of itself.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Captions<'a> {
    pub(crate) title: &'a str,
    pub(crate) x: (&'a str, Scale),
    pub(crate) y: (&'a str, Scale),
}

/// From data to pixels, along one axis.
struct Axis {
    low: f64,
    high: f64,
    from: f64,
    to: f64,
    step: f64,
    scale: Scale,
}

impl Axis {
    /// Covers `values` on `scale`.
    fn on(scale: Scale, values: impl Iterator<Item = f64>, from: f64, to: f64) -> Self {
        let Scale::Powers(base) = scale else { return Self::new(values, from, to) };
        let powers = values.map(|value| value.log(base)).filter(|power| power.is_finite());
        let (low, high) =
            powers.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), power| (low.min(power), high.max(power)));
        let (low, high) = if low.is_finite() { (low, high) } else { (0.0, 1.0) };
        // A power that rounding puts beside a whole one is that one.
        let (low, high) = ((low + 1e-9).floor(), (high - 1e-9).ceil());
        Self { low, high: high.max(low + 1.0), from, to, step: 1.0, scale }
    }

    /// Covers `values` with round ends and about six ticks.
    fn new(values: impl Iterator<Item = f64>, from: f64, to: f64) -> Self {
        let (low, high) = values
            .filter(|value| value.is_finite())
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)));
        let (low, high) = if low.is_finite() { (low, high) } else { (0.0, 1.0) };
        let rough = ((high - low) / 6.0).max(1e-9);
        let magnitude = 10f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].map(|factor| factor * magnitude).into_iter().find(|step| *step >= rough);
        let step = step.unwrap_or(10.0 * magnitude);
        let (low, high) = ((low / step).floor() * step, (high / step).ceil() * step);
        Self { low, high: high.max(low + step), from, to, step, scale: Scale::Linear }
    }

    fn at(&self, value: f64) -> f64 {
        let value = match self.scale {
            Scale::Linear => value,
            Scale::Powers(base) => value.log(base),
        };
        self.from + (value - self.low) / (self.high - self.low) * (self.to - self.from)
    }

    fn ticks(&self) -> impl Iterator<Item = f64> {
        let count = ((self.high - self.low) / self.step).round() as usize;
        (0..=count).map(|i| self.low + i as f64 * self.step).map(|tick| match self.scale {
            Scale::Linear => tick,
            Scale::Powers(base) => base.powf(tick),
        })
    }
}

/// The picture.
pub(crate) fn scatter(captions: &Captions<'_>, series: &[Series]) -> Result<String, std::fmt::Error> {
    draw(captions, series, false)
}

/// The same with a name beside every point: what its label says before the first colon. Points without one have none.
pub(crate) fn named_scatter(captions: &Captions<'_>, series: &[Series]) -> Result<String, std::fmt::Error> {
    draw(captions, series, true)
}

fn draw(captions: &Captions<'_>, series: &[Series], is_named: bool) -> Result<String, std::fmt::Error> {
    let Captions { title, x: (x_label, x_scale), y: (y_label, y_scale) } = *captions;
    let (left, top, right, bottom) = AREA;
    let points = || series.iter().flat_map(|series| &series.points);
    let x = Axis::on(x_scale, points().map(|point| point.x), left, right);
    let y = Axis::on(y_scale, points().flat_map(|point| [point.low, point.high]), bottom, top);
    let mut svg = String::new();
    writeln!(
        svg,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {} {}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"{left}\" y=\"28\" font-size=\"15\">{}</text>",
        SIZE.0,
        SIZE.1,
        escape(title)
    )?;
    for tick in x.ticks() {
        let at = x.at(tick);
        writeln!(
            svg,
            "<path d=\"M{at:.1} {top}V{bottom}\" stroke=\"#ddd\"/>\
             <text x=\"{at:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
            bottom + 18.0,
            short(tick)
        )?;
    }
    for tick in y.ticks() {
        let at = y.at(tick);
        writeln!(
            svg,
            "<path d=\"M{left} {at:.1}H{right}\" stroke=\"#ddd\"/>\
             <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            left - 8.0,
            at + 4.0,
            short(tick)
        )?;
    }
    let (middle_x, middle_y) = ((left + right) / 2.0, (top + bottom) / 2.0);
    writeln!(
        svg,
        "<text x=\"{middle_x}\" y=\"{}\" text-anchor=\"middle\">{}</text>\n\
         <text transform=\"translate(20 {middle_y}) rotate(-90)\" text-anchor=\"middle\">{}</text>",
        bottom + 40.0,
        escape(x_label),
        escape(y_label)
    )?;
    for (row, Series { name, colour, joined, points }) in series.iter().enumerate() {
        if *joined {
            let mut sorted: Vec<&Point> = points.iter().collect();
            sorted.sort_by(|a, b| a.x.total_cmp(&b.x));
            let line: Vec<String> =
                sorted.iter().map(|point| format!("{:.1},{:.1}", x.at(point.x), y.at(point.y))).collect();
            writeln!(svg, "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\"/>", line.join(" "))?;
        }
        for point in points {
            // A point without a label is only a bend of its line.
            if point.label.is_empty() {
                continue;
            }
            let at = x.at(point.x);
            writeln!(
                svg,
                "<path d=\"M{at:.1} {:.1}V{:.1}\" stroke=\"{colour}\" stroke-opacity=\"0.25\"/>\
                 <circle cx=\"{at:.1}\" cy=\"{:.1}\" r=\"4\" fill=\"{colour}\"><title>{}</title></circle>",
                y.at(point.low),
                y.at(point.high),
                y.at(point.y),
                escape(&point.label)
            )?;
        }
        let at = top + 10.0 + 20.0 * row as f64;
        writeln!(
            svg,
            "<circle cx=\"{}\" cy=\"{:.1}\" r=\"4\" fill=\"{colour}\"/><text x=\"{}\" y=\"{:.1}\">{}</text>",
            right + 20.0,
            at - 4.0,
            right + 32.0,
            at,
            escape(name)
        )?;
    }
    if is_named {
        let all = series.iter().flat_map(|series| series.points.iter().map(|point| (point, series.colour)));
        let places: Vec<Name<'_>> = all
            .filter_map(|(point, colour)| {
                let text = point.label.split(':').next().filter(|text| !text.is_empty())?;
                Some(Name { text, colour, at: (x.at(point.x), y.at(point.y)) })
            })
            .collect();
        names(&mut svg, &places)?;
    }
    svg.push_str("</svg>\n");
    Ok(svg)
}

/// What is written beside a point, whose place is in pixels.
struct Name<'a> {
    text: &'a str,
    colour: &'a str,
    at: (f64, f64),
}

/// Writes names where they lie on no other, as near to their points as that allows.
fn names(svg: &mut String, places: &[Name<'_>]) -> std::fmt::Result {
    /// Size of a letter, in pixels.
    const LETTER: (f64, f64) = (5.2, 10.0);
    let mut taken: Vec<(f64, f64, f64)> = Vec::new();
    for Name { text, colour, at } in places {
        let width = LETTER.0 * text.chars().count() as f64;
        // Names near the right end stand to the left of their points.
        let left = if at.0 + 7.0 + width > AREA.2 { at.0 - 7.0 - width } else { at.0 + 7.0 };
        let is_free = |top: f64| {
            let overlaps = |other: &(f64, f64, f64)| {
                (top - other.1).abs() < LETTER.1 && left < other.0 + other.2 && other.0 < left + width
            };
            !taken.iter().any(overlaps)
        };
        let mut tops = (0..60).flat_map(|step| [-5.0, 5.0].map(|way| at.1 + 3.5 + f64::from(step) * way));
        let top = tops.find(|top| is_free(*top)).unwrap_or(at.1 + 3.5);
        taken.push((left, top, width));
        writeln!(
            svg,
            "<text x=\"{left:.1}\" y=\"{top:.1}\" font-size=\"9\" fill=\"{colour}\">{}</text>",
            escape(text)
        )?;
    }
    Ok(())
}

/// Bars with their intervals: name, colour, figure.
pub(crate) fn bars(title: &str, y_label: &str, rows: &[(&str, &str, Estimate)]) -> Result<String, std::fmt::Error> {
    let (left, top, right, bottom) = AREA;
    let y = Axis::new(rows.iter().map(|row| row.2.high).chain([0.0]), bottom, top);
    let mut svg = String::new();
    writeln!(
        svg,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {} {}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"{left}\" y=\"28\" font-size=\"15\">{}</text>\n\
         <text transform=\"translate(14 {}) rotate(-90)\" text-anchor=\"middle\">{}</text>",
        SIZE.0,
        SIZE.1,
        escape(title),
        (top + bottom) / 2.0,
        escape(y_label)
    )?;
    for tick in y.ticks() {
        let at = y.at(tick);
        writeln!(
            svg,
            "<path d=\"M{left} {at:.1}H{right}\" stroke=\"#ddd\"/>\
             <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            left - 8.0,
            at + 4.0,
            short(tick)
        )?;
    }
    let step = (right - left) / rows.len().max(1) as f64;
    for (index, (name, colour, figure)) in rows.iter().enumerate() {
        let middle = left + step * (index as f64 + 0.5);
        let width = step.min(120.0) * 0.6;
        // Names of narrow bars take turns in two lines.
        let line = if step < NARROW && index % 2 == 1 { 32.0 } else { 18.0 };
        writeln!(
            svg,
            "<rect x=\"{:.1}\" y=\"{:.1}\" width=\"{width:.1}\" height=\"{:.1}\" fill=\"{colour}\" fill-opacity=\"0.8\">\
             <title>{}: {:.6} ({:.6} to {:.6})</title></rect>\
             <path d=\"M{middle:.1} {:.1}V{:.1}\" stroke=\"black\"/>\
             <text x=\"{middle:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
            middle - width / 2.0,
            y.at(figure.value),
            bottom - y.at(figure.value),
            escape(name),
            figure.value,
            figure.low,
            figure.high,
            y.at(figure.low),
            y.at(figure.high),
            bottom + line,
            escape(name)
        )?;
    }
    svg.push_str("</svg>\n");
    Ok(svg)
}

/// A tick without needless digits.
fn short(value: f64) -> String {
    if value != 0.0 && value.abs() < 0.01 {
        return format!("{value:.0e}");
    }
    let text = format!("{value:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_have_round_ends_and_points_lie_inside() {
        let axis = Axis::new([1.03, 9.4].into_iter(), 0.0, 100.0);
        assert_eq!((axis.low, axis.high, axis.step), (0.0, 10.0, 2.0));
        assert_eq!(axis.ticks().collect::<Vec<_>>(), [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]);
        assert_eq!(axis.at(5.0), 50.0);
        let flat = Axis::new([3.0].into_iter(), 0.0, 100.0);
        assert!((0.0..=100.0).contains(&flat.at(3.0)));
        assert!(Axis::new(std::iter::empty(), 0.0, 1.0).at(0.5).is_finite());
    }

    #[test]
    fn axes_of_powers_end_at_powers() {
        let axis = Axis::on(Scale::Powers(2.0), [128.0, 1000.0].into_iter(), 0.0, 90.0);
        assert_eq!(axis.ticks().collect::<Vec<_>>(), [128.0, 256.0, 512.0, 1024.0]);
        assert!((axis.at(256.0) - 30.0).abs() < 1e-9);
        let axis = Axis::on(Scale::Powers(10.0), [0.001].into_iter(), 0.0, 1.0);
        assert_eq!(axis.ticks().count(), 2);
        assert_eq!(short(0.001), "1e-3");
        assert!(Axis::on(Scale::Powers(10.0), std::iter::empty(), 0.0, 1.0).at(2.0).is_finite());
    }

    #[test]
    fn every_point_is_drawn() {
        let point = Point { x: 1.0, y: 90.0, low: 85.0, high: 95.0, label: "a < b".into() };
        let series = Series { name: "s".into(), colour: "red", joined: true, points: vec![point.clone(), point] };
        let svg =
            scatter(&Captions { title: "t", x: ("x", Scale::Linear), y: ("y", Scale::Linear) }, &[series]).unwrap();
        assert_eq!(svg.matches("<title>a &lt; b</title>").count(), 2);
        assert_eq!(svg.matches("<polyline").count(), 1);
        assert!(!svg.contains(">a &lt; b</text>"));
    }

    #[test]
    fn names_do_not_lie_on_each_other() {
        let point = |label: &str| Point { x: 1.0, y: 90.0, low: 85.0, high: 95.0, label: label.into() };
        let points = vec![point("first: 1"), point("second: 2"), point("")];
        let series = Series { name: "s".into(), colour: "red", joined: false, points };
        let captions = Captions { title: "t", x: ("x", Scale::Linear), y: ("y", Scale::Linear) };
        let svg = named_scatter(&captions, &[series]).unwrap();
        let height = |name: &str| {
            let line = svg.lines().find(|line| line.ends_with(&format!(">{name}</text>"))).unwrap();
            line.split("y=\"").nth(1).unwrap().split('"').next().unwrap().parse::<f64>().unwrap()
        };
        assert!((height("first") - height("second")).abs() >= 10.0);
        assert_eq!(svg.matches("font-size=\"9\"").count(), 2, "a point without a label has no name");
    }
}
