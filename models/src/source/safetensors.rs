//! Safetensors files: headers to tensor descriptions. The `safetensors` crate checks that the described ranges lie
//! within the file and do not overlap.

use std::collections::HashMap;

use kernels::GgmlType;
use safetensors::{Dtype, SafeTensors};

use crate::{
    ModelConfig, ModelError, Quantize, WeightStore,
    loader::{FileBytes, TensorEntry},
};

/// One file of a model and what messages call it.
#[derive(Debug)]
pub(crate) struct Shard {
    pub(crate) name: String,
    pub(crate) bytes: FileBytes,
}

/// The weights of one or many files.
pub(crate) fn weights(
    origin: &str,
    shards: Vec<Shard>,
    config: &ModelConfig,
    quantize: Option<Quantize>,
) -> Result<WeightStore, ModelError> {
    let mut tensors = HashMap::new();
    for (file, shard) in shards.iter().enumerate() {
        let corrupt =
            |reason: String| ModelError::Corrupt { origin: shard.name.clone(), format: "safetensors", reason };
        let parsed = SafeTensors::deserialize(&shard.bytes).map_err(|error| corrupt(error.to_string()))?;
        let base = shard.bytes.as_ptr() as usize;
        for (name, view) in parsed.iter() {
            let stored = match view.dtype() {
                Dtype::F32 => GgmlType::F32,
                Dtype::F16 => GgmlType::F16,
                Dtype::BF16 => GgmlType::BF16,
                other => {
                    // Saved buffers such as position ids are integers and no weights.
                    if crate::loader::is_derived(name) {
                        continue;
                    }
                    return Err(ModelError::Unsupported {
                        origin: shard.name.clone(),
                        field: format!("type of tensor `{name}`"),
                        value: other.to_string(),
                        supported: "F32, F16, BF16".into(),
                    });
                }
            };
            let start = view.data().as_ptr() as usize - base;
            let entry =
                TensorEntry { file, stored, shape: view.shape().to_vec(), bytes: start..start + view.data().len() };
            if tensors.insert(name.to_string(), entry).is_some() {
                return Err(corrupt(format!("tensor `{name}` is in two files")));
            }
        }
    }
    let files = shards.into_iter().map(|shard| shard.bytes).collect();
    Ok(WeightStore::new(origin.into(), files, tensors, config, quantize))
}
