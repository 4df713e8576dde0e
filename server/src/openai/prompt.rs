//! The prompt of a text completion, in its four forms.

use engine::TokenId;
use serde_json::Value;

use super::fields::{kind_of, read};
use crate::error::ApiError;

/// One prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Prompt {
    Text(String),
    Tokens(Vec<TokenId>),
}

impl Prompt {
    /// The token ids, if the client sent ids.
    pub(super) fn tokens(&self) -> Option<&[TokenId]> {
        match self {
            Self::Text(_) => None,
            Self::Tokens(tokens) => Some(tokens),
        }
    }
}

/// Reads a string, a list of strings, a list of token ids, or a list of such lists.
pub(super) fn read_prompts(value: Value) -> Result<Vec<Prompt>, ApiError> {
    let list = match value {
        Value::String(text) => return Ok(vec![Prompt::Text(text)]),
        Value::Array(list) => list,
        other => return Err(unexpected(&other)),
    };
    match list.first() {
        None => Err(ApiError::invalid("prompt", "the list is empty")),
        Some(Value::String(_)) => {
            Ok(read::<Vec<String>>("prompt", list.into())?.into_iter().map(Prompt::Text).collect())
        }
        Some(Value::Number(_)) => Ok(vec![Prompt::Tokens(read("prompt", list.into())?)]),
        Some(Value::Array(_)) => {
            Ok(read::<Vec<Vec<TokenId>>>("prompt", list.into())?.into_iter().map(Prompt::Tokens).collect())
        }
        Some(other) => Err(unexpected(other)),
    }
}

fn unexpected(value: &Value) -> ApiError {
    let message = format!("expected a string, a list of strings, or lists of token ids, got {}", kind_of(value));
    ApiError::wrong_type("prompt", message)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn all_four_forms_are_read() {
        let text = |text: &str| Prompt::Text(text.into());
        let tokens = |ids: &[u32]| Prompt::Tokens(ids.iter().map(|id| TokenId(*id)).collect());
        assert_eq!(read_prompts(json!("a")).unwrap(), [text("a")]);
        assert_eq!(read_prompts(json!(["a", ""])).unwrap(), [text("a"), text("")]);
        assert_eq!(read_prompts(json!([1, 2])).unwrap(), [tokens(&[1, 2])]);
        assert_eq!(read_prompts(json!([[1], [2, 3]])).unwrap(), [tokens(&[1]), tokens(&[2, 3])]);
    }

    #[test]
    fn mixtures_name_the_item_at_fault() {
        for (prompt, param) in [
            (json!(["a", 1]), "prompt[1]"),
            (json!([1, -2]), "prompt[1]"),
            (json!([1, 1.5]), "prompt[1]"),
            (json!([[1], [2, "x"]]), "prompt[1][1]"),
            (json!([[1], 2]), "prompt[1]"),
            (json!([]), "prompt"),
            (json!({"text": "a"}), "prompt"),
            (json!([true]), "prompt"),
        ] {
            let error = read_prompts(prompt.clone()).unwrap_err();
            assert_eq!(serde_json::to_value(error.body()).unwrap()["error"]["param"], param, "{prompt}");
        }
    }
}
