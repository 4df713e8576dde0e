//! Word problems of two to four steps.
//!
//! The answer has one short sentence with an equation for each step, then the line `#### number`. What a sentence says
//! depends on the kind of step and the things counted only.

use super::{
    Draft, Wrong,
    draw::{Draw, articles},
    math_families::FAMILIES,
};

pub(super) use super::math_families::num_templates;

/// Results of steps stay in this range.
const RESULTS: std::ops::RangeInclusive<i64> = 2..=200;

/// A problem in the making.
#[derive(Debug, Default)]
pub(super) struct Work {
    question: Vec<String>,
    answer: Vec<String>,
    equations: Vec<String>,
    broken: bool,
}

impl Work {
    /// Adds a sentence or more to the question.
    pub(super) fn ask(&mut self, text: String) {
        self.question.push(text);
    }

    /// Adds a step `before a op b=c after` to the answer and returns `c`. A result that is too small, too large or no
    /// whole number spoils the problem.
    pub(super) fn step(&mut self, before: &str, equation: (i64, char, i64), after: &str) -> i64 {
        let (left, op, right) = equation;
        let result = match op {
            '+' => left + right,
            '-' => left - right,
            '*' => left * right,
            _ if right != 0 && left % right == 0 => left / right,
            _ => 0,
        };
        self.broken |= !RESULTS.contains(&result);
        let equation = format!("{left}{op}{right}={result}");
        let space = if after.is_empty() { "" } else { " " };
        self.answer.push(format!("{before} {equation}{space}{after}."));
        self.equations.push(equation);
        result
    }

    /// Gives the problem up; another is drawn in its place.
    pub(super) fn spoil(&mut self) {
        self.broken = true;
    }

    /// How many steps there are so far.
    pub(super) fn steps(&self) -> usize {
        self.equations.len()
    }

    /// The problem with the result of the last step as the answer, if it is sound.
    fn finish(self) -> Option<Draft> {
        let (_, result) = self.equations.last()?.split_once('=')?;
        if self.broken || !(2..=4).contains(&self.steps()) {
            return None;
        }
        Some(Draft {
            question: articles(&self.question.join(" ")),
            answer: format!("{}\n#### {result}", self.answer.join(" ")),
            key: self.equations.join(" "),
        })
    }
}

/// A problem of one of the families.
pub(super) fn draft(draw: &mut Draw) -> Draft {
    loop {
        let family = draw.pick(FAMILIES);
        let mut work = Work::default();
        family(draw, &mut work);
        if let Some(draft) = work.finish() {
            return draft;
        }
    }
}

/// Accepts the same result on the last line, after equations that all hold.
pub(super) fn check(answer: &str, output: &str) -> Result<(), Wrong> {
    let expected = result(answer).ok_or(Wrong::NoResult)?;
    let got = result(output).ok_or(Wrong::NoResult)?;
    if got != expected {
        return Err(Wrong::Result { expected: expected.into(), got: got.into() });
    }
    for (at, _) in output.match_indices('=') {
        if !holds(&output[..at], &output[at + 1..]) {
            let start = output[..at]
                .rfind(char::is_alphabetic)
                .map_or(0, |letter| letter + output[letter..].chars().next().map_or(0, char::len_utf8));
            let end = output[at + 1..].find(char::is_alphabetic).map_or(output.len(), |letter| at + 1 + letter);
            return Err(Wrong::Equation(output[start..end].trim().into()));
        }
    }
    Ok(())
}

/// The digits of the last line, if it is `#### number`.
fn result(output: &str) -> Option<&str> {
    let line = output.trim_end().lines().next_back()?;
    let number = line.trim().strip_prefix("####")?.trim();
    let digits = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    digits.then_some(number)
}

/// Whether `a op b` at the end of `before` gives the number at the start of `after`.
fn holds(before: &str, after: &str) -> bool {
    let after = after.trim_start();
    let digits = after.bytes().take_while(u8::is_ascii_digit).count();
    let Ok(result) = after[..digits].parse::<i128>() else { return false };
    let Some((rest, right)) = last_number(before) else { return false };
    let mut rest = rest.trim_end().chars();
    let op = rest.next_back();
    let Some((_, left)) = last_number(rest.as_str()) else { return false };
    match op {
        Some('+') => left.checked_add(right) == Some(result),
        Some('-') => left.checked_sub(right) == Some(result),
        Some('*') => left.checked_mul(right) == Some(result),
        Some('/') => right != 0 && left % right == 0 && left / right == result,
        _ => false,
    }
}

/// The number at the end of a text and what is before it.
fn last_number(text: &str) -> Option<(&str, i128)> {
    let text = text.trim_end();
    let digits = text.bytes().rev().take_while(u8::is_ascii_digit).count();
    let (rest, number) = text.split_at(text.len() - digits);
    Some((rest, number.parse().ok()?))
}
