//! Prompts of a wanted length, made of common words.

use std::path::Path;

use anyhow::{Context, anyhow, ensure};
use tokenizers::Tokenizer;

use crate::stats::SplitMix;

/// A word is one token in most vocabularies; where it is not, the fit knows.
const WORDS: [&str; 64] = [
    "time", "year", "people", "way", "day", "man", "thing", "woman", "life", "child", "world", "school", "state",
    "family", "student", "group", "country", "problem", "hand", "part", "place", "case", "week", "company", "system",
    "program", "question", "work", "number", "night", "point", "home", "water", "room", "mother", "area", "money",
    "story", "fact", "month", "lot", "right", "study", "book", "eye", "job", "word", "business", "issue", "side",
    "kind", "head", "house", "service", "friend", "father", "power", "hour", "game", "line", "end", "member", "law",
    "car",
];

/// Lengths drawn evenly from `mean - spread` to `mean + spread`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Lengths {
    pub(crate) mean: u64,
    pub(crate) spread: u64,
}

impl std::str::FromStr for Lengths {
    type Err = anyhow::Error;

    /// `512`, or `512+-128`.
    fn from_str(text: &str) -> anyhow::Result<Self> {
        let (mean, spread) = text.split_once("+-").unwrap_or((text, "0"));
        let number =
            |text: &str| text.trim().parse::<u64>().with_context(|| format!("`{text}` is not a number of tokens"));
        let (mean, spread) = (number(mean)?, number(spread)?);
        ensure!(mean > spread, "lengths from {mean} - {spread} on are not all above 0");
        ensure!(mean + spread <= 1 << 20, "more than {} tokens", 1 << 20);
        Ok(Self { mean, spread })
    }
}

impl Lengths {
    fn draw(self, random: &mut SplitMix) -> u64 {
        self.mean - self.spread + random.below(2 * self.spread as usize + 1) as u64
    }
}

/// How words become tokens.
#[derive(Debug, Clone)]
pub(crate) enum Fit {
    /// By the model's own tokenizer: exact, but for what a chat template adds.
    Tokenizer(Box<Tokenizer>),
    /// By what the server has counted: `fixed` tokens, and so many for each word. Of many prompts it is right on average.
    Counted { fixed: f64, per_word: f64 },
}

impl Fit {
    pub(crate) fn of_file(path: &Path) -> anyhow::Result<Self> {
        let tokenizer =
            Tokenizer::from_file(path).map_err(|error| anyhow!("--tokenizer {}: {error}", path.display()))?;
        Ok(Self::Tokenizer(Box::new(tokenizer)))
    }

    /// From two prompts, each `(words, tokens)`.
    pub(crate) fn counted(short: (u64, u64), long: (u64, u64)) -> anyhow::Result<Self> {
        let (words, tokens) = (long.0 as f64 - short.0 as f64, long.1 as f64 - short.1 as f64);
        ensure!(
            words > 0.0 && tokens / words > 0.1,
            "the server counts {} tokens in {} words and {} in {}: no length can be aimed at; give --tokenizer",
            short.1,
            short.0,
            long.1,
            long.0
        );
        let per_word = tokens / words;
        Ok(Self::Counted { fixed: short.1 as f64 - per_word * short.0 as f64, per_word })
    }
}

/// A source of prompts without end, each another.
#[derive(Debug, Clone)]
pub(crate) struct Synthetic {
    pub(crate) input: Lengths,
    pub(crate) output: Option<Lengths>,
    pub(crate) seed: u64,
    pub(crate) fit: Fit,
}

impl Synthetic {
    /// Randomness of prompt `index`. The factor is not the step of the generator, which would make every prompt that before
    /// it, one word further on.
    fn random(&self, index: u64) -> SplitMix {
        SplitMix(self.seed ^ index.wrapping_mul(0xd134_2543_de82_ef95))
    }

    /// The prompt `index`, and how long its answer is to be.
    pub(crate) fn prompt(&self, index: u64) -> anyhow::Result<(String, Option<u64>)> {
        let mut random = self.random(index);
        let tokens = self.input.draw(&mut random);
        let output = self.output.map(|output| output.draw(&mut random));
        let text = match &self.fit {
            Fit::Counted { fixed, per_word } => {
                words(&mut random, (((tokens as f64 - fixed) / per_word).round() as i64).max(1) as usize)
            }
            Fit::Tokenizer(tokenizer) => exact(tokenizer, &mut random, tokens as usize)?,
        };
        Ok((text, output))
    }
}

