//! How each built-in model was trained: stages, one after the other, each from the weights of another.

use std::{fmt, path::PathBuf, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{
    Mixer, Net, Shape, Text, ZooError,
    export::Family,
    train::{Ar, Consistency, Masked, Mix, RunOptions, TrainSettings, Trajectories, load_weights, train},
};

/// A built-in model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Model {
    /// The target of the consistency model, and where the others start.
    Ar,
    /// Decodes windows at once.
    Cllm,
    /// Masked diffusion by blocks.
    Block,
    /// Masked diffusion with full attention.
    Diffusion,
    /// Next-token prediction with local linear attention.
    Lla,
    /// Its twin with softmax attention; measured, not built in.
    LlaTwin,
}

impl Model {
    /// All, in an order in which they can be trained.
    pub const ALL: [Self; 6] = [Self::Ar, Self::Cllm, Self::Block, Self::Diffusion, Self::Lla, Self::LlaTwin];

    /// As it is served.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ar => "leapfrog-ar",
            Self::Cllm => "leapfrog-cllm",
            Self::Block => "leapfrog-block",
            Self::Diffusion => "leapfrog-diffusion",
            Self::Lla => "leapfrog-lla",
            Self::LlaTwin => "leapfrog-lla-twin",
        }
    }

    /// The family whose code serves it.
    pub fn family(self) -> Family {
        match self {
            Self::Ar => Family::Llama,
            Self::Lla => Family::Lla,
            Self::LlaTwin => Family::Qwen3,
            Self::Cllm => Family::Cllm { width: WINDOW_LEN },
            Self::Block => Family::FastDllm { block_len: UNIT_LEN },
            Self::Diffusion => Family::Dream { block_len: CANVAS_BLOCK_LEN, local_leap: LOCAL_LEAP },
        }
    }

    /// Its stages; the last one is the model.
    pub fn stages(self) -> &'static [Stage] {
        match self {
            Self::Ar => &AR,
            Self::Cllm => &CLLM,
            Self::Block => &BLOCK,
            Self::Diffusion => &DIFFUSION,
            Self::Lla => &LLA,
            Self::LlaTwin => &LLA_TWIN,
        }
    }
}

impl fmt::Display for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Model {
    type Err = ZooError;

    fn from_str(text: &str) -> Result<Self, ZooError> {
        Self::ALL.into_iter().find(|model| model.name() == text).ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            ZooError::Settings(format!("`{text}` is not a built-in model; those are {names}"))
        })
    }
}

/// Entries of the vocabulary.
pub const VOCAB: usize = 1024;
/// Tokens of a Jacobi window.
const WINDOW_LEN: usize = 16;
/// Tokens of a block of `leapfrog-block`.
const UNIT_LEN: usize = 16;
/// Slots of a block of `leapfrog-diffusion`.
const CANVAS_BLOCK_LEN: usize = 32;

/// Least ridge of `leapfrog-lla`, a tenth of the variance of a normed key.
const RIDGE_FLOOR: f32 = 0.1;

/// Kappa, tau and W of `leapfrog-diffusion`, chosen on validation problems: as right as one token a pass there.
const LOCAL_LEAP: (f64, f64, usize) = (0.995, 0.97, 2);

/// How a stage trains.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Next-token prediction.
    Ar,
    /// Next-token prediction with normed heads and local linear attention.
    Lla,
    /// Next-token prediction with normed heads and softmax attention.
    LlaTwin,
    /// Consistency training in windows of so many tokens.
    Consistency(usize),
    /// Masked diffusion in blocks of so many tokens.
    Blocks(usize),
    /// Masked diffusion with full attention, decoded in blocks of so many slots.
    Full(usize),
    /// The same on the network's own decoding trajectories.
    Trajectories(usize),
}

/// One run of the trainer.
#[derive(Debug, Clone, PartialEq)]
pub struct Stage {
    /// Its folder among the runs.
    pub name: &'static str,
    /// How it trains.
    pub kind: Kind,
    /// The stage whose weights it starts from; random weights if there is none.
    pub from: Option<&'static str>,
    /// Steps.
    pub steps: usize,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Seed of the data, and of random weights.
    pub seed: u64,
    /// How often each task is drawn.
    pub mix: Mix,
}

/// All tasks as they come.
const EVEN: Mix = [40, 18, 20, 8, 14];
/// More of the word problems, once the others are learnt.
const HARD: Mix = [60, 12, 12, 6, 10];
/// More of what consistency training unlearns first: the word problems, and the sentences of which few repeat.
const WEAK: Mix = [44, 12, 14, 20, 10];

