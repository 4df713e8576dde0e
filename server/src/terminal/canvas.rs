//! What a diffusion model has decided so far, as characters to show.

use std::collections::BTreeMap;

use engine::{Frame, Tokenizer};

/// Stands for an undecided slot.
const UNDECIDED: char = '\u{2591}';

/// How a character is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Style {
    /// Decided for a while.
    Plain,
    /// Decided since the last drawing.
    Fresh,
    /// Not decided.
    Undecided,
}

/// A character with its style.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cell {
    pub(super) char: char,
    pub(super) style: Style,
}

/// The slots behind the prompt.
#[derive(Debug, Default)]
pub(super) struct Canvas {
    decided: BTreeMap<usize, Slot>,
    num_undecided: usize,
}

#[derive(Debug)]
struct Slot {
    bytes: Vec<u8>,
    is_fresh: bool,
}

impl Canvas {
    /// Takes over what a denoising step decided.
    pub(super) fn apply(&mut self, frame: &Frame, tokenizer: &Tokenizer) {
        self.num_undecided = frame.masked;
        for (slot, token) in &frame.fixed {
            let bytes = tokenizer.token_bytes(*token).to_vec();
            self.decided.insert(*slot, Slot { bytes, is_fresh: true });
        }
    }

    /// All slots from left to right. A character belongs to the slot that its first byte belongs to.
    pub(super) fn cells(&self) -> Vec<Cell> {
        let mut cells = Vec::new();
        let mut run = Run::default();
        for slot in 0..self.decided.len() + self.num_undecided {
            match self.decided.get(&slot) {
                Some(slot) => run.push(slot),
                None => {
                    run.flush(&mut cells);
                    cells.push(Cell { char: UNDECIDED, style: Style::Undecided });
                }
            }
        }
        run.flush(&mut cells);
        cells
    }

    /// Everything was drawn: nothing is fresh any more.
    pub(super) fn settle(&mut self) {
        for slot in self.decided.values_mut() {
            slot.is_fresh = false;
        }
    }
}

/// Bytes of decided slots that stand side by side, each with its style.
#[derive(Default)]
struct Run {
    bytes: Vec<u8>,
    styles: Vec<Style>,
}

impl Run {
    fn push(&mut self, slot: &Slot) {
        self.bytes.extend(&slot.bytes);
        self.styles.resize(self.bytes.len(), if slot.is_fresh { Style::Fresh } else { Style::Plain });
    }

    fn flush(&mut self, cells: &mut Vec<Cell>) {
        let mut start = 0;
        for chunk in self.bytes.utf8_chunks() {
            for (offset, char) in chunk.valid().char_indices() {
                let style = self.styles[start + offset];
                cells.extend(printable(char).map(|char| Cell { char, style }));
            }
            start += chunk.valid().len();
            if !chunk.invalid().is_empty() {
                // The rest of the code point may still come.
                cells.push(Cell { char: char::REPLACEMENT_CHARACTER, style: self.styles[start] });
                start += chunk.invalid().len();
            }
        }
        self.bytes.clear();
        self.styles.clear();
    }
}

/// What a terminal may get of a text that a model wrote: escape sequences would let it do anything.
pub(super) fn printable(char: char) -> Option<char> {
    match char {
        '\n' | '\t' => Some(char),
        '\r' => None,
        char if char.is_control() => Some(char::REPLACEMENT_CHARACTER),
        char => Some(char),
    }
}

#[cfg(test)]
mod tests {
    use engine::{
        TokenId,
        testing::{END, byte_tokenizer},
    };

    use super::*;

    fn frame(masked: usize, fixed: &[(usize, u32)]) -> Frame {
        let fixed = fixed.iter().map(|(slot, token)| (*slot, TokenId(*token))).collect();
        Frame { step: 1, block: 0, committed: 0, masked, fixed }
    }

    /// Characters, and their styles as one letter each.
    fn shown(canvas: &Canvas) -> (String, String) {
        let letter = |style| match style {
            Style::Plain => 'p',
            Style::Fresh => 'f',
            Style::Undecided => '.',
        };
        canvas.cells().iter().map(|cell| (cell.char, letter(cell.style))).unzip()
    }

    #[test]
    fn slots_fill_in_any_order() {
        let tokenizer = byte_tokenizer().unwrap();
        let mut canvas = Canvas::default();
        assert_eq!(shown(&canvas).0, "");
        canvas.apply(&frame(4, &[(2, 99)]), &tokenizer);
        assert_eq!(shown(&canvas), ("░░c░░".into(), "..f..".into()));
        canvas.settle();
        canvas.apply(&frame(3, &[(0, 97)]), &tokenizer);
        assert_eq!(shown(&canvas), ("a░c░░".into(), "f.p..".into()));
        canvas.apply(&frame(3, &[(2, 100)]), &tokenizer);
        assert_eq!(shown(&canvas), ("a░d░░".into(), "f.f..".into()), "an edit is fresh again");
    }

    #[test]
    fn code_points_may_span_slots() {
        let tokenizer = byte_tokenizer().unwrap();
        let mut canvas = Canvas::default();
        canvas.apply(&frame(2, &[(0, 0xC3), (2, 120)]), &tokenizer);
        assert_eq!(shown(&canvas).0, "\u{FFFD}░x░");
        canvas.settle();
        canvas.apply(&frame(1, &[(1, 0xA9)]), &tokenizer);
        assert_eq!(shown(&canvas), ("éx░".into(), "pp.".into()), "its first byte was there before");
    }

    #[test]
    fn special_tokens_show_nothing_and_control_characters_no_effect() {
        let tokenizer = byte_tokenizer().unwrap();
        let mut canvas = Canvas::default();
        canvas.apply(&frame(0, &[(0, 0x1B), (1, 10), (2, 13), (3, 9), (4, END.0)]), &tokenizer);
        assert_eq!(shown(&canvas).0, "\u{FFFD}\n\t");
    }
}
