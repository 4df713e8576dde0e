//! Multi-query associative recall (Arora et al., arXiv:2312.04927): keys with their values, then each key once more.
//!
//! Every row is the sum of the embeddings of its token and of the token before it, which stands for a short
//! convolution: so one layer can hold a key with its value, and the mixer alone decides how many it can tell apart.

use candle_core::{Device, Tensor};
use rand::Rng;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use super::causal_rows;
use crate::{
    Net, ZooError,
    net::{arg_max, ops::copied, token_loss},
};

/// Keys and values.
const KEYS: usize = 128;
const VALUES: usize = 128;
/// Embeddings: of tokens, then of tokens before.
pub(super) const INPUTS: usize = 2 * (KEYS + VALUES);
/// Pairs of a sequence, in training as in examination.
pub const NUM_PAIRS: [usize; 4] = [8, 16, 32, 64];
/// Seed of the sequences that networks are examined on.
const EXAM_SEED: u64 = u64::MAX;

/// Sequences with as many pairs: tokens, and the value that each wanted row should name.
struct Sequences {
    count: usize,
    len: usize,
    tokens: Vec<u32>,
    wanted: Vec<u32>,
    values: Vec<u32>,
}

/// A random order of `0..len`.
fn order(rng: &mut ChaCha8Rng, len: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..len).collect();
    for i in (1..len).rev() {
        order.swap(i, rng.random_range(0..=i));
    }
    order
}

fn draw(rng: &mut ChaCha8Rng, count: usize, pairs: usize) -> Sequences {
    let len = 4 * pairs;
    let mut all = Sequences { count, len, tokens: Vec::new(), wanted: Vec::new(), values: Vec::new() };
    for _ in 0..count {
        let keys = order(rng, KEYS);
        let pairs: Vec<(u32, u32)> =
            keys[..pairs].iter().map(|key| (*key as u32, (KEYS + rng.random_range(0..VALUES)) as u32)).collect();
        for (key, value) in &pairs {
            all.tokens.extend([*key, *value]);
        }
        for pair in order(rng, pairs.len()) {
            let (key, value) = pairs[pair];
            all.wanted.push(all.tokens.len() as u32);
            all.values.push(value);
            all.tokens.extend([key, value]);
        }
    }
    all
}

impl Sequences {
    /// Logits of the wanted rows, `[wanted, INPUTS]`.
    fn logits(&self, net: &Net) -> Result<Tensor, ZooError> {
        let second = (KEYS + VALUES) as u32;
        // The first token of a sequence stands before itself.
        let before: Vec<u32> = (0..self.tokens.len())
            .map(|at| second + self.tokens[if at % self.len == 0 { at } else { at - 1 }])
            .collect();
        let embedding = net.embedding()?;
        let own = embedding.index_select(&Tensor::new(self.tokens.as_slice(), &Device::Cpu)?, 0)?;
        let xs = (own + embedding.index_select(&Tensor::new(before, &Device::Cpu)?, 0)?)?;
        net.logits(&net.layers(xs, &causal_rows(self.count, self.len))?, &self.wanted)
    }
}

pub(super) fn loss(net: &Net, rng: &mut ChaCha8Rng, rows: usize) -> Result<Tensor, ZooError> {
    let pairs = NUM_PAIRS[rng.random_range(0..NUM_PAIRS.len())];
    let sequences = draw(rng, (rows / (4 * pairs)).max(1), pairs);
    let weights = vec![1.0 / sequences.values.len() as f32; sequences.values.len()];
    token_loss(&sequences.logits(net)?, sequences.values, weights)
}

/// Share of values named rightly, by number of pairs.
pub(super) fn examine(net: &Net, count: usize) -> Result<Vec<(String, f64)>, ZooError> {
    let mut figures = Vec::new();
    for pairs in NUM_PAIRS {
        let mut rng = ChaCha8Rng::seed_from_u64(EXAM_SEED - pairs as u64);
        let sequences = draw(&mut rng, count, pairs);
        let logits = copied(&sequences.logits(net)?.detach())?;
        let hits = logits.chunks_exact(INPUTS).zip(&sequences.values).filter(|(row, value)| arg_max(row) == **value);
        figures.push((format!("accuracy_{pairs}"), hits.count() as f64 / sequences.values.len() as f64));
    }
    Ok(figures)
}
