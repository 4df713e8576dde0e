//! Whether the device computes what the processor does, and the same bits in every batch.
//!
//! The built-in models answer the same prompts on both. A device rounds more, so two tokens whose scores are as close as
//! that may change places: at the first difference the logits of both are compared, and it counts as a tie if the
//! differences that were found explain it. What follows a tie is not compared.

use std::sync::Arc;

use anyhow::{Context, ensure};
use engine::{
    AttentionKind, CacheMode, DecodingOptions, DiffusionOptions, EarlyStop, LoadOptions, Policy, Remasking, Strategy,
    TokenId,
};
use kernels::device::Device;
use models::{
    Backbone, Capacity, ForwardBatch, KvCache, LogitAlignment, Logits, PageId, Segment, Visibility, source::load_on,
};

use super::{
    Part, Setup,
    builtin::{Output, complete, prompts, start},
    log::{Cell, Log, figure},
};

/// The built-in models that run on a device.
const MODELS: [&str; 5] = ["leapfrog-ar", "leapfrog-cllm", "leapfrog-lla", "leapfrog-diffusion", "leapfrog-block"];
/// Positions of a page; short, so that prompts have several.
const PAGE_LEN: usize = 16;
/// Sequences of a batch.
const BATCH: usize = 3;
/// Rounding to f16, relative.
const HALF_UNIT: f64 = 1.0 / 2048.0;

/// How much is compared.
#[derive(Debug, Clone, Copy)]
pub(super) struct Effort {
    pub(super) num_prompts: usize,
    /// Tokens of an answer, and slots of a canvas.
    pub(super) tokens: usize,
}

/// Verdicts over prompts.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Verdicts {
    equal: usize,
    ties: usize,
    wrong: usize,
    largest_difference: f64,
}

impl Verdicts {
    fn cell(self, model: &str, what: impl Into<String>) -> Cell {
        Cell::new(Part::Check, model, what)
            .with(figure::PROMPTS, (self.equal + self.ties + self.wrong) as f64)
            .with(figure::EQUAL, self.equal as f64)
            .with(figure::TIES, self.ties as f64)
            .with(figure::WRONG, self.wrong as f64)
    }
}

/// Runs all checks. Returns whether all of them hold.
pub(super) fn run(setup: &Setup, log: &mut Log) -> anyhow::Result<bool> {
    log.note(
        Part::Check,
        "Tokens: greedy; diffusion decides one slot a pass, the most confident first. A tie: the device's token is, on the \
         processor, within twice the largest logit difference of the likeliest (for the choice of a slot: its log-probability \
         within four times). Differences are measured over all rows of the shared text, and count as wrong themselves if \
         they are larger than rounding explains.",
    );
    for name in MODELS {
        compare(setup, name, log)?;
        if name != "leapfrog-diffusion" && name != "leapfrog-block" {
            jacobi_is_ar(setup, name, log)?;
        }
        batches(setup, name, log)?;
    }
    let is_wrong = |cell: &&Cell| cell.part == Part::Check && cell.figures.get(figure::WRONG).is_none_or(|n| *n > 0.0);
    Ok(!log.cells.iter().any(|cell| is_wrong(&cell)))
}

/// The processor's tokens against the device's.
fn compare(setup: &Setup, name: &str, log: &mut Log) -> anyhow::Result<()> {
    let Effort { num_prompts, tokens } = setup.check;
    let (on_cpu, on_device) = (start(name, None)?, start(name, Some(&setup.device))?);
    let questions = prompts(on_cpu.model(), num_prompts)?;
    let decoding = one_at_a_time(on_cpu.model().attention, tokens);
    let expected = complete(&on_cpu, &questions, &decoding, (tokens, false))?;
    let got = complete(&on_device, &questions, &decoding, (tokens, false))?;
    let num_tokens = on_cpu.model().tokenizer.vocab_size();
    drop((on_cpu, on_device));
    let mut judge = Judge::new(&setup.device, name, num_tokens)?;
    let mut verdicts = Verdicts::default();
    for ((prompt, expected), got) in questions.iter().zip(&expected).zip(&got) {
        let is_tie = judge.verdict(prompt, expected, got, tokens)?;
        match is_tie {
            None => verdicts.equal += 1,
            Some(true) => verdicts.ties += 1,
            Some(false) => verdicts.wrong += 1,
        }
    }
    // Also where all tokens are the same.
    if let Some(prompt) = questions.first() {
        judge.logits(prompt)?;
    }
    verdicts.wrong += usize::from(judge.worst_error > judge.tolerance);
    verdicts.largest_difference = judge.largest;
    log.note(
        Part::Check,
        format!(
            "{name}: logits on the device are {:.2e} of their spread away from those on the processor (root mean square, \
             the worst text), allowed {:.2e}",
            judge.worst_error, judge.tolerance
        ),
    );
    let cell = verdicts.cell(name, "tokens as on the processor");
    log.add(cell.with(figure::LARGEST_DIFFERENCE, verdicts.largest_difference))
}

