//! A trained network as a model folder, as the server loads it.

use std::{collections::HashMap, fs, path::Path};

use candle_core::{DType, safetensors};
use serde_json::{Value, json};

use crate::{
    Mixer, Net, Text, ZooError,
    net::{NORM_EPS, ROPE_THETA},
    text::Specials,
};

/// Longest text that the models are served with, in tokens.
pub const CONTEXT_LEN: usize = 512;

/// Slots of a canvas where a request says nothing: two blocks hold every answer of the tasks.
const CANVAS_LEN: usize = 64;

/// What a network is exported as.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Family {
    /// Causal.
    Llama,
    /// Causal, with normed heads.
    Qwen3,
    /// Causal, with normed heads and local linear attention.
    Lla,
    /// Causal, with the width that it was trained to decode at once.
    Cllm {
        /// Tokens of a window.
        width: usize,
    },
    /// Full attention; a row scores the slot after it.
    Dream {
        /// Slots of a block.
        block_len: usize,
        /// LocalLeap's kappa, tau and W for it; chosen on validation problems.
        local_leap: (f64, f64, usize),
    },
    /// Attention by blocks; a row scores the slot after it.
    FastDllm {
        /// Tokens of a block.
        block_len: usize,
    },
}

/// The number with the fewest digits that reads as the same f32.
fn shortest(number: f32) -> Value {
    number.to_string().parse::<f64>().map_or(Value::Null, |number| json!(number))
}

/// Writes the folder: weights as f16, config, tokenizer, generation config, and `origin` as `training.json`.
pub fn export(net: &Net, text: &Text, family: Family, folder: &Path, origin: &Value) -> Result<(), ZooError> {
    let shape = net.shape();
    let (is_normed, mixer) = (shape.qk_norm, shape.mixer);
    let fits = match family {
        Family::Lla => is_normed && matches!(mixer, Mixer::Lla { .. }),
        Family::Qwen3 => is_normed && mixer.is_softmax(),
        Family::Llama | Family::Cllm { .. } | Family::Dream { .. } | Family::FastDllm { .. } => {
            !is_normed && mixer.is_softmax()
        }
    };
    if !fits {
        let reason =
            format!("a network with norms on heads: {is_normed}, and {mixer:?} is not of the family {family:?}");
        return Err(ZooError::Settings(reason));
    }
    fs::create_dir_all(folder).map_err(|source| ZooError::Io { path: folder.into(), source })?;
    let halves: Result<HashMap<_, _>, _> = net
        .parameters()
        .iter()
        .map(|(name, var)| Ok::<_, ZooError>((name.clone(), var.to_dtype(DType::F16)?)))
        .collect();
    safetensors::save(&halves?, folder.join("model.safetensors"))?;
    text.save(folder, CONTEXT_LEN)?;
    let mut config = json!({
        "architectures": [match family {
            Family::Llama | Family::Cllm { .. } => "LlamaForCausalLM",
            Family::Qwen3 => "Qwen3ForCausalLM",
            Family::Lla => "LeapfrogLlaForCausalLM",
            Family::Dream { .. } => "DreamModel",
            Family::FastDllm { .. } => "Fast_dLLM_QwenForCausalLM",
        }],
        "model_type": match family {
            Family::Llama | Family::Cllm { .. } => "llama",
            Family::Qwen3 => "qwen3",
            Family::Lla => "leapfrog_lla",
            Family::Dream { .. } => "Dream",
            Family::FastDllm { .. } => "Fast_dLLM_Qwen",
        },
        "vocab_size": shape.vocab,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.ffn,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": CONTEXT_LEN,
        "rms_norm_eps": f64::from(NORM_EPS),
        "rope_theta": ROPE_THETA,
        "tie_word_embeddings": true,
        "torch_dtype": "float16",
        "bos_token_id": Specials::BOS,
        "eos_token_id": Specials::END,
        "pad_token_id": Specials::PAD,
    });
    if let Mixer::Lla { ridge_floor } = mixer {
        config["lla_ridge_floor"] = shortest(ridge_floor);
    }
    match family {
        Family::Llama | Family::Qwen3 | Family::Lla | Family::Cllm { .. } => {}
        Family::Dream { .. } => config["mask_token_id"] = json!(Specials::MASK),
        Family::FastDllm { block_len } => {
            config["mask_token_id"] = json!(Specials::MASK);
            config["bd_size"] = json!(block_len);
        }
    }
    let generation = json!({
        "bos_token_id": Specials::BOS, "eos_token_id": Specials::END, "pad_token_id": Specials::PAD, "do_sample": false,
    });
    let mut files =
        vec![("config.json", config), ("generation_config.json", generation), ("training.json", origin.clone())];
    match family {
        Family::Llama | Family::Qwen3 | Family::Lla => {}
        Family::Cllm { width } => {
            files.push((
                "jacobi.json",
                json!({ "n": width, "guess": "context-random", "trained_on": "the zoo's tasks" }),
            ));
        }
        Family::Dream { block_len, local_leap: (kappa, tau, radius) } => files.push((
            "diffusion.json",
            json!({
                "block_length": block_len, "gen_length": CANVAS_LEN,
                "threshold": kappa, "relaxed_threshold": tau, "radius": radius,
            }),
        )),
        Family::FastDllm { block_len } => files.push(("diffusion.json", json!({ "block_length": block_len }))),
    }
    for (name, value) in files {
        let path = folder.join(name);
        fs::write(&path, format!("{value:#}\n")).map_err(|source| ZooError::Io { path, source })?;
    }
    Ok(())
}
