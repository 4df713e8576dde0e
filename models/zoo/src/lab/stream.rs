//! Test-time regression: an estimator without weights reads a stream of keys and values and names the value of the next
//! key. The stream is piecewise linear and changes: each segment has keys around a centre of its own, on the sphere, and a
//! linear map of its own.

use std::{fmt, sync::Arc};

use candle_core::{Device, Tensor};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::{
    Rows, ZooError,
    net::{Attention, Lla, Weighting, normal, ops::copied},
};

/// Positions of a stream whose errors are one figure.
pub const SPAN: usize = 16;

/// What names values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Estimator {
    /// Linear attention with the feature map `elu + 1`: an average of all values.
    LinearAttention,
    /// Ridge regression with an intercept over all pairs: local linear attention with a scale of zero.
    GlobalLinear,
    /// Softmax attention: an average of the values of near keys.
    LocalConstant,
    /// Local linear attention: ridge regression over near keys.
    LocalLinear,
}

impl Estimator {
    /// All.
    pub const ALL: [Self; 4] = [Self::LinearAttention, Self::GlobalLinear, Self::LocalConstant, Self::LocalLinear];

    /// Scales and ridges to choose from; an estimator without one has a single entry, which it does not read.
    fn grid(self) -> Vec<(f32, f32)> {
        const SCALES: [f32; 7] = [0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0];
        const RIDGES: [f32; 7] = [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0];
        match self {
            Self::LinearAttention => vec![(0.0, 1.0)],
            Self::GlobalLinear => RIDGES.map(|ridge| (0.0, ridge)).to_vec(),
            Self::LocalConstant => SCALES.map(|scale| (scale, 1.0)).to_vec(),
            Self::LocalLinear => SCALES.iter().flat_map(|scale| RIDGES.map(|ridge| (*scale, ridge))).collect(),
        }
    }
}

impl fmt::Display for Estimator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::LinearAttention => "linear attention",
            Self::GlobalLinear => "global linear",
            Self::LocalConstant => "local constant (softmax)",
            Self::LocalLinear => "local linear (LLA)",
        })
    }
}

/// Streams.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct StreamSettings {
    /// Features of a key and of a value.
    pub dim: usize,
    /// Segments of a stream.
    pub segments: usize,
    /// Pairs of a segment, a multiple of [`SPAN`].
    pub segment_len: usize,
    /// Deviation of keys from the centre of their segment, relative to its length, before they return to the sphere.
    pub spread: f32,
    /// Deviation of the noise on values, which have a variance of about one.
    pub noise: f32,
    /// Streams on which scale and ridge are chosen.
    pub validation: usize,
    /// Streams that are reported.
    pub test: usize,
}

impl Default for StreamSettings {
    fn default() -> Self {
        Self { dim: 16, segments: 4, segment_len: 128, spread: 1.0, noise: 0.1, validation: 16, test: 64 }
    }
}

/// An estimator at its best setting.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Tuned {
    /// Which.
    pub estimator: Estimator,
    /// Factor of the scores.
    pub scale: f32,
    /// Ridge, where it has one.
    pub ridge: f32,
    /// Squared error relative to the mean square of the values, for each test stream, as means over [`SPAN`] positions.
    pub errors: Vec<Vec<f64>>,
}

/// Streams of the same length: keys and values, `[streams * len, dim]` each.
struct Streams {
    count: usize,
    len: usize,
    dim: usize,
    keys: Vec<f32>,
    values: Vec<f32>,
}

/// Scales a vector to the length `sqrt(dim)`.
fn to_sphere(vector: &mut [f32]) {
    let factor = (vector.len() as f32 / vector.iter().map(|x| x * x).sum::<f32>()).sqrt();
    vector.iter_mut().for_each(|x| *x *= factor);
}

fn draw(settings: &StreamSettings, seeds: std::ops::Range<u64>) -> Streams {
    let StreamSettings { dim, segments, segment_len, spread, noise, .. } = *settings;
    let len = segments * segment_len;
    let count = (seeds.end - seeds.start) as usize;
    let mut all = Streams { count, len, dim, keys: Vec::new(), values: Vec::new() };
    for seed in seeds {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        for _ in 0..segments {
            let mut center: Vec<f32> = (0..dim).map(|_| normal(&mut rng)).collect();
            to_sphere(&mut center);
            let map: Vec<f32> = (0..dim * dim).map(|_| normal(&mut rng) / (dim as f32).sqrt()).collect();
            for _ in 0..segment_len {
                let mut key: Vec<f32> = center.iter().map(|center| center + spread * normal(&mut rng)).collect();
                to_sphere(&mut key);
                for row in map.chunks_exact(dim) {
                    let value: f32 = row.iter().zip(&key).map(|(w, x)| w * x).sum();
                    all.values.push(value + noise * normal(&mut rng));
                }
                all.keys.extend(key);
            }
        }
    }
    all
}

