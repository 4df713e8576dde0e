//! Floors, growth of memory, and what is written.

use std::{fs, path::Path};

use serde::Serialize;

use super::{Cell, LlaArgs, Solver, contenders::Contender, inputs::Shape, meter::Limits};
use crate::{
    hardware::Hardware,
    plot::{Captions, Point, Scale, Series, scatter},
    stats::Summary,
};

/// Largest exponent of the growth of memory that counts as linear: doubling a prompt may take 2.14 times the memory. The
/// quadratic growth of scores has 2.
pub(super) const MOST_GROWTH: f64 = 1.1;
/// Shortest prompt that takes part: below, buffers of a fixed size are most of the memory.
const SHORTEST_OF_GROWTH: usize = 1024;
/// Length at which the floors hold.
const FLOOR_SIZE: usize = 2048;
/// Times that the CPU path must be faster than the dense form.
const FLOOR_SPEED: f64 = 5.0;
/// Share of the dense form's memory that the CPU path may take.
const FLOOR_MEMORY: f64 = 1.0 / 20.0;
const MIB: f64 = (1 << 20) as f64;

/// What the summary needs.
#[derive(Debug)]
pub(super) struct Facts<'a> {
    pub(super) args: &'a LlaArgs,
    pub(super) hardware: &'a Hardware,
    pub(super) limits: &'a Limits,
    pub(super) cells: &'a [Cell],
    pub(super) growths: &'a [Growth],
    pub(super) left_out: &'a [(Shape, f32)],
    pub(super) seconds: f64,
}

/// Memory of the CPU path over the length of a prompt.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Growth {
    pub(super) dim: usize,
    /// Of the best power of the length.
    pub(super) exponent: f64,
    /// The best line: bytes, and bytes for each position.
    pub(super) line: (f64, f64),
    /// Largest difference from the line, relative to it.
    pub(super) off_line: f64,
    pub(super) num_sizes: usize,
}

impl Growth {
    pub(super) fn is_linear(&self) -> bool {
        self.exponent <= MOST_GROWTH
    }

    /// `None` with fewer than two sizes. `points` are length and bytes.
    fn of(dim: usize, points: &[(f64, f64)]) -> Option<Self> {
        if points.len() < 2 {
            return None;
        }
        let logs: Vec<_> = points.iter().map(|(n, bytes)| (n.ln(), bytes.max(1.0).ln())).collect();
        let line = fit(points);
        let off = points.iter().map(|(n, bytes)| (bytes / (line.0 + line.1 * n) - 1.0).abs());
        Some(Self { dim, exponent: fit(&logs).1, line, off_line: off.fold(0.0, f64::max), num_sizes: points.len() })
    }
}

/// Least squares: value at zero, and slope.
fn fit(points: &[(f64, f64)]) -> (f64, f64) {
    let count = points.len() as f64;
    let (x, y) = points.iter().fold((0.0, 0.0), |(x, y), point| (x + point.0 / count, y + point.1 / count));
    let above: f64 = points.iter().map(|point| (point.0 - x) * (point.1 - y)).sum();
    let below: f64 = points.iter().map(|point| (point.0 - x).powi(2)).sum();
    (y - above / below * x, above / below)
}

/// For each dimension whose memory was measured at two lengths at least.
pub(super) fn growths(cells: &[Cell]) -> Vec<Growth> {
    let of_dim = |dim: usize| {
        let cells = cells.iter().filter(|cell| cell.is_prefill() && cell.shape.dim == dim);
        let long = cells.filter(|cell| cell.shape.context >= SHORTEST_OF_GROWTH);
        let points: Vec<_> =
            long.filter_map(|cell| Some((cell.shape.context as f64, peak(cell, Contender::Cpu)?))).collect();
        Growth::of(dim, &points)
    };
    dims(cells).into_iter().filter_map(of_dim).collect()
}

fn dims(cells: &[Cell]) -> Vec<usize> {
    let mut dims: Vec<usize> = cells.iter().map(|cell| cell.shape.dim).collect();
    dims.sort_unstable();
    dims.dedup();
    dims
}

fn peak(cell: &Cell, contender: Contender) -> Option<f64> {
    Some(cell.of(contender)?.peak_bytes? as f64)
}

fn walls(cell: &Cell, contender: Contender) -> Option<Vec<f64>> {
    Some(cell.of(contender)?.runs.iter().map(|run| run.wall).collect())
}