/// Every word `times` times, by which the server's tokens are counted: what is right for all words is right on average.
pub(crate) fn probe(times: usize) -> (String, u64) {
    let all = WORDS.iter().cycle().take(WORDS.len() * times);
    (all.copied().collect::<Vec<_>>().join(" "), (WORDS.len() * times) as u64)
}

/// `count` words at random.
fn words(random: &mut SplitMix, count: usize) -> String {
    let word = |_| WORDS[random.below(WORDS.len())];
    (0..count).map(word).collect::<Vec<_>>().join(" ")
}

/// A text of exactly `count` tokens without special ones.
fn exact(tokenizer: &Tokenizer, random: &mut SplitMix, count: usize) -> anyhow::Result<String> {
    let failed = |error| anyhow!("--tokenizer: {error}");
    let mut text = words(random, count);
    // The end of a cut text may be read in another way than it was written; a few words more or less mend it.
    for _ in 0..64 {
        let encoding = tokenizer.encode(text.as_str(), false).map_err(failed)?;
        let got = encoding.len();
        if got == count {
            return Ok(text);
        }
        if got < count {
            text = format!("{text} {}", words(random, (count - got).div_ceil(2)));
        } else {
            let end = encoding.get_offsets()[count - 1].1;
            ensure!(text.is_char_boundary(end), "--tokenizer: its offsets are not those of the text");
            text.truncate(end);
            if tokenizer.encode(text.as_str(), false).map_err(failed)?.len() != count {
                let end = text.trim_end().rfind(' ').unwrap_or(0);
                text.truncate(end);
            }
        }
    }
    Err(anyhow!("--tokenizer: no text of {count} tokens was found"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths() {
        assert_eq!("512".parse::<Lengths>().unwrap(), Lengths { mean: 512, spread: 0 });
        let lengths: Lengths = "10+-3".parse().unwrap();
        let mut random = SplitMix(1);
        let drawn: Vec<u64> = (0..500).map(|_| lengths.draw(&mut random)).collect();
        assert_eq!((drawn.iter().min(), drawn.iter().max()), (Some(&7), Some(&13)));
        for bad in ["", "x", "5+-5", "0", "-1", "99999999"] {
            assert!(bad.parse::<Lengths>().is_err(), "{bad}");
        }
    }

    #[test]
    fn words_fitted_to_counts() {
        // 11 tokens of a template, three for two words.
        let fit = Fit::counted((16, 35), (116, 185)).unwrap();
        assert!(matches!(fit, Fit::Counted { fixed, per_word } if fixed == 11.0 && per_word == 1.5));
        let output = Some(Lengths { mean: 9, spread: 2 });
        let synthetic = Synthetic { input: "311".parse().unwrap(), output, seed: 3, fit };
        let (text, output) = synthetic.prompt(5).unwrap();
        assert_eq!(text.split(' ').count(), 200);
        assert!((7..=11).contains(&output.unwrap()));
        assert_eq!(synthetic.prompt(5).unwrap().0, text);
        let next = synthetic.prompt(6).unwrap().0;
        let shared = text.split(' ').skip(1).zip(next.split(' ')).filter(|(ours, theirs)| ours == theirs).count();
        assert!(shared < 20, "{shared} of 199 words are those of the prompt before, one further on");
        assert!(Fit::counted((16, 20), (116, 20)).is_err());
    }

    #[test]
    fn a_tokenizer_gives_the_exact_length() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/builtin/leapfrog-ar/tokenizer.json");
        let fit = Fit::of_file(Path::new(path)).unwrap();
        let Fit::Tokenizer(tokenizer) = &fit else { panic!("a tokenizer") };
        let synthetic = Synthetic { input: "100+-60".parse().unwrap(), output: None, seed: 1, fit: fit.clone() };
        for index in 0..20 {
            let (text, _) = synthetic.prompt(index).unwrap();
            let wanted = synthetic.input.draw(&mut synthetic.random(index));
            assert_eq!(tokenizer.encode(text, false).unwrap().len() as u64, wanted, "prompt {index}");
        }
        assert!(Fit::of_file(Path::new("nowhere.json")).unwrap_err().to_string().contains("nowhere.json"));
    }
}
