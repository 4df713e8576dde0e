//! Chains of operations modulo ten.
//!
//! Every factor is prime to ten, so every step is a bijection of the digits, and no digit is known without the one
//! before.

use super::{
    Draft, Wrong,
    draw::{Draw, variants},
};

const PHRASES: &str = "[Start with|Start at|Begin with|Begin at|Take] {start}[. Do|. Then do|. Apply|, then do|\
    , then apply|\
    . Now do] {ops}[, keep the last digit.|. Keep the last digit.|. Keep only the last digit.|\
    , always keep the last digit.|\
    . Keep the last digit of each step.|, modulo ten.]";

/// The phrases before the slots are filled.
pub(super) fn num_templates() -> u64 {
    variants(PHRASES)
}

/// A chain of 6 to 12 steps.
pub(super) fn draft(draw: &mut Draw) -> Draft {
    let start = draw.int(0, 9);
    let steps = draw.int(6, 12);
    let (mut digit, mut ops, mut digits) = (start, Vec::new(), Vec::new());
    let (mut times, mut run) = (draw.chance(50), 0);
    for _ in 0..steps {
        // At most two of the same kind in a row.
        if run == 2 || (run > 0 && draw.chance(60)) {
            times = !times;
            run = 0;
        }
        run += 1;
        let operand = if times { draw.pick(&[3, 7, 9]) } else { draw.int(1, 9) };
        digit = if times { digit * operand } else { digit + operand } % 10;
        ops.push(format!("{}{operand}", if times { 'x' } else { '+' }));
        digits.push(digit.to_string());
    }
    let (start, ops) = (start.to_string(), ops.join(" "));
    let question = draw.say(PHRASES, &[("start", &start), ("ops", &ops)]);
    Draft { question, answer: digits.join(" "), key: format!("{start} {ops}") }
}

/// Accepts the digits of the answer only.
pub(super) fn check(answer: &str, output: &str) -> Result<(), Wrong> {
    if output.trim() == answer { Ok(()) } else { Err(Wrong::text(answer, output)) }
}
