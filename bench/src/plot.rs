//! A scatter plot as SVG, by hand: a few axes and circles need no library.

use std::fmt::Write;

/// Size of the picture and of the area inside the axes, in pixels.
const SIZE: (f64, f64) = (820.0, 500.0);
const AREA: (f64, f64, f64, f64) = (70.0, 50.0, 560.0, 450.0);

/// Points of one colour.
#[derive(Debug, Clone)]
pub(super) struct Series {
    pub(super) name: String,
    pub(super) colour: &'static str,
    /// Whether the points are joined, in the order of `x`.
    pub(super) joined: bool,
    pub(super) points: Vec<Point>,
}

/// A point with the interval of its height and what hovering over it says.
#[derive(Debug, Clone)]
pub(super) struct Point {
    pub(super) x: f64,
    pub(super) y: f64,
    pub(super) low: f64,
    pub(super) high: f64,
    pub(super) label: String,
}

/// From data to pixels, along one axis.
struct Axis {
    low: f64,
    high: f64,
    from: f64,
    to: f64,
    step: f64,
}

impl Axis {
    /// Covers `values` with round ends and about six ticks.
    fn new(values: impl Iterator<Item = f64>, from: f64, to: f64) -> Self {
        let (low, high) = values
            .filter(|value| value.is_finite())
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)));
        let (low, high) = if low.is_finite() { (low, high) } else { (0.0, 1.0) };
        let rough = ((high - low) / 6.0).max(1e-6);
        let magnitude = 10f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].map(|factor| factor * magnitude).into_iter().find(|step| *step >= rough);
        let step = step.unwrap_or(10.0 * magnitude);
        let (low, high) = ((low / step).floor() * step, (high / step).ceil() * step);
        Self { low, high: high.max(low + step), from, to, step }
    }

    fn at(&self, value: f64) -> f64 {
        self.from + (value - self.low) / (self.high - self.low) * (self.to - self.from)
    }

    fn ticks(&self) -> impl Iterator<Item = f64> {
        let count = ((self.high - self.low) / self.step).round() as usize;
        (0..=count).map(|i| self.low + i as f64 * self.step)
    }
}

/// The picture.
pub(super) fn scatter(title: &str, x_label: &str, y_label: &str, series: &[Series]) -> Result<String, std::fmt::Error> {
    let (left, top, right, bottom) = AREA;
    let points = || series.iter().flat_map(|series| &series.points);
    let x = Axis::new(points().map(|point| point.x), left, right);
    let y = Axis::new(points().flat_map(|point| [point.low, point.high]), bottom, top);
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
    svg.push_str("</svg>\n");
    Ok(svg)
}

/// A tick without needless digits.
fn short(value: f64) -> String {
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
    fn every_point_is_drawn() {
        let point = Point { x: 1.0, y: 90.0, low: 85.0, high: 95.0, label: "a < b".into() };
        let series = Series { name: "s".into(), colour: "red", joined: true, points: vec![point.clone(), point] };
        let svg = scatter("t", "x", "y", &[series]).unwrap();
        assert_eq!(svg.matches("<title>a &lt; b</title>").count(), 2);
        assert_eq!(svg.matches("<polyline").count(), 1);
    }
}
