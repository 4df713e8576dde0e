//! Puts the parts of a model together and checks that they fit.

use std::{fs, path::Path, sync::Arc};

use kernels::device::Device;

use super::{
    DiffusionHints, END_OF_TURN, GenerationDefaults, JacobiHints, LoadOptions, LoadedModel,
    folder::ModelFiles,
    gguf::{self, GgufFile},
    mask::{self, MaskNames},
    safetensors,
};
use crate::{
    Backbone, ChatTemplate, ConfigHints, Family, ModelConfig, ModelError, Precision, TokenId, Tokenizer, WeightStore,
    device::DeviceTransformer,
    loader::{FileBytes, device::Stored},
};

/// Everything but the weights.
struct Parts {
    id: String,
    origin: String,
    config: ModelConfig,
    mask: MaskNames,
    tokenizer: Tokenizer,
    chat_template: Option<ChatTemplate>,
    /// End tokens beyond those of the config.
    stop_ids: Vec<TokenId>,
    generation: GenerationDefaults,
    jacobi: Option<JacobiHints>,
    diffusion: DiffusionHints,
}

/// Loads a model out of a folder, or out of the program.
pub(super) fn folder(
    id: String,
    files: &ModelFiles,
    options: &LoadOptions,
    device: Option<Arc<dyn Device>>,
) -> Result<LoadedModel, ModelError> {
    let hints = ConfigHints { id: &id, attention: options.attention };
    let mut config = ModelConfig::from_hf_json(&files.config()?, &files.path("config.json"), &hints)?;
    let tokenizer = match &options.tokenizer {
        Some(path) => Tokenizer::from_file(path)?,
        None => files.tokenizer()?,
    };
    let chat_template = match &options.chat_template {
        Some(path) => {
            let (bos, eos) = files.template_tokens()?;
            Some(ChatTemplate::new(&read_template(path)?, bos, eos)?)
        }
        None => files.chat_template()?,
    };
    let (generation, mut stop_ids) = files.generation()?;
    stop_ids.extend(files.tokenizer_eos()?.and_then(|eos| tokenizer.token_id(&eos)));
    let origin = files.origin();
    let jacobi = files.jacobi()?;
    let diffusion = files.diffusion()?;
    let mask = MaskNames { option: options.mask_id, spelling: files.mask_token()? };
    let weights = safetensors::weights(&origin, files.shards()?, &config, options.quantize)?;
    let mut weights = weights.with_activations(options.activations);
    // The head of these models was trained apart from the embeddings, whatever their configs inherited.
    if config.family == Family::A2d && weights.takes_separate_head() {
        config.tie_embeddings = false;
    }
    let parts = Parts { id, origin, config, mask, tokenizer, chat_template, stop_ids, generation, jacobi, diffusion };
    finish(parts, weights, device.map(|device| (device, options.precision)))
}

/// Loads a GGUF file.
pub(super) fn gguf(
    id: String,
    path: &Path,
    options: &LoadOptions,
    device: Option<Arc<dyn Device>>,
) -> Result<LoadedModel, ModelError> {
    let origin = path.display().to_string();
    let file = GgufFile::parse(FileBytes::map(path)?, &origin)?;
    let config = ModelConfig::from_gguf(&file, &ConfigHints { id: &id, attention: options.attention })?;
    let tokenizer = match &options.tokenizer {
        Some(path) => Tokenizer::from_file(path)?,
        None => gguf::tokenizer(&file)?,
    };
    let named = |key: &str| gguf::named_token(&file, &tokenizer, key);
    let bos = named("tokenizer.ggml.bos_token_id")?;
    let eos = named("tokenizer.ggml.eos_token_id")?;
    let chat_template = match (&options.chat_template, file.text("tokenizer.chat_template")) {
        (Some(path), _) => Some(ChatTemplate::new(&read_template(path)?, bos, eos)?),
        (None, Some(source)) => {
            let template = ChatTemplate::new(source, bos, eos)?;
            Some(match file.text("tokenizer.chat_template.tool_use") {
                Some(tools) => template.with_tool_template(tools)?,
                None => template,
            })
        }
        (None, None) => None,
    };
    let stop_ids = gguf::end_of_turn_ids(&file)?;
    let width = file.integer("leapfrog.jacobi.n")?;
    let guess = file.text("leapfrog.jacobi.guess").map(String::from);
    let jacobi = width.map(|width| JacobiHints { width, guess }.checked(&origin)).transpose()?;
    let (generation, diffusion) = (GenerationDefaults::default(), DiffusionHints::default());
    let mask = MaskNames { option: options.mask_id, spelling: None };
    let weights = file.weights(&config, options.quantize).with_activations(options.activations);
    let parts = Parts { id, origin, config, mask, tokenizer, chat_template, stop_ids, generation, jacobi, diffusion };
    finish(parts, weights, device.map(|device| (device, options.precision)))
}

fn read_template(path: &Path) -> Result<String, ModelError> {
    fs::read_to_string(path).map_err(|source| ModelError::Io { path: path.into(), source })
}

/// Checks that the parts belong together, then reads the weights.
fn finish(
    parts: Parts,
    mut weights: WeightStore,
    device: Option<(Arc<dyn Device>, Option<Precision>)>,
) -> Result<LoadedModel, ModelError> {
    let Parts { id, origin, mut config, mask, tokenizer, chat_template, stop_ids, mut generation, jacobi, diffusion } =
        parts;
    let vocab_size = config.vocab_size;
    if tokenizer.vocab_size() > vocab_size {
        return Err(ModelError::TokenizerTooLarge { max_id: tokenizer.vocab_size() as u32 - 1, vocab_size });
    }
    config.mask_id = mask::find(&config, &tokenizer, &mask, &origin)?;
    let tokenizer = match config.mask_id {
        Some(mask) => tokenizer.with_mask(mask, &origin)?,
        None => tokenizer,
    };
    let misplaced = match config.family.is_diffusion() {
        true => jacobi.as_ref().map(|_| "a width for Jacobi decoding (`jacobi.json`)"),
        false => (diffusion != DiffusionHints::default()).then_some("settings for diffusion (`diffusion.json`)"),
    };
    if let Some(what) = misplaced {
        let family = config.family.name();
        let reason = format!("the model comes with {what}, and the family `{family}` is not decoded that way");
        return Err(ModelError::BadConfig { origin, reason });
    }
    if config.family.is_diffusion() {
        generation.temperature.get_or_insert(0.0);
    }
    let end_of_turn = END_OF_TURN.iter().filter_map(|name| tokenizer.token_id(name));
    let mut stop_ids: Vec<TokenId> = config
        .eos_ids
        .iter()
        .copied()
        .chain(stop_ids)
        .chain(end_of_turn.filter(|id| tokenizer.is_special(*id)))
        .filter(|id| (id.0 as usize) < vocab_size && config.mask_id != Some(*id))
        .collect();
    stop_ids.sort_unstable();
    stop_ids.dedup();
    if stop_ids.is_empty() {
        return Err(ModelError::NoEndToken { origin });
    }
    let backbone: Box<dyn Backbone> = match device {
        None => {
            weights.check_memory()?;
            crate::arch::build(&config, &mut weights)?
        }
        Some((device, precision)) => {
            let mut weights = Stored::new(&mut weights, device, precision)?;
            Box::new(DeviceTransformer::load(&config, &mut weights)?)
        }
    };
    let summary = weights.finish()?;
    Ok(LoadedModel {
        id,
        backbone,
        tokenizer: Arc::new(tokenizer),
        chat_template: chat_template.map(Arc::new),
        stop_ids,
        generation,
        jacobi,
        diffusion,
        summary,
    })
}
