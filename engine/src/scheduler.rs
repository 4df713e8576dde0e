//! Who gets how many rows of the next pass. No tensors, no strategies.

/// What one running sequence needs from the next pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Demand {
    /// Tokens that lack KV. More than one: the sequence still reads its prompt.
    pub(crate) forced: usize,
    /// Most rows that it may get, for example because all of them are scored.
    pub(crate) limit: usize,
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
/// most `interleave_rows` rows a pass. Prompts are served first come, first served.
pub(crate) fn allot(demands: &[Demand], budget: RowBudget) -> Vec<usize> {
    let num_decoding = demands.iter().filter(|demand| demand.forced <= 1).count();
    let decode_cap = (budget.max_rows / num_decoding.max(1)).max(1);
    let mut prefill_left = if num_decoding > 0 { budget.interleave_rows } else { budget.max_rows };
    let caps = demands.iter().map(|demand| {
        if demand.forced <= 1 {
            return decode_cap.min(demand.limit.max(1));
        }
        let cap = prefill_left.min(demand.limit);
        prefill_left -= cap.min(demand.forced);
        cap
    });
    caps.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUDGET: RowBudget = RowBudget { max_rows: 100, interleave_rows: 10 };

    fn demand(forced: usize) -> Demand {
        Demand { forced, limit: usize::MAX }
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
        assert_eq!(allot(&[Demand { forced: 90, limit: 64 }, demand(90)], BUDGET), [64, 36]);
    }
}
