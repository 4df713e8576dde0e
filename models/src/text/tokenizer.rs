//! Text to tokens and back. Beside the `tokenizers` crate there is a table with the bytes of every token, so that a
//! stream can be cut at code points and stop strings without decoding twice.

use std::{borrow::Cow, fs, path::Path};

use serde::de::IgnoredAny;
use serde_json::Value;

use super::mask;
use crate::{ModelError, TokenId};

/// Highest token id that is believed; beyond it the file is damaged.
const MAX_TOKEN_ID: u32 = 1 << 22;
/// What SentencePiece writes for a space.
const METASPACE: char = '▁';

/// A tokenizer with the bytes of each of its tokens.
#[derive(Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// The bytes of all tokens, one after the other.
    bytes: Vec<u8>,
    /// Token `i` has `bytes[starts[i]..starts[i + 1]]`.
    starts: Vec<usize>,
    special: Vec<bool>,
    style: TextStyle,
    /// Tokens that [`Tokenizer::encode`] adds in front of a text.
    prefix: Vec<TokenId>,
    hidden: Option<Hidden>,
}

/// A token that no text is encoded to.
#[derive(Debug, Clone)]
struct Hidden {
    id: TokenId,
    /// How the vocabulary spelled it.
    spelling: String,
}

/// How the pieces of a vocabulary spell bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TextStyle {
    /// One printable character stands for one byte.
    ByteLevel,
    /// UTF-8 with [`METASPACE`] for a space, perhaps `<0xNN>` for a byte.
    SentencePiece {
        /// Whether `<0xNN>` is a byte.
        byte_fallback: bool,
        /// Whether the first space of a text belongs to the encoding, not to the text.
        strip_start: bool,
    },
}

impl Tokenizer {
    /// Reads a `tokenizer.json`.
    pub fn from_file(path: &Path) -> Result<Self, ModelError> {
        let bytes = fs::read(path).map_err(|source| ModelError::Io { path: path.into(), source })?;
        Self::from_json(&bytes, &path.display().to_string())
    }

    /// Reads the bytes of a `tokenizer.json`. `origin` is for messages only.
    pub fn from_json(json: &[u8], origin: &str) -> Result<Self, ModelError> {
        Self::build(json, origin, None)
    }

    fn build(json: &[u8], origin: &str, hidden: Option<Hidden>) -> Result<Self, ModelError> {
        let bad = |reason: String| ModelError::BadTokenizer { origin: origin.into(), reason };
        // The crate panics on some files that are not JSON; on JSON it returns errors.
        let text = str::from_utf8(json).map_err(|error| bad(error.to_string()))?;
        serde_json::from_str::<IgnoredAny>(text).map_err(|error| bad(error.to_string()))?;
        let mut inner = tokenizers::Tokenizer::from_bytes(json).map_err(|error| bad(one_line(&error.to_string())))?;
        // A server truncates and pads nothing; some files carry the settings of their training.
        inner.with_truncation(None).map_err(|error| bad(error.to_string()))?;
        inner.with_padding(None);
        let style = TextStyle::of(&inner, origin)?;

        let added = inner.get_added_tokens_decoder();
        let vocab = inner.get_vocab(true);
        let max_id = vocab.values().copied().max().ok_or_else(|| bad("it has no token".into()))?;
        if max_id > MAX_TOKEN_ID {
            return Err(bad(format!("it has a token with id {max_id}")));
        }
        let mut pieces: Vec<Option<&str>> = vec![None; max_id as usize + 1];
        for (piece, id) in &vocab {
            pieces[*id as usize] = Some(piece);
        }
        let mut bytes = Vec::new();
        let mut starts = vec![0];
        let mut special = Vec::new();
        for (id, piece) in (0..=max_id).zip(&pieces) {
            let is_hidden = hidden.as_ref().is_some_and(|hidden| hidden.id.0 == id);
            let is_special = is_hidden || added.get(&id).is_some_and(|token| token.special);
            if let Some(piece) = piece.filter(|_| !is_special) {
                style.push_bytes(piece, &mut bytes);
            }
            starts.push(bytes.len());
            special.push(is_special);
        }
        let mut tokenizer = Self { inner, bytes, starts, special, style, prefix: Vec::new(), hidden };
        tokenizer.prefix = tokenizer.encode("", true)?;
        Ok(tokenizer)
    }

