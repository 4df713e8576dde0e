//! The loop carries diffusion without a change: a decoder over a canvas of masks, on bidirectional and block-causal
//! scripted models, commits out of order inside and streams in order outside.
#![expect(clippy::unwrap_used, reason = "a failed step of a test may stop it where it stands")]

use engine::{
    EngineSettings, Event, FinishReason, Request, TokenId,
    decode::{DecodeError, Decoder, KvEffect, Reading, SeqView, StepOutcome, StepPlan, TokenScore},
    testing::{BYTE_VOCAB, Harness, Rule, Scripted, model},
};
use models::{AttentionKind, BlockOrigin, Visibility};

const MASK: TokenId = TokenId(BYTE_VOCAB as u32 - 1);
const CANVAS: usize = 12;

/// Fills a canvas from its end to its start, `per_pass` slots a pass, in blocks; recomputes everything each pass.
struct Backwards {
    slots: Vec<Option<TokenScore>>,
    committed: usize,
    per_pass: usize,
    block_len: usize,
}

impl Backwards {
    fn block(&self) -> std::ops::Range<usize> {
        let first_open = self.slots.iter().position(Option::is_none).unwrap_or(self.slots.len() - 1);
        let start = first_open / self.block_len * self.block_len;
        start..(start + self.block_len).min(self.slots.len())
    }
}

impl Decoder for Backwards {
    fn name(&self) -> &'static str {
        "backwards"
    }

    fn plan(&self, seq: &SeqView<'_>) -> StepPlan {
        let block = self.block();
        let canvas = self.slots[..block.end].iter().map(|slot| slot.as_ref().map_or(MASK, |score| score.token));
        let tokens: Vec<TokenId> = seq.tokens[..seq.prompt_len].iter().copied().chain(canvas).collect();
        let scored = seq.prompt_len + block.start..tokens.len();
        StepPlan { start: 0, visibility: Visibility::Through(tokens.len()), tokens, scored, reading: Reading::InOrder }
    }

    fn judge(&mut self, _: &SeqView<'_>, _: &StepPlan, scores: Vec<TokenScore>) -> Result<StepOutcome, DecodeError> {
        let block = self.block();
        let open: Vec<usize> = block.clone().rev().filter(|&slot| self.slots[slot].is_none()).collect();
        for slot in open.into_iter().take(self.per_pass) {
            self.slots[slot] = Some(scores[slot - block.start].clone());
        }
        let final_len = self.slots.iter().take_while(|slot| slot.is_some()).count();
        let commits = self.slots[self.committed..final_len].iter().flatten().cloned().collect();
        self.committed = final_len;
        Ok(StepOutcome { commits, kv: KvEffect::Refresh, canvas: None })
    }
}

fn run(attention: AttentionKind, block_len: usize, per_pass: usize) -> (String, usize, Vec<usize>) {
    let table = (0..40).map(|i| TokenId(97 + i % 26)).collect();
    let backbone = Scripted::diffusion(Rule::Table(table), BYTE_VOCAB, 256, attention);
    let settings = EngineSettings { threads: Some(1), ..EngineSettings::default() };
    let mut harness = Harness::with_decoder(model(backbone).unwrap(), settings, move |_| {
        Box::new(Backwards { slots: vec![None; CANVAS], committed: 0, per_pass, block_len })
    })
    .unwrap();
    let request = Request { max_tokens: Some(CANVAS), ..Request::new(vec![TokenId(1), TokenId(2)]) };
    let transcript = harness.run_one(request);
    let finish = transcript.finish().unwrap();
    assert_eq!(finish.reason, FinishReason::Length);
    let bursts = transcript.events.iter().filter_map(|event| match event {
        Event::Committed(commit) => Some(commit.tokens.len()),
        _ => None,
    });
    assert_eq!(harness.pages_used(), 0);
    (transcript.text.clone(), finish.stats.forward_passes, bursts.collect())
}

#[test]
fn a_bidirectional_canvas_is_decoded_by_the_same_loop() {
    let (text, passes, bursts) = run(AttentionKind::Full, CANVAS, 3);
    assert_eq!(text, "cdefghijklmn", "slot p holds what the table has at position p");
    assert_eq!(passes, 4);
    assert_eq!(bursts, [12], "the first slot is decided last, so all text leaves at once");
}

#[test]
fn a_block_causal_canvas_streams_block_by_block() {
    let (text, passes, bursts) = run(AttentionKind::BlockCausal { block_len: 4, origin: BlockOrigin::Start }, 4, 2);
    assert_eq!((text.as_str(), passes), ("cdefghijklmn", 6));
    assert_eq!(bursts, [4, 4, 4]);
}
