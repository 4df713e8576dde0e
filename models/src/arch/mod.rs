//! Families: how layers are wired. A family differs from another by its [`CausalConfig`]; what cannot be said there
//! gets a file of its own here.

mod causal;

pub use causal::CausalLm;

use crate::{Backbone, ModelError, config::CausalConfig, loader::WeightStore};

/// Builds the model that `config` describes.
pub fn build(config: &CausalConfig, weights: &mut WeightStore) -> Result<Box<dyn Backbone>, ModelError> {
    Ok(Box::new(CausalLm::load(config, weights)?))
}