    /// The tokens of a text. Special tokens in the text are recognised. With `add_special` the tokens that the model
    /// expects around every text (usually one in front, or none) are added.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<TokenId>, ModelError> {
        let encoding = self
            .inner
            .encode_fast(text, add_special)
            .map_err(|error| ModelError::Tokenize { reason: one_line(&error.to_string()) })?;
        let tokens: Vec<TokenId> = encoding.get_ids().iter().map(|id| TokenId(*id)).collect();
        match &self.hidden {
            // Only text with the stand-in of `mask::hide` gets here: code points that no text is made of.
            Some(hidden) if tokens.contains(&hidden.id) => {
                Err(ModelError::Tokenize { reason: "it has code points that are reserved".into() })
            }
            _ => Ok(tokens),
        }
    }

    /// The same tokenizer for a model that marks undecided slots with `mask`: no text is encoded to that token any more;
    /// what spelled it is ordinary characters. The token keeps its id, its name ([`Tokenizer::token_text`]) and its place
    /// in the vocabulary, counts as special and adds nothing to a text. `origin` is for messages only.
    pub fn with_mask(self, mask: TokenId, origin: &str) -> Result<Self, ModelError> {
        let Some(spelling) = self.inner.id_to_token(mask.0) else { return Ok(self) };
        let bad = |reason: String| ModelError::BadTokenizer { origin: origin.into(), reason };
        if self.prefix.contains(&mask) {
            return Err(bad(format!("`{spelling}` cannot be the mask token, it is added to every text")));
        }
        let added = self.inner.get_added_tokens_decoder();
        let is_added = added.contains_key(&mask.0);
        if !is_added && (spelling.chars().count() == 1 || fallback_byte(&spelling).is_some()) {
            return Err(ModelError::MaskIsText { token: mask, spelling });
        }
        let json = self.inner.to_string(false).map_err(|error| bad(one_line(&error.to_string())))?;
        let json = mask::hide(&json, mask, &spelling).map_err(|error| bad(error.to_string()))?;
        let hidden = Self::build(json.as_bytes(), origin, Some(Hidden { id: mask, spelling }))?;
        // Ids of added tokens follow from their order; a shift would silently change what every prompt means.
        let is_kept = |(id, token): (&u32, &tokenizers::AddedToken)| {
            *id == mask.0 || hidden.inner.token_to_id(&token.content) == Some(*id)
        };
        if hidden.vocab_size() != self.vocab_size() || !added.iter().all(is_kept) {
            return Err(bad(format!("the ids of its tokens depend on the mask token {}", mask.0)));
        }
        Ok(hidden)
    }

    /// The tokens of a rendered chat prompt: what belongs in front of every text is added unless the template has
    /// written it already.
    pub fn encode_chat(&self, prompt: &str) -> Result<Vec<TokenId>, ModelError> {
        let has_prefix = self.prefix.first().is_some_and(|first| prompt.starts_with(&*self.token_text(*first)));
        self.encode(prompt, !has_prefix)
    }

    /// The text of tokens: special ones are skipped, bytes that are not UTF-8 become replacement characters.
    pub fn decode(&self, tokens: &[TokenId]) -> String {
        let bytes: Vec<u8> = tokens.iter().flat_map(|token| self.token_bytes(*token)).copied().collect();
        let text = String::from_utf8_lossy(&bytes);
        let stripped = match self.style {
            TextStyle::SentencePiece { strip_start: true, .. } => text.strip_prefix(' '),
            _ => None,
        };
        stripped.map_or_else(|| text.to_string(), str::to_string)
    }

    /// The bytes that a token adds to a text; none for special and unknown tokens.
    pub fn token_bytes(&self, token: TokenId) -> &[u8] {
        let id = token.0 as usize;
        match (self.starts.get(id), self.starts.get(id + 1)) {
            (Some(start), Some(end)) => &self.bytes[*start..*end],
            _ => &[],
        }
    }

    /// A token as a reader wants to see it: special tokens by name, others as text with replacement characters.
    pub fn token_text(&self, token: TokenId) -> Cow<'_, str> {
        if let Some(hidden) = self.hidden.as_ref().filter(|hidden| hidden.id == token) {
            return Cow::Borrowed(&hidden.spelling);
        }
        if self.is_special(token) {
            return Cow::Owned(self.inner.id_to_token(token.0).unwrap_or_default());
        }
        String::from_utf8_lossy(self.token_bytes(token))
    }

    /// Whether a token stands for structure, not for text.
    pub fn is_special(&self, token: TokenId) -> bool {
        self.special.get(token.0 as usize).copied().unwrap_or(false)
    }

    /// One more than the highest token id.
    pub fn vocab_size(&self) -> usize {
        self.special.len()
    }

    /// The id of a token by its exact spelling in the vocabulary.
    pub fn token_id(&self, spelling: &str) -> Option<TokenId> {
        if let Some(hidden) = self.hidden.as_ref().filter(|hidden| hidden.spelling == spelling) {
            return Some(hidden.id);
        }
        self.inner.token_to_id(spelling).map(TokenId)
    }
}

