//! Initial guesses for the tokens of a block. They never change the text, only how many passes it takes
//! (`engine/specs/jacobi.md`, section 4).

use models::TokenId;

use crate::{request::GuessRule, sampling::mix};

/// Longest suffix that prompt lookup matches.
const LOOKUP_MAX: usize = 3;
/// How far back prompt lookup searches, in tokens: a bound on the work of one step.
const LOOKUP_WINDOW: usize = 4096;

/// A source of guesses. Draws are keyed by the request's seed and the position, so that the same state gives the same
/// guess.
#[derive(Debug, Clone, Copy)]
pub struct Guesser {
    rule: GuessRule,
    key: u64,
}

impl Guesser {
    /// A source for one request.
    pub fn new(rule: GuessRule, seed: u64) -> Self {
        // A key of its own keeps the guesses independent of the sampling noise.
        Self { rule, key: mix(seed ^ 0x6775_6573_7365_7221) }
    }

    /// Appends guesses to `drafts` until it holds `count`; `tokens` is the prompt and the committed output.
    pub fn fill(&self, tokens: &[TokenId], drafts: &mut Vec<TokenId>, count: usize) {
        if self.rule == GuessRule::Lookup && drafts.len() < count {
            copy_continuation(tokens, drafts, count);
        }
        while drafts.len() < count {
            let position = (tokens.len() + drafts.len()) as u64;
            let draw = mix(self.key ^ position) % tokens.len() as u64;
            drafts.push(tokens[draw as usize]);
        }
    }

    /// Whether lookup has a continuation for the longest suffix of the committed text.
    pub fn has_match(&self, tokens: &[TokenId]) -> bool {
        self.rule == GuessRule::Lookup && find_suffix(tokens, &[], LOOKUP_MAX).is_some()
    }
}

/// Extends `drafts` to `count` tokens with what followed the last earlier occurrence of the suffix of
/// `tokens ++ drafts`. Where the copy reaches the end of the text it goes on with itself, so a period repeats.
fn copy_continuation(tokens: &[TokenId], drafts: &mut Vec<TokenId>, count: usize) {
    let Some(next) = find_suffix(tokens, drafts, 1) else { return };
    for source in next.. {
        if drafts.len() >= count {
            return;
        }
        let token = match tokens.get(source) {
            Some(&token) => token,
            None => drafts[source - tokens.len()],
        };
        drafts.push(token);
    }
}

/// Index in `tokens` of what followed the last earlier occurrence of the longest matching suffix.
fn find_suffix(tokens: &[TokenId], drafts: &[TokenId], min_len: usize) -> Option<usize> {
    let tail: Vec<TokenId> = {
        let all = tokens.iter().chain(drafts);
        let skip = (tokens.len() + drafts.len()).saturating_sub(LOOKUP_MAX);
        all.skip(skip).copied().collect()
    };
    let window = &tokens[tokens.len().saturating_sub(LOOKUP_WINDOW)..];
    let offset = tokens.len() - window.len();
    (min_len..=tail.len()).rev().find_map(|len| {
        let suffix = &tail[tail.len() - len..];
        // An occurrence must be followed by at least one known token.
        let last_start = window.len().checked_sub(len + 1)?;
        let found = (0..=last_start).rev().find(|&start| &window[start..start + len] == suffix)?;
        Some(offset + found + len)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(values: &[u32]) -> Vec<TokenId> {
        values.iter().copied().map(TokenId).collect()
    }

    #[test]
    fn lookup_copies_what_followed_the_longest_suffix() {
        let tokens = ids(&[1, 2, 3, 9, 8, 7, 2, 3, 5, 6, 1, 2, 3]);
        let mut drafts = Vec::new();
        Guesser::new(GuessRule::Lookup, 0).fill(&tokens, &mut drafts, 4);
        assert_eq!(drafts, ids(&[9, 8, 7, 2]), "1 2 3 beats the later 2 3");
    }

    #[test]
    fn lookup_continues_behind_carried_drafts() {
        let tokens = ids(&[4, 5, 6, 7, 8, 9, 4]);
        let mut drafts = ids(&[5, 6]);
        Guesser::new(GuessRule::Lookup, 0).fill(&tokens, &mut drafts, 4);
        assert_eq!(drafts, ids(&[5, 6, 7, 8]));
    }

    #[test]
    fn a_copy_that_reaches_the_end_repeats_the_period() {
        let tokens = ids(&[1, 2, 3, 1, 2, 3, 1]);
        let mut drafts = Vec::new();
        Guesser::new(GuessRule::Lookup, 0).fill(&tokens, &mut drafts, 8);
        assert_eq!(drafts, ids(&[2, 3, 1, 2, 3, 1, 2, 3]));
    }

    #[test]
    fn guesses_repeat_for_a_seed_and_come_from_the_context() {
        let tokens = ids(&[10, 11, 12, 13, 14, 15, 16, 17]);
        let guess = |seed| {
            let mut drafts = Vec::new();
            Guesser::new(GuessRule::ContextRandom, seed).fill(&tokens, &mut drafts, 32);
            drafts
        };
        assert_eq!(guess(3), guess(3));
        assert_ne!(guess(3), guess(4));
        assert!(guess(3).iter().all(|token| tokens.contains(token)));
    }

    #[test]
    fn a_prompt_of_one_token_is_enough() {
        let tokens = ids(&[5]);
        for rule in [GuessRule::Lookup, GuessRule::ContextRandom] {
            let mut drafts = Vec::new();
            Guesser::new(rule, 1).fill(&tokens, &mut drafts, 3);
            assert_eq!(drafts, ids(&[5, 5, 5]));
        }
    }
}
