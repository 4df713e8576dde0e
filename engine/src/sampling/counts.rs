//! How often each token occurred, for the penalties.

use std::collections::HashMap;

use models::TokenId;

/// Occurrences of tokens in the prompt and in the output of one sequence.
///
/// A copy follows the drafts of a window while its rows are scored.
#[derive(Debug, Clone, Default)]
pub struct TokenCounts {
    entries: HashMap<TokenId, Entry>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Entry {
    in_prompt: bool,
    in_output: u32,
}

impl TokenCounts {
    /// Counts of a fresh sequence.
    pub fn of_prompt(prompt: &[TokenId]) -> Self {
        let entries = prompt.iter().map(|&token| (token, Entry { in_prompt: true, in_output: 0 })).collect();
        Self { entries }
    }

    /// Adds one occurrence in the output.
    pub fn push(&mut self, token: TokenId) {
        self.entries.entry(token).or_default().in_output += 1;
    }

    /// Tokens seen at all, with their number of occurrences in the output.
    pub fn iter(&self) -> impl Iterator<Item = (TokenId, u32)> {
        let seen = self.entries.iter().filter(|(_, entry)| entry.in_prompt || entry.in_output > 0);
        seen.map(|(&token, entry)| (token, entry.in_output))
    }
}
