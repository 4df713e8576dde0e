//! Attention and the KV write in their plainest form, with f64 sums.

use super::{AttentionPlan, PlanRow};

/// Sizes of the tensors that attention works on.
#[derive(Debug, Clone, Copy)]
pub struct HeadShape {
    /// Query heads.
    pub num_heads: usize,
    /// Key and value heads.
    pub num_kv_heads: usize,
    /// Values per head.
    pub head_dim: usize,
}

fn offset(shape: HeadShape, plan: &AttentionPlan, row: &PlanRow, position: usize, kv_head: usize) -> usize {
    let page = plan.pages(row)[position / plan.page_len()] as usize;
    ((page * shape.num_kv_heads + kv_head) * plan.page_len() + position % plan.page_len()) * shape.head_dim
}

/// Copies `rows`, `[rows, kv_heads, head_dim]`, to their positions in `cache`, `[pages, kv_heads, page_len, head_dim]`.
pub fn write_kv(cache: &mut [f32], rows: &[f32], plan: &AttentionPlan, shape: HeadShape) {
    for (index, row) in plan.rows().iter().enumerate() {
        for kv_head in 0..shape.num_kv_heads {
            let to = offset(shape, plan, row, row.position, kv_head);
            let from = (index * shape.num_kv_heads + kv_head) * shape.head_dim;
            cache[to..to + shape.head_dim].copy_from_slice(&rows[from..from + shape.head_dim]);
        }
    }
}

/// Softmax attention of `q`, `[rows, heads, head_dim]`, over the visible positions of each row.
pub fn attention(
    q: &[f32],
    (keys, values): (&[f32], &[f32]),
    plan: &AttentionPlan,
    shape: HeadShape,
    scale: f32,
) -> Vec<f32> {
    let HeadShape { num_heads, num_kv_heads, head_dim } = shape;
    let mut out = Vec::with_capacity(q.len());
    for (index, row) in plan.rows().iter().enumerate() {
        for head in 0..num_heads {
            let kv_head = head / (num_heads / num_kv_heads);
            let query = &q[(index * num_heads + head) * head_dim..][..head_dim];
            let at = |position| offset(shape, plan, row, position, kv_head);
            let scores: Vec<f64> = (0..row.visible_end)
                .map(|position| {
                    let key = &keys[at(position)..][..head_dim];
                    query.iter().zip(key).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>() * f64::from(scale)
                })
                .collect();
            let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let weights: Vec<f64> = scores.iter().map(|score| (score - max).exp()).collect();
            let total: f64 = weights.iter().sum();
            for dim in 0..head_dim {
                let sum: f64 =
                    weights.iter().enumerate().map(|(at_, weight)| weight * f64::from(values[at(at_) + dim])).sum();
                out.push((sum / total) as f32);
            }
        }
    }
    out
}
