//! Graders: deterministic, without a model.

use zoo::tasks::{Problem, Wrong};

use super::sandbox::{self, Program};

/// How an answer is judged.
#[derive(Debug, Clone)]
pub(super) enum Grader {
    /// The checker of a built-in task, over the whole text.
    Task(Box<Problem>),
    /// The last number, within 1e-6.
    Number(f64),
    /// A letter out of the first `options` of the alphabet.
    Choice { letter: char, options: u8 },
    /// The whole text, but for case, white space and final punctuation.
    Exact(String),
    /// Unit tests.
    Code(Box<Program>),
}

/// What a grader says.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Grade {
    /// From 0 to 1.
    Scored(f64),
    /// There is nothing in the text that could be an answer: 0, and counted.
    Unextracted,
    /// The grader itself failed.
    Failed(String),
}

impl Grade {
    pub(super) fn score(&self) -> Option<f64> {
        match self {
            Self::Scored(score) => Some(*score),
            Self::Unextracted => Some(0.0),
            Self::Failed(_) => None,
        }
    }

    fn right(right: bool) -> Self {
        Self::Scored(f64::from(u8::from(right)))
    }
}

impl Grader {
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Task(_) => "task",
            Self::Number(_) => "number",
            Self::Choice { .. } => "choice",
            Self::Exact(_) => "exact",
            Self::Code(_) => "code",
        }
    }

    pub(super) fn grade(&self, text: &str) -> Grade {
        match self {
            _ if text.trim().is_empty() => Grade::Unextracted,
            Self::Task(problem) => match problem.check(text) {
                Ok(()) => Grade::Scored(1.0),
                Err(Wrong::NoResult | Wrong::Json(_)) => Grade::Unextracted,
                Err(_) => Grade::Scored(0.0),
            },
            Self::Number(expected) => match number(text) {
                Some(got) => Grade::right((got - expected).abs() <= 1e-6),
                None => Grade::Unextracted,
            },
            Self::Choice { letter, options } => match choice(text, *options) {
                Some(got) => Grade::right(got == letter.to_ascii_uppercase()),
                None => Grade::Unextracted,
            },
            Self::Exact(expected) => match plain(text) {
                got if got.is_empty() => Grade::Unextracted,
                got => Grade::right(got == plain(expected)),
            },
            Self::Code(program) => match sandbox::passes(program, text) {
                Ok(Some(passed)) => Grade::right(passed),
                Ok(None) => Grade::Unextracted,
                Err(error) => Grade::Failed(format!("{error:#}")),
            },
        }
    }
}

/// Without white space around, capitals, and punctuation at the end.
fn plain(text: &str) -> String {
    let text = text.trim().trim_end_matches(|c: char| c.is_whitespace() || ".,;:!?".contains(c));
    text.to_lowercase()
}

/// What is inside the last `\boxed{...}`.
fn boxed(text: &str) -> Option<&str> {
    let rest = &text[text.rfind("\\boxed{")? + "\\boxed{".len()..];
    let mut depth = 1;
    for (at, c) in rest.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return Some(&rest[..at]);
        }
    }
    None
}

/// The last number of the part that holds the answer: after `####`, in a box, else the whole text.
pub(super) fn number(text: &str) -> Option<f64> {
    let part = match text.rfind("####") {
        Some(at) => text[at + 4..].lines().next().unwrap_or_default(),
        None => boxed(text).unwrap_or(text),
    };
    let chars: Vec<char> = part.chars().collect();
    let digit = |at: usize| chars.get(at).is_some_and(char::is_ascii_digit);
    let (mut last, mut at) = (None, 0);
    while at < chars.len() {
        if !(digit(at) || chars[at] == '.' && digit(at + 1)) {
            at += 1;
            continue;
        }
        let mut digits = String::new();
        // A minus between two operands is not a sign.
        let before = |back: usize| at.checked_sub(back).and_then(|at| chars.get(at));
        let signed = match before(1) {
            Some('$') => before(2),
            other => other,
        };
        let operand = if before(1) == Some(&'$') { before(3) } else { before(2) };
        if matches!(signed, Some('-' | '\u{2212}')) && !operand.is_some_and(|c| c.is_alphanumeric() || *c == ')') {
            digits.push('-');
        }
        let mut fraction = false;
        while at < chars.len() {
            match chars[at] {
                c if c.is_ascii_digit() => digits.push(c),
                '.' if !fraction && digit(at + 1) => {
                    fraction = true;
                    digits.push('.');
                }
                // A comma inside a number groups three digits; another one parts two numbers.
                ',' if !fraction && (1..=3).all(|next| digit(at + next)) && !digit(at + 4) => {}
                _ => break,
            }
            at += 1;
        }
        last = digits.parse().ok().or(last);
    }
    last
}