fn processors(cell: &Cell, contender: Contender) -> Option<Summary> {
    Summary::of(&cell.of(contender)?.runs.iter().map(|run| run.processor).collect::<Vec<_>>())
}

/// Time on the clock of `slow` over that of `fast`, pair by pair.
fn ratio(cell: &Cell, slow: Contender, fast: Contender) -> Option<Summary> {
    let pairs = walls(cell, slow)?.into_iter().zip(walls(cell, fast)?);
    Summary::of(&pairs.map(|(slow, fast)| slow / fast).collect::<Vec<_>>())
}

/// Processor time of `slow` over that of `fast`, medians.
fn processor_ratio(cell: &Cell, slow: Contender, fast: Contender) -> Option<f64> {
    Some(processors(cell, slow)?.median / processors(cell, fast)?.median)
}

/// Time that the machine would need at the least, over the processor time of the CPU path.
fn share(cell: &Cell, limits: &Limits) -> Option<f64> {
    let least = (cell.operations / limits.flops_per_processor).max(cell.bytes / limits.bytes_per_processor);
    Some(least / processors(cell, Contender::Cpu)?.median)
}

fn or_dash(text: Option<String>) -> String {
    text.unwrap_or_else(|| "-".into())
}

/// Median and range, in milliseconds.
fn millis(summary: Option<Summary>) -> String {
    let scaled = |s: Summary| Summary { min: s.min * 1e3, median: s.median * 1e3, max: s.max * 1e3, ..s };
    times(summary.map(scaled))
}

/// Three digits that count.
fn digits(value: f64) -> String {
    let decimals =
        if value >= 100.0 || value == 0.0 { 0 } else { (2.0 - value.abs().log10().floor()).max(0.0) as usize };
    format!("{value:.decimals$}")
}

/// Median and range; one run has no range.
fn times(summary: Option<Summary>) -> String {
    or_dash(summary.map(|s| match s.runs {
        1 => format!("{} (one run)", digits(s.median)),
        _ => format!("{} ({} to {})", digits(s.median), digits(s.min), digits(s.max)),
    }))
}

/// The whole summary as Markdown.
pub(super) fn summary(facts: &Facts<'_>) -> String {
    let Facts { args, hardware, limits, cells, growths, left_out, seconds } = *facts;
    let command = crate::report::command();
    let mut text = format!(
        "# Local linear attention on the CPU\n\n{command}\n\ncommit {}, {} ({} cores, {}), {} threads, \
         {seconds:.0} s, load of the machine at the end {}\n\n",
        hardware.commit.as_deref().unwrap_or("unknown"),
        hardware.cpu,
        hardware.cores,
        hardware.features.join(" "),
        rayon::current_num_threads(),
        load(),
    );
    text += &floors(cells);
    text += "\n## Growth of memory\n\n";
    for growth in growths {
        text += &format!(
            "- dim {}: n^{:.2} from n = {SHORTEST_OF_GROWTH} on ({} sizes), bound n^{MOST_GROWTH}: {}. Line: {:.2} MiB + {:.0} \
             bytes for each position, at most {:.0} % off.\n",
            growth.dim,
            growth.exponent,
            growth.num_sizes,
            if growth.is_linear() { "met" } else { "**missed**" },
            growth.line.0 / MIB,
            growth.line.1,
            growth.off_line * 100.0,
        );
    }
    if growths.is_empty() {
        text += "Not measured: fewer than two sizes.\n";
    }
    text += &memory(cells);
    text += &prefill(cells, limits, args);
    text += &dense(cells);
    text += &decode(cells, limits, args);
    text += &peers(cells);
    text += &notes(facts);
    for (shape, ridge) in left_out {
        text += &format!(
            "- Left out, the time was up: {} rows on {}, dim {}, ridge {ridge}.\n",
            shape.rows, shape.context, shape.dim
        );
    }
    text
}

fn load() -> String {
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    load.split_whitespace().next().unwrap_or("unknown").to_owned()
}

fn verdict(met: bool) -> &'static str {
    if met { "met" } else { "**missed**" }
}