/// Greedy; a canvas decides one slot a pass, without approximation.
fn one_at_a_time(attention: AttentionKind, tokens: usize) -> DecodingOptions {
    let (gen_length, cache) = match attention {
        AttentionKind::Causal => return DecodingOptions { strategy: Strategy::Ar, ..DecodingOptions::default() },
        AttentionKind::Full => (Some(tokens), CacheMode::None),
        AttentionKind::BlockCausal { .. } => (None, CacheMode::Block),
    };
    let diffusion = DiffusionOptions {
        policy: Some(Policy::Quota),
        remasking: Some(Remasking::LowConfidence),
        gen_length,
        cache: Some(cache),
        early_stop: Some(EarlyStop::None),
        ..DiffusionOptions::default()
    };
    DecodingOptions { diffusion, ..DecodingOptions::default() }
}

/// One model on both, to look at logits.
struct Judge {
    on_cpu: Lane,
    on_device: Lane,
    num_tokens: usize,
    /// Largest difference of a logit.
    largest: f64,
    /// Largest root mean square of the differences of a text over the spread of its logits, and what it may be.
    worst_error: f64,
    tolerance: f64,
}

impl Judge {
    fn new(device: &Arc<dyn Device>, name: &str, num_tokens: usize) -> anyhow::Result<Self> {
        let on_cpu = Lane::new(name, None)?;
        let num_layers = on_cpu.model.spec().kv.num_layers;
        // About 16 roundings a layer, as random as they are, and a wide margin: a wrong kernel is off by the spread.
        let tolerance = 8.0 * HALF_UNIT * (16.0 * num_layers as f64).sqrt();
        let on_device = Lane::new(name, Some(device))?;
        Ok(Self { on_cpu, on_device, num_tokens, largest: 0.0, worst_error: 0.0, tolerance })
    }

    /// Logits of all rows of a text on the processor, and the largest difference to those on the device.
    fn logits(&mut self, text: &[TokenId]) -> anyhow::Result<(Logits, f64)> {
        let expected = self.on_cpu.logits(&[text.to_vec()])?;
        let got = self.on_device.logits(&[text.to_vec()])?;
        let pairs = || expected.values().iter().zip(got.values()).map(|(a, b)| (f64::from(*a), f64::from(*b)));
        let largest = pairs().map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        let count = expected.values().len() as f64;
        let mean = pairs().map(|(a, _)| a).sum::<f64>() / count;
        let (error, spread) =
            pairs().fold((0.0, 0.0), |(error, spread), (a, b)| (error + (a - b).powi(2), spread + (a - mean).powi(2)));
        let error = (error / spread).sqrt();
        self.largest = self.largest.max(largest);
        // Not a number is worse than everything.
        self.worst_error = if error.is_nan() { f64::INFINITY } else { self.worst_error.max(error) };
        Ok((expected, largest))
    }

    /// Whether the first difference is a tie; `None` without one.
    fn verdict(
        &mut self,
        prompt: &[TokenId],
        expected: &Output,
        got: &Output,
        tokens: usize,
    ) -> anyhow::Result<Option<bool>> {
        match self.on_cpu.model.spec().attention {
            AttentionKind::Causal => {
                let pairs = expected.tokens.iter().zip(&got.tokens);
                let Some(at) = pairs.clone().position(|(a, b)| a != b) else {
                    let is_same = expected.tokens.len() == got.tokens.len();
                    return Ok(if is_same { None } else { Some(false) });
                };
                let text = [prompt, &expected.tokens[..at]].concat();
                let (logits, largest) = self.logits(&text)?;
                let row = logits.row(logits.num_rows() - 1);
                Ok(Some(gap(row, expected.tokens[at], got.tokens[at]) <= 2.0 * largest))
            }
            _ => self.canvas_verdict(prompt, expected, got, tokens),
        }
    }

