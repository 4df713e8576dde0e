//! The tokenizer out of GGUF metadata, as the `tokenizer.json` that the model was published with would have it.
//!
//! A GGUF file names its pre-tokenizer instead of spelling it out, and SentencePiece models have scores instead of
//! merges. Both are expanded here.

use std::collections::HashMap;

use serde_json::{Value, json};

use super::GgufFile;
use crate::{ModelError, TokenId, Tokenizer};

/// Kinds of tokens, as `tokenizer.ggml.token_type` numbers them.
const NORMAL: i128 = 1;
const UNKNOWN: i128 = 2;
const CONTROL: i128 = 3;
const USER_DEFINED: i128 = 4;
/// The pre-tokenizers, as an error message lists them.
const SUPPORTED_PRE: &str = "default, gpt-2, smollm, starcoder, refact, command-r, llama-bpe (llama3, llama-v3, \
                             falcon3, smaug-bpe, dbrx), qwen2 (deepseek-r1-qwen, stablelm2), deepseek-coder, \
                             deepseek-llm, tekken, llada-moe (bailingmoe, bailingmoe2)";

/// Splits of the families, in the notation of the tokenizers they were published with.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const BAILING: &str =
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Chinese, Korean and neighbours, as the DeepSeek tokenizers delimit them.
const DEEPSEEK_CJK: &str = "[一-龥ࠀ-一가-퟿]+";
/// Letters of alphabets with case, as the DeepSeek LLM tokenizer lists them.
const DEEPSEEK_LETTERS: &str = "\\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-ώᾀ-ᾴᾶ-ᾼιῂ-ῄῆ-ῌῐ-ΐῖ-Ίῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤΩℨK-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+";

/// Builds the tokenizer of a GGUF file.
pub fn tokenizer(file: &GgufFile) -> Result<Tokenizer, ModelError> {
    let tokens = file.texts("tokenizer.ggml.tokens")?.ok_or_else(|| file.bad("it has no tokenizer".into()))?;
    let mut ids = HashMap::with_capacity(tokens.len());
    for (id, token) in tokens.iter().enumerate() {
        if ids.insert(token.as_str(), id).is_some() {
            return Err(file.bad(format!("the tokenizer has `{}` twice", token.escape_debug())));
        }
    }
    let types = match file.integers("tokenizer.ggml.token_type")? {
        None => vec![NORMAL; tokens.len()],
        Some(types) if types.len() == tokens.len() => types,
        Some(types) => return Err(file.bad(format!("{} token types for {} tokens", types.len(), tokens.len()))),
    };
    let mut json = match file.text("tokenizer.ggml.model") {
        Some("gpt2") => byte_level(file, &ids)?,
        Some("llama") => sentence_piece(file, &tokens, &ids, &types)?,
        other => {
            return Err(ModelError::Unsupported {
                origin: file.origin().into(),
                field: "tokenizer.ggml.model".into(),
                value: other.map_or_else(|| "missing".into(), |name| format!("`{name}`")),
                supported: "gpt2 (byte-level BPE), llama (SentencePiece)".into(),
            });
        }
    };
    json["added_tokens"] = added_tokens(&tokens, &types);
    json["post_processor"] = post_processor(file, &tokens)?;
    Tokenizer::from_json(json.to_string().as_bytes(), file.origin())
}

/// Tokens besides the end of text that end a turn, as far as the metadata names them.
pub(crate) fn end_of_turn_ids(file: &GgufFile) -> Result<Vec<TokenId>, ModelError> {
    let keys = ["tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"];
    let ids = keys.iter().map(|key| Ok(file.integer(key)?.map(TokenId))).collect::<Result<Vec<_>, ModelError>>()?;
    Ok(ids.into_iter().flatten().collect())
}

/// The spelling of the token whose id `key` holds.
pub(crate) fn named_token(file: &GgufFile, tokenizer: &Tokenizer, key: &str) -> Result<Option<String>, ModelError> {
    Ok(file.integer(key)?.map(|id| tokenizer.token_text(TokenId(id)).into_owned()).filter(|text| !text.is_empty()))
}

fn byte_level(file: &GgufFile, ids: &HashMap<&str, usize>) -> Result<Value, ModelError> {
    let merges = file.texts("tokenizer.ggml.merges")?.unwrap_or_default();
    let pre = file.text("tokenizer.ggml.pre").unwrap_or("default");
    let style = PreTokenizer::named(pre).ok_or_else(|| ModelError::Unsupported {
        origin: file.origin().into(),
        field: "tokenizer.ggml.pre".into(),
        value: format!("`{pre}`"),
        supported: SUPPORTED_PRE.into(),
    })?;
    Ok(style.json(json!(ids), json!(merges)))
}

