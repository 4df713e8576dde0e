//! What an op has to move and to compute, counted. `bench/docs/kernels.md` gives the rules.

use serde::Serialize;

/// Bytes of an f32.
const F32: usize = size_of::<f32>();

/// Least work of one call: what is read is read once, what is written is written once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(super) struct Counts {
    pub(super) bytes: usize,
    pub(super) operations: usize,
}

/// Weights once, activations in and out; two operations for each product.
pub(super) fn linear(rows: usize, (outputs, inputs): (usize, usize), weight_bytes: usize) -> Counts {
    Counts { bytes: weight_bytes + rows * (inputs + outputs) * F32, operations: 2 * rows * inputs * outputs }
}

/// Heads of an attention call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Heads {
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) head_dim: usize,
}

/// `visible` has the number of positions that each row sees, from the first on. Keys and values of the positions that
/// some row sees once, queries and outputs once; two products of a vector for each position, row and head.
pub(super) fn attention(visible: &[usize], heads: Heads) -> Counts {
    let Heads { heads, kv_heads, head_dim } = heads;
    let positions = visible.iter().max().copied().unwrap_or(0);
    let values = 2 * positions * kv_heads * head_dim + 2 * visible.len() * heads * head_dim;
    Counts { bytes: values * F32, operations: 4 * visible.iter().sum::<usize>() * heads * head_dim }
}

/// A square and its sum, two multiplications for each value; the values in and out, the weights.
pub(super) fn rms_norm(rows: usize, dim: usize) -> Counts {
    Counts { bytes: (2 * rows * dim + dim) * F32, operations: 4 * rows * dim }
}

/// Two multiplications and an addition for each value; the values in and out, and a row of cosines and sines for each.
pub(super) fn rope(rows: usize, heads: usize, head_dim: usize) -> Counts {
    let values = rows * heads * head_dim;
    Counts { bytes: (2 * values + rows * head_dim) * F32, operations: 3 * values }
}

/// Exponential, addition, division and multiplication for each output; two values in, one out.
pub(super) fn swiglu(rows: usize, inner: usize) -> Counts {
    Counts { bytes: 3 * rows * inner * F32, operations: 4 * rows * inner }
}

/// Rows of the table and of the output; one multiplication for each value that is stored as a code.
pub(super) fn embedding(rows: usize, hidden: usize, row_bytes: usize, coded: bool) -> Counts {
    Counts { bytes: rows * (row_bytes + hidden * F32), operations: if coded { rows * hidden } else { 0 } }
}

/// A comparison for each logit.
pub(super) fn argmax(rows: usize, vocab: usize) -> Counts {
    Counts { bytes: rows * vocab * F32, operations: rows * vocab }
}

/// Comparison, subtraction, exponential and addition for each logit.
pub(super) fn confidence(rows: usize, vocab: usize) -> Counts {
    Counts { bytes: rows * vocab * F32, operations: 4 * rows * vocab }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_of_matrices_by_hand() {
        // Two rows of three inputs to five outputs, weights of 20 bytes.
        assert_eq!(linear(2, (5, 3), 20), Counts { bytes: 20 + 4 * (6 + 10), operations: 60 });
    }

    #[test]
    fn attention_by_hand() {
        let heads = Heads { heads: 4, kv_heads: 2, head_dim: 8 };
        // One row behind nine positions: keys and values of 10, one query, one output.
        let decode = attention(&[10], heads);
        assert_eq!(decode, Counts { bytes: 4 * (2 * 10 * 16 + 2 * 32), operations: 4 * 10 * 32 });
        // Three rows from the start: 1 + 2 + 3 pairs; all three see all: 9.
        assert_eq!(attention(&[1, 2, 3], heads).operations, 4 * 6 * 32);
        assert_eq!(
            attention(&[3, 3, 3], heads),
            Counts { bytes: 4 * (2 * 3 * 16 + 2 * 3 * 32), operations: 4 * 9 * 32 }
        );
    }

    #[test]
    fn ops_on_rows_by_hand() {
        assert_eq!(rms_norm(3, 5), Counts { bytes: 4 * 35, operations: 60 });
        // Two rows of three heads of four: 24 values; eight cosines and sines.
        assert_eq!(rope(2, 3, 4), Counts { bytes: 4 * (48 + 8), operations: 72 });
        assert_eq!(swiglu(2, 7), Counts { bytes: 4 * 42, operations: 56 });
    }

    #[test]
    fn ops_on_the_vocabulary_by_hand() {
        assert_eq!(embedding(3, 32, 34, true), Counts { bytes: 3 * (34 + 128), operations: 96 });
        assert_eq!(embedding(3, 32, 128, false), Counts { bytes: 3 * 256, operations: 0 });
        assert_eq!(argmax(2, 10), Counts { bytes: 80, operations: 20 });
        assert_eq!(confidence(2, 10), Counts { bytes: 80, operations: 80 });
    }
}
