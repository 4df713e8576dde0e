//! Models: what a forward pass is ([`Backbone`]), the families that implement it, and how their weights, tokenizers
//! and chat templates come out of files.
//!
//! | module | holds |
//! |---|---|
//! | [`backbone`] | the trait, its batch and its logits |
//! | [`arch`] | the families |
//! | [`kv`] | pages of keys and values; no policy |
//! | [`config`] | a causal model's config, checked |
//! | [`loader`] | weights by name, packed for the kernels |
//! | [`source`] | folders, GGUF files and the Hub; [`source::load`] puts a model together |
//! | [`text`] | tokenizer and chat template |

pub mod arch;
pub mod backbone;
mod builtin;
pub mod config;
mod error;
pub mod kv;
mod layers;
pub mod loader;
#[cfg(feature = "testing")]
pub mod reference;
#[cfg(feature = "testing")]
pub mod scripted;
pub mod source;
pub mod text;

pub use backbone::{
    AttentionKind, Backbone, BackboneSpec, BlockOrigin, ForwardBatch, KvLayout, LogitAlignment, Logits, Segment, Visibility,
};
pub use config::{CausalConfig, Family, RopeScaling};
pub use error::ModelError;
pub use kv::{KvCache, KvTable, PageId};
pub use loader::{LoadSummary, Quantize, WeightStore};
pub use source::{AttentionChoice, GenerationDefaults, JacobiHints, LoadOptions, LoadedModel, ModelSource};
pub use text::{ChatTemplate, Tokenizer};

/// Index of a token in the model's vocabulary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct TokenId(pub u32);
