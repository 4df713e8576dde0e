//! What the engine must reach on an H200, and what it aims at.

use serde::Serialize;

use super::{
    Part,
    facts::Facts,
    forward::{PASS, STEP},
    log::{Log, figure},
    score::GREEDY,
    shapes::Shape,
    torch::GRAPH,
};

/// One floor.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Floor {
    what: &'static str,
    /// `None`: not measured.
    value: Option<f64>,
    floor: f64,
    aim: Option<f64>,
    /// Whether more is better.
    at_least: bool,
}

impl Floor {
    fn verdict(&self) -> &'static str {
        let reaches = |value: f64, bound: f64| if self.at_least { value >= bound } else { value <= bound };
        match self.value {
            None => "not measured",
            Some(value) if !reaches(value, self.floor) => "missed",
            Some(value) if self.aim.is_some_and(|aim| reaches(value, aim)) => "met, and the aim",
            Some(_) => "met",
        }
    }
}

/// All floors with what a run found.
pub(super) fn all(log: &Log) -> Vec<Floor> {
    let model = Shape::Llada8B.name();
    let forward = |rows| log.find(Part::Forward, model, PASS, Some((rows, 0)));
    let (one, block) = (forward(1), forward(32));
    let ratio = |a: Option<f64>, b: Option<f64>| Some(a? / b?);
    let of = |cell: Option<&super::log::Cell>, name| cell.and_then(|cell| cell.figures.get(name).copied());
    let steps = log.cells.iter().filter(|cell| cell.part == Part::Steps && cell.model == model && cell.what == STEP);
    let slowest = steps.filter_map(|cell| cell.figures.get(figure::OVER_DEVICE).copied()).max_by(f64::total_cmp);
    let torch = log.find(Part::Torch, model, GRAPH, Some((1, 0)));
    let vocab = Shape::Llada8B.config().map_or(0, |config| config.vocab_size);
    let score = log.find(Part::Score, "", GREEDY, Some((32, vocab)));
    let checks: Vec<_> = log.cells.iter().filter(|cell| cell.part == Part::Check).collect();
    let wrong = checks.iter().map(|cell| cell.figures.get(figure::WRONG).copied().unwrap_or(1.0)).sum();
    let floor = |what, value, floor, aim, at_least| Floor { what, value, floor, aim, at_least };
    vec![
        floor("parity: checks that fail", (!checks.is_empty()).then_some(wrong), 0.0, None, false),
        floor(
            "32-row pass over 1-row pass, LLaDA-8B",
            ratio(block.and_then(|cell| cell.median()), one.and_then(|cell| cell.median())),
            1.25,
            Some(1.1),
            false,
        ),
        floor("1-row pass, share of the memory limit, LLaDA-8B", of(one, figure::MEMORY_SHARE), 0.7, Some(0.85), true),
        floor("step end to end over its pass, worst number of rows, LLaDA-8B", slowest, 1.1, None, false),
        floor("PyTorch with graphs over this, batch 1, LLaDA-8B", of(torch, figure::OVER_OURS), 1.2, Some(1.5), true),
        floor("score reduction, share of the copy bandwidth", of(score, figure::MEMORY_SHARE), 0.6, None, true),
    ]
}

/// The floors as a table.
pub(super) fn table(floors: &[Floor], facts: &Facts) -> String {
    let mut text = String::new();
    if !facts.name.starts_with("NVIDIA H200") {
        text.push_str(&format!("The floors are set for an H200 with bf16 weights; this is {}.\n\n", facts.name));
    }
    text.push_str("| what | value | floor | aim | verdict |\n|---|---|---|---|---|\n");
    for floor in floors {
        let sign = if floor.at_least { ">=" } else { "<=" };
        let number = |value: Option<f64>| value.map_or("-".into(), |value| format!("{value:.3}"));
        let aim = floor.aim.map_or("-".into(), |aim| format!("{sign} {aim}"));
        text.push_str(&format!(
            "| {} | {} | {sign} {} | {aim} | {} |\n",
            floor.what,
            number(floor.value),
            floor.floor,
            floor.verdict()
        ));
    }
    text
}
