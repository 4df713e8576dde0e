//! In-context regression: each sequence has a piecewise linear function of its own, and each row names the value at its
//! point from the points and values before it.
//!
//! A row holds its point, and the point and the value before it, which stands for a short convolution: so one layer can
//! look up points and average values, and the mixer alone decides how.

use candle_core::{Device, Tensor};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use super::causal_rows;
use crate::{
    Net, ZooError,
    net::{normal, ops::copied},
};

/// Features of a point and of a value.
const POINT: usize = 6;
const VALUE: usize = 4;
/// Point, point before, value before, and a one; the value itself is what the last entries of the output say.
pub(super) const INPUTS: usize = 2 * POINT + 2 * VALUE + 1;
/// Rows of a sequence.
const LEN: usize = 96;
/// Seed of the sequences that networks are examined on.
const EXAM_SEED: u64 = u64::MAX;
/// Rows of an examination that are reported together.
const SPAN: usize = 16;

/// Sequences: inputs `[rows, INPUTS]` and values `[rows, VALUE]`.
struct Sequences {
    inputs: Vec<f32>,
    values: Vec<f32>,
}

fn normals(rng: &mut ChaCha8Rng, count: usize) -> Vec<f32> {
    (0..count).map(|_| normal(rng)).collect()
}

/// `y = A x` on one side of a random plane through the origin, `y = B x` on the other. Values have a variance of one.
fn draw(rng: &mut ChaCha8Rng, count: usize) -> Sequences {
    let mut all = Sequences { inputs: Vec::new(), values: Vec::new() };
    for _ in 0..count {
        let plane = normals(rng, POINT);
        let maps = [normals(rng, POINT * VALUE), normals(rng, POINT * VALUE)];
        let (mut point, mut value) = (vec![0f32; POINT], vec![0f32; VALUE]);
        for _ in 0..LEN {
            let next = normals(rng, POINT);
            let side: f32 = plane.iter().zip(&next).map(|(plane, x)| plane * x).sum();
            let map = &maps[usize::from(side > 0.0)];
            let dot = |row: &[f32]| row.iter().zip(&next).map(|(w, x)| w * x).sum::<f32>() / (POINT as f32).sqrt();
            let result: Vec<f32> = map.chunks_exact(POINT).map(dot).collect();
            all.inputs.extend(&next);
            all.inputs.extend(&point);
            all.inputs.extend(&value);
            all.inputs.extend([0.0; VALUE]);
            all.inputs.push(1.0);
            all.values.extend(&result);
            (point, value) = (next, result);
        }
    }
    all
}

impl Sequences {
    /// What the network says the values are, `[rows, VALUE]`.
    fn guesses(&self, net: &Net) -> Result<Tensor, ZooError> {
        let rows = self.inputs.len() / INPUTS;
        let inputs = Tensor::from_slice(&self.inputs, (rows, INPUTS), &Device::Cpu)?;
        let hidden = net.layers(inputs.matmul(net.embedding()?)?, &causal_rows(rows / LEN, LEN))?;
        // The inputs that are always zero: their embeddings are free to be the output matrix.
        let outputs = net.embedding()?.narrow(0, 2 * POINT + VALUE, VALUE)?;
        Ok(hidden.matmul(&outputs.t()?)?)
    }
}

pub(super) fn loss(net: &Net, rng: &mut ChaCha8Rng, rows: usize) -> Result<Tensor, ZooError> {
    let sequences = draw(rng, (rows / LEN).max(1));
    let guesses = sequences.guesses(net)?;
    let values = Tensor::from_slice(&sequences.values, guesses.shape(), &Device::Cpu)?;
    Ok((guesses - values)?.sqr()?.mean_all()?)
}

/// Mean squared error, relative to the variance of the values, by the number of points before.
pub(super) fn examine(net: &Net, count: usize) -> Result<Vec<(String, f64)>, ZooError> {
    let mut rng = ChaCha8Rng::seed_from_u64(EXAM_SEED);
    let sequences = draw(&mut rng, count);
    let guesses = copied(&sequences.guesses(net)?.detach())?;
    let mut sums = [(0.0, 0.0); LEN / SPAN];
    for (at, (guess, value)) in guesses.chunks_exact(VALUE).zip(sequences.values.chunks_exact(VALUE)).enumerate() {
        let (error, square) = &mut sums[at % LEN / SPAN];
        for (guess, value) in guess.iter().zip(value) {
            *error += f64::from(guess - value).powi(2);
            *square += f64::from(*value).powi(2);
        }
    }
    let spans =
        sums.iter().enumerate().map(|(span, (error, square))| (format!("error_{}", span * SPAN), error / square));
    let (error, square) = sums.iter().fold((0.0, 0.0), |all, sum| (all.0 + sum.0, all.1 + sum.1));
    Ok(spans.chain([("error".to_owned(), error / square)]).collect())
}