/// The letter that is chosen: the last of "answer is X" and boxes, else the last letter that stands alone in brackets or
/// as the whole answer.
fn choice(text: &str, options: u8) -> Option<char> {
    let upper = text.to_ascii_uppercase();
    let allowed = |c: char| {
        let place = (c as u32).checked_sub('A' as u32);
        c.is_ascii_uppercase() && place.is_some_and(|place| place < u32::from(options))
    };
    let single = |part: &str| {
        let mut letters = part.trim_matches(|c: char| !c.is_alphanumeric()).chars();
        letters.next().filter(|c| allowed(*c) && letters.next().is_none())
    };
    let mut explicit: Option<(usize, char)> = None;
    for phrase in ["ANSWER IS", "ANSWER:"] {
        for (at, _) in upper.match_indices(phrase) {
            let rest = upper[at + phrase.len()..].trim_start_matches([' ', ':', '*', '"', '`']);
            let word = rest.split(|c: char| c.is_whitespace() || ",.;".contains(c)).next().unwrap_or_default();
            if let Some(letter) = single(word) {
                explicit = explicit.max(Some((at, letter)));
            }
        }
    }
    if let Some((at, letter)) = upper.rfind("\\BOXED{").and_then(|at| {
        let inside = upper[at + "\\BOXED{".len()..].split('}').next()?;
        Some((at, single(inside)?))
    }) {
        explicit = explicit.max(Some((at, letter)));
    }
    if let Some((_, letter)) = explicit {
        return Some(letter);
    }
    // "A" is also a word, so a bare letter counts only if it is all that stands on its line.
    let bracketed = |line: &str| -> Option<char> {
        line.match_indices('(').filter_map(|(at, _)| single(line[at + 1..].split(')').next()?)).next_back()
    };
    upper.lines().rev().find_map(|line| single(line).or_else(|| bracketed(line)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        for (text, expected) in [
            ("so 3 + 4 = 7.", Some(7.0)),
            ("#### 1,234", Some(1234.0)),
            ("12 and\n#### $18\nno 5", Some(18.0)),
            ("\\boxed{\\frac{1}{2}} or \\boxed{-3.50}", Some(-3.5)),
            ("costs $1,000,000.50%", Some(1_000_000.5)),
            ("3, 4 and 5,6", Some(6.0)),
            ("10-3", Some(3.0)),
            ("it is -$5", Some(-5.0)),
            (".5", Some(0.5)),
            ("7\n#### none", None),
            ("no idea", None),
        ] {
            assert_eq!(number(text), expected, "{text}");
        }
    }

    #[test]
    fn number_grades() {
        let grader = Grader::Number(18.0);
        assert_eq!(grader.grade("#### 18.0000001"), Grade::Scored(1.0));
        assert_eq!(grader.grade("#### 18.1"), Grade::Scored(0.0));
        assert_eq!(grader.grade("eighteen"), Grade::Unextracted);
        assert_eq!(grader.grade("eighteen").score(), Some(0.0), "wrong, not left out");
        assert_eq!(grader.grade(" \n"), Grade::Unextracted);
    }

    #[test]
    fn choices() {
        for (text, expected) in [
            ("The answer is (B).", Some('B')),
            ("the answer is A. No, the answer is c", Some('C')),
            ("\\boxed{D}", Some('D')),
            ("(A) is wrong, so (B)", Some('B')),
            ("B", Some('B')),
            ("b.", Some('B')),
            ("A dog barks", None),
            ("The answer is Z", None),
            ("(E)", None),
            ("\u{df} answer is (B)", Some('B')),
            ("", None),
        ] {
            assert_eq!(choice(text, 4), expected, "{text}");
        }
    }

    #[test]
    fn exact_texts() {
        let grader = Grader::Exact("Not plausible".into());
        assert_eq!(grader.grade(" not Plausible. "), Grade::Scored(1.0));
        assert_eq!(grader.grade("plausible"), Grade::Scored(0.0));
        assert_eq!(grader.grade("..."), Grade::Unextracted);
    }
}
