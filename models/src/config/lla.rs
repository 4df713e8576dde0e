//! What a `config.json` says of local linear attention.

use std::num::NonZeroUsize;

use kernels::LlaSolver;
use serde::Deserialize;

use crate::ModelError;

/// Most steps that a config may ask for.
const MAX_ITERATIONS: usize = 1 << 16;
/// The keys of a config that are about local linear attention alone begin with this.
const PREFIX: &str = "lla_";
const KEYS: [&str; 4] = ["lla_ridge_floor", "lla_scale", "lla_tolerance", "lla_max_iterations"];

/// How a layer mixes the values that a row sees.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum MixerConfig {
    /// Softmax attention over all of them.
    Softmax,
    /// Local linear attention, with a learned ridge for each head.
    LocalLinear(LlaConfig),
}

/// Local linear attention of all layers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LlaConfig {
    /// The ridge of a head is this and the softplus of its `ridge` tensor's value; above zero.
    pub ridge_floor: f64,
    /// Factor of the scores; `None` is one over the root of `head_dim`.
    pub scale: Option<f32>,
    /// When the system of a query counts as solved.
    pub solver: LlaSolver,
    /// A row sees this many positions, its own among them; `None` is all of them.
    pub window: Option<NonZeroUsize>,
}

impl LlaConfig {
    /// The ridge of a head whose stored value is `theta`: `ridge_floor + softplus(theta)`, in f64 and then rounded.
    pub(crate) fn ridge(&self, theta: f32) -> f32 {
        let theta = f64::from(theta);
        // The exponent is never above zero, so that nothing overflows.
        (self.ridge_floor + theta.max(0.0) + (-theta.abs()).exp().ln_1p()) as f32
    }

    /// [`Self::ridge`] of all heads; as an error, the value whose ridge is not finite, in words.
    pub(crate) fn ridges(&self, theta: &[f32]) -> Result<Vec<f32>, String> {
        let ridges: Vec<f32> = theta.iter().map(|theta| self.ridge(*theta)).collect();
        match ridges.iter().zip(theta).find(|(ridge, _)| !ridge.is_finite()) {
            None => Ok(ridges),
            Some((_, theta)) => {
                let floor = self.ridge_floor;
                Err(format!("{theta}, whose ridge above the floor of {floor} is infinite in f32"))
            }
        }
    }
}

/// The keys of `config.json`.
#[derive(Debug, Deserialize)]
struct RawLla {
    lla_ridge_floor: Option<f64>,
    lla_scale: Option<f32>,
    lla_tolerance: Option<f32>,
    lla_max_iterations: Option<usize>,
    sliding_window: Option<usize>,
    /// Whether `sliding_window` counts, as in configs of Qwen.
    use_sliding_window: Option<bool>,
}

/// Reads the part of a `config.json` that is about the mixer.
pub(super) fn read(text: &str, origin: &str) -> Result<LlaConfig, ModelError> {
    let bad = |reason: String| ModelError::BadConfig { origin: origin.into(), reason };
    let keys: serde_json::Map<String, serde_json::Value> =
        serde_json::from_str(text).map_err(|error| bad(error.to_string()))?;
    if let Some(unknown) = keys.keys().find(|key| key.starts_with(PREFIX) && !KEYS.contains(&key.as_str())) {
        return Err(bad(format!("`{unknown}` is not known; supported: {}", KEYS.join(", "))));
    }
    let raw: RawLla = serde_json::from_str(text).map_err(|error| bad(error.to_string()))?;
    let Some(ridge_floor) = raw.lla_ridge_floor else {
        return Err(bad(
            "missing field `lla_ridge_floor`, the least ridge of a head, for which there is no default".into()
        ));
    };
    // Ridges are f32.
    if !(ridge_floor as f32 > 0.0 && (ridge_floor as f32).is_finite()) {
        return Err(bad(format!("`lla_ridge_floor` is {ridge_floor}, it must be above 0 and finite in f32")));
    }
    if let Some(scale) = raw.lla_scale.filter(|scale| !(*scale >= 0.0 && scale.is_finite())) {
        return Err(bad(format!("`lla_scale` is {scale}, it must be at least 0 and finite in f32")));
    }
    let usual = LlaSolver::default();
    let solver = LlaSolver {
        tolerance: raw.lla_tolerance.unwrap_or(usual.tolerance),
        max_iterations: raw.lla_max_iterations.unwrap_or(usual.max_iterations),
    };
    if !(0.0..1.0).contains(&solver.tolerance) {
        return Err(bad(format!("`lla_tolerance` is {}, it must be at least 0 and below 1", solver.tolerance)));
    }
    if solver.max_iterations > MAX_ITERATIONS {
        let got = solver.max_iterations;
        return Err(bad(format!("`lla_max_iterations` is {got}, it must be at most {MAX_ITERATIONS}")));
    }
    let window = match (raw.use_sliding_window, raw.sliding_window) {
        (Some(false), _) | (None, None) => None,
        (Some(true), None) => return Err(bad("`use_sliding_window` is true and there is no `sliding_window`".into())),
        (None | Some(true), Some(window)) => {
            Some(NonZeroUsize::new(window).ok_or_else(|| bad("`sliding_window` is 0, it must be at least 1".into()))?)
        }
    };
    Ok(LlaConfig { ridge_floor, scale: raw.lla_scale, solver, window })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ridge_is_the_floor_and_a_softplus() {
        let config = LlaConfig { ridge_floor: 0.25, scale: None, solver: LlaSolver::default(), window: None };
        for (theta, expected) in [
            (0.0, 0.943_147_180_559_945_3),
            (1.0, 1.563_261_687_518_222_8),
            (-1.0, 0.563_261_687_518_222_8),
            (-200.0, 0.25),
            // Far beyond where an exponential overflows.
            (5000.0, 5000.25),
        ] {
            assert_eq!(config.ridge(theta), expected as f32, "theta {theta}");
        }
        assert_eq!(LlaConfig { ridge_floor: 3e38, ..config }.ridge(3e38), f32::INFINITY, "for the loader to refuse");
    }
}
