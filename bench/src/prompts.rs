//! Fixed prompts, part of the program so that a result names its input by one hash.

use engine::{ModelInfo, TokenId};

/// Chat prompts, one a line.
const CHAT: &str = include_str!("../prompts/chat.txt");

/// The prompts.
pub(crate) fn chat() -> impl Iterator<Item = &'static str> {
    CHAT.lines().filter(|line| !line.trim().is_empty())
}

/// A prompt as the model wants it: as a chat if it has a chat template, else as it is.
pub(crate) fn tokens(info: &ModelInfo, prompt: &str) -> anyhow::Result<Vec<TokenId>> {
    match &info.chat_template {
        None => Ok(info.tokenizer.encode(prompt, true)?),
        Some(template) => {
            let messages = serde_json::json!([{"role": "user", "content": prompt}]);
            let text = template.render(&messages, None, true, &serde_json::Map::new())?;
            Ok(info.tokenizer.encode_chat(&text)?)
        }
    }
}

/// 64-bit FNV-1a of the prompt file.
pub(crate) fn hash() -> String {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    format!("{:016x}", CHAT.as_bytes().iter().fold(0xcbf2_9ce4_8422_2325, step))
}

/// A paragraph that is repeated to make prompts of any length.
pub(crate) const FILLER: &str = "The lighthouse keeper wrote down the wind, the tide and the names of the ships that \
passed, and every evening he read the pages of the same day in earlier years. ";

#[cfg(test)]
mod tests {
    #[test]
    fn there_are_prompts() {
        assert!(super::chat().count() >= 16);
    }
}