    fn canvas_verdict(
        &mut self,
        prompt: &[TokenId],
        expected: &Output,
        got: &Output,
        tokens: usize,
    ) -> anyhow::Result<Option<bool>> {
        let spec = self.on_cpu.model.spec();
        let mask = spec.mask_id.context("a diffusion model without a mask")?;
        let (attention, ahead) = (spec.attention, usize::from(spec.alignment == LogitAlignment::NextSlot));
        let mut frames = expected.frames.iter().zip(&got.frames);
        let Some(at) = frames.position(|(a, b)| a.fixed != b.fixed) else {
            let is_same = expected.frames.len() == got.frames.len() && expected.tokens == got.tokens;
            return Ok(if is_same { None } else { Some(false) });
        };
        let (a, b) = (&expected.frames[at].fixed, &got.frames[at].fixed);
        let ([(slot, token)], [(other_slot, other)]) = (a.as_slice(), b.as_slice()) else { return Ok(Some(false)) };
        let len = match attention {
            AttentionKind::BlockCausal { block_len, .. } => {
                (prompt.len() + slot.max(other_slot) + 1).next_multiple_of(block_len).min(prompt.len() + tokens)
            }
            _ => prompt.len() + tokens,
        };
        let mut text = prompt.to_vec();
        text.resize(len, mask);
        for (slot, token) in expected.frames[..at].iter().flat_map(|frame| &frame.fixed) {
            *text.get_mut(prompt.len() + slot).context("a decided slot behind the canvas")? = *token;
        }
        let (logits, largest) = self.logits(&text)?;
        let row = |slot: usize| &logits.row(prompt.len() + slot - ahead)[..self.num_tokens];
        let is_tie = |slot: usize, token: TokenId| {
            let best = best(row(slot), mask);
            gap(row(slot), best, token) <= 2.0 * largest
        };
        if !is_tie(*slot, *token) || !is_tie(*other_slot, *other) {
            return Ok(Some(false));
        }
        // A log-probability moves by as much as its logit and as the sum of all do together.
        let apart = (log_probability(row(*slot), mask) - log_probability(row(*other_slot), mask)).abs();
        Ok(Some(slot == other_slot || apart <= 4.0 * largest))
    }
}

/// How far `other` is below `token`.
fn gap(row: &[f32], token: TokenId, other: TokenId) -> f64 {
    f64::from(row[token.0 as usize]) - f64::from(row[other.0 as usize])
}

fn best(row: &[f32], mask: TokenId) -> TokenId {
    let tokens = (0..).zip(row).filter(|(token, _)| *token != mask.0);
    TokenId(
        tokens
            .fold((0, f32::NEG_INFINITY), |best, (token, value)| if *value > best.1 { (token, *value) } else { best })
            .0,
    )
}

/// Of the likeliest token, the mask left out.
fn log_probability(row: &[f32], mask: TokenId) -> f64 {
    let top = f64::from(row[best(row, mask).0 as usize]);
    let others = (0..).zip(row).filter(|(token, _)| *token != mask.0);
    -others.map(|(_, value)| (f64::from(*value) - top).exp()).sum::<f64>().ln()
}

/// A model without an engine.
struct Lane {
    model: Box<dyn Backbone>,
    kv: KvCache,
}

impl Lane {
    fn new(name: &str, device: Option<&Arc<dyn Device>>) -> anyhow::Result<Self> {
        let (source, options) = (name.parse()?, LoadOptions::default());
        let mut model = match device {
            Some(device) => load_on(&source, &options, device)?.backbone,
            None => engine::load(&source, &options)?.backbone,
        };
        let context = model.spec().context_len;
        let capacity = Capacity {
            max_rows: BATCH * context,
            max_tables: BATCH,
            context_len: context,
            num_pages: BATCH * context.div_ceil(PAGE_LEN),
            page_len: PAGE_LEN,
        };
        let kv = model.reserve(capacity)?;
        Ok(Self { model, kv })
    }

    /// Logits of all rows of several texts in one pass.
    fn logits(&mut self, texts: &[Vec<TokenId>]) -> anyhow::Result<Logits> {
        ensure!(texts.len() <= BATCH, "{} texts, there is room for {BATCH}", texts.len());
        let pages_of_text = self.model.spec().context_len.div_ceil(PAGE_LEN);
        // Interleaved, so that a page of another text would be noticed.
        let pages = |index: usize| (0..pages_of_text).map(|page| PageId((page * BATCH + index) as u32)).collect();
        let pages: Vec<Vec<PageId>> = (0..texts.len()).map(pages).collect();
        let visibility = |len: usize| match self.model.spec().attention {
            AttentionKind::Causal => Visibility::Causal,
            AttentionKind::Full => Visibility::Through(len),
            AttentionKind::BlockCausal { block_len, .. } => Visibility::Blocks { origin: 0, block_len },
        };
        let segment = |(text, pages)| {
            let tokens: &Vec<TokenId> = text;
            let visibility = visibility(tokens.len());
            Segment { tokens, start: 0, visibility, scored: 0..tokens.len(), pages }
        };
        let segments = texts.iter().zip(pages.iter().map(Vec::as_slice)).map(segment).collect();
        Ok(self.model.forward(&ForwardBatch { segments }, &mut self.kv)?)
    }
}

