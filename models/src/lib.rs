//! Models: what a forward pass is ([`Backbone`]), the families that implement it, and how their weights, tokenizers
//! and chat templates come out of files.
//!
//! | module | holds |
//! |---|---|
//! | [`backbone`] | the trait, its batch and its logits |
//! | [`arch`] | the wiring of the layers |
//! | [`device`] | the same on a GPU |
//! | [`kv`] | pages of keys and values; no policy |
//! | [`config`] | a model's config, checked, and what its family fixes |
//! | [`loader`] | weights by name, packed for the kernels |
//! | [`source`] | folders, GGUF files and the Hub; [`source::load`] puts a model together |
//! | [`text`] | tokenizer and chat template |
//!
//! The families, by the name in [`BackboneSpec::family`]. A row scores the slot after it ("next") or its own ("same").
//!
//! | family | `architectures` | attention | scores | GGUF |
//! |---|---|---|---|---|
//! | `llama` | `LlamaForCausalLM`, `MistralForCausalLM` | causal | next | `llama` |
//! | `qwen2` | `Qwen2ForCausalLM` | causal | next | `qwen2` |
//! | `qwen3` | `Qwen3ForCausalLM` | causal | next | `qwen3` |
//! | `leapfrog_lla` | `LeapfrogLlaForCausalLM` | causal, local linear | next | |
//! | `llada` | `LLaDAModelLM` | full | same | `llada` |
//! | `illada` | `ILLaDAForCausalLM` | full | same | |
//! | `dream` | `DreamModel` | full | next | `dream` |
//! | `sdar` | `SDARForCausalLM` | blocks of 4, or as the config says | same | |
//! | `fast_dllm_v2` | `Fast_dLLM_QwenForCausalLM` | blocks of 32, or as the config says | next | |
//! | `a2d` | `A2DQwen3LMHeadModel`, `A2DQwen2LMHeadModel`, `A2DLlamaLMHeadModel` | full (mdlm) or blocks of 32 from the end of the prompt (bd3lm) | same | |
//! | `llada_moe` | `LLaDAMoEModel`, `LLaDAMoEModelLM` | full | same | `llada-moe` |
//! | `llada2` | `LLaDA2MoeModelLM` | blocks of 32 | same | |
//!
//! `models/docs/lla.md` has the config keys and tensors of `leapfrog_lla`.

pub mod arch;
pub mod backbone;
mod builtin;
pub mod config;
pub mod device;
mod error;
pub mod kv;
mod layers;
pub mod loader;
#[cfg(feature = "testing")]
pub mod reference;
#[cfg(feature = "testing")]
pub mod scripted;
mod solver;
pub mod source;
pub mod text;

pub use backbone::{
    AttentionKind, Backbone, BackboneSpec, BlockOrigin, Capacity, ForwardBatch, KvLayout, LogitAlignment, Logits,
    RowScorer, ScoredRows, Segment, Visibility,
};
pub use builtin::BuiltIn;
pub use config::{AttentionChoice, ConfigHints, Family, LlaConfig, MixerConfig, ModelConfig, RopeScaling};
pub use error::ModelError;
pub use kv::{KvCache, KvTable, PageId};
pub use loader::{Activations, LoadSummary, Quantize, WeightStore};
pub use solver::{SolverDetails, SolverReport};
pub use source::{
    DiffusionHints, GenerationDefaults, JacobiHints, LoadOptions, LoadedModel, ModelSource, Precision, Target,
};
pub use text::{ChatTemplate, Tokenizer};

/// Index of a token in the model's vocabulary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct TokenId(pub u32);
