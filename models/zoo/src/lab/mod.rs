//! Ways to mix rows against each other, on small problems and at equal budgets.
//!
//! | module | problem |
//! |---|---|
//! | `recall` | multi-query associative recall, trained |
//! | `regression` | in-context regression of a piecewise linear function, trained |
//! | `stream` | test-time regression on a stream that changes, not trained |

mod recall;
mod regression;
mod stream;

use std::{collections::BTreeMap, fmt, str::FromStr, sync::Arc, time::Instant};

use candle_core::Tensor;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

pub use self::{
    recall::NUM_PAIRS,
    stream::{Estimator, SPAN, StreamSettings, Tuned, stream},
};
use crate::{Mixer, Net, Optimizer, Rows, Shape, ZooError};

/// How a trained network mixes rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Contender {
    /// Linear attention with the feature map `elu + 1`.
    Linear,
    /// Softmax attention.
    Softmax,
    /// Local linear attention.
    Lla,
}

impl Contender {
    /// All.
    pub const ALL: [Self; 3] = [Self::Linear, Self::Softmax, Self::Lla];

    fn mixer(self) -> Mixer {
        match self {
            Self::Linear => Mixer::Linear,
            Self::Softmax => Mixer::Softmax,
            Self::Lla => Mixer::Lla { ridge_floor: 0.1 },
        }
    }
}

impl FromStr for Contender {
    type Err = ZooError;

    fn from_str(text: &str) -> Result<Self, ZooError> {
        match text {
            "linear" => Ok(Self::Linear),
            "softmax" => Ok(Self::Softmax),
            "lla" => Ok(Self::Lla),
            _ => Err(ZooError::Settings(format!("`{text}` is not one of linear, softmax, lla"))),
        }
    }
}

impl fmt::Display for Contender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Linear => "linear attention",
            Self::Softmax => "softmax attention",
            Self::Lla => "local linear attention",
        })
    }
}

/// What a network is trained on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Problem {
    /// Keys with values, then the keys again in another order: the value of each is wanted.
    Recall,
    /// Points of a piecewise linear function: the value of the next is wanted.
    Regression,
}

impl Problem {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Recall, Self::Regression];
}

impl FromStr for Problem {
    type Err = ZooError;

    fn from_str(text: &str) -> Result<Self, ZooError> {
        match text {
            "recall" => Ok(Self::Recall),
            "regression" => Ok(Self::Regression),
            _ => Err(ZooError::Settings(format!("`{text}` is not one of recall, regression"))),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Recall => "recall",
            Self::Regression => "regression",
        })
    }
}

/// The budget of a run; the same for all contenders.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct LabSettings {
    /// Steps.
    pub steps: usize,
    /// Rows of a step, roughly.
    pub rows: usize,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Sequences of an evaluation, per setting of the problem.
    pub sequences: usize,
}

/// What a run came to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LabRun {
    /// What was trained on.
    pub problem: Problem,
    /// What was trained.
    pub contender: Contender,
    /// Seed of the weights and of the data.
    pub seed: u64,
    /// The budget.
    pub settings: LabSettings,
    /// Parameters.
    pub parameters: usize,
    /// Wall-clock time of the steps, on one thread.
    pub seconds: f64,
    /// Figures on sequences that no run trained on, by name.
    pub figures: Vec<(String, f64)>,
    /// The loss, as means over a twentieth of the steps each.
    pub losses: Vec<f64>,
}

/// Gradients above this norm are scaled down to it.
const MAX_NORM: f64 = 1.0;
/// Share of the steps over which the learning rate rises.
const WARM_UP: f64 = 0.05;
/// Features of a row, of a head; layers and heads.
const HIDDEN: usize = 64;
const HEAD_DIM: usize = 32;
const LAYERS: usize = 2;
const HEADS: usize = 2;

/// A network of `inputs` inputs.
fn shape(inputs: usize, contender: Contender) -> Shape {
    Shape {
        vocab: inputs,
        hidden: HIDDEN,
        layers: LAYERS,
        heads: HEADS,
        kv_heads: HEADS,
        head_dim: HEAD_DIM,
        ffn: 2 * HIDDEN,
        qkv_bias: false,
        qk_norm: true,
        mixer: contender.mixer(),
    }
}

