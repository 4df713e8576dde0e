//! Tokenizers that were published as `vocab.json` and `merges.txt`, without a `tokenizer.json`: Dream and others that
//! came with Python code of their own. What cuts text into words is in that code, so only known classes are read.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::gguf::qwen2_json;
use crate::{ModelError, Tokenizer};

/// Classes that cut text as Qwen2 does.
const QWEN2_CLASSES: [&str; 3] = ["Qwen2Tokenizer", "Qwen2TokenizerFast", "DreamTokenizer"];

/// What the files of such a tokenizer say.
#[derive(Debug)]
pub(super) struct VocabFiles {
    /// `vocab.json`: ids by spelling.
    pub(super) vocab: Map<String, Value>,
    /// `merges.txt`.
    pub(super) merges: String,
    /// What `tokenizer_config.json` says of the tokenizer.
    pub(super) config: VocabConfig,
    /// `added_tokens.json`: ids by spelling, where the config does not list added tokens.
    pub(super) added: BTreeMap<String, u32>,
}

/// What `tokenizer_config.json` says of a tokenizer.
#[derive(Debug, Default, Deserialize)]
pub(super) struct VocabConfig {
    tokenizer_class: Option<String>,
    #[serde(default)]
    added_tokens_decoder: BTreeMap<u32, AddedToken>,
}

/// A token that is found in text before anything else.
#[derive(Debug, Deserialize)]
struct AddedToken {
    content: String,
    #[serde(default)]
    special: bool,
}

impl VocabFiles {
    /// The tokenizer; `None` if its class is not known. `origin` is for messages only.
    pub(super) fn tokenizer(mut self, origin: &str) -> Option<Result<Tokenizer, ModelError>> {
        let class = self.config.tokenizer_class.as_deref()?;
        if !QWEN2_CLASSES.contains(&class) {
            return None;
        }
        let mut added = self.config.added_tokens_decoder;
        for (content, id) in self.added {
            added.entry(id).or_insert(AddedToken { content, special: true });
        }
        // In the vocabulary every added token has the id that the files give it, whatever their order.
        self.vocab.extend(added.iter().map(|(id, token)| (token.content.clone(), json!(id))));
        let merges = self.merges.lines().filter(|line| !line.starts_with("#version") && !line.is_empty());
        let merges: Vec<&str> = merges.collect();
        let mut json = qwen2_json(Value::Object(self.vocab), json!(merges))?;
        let describe = |(id, token): (&u32, &AddedToken)| {
            json!({
                "id": id, "content": token.content, "special": token.special,
                "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
            })
        };
        json["added_tokens"] = added.iter().filter(|(_, token)| !token.content.is_empty()).map(describe).collect();
        Some(Tokenizer::from_json(json.to_string().as_bytes(), origin))
    }
}
