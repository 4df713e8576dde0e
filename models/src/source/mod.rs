//! Where a model comes from, and everything that is loaded with it.

mod assemble;
pub(crate) mod folder;
pub mod gguf;
mod hub;
mod mask;
pub mod memory;
mod safetensors;
mod target;
mod vocab;

pub use target::{Precision, Target};

use std::{
    ffi::OsStr,
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
};

use kernels::device::Device;
use serde::{Deserialize, Serialize};

use crate::{
    AttentionChoice, Backbone, BuiltIn, ModelError, TokenId,
    loader::{Activations, LoadSummary, Quantize},
    source::folder::ModelFiles,
    text::{ChatTemplate, Tokenizer},
};

/// Where a model lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelSource {
    /// A small model that is part of the program.
    BuiltIn(BuiltIn),
    /// A folder in the layout of a Hugging Face repository.
    Folder(PathBuf),
    /// One GGUF file.
    Gguf(PathBuf),
    /// A repository of the Hugging Face Hub.
    Hub {
        /// `org/name`.
        repo: String,
        /// Branch, tag or commit; `None` is `main`.
        revision: Option<String>,
        /// A GGUF file of the repository; `None` loads its safetensors, or its only GGUF file.
        file: Option<String>,
    },
}

/// How to load a model.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LoadOptions {
    /// What linear weights become; `None` keeps ggml types as they are and makes everything else f32.
    pub quantize: Option<Quantize>,
    /// How finely layers with quantised weights round their inputs, on the processor.
    pub activations: Activations,
    /// What runs the model.
    pub target: Target,
    /// The type that a device computes with; `None` is that of the weights, f16 where they have none.
    pub precision: Option<Precision>,
    /// A `tokenizer.json` to use instead of the model's own.
    pub tokenizer: Option<PathBuf>,
    /// A Jinja file to use instead of the model's own chat template.
    pub chat_template: Option<PathBuf>,
    /// The mask token of a diffusion model; `None` finds it in the config, the tokenizer, or the family's own.
    pub mask_id: Option<TokenId>,
    /// How a diffusion model attends, for families that were published in both ways without saying which.
    pub attention: Option<AttentionChoice>,
}

/// A model with everything that belongs to it.
pub struct LoadedModel {
    /// What the source calls it, see [`ModelSource::id`].
    pub id: String,
    /// The weights, wired.
    pub backbone: Box<dyn Backbone>,
    /// Text to tokens and back.
    pub tokenizer: Arc<Tokenizer>,
    /// Messages to text, if the model is a chat model.
    pub chat_template: Option<Arc<ChatTemplate>>,
    /// Tokens that end a text: of the config, the generation config, and the chat format. Never empty.
    pub stop_ids: Vec<TokenId>,
    /// Sampling settings that the model's authors recommend. A diffusion model for which they recommend no temperature
    /// has temperature 0, as its papers decode.
    pub generation: GenerationDefaults,
    /// How the model was trained for Jacobi decoding, if it was.
    pub jacobi: Option<JacobiHints>,
    /// How the model's authors decode it by diffusion, as far as they say.
    pub diffusion: DiffusionHints,
    /// Formats and bytes of the weights.
    pub summary: LoadSummary,
}

impl fmt::Debug for LoadedModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoadedModel").field("id", &self.id).field("spec", self.backbone.spec()).finish_non_exhaustive()
    }
}

/// Sampling settings from `generation_config.json`; absent ones are `None`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize)]
pub struct GenerationDefaults {
    /// Whether to sample at all; false means greedy whatever the temperature.
    pub do_sample: Option<bool>,
    /// Divides the logits.
    pub temperature: Option<f32>,
    /// Mass of the likeliest tokens to keep.
    pub top_p: Option<f32>,
    /// Number of the likeliest tokens to keep.
    pub top_k: Option<usize>,
    /// Least probability relative to the likeliest token.
    pub min_p: Option<f32>,
    /// Factor against tokens already seen.
    pub repetition_penalty: Option<f32>,
    /// Most tokens to generate.
    pub max_new_tokens: Option<usize>,
}