fn floors(cells: &[Cell]) -> String {
    let mut text =
        format!("| floor at n = {FLOOR_SIZE} | dim | ridge | measured | bound | |\n|---|---|---|---|---|---|\n");
    let mut any = false;
    for cell in cells.iter().filter(|cell| cell.is_prefill() && cell.shape.context == FLOOR_SIZE) {
        let (dim, ridge) = (cell.shape.dim, cell.ridge);
        if let Some(speed) = ratio(cell, Contender::Dense, Contender::Cpu) {
            any = true;
            text += &format!(
                "| time of dense f32 over the CPU path | {dim} | {ridge} | {} | {FLOOR_SPEED} | {} |\n",
                times(Some(speed)),
                verdict(speed.median >= FLOOR_SPEED)
            );
        }
        if let (Some(ours), Some(dense)) = (peak(cell, Contender::Cpu), peak(cell, Contender::Dense)) {
            text += &format!(
                "| memory of the CPU path over dense f32 | {dim} | {ridge} | 1/{:.0} | 1/{:.0} | {} |\n",
                dense / ours,
                1.0 / FLOOR_MEMORY,
                verdict(ours <= FLOOR_MEMORY * dense)
            );
        }
    }
    if any { text } else { format!("No floor was measured: they hold at n = {FLOOR_SIZE}.\n") }
}

fn memory(cells: &[Cell]) -> String {
    let mut text =
        "\n## Memory of a prefill, MiB beside the inputs\n\n| n | dim | ridge | CPU path | softmax attention | dense \
                    f32 | dense over CPU path |\n|---|---|---|---|---|---|---|\n"
            .to_owned();
    for cell in cells {
        let Some(ours) = peak(cell, Contender::Cpu) else { continue };
        let other = |contender| or_dash(peak(cell, contender).map(|bytes| digits(bytes / MIB)));
        text += &format!(
            "| {} | {} | {} | {} | {} | {} | {} |\n",
            cell.shape.context,
            cell.shape.dim,
            cell.ridge,
            digits(ours / MIB),
            other(Contender::Softmax),
            other(Contender::Dense),
            or_dash(peak(cell, Contender::Dense).map(|dense| digits(dense / ours))),
        );
    }
    text
}

/// Columns that prefill and decoding share.
fn columns(cell: &Cell, limits: &Limits) -> String {
    let solver = &cell.solver;
    let processor = processors(cell, Contender::Cpu);
    format!(
        "{} | {} | {} | {} | {} | {} | {:.1} / {} | {} / {} / {} | {} | {}",
        millis(walls(cell, Contender::Cpu).and_then(|walls| Summary::of(&walls))),
        or_dash(processor.map(|summary| digits(summary.median * 1e3))),
        times(ratio(cell, Contender::Cpu, Contender::Softmax)),
        or_dash(processor_ratio(cell, Contender::Cpu, Contender::Softmax).map(digits)),
        or_dash(processor.map(|summary| digits(cell.operations / summary.median / 1e9))),
        or_dash(share(cell, limits).map(|share| format!("{:.0} %", share * 100.0))),
        solver.mean_steps,
        solver.max_steps,
        solver.num_capped,
        solver.num_frozen,
        solver.num_fallbacks,
        or_dash(cell.of(Contender::Cpu).and_then(|measured| measured.error).map(|error| format!("{error:.1e}"))),
        cell.reference_rows,
    )
}

const COLUMNS: &str = "CPU path, ms | processor ms | x softmax attention | the same in processor time | GFLOP/s of \
                       processor | share of the limit | steps mean / max | capped / frozen / fallback | error | rows of \
                       the reference |";

fn prefill(cells: &[Cell], limits: &Limits, args: &LlaArgs) -> String {
    let mut text = format!(
        "\n## Prefill, {} heads, {} key-value heads\n\n| n | dim | ridge | {COLUMNS}\n|{}\n",
        args.heads,
        args.kv_heads,
        "---|".repeat(13)
    );
    for cell in cells.iter().filter(|cell| cell.is_prefill()) {
        let Shape { dim, context, .. } = cell.shape;
        text += &format!("| {context} | {dim} | {} | {} |\n", cell.ridge, columns(cell, limits));
    }
    text
}

fn dense(cells: &[Cell]) -> String {
    let mut text =
        "\n## Dense f32\n\n| n | dim | ridge | ms | time over the CPU path | the same in processor time | error \
                    |\n|---|---|---|---|---|---|---|\n"
            .to_owned();
    for cell in cells {
        let Some(measured) = cell.of(Contender::Dense) else { continue };
        text += &format!(
            "| {} | {} | {} | {} | {} | {} | {} |\n",
            cell.shape.context,
            cell.shape.dim,
            cell.ridge,
            millis(walls(cell, Contender::Dense).and_then(|walls| Summary::of(&walls))),
            times(ratio(cell, Contender::Dense, Contender::Cpu)),
            or_dash(processor_ratio(cell, Contender::Dense, Contender::Cpu).map(digits)),
            or_dash(measured.error.map(|error| format!("{error:.1e}"))),
        );
    }
    text
}

