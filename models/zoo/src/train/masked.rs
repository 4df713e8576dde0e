//! Masked diffusion on the answers, with shifted logits: the row of slot `i` predicts slot `i + 1`, as in the
//! autoregressive model that training starts from (Dream, arXiv:2508.15487; Fast-dLLM v2, arXiv:2509.26328).
//!
//! Each sample is masked twice, the second time where the first is not, so that every slot is learnt once (complementary
//! masks, arXiv:2509.26328). The canvas is the answer and its end token, filled up with end tokens.
//!
//! *Blocks.* The clean text, in which a row sees its block and the blocks before it, and two masked copies of each
//! block of the answer, which see the clean blocks before theirs and themselves. The last row of a clean block learns the
//! next block's first slot, which decoding takes from it.
//!
//! *Full.* Two masked copies of the whole, every row seeing every other. One block of the canvas is masked in part;
//! those before it are clean and those after it masked, as they are while blocks are decoded in turn. Every other
//! sample is masked in part all over.

use std::sync::Arc;

use rand::Rng;
use rand_chacha::ChaCha8Rng;

use super::{
    Loss, Recipe, TrainSettings,
    data::{Mix, Stream, validation},
};
use crate::{
    Net, Rows, Text, ZooError,
    net::{
        arg_max,
        ops::{copied, softmax},
        token_loss,
    },
    tasks::{Problem, Task},
    text::{Encoded, Specials},
};

/// Weight of end tokens behind the first.
pub(super) const FILL_WEIGHT: f32 = 0.1;
/// Blocks of a full canvas behind the answer's, each as likely as the others: the size of the canvas is what a request
/// says, and the model sees it.
const EXTRA_BLOCKS: [usize; 10] = [0, 0, 0, 0, 0, 0, 1, 1, 3, 6];
/// Confidence from which the evaluation commits a slot.
const THRESHOLD: f32 = 0.9;
/// Samples that an evaluation decodes at once.
const TOGETHER: usize = 32;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Blocks,
    Full,
}

/// Masked diffusion.
#[derive(Debug)]
pub struct Masked {
    kind: Kind,
    pub(super) text: Text,
    pub(super) seed: u64,
    pub(super) mix: Mix,
    pub(super) rows: usize,
    pub(super) block_len: usize,
    validation: Vec<(Problem, Encoded)>,
}

/// Rows that are scored, the tokens that they should predict, and the weight of each.
#[derive(Debug, Default)]
pub(super) struct Wanted {
    pub(super) rows: Vec<u32>,
    pub(super) tokens: Vec<u32>,
    weights: Vec<f32>,
}

impl Wanted {
    pub(super) fn add(&mut self, row: usize, token: u32, weight: f32) {
        self.rows.push(row as u32);
        self.tokens.push(token);
        self.weights.push(weight);
    }

    /// The weights as shares of their sum.
    pub(super) fn shares(&self) -> Vec<f32> {
        let sum: f32 = self.weights.iter().sum();
        self.weights.iter().map(|weight| weight / sum).collect()
    }
}

impl Masked {
    /// Blocks of `block_len` tokens from the start of the text; `problems` of each task for evaluation.
    pub fn blocks(text: Text, settings: &TrainSettings, problems: u64, block_len: usize) -> Result<Self, ZooError> {
        Self::new(Kind::Blocks, text, settings, problems, block_len)
    }

    /// Full attention; blocks of `block_len` tokens from the start of the answer.
    pub fn full(text: Text, settings: &TrainSettings, problems: u64, block_len: usize) -> Result<Self, ZooError> {
        Self::new(Kind::Full, text, settings, problems, block_len)
    }

    fn new(
        kind: Kind,
        text: Text,
        settings: &TrainSettings,
        problems: u64,
        block_len: usize,
    ) -> Result<Self, ZooError> {
        if block_len < 2 {
            return Err(ZooError::Settings(format!("a block of {block_len} tokens has nothing to mask")));
        }
        let validation = validation(&text, problems)?;
        let TrainSettings { seed, mix, rows, .. } = *settings;
        Ok(Self { kind, text, seed, mix, rows, block_len, validation })
    }