/// How a consistency model was trained.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
pub struct JacobiHints {
    /// Block width of the training, in tokens.
    #[serde(rename = "n")]
    pub width: usize,
    /// Name of the rule for initial guesses.
    pub guess: Option<String>,
}

impl JacobiHints {
    /// Refuses a width that no decoder can use.
    fn checked(self, origin: &str) -> Result<Self, ModelError> {
        if (1..=MAX_JACOBI_WIDTH).contains(&self.width) {
            return Ok(self);
        }
        Err(ModelError::BadConfig {
            origin: origin.into(),
            reason: format!("the Jacobi width is {}, it must be between 1 and {MAX_JACOBI_WIDTH}", self.width),
        })
    }
}

/// What a diffusion model is decoded with where a request says nothing, from `diffusion.json`; absent values are those
/// of its family.
#[derive(Debug, Clone, Copy, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct DiffusionHints {
    /// Slots decoded together.
    pub block_length: Option<usize>,
    /// Slots of a canvas under full attention.
    pub gen_length: Option<usize>,
    /// Confidence from which a slot is committed (kappa).
    pub threshold: Option<f32>,
    /// That of the slots around an anchor (tau).
    pub relaxed_threshold: Option<f32>,
    /// How far around an anchor (W), in slots.
    pub radius: Option<usize>,
}

impl DiffusionHints {
    /// Refuses what no decoder can use.
    fn checked(self, origin: &str) -> Result<Self, ModelError> {
        let refuse = |reason| Err(ModelError::BadConfig { origin: origin.into(), reason });
        let lens =
            [("block_length", self.block_length, 1), ("gen_length", self.gen_length, 1), ("radius", self.radius, 0)];
        for (name, value, low) in lens {
            if let Some(value) = value.filter(|value| !(low..=MAX_DIFFUSION_LEN).contains(value)) {
                return refuse(format!("`{name}` is {value}, it must be between {low} and {MAX_DIFFUSION_LEN}"));
            }
        }
        if let Some(value) = self.threshold.filter(|value| !(*value > 0.0 && *value <= 1.0)) {
            return refuse(format!("`threshold` is {value}, it must be above 0 and at most 1"));
        }
        if let Some(value) = self.relaxed_threshold.filter(|value| !(0.0..=1.0).contains(value)) {
            return refuse(format!("`relaxed_threshold` is {value}, it must be between 0 and 1"));
        }
        Ok(self)
    }
}

/// Longest block or canvas that a model may recommend, in tokens.
const MAX_DIFFUSION_LEN: usize = 1024;
/// Widest block that a model may claim to be trained for, in tokens.
const MAX_JACOBI_WIDTH: usize = 1024;
/// Tokens that end a turn in the common chat formats. A vocabulary has at most a few of them.
const END_OF_TURN: [&str; 7] =
    ["<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|endoftext|>", "<|end_of_text|>", "<|EOT|>", "<|role_end|>"];

/// The word for all built-in models.
const ALL_BUILT_IN: &str = "builtin";

impl Default for ModelSource {
    /// The first built-in model.
    fn default() -> Self {
        Self::BuiltIn(BuiltIn::default())
    }
}

impl ModelSource {
    /// The models that `texts` name, in their order. `builtin` stands for all built-in models that are not named
    /// besides; everything else is one model.
    pub fn parse_all<'a>(texts: impl IntoIterator<Item = &'a str> + Clone) -> Result<Vec<Self>, ModelError> {
        let named = texts.clone().into_iter().filter(|text| *text != ALL_BUILT_IN).map(str::parse);
        let named = named.collect::<Result<Vec<Self>, _>>()?;
        let mut rest: Vec<Self> = BuiltIn::all().map(Self::BuiltIn).filter(|model| !named.contains(model)).collect();
        let mut named = named.into_iter();
        let mut all = Vec::new();
        for text in texts {
            match text == ALL_BUILT_IN {
                true => all.append(&mut rest),
                false => all.extend(named.next()),
            }
        }
        Ok(all)
    }

    /// What the model is called: the repository, or the name of the folder, file or built-in model.
    pub fn id(&self) -> String {
        match self {
            Self::BuiltIn(model) => model.name().into(),
            Self::Folder(path) => {
                let id = path.canonicalize().ok().as_deref().unwrap_or(path).file_name().map(lossy);
                id.unwrap_or_else(|| lossy(path.as_os_str()))
            }
            Self::Gguf(path) => path.file_stem().map_or_else(|| lossy(path.as_os_str()), lossy),
            Self::Hub { repo, .. } => repo.clone(),
        }
    }
}

