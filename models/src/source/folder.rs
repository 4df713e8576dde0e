//! Model folders in the layout of a Hugging Face repository, on disk or embedded in the program.

use std::{
    borrow::Cow,
    collections::BTreeSet,
    fs, io,
    path::{Component, Path, PathBuf},
};

use serde::Deserialize;

use super::{DiffusionHints, GenerationDefaults, JacobiHints, safetensors::Shard, vocab::VocabFiles};
use crate::{ChatTemplate, ModelError, TokenId, Tokenizer, config::OneOrMany, loader::FileBytes};

/// Largest of the files that are read as a whole; the largest tokenizers have some 40 MB.
const MAX_TEXT_BYTES: u64 = 256 << 20;

/// A model's files by name.
#[derive(Debug, Clone)]
pub(crate) enum ModelFiles {
    /// A folder on disk.
    Folder(PathBuf),
    /// Files that are part of the program.
    Embedded {
        /// The model's name.
        name: &'static str,
        /// Contents by file name.
        files: &'static [(&'static str, &'static [u8])],
    },
}

impl ModelFiles {
    /// What messages call a file of this model.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        match self {
            Self::Folder(folder) => folder.join(name),
            Self::Embedded { name: model, .. } => Path::new(model).join(name),
        }
    }

    /// What messages call the model.
    pub(crate) fn origin(&self) -> String {
        match self {
            Self::Folder(folder) => folder.display().to_string(),
            Self::Embedded { name, .. } => (*name).into(),
        }
    }

    /// The content of a file, or `None` if there is no such file.
    fn read(&self, name: &str) -> Result<Option<Cow<'static, [u8]>>, ModelError> {
        match self {
            Self::Embedded { files, .. } => {
                Ok(files.iter().find(|(file, _)| *file == name).map(|(_, bytes)| Cow::Borrowed(*bytes)))
            }
            Self::Folder(folder) => {
                let path = folder.join(name);
                let failed = |source| ModelError::Io { path: path.clone(), source };
                match fs::metadata(&path) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                    Err(error) => Err(failed(error)),
                    Ok(metadata) if metadata.len() > MAX_TEXT_BYTES => {
                        Err(failed(io::Error::other(format!("it has more than {} MiB", MAX_TEXT_BYTES >> 20))))
                    }
                    Ok(_) => fs::read(&path).map(Cow::Owned).map(Some).map_err(failed),
                }
            }
        }
    }

    /// A JSON file, or `None` if there is no such file.
    fn json<T: serde::de::DeserializeOwned>(&self, name: &str) -> Result<Option<T>, ModelError> {
        let Some(bytes) = self.read(name)? else { return Ok(None) };
        serde_json::from_slice(&bytes).map(Some).map_err(|error| ModelError::BadConfig {
            origin: self.path(name).display().to_string(),
            reason: error.to_string(),
        })
    }

    /// A text file, or `None` if there is no such file.
    fn text(&self, name: &str) -> Result<Option<String>, ModelError> {
        let Some(bytes) = self.read(name)? else { return Ok(None) };
        String::from_utf8(bytes.into_owned()).map(Some).map_err(|_| ModelError::BadConfig {
            origin: self.path(name).display().to_string(),
            reason: "it is not UTF-8".into(),
        })
    }

    fn missing(&self, wanted: &'static str) -> ModelError {
        ModelError::MissingFile { origin: self.origin(), wanted }
    }

    /// The text of `config.json`.
    pub(crate) fn config(&self) -> Result<String, ModelError> {
        self.text("config.json")?.ok_or_else(|| self.missing("config.json"))
    }

    /// The tokenizer.
    pub(crate) fn tokenizer(&self) -> Result<Tokenizer, ModelError> {
        let name = "tokenizer.json";
        if let Some(json) = self.read(name)? {
            return Tokenizer::from_json(&json, &self.path(name).display().to_string());
        }
        let files = self.vocab_files()?;
        let built = files.and_then(|files| files.tokenizer(&self.path("vocab.json").display().to_string()));
        built.unwrap_or_else(|| {
            Err(self.missing("tokenizer.json (of other tokenizer files, only those of Qwen2 and Dream are read)"))
        })
    }

    /// A vocabulary and its merges in files of their own, if there are any.
    fn vocab_files(&self) -> Result<Option<VocabFiles>, ModelError> {
        let (Some(vocab), Some(merges)) = (self.json("vocab.json")?, self.text("merges.txt")?) else { return Ok(None) };
        let config = self.json("tokenizer_config.json")?.unwrap_or_default();
        let added = self.json("added_tokens.json")?.unwrap_or_default();
        Ok(Some(VocabFiles { vocab, merges, config, added }))
    }

    /// The weight files: `model.safetensors`, or the shards that the index names.
    pub(crate) fn shards(&self) -> Result<Vec<Shard>, ModelError> {
        if let Some(shard) = self.shard("model.safetensors")? {
            return Ok(vec![shard]);
        }
        let name = "model.safetensors.index.json";
        let Some(index) = self.json::<ShardIndex>(name)? else {
            return Err(self.missing(
                "model.safetensors and no model.safetensors.index.json (convert PyTorch weights to safetensors first)",
            ));
        };
        let names: BTreeSet<&String> = index.weight_map.values().collect();
        let shards = names.into_iter().map(|shard| {
            let is_plain = matches!(Path::new(shard).components().collect::<Vec<_>>()[..], [Component::Normal(_)]);
            if !is_plain {
                return Err(ModelError::BadConfig {
                    origin: self.path(name).display().to_string(),
                    reason: format!("`{shard}` is not the name of a file in the same folder"),
                });
            }
            self.shard(shard)?.ok_or_else(|| ModelError::NoSuchPath { path: self.path(shard) })
        });
        shards.collect()
    }

    fn shard(&self, name: &str) -> Result<Option<Shard>, ModelError> {
        let bytes = match self {
            Self::Embedded { files, .. } => {
                files.iter().find(|(file, _)| *file == name).map(|(_, bytes)| FileBytes::Embedded(bytes))
            }
            Self::Folder(folder) => {
                let path = folder.join(name);
                path.exists().then(|| FileBytes::map(&path)).transpose()?
            }
        };
        Ok(bytes.map(|bytes| Shard { name: self.path(name).display().to_string(), bytes }))
    }

    /// Recommended sampling settings and end tokens, if there are any.
    pub(crate) fn generation(&self) -> Result<(GenerationDefaults, Vec<TokenId>), ModelError> {
        let name = "generation_config.json";
        let defaults = self.json::<GenerationDefaults>(name)?.unwrap_or_default();
        let ends = self.json::<EndTokens>(name)?.and_then(|ends| ends.eos_token_id);
        Ok((defaults, ends.map(|ids| ids.ids()).unwrap_or_default()))
    }

    /// How the model was trained for Jacobi decoding, if it was.
    pub(crate) fn jacobi(&self) -> Result<Option<JacobiHints>, ModelError> {
        let hints = self.json::<JacobiHints>("jacobi.json")?;
        hints.map(|hints| hints.checked(&self.path("jacobi.json").display().to_string())).transpose()
    }

    /// What a diffusion model is decoded with.
    pub(crate) fn diffusion(&self) -> Result<DiffusionHints, ModelError> {
        let name = "diffusion.json";
        let hints = self.json::<DiffusionHints>(name)?.unwrap_or_default();
        hints.checked(&self.path(name).display().to_string())
    }

    /// The chat template, from its own file or from the tokenizer's config.
    pub(crate) fn chat_template(&self) -> Result<Option<ChatTemplate>, ModelError> {
        let config = self.json::<TokenizerConfig>("tokenizer_config.json")?.unwrap_or_default();
        let (bos, eos) = (config.bos_token.map(SpecialToken::text), config.eos_token.map(SpecialToken::text));
        let in_file = match self.text("chat_template.jinja")? {
            Some(source) => Some(TemplateSource::One(source)),
            None => self.json::<TemplateFile>("chat_template.json")?.map(|file| file.chat_template),
        };
        let Some(source) = in_file.or(config.chat_template) else { return Ok(None) };
        match source {
            TemplateSource::One(source) => ChatTemplate::new(&source, bos, eos).map(Some),
            TemplateSource::Named(templates) => {
                let find = |name: &str| templates.iter().find(|template| template.name == name);
                let Some(default) = find("default").or(templates.first()) else { return Ok(None) };
                let template = ChatTemplate::new(&default.template, bos, eos)?;
                match find("tool_use") {
                    Some(tools) => template.with_tool_template(&tools.template).map(Some),
                    None => Ok(Some(template)),
                }
            }
        }
    }

    /// Start and end token as a chat template sees them.
    pub(crate) fn template_tokens(&self) -> Result<(Option<String>, Option<String>), ModelError> {
        let config = self.json::<TokenizerConfig>("tokenizer_config.json")?.unwrap_or_default();
        Ok((config.bos_token.map(SpecialToken::text), config.eos_token.map(SpecialToken::text)))
    }

    /// The spelling of the mask token, from the tokenizer's config or from the map of special tokens.
    pub(crate) fn mask_token(&self) -> Result<Option<String>, ModelError> {
        for name in ["tokenizer_config.json", "special_tokens_map.json"] {
            let config = self.json::<TokenizerConfig>(name)?.unwrap_or_default();
            if let Some(mask) = config.mask_token {
                return Ok(Some(mask.text()));
            }
        }
        Ok(None)
    }

    /// The end token that the tokenizer's config names.
    pub(crate) fn tokenizer_eos(&self) -> Result<Option<String>, ModelError> {
        self.template_tokens().map(|(_, eos)| eos)
    }
}

#[derive(Debug, Deserialize)]
struct ShardIndex {
    weight_map: std::collections::HashMap<String, String>,
}

#[derive(Debug, Deserialize)]
struct EndTokens {
    eos_token_id: Option<OneOrMany>,
}

#[derive(Debug, Default, Deserialize)]
struct TokenizerConfig {
    bos_token: Option<SpecialToken>,
    eos_token: Option<SpecialToken>,
    mask_token: Option<SpecialToken>,
    chat_template: Option<TemplateSource>,
}

#[derive(Debug, Deserialize)]
struct TemplateFile {
    chat_template: TemplateSource,
}

/// A special token by its text, or with attributes.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum SpecialToken {
    Text(String),
    Attributes { content: String },
}

impl SpecialToken {
    fn text(self) -> String {
        match self {
            Self::Text(text) | Self::Attributes { content: text } => text,
        }
    }
}

/// One template, or several by name.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum TemplateSource {
    One(String),
    Named(Vec<NamedTemplate>),
}

#[derive(Debug, Deserialize)]
struct NamedTemplate {
    name: String,
    template: String,
}