    /// Prompt and canvas of a sample; the canvas ends with a block, and `extra` blocks more.
    fn canvas(&self, sample: &Encoded, extra: usize) -> Vec<u32> {
        let before = match self.kind {
            Kind::Blocks => 0,
            Kind::Full => sample.prompt.len(),
        };
        let end = sample.prompt.len() + sample.answer.len();
        let end = before + (end - before).next_multiple_of(self.block_len) + extra * self.block_len;
        let mut tokens = super::ar::whole(sample);
        tokens.resize(end, Specials::END);
        tokens
    }

    fn push_blocks(&self, rows: &mut Rows, wanted: &mut Wanted, sample: &Encoded, rng: &mut ChaCha8Rng) {
        let tokens = self.canvas(sample, 0);
        let (first, last) = (sample.prompt.len(), sample.prompt.len() + sample.answer.len() - 1);
        let weight = |slot: usize| if slot > last { FILL_WEIGHT } else { 1.0 };
        let text = rows.push_blocks(&tokens, self.block_len);
        for start in (first / self.block_len * self.block_len..tokens.len()).step_by(self.block_len) {
            let end = start + self.block_len;
            if start >= first {
                wanted.add(text + start - 1, tokens[start], weight(start));
            }
            // The first slot of a block comes from the block before it.
            let open = (start + 1).max(first)..end;
            let is_masked = draw_mask(open.len(), rng);
            for side in [true, false] {
                if !is_masked.contains(&side) {
                    continue;
                }
                let copy = rows.len();
                for slot in start..end {
                    let masked = slot >= open.start && is_masked[slot - open.start] == side;
                    let token = if masked { Specials::MASK } else { tokens[slot] };
                    rows.push(token, slot, [text..text + start, copy..copy + self.block_len]);
                    if masked {
                        wanted.add(copy + slot - 1 - start, tokens[slot], weight(slot));
                    }
                }
            }
        }
        rows.close(text);
    }

    /// [`Masked::canvas`] of a size that is drawn.
    pub(super) fn drawn_canvas(&self, sample: &Encoded, rng: &mut ChaCha8Rng) -> Vec<u32> {
        self.canvas(sample, EXTRA_BLOCKS[rng.random_range(0..EXTRA_BLOCKS.len())])
    }

    pub(super) fn push_full(&self, rows: &mut Rows, wanted: &mut Wanted, sample: &Encoded, rng: &mut ChaCha8Rng) {
        let tokens = self.drawn_canvas(sample, rng);
        let (first, last) = (sample.prompt.len(), sample.prompt.len() + sample.answer.len() - 1);
        let open = if rng.random_bool(0.5) {
            first..tokens.len()
        } else {
            let block = rng.random_range(0..=(last - first) / self.block_len);
            first + block * self.block_len..first + (block + 1) * self.block_len
        };
        let is_masked = draw_mask(open.len(), rng);
        for side in [true, false] {
            if !is_masked.contains(&side) {
                continue;
            }
            let hidden = |slot: usize| slot >= open.end || (slot >= open.start && is_masked[slot - open.start] == side);
            let shown: Vec<u32> = tokens
                .iter()
                .enumerate()
                .map(|(slot, token)| if hidden(slot) { Specials::MASK } else { *token })
                .collect();
            let start = rows.push_full(&shown);
            rows.close(start);
            for slot in open.clone().filter(|slot| hidden(*slot)) {
                wanted.add(start + slot - 1, tokens[slot], if slot > last { FILL_WEIGHT } else { 1.0 });
            }
        }
    }