/// Rows that see themselves and those before them in sequences of `len`, without positions.
fn causal_rows(sequences: usize, len: usize) -> Arc<Rows> {
    let mut rows = Rows::default();
    for _ in 0..sequences {
        let start = rows.len();
        for row in start..start + len {
            rows.push(0, 0, [start..row + 1, 0..0]);
        }
        rows.close(start);
    }
    Arc::new(rows)
}

/// Trains one network and examines it.
pub fn run(problem: Problem, contender: Contender, settings: LabSettings, seed: u64) -> Result<LabRun, ZooError> {
    let LabSettings { steps, learning_rate, .. } = settings;
    if steps == 0 || settings.rows == 0 || settings.sequences == 0 {
        return Err(ZooError::Settings("steps, rows and sequences start at 1".into()));
    }
    let inputs = match problem {
        Problem::Recall => recall::INPUTS,
        Problem::Regression => regression::INPUTS,
    };
    let net = Net::new(shape(inputs, contender), seed)?;
    let mut optimizer = Optimizer::default();
    // Every contender gets the data of the seed, in the same order.
    let mut rng = ChaCha8Rng::seed_from_u64(seed.wrapping_add(1 << 32));
    let begun = Instant::now();
    let (mut losses, mut sum, mut count) = (Vec::new(), 0.0, 0);
    for step in 0..steps {
        let loss = match problem {
            Problem::Recall => recall::loss(&net, &mut rng, settings.rows)?,
            Problem::Regression => regression::loss(&net, &mut rng, settings.rows)?,
        };
        let value = loss.to_scalar::<f32>()?;
        if !value.is_finite() {
            return Err(ZooError::Diverged { step, loss: value });
        }
        let store = loss.backward()?;
        let grads = net.parameters().iter().filter_map(|(name, var)| Some((name.clone(), store.get(var)?.clone())));
        let grads: BTreeMap<String, Tensor> = grads.collect();
        let done = step as f64 / steps as f64;
        let rate = learning_rate * ((done + 1.0 / steps as f64) / WARM_UP).min((1.0 - done) / (1.0 - WARM_UP));
        optimizer.step(net.parameters(), &grads, rate, MAX_NORM, 1)?;
        (sum, count) = (sum + f64::from(value), count + 1);
        if (step + 1) * 20 / steps > step * 20 / steps {
            losses.push(sum / f64::from(count));
            (sum, count) = (0.0, 0);
        }
    }
    let seconds = begun.elapsed().as_secs_f64();
    let figures = match problem {
        Problem::Recall => recall::examine(&net, settings.sequences)?,
        Problem::Regression => regression::examine(&net, settings.sequences)?,
    };
    Ok(LabRun { problem, contender, seed, settings, parameters: net.num_params(), seconds, figures, losses })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_contender_learns_something() {
        let settings = LabSettings { steps: 40, rows: 128, learning_rate: 1e-2, sequences: 2 };
        for contender in Contender::ALL {
            // The loss of a network that knows nothing but the kind of token it should name falls from ln 512 to ln 128.
            let LabRun { losses, .. } = run(Problem::Recall, contender, settings, 1).unwrap();
            let end = losses[15..].iter().sum::<f64>() / 5.0;
            assert!(losses[0] > 6.0 && end < 5.7, "{contender}: {losses:?}");
        }
    }

    #[test]
    fn a_run_repeats_and_its_seed_counts() {
        let settings = LabSettings { steps: 3, rows: 128, learning_rate: 1e-2, sequences: 2 };
        for problem in Problem::ALL {
            for contender in Contender::ALL {
                let [first, again, other] = [1, 1, 2].map(|seed| run(problem, contender, settings, seed).unwrap());
                assert_eq!((&first.figures, &first.losses), (&again.figures, &again.losses), "{problem}, {contender}");
                assert_ne!(first.losses, other.losses, "{problem}, {contender}");
                assert_eq!(first.losses.len(), 3);
            }
        }
    }

    #[test]
    fn a_run_without_steps_is_refused() {
        let settings = LabSettings { steps: 0, rows: 256, learning_rate: 1e-2, sequences: 4 };
        assert!(run(Problem::Recall, Contender::Lla, settings, 1).is_err());
    }
}
