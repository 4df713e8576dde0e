//! Plots of a run and of a sweep.

use std::{fs, path::Path};

use anyhow::Context;

use super::{level::Measured, sweep};
use crate::{
    load::tally::Bin,
    plot::{self, Captions, Point, Scale, Series},
};

const FIRST: &str = "#1f77b4";
const SECOND: &str = "#d62728";
const THIRD: &str = "#2ca02c";

fn write(folder: &Path, name: &str, captions: &Captions<'_>, series: &[Series]) -> anyhow::Result<()> {
    let path = folder.join(name);
    fs::write(&path, plot::scatter(captions, series)?).with_context(|| format!("cannot write {}", path.display()))
}

/// A line without marks, but for labelled points.
fn line(name: &str, colour: &'static str, points: impl IntoIterator<Item = (f64, f64, String)>) -> Series {
    let point = |(x, y, label)| Point { x, y, low: y, high: y, label };
    Series { name: name.into(), colour, joined: true, points: points.into_iter().map(point).collect() }
}

/// Makes the axis of a line begin at 0.
fn from_zero(mut line: Series) -> Series {
    // A bend of the line that is already there, and whose interval reaches down.
    let bend = line.points.first().map(|first| Point { low: 0.0, label: String::new(), ..first.clone() });
    line.points.extend(bend);
    line
}

/// `latency.svg` and the timelines.
pub(super) fn of_level(folder: &Path, measured: &Measured) -> anyhow::Result<()> {
    let title = format!("Latency, {}", measured.level);
    let curve = |of: fn(&(f64, f64, f64)) -> f64| {
        measured.curve.iter().map(move |row| (of(row), 100.0 * row.0, String::new())).collect::<Vec<_>>()
    };
    let mut series = Vec::new();
    if measured.summary.ttft_ms.is_some() {
        series.push(line("time to first token", FIRST, curve(|row| row.1)));
    }
    if measured.summary.e2e_ms.is_some() {
        series.push(line("end to end", SECOND, curve(|row| row.2)));
    }
    let captions = Captions {
        title: &title,
        x: ("milliseconds", Scale::Powers(10.0)),
        y: ("requests that took no longer, %", Scale::Linear),
    };
    write(folder, "latency.svg", &captions, &series)?;
    timelines(folder, measured)
}

fn timelines(folder: &Path, measured: &Measured) -> anyhow::Result<()> {
    let timeline = &measured.summary.timeline;
    let at = |index: usize| (index as f64 + 0.5) * timeline.bin_s;
    let bins = |of: &dyn Fn(&Bin) -> Option<f64>| {
        let value = |(index, bin): (usize, &Bin)| of(bin).map(|value| (at(index), value, String::new()));
        timeline.bins.iter().enumerate().filter_map(value).collect::<Vec<_>>()
    };
    let rate = |count: f64| Some(count / timeline.bin_s);
    let tokens = bins(&|bin| rate(bin.tokens));
    let title = format!("Throughput over time, {}", measured.level);
    let captions = Captions { title: &title, x: ("seconds", Scale::Linear), y: ("output tokens/s", Scale::Linear) };
    write(folder, "timeline.svg", &captions, &[from_zero(line("tokens/s", FIRST, tokens))])?;
    let mut in_flight = 0.0;
    let in_flight: Vec<_> = timeline
        .bins
        .iter()
        .enumerate()
        .map(|(index, bin)| {
            in_flight += bin.sent as f64 - (bin.finished + bin.failed) as f64;
            (at(index), in_flight, String::new())
        })
        .collect();
    let series = [
        line(
            "mean of the answers, ms",
            FIRST,
            bins(&|bin| (bin.finished > 0).then(|| bin.e2e_sum_ms / bin.finished as f64)),
        ),
        line("the longest, ms", SECOND, bins(&|bin| (bin.finished > 0).then_some(bin.e2e_max_ms))),
        line("requests on their way", THIRD, in_flight),
    ];
    let title = format!("End-to-end time over time, {}", measured.level);
    let captions = Captions { title: &title, x: ("seconds", Scale::Linear), y: ("ms, requests", Scale::Linear) };
    write(folder, "timeline-latency.svg", &captions, &series)
}

/// `sweep.svg` and `sweep-latency.svg`.
pub(super) fn of_sweep(folder: &Path, levels: &[Measured]) -> anyhow::Result<()> {
    let by_tokens = sweep::by_tokens(levels);
    let unit = if by_tokens { "output tokens/s" } else { "requests/s" };
    let points: Vec<_> = levels.iter().filter_map(|level| Some((level, level.point(by_tokens)?))).collect();
    let is_rate = levels.first().is_some_and(|level| level.summary.offered.is_some());
    let load = if is_rate { "requests/s offered" } else { "clients" };
    let throughput = points.iter().map(|(level, point)| {
        (point.strength, point.throughput, format!("{}: {:.1} {unit}", level.level, point.throughput))
    });
    let captions =
        Captions { title: "Throughput against load", x: (load, Scale::Powers(2.0)), y: (unit, Scale::Linear) };
    write(folder, "sweep.svg", &captions, &[from_zero(line(unit, FIRST, throughput))])?;
    let of = |name: &str, colour, time: fn(&Measured) -> Option<f64>| {
        let points = points.iter().filter_map(|(level, point)| {
            let millis = time(level)?;
            Some((point.strength, millis, format!("{}: {millis:.1} ms", level.level)))
        });
        line(name, colour, points)
    };
    let series = [
        of("end to end, p99", SECOND, |level| Some(level.summary.e2e_ms?.p99)),
        of("end to end, p50", THIRD, |level| Some(level.summary.e2e_ms?.p50)),
        of("first token, p99", FIRST, |level| Some(level.summary.ttft_ms?.p99)),
    ];
    let captions = Captions {
        title: "Latency against load",
        x: (load, Scale::Powers(2.0)),
        y: ("milliseconds", Scale::Powers(10.0)),
    };
    write(folder, "sweep-latency.svg", &captions, &series)
}
