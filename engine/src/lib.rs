//! The engine: requests in, events out, one device thread in between.
//!
//! ```text
//! submit -> queue -> [ admit -> plan -> pack -> forward -> score -> judge -> apply -> emit ] -> events
//! ```
//!
//! The loop in brackets ([`worker`](self)) is the same for every strategy. A strategy is a [`decode::Decoder`]; a model
//! is a [`models::Backbone`]. `engine/specs/architecture.md` says how the two divide the work.
#![forbid(unsafe_code)]

mod cost;
pub mod decode;
mod detok;
pub mod energy;
mod engine;
mod error;
mod event;
mod exposition;
mod metrics;
mod pages;
mod request;
pub mod sampling;
mod scheduler;
mod score;
mod sequence;
mod settings;
mod solver;
#[cfg(feature = "testing")]
pub mod testing;
mod worker;

pub use cost::{CostTable, PassCost};
pub use engine::{Engine, EventStream, Load, ModelInfo};
pub use error::{EngineError, RequestError, SubmitError};
pub use event::{Commit, CommitCounts, DecodeStats, DiffusionStats, Event, Finish, FinishReason, Frame, TokenRecord};
pub use models::{
    Activations, AttentionChoice, AttentionKind, BuiltIn, ModelError, Precision, Quantize, Target, TokenId,
    source::{GenerationDefaults, LoadOptions, LoadedModel, ModelSource, load, load_on},
    text::{ChatTemplate, Tokenizer},
};
pub use request::{
    CacheMode, DecodingOptions, DiffusionOptions, EarlyStop, GuessRule, InfillPart, MAX_LOGPROBS, MAX_STOP_LEN,
    MAX_STOP_STRINGS, MAX_WIDTH, Policy, Preset, Remasking, Request, Sampling, StopRules, Strategy, SuppressEos,
    WindowPolicy,
};
pub use settings::EngineSettings;
