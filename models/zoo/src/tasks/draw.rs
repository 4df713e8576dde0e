//! Seeded choices, phrases with alternatives, and the hash that splits the problems.
//!
//! A phrase is text with alternatives in brackets and slots in braces: `[Hi|Hello] {name}[!|.]`. [`Draw::say`] takes
//! one of each group of alternatives and fills the slots; [`variants`] counts the choices.

use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// FNV-1a with 64 bits.
pub(super) fn hash(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

/// A source of choices. The same seed gives the same choices on every platform and with every version of `rand`.
#[derive(Debug)]
pub(super) struct Draw(ChaCha8Rng);

impl Draw {
    /// Choices that depend on the four words only.
    pub(super) fn new(words: [u64; 4]) -> Self {
        let mut seed = [0; 32];
        for (bytes, word) in seed.chunks_exact_mut(8).zip(words) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        Self(ChaCha8Rng::from_seed(seed))
    }

    /// A number from 0 to `end`, exclusive; 0 if `end` is 0.
    pub(super) fn below(&mut self, end: usize) -> usize {
        let wide = u128::from(self.0.next_u64()) * end as u128;
        (wide >> 64) as usize
    }

    /// A number from `low` to `high`, both inclusive; `low` if the range is empty.
    pub(super) fn int(&mut self, low: i64, high: i64) -> i64 {
        let span = (high - low + 1).max(1) as usize;
        low + self.below(span) as i64
    }

    /// True in `percent` of a hundred cases.
    pub(super) fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    /// One of the list, which is not empty.
    pub(super) fn pick<T: Copy>(&mut self, list: &[T]) -> T {
        list[self.below(list.len())]
    }

    /// `count` different places of the list in random order, or all if it has fewer.
    pub(super) fn some<T: Copy>(&mut self, list: &[T], count: usize) -> Vec<T> {
        let mut rest = list.to_vec();
        (0..count.min(list.len())).map(|_| rest.remove(self.below(rest.len()))).collect()
    }

    /// The list in random order.
    pub(super) fn shuffled<T: Copy>(&mut self, list: &[T]) -> Vec<T> {
        self.some(list, list.len())
    }

    /// The phrase with one of each group of alternatives and with its slots filled.
    pub(super) fn say(&mut self, phrase: &str, slots: &[(&str, &str)]) -> String {
        fill(&self.choose(phrase), slots)
    }

    /// The phrase with one of each group of alternatives and with its slots still open.
    pub(super) fn choose(&mut self, phrase: &str) -> String {
        let mut text = String::new();
        self.expand(phrase, &mut text);
        text
    }

    fn expand(&mut self, phrase: &str, out: &mut String) {
        let mut rest = phrase;
        while let Some((before, alternatives, after)) = group(rest) {
            out.push_str(before);
            let chosen = self.pick(&alternatives);
            self.expand(chosen, out);
            rest = after;
        }
        out.push_str(rest);
    }
}

/// How many texts a phrase can become before its slots are filled.
pub(super) fn variants(phrase: &str) -> u64 {
    let mut rest = phrase;
    let mut count = 1;
    while let Some((_, alternatives, after)) = group(rest) {
        count *= alternatives.into_iter().map(variants).sum::<u64>();
        rest = after;
    }
    count
}

/// The first group of alternatives with what stands before and after it.
fn group(phrase: &str) -> Option<(&str, Vec<&str>, &str)> {
    let open = phrase.find('[')?;
    let (mut depth, mut start, mut alternatives) = (0_usize, open + 1, Vec::new());
    for (at, byte) in phrase.bytes().enumerate().skip(open) {
        match byte {
            b'[' => depth += 1,
            b'|' if depth == 1 => {
                alternatives.push(&phrase[start..at]);
                start = at + 1;
            }
            b']' if depth == 1 => {
                alternatives.push(&phrase[start..at]);
                return Some((&phrase[..open], alternatives, &phrase[at + 1..]));
            }
            b']' => depth -= 1,
            _ => {}
        }
    }
    None
}

/// Slots replaced by their values; a slot without a value stays as it is, and the tests look for such.
pub(super) fn fill(text: &str, slots: &[(&str, &str)]) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(open) = rest.find('{') {
        let Some(len) = rest[open..].find('}') else { break };
        let name = &rest[open + 1..open + len];
        out.push_str(&rest[..open]);
        match slots.iter().find(|slot| slot.0 == name) {
            Some(slot) => out.push_str(slot.1),
            None => out.push_str(&rest[open..=open + len]),
        }
        rest = &rest[open + len + 1..];
    }
    out.push_str(rest);
    out
}

/// The text with a capital first letter.
pub(super) fn capital(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map(|first| first.to_uppercase().chain(letters).collect()).unwrap_or_default()
}

/// The text with `an` for every `a` before a vowel or before a number that is read with one.
pub(super) fn articles(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 4);
    let mut words = text.split_inclusive(' ').peekable();
    while let Some(word) = words.next() {
        let vowel = words.peek().is_some_and(|next| {
            let next = next.trim_end();
            next.starts_with(['a', 'e', 'i', 'o', 'A', 'E', 'I', 'O', '8']) || next == "11" || next == "18"
        });
        match word {
            "a " if vowel => out.push_str("an "),
            "A " if vowel => out.push_str("An "),
            _ => out.push_str(word),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::{Draw, articles, capital, fill, hash, variants};

    #[test]
    fn fnv_of_its_authors() {
        assert_eq!(hash(""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(hash("a"), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(hash("foobar"), 0x8594_4171_f739_67e8);
    }

    #[test]
    fn every_variant_is_drawn_and_counted() {
        let phrase = "[a|b[c|d|]]e[|f]";
        let mut draw = Draw::new([0; 4]);
        let texts: std::collections::BTreeSet<String> = (0..500).map(|_| draw.choose(phrase)).collect();
        let expected = ["ae", "aef", "bce", "bcef", "bde", "bdef", "be", "bef"];
        assert_eq!(texts.iter().map(String::as_str).collect::<Vec<_>>(), expected);
        assert_eq!(variants(phrase), 8);
        assert_eq!(variants("no choice"), 1);
    }

    #[test]
    fn slots_and_articles() {
        assert_eq!(fill("{a} and {b}{a} {c}", &[("a", "x"), ("b", "{a}")]), "x and {a}x {c}");
        assert_eq!(
            articles("A art, a 18 year old, a 11 b, a 8 c, a 81 d, a 110 e, a book, data apple"),
            "An art, an 18 year old, an 11 b, an 8 c, an 81 d, a 110 e, a book, data apple"
        );
        assert_eq!(capital("ann"), "Ann");
        assert_eq!(capital(""), "");
    }

    #[test]
    fn draws_stay_in_range_and_differ() {
        let mut draw = Draw::new([5; 4]);
        let mut seen = [0; 5];
        for _ in 0..1000 {
            seen[draw.int(3, 7) as usize - 3] += 1;
            let some = draw.some(&[1, 2, 3, 4], 3);
            assert!(some.len() == 3 && some[0] != some[1] && some[1] != some[2] && some[0] != some[2]);
        }
        assert!(seen.iter().all(|&count| count > 140), "{seen:?}");
        assert_eq!(draw.some(&[1, 2], 5).len(), 2);
        assert_eq!((draw.int(4, 2), draw.below(0)), (4, 0));
    }
}
