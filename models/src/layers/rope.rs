//! Rotary position embeddings (Su et al., arXiv:2104.09864) with the scalings of published checkpoints.

use candle_core::{Device, Tensor};

use crate::{
    ModelError,
    config::{ModelConfig, RopeScaling},
};

/// Positions of the first tables.
const FIRST_LEN: usize = 1024;

/// Tables of cosines and sines, `[positions, rotary_dims / 2]` each, grown as positions are used: a context of millions
/// of tokens, which a config may claim, costs nothing until somebody fills it.
#[derive(Debug)]
pub(crate) struct Rope {
    /// Angle per position of each pair of features.
    frequencies: Vec<f32>,
    context_len: usize,
    pub(crate) cos: Tensor,
    pub(crate) sin: Tensor,
}

impl Rope {
    pub(crate) fn new(config: &ModelConfig) -> Result<Self, ModelError> {
        let frequencies = frequencies(config);
        let (cos, sin) = tables(&frequencies, FIRST_LEN.min(config.context_len))?;
        Ok(Self { frequencies, context_len: config.context_len, cos, sin })
    }

    /// Makes the tables cover positions `0..len`.
    pub(crate) fn cover(&mut self, len: usize) -> Result<(), ModelError> {
        if len > self.cos.dim(0)? {
            (self.cos, self.sin) = tables(&self.frequencies, len.next_power_of_two().min(self.context_len.max(len)))?;
        }
        Ok(())
    }
}

fn tables(frequencies: &[f32], len: usize) -> Result<(Tensor, Tensor), ModelError> {
    let [cos, sin] = values(frequencies, len);
    let table = |values| Tensor::from_vec(values, (len, frequencies.len()), &Device::Cpu);
    Ok((table(cos)?, table(sin)?))
}

/// Cosines and sines of positions `0..len`, `[len, rotary_dims / 2]` each.
pub(crate) fn values_of(config: &ModelConfig, len: usize) -> [Vec<f32>; 2] {
    values(&frequencies(config), len)
}

fn values(frequencies: &[f32], len: usize) -> [Vec<f32>; 2] {
    // The angle in f32, as the reference implementations have it: a table in f64 would be nearer to the formula and
    // farther from the arithmetic that the checkpoints were trained with.
    let angles: Vec<f32> =
        (0..len).flat_map(|position| frequencies.iter().map(move |frequency| position as f32 * frequency)).collect();
    [f32::cos, f32::sin].map(|f: fn(f32) -> f32| angles.iter().map(|&angle| f(angle)).collect())
}

/// Angle per position of each pair of features, `rotary_dims / 2` values.
fn frequencies(config: &ModelConfig) -> Vec<f32> {
    let base = |pair: usize| 1.0 / config.rope_theta.powf(2.0 * pair as f64 / config.rotary_dims as f64);
    let scale = |pair: usize| match &config.rope_scaling {
        RopeScaling::None => base(pair),
        RopeScaling::Linear { factor } => base(pair) / factor,
        RopeScaling::PerDimension(divisors) => base(pair) / f64::from(divisors[pair]),
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context_len } => {
            // Long waves are stretched by `factor`, short ones are left alone, those between are interpolated.
            let frequency = base(pair);
            let wave_len = 2.0 * std::f64::consts::PI / frequency;
            let turns = *original_context_len as f64 / wave_len;
            let share = ((turns - low_freq_factor) / (high_freq_factor - low_freq_factor)).clamp(0.0, 1.0);
            frequency * (share + (1.0 - share) / factor)
        }
    };
    (0..config.rotary_dims / 2).map(|pair| scale(pair) as f32).collect()
}
