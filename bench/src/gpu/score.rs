//! The reduction of logits to scores, alone.

use std::collections::BTreeSet;

use kernels::device::{
    Array, ElementType, Recording, ScoreBatch, ScoreConfidence, ScoreConfidenceKind, ScoreQuery, ScoreSizes,
};
use models::ModelConfig;

use super::{
    Part, Setup,
    log::{Cell, Log, figure},
};
use crate::stats::SplitMix;

/// Name of the cells of greedy rows with a confidence.
pub(super) const GREEDY: &str = "greedy, confidence";
/// Most rows of a reduction: what the engine reduces at a time.
const MOST_ROWS: usize = 256;

/// The kinds of rows.
fn kinds() -> [(&'static str, ScoreQuery); 3] {
    let probability =
        ScoreConfidence { kind: ScoreConfidenceKind::Probability, filtered: false, held_down: Vec::new() };
    let greedy = ScoreQuery { confidence: Some(probability), ..ScoreQuery::default() };
    let sampled = ScoreQuery { temperature: 0.8, noise_key: 7, ..ScoreQuery::default() };
    let filtered = ScoreQuery { top_k: Some(50), top_p: 0.95, ..sampled.clone() };
    [(GREEDY, greedy), ("sampled", sampled), ("top-k 50, top-p 0.95", filtered)]
}

/// Reductions for every vocabulary of the models.
pub(super) fn run(setup: &Setup, models: &[(String, ModelConfig)], log: &mut Log) -> anyhow::Result<()> {
    log.note(
        Part::Score,
        "Column `context` is the vocabulary. Bytes are the logits once, f32, whatever a kernel reads; logits are normal \
         numbers of deviation 3, in as many copies as make them come from memory and not from a cache.",
    );
    let vocabs: BTreeSet<usize> = models.iter().map(|(_, config)| config.vocab_size).collect();
    for vocab in vocabs.into_iter().rev() {
        for &rows in setup.rows.iter().filter(|rows| **rows <= MOST_ROWS) {
            let logits = setup.guarded(None, || logits(setup, rows, vocab));
            for (name, query) in kinds() {
                let cell = Cell::new(Part::Score, "", name).at(rows, vocab);
                let measured = match &logits {
                    Ok(logits) => setup.guarded(None, || measure(setup, logits, &vec![query; rows], vocab)),
                    Err(reason) => Err(reason.clone()),
                };
                let bytes = (rows * vocab * size_of::<f32>()) as f64;
                log.add(cell.of_memory(setup, measured, bytes))?;
            }
        }
    }
    Ok(())
}

/// Copies of logits.
fn logits(setup: &Setup, rows: usize, vocab: usize) -> anyhow::Result<Vec<Array>> {
    let mut random = SplitMix(rows as u64);
    let numbers: Vec<f32> = (0..vocab).map(|_| 3.0 * random.normal()).collect();
    let logits = Array::new(&setup.device, ElementType::F32, rows * vocab)?;
    for row in 0..rows {
        // The same numbers, the likeliest elsewhere.
        let turn = (1 + row) * 7919 % vocab;
        logits.write(row * vocab, &numbers[turn..])?;
        logits.write((row + 1) * vocab - turn, &numbers[..turn])?;
    }
    let bytes = logits.bytes();
    setup.cold(logits, bytes)
}

/// Milliseconds of one reduction, by round.
fn measure(setup: &Setup, logits: &[Array], queries: &[ScoreQuery], vocab: usize) -> anyhow::Result<Vec<f64>> {
    let sizes = ScoreSizes { max_rows: queries.len(), vocab, max_top: 0 };
    let mut batch = ScoreBatch::new(&setup.device, sizes)?;
    let shape = batch.prepare(queries)?;
    let mut launches = Vec::new();
    for copy in logits {
        launches.extend(batch.launches(&shape, copy)?);
    }
    let recording = Recording::new(&setup.device, launches)?;
    let millis = setup.replays(&recording, logits.len())?;
    let scores = batch.read()?;
    let is_fine = scores.iter().all(|score| !score.is_broken && (score.token as usize) < vocab);
    anyhow::ensure!(is_fine, "scores of finite logits are not finite");
    Ok(millis)
}

impl Cell {
    /// The cell with its times, or the reason why there are none, for work that reads so many bytes.
    pub(super) fn of_memory(self, setup: &Setup, measured: Result<Vec<f64>, String>, bytes: f64) -> Self {
        let cell = match measured {
            Ok(millis) => Self { millis, ..self },
            Err(reason) => return Self { left_out: Some(reason), ..self },
        };
        let Some(median) = cell.median() else { return cell };
        let share = setup.facts.memory_share(bytes, median);
        cell.with(figure::GB_PER_S, bytes / (median / 1e3) / 1e9).with(figure::MEMORY_SHARE, share)
    }
}
