//! Softmax attention over pages, beside candle's products with a softmax between them, and beside its fused op.

use candle_core::{Device, Tensor};
use candle_nn::{
    attention::{AttnMask, flash_attn},
    ops::softmax_last_dim,
};
use kernels::{AttentionPlan, PlanRow, attention, peak::Products};

use super::{
    case::{Call, Case, Label, Peer},
    counts::{self, Heads},
    data::{copies, normal, normals},
    suite::Suite,
};

/// As the engine has it.
const PAGE_LEN: usize = 32;
/// Rows of a block of block-causal attention.
const BLOCK_LEN: usize = 32;
/// Sums of f32 in another order, behind exponentials.
const TOLERANCE: f64 = 1e-3;

/// Which positions a row sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// One row at the end of the context.
    Decode,
    /// The whole context, each row up to itself.
    Prefill,
    /// The whole context, each row all of it.
    Full,
    /// The whole context, each row up to the end of its block.
    BlockCausal,
}

impl Kind {
    const ALL: [Self; 4] = [Self::Decode, Self::Prefill, Self::Full, Self::BlockCausal];

    fn name(self) -> &'static str {
        match self {
            Self::Decode => "decode",
            Self::Prefill => "causal prefill",
            Self::Full => "full",
            Self::BlockCausal => "block-causal",
        }
    }

    /// Number of positions that each row sees.
    fn visible(self, context: usize) -> Vec<usize> {
        match self {
            Self::Decode => vec![context],
            Self::Prefill => (1..=context).collect(),
            Self::Full => vec![context; context],
            Self::BlockCausal => (0..context).map(|row| ((row / BLOCK_LEN + 1) * BLOCK_LEN).min(context)).collect(),
        }
    }
}

/// All kinds at one context.
pub(super) fn run(suite: &mut Suite<'_>, context: usize) -> anyhow::Result<()> {
    let heads = suite.sizes().heads();
    let cache_bytes = 2 * context * heads.kv_heads * heads.head_dim * size_of::<f32>();
    for cold in suite.temperatures("The KV cache of attention", cache_bytes) {
        let num_copies = copies(cache_bytes, suite.copies_for(cold));
        let kv = Kv::new(heads, context, num_copies, suite)?;
        for kind in Kind::ALL {
            let visible = kind.visible(context);
            let q = normal(&[visible.len(), heads.heads, heads.head_dim], &mut suite.random())?;
            for peer in [Op::Products, Op::Fused] {
                let call = Prepared::new(kind, &visible, &q, heads)?;
                let label = Label { rows: visible.len(), format: "f32".into(), cold, ..suite.label("attention") };
                suite.add(&Case {
                    label: Label { what: format!("{} over {context}", kind.name()), ..label },
                    counts: counts::attention(&visible, heads),
                    products: Products::F32,
                    num_copies,
                    ours: Box::new(|copy| Ok(attention(&q, &kv.keys[copy], &kv.values[copy], &call.plan, call.scale)?)),
                    peer: match peer {
                        Op::Products => {
                            Peer::Candle { name: "matmul, softmax, matmul", call: call.products(&kv), arrange: Ok }
                        }
                        Op::Fused => Peer::Candle { name: "flash_attn", call: call.fused(&kv), arrange: flat },
                    },
                    tolerance: TOLERANCE,
                })?;
            }
        }
    }
    Ok(())
}

/// candle's two ways.
#[derive(Debug, Clone, Copy)]
enum Op {
    Products,
    Fused,
}

/// `[1, heads, rows, head_dim] -> [rows, heads * head_dim]`
fn flat(output: Tensor) -> candle_core::Result<Tensor> {
    output.squeeze(0)?.transpose(0, 1)?.contiguous()?.flatten_from(1)
}

/// Copies of keys and values, as each op wants them.
struct Kv {
    /// `[pages, kv_heads, page_len, head_dim]`
    keys: Vec<Tensor>,
    /// As the keys.
    values: Vec<Tensor>,
    /// `[kv_heads, head_dim, context]`, a transposed view of rows, and `[kv_heads, context, head_dim]`.
    by_head: Vec<(Tensor, Tensor)>,
    /// `[1, context, kv_heads, head_dim]`
    by_position: Vec<(Tensor, Tensor)>,
}

impl Kv {
    fn new(heads: Heads, context: usize, num_copies: usize, suite: &Suite<'_>) -> anyhow::Result<Self> {
        let cache = [context.div_ceil(PAGE_LEN), heads.kv_heads, PAGE_LEN, heads.head_dim];
        let mut random = suite.random();
        let keys = normals(num_copies, &cache, &mut random)?;
        let values = normals(num_copies, &cache, &mut random)?;
        let mut by_head = Vec::with_capacity(num_copies);
        let mut by_position = Vec::with_capacity(num_copies);
        for (keys, values) in keys.iter().zip(&values) {
            let [keys, values] = [in_order(keys, context)?, in_order(values, context)?];
            let turned = |tensor: &Tensor| tensor.transpose(0, 1)?.contiguous()?.unsqueeze(0);
            by_position.push((turned(&keys)?, turned(&values)?));
            by_head.push((keys.transpose(1, 2)?, values));
        }
        Ok(Self { keys, values, by_head, by_position })
    }
}

