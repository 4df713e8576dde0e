//! What a forward pass costs by its number of rows, measured on the model at start.

use std::time::{Duration, Instant};

use kernels::device::ScoreQuery;
use models::{Backbone, ForwardBatch, KvCache, ModelError, PageId, Segment, TokenId, Visibility};

/// Row counts at which a pass is timed.
const CALIBRATION_ROWS: [usize; 7] = [1, 2, 4, 8, 16, 32, 64];
/// Passes timed at each row count; the fastest counts, since other load only ever adds time.
const CALIBRATION_ROUNDS: usize = 8;
/// Tokens that the timed rows attend to.
const CALIBRATION_PREFIX: usize = 64;
/// Calibration stops after this long and extrapolates: a large model must not delay the start.
const CALIBRATION_BUDGET: Duration = Duration::from_secs(3);

/// Milliseconds of a pass by number of rows, piecewise linear.
#[derive(Debug, Clone, PartialEq)]
pub struct CostTable {
    /// Ascending row counts with non-decreasing times; never empty.
    points: Vec<(usize, f64)>,
}

impl CostTable {
    /// A table through measured points, made non-decreasing.
    pub fn from_points(mut points: Vec<(usize, f64)>) -> Self {
        points.sort_unstable_by_key(|&(rows, _)| rows);
        let mut floor = 0f64;
        for (_, millis) in &mut points {
            floor = floor.max(*millis);
            *millis = floor;
        }
        if points.is_empty() {
            points.push((1, 1.0));
        }
        Self { points }
    }

    /// Times `backbone` on passes of up to `max_rows` rows behind a short prefix, in a KV cache that is otherwise unused.
    pub fn calibrate(backbone: &mut dyn Backbone, kv: &mut KvCache, max_rows: usize) -> Result<Self, ModelError> {
        let spec = backbone.spec().clone();
        let room = spec.context_len.min(kv.num_pages() * kv.page_len());
        let pages: Vec<PageId> = (0..room.div_ceil(kv.page_len()) as u32).map(PageId).collect();
        // The prefix is written once so that the timed rows attend to real keys.
        let widest = CALIBRATION_ROWS.iter().copied().filter(|rows| *rows <= room.min(max_rows)).max().unwrap_or(1);
        let prefix = (room - widest).min(CALIBRATION_PREFIX).min(max_rows);
        let token = |i: usize| TokenId((i * 31 % spec.vocab_size) as u32);
        let mut pass = |start: usize, rows: usize, scored: usize| -> Result<Duration, ModelError> {
            let tokens: Vec<TokenId> = (start..start + rows).map(token).collect();
            let segment = Segment {
                tokens: &tokens,
                start,
                visibility: Visibility::Causal,
                scored: rows - scored..rows,
                pages: &pages,
            };
            let batch = ForwardBatch { segments: vec![segment] };
            let began = Instant::now();
            match backbone.scorer() {
                // As a pass is run; a copy of the logits would cost more than the pass.
                Some(scorer) => drop(scorer.forward_scored(&batch, kv, &mut || vec![ScoreQuery::default(); scored])?),
                None => drop(backbone.forward(&batch, kv)?),
            }
            Ok(began.elapsed())
        };
        if prefix > 0 {
            pass(0, prefix, 0)?;
        }
        let began = Instant::now();
        let mut points: Vec<(usize, f64)> = Vec::new();
        // Round by round over all row counts: what slows the machine down for a moment must not hit one of them alone.
        for round in 0..CALIBRATION_ROUNDS {
            for (index, rows) in CALIBRATION_ROWS.into_iter().filter(|rows| *rows <= widest).enumerate() {
                let late = began.elapsed() > CALIBRATION_BUDGET;
                if late && (round > 0 || index > 1) {
                    break;
                }
                let millis = pass(prefix, rows, rows)?.as_secs_f64() * 1e3;
                match points.get_mut(index) {
                    Some((_, fastest)) => *fastest = fastest.min(millis),
                    None => points.push((rows, millis)),
                }
            }
        }
        Ok(Self::from_points(points))
    }

    /// Milliseconds of a pass of `rows` rows.
    pub fn millis(&self, rows: usize) -> f64 {
        let upper = self.points.partition_point(|&(r, _)| r < rows);
        match (upper.checked_sub(1).map(|i| self.points[i]), self.points.get(upper)) {
            (None, Some(&(_, millis))) => millis,
            (Some((r0, m0)), Some(&(r1, m1))) => m0 + (m1 - m0) * (rows - r0) as f64 / (r1 - r0) as f64,
            // Beyond the table a pass is bound by arithmetic: cost grows in proportion to the rows.
            (Some((r0, m0)), None) => m0 * rows as f64 / r0 as f64,
            (None, None) => 1.0,
        }
    }

    /// The measured points, `(rows, milliseconds)`.
    pub fn points(&self) -> &[(usize, f64)] {
        &self.points
    }
}

/// Cost of a pass as one sequence sees it: its own rows on top of everyone else's.
#[derive(Debug, Clone, Copy)]
pub struct PassCost<'a> {
    table: &'a CostTable,
    other_rows: usize,
    other_tokens: f64,
}

impl<'a> PassCost<'a> {
    /// `other_rows` rows of other sequences share the pass and are expected to commit `other_tokens` tokens.
    pub fn new(table: &'a CostTable, other_rows: usize, other_tokens: f64) -> Self {
        Self { table, other_rows, other_tokens }
    }

    /// Tokens per millisecond of the whole pass if this sequence uses `rows` rows and commits `tokens`.
    pub fn rate(&self, tokens: f64, rows: usize) -> f64 {
        (self.other_tokens + tokens) / self.table.millis(self.other_rows + rows).max(f64::MIN_POSITIVE)
    }

    /// Cost of a pass with `rows` rows of this sequence relative to one row.
    pub fn ratio(&self, rows: usize) -> f64 {
        self.table.millis(self.other_rows + rows) / self.table.millis(self.other_rows + 1).max(f64::MIN_POSITIVE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn costs_interpolate_and_never_fall() {
        let table = CostTable::from_points(vec![(4, 1.5), (1, 1.0), (2, 0.9)]);
        assert_eq!(table.points(), [(1, 1.0), (2, 1.0), (4, 1.5)]);
        assert_eq!(table.millis(3), 1.25);
        assert_eq!(table.millis(8), 3.0);
        assert_eq!(table.millis(0), 1.0);
    }

    #[test]
    fn neighbours_share_the_cost() {
        let table = CostTable::from_points(vec![(1, 1.0), (9, 9.0)]);
        let alone = PassCost::new(&table, 0, 0.0);
        assert_eq!((alone.rate(1.0, 1), alone.ratio(2)), (1.0, 2.0));
        let crowded = PassCost::new(&table, 7, 7.0);
        assert_eq!((crowded.rate(1.0, 1), crowded.ratio(2)), (1.0, 9.0 / 8.0));
    }
}
