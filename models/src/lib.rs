//! Models: what a forward pass is ([`Backbone`]), the families that implement it, and how their weights, tokenizers
//! and chat templates come out of files.
//!
//! | module | holds |
//! |---|---|
//! | [`backbone`] | the trait, its batch and its logits |
//! | [`kv`] | pages of keys and values; no policy |

pub mod backbone;
mod error;
pub mod kv;

pub use backbone::{
    AttentionKind, Backbone, BackboneSpec, ForwardBatch, KvLayout, LogitAlignment, Logits, Segment, Visibility,
};
pub use error::ModelError;
pub use kv::{KvCache, KvTable, PageId};

/// Index of a token in the model's vocabulary.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, serde::Serialize, serde::Deserialize,
)]
#[serde(transparent)]
pub struct TokenId(pub u32);