static AR: [Stage; 3] = [
    Stage { name: "ar-1", kind: Kind::Ar, from: None, steps: 1000, learning_rate: 4e-3, seed: 1, mix: EVEN },
    Stage { name: "ar-2", kind: Kind::Ar, from: Some("ar-1"), steps: 900, learning_rate: 2e-3, seed: 2, mix: EVEN },
    Stage { name: "ar-3", kind: Kind::Ar, from: Some("ar-2"), steps: 700, learning_rate: 2e-3, seed: 3, mix: HARD },
];
// The stages of `leapfrog-ar`, for both.
static LLA: [Stage; 3] = [
    Stage { name: "lla-1", kind: Kind::Lla, from: None, steps: 1000, learning_rate: 4e-3, seed: 1, mix: EVEN },
    Stage { name: "lla-2", kind: Kind::Lla, from: Some("lla-1"), steps: 900, learning_rate: 2e-3, seed: 2, mix: EVEN },
    Stage { name: "lla-3", kind: Kind::Lla, from: Some("lla-2"), steps: 700, learning_rate: 2e-3, seed: 3, mix: HARD },
];
static LLA_TWIN: [Stage; 3] = [
    Stage { name: "lla-twin-1", kind: Kind::LlaTwin, from: None, steps: 1000, learning_rate: 4e-3, seed: 1, mix: EVEN },
    Stage {
        name: "lla-twin-2",
        kind: Kind::LlaTwin,
        from: Some("lla-twin-1"),
        steps: 900,
        learning_rate: 2e-3,
        seed: 2,
        mix: EVEN,
    },
    Stage {
        name: "lla-twin-3",
        kind: Kind::LlaTwin,
        from: Some("lla-twin-2"),
        steps: 700,
        learning_rate: 2e-3,
        seed: 3,
        mix: HARD,
    },
];
static CLLM: [Stage; 3] = [
    Stage {
        name: "cllm",
        kind: Kind::Consistency(WINDOW_LEN),
        from: Some("ar-3"),
        steps: 2000,
        learning_rate: 3e-3,
        seed: 1,
        mix: HARD,
    },
    Stage {
        name: "cllm-2",
        kind: Kind::Consistency(WINDOW_LEN),
        from: Some("cllm"),
        steps: 900,
        learning_rate: 1.2e-3,
        seed: 2,
        mix: EVEN,
    },
    Stage {
        name: "cllm-3",
        kind: Kind::Consistency(WINDOW_LEN),
        from: Some("cllm-2"),
        steps: 500,
        learning_rate: 6e-4,
        seed: 3,
        mix: WEAK,
    },
];
static BLOCK: [Stage; 2] = [
    Stage {
        name: "block",
        kind: Kind::Blocks(UNIT_LEN),
        from: Some("cllm-2"),
        steps: 3000,
        learning_rate: 3e-3,
        seed: 1,
        mix: EVEN,
    },
    Stage {
        name: "block-2",
        kind: Kind::Blocks(UNIT_LEN),
        from: Some("block"),
        steps: 2000,
        learning_rate: 2.5e-3,
        seed: 2,
        mix: HARD,
    },
];
// Rates at which what the weights know about the tasks survives the change of recipe.
static DIFFUSION: [Stage; 2] = [
    Stage {
        name: "diffusion",
        kind: Kind::Full(CANVAS_BLOCK_LEN),
        from: Some("block-2"),
        steps: 1200,
        learning_rate: 7e-4,
        seed: 1,
        mix: EVEN,
    },
    Stage {
        name: "diffusion-2",
        kind: Kind::Trajectories(CANVAS_BLOCK_LEN),
        from: Some("diffusion"),
        steps: 700,
        learning_rate: 4e-4,
        seed: 2,
        mix: EVEN,
    },
];

/// How the command runs a stage, whatever the stage.
#[derive(Debug, Clone)]
pub struct StageOptions {
    /// Folder of all runs.
    pub runs: PathBuf,
    /// Threads.
    pub threads: usize,
    /// Steps between checkpoints.
    pub save_every: usize,
    /// Validation problems of each task in an evaluation.
    pub problems: u64,
}

/// Rows of a micro-batch.
const ROWS: usize = 2048;

impl Stage {
    /// All that the result depends on, beside the weights it starts from.
    pub fn settings(&self, text: &Text) -> TrainSettings {
        TrainSettings {
            steps: self.steps,
            warm_up: 40,
            learning_rate: self.learning_rate,
            rows: ROWS,
            micro_batches: 2,
            seed: self.seed,
            mix: self.mix,
            shape: Shape {
                vocab: text.vocab().next_multiple_of(32),
                hidden: 192,
                layers: 4,
                heads: 6,
                kv_heads: 2,
                head_dim: 32,
                ffn: 512,
                qkv_bias: matches!(self.kind, Kind::Blocks(_) | Kind::Full(_) | Kind::Trajectories(_)),
                qk_norm: matches!(self.kind, Kind::Lla | Kind::LlaTwin),
                mixer: if self.kind == Kind::Lla { Mixer::Lla { ridge_floor: RIDGE_FLOOR } } else { Mixer::Softmax },
            },
        }
    }

    /// Runs the stage to its end, from its checkpoint if there is one.
    pub fn run(&self, text: &Text, options: &StageOptions) -> Result<Net, ZooError> {
        let settings = self.settings(text);
        let run = RunOptions {
            folder: options.runs.join(self.name),
            threads: options.threads,
            save_every: options.save_every,
        };
        let start = || match self.from {
            None => Net::new(settings.shape.clone(), settings.seed),
            Some(from) => Net::from_weights(settings.shape.clone(), &load_weights(&options.runs.join(from))?),
        };
        let (text, problems) = (text.clone(), options.problems);
        match self.kind {
            Kind::Ar | Kind::Lla | Kind::LlaTwin => train(&Ar::new(text, &settings, problems)?, &settings, &run, start),
            Kind::Consistency(width) => {
                train(&Consistency::new(text, &settings, problems, width)?, &settings, &run, start)
            }
            Kind::Blocks(len) => train(&Masked::blocks(text, &settings, problems, len)?, &settings, &run, start),
            Kind::Full(len) => train(&Masked::full(text, &settings, problems, len)?, &settings, &run, start),
            Kind::Trajectories(len) => {
                train(&Trajectories::new(text, &settings, problems, len)?, &settings, &run, start)
            }
        }
    }
}