/// Greedy Jacobi against AR, both on the device.
fn jacobi_is_ar(setup: &Setup, name: &str, log: &mut Log) -> anyhow::Result<()> {
    let Effort { num_prompts, tokens } = setup.check;
    let engine = start(name, Some(&setup.device))?;
    let questions = prompts(engine.model(), num_prompts)?;
    let one = DecodingOptions { strategy: Strategy::Ar, ..DecodingOptions::default() };
    let block = DecodingOptions {
        strategy: Strategy::Jacobi,
        width: Some(8),
        adaptive: Some(false),
        ..DecodingOptions::default()
    };
    let ar = complete(&engine, &questions, &one, (tokens, false))?;
    let jacobi = complete(&engine, &questions, &block, (tokens, false))?;
    let equal = ar.iter().zip(&jacobi).filter(|(a, b)| a.tokens == b.tokens).count();
    let verdicts = Verdicts { equal, wrong: ar.len() - equal, ..Verdicts::default() };
    log.add(verdicts.cell(name, "Jacobi of width 8 as AR"))
}

/// Texts together against alone, and replayed passes against launched ones, bit for bit.
fn batches(setup: &Setup, name: &str, log: &mut Log) -> anyhow::Result<()> {
    let mut lane = Lane::new(name, Some(&setup.device))?;
    let vocab = lane.model.spec().vocab_size;
    // Of odd lengths, so that texts share tiles.
    let text = |index: usize| -> Vec<TokenId> {
        (0..5 + 18 * index).map(|at| TokenId(((at * 37 + index * 101 + at * at * 7) % vocab) as u32)).collect()
    };
    let texts: Vec<_> = (0..BATCH).map(text).collect();
    let bits = |logits: &Logits| logits.values().iter().map(|value| value.to_bits()).collect::<Vec<_>>();
    let together = bits(&lane.logits(&texts)?);
    let mut verdicts = Verdicts::default();
    let mut start = 0;
    for text in &texts {
        let alone = bits(&lane.logits(std::slice::from_ref(text))?);
        let is_equal = together.get(start..start + alone.len()) == Some(&alone[..]);
        start += alone.len();
        *(if is_equal { &mut verdicts.equal } else { &mut verdicts.wrong }) += 1;
    }
    log.add(verdicts.cell(name, "together as alone, bit for bit"))?;
    let mut verdicts = Verdicts::default();
    // A shape is launched first, recorded the second time and replayed from then on.
    for _ in 0..3 {
        let is_equal = bits(&lane.logits(&texts)?) == together;
        *(if is_equal { &mut verdicts.equal } else { &mut verdicts.wrong }) += 1;
    }
    log.add(verdicts.cell(name, "replayed as launched, bit for bit"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_probabilities_leave_out_the_mask() {
        let row = [1.0, 9.0, 1.0];
        assert_eq!(best(&row, TokenId(1)), TokenId(0));
        assert!((log_probability(&row, TokenId(1)) + std::f64::consts::LN_2).abs() < 1e-12);
        assert_eq!(gap(&row, TokenId(1), TokenId(2)), 8.0);
    }

    #[test]
    fn differences_that_are_no_ties_are_seen() {
        if !device_tests::AVAILABLE {
            println!("skipped: no C++ compiler");
            return;
        }
        let device: Arc<dyn Device> = device_tests::HostDevice::new(1 << 30, device_tests::Order::Forward);
        for name in ["leapfrog-ar", "leapfrog-diffusion", "leapfrog-block"] {
            let engine = start(name, None).unwrap();
            let questions = prompts(engine.model(), 1).unwrap();
            let decoding = one_at_a_time(engine.model().attention, 16);
            let num_tokens = engine.model().tokenizer.vocab_size();
            let right = complete(&engine, &questions, &decoding, (16, false)).unwrap().remove(0);
            drop(engine);
            let mut judge = Judge::new(&device, name, num_tokens).unwrap();
            let mut verdict = |got: &Output| judge.verdict(&questions[0], &right, got, 16).unwrap();
            assert_eq!(verdict(&right), None, "{name}");
            let mut wrong = right.clone();
            let other = |token: TokenId| TokenId((token.0 + 101) % num_tokens as u32);
            wrong.tokens[1] = other(wrong.tokens[1]);
            if let Some(frame) = wrong.frames.get_mut(2) {
                frame.fixed[0].1 = other(frame.fixed[0].1);
            }
            assert_eq!(verdict(&wrong), Some(false), "{name}");
            let short = Output { tokens: right.tokens[..1].to_vec(), ..right.clone() };
            assert_eq!(verdict(&short), Some(false), "{name}");
        }
    }
}