fn decode(cells: &[Cell], limits: &Limits, args: &LlaArgs) -> String {
    let mut text = format!(
        "\n## Decoding, {} heads, {} key-value heads\n\n| context | new rows | dim | ridge | {COLUMNS}\n|{}\n",
        args.decode_heads,
        args.decode_kv_heads,
        "---|".repeat(14)
    );
    for cell in cells.iter().filter(|cell| !cell.is_prefill()) {
        let Shape { dim, context, rows, .. } = cell.shape;
        text += &format!("| {context} | {rows} | {dim} | {} | {} |\n", cell.ridge, columns(cell, limits));
    }
    text
}

fn peers(cells: &[Cell]) -> String {
    if cells.iter().all(|cell| cell.peers.is_empty()) {
        return "\n## PyTorch\n\nNot measured: no `--torch`.\n".into();
    }
    let mut text =
        "\n## PyTorch, after the rounds of a cell\n\n| n | dim | ridge | form | ms | time over the CPU path | MiB | \
                    error |\n|---|---|---|---|---|---|---|---|\n"
            .to_owned();
    for cell in cells {
        let ours = walls(cell, Contender::Cpu).and_then(|walls| Summary::of(&walls));
        for peer in &cell.peers {
            let Shape { context, dim, .. } = cell.shape;
            text += &format!("| {context} | {dim} | {} | {} | ", cell.ridge, peer.name);
            let summary = Summary::of(&peer.seconds);
            text += &match &peer.absent {
                Some(why) => format!("{} | - | - | - |\n", why.replace(['|', '\n'], " ")),
                None => format!(
                    "{} | {} | {} | {} |\n",
                    millis(summary),
                    or_dash(summary.zip(ours).map(|(theirs, ours)| digits(theirs.median / ours.median))),
                    or_dash(peer.peak_bytes.map(|bytes| digits(bytes as f64 / MIB))),
                    or_dash(peer.error.map(|error| format!("{error:.1e}"))),
                ),
            };
        }
    }
    text
}

fn notes(facts: &Facts<'_>) -> String {
    let Facts { args, limits, .. } = *facts;
    format!(
        "\n## How\n\n\
         - Seed {}. Queries and keys Gaussian with unit root mean square, values Gaussian, caches in pages of {} positions. A \
         prefill is causal over the whole prompt; decoding is the last rows of a context.\n\
         - Up to {} rounds a cell; in each, every contender runs once, one after the other. A cell that needs more than {} s \
         for a round has one. Times are medians (range), ratios are taken round by round. The kernel stops at a residual \
         of 1e-5.\n\
         - Processor time is that of all threads. Other programs on the machine stretch the time on the clock more than it.\n\
         - Error: the largest over the queries of the reference of |o - ref| / max(|ref|, 0.05 max |ref|). The reference is f64 \
         with a dense Cholesky solve for each query, on evenly spread rows where all would take too long.\n\
         - Dense f32 is the query-centred form with the tensor of differences [n, n, dim], as plain code writes it, with \
         candle's products and its rows on all cores; no longer than {} GiB allow. Its error is that of the form.\n\
         - Memory is the growth of the resident memory (VmHWM after a reset, less VmRSS) during one run in a fresh process of \
         this program, output included, inputs not; with the middle ridge. The allocator takes no pages of 2 MiB there \
         and gives memory back at once. Runs differ by some hundred KiB.\n\
         - Operations of the kernel: 2 dim (5 + 2 steps) for each query and visible position. Bytes: everything read or \
         written once. Limit: {:.0} GFLOP/s on the clock and {:.0} of processor time in products of matrices by candle, \
         {:.1} GB/s and {:.1} in copies of 64 MiB a thread, each the best of many, before the first cell: what this machine reached then, not what \
         its data sheet says.\n\
         - {}\n",
        args.seed,
        super::inputs::PAGE_LEN,
        args.rounds,
        args.long_s,
        args.dense_gib,
        limits.flops / 1e9,
        limits.flops_per_processor / 1e9,
        limits.bytes / 1e9,
        limits.bytes_per_processor / 1e9,
        match args.torch.is_some() && args.torch_device == "cuda" {
            true => "PyTorch ran on a GPU, everything else on the CPU.",
            false => "No GPU was measured.",
        },
    )
}

