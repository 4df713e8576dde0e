//! The run as a table, as a picture, and in words.

use std::fmt::Write;

use super::{case::Cell, limits::Limits, suite::Results};
use crate::{
    plot,
    stats::{Estimate, Summary},
};

const COLUMNS: &str = "\
| op | shape | rows | weights, data | us (min-max) | MB | Mop | GB/s | Gop/s | limit | share | candle's op | us | x candle (min-max) | error |
|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|
";
const COLOUR: &str = "#1f77b4";

impl Cell {
    /// Share of the limit that a call of median time reaches.
    pub(super) fn share(&self) -> Option<f64> {
        Summary::of(&self.ours_s).map(|ours| self.bound_s / ours.median)
    }

    /// candle's time over ours, round by round.
    pub(super) fn ratio(&self) -> Option<Summary> {
        let ratios: Vec<f64> =
            self.candle.as_ref()?.seconds.iter().zip(&self.ours_s).map(|(candle, ours)| candle / ours).collect();
        Summary::of(&ratios)
    }

    fn line(&self) -> Option<String> {
        let ours = Summary::of(&self.ours_s)?;
        let label = &self.label;
        let op = [label.op, &label.what].join(" ");
        let data = if label.cold { "cold" } else { "warm" };
        let micros = |seconds: f64| digits(seconds * 1e6);
        let (candle, candle_us, ratio) = match (&self.candle, self.ratio()) {
            (Some(candle), Some(ratio)) => (
                candle.op,
                Summary::of(&candle.seconds).map_or("-".into(), |theirs| micros(theirs.median)),
                format!("{:.2} ({:.2}-{:.2})", ratio.median, ratio.min, ratio.max),
            ),
            _ => ("no such op", "-".into(), "-".into()),
        };
        Some(format!(
            "| {} | {} | {} | {}, {data} | {} ({}-{}) | {} | {} | {} | {} | {} | {:.0} % | {candle} | {candle_us} | {ratio} | {:.0e} |\n",
            op.trim_end(),
            label.shape,
            label.rows,
            label.format,
            micros(ours.median),
            micros(ours.min),
            micros(ours.max),
            digits(self.counts.bytes as f64 / 1e6),
            digits(self.counts.operations as f64 / 1e6),
            digits(self.counts.bytes as f64 / ours.median / 1e9),
            digits(self.counts.operations as f64 / ours.median / 1e9),
            self.bound_by,
            100.0 * self.share()?,
            self.error,
        ))
    }
}

/// Three significant digits.
fn digits(value: f64) -> String {
    let places = match value.abs() {
        size if size >= 100.0 => 0,
        size if size >= 10.0 => 1,
        size if size >= 1.0 => 2,
        _ => 3,
    };
    format!("{value:.places$}")
}

/// `summary.md`
pub(super) fn summary(results: &Results, limits: &Limits) -> Result<String, std::fmt::Error> {
    let mut text = String::from("# Kernels on the processor\n\n");
    writeln!(
        text,
        "{} threads, for candle as for our kernels. This machine reached in the same run:\n",
        limits.threads
    )?;
    text.push_str("| limit | array | reads GB/s | copies GB/s |\n|---|---|---|---|\n");
    for level in &limits.levels {
        let (read, copy) = (level.read_bytes_per_s / 1e9, level.copy_bytes_per_s / 1e9);
        writeln!(
            text,
            "| {} | {} MiB | {} | {} |",
            level.name,
            digits(level.array_bytes as f64 / f64::from(1 << 20)),
            digits(read),
            digits(copy)
        )?;
    }
    writeln!(
        text,
        "\nProducts from registers, in Gop/s: f32 {}, int8 {}, int16 {} ({}).\n",
        digits(limits.f32_per_s / 1e9),
        digits(limits.int8_per_s / 1e9),
        digits(limits.int16_per_s / 1e9),
        kernels::arch::CpuLevel::current()
    )?;
    text.push_str(COLUMNS);
    results.cells.iter().filter_map(Cell::line).for_each(|line| text.push_str(&line));
    text.push_str(
        "\nx candle: candle's time over ours within a round; above 1 ours is faster. Error: largest difference from \
         candle's output, or from a reference in f64, relative to the root mean square. `bench/docs/kernels.md` says how \
         bytes, operations and limits are counted.\n",
    );
    if !results.notes.is_empty() {
        text.push_str("\nLeft out:\n\n");
        results.notes.iter().try_for_each(|note| writeln!(text, "- {note}"))?;
    }
    Ok(text)
}

/// The share of the limit, by op: median and range of its cells.
pub(super) fn picture(results: &Results) -> Result<String, std::fmt::Error> {
    let mut ops: Vec<(&str, Vec<f64>)> = Vec::new();
    for cell in &results.cells {
        let Some(share) = cell.share() else { continue };
        match ops.iter_mut().find(|(op, _)| *op == cell.label.op) {
            Some((_, shares)) => shares.push(100.0 * share),
            None => ops.push((cell.label.op, vec![100.0 * share])),
        }
    }
    let rows: Vec<_> =
        ops.iter().filter_map(|(op, shares)| Some((*op, COLOUR, Estimate::of_rounds(shares)?))).collect();
    plot::bars("Kernels: share of the limit, median and range over shapes and rows", "percent of the limit", &rows)
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            case::{Candle, Label},
            counts::Counts,
            limits::tests::round_limits,
        },
        *,
    };

    fn cell(candle: Option<Candle>) -> Cell {
        Cell {
            label: Label {
                op: "linear",
                shape: "tiny",
                what: "head".into(),
                rows: 8,
                format: "q8_0 x int8".into(),
                cold: true,
            },
            counts: Counts { bytes: 4_000_000, operations: 20_000_000 },
            num_copies: 3,
            ours_s: vec![0.002, 0.001, 0.004],
            candle,
            error: 0.012,
            tolerance: 0.06,
            bound_s: 0.0005,
            bound_by: "memory",
        }
    }

    #[test]
    fn ratios_are_of_one_round_and_shares_of_the_median() {
        let cell = cell(Some(Candle { op: "theirs", seconds: vec![0.002, 0.003, 0.002] }));
        let ratio = cell.ratio().unwrap();
        assert_eq!((ratio.min, ratio.median, ratio.max), (0.5, 1.0, 3.0));
        assert_eq!(cell.share(), Some(0.25));
        assert_eq!(
            cell.line().unwrap(),
            "| linear head | tiny | 8 | q8_0 x int8, cold | 2000 (1000-4000) | 4.00 | 20.0 | 2.00 | 10.0 | memory | 25 % \
             | theirs | 2000 | 1.00 (0.50-3.00) | 1e-2 |\n"
        );
    }

    #[test]
    fn what_candle_has_not_is_said_in_words() {
        let results = Results { cells: vec![cell(None)], notes: vec!["nothing fits".into()] };
        let text = summary(&results, &round_limits()).unwrap();
        assert!(text.contains("| no such op | - | - |") && text.contains("- nothing fits"), "{text}");
        let line = |start| text.lines().find(|line: &&str| line.starts_with(start)).unwrap().matches('|').count();
        assert_eq!(line("| op"), line("| linear"));
        assert_eq!(picture(&results).unwrap().matches("<title>linear: 25").count(), 1);
    }
}