/// The `tokenizer.json` of a Qwen2 vocabulary, without added tokens.
pub(in crate::source) fn qwen2_json(vocab: Value, merges: Value) -> Option<Value> {
    PreTokenizer::named("qwen2").map(|style| style.json(vocab, merges))
}

/// How text is cut before merging.
struct PreTokenizer {
    normalizer: Value,
    steps: Vec<Value>,
    /// Whether a piece that is a token stays whole whatever the merges say.
    ignore_merges: bool,
}

impl PreTokenizer {
    /// A byte-level tokenizer that cuts text this way.
    fn json(self, vocab: Value, merges: Value) -> Value {
        json!({
            "version": "1.0",
            "normalizer": self.normalizer,
            "pre_tokenizer": { "type": "Sequence", "pretokenizers": self.steps },
            "decoder": { "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true },
            "model": {
                "type": "BPE",
                "fuse_unk": false,
                "byte_fallback": false,
                "ignore_merges": self.ignore_merges,
                "vocab": vocab,
                "merges": merges,
            },
        })
    }

    fn named(name: &str) -> Option<Self> {
        let split = |pattern: &str| json!({ "type": "Split", "pattern": { "Regex": pattern }, "behavior": "Isolated", "invert": false });
        let digits = || json!({ "type": "Digits", "individual_digits": true });
        let bytes = json!({
            "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false,
        });
        let (mut steps, ignore_merges, normalizer) = match name {
            "gpt-2" => (vec![split(GPT2)], false, Value::Null),
            "smollm" | "starcoder" | "refact" | "command-r" => (vec![digits(), split(GPT2)], false, Value::Null),
            "llama-bpe" | "llama3" | "llama-v3" | "falcon3" => (vec![split(LLAMA3)], true, Value::Null),
            "smaug-bpe" | "dbrx" => (vec![split(LLAMA3)], false, Value::Null),
            "qwen2" | "deepseek-r1-qwen" | "stablelm2" => (vec![split(QWEN2)], false, json!({ "type": "NFC" })),
            "llada-moe" | "bailingmoe" | "bailingmoe2" => (vec![split(BAILING)], false, Value::Null),
            "tekken" => (vec![split(TEKKEN)], true, Value::Null),
            "deepseek-coder" => {
                let patterns = ["[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", DEEPSEEK_CJK];
                (patterns.into_iter().map(split).chain([digits()]).collect(), false, Value::Null)
            }
            "deepseek-llm" => {
                let patterns = ["[\r\n]", DEEPSEEK_LETTERS, "\\s?[!-/:-~！-／：-～‘-‟　-。]+", r"\s+$", DEEPSEEK_CJK];
                (patterns.into_iter().map(split).chain([digits()]).collect(), false, Value::Null)
            }
            "default" => {
                let patterns = [r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"];
                (patterns.into_iter().map(split).collect(), false, Value::Null)
            }
            _ => return None,
        };
        steps.push(bytes);
        Some(Self { normalizer, steps, ignore_merges })
    }
}

fn sentence_piece(
    file: &GgufFile,
    tokens: &[String],
    ids: &HashMap<&str, usize>,
    types: &[i128],
) -> Result<Value, ModelError> {
    let scores = file.floats("tokenizer.ggml.scores")?.unwrap_or_default();
    if scores.len() != tokens.len() {
        return Err(file.bad(format!("the tokenizer has {} scores for {} tokens", scores.len(), tokens.len())));
    }
    let merges = merges_of_scores(tokens, ids, types, &scores);
    let unknown = file.integer::<usize>("tokenizer.ggml.unknown_token_id")?.and_then(|id| tokens.get(id));
    let replace = json!({ "type": "Replace", "pattern": { "String": " " }, "content": "▁" });
    let mut decoders = vec![
        json!({ "type": "Replace", "pattern": { "String": "▁" }, "content": " " }),
        json!({ "type": "ByteFallback" }),
        json!({ "type": "Fuse" }),
    ];
    let mut normalizers = vec![replace];
    if file.switch("tokenizer.ggml.add_space_prefix").unwrap_or(true) {
        normalizers.insert(0, json!({ "type": "Prepend", "prepend": "▁" }));
        decoders.push(json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 }));
    }
    Ok(json!({
        "version": "1.0",
        "normalizer": { "type": "Sequence", "normalizers": normalizers },
        "pre_tokenizer": null,
        "decoder": { "type": "Sequence", "decoders": decoders },
        "model": {
            "type": "BPE",
            "unk_token": unknown,
            "fuse_unk": true,
            "byte_fallback": true,
            "vocab": ids,
            "merges": merges,
        },
    }))
}

