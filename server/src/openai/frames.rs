//! Frames: what a canvas looks like while it is filled, for clients that asked to watch. Each is a difference to the
//! ones before it; those that come faster than the client wants are merged.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use engine::{Frame, TokenId, Tokenizer};
use serde::Serialize;

/// What changed since the last frame that was sent.
#[derive(Debug, Serialize)]
pub(super) struct FrameDiff {
    step: usize,
    block: usize,
    committed: usize,
    masked: usize,
    tokens_fixed: Vec<(usize, TokenId)>,
    text_fixed: Vec<(usize, String)>,
}

/// The frames of one choice, on their way to the client.
#[derive(Debug)]
pub(super) struct FrameMerger {
    /// Shortest time between two frames; 0 sends every one.
    interval: Duration,
    /// When the next frame may be sent.
    not_before: Instant,
    pending: Option<Pending>,
}

#[derive(Debug)]
struct Pending {
    /// The counters of the latest frame.
    latest: Frame,
    /// What all of them fixed; of two tokens for a slot the later one.
    fixed: BTreeMap<usize, TokenId>,
}

impl FrameMerger {
    /// The first frame is sent at once.
    pub(super) fn new(interval: Duration, now: Instant) -> Self {
        Self { interval, not_before: now, pending: None }
    }

    /// Adds a frame to what is pending.
    pub(super) fn push(&mut self, mut frame: Frame) {
        let mut fixed = self.pending.take().map(|pending| pending.fixed).unwrap_or_default();
        fixed.extend(std::mem::take(&mut frame.fixed));
        self.pending = Some(Pending { latest: frame, fixed });
    }

    /// When what is pending is to be sent.
    pub(super) fn due(&self) -> Option<Instant> {
        self.pending.as_ref().map(|_| self.not_before)
    }

    /// Takes what is pending, due or not.
    pub(super) fn take(&mut self, tokenizer: &Tokenizer, now: Instant) -> Option<FrameDiff> {
        let Pending { latest, fixed } = self.pending.take()?;
        self.not_before = now + self.interval;
        let Frame { step, block, committed, masked, fixed: _ } = latest;
        let text_fixed = fixed.iter().map(|(slot, token)| (*slot, tokenizer.token_text(*token).into_owned())).collect();
        Some(FrameDiff { step, block, committed, masked, tokens_fixed: fixed.into_iter().collect(), text_fixed })
    }
}

#[cfg(test)]
mod tests {
    use engine::testing::byte_tokenizer;
    use serde_json::json;

    use super::*;

    fn frame(step: usize, fixed: &[(usize, u32)]) -> Frame {
        let fixed = fixed.iter().map(|(slot, token)| (*slot, TokenId(*token))).collect();
        Frame { step, block: 0, committed: step, masked: 9 - step, fixed }
    }

    #[test]
    fn frames_are_merged_until_the_interval_has_passed() {
        let tokenizer = byte_tokenizer().unwrap();
        let start = Instant::now();
        let mut merger = FrameMerger::new(Duration::from_millis(50), start);
        assert_eq!(merger.due(), None);
        merger.push(frame(1, &[(4, 97)]));
        assert_eq!(merger.due(), Some(start), "the first one does not wait");
        let first = serde_json::to_value(merger.take(&tokenizer, start).unwrap()).unwrap();
        let expected = json!({"step": 1, "block": 0, "committed": 1, "masked": 8, "tokens_fixed": [[4, 97]],
            "text_fixed": [[4, "a"]]});
        assert_eq!(first, expected);

        merger.push(frame(2, &[(7, 98), (9, 98)]));
        merger.push(frame(3, &[(0, 0xC3), (7, 99)]));
        assert_eq!(merger.due(), Some(start + Duration::from_millis(50)));
        let merged = serde_json::to_value(merger.take(&tokenizer, start).unwrap()).unwrap();
        assert_eq!((&merged["step"], &merged["masked"]), (&json!(3), &json!(6)));
        assert_eq!(merged["tokens_fixed"], json!([[0, 0xC3], [7, 99], [9, 98]]), "ascending, the later value wins");
        assert_eq!(merged["text_fixed"], json!([[0, "\u{FFFD}"], [7, "c"], [9, "b"]]));
        assert!(merger.take(&tokenizer, start).is_none() && merger.due().is_none());
    }

    #[test]
    fn without_an_interval_every_frame_is_due() {
        let tokenizer = byte_tokenizer().unwrap();
        let start = Instant::now();
        let mut merger = FrameMerger::new(Duration::ZERO, start);
        for step in 1..4 {
            merger.push(frame(step, &[]));
            assert_eq!(merger.due(), Some(start));
            assert_eq!(merger.take(&tokenizer, start).unwrap().step, step);
        }
    }
}