/// Pages from the last to the first, so that their order matters.
fn table(context: usize) -> anyhow::Result<Vec<u32>> {
    Ok((0..u32::try_from(context.div_ceil(PAGE_LEN))?).rev().collect())
}

/// `[kv_heads, context, head_dim]` of a cache.
fn in_order(cache: &Tensor, context: usize) -> anyhow::Result<Tensor> {
    let pages = Tensor::new(table(context)?, &Device::Cpu)?;
    let rows = cache.index_select(&pages, 0)?.transpose(0, 1)?.contiguous()?.flatten(1, 2)?;
    Ok(rows.narrow(1, 0, context)?.contiguous()?)
}

/// What does not depend on the copy.
struct Prepared {
    kind: Kind,
    plan: AttentionPlan,
    scale: f32,
    heads: Heads,
    rows: usize,
    context: usize,
    /// `[kv_heads, group * rows, head_dim]`
    q_by_head: Tensor,
    /// `[1, rows, heads, head_dim]`
    q_by_position: Tensor,
    /// 0 where a row sees a position, else minus infinity, `[1, rows, context]`; none where all see all.
    mask: Option<Tensor>,
}

impl Prepared {
    fn new(kind: Kind, visible: &[usize], q: &Tensor, heads: Heads) -> anyhow::Result<Self> {
        let (rows, context) = (visible.len(), visible.iter().max().copied().unwrap_or(0));
        let first = context - rows;
        let row = |(row, &visible_end): (usize, &usize)| PlanRow { table: 0, position: first + row, visible_end };
        let plan = AttentionPlan::new(vec![table(context)?], visible.iter().enumerate().map(row).collect(), PAGE_LEN)?;
        let hides = visible.iter().any(|end| *end < context);
        let mask: Vec<f32> = visible
            .iter()
            .flat_map(|end| (0..context).map(move |at| if at < *end { 0.0 } else { f32::NEG_INFINITY }))
            .collect();
        let mask = Tensor::from_vec(mask, (1, rows, context), &Device::Cpu)?;
        let group = heads.heads / heads.kv_heads;
        let q_by_head = q.transpose(0, 1)?.contiguous()?.reshape((heads.kv_heads, group * rows, heads.head_dim))?;
        Ok(Self {
            kind,
            plan,
            scale: (heads.head_dim as f32).sqrt().recip(),
            heads,
            rows,
            context,
            q_by_head,
            q_by_position: q.unsqueeze(0)?,
            mask: hides.then_some(mask),
        })
    }

    /// Heads that share keys are rows of one product, so that nothing is repeated.
    fn products<'a>(&'a self, kv: &'a Kv) -> Call<'a> {
        let Heads { heads, kv_heads, head_dim } = self.heads;
        Box::new(move |copy| {
            let (keys, values) = &kv.by_head[copy];
            let scores = (self.q_by_head.matmul(keys)? * f64::from(self.scale))?;
            let scores = match &self.mask {
                Some(mask) => {
                    let by_head = scores.reshape((heads, self.rows, ()))?;
                    by_head.broadcast_add(mask)?.reshape((kv_heads, heads / kv_heads * self.rows, ()))?
                }
                None => scores,
            };
            let output = softmax_last_dim(&scores)?.matmul(values)?.reshape((heads, self.rows, head_dim))?;
            Ok(output.transpose(0, 1)?.contiguous()?.flatten_from(1)?)
        })
    }

    fn fused<'a>(&'a self, kv: &'a Kv) -> Call<'a> {
        Box::new(move |copy| {
            let (keys, values) = &kv.by_position[copy];
            let mask = match (self.kind, &self.mask) {
                (Kind::Decode | Kind::Prefill, _) => AttnMask::causal_with_offset(self.context - self.rows),
                (_, Some(mask)) => AttnMask::Mask(mask.unsqueeze(0)?),
                (_, None) => AttnMask::None,
            };
            Ok(flash_attn::<f32>(&self.q_by_position, keys, values, self.scale, mask, None, None)?)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_see_what_their_kind_says() {
        assert_eq!(Kind::Decode.visible(5), [5]);
        assert_eq!(Kind::Prefill.visible(3), [1, 2, 3]);
        assert_eq!(Kind::Full.visible(3), [3; 3]);
        let blocks = Kind::BlockCausal.visible(40);
        assert_eq!((blocks[0], blocks[31], blocks[32], blocks.len()), (32, 32, 40, 40));
    }
}
