//! Log-probabilities in the two shapes that clients know.

use engine::{TokenId, TokenRecord, Tokenizer};
use serde::{Serialize, Serializer};

/// Of a chat message: one entry a token.
#[derive(Debug, Serialize)]
pub(super) struct ChatLogprobs {
    content: Vec<ChatToken>,
    refusal: Option<()>,
}

#[derive(Debug, Serialize)]
struct ChatToken {
    #[serde(flatten)]
    token: ScoredToken,
    top_logprobs: Vec<ScoredToken>,
}

#[derive(Debug, Serialize)]
struct ScoredToken {
    token: String,
    logprob: f32,
    /// What the token adds to the text: together they are the text, also where a code point spans tokens.
    bytes: Vec<u8>,
}

impl ChatLogprobs {
    pub(super) fn new(tokenizer: &Tokenizer, records: &[TokenRecord]) -> Self {
        let scored = |id: TokenId, logprob: f32| ScoredToken {
            token: tokenizer.token_text(id).into_owned(),
            logprob: finite(logprob),
            bytes: tokenizer.token_bytes(id).to_vec(),
        };
        let content = records.iter().filter_map(|record| {
            let token = scored(record.id, record.logprob?);
            let top_logprobs = record.top.iter().map(|(id, logprob)| scored(*id, *logprob)).collect();
            Some(ChatToken { token, top_logprobs })
        });
        Self { content: content.collect(), refusal: None }
    }
}

/// Of a text completion: four lists of equal length.
#[derive(Debug, Default, Serialize)]
pub(super) struct CompletionLogprobs {
    tokens: Vec<String>,
    token_logprobs: Vec<Option<f32>>,
    /// Likeliest tokens by their text, the chosen one always among them; `null` for the first token of a prompt.
    top_logprobs: Vec<Option<TopTokens>>,
    /// Where each token begins in the text, in characters.
    text_offset: Vec<usize>,
}

/// Likeliest tokens with their log-probabilities; an object in JSON.
#[derive(Debug)]
struct TopTokens(Vec<(String, f32)>);

impl Serialize for TopTokens {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(text, logprob)| (text, logprob)))
    }
}

/// Builds [`CompletionLogprobs`] of one choice, whose text arrives in pieces.
#[derive(Debug, Default)]
pub(super) struct Offsets {
    chars: usize,
}

impl Offsets {
    /// The next token begins where `text` ends.
    pub(super) fn skip(&mut self, text: &str) {
        self.chars = text.chars().count();
    }

    /// The lists for the next tokens of the text.
    pub(super) fn logprobs(&mut self, tokenizer: &Tokenizer, records: &[TokenRecord]) -> CompletionLogprobs {
        let mut lists = CompletionLogprobs::default();
        for record in records {
            lists.tokens.push(legible(tokenizer, record.id));
            lists.token_logprobs.push(record.logprob.map(finite));
            lists.top_logprobs.push(record.logprob.map(|logprob| top(tokenizer, record, logprob)));
            lists.text_offset.push(self.chars);
            self.chars += chars(tokenizer.token_bytes(record.id));
        }
        lists
    }
}

impl CompletionLogprobs {
    /// These lists and those of later tokens.
    pub(super) fn followed_by(mut self, later: Self) -> Self {
        self.tokens.extend(later.tokens);
        self.token_logprobs.extend(later.token_logprobs);
        self.top_logprobs.extend(later.top_logprobs);
        self.text_offset.extend(later.text_offset);
        self
    }
}

fn top(tokenizer: &Tokenizer, record: &TokenRecord, logprob: f32) -> TopTokens {
    let mut top = TopTokens(Vec::with_capacity(record.top.len() + 1));
    for (id, logprob) in record.top.iter().copied().chain([(record.id, logprob)]) {
        let text = legible(tokenizer, id);
        // Descending, so of two tokens with one text the likelier stays.
        if top.0.iter().all(|(known, _)| *known != text) {
            top.0.push((text, finite(logprob)));
        }
    }
    top
}

/// A token as a key: its text, or its bytes where they are not text by themselves.
fn legible(tokenizer: &Tokenizer, id: TokenId) -> String {
    if tokenizer.is_special(id) {
        return tokenizer.token_text(id).into_owned();
    }
    bytes_as_text(tokenizer.token_bytes(id))
}

fn bytes_as_text(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => bytes.iter().fold("bytes:".to_owned(), |text, byte| format!("{text}\\x{byte:02x}")),
    }
}

/// Code points that begin in these bytes.
fn chars(bytes: &[u8]) -> usize {
    bytes.iter().filter(|byte| **byte & 0xC0 != 0x80).count()
}

/// JSON has no infinity; a token that a model rules out gets the value that clients use for "impossible".
fn finite(logprob: f32) -> f32 {
    if logprob.is_finite() { logprob } else { -9999.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_points_are_counted_where_they_begin() {
        let text = "aé😀";
        assert_eq!(text.bytes().map(|byte| chars(&[byte])).sum::<usize>(), 3);
    }

    #[test]
    fn parts_of_code_points_stay_distinct() {
        assert_eq!(bytes_as_text("é".as_bytes()), "é");
        assert_eq!(bytes_as_text(&[0xC3]), "bytes:\\xc3");
        assert_ne!(bytes_as_text(&[0xC3]), bytes_as_text(&[0xC4]));
    }

    #[test]
    fn impossible_tokens_are_still_json() {
        assert_eq!(serde_json::to_string(&finite(f32::NEG_INFINITY)).unwrap(), "-9999.0");
        assert_eq!(finite(-1.5), -1.5);
    }
}
