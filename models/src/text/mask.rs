//! Takes the mask token out of a tokenizer's reach.
//!
//! A slot that holds the mask token is one that the model shall fill in, so user text must never be encoded to it.
//! Removing the token would move the ids of those added after it; so it keeps its place under a name that no text has.

use serde_json::Value;

use crate::TokenId;

/// Stands for the spelling of the mask token. Its outer code points are noncharacters, which Unicode keeps out of text
/// for ever.
const STAND_IN: &str = "\u{FDD0}mask\u{FDD1}";

/// Renames the token `mask`, spelled `spelling`, in a `tokenizer.json`, and removes the merges that lead to it or on
/// from it.
pub(super) fn hide(json: &str, mask: TokenId, spelling: &str) -> Result<String, serde_json::Error> {
    let mut json: Value = serde_json::from_str(json)?;
    for token in json["added_tokens"].as_array_mut().into_iter().flatten() {
        if token["content"] == spelling {
            token["content"] = STAND_IN.into();
        }
    }
    let model = &mut json["model"];
    match &mut model["vocab"] {
        Value::Object(vocab) => {
            let id = vocab.shift_remove(spelling);
            vocab.extend(id.map(|id| (STAND_IN.to_owned(), id)));
        }
        // Unigram: pairs of a piece and its score, by id.
        Value::Array(vocab) => {
            if let Some(piece) = vocab.get_mut(mask.0 as usize).filter(|piece| piece[0] == spelling) {
                piece[0] = STAND_IN.into();
            }
        }
        _ => {}
    }
    if let Some(merges) = model["merges"].as_array_mut() {
        merges.retain(|merge| {
            let parts = match merge {
                Value::String(merge) => merge.split_once(' '),
                _ => merge[0].as_str().zip(merge[1].as_str()),
            };
            parts.is_none_or(|(left, right)| {
                left != spelling && right != spelling && spelling.strip_prefix(left) != Some(right)
            })
        });
    }
    serde_json::to_string(&json)
}
