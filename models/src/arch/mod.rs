//! Families: how layers are wired. A family differs from another by its [`ModelConfig`]; what cannot be said there
//! gets a file of its own here.

mod decoder;

pub use decoder::Transformer;
pub(crate) use decoder::attention_plan;

use crate::{Backbone, ModelError, config::ModelConfig, loader::WeightStore};

/// Builds the model that `config` describes.
pub fn build(config: &ModelConfig, weights: &mut WeightStore) -> Result<Box<dyn Backbone>, ModelError> {
    Ok(Box::new(Transformer::load(config, weights)?))
}