impl TextStyle {
    /// Reads the style off the tokenizer's decoder.
    fn of(tokenizer: &tokenizers::Tokenizer, origin: &str) -> Result<Self, ModelError> {
        let unsupported = |value: String| ModelError::Unsupported {
            origin: origin.into(),
            field: "decoder".into(),
            value,
            supported: "ByteLevel, Metaspace, and the sequence of Replace, ByteFallback, Fuse and Strip that \
                        SentencePiece models use"
                .into(),
        };
        let decoder = serde_json::to_value(tokenizer.get_decoder())
            .map_err(|error| ModelError::BadTokenizer { origin: origin.into(), reason: error.to_string() })?;
        let steps = match decoder.get("decoders").and_then(Value::as_array) {
            Some(steps) => steps.clone(),
            None => vec![decoder],
        };
        let mut style = None;
        for step in &steps {
            let is = |pointer: &str, value: &str| step.pointer(pointer).and_then(Value::as_str) == Some(value);
            let (byte_fallback, strip_start) = match style {
                Some(Self::SentencePiece { byte_fallback, strip_start }) => (byte_fallback, strip_start),
                _ => (false, false),
            };
            style = Some(match step.get("type").and_then(Value::as_str) {
                Some("ByteLevel") if steps.len() == 1 => Self::ByteLevel,
                Some("Metaspace") if is("/replacement", "▁") => {
                    Self::SentencePiece { byte_fallback, strip_start: !is("/prepend_scheme", "never") }
                }
                Some("Replace") if is("/pattern/String", "▁") && is("/content", " ") => {
                    Self::SentencePiece { byte_fallback, strip_start }
                }
                Some("ByteFallback") => Self::SentencePiece { byte_fallback: true, strip_start },
                Some("Fuse") => Self::SentencePiece { byte_fallback, strip_start },
                Some("Strip") if is("/content", " ") && step["start"] == 1 && step["stop"] == 0 => {
                    Self::SentencePiece { byte_fallback, strip_start: true }
                }
                _ => return Err(unsupported(step.to_string())),
            });
        }
        style.ok_or_else(|| unsupported("empty".into()))
    }

    /// Appends the bytes that `piece` stands for.
    fn push_bytes(self, piece: &str, bytes: &mut Vec<u8>) {
        match self {
            Self::ByteLevel => {
                let start = bytes.len();
                for character in piece.chars() {
                    let Some(byte) = byte_of(character) else {
                        // An added token is spelled as it is, not byte by byte.
                        bytes.truncate(start);
                        bytes.extend_from_slice(piece.as_bytes());
                        return;
                    };
                    bytes.push(byte);
                }
            }
            Self::SentencePiece { byte_fallback, .. } => match fallback_byte(piece).filter(|_| byte_fallback) {
                Some(byte) => bytes.push(byte),
                None => bytes.extend_from_slice(piece.replace(METASPACE, " ").as_bytes()),
            },
        }
    }
}

/// The byte that a character of a byte-level vocabulary stands for. Printable Latin-1 characters stand for themselves,
/// the other 68 bytes, in ascending order, for the characters from U+0100 on.
fn byte_of(character: char) -> Option<u8> {
    const fn is_printable(byte: u8) -> bool {
        matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF)
    }
    match u32::from(character) {
        code @ 0..=0xFF => Some(code as u8).filter(|byte| is_printable(*byte)),
        code @ 0x100.. => (0..=0xFF).filter(|byte| !is_printable(*byte)).nth(code as usize - 0x100),
    }
}

/// The byte of a piece such as `<0x0A>`.
fn fallback_byte(piece: &str) -> Option<u8> {
    let digits = piece.strip_prefix("<0x")?.strip_suffix('>')?;
    (digits.len() == 2).then(|| u8::from_str_radix(digits, 16).ok()).flatten()
}

/// The first line of a message of another crate.
fn one_line(message: &str) -> String {
    message.lines().next().unwrap_or_default().to_string()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn byte_level_characters_stand_for_every_byte_once() {
        let bytes: HashSet<u8> = (0..0x144).filter_map(char::from_u32).filter_map(byte_of).collect();
        assert_eq!(bytes.len(), 256);
        assert_eq!(byte_of('Ġ'), Some(b' '));
        assert_eq!(byte_of('Ċ'), Some(b'\n'));
        assert_eq!(byte_of(' '), None);
        assert_eq!(byte_of('\u{144}'), None);
    }

    #[test]
    fn only_two_hex_digits_are_a_byte() {
        assert_eq!(fallback_byte("<0x0A>"), Some(10));
        assert_eq!(fallback_byte("<0x0AA>"), None);
        assert_eq!(fallback_byte("<0xGG>"), None);
    }
}
