//! Who gets how many rows of the next pass. No tensors, no strategies.

use crate::decode::RowDemand;

/// What one running sequence needs from the next pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Demand {
    /// Rows, as its decoder wants them.
    pub(crate) rows: RowDemand,
    /// Most rows that it may get, for example because all of them are scored.
    pub(crate) limit: usize,
    /// Pass in which it last took part: who has waited longest goes first.
    pub(crate) last_pass: u64,
}

/// Limits of one pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RowBudget {
    /// Rows of a pass while nobody decodes.
    pub(crate) max_rows: usize,
    /// Rows of prefill while somebody decodes.
    pub(crate) interleave_rows: usize,
}

/// Row caps in the order of `demands`; 0 means that the sequence sits this pass out.
///
/// Every decoding sequence gets at least one row, so a long prompt never stops the others; it only slows them by at
/// most `interleave_rows` rows a pass. Prompts are served first come, first served. Sequences that need all of their
/// rows at once (canvases) share `max_rows` in turn: those that waited longest are served first, at least one in each
/// pass.
pub(crate) fn allot(demands: &[Demand], budget: RowBudget) -> Vec<usize> {
    let is_decoding = |demand: &Demand| matches!(demand.rows, RowDemand::Chunks { forced, .. } if forced <= 1);
    let num_decoding = demands.iter().filter(|demand| is_decoding(demand)).count();
    let decode_cap = (budget.max_rows / num_decoding.max(1)).max(1);
    let mut caps = vec![0; demands.len()];
    let mut by_wait: Vec<usize> = (0..demands.len()).collect();
    by_wait.sort_by_key(|&index| demands[index].last_pass);
    let mut canvas_rows = 0;
    for index in by_wait {
        if let RowDemand::Whole(rows) = demands[index].rows
            && (canvas_rows == 0 || canvas_rows + rows <= budget.max_rows)
        {
            canvas_rows += rows;
            caps[index] = rows;
        }
    }
    let others_work = num_decoding > 0 || canvas_rows > 0;
    let mut prefill_left = if others_work { budget.interleave_rows } else { budget.max_rows };
    let mut is_first = true;
    for (cap, demand) in caps.iter_mut().zip(demands) {
        match demand.rows {
            RowDemand::Whole(_) => {}
            RowDemand::Chunks { .. } if is_decoding(demand) => *cap = decode_cap.min(demand.limit.max(1)),
            RowDemand::Chunks { forced, least } => {
                let free = if is_first { prefill_left.max(least) } else { prefill_left };
                if free >= least {
                    *cap = free.min(demand.limit.max(least));
                    prefill_left = prefill_left.saturating_sub((*cap).min(forced));
                    is_first = false;
                }
            }
        }
    }
    caps
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUDGET: RowBudget = RowBudget { max_rows: 100, interleave_rows: 10 };

    fn demand(forced: usize) -> Demand {
        Demand { rows: RowDemand::Chunks { forced, least: 1 }, limit: usize::MAX, last_pass: 0 }
    }

    fn canvas(rows: usize, last_pass: u64) -> Demand {
        Demand { rows: RowDemand::Whole(rows), limit: usize::MAX, last_pass }
    }

    #[test]
    fn canvases_take_turns() {
        let first = allot(&[canvas(60, 0), canvas(30, 0), canvas(60, 0)], BUDGET);
        assert_eq!(first, [60, 30, 0]);
        assert_eq!(allot(&[canvas(60, 1), canvas(30, 1), canvas(60, 0)], BUDGET), [0, 30, 60]);
        assert_eq!(allot(&[canvas(500, 3), canvas(500, 2)], BUDGET), [0, 500], "one always fits");
    }

    #[test]
    fn chunks_of_blocks_are_never_smaller_than_a_block() {
        let blocks = Demand { rows: RowDemand::Chunks { forced: 400, least: 32 }, ..demand(0) };
        assert_eq!(allot(&[canvas(60, 0), blocks, blocks], BUDGET), [60, 32, 0]);
        assert_eq!(allot(&[blocks, blocks], RowBudget { max_rows: 64, interleave_rows: 8 }), [64, 0]);
    }

    #[test]
    fn a_prompt_alone_gets_the_whole_pass() {
        assert_eq!(allot(&[demand(70), demand(50), demand(9)], BUDGET), [100, 30, 0]);
    }

    #[test]
    fn decoding_sequences_are_never_left_out() {
        assert_eq!(allot(&[demand(500), demand(1), demand(1)], BUDGET), [10, 50, 50]);
        let crowd = vec![demand(1); 300];
        assert!(allot(&crowd, BUDGET).iter().all(|&cap| cap == 1));
    }

    #[test]
    fn limits_hold() {
        assert_eq!(allot(&[Demand { limit: 64, ..demand(90) }, demand(90)], BUDGET), [64, 36]);
    }
}