const COLOURS: [&str; 8] = ["#1b9e77", "#d95f02", "#7570b3", "#e7298a", "#66a61e", "#e6ab02", "#a6761d", "#666666"];

/// A curve: what it is called, and a point of a cell if the cell belongs to it.
type Curve<'a> = (String, Box<dyn Fn(&Cell) -> Option<(f64, Summary)> + 'a>);

/// Writes `time.svg`, `memory.svg`, `steps.svg` and `error.svg`, prefill only.
pub(super) fn save_plots(folder: &Path, cells: &[Cell]) -> anyhow::Result<()> {
    let prefill: Vec<&Cell> = cells.iter().filter(|cell| cell.is_prefill()).collect();
    let mut ridges: Vec<f32> = prefill.iter().map(|cell| cell.ridge).collect();
    ridges.sort_by(f32::total_cmp);
    ridges.dedup();
    let mut sizes: Vec<usize> = prefill.iter().map(|cell| cell.shape.context).collect();
    sizes.sort_unstable();
    sizes.dedup();
    let Some(&middle) = ridges.get(ridges.len() / 2) else { return Ok(()) };
    let dims = dims(cells);
    let exactly = |value: f64| Summary { min: value, median: value, max: value, runs: 1 };
    let all = [Contender::Cpu, Contender::Softmax, Contender::Dense];
    let by_contender = |value: fn(&Cell, Contender) -> Option<Summary>| -> Vec<Curve<'_>> {
        let curves = dims.iter().flat_map(|&dim| all.map(|contender| (dim, contender)));
        let curve = |(dim, contender): (usize, Contender)| -> Curve<'_> {
            let point = move |cell: &Cell| {
                let belongs = cell.shape.dim == dim && cell.ridge == middle;
                belongs.then(|| Some((cell.shape.context as f64, value(cell, contender)?))).flatten()
            };
            (format!("{}, dim {dim}", contender.name()), Box::new(point))
        };
        curves.map(curve).collect()
    };
    let n = ("positions", Scale::Powers(2.0));
    let seconds = by_contender(|cell, contender| Summary::of(&walls(cell, contender)?));
    let title = format!("prefill, ridge {middle}");
    draw(
        folder,
        "time.svg",
        &Captions { title: &title, x: n, y: ("seconds", Scale::Powers(10.0)) },
        &prefill,
        seconds,
    )?;
    let memory = by_contender(|cell, contender| {
        let mib = peak(cell, contender)?.max(1.0) / MIB;
        Some(Summary { min: mib, median: mib, max: mib, runs: 1 })
    });
    let captions = Captions { title: "memory of a prefill beside the inputs", x: n, y: ("MiB", Scale::Powers(10.0)) };
    draw(folder, "memory.svg", &captions, &prefill, memory)?;
    let combinations = dims.iter().flat_map(|&dim| ridges.iter().map(move |&ridge| (dim, ridge)));
    let steps = combinations.map(|(dim, ridge)| -> Curve<'_> {
        let point = move |cell: &Cell| {
            let Solver { mean_steps, max_steps, .. } = cell.solver;
            let spread = Summary { min: mean_steps, median: mean_steps, max: max_steps as f64, runs: 1 };
            (cell.shape.dim == dim && cell.ridge == ridge).then_some((cell.shape.context as f64, spread))
        };
        (format!("dim {dim}, ridge {ridge}"), Box::new(point))
    });
    let captions = Captions { title: "steps of a query: mean, up to the most", x: n, y: ("steps", Scale::Linear) };
    draw(folder, "steps.svg", &captions, &prefill, steps.collect())?;
    let sizes = [sizes.first(), sizes.get(sizes.len() / 2), sizes.last()];
    let mut sizes: Vec<usize> = sizes.into_iter().flatten().copied().collect();
    sizes.dedup();
    let combinations = dims.iter().flat_map(|&dim| sizes.iter().map(move |&size| (dim, size)));
    let errors = combinations.map(|(dim, size)| -> Curve<'_> {
        let point = move |cell: &Cell| {
            let error = cell.of(Contender::Cpu)?.error.filter(|error| *error > 0.0)?;
            let belongs = cell.shape.dim == dim && cell.shape.context == size;
            belongs.then(|| (f64::from(cell.ridge), exactly(error)))
        };
        (format!("dim {dim}, n {size}"), Box::new(point))
    });
    let captions = Captions {
        title: "error of the CPU path against f64",
        x: ("ridge", Scale::Powers(10.0)),
        y: ("error", Scale::Powers(10.0)),
    };
    draw(folder, "error.svg", &captions, &prefill, errors.collect())
}