    /// Decodes samples greedily, block by block, each slot from a confidence of [`THRESHOLD`] on and at least one per
    /// pass. Returns whether each text is right, and the passes of all.
    fn decode(&self, net: &Net, samples: &[&Encoded]) -> Result<(Vec<bool>, usize), ZooError> {
        let vocab = net.shape().vocab;
        let mut canvases: Vec<Vec<u32>> = samples
            .iter()
            .map(|sample| {
                let mut tokens = self.canvas(sample, 0);
                tokens[sample.prompt.len()..].fill(Specials::MASK);
                tokens
            })
            .collect();
        let mut passes = 0;
        loop {
            let (mut rows, mut wanted, mut open) = (Rows::default(), Vec::new(), Vec::new());
            for (index, (tokens, sample)) in canvases.iter().zip(samples).enumerate() {
                let Some(first) = tokens.iter().position(|token| *token == Specials::MASK) else { continue };
                if tokens[sample.prompt.len()..first].contains(&Specials::END) {
                    continue;
                }
                let origin = if self.kind == Kind::Full { sample.prompt.len() } else { 0 };
                let block = origin + (first - origin) / self.block_len * self.block_len;
                let end = block + self.block_len;
                let start = match self.kind {
                    Kind::Full => rows.push_full(tokens),
                    Kind::Blocks => rows.push_blocks(&tokens[..end], self.block_len),
                };
                rows.close(start);
                // By blocks, the first slot is taken from the block before and nothing else in that pass.
                let slots = if self.kind == Kind::Blocks && first == block { first..first + 1 } else { first..end };
                let slots: Vec<usize> = slots.filter(|slot| tokens[*slot] == Specials::MASK).collect();
                wanted.extend(slots.iter().map(|slot| (start + slot - 1) as u32));
                open.push((index, slots));
            }
            if open.is_empty() {
                break;
            }
            passes += open.len();
            let mut scores = copied(&net.logits(&net.hidden(&Arc::new(rows))?.detach(), &wanted)?)?;
            let mut scored = scores.chunks_exact_mut(vocab).map(confident);
            for (index, slots) in open {
                let own: Vec<(usize, (u32, f32))> = slots.into_iter().zip(&mut scored).collect();
                let top = own.iter().map(|(_, (_, confidence))| *confidence).fold(0.0, f32::max);
                for (slot, (token, confidence)) in own {
                    if confidence >= THRESHOLD || confidence == top {
                        canvases[index][slot] = token;
                    }
                }
            }
        }
        let right = canvases
            .iter()
            .zip(samples)
            .map(|(tokens, sample)| tokens[sample.prompt.len()..].starts_with(&sample.answer));
        Ok((right.collect(), passes))
    }
}

/// The likeliest token that is not the mask, and its probability among those; `scores` are spent.
pub(super) fn confident(scores: &mut [f32]) -> (u32, f32) {
    scores[Specials::MASK as usize] = f32::NEG_INFINITY;
    let best = arg_max(scores);
    softmax(scores);
    (best, scores[best as usize])
}

/// Which of `len` slots are masked: each with the same probability, drawn uniformly.
fn draw_mask(len: usize, rng: &mut ChaCha8Rng) -> Vec<bool> {
    let share: f64 = rng.random();
    (0..len).map(|_| rng.random_bool(share)).collect()
}

impl Recipe for Masked {
    type State = ();

    fn name(&self) -> &'static str {
        match self.kind {
            Kind::Blocks => "blocks",
            Kind::Full => "full",
        }
    }

    fn state(&self, _: usize) -> Result<(), ZooError> {
        Ok(())
    }

    fn loss(&self, net: &Net, draw: u64, (): &mut ()) -> Result<Loss, ZooError> {
        let mut stream = Stream::new(&self.text, self.seed ^ 0x6d61_736b, self.mix, draw);
        let (mut rows, mut wanted) = (Rows::default(), Wanted::default());
        while rows.len() < self.rows {
            let sample = stream.next()?;
            match self.kind {
                Kind::Blocks => self.push_blocks(&mut rows, &mut wanted, &sample, stream.rng()),
                Kind::Full => self.push_full(&mut rows, &mut wanted, &sample, stream.rng()),
            }
        }
        let weights = wanted.shares();
        let logits = net.logits(&net.hidden(&Arc::new(rows))?, &wanted.rows)?;
        let total = token_loss(&logits, wanted.tokens, weights)?;
        let parts = vec![("loss", f64::from(total.to_scalar::<f32>()?))];
        Ok(Loss { total, parts })
    }

    fn evaluate(&self, net: &Net) -> Result<Vec<(String, f64)>, ZooError> {
        let mut figures = Vec::new();
        for task in Task::ALL {
            let own = self.validation.iter().filter(|(problem, _)| problem.task == task).map(|(_, sample)| sample);
            let own: Vec<&Encoded> = own.collect();
            let (mut hits, mut passes, mut tokens) = (0usize, 0usize, 0usize);
            for chunk in own.chunks(TOGETHER) {
                let (right, own_passes) = self.decode(net, chunk)?;
                hits += right.iter().filter(|right| **right).count();
                passes += own_passes;
                tokens += chunk.iter().map(|sample| sample.answer.len()).sum::<usize>();
            }
            if !own.is_empty() {
                figures.push((format!("exact_{task}"), hits as f64 / own.len() as f64));
                figures.push((format!("tpf_{task}"), tokens as f64 / passes.max(1) as f64));
            }
        }
        Ok(figures)
    }
}