/// The merges that produce every normal token from two others, best score first. Among equal scores the order is that
/// of the conversion in `transformers`: longer parts first, then by id.
fn merges_of_scores(
    tokens: &[String],
    ids: &HashMap<&str, usize>,
    types: &[i128],
    scores: &[f32],
) -> Vec<(String, String)> {
    let is_normal = |id: &usize| types[*id] == NORMAL;
    let mut merges = Vec::new();
    for (id, token) in tokens.iter().enumerate().filter(|(id, _)| is_normal(id)) {
        let mut pairs: Vec<_> = token
            .char_indices()
            .skip(1)
            .map(|(border, _)| token.split_at(border))
            .filter_map(|(left, right)| Some((ids.get(left)?, ids.get(right)?, left, right)))
            .filter(|(left_id, right_id, ..)| is_normal(left_id) && is_normal(right_id))
            .collect();
        pairs.sort_unstable_by_key(|(left_id, right_id, ..)| (**left_id, **right_id));
        merges.extend(pairs.into_iter().map(|(.., left, right)| (scores[id], left, right)));
    }
    let len = |text: &str| text.chars().count();
    merges.sort_by(|(score, left, right), (other_score, other_left, other_right)| {
        let by_score = other_score.total_cmp(score);
        by_score.then(len(other_left).cmp(&len(left))).then(len(other_right).cmp(&len(right)))
    });
    merges.into_iter().map(|(_, left, right)| (left.into(), right.into())).collect()
}

fn added_tokens(tokens: &[String], types: &[i128]) -> Value {
    let added = tokens.iter().zip(types).enumerate().filter_map(|(id, (token, kind))| {
        let special = match *kind {
            UNKNOWN | CONTROL => true,
            USER_DEFINED => false,
            _ => return None,
        };
        // An empty added token would match everywhere.
        (!token.is_empty()).then(|| {
            json!({
                "id": id, "content": token, "special": special,
                "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
            })
        })
    });
    added.collect()
}

/// Adds the start and end tokens that the metadata asks for.
fn post_processor(file: &GgufFile, tokens: &[String]) -> Result<Value, ModelError> {
    let is_sentence_piece = file.text("tokenizer.ggml.model") == Some("llama");
    let wants = |key: &str, default: bool| file.switch(key).unwrap_or(default);
    let token = |key: &str| -> Result<Option<(usize, &String)>, ModelError> {
        let id = file.integer::<usize>(key)?;
        Ok(id.and_then(|id| Some((id, tokens.get(id)?))))
    };
    // Llama 3 files of early converters lack the switch; the tokenizer they stand for adds the token.
    let is_llama3 = matches!(file.text("tokenizer.ggml.pre"), Some("llama-bpe" | "llama3" | "llama-v3"));
    let first = match wants("tokenizer.ggml.add_bos_token", is_sentence_piece || is_llama3) {
        true => token("tokenizer.ggml.bos_token_id")?,
        false => None,
    };
    let last = match wants("tokenizer.ggml.add_eos_token", false) {
        true => token("tokenizer.ggml.eos_token_id")?,
        false => None,
    };
    if first.is_none() && last.is_none() {
        return Ok(Value::Null);
    }
    let special = |(_, token): (usize, &String)| json!({ "SpecialToken": { "id": token, "type_id": 0 } });
    let sequence = |id: &str| json!({ "Sequence": { "id": id, "type_id": 0 } });
    let parts = |names: &[&str]| -> Vec<Value> {
        let texts = names.iter().map(|name| sequence(name));
        first.map(special).into_iter().chain(texts).chain(last.map(special)).collect()
    };
    let specials: serde_json::Map<String, Value> = first
        .into_iter()
        .chain(last)
        .map(|(id, token)| (token.clone(), json!({ "id": token, "ids": [id], "tokens": [token] })))
        .collect();
    Ok(json!({
        "type": "TemplateProcessing",
        "single": parts(&["A"]),
        "pair": parts(&["A", "B"]),
        "special_tokens": specials,
    }))
}