fn draw(
    folder: &Path,
    file: &str,
    captions: &Captions<'_>,
    cells: &[&Cell],
    curves: Vec<Curve<'_>>,
) -> anyhow::Result<()> {
    let series = curves.into_iter().zip(COLOURS.into_iter().cycle()).map(|((name, point), colour)| {
        let points = cells.iter().filter_map(|cell| point(cell)).map(|(x, summary)| Point {
            x,
            y: summary.median,
            low: summary.min,
            high: summary.max,
            label: format!("{name}, {x}: {:.3e}", summary.median),
        });
        Series { points: points.collect(), name, colour, joined: true }
    });
    let series: Vec<Series> = series.filter(|series| !series.points.is_empty()).collect();
    Ok(fs::write(folder.join(file), scatter(captions, &series)?)?)
}

#[cfg(test)]
mod tests {
    use super::{super::Measured, *};
    use crate::lla::meter::Run;

    fn cell(context: usize, cpu: (f64, u64), dense: (f64, u64)) -> Cell {
        let measured = |contender, (wall, peak_bytes): (f64, u64)| Measured {
            contender,
            runs: vec![Run { wall, processor: 2.0 * wall }; 3],
            error: Some(1e-5),
            peak_bytes: Some(peak_bytes),
        };
        Cell {
            shape: Shape { heads: 1, kv_heads: 1, dim: 64, rows: context, context },
            ridge: 1.0,
            reference_rows: 9,
            solver: Solver { mean_steps: 5.0, max_steps: 7, num_capped: 0, num_frozen: 0, num_fallbacks: 0 },
            operations: 1e9,
            bytes: 1e6,
            results: vec![measured(Contender::Cpu, cpu), measured(Contender::Dense, dense)],
            peers: Vec::new(),
        }
    }

    #[test]
    fn floors_are_judged() {
        let text = floors(&[cell(2048, (0.1, 10 << 20), (0.6, 300 << 20))]);
        assert_eq!((text.matches("| met |").count(), text.matches("missed").count()), (2, 0), "{text}");
        let text = floors(&[cell(2048, (0.1, 10 << 20), (0.4, 100 << 20))]);
        assert_eq!(text.matches("missed").count(), 2, "{text}");
        assert!(floors(&[cell(1024, (0.1, 1), (0.4, 100))]).starts_with("No floor"));
    }

    #[test]
    fn growth_tells_a_line_from_a_square() {
        let cells = |bytes: fn(u64) -> u64| -> Vec<Cell> {
            [128, 1024, 2048, 4096].map(|n| cell(n, (0.1, bytes(n as u64)), (1.0, 1))).into()
        };
        let linear = growths(&cells(|n| (1 << 20) + 1000 * n));
        assert!(linear[0].is_linear() && linear[0].num_sizes == 3);
        assert!((linear[0].line.1 - 1000.0).abs() < 1e-6 && linear[0].off_line < 1e-9);
        let square = growths(&cells(|n| n * n));
        assert!(!square[0].is_linear());
        assert!((square[0].exponent - 2.0).abs() < 1e-9);
        assert!(growths(&cells(|n| n)[..2]).is_empty());
    }

    #[test]
    fn the_share_is_of_the_nearer_limit() {
        let cell = cell(2048, (0.1, 1), (0.6, 1));
        let limits = Limits { flops: 0.0, flops_per_processor: 1e10, bytes: 0.0, bytes_per_processor: 1e9 };
        // 0.1 s at the least, 0.2 s of processor time taken.
        assert!((share(&cell, &limits).unwrap() - 0.5).abs() < 1e-9);
        let slow = Limits { bytes_per_processor: 6.25e6, ..limits };
        assert!((share(&cell, &slow).unwrap() - 0.8).abs() < 1e-9);
        assert_eq!([0.001234, 1.234, 123.4].map(digits), ["0.00123", "1.23", "123"]);
        assert_eq!(millis(Summary::of(&[0.25])), "250 (one run)");
        assert_eq!(millis(Summary::of(&[0.25, 0.5, 1.0])), "500 (250 to 1000)");
    }
}
