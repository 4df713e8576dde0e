//! Ops on the vocabulary: rows of the embedding, and what the sampler makes of logits.

use candle_core::{D, Device, Tensor};
use engine::{
    Sampling, TokenId,
    sampling::{ConfidenceKind, ConfidenceRule, SlotContext, SlotNoise, TokenCounts, argmax, choose},
};
use kernels::{PackedLinear, peak::Products};
use rayon::prelude::*;

use super::{
    case::{Case, Label, Peer},
    counts,
    data::{Candles, Format, Weights, copies, normal},
    suite::Suite,
};

/// The same numbers, but for the product of a code and its scale.
const EMBEDDING_TOLERANCE: f64 = 1e-5;
/// Sums of many exponentials.
const CONFIDENCE_TOLERANCE: f64 = 1e-4;

/// Rows of a table, for several sets of random tokens.
pub(super) fn run_embedding(suite: &mut Suite<'_>, format: Format) -> anyhow::Result<()> {
    let (vocab, hidden) = (suite.sizes().vocab, suite.sizes().hidden);
    if !format.divides(hidden) {
        suite.note(format!(
            "The embedding of {} has no {}: {hidden} values are not whole blocks.",
            suite.shape_name(),
            format.name()
        ));
        return Ok(());
    }
    let bytes = PackedLinear::bytes_of(format.ours(), vocab, hidden);
    for cold in suite.temperatures(&format!("The embedding in {}", format.name()), bytes) {
        let mut random = suite.random();
        let weights = Weights::new(format, (vocab, hidden), suite.copies_for(cold), &mut random)?;
        for rows in suite.rows() {
            // The same tokens again would find their rows in a cache, however large the table is.
            let num_tables = weights.ours.len();
            let num_sets = copies(rows * weights.row_bytes, suite.copies_for(cold)).max(num_tables);
            let ids: Vec<Vec<u32>> =
                (0..num_sets).map(|_| (0..rows).map(|_| random.below(vocab) as u32).collect()).collect();
            let id_tensors =
                ids.iter().map(|ids| Tensor::new(&ids[..], &Device::Cpu)).collect::<Result<Vec<_>, _>>()?;
            let id_tensors = &id_tensors;
            suite.add(&Case {
                label: Label { rows, format: format.name().into(), cold, ..suite.label("embedding") },
                counts: counts::embedding(rows, hidden, weights.row_bytes, format != Format::F32),
                products: Products::F32,
                num_copies: num_sets,
                ours: Box::new(|copy| look_up(&weights.ours[copy % num_tables], &ids[copy])),
                peer: match &weights.candles {
                    Candles::Floats(all) => Peer::Candle {
                        name: "Tensor::index_select",
                        call: Box::new(move |copy| Ok(all[copy % num_tables].index_select(&id_tensors[copy], 0)?)),
                        arrange: Ok,
                    },
                    Candles::Blocks(all) => Peer::Candle {
                        name: "QTensor::embedding",
                        call: Box::new(move |copy| Ok(all[copy % num_tables].tensor.embedding(&id_tensors[copy])?)),
                        arrange: Ok,
                    },
                },
                tolerance: EMBEDDING_TOLERANCE,
            })?;
        }
    }
    Ok(())
}

/// As the models read their embedding, which is packed like a layer because it may be the head too.
fn look_up(table: &PackedLinear, ids: &[u32]) -> anyhow::Result<Tensor> {
    let hidden = table.in_features();
    let mut rows = vec![0f32; ids.len() * hidden];
    rows.par_chunks_mut(hidden).zip(ids).try_for_each(|(row, id)| table.row(*id as usize, row))?;
    Ok(Tensor::from_vec(rows, (ids.len(), hidden), &Device::Cpu)?)
}

/// The likeliest token of every row.
pub(super) fn run_argmax(suite: &mut Suite<'_>) -> anyhow::Result<()> {
    reduce(
        suite,
        counts::argmax,
        ("argmax", 0.0),
        |values| argmax(values).0 as f32,
        Peers { name: "Tensor::argmax", call: |logits| logits.argmax(D::Minus1)?.to_dtype(candle_core::DType::F32) },
    )
}

/// The likeliest token of every row, and its probability, as a diffusion model's sampler takes them.
pub(super) fn run_confidence(suite: &mut Suite<'_>) -> anyhow::Result<()> {
    let (sampling, seen) = (Sampling::default(), TokenCounts::default());
    let confidence = |values: &[f32]| {
        let slot = SlotContext {
            sampling: &sampling,
            counts: &seen,
            noise: SlotNoise::new(0, 0, 0),
            forbidden: &[] as &[TokenId],
            logprobs: None,
            confidence: Some(ConfidenceRule { kind: ConfidenceKind::Probability, filtered: false, held_down: &[] }),
        };
        // A row without one fails the comparison.
        choose(values, &slot).confidence.unwrap_or(f32::NAN)
    };
    reduce(
        suite,
        counts::confidence,
        ("confidence", CONFIDENCE_TOLERANCE),
        confidence,
        Peers {
            name: "ops::softmax_last_dim, max",
            call: |logits| candle_nn::ops::softmax_last_dim(logits)?.max(D::Minus1),
        },
    )
}

/// candle's way from logits to a number for each row.
struct Peers {
    name: &'static str,
    call: fn(&Tensor) -> candle_core::Result<Tensor>,
}

/// Logits to a number for each row, rows side by side as those of several sequences are.
fn reduce(
    suite: &mut Suite<'_>,
    count: fn(usize, usize) -> counts::Counts,
    (op, tolerance): (&'static str, f64),
    ours: impl Fn(&[f32]) -> f32 + Sync,
    candles: Peers,
) -> anyhow::Result<()> {
    let vocab = suite.sizes().vocab;
    for rows in suite.rows() {
        // Three times a normal number: some tokens are much likelier than others.
        let logits = (normal(&[rows, vocab], &mut suite.random())? * 3.0)?;
        let values = logits.flatten_all()?.to_vec1::<f32>()?;
        suite.add(&Case {
            label: Label { rows, format: "f32".into(), ..suite.label(op) },
            counts: count(rows, vocab),
            products: Products::F32,
            num_copies: 1,
            ours: Box::new(|_| {
                let found: Vec<f32> = values.par_chunks_exact(vocab).with_max_len(1).map(&ours).collect();
                Ok(Tensor::from_vec(found, rows, &Device::Cpu)?)
            }),
            peer: Peer::Candle { name: candles.name, call: Box::new(|_| Ok((candles.call)(&logits)?)), arrange: Ok },
            tolerance,
        })?;
    }
    Ok(())
}
