//! Fixed prompts, part of the program so that a result names its input by one hash.

/// Chat prompts, one a line.
const CHAT: &str = include_str!("../prompts/chat.txt");

/// The prompts.
pub(crate) fn chat() -> impl Iterator<Item = &'static str> {
    CHAT.lines().filter(|line| !line.trim().is_empty())
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