impl FromStr for ModelSource {
    type Err = ModelError;

    /// The name of a built-in model, a path that exists, or a Hub id: `org/name`, `org/name@revision`,
    /// `org/name/file.gguf`, `org/name/file.gguf@revision`. What looks like a path but does not exist is an error, not
    /// a Hub id. A folder that is called like a built-in model is `./name`.
    fn from_str(text: &str) -> Result<Self, ModelError> {
        if text == ALL_BUILT_IN {
            return Err(ModelError::NotOneModel);
        }
        if let Ok(model) = text.parse() {
            return Ok(Self::BuiltIn(model));
        }
        let path = Path::new(text);
        if path.is_dir() {
            return Ok(Self::Folder(path.into()));
        }
        if path.exists() {
            return Ok(Self::Gguf(path.into()));
        }
        let (id, revision) = match text.split_once('@') {
            Some((id, revision)) => (id, Some(revision)),
            None => (text, None),
        };
        let parts: Vec<&str> = id.split('/').collect();
        let is_name = |part: &&str| {
            !part.is_empty()
                && !part.starts_with(['.', '-', '~'])
                && part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
        };
        let is_id = parts.iter().all(is_name) && revision.is_none_or(|revision| !revision.is_empty());
        match parts[..] {
            [owner, name] if is_id && !name.ends_with(".gguf") && !name.ends_with(".safetensors") => {
                Ok(Self::Hub { repo: format!("{owner}/{name}"), revision: revision.map(String::from), file: None })
            }
            [owner, name, ref file @ ..] if is_id && id.ends_with(".gguf") && !file.is_empty() => Ok(Self::Hub {
                repo: format!("{owner}/{name}"),
                revision: revision.map(String::from),
                file: Some(file.join("/")),
            }),
            _ if parts.len() > 1 || text.ends_with(".gguf") => Err(ModelError::NoSuchPath { path: path.into() }),
            _ => Err(ModelError::BadSource { name: text.into() }),
        }
    }
}

/// Loads a model: files, config, tokenizer, chat template and weights, in the order of their cost, so that what is
/// broken is found before gigabytes are read. A device that is asked for is opened first.
pub fn load(source: &ModelSource, options: &LoadOptions) -> Result<LoadedModel, ModelError> {
    load_with(source, options, options.target.open()?)
}

/// The same on a device that is already open, whatever [`LoadOptions::target`] says.
pub fn load_on(
    source: &ModelSource,
    options: &LoadOptions,
    device: &Arc<dyn Device>,
) -> Result<LoadedModel, ModelError> {
    load_with(source, options, Some(Arc::clone(device)))
}

fn load_with(
    source: &ModelSource,
    options: &LoadOptions,
    device: Option<Arc<dyn Device>>,
) -> Result<LoadedModel, ModelError> {
    let id = source.id();
    match source {
        ModelSource::BuiltIn(model) => assemble::folder(id, &model.files(), options, device),
        ModelSource::Folder(path) => assemble::folder(id, &ModelFiles::Folder(path.clone()), options, device),
        ModelSource::Gguf(path) => assemble::gguf(id, path, options, device),
        ModelSource::Hub { repo, revision, file } => {
            match hub::download(repo, revision.as_deref(), file.as_deref(), options.attention)? {
                hub::Download::Folder(folder) => assemble::folder(id, &ModelFiles::Folder(folder), options, device),
                hub::Download::Gguf(path) => assemble::gguf(id, &path, options, device),
            }
        }
    }
}

fn lossy(name: &OsStr) -> String {
    name.to_string_lossy().into_owned()
}