impl Streams {
    /// What the estimator says, `[streams * len, dim]`. A row sees those before it; the first sees itself.
    fn guesses(&self, estimator: Estimator, (scale, ridge): (f32, f32)) -> Result<Vec<f32>, ZooError> {
        let mut rows = Rows::default();
        for stream in 0..self.count {
            let start = stream * self.len;
            for row in start..start + self.len {
                rows.push(0, 0, [start..row.max(start + 1), 0..0]);
            }
            rows.close(start);
        }
        let weighting = match estimator {
            Estimator::LinearAttention => Weighting::Linear,
            _ => Weighting::Softmax { scale },
        };
        let attention =
            Attention { rows: Arc::new(rows), heads: 1, kv_heads: 1, head_dim: self.dim, theta: 1.0, weighting };
        let shape = (self.count * self.len, self.dim);
        let keys = Tensor::from_slice(&self.keys, shape, &Device::Cpu)?;
        let values = Tensor::from_slice(&self.values, shape, &Device::Cpu)?;
        let out = match estimator {
            Estimator::LinearAttention | Estimator::LocalConstant => keys.apply_op3(&keys, &values, attention)?,
            Estimator::GlobalLinear | Estimator::LocalLinear => {
                // The parameter whose softplus is the ridge.
                let theta = f64::from(ridge).exp_m1().ln() as f32;
                let qkv = Tensor::cat(&[&keys, &keys, &values], 1)?;
                qkv.apply_op2(&Tensor::new(&[theta], &Device::Cpu)?, Lla::new(attention, scale, 0.0))?
            }
        };
        Ok(copied(&out)?)
    }

    /// Squared errors relative to the mean square of the values, by stream and span.
    fn errors(&self, guesses: &[f32]) -> Vec<Vec<f64>> {
        let square =
            self.values.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>() / (self.count * self.len) as f64;
        let error = |(guess, value): (&[f32], &[f32])| {
            guess.iter().zip(value).map(|(guess, value)| f64::from(guess - value).powi(2)).sum::<f64>() / square
        };
        let each: Vec<f64> =
            guesses.chunks_exact(self.dim).zip(self.values.chunks_exact(self.dim)).map(error).collect();
        let spans: Vec<f64> = each.chunks_exact(SPAN).map(|span| span.iter().sum::<f64>() / SPAN as f64).collect();
        spans.chunks_exact(self.len / SPAN).map(<[f64]>::to_vec).collect()
    }
}

/// Tunes every estimator on validation streams and reports it on test streams.
pub fn stream(settings: &StreamSettings) -> Result<Vec<Tuned>, ZooError> {
    let StreamSettings { dim, segments, segment_len, spread, noise, validation, test } = *settings;
    if [dim, segments, segment_len, validation, test].contains(&0) {
        return Err(ZooError::Settings("sizes and counts of streams start at 1".into()));
    }
    if !segment_len.is_multiple_of(SPAN) {
        return Err(ZooError::Settings(format!("a segment of {segment_len} pairs is not a multiple of {SPAN}")));
    }
    if [spread, noise].iter().any(|deviation| !(*deviation >= 0.0 && deviation.is_finite())) {
        return Err(ZooError::Settings(format!("deviations of {spread} and {noise} are not finite and at least 0")));
    }
    let for_tuning = draw(settings, 0..validation as u64);
    let for_test = draw(settings, validation as u64..(validation + test) as u64);
    let mean =
        |errors: &[Vec<f64>]| errors.iter().flatten().sum::<f64>() / errors.iter().map(Vec::len).sum::<usize>() as f64;
    let tuned = Estimator::ALL.into_iter().map(|estimator| {
        let mut best: Option<(f64, (f32, f32))> = None;
        for setting in estimator.grid() {
            let error = mean(&for_tuning.errors(&for_tuning.guesses(estimator, setting)?));
            // A setting whose systems f32 cannot solve is none to choose.
            if error.is_finite() && best.is_none_or(|(least, _)| error < least) {
                best = Some((error, setting));
            }
        }
        let (_, (scale, ridge)) =
            best.ok_or_else(|| ZooError::Settings(format!("no setting of {estimator} gives a finite error")))?;
        let errors = for_test.errors(&for_test.guesses(estimator, (scale, ridge))?);
        Ok(Tuned { estimator, scale, ridge, errors })
    });
    tuned.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_noise_and_change_a_linear_fit_is_exact() {
        let settings =
            StreamSettings { dim: 4, segments: 1, segment_len: 64, noise: 0.0, spread: 3.0, validation: 2, test: 4 };
        for tuned in stream(&settings).unwrap() {
            let late = tuned.errors.iter().map(|errors| errors[3]).sum::<f64>() / 4.0;
            match tuned.estimator {
                Estimator::GlobalLinear | Estimator::LocalLinear => assert!(late < 1e-3, "{tuned:?}: {late}"),
                Estimator::LinearAttention | Estimator::LocalConstant => assert!(late > 1e-3, "{tuned:?}: {late}"),
            }
        }
    }

    #[test]
    fn deviations_that_cannot_be_are_refused() {
        let usual =
            StreamSettings { dim: 4, segments: 1, segment_len: 16, validation: 1, test: 1, ..Default::default() };
        for settings in [
            StreamSettings { noise: f32::NAN, ..usual },
            StreamSettings { noise: -0.1, ..usual },
            StreamSettings { spread: f32::INFINITY, ..usual },
        ] {
            assert!(stream(&settings).unwrap_err().to_string().contains("not finite and at least 0"));
        }
        // Finite, and a value of more than one deviation is not.
        let error = stream(&StreamSettings { noise: f32::MAX, ..usual }).unwrap_err().to_string();
        assert!(error.contains("gives a finite error"), "{error}");
    }
}
