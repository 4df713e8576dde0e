//! Masked diffusion with full attention on the network's own decoding trajectories. Random masks hide what is easy as
//! often as what is hard; a decoder has committed the easy slots and asks about the rest. Here a canvas is masked as
//! decoding left it, as in the pseudo-trajectories of d3LLM (arXiv:2601.07568), but the states are the network's own, and
//! of this moment.
//!
//! One pass is a training pass and a step of decoding: its loss is taken at the masked slots of the first open block,
//! and the slots whose confidence reaches the threshold of the canvas are committed, at least one. What is committed is
//! the right token, so that the loss stays meaningful after a mistake. Canvases wait in a pool for their next step.

use std::sync::Arc;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::{
    Loss, Masked, Recipe, TrainSettings,
    data::Stream,
    masked::{FILL_WEIGHT, Wanted, confident},
};
use crate::{
    Net, Rows, Text, ZooError,
    net::{ops::copied, token_loss},
    text::Specials,
};

/// Canvases that a micro-batch keeps under way.
const POOL: usize = 128;
/// Share of the samples that are masked at random, so that nothing is unlearnt.
const RANDOM: f64 = 0.25;
/// From where the threshold of a canvas is drawn.
const THRESHOLDS: std::ops::Range<f32> = 0.7..1.0;

/// Masked diffusion on trajectories.
#[derive(Debug)]
pub struct Trajectories {
    masked: Masked,
}

/// A canvas that is being decoded.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Track {
    /// What will stand there.
    tokens: Vec<u32>,
    prompt_len: usize,
    /// The first end token, behind which nothing is decoded.
    last: usize,
    is_masked: Vec<bool>,
    threshold: f32,
}

/// Canvases under way, and how many were drawn.
#[derive(Debug, Serialize, Deserialize)]
pub struct Canvases {
    tracks: Vec<Track>,
    micro: usize,
    drawn: u64,
}

impl Track {
    /// The masked slots of the first block that has some; none once the end token stands.
    fn open(&self, block_len: usize) -> Vec<usize> {
        let first = self.is_masked.iter().position(|masked| *masked).filter(|first| *first <= self.last);
        let Some(first) = first else { return Vec::new() };
        let end = first + block_len - (first - self.prompt_len) % block_len;
        (first..end).filter(|slot| self.is_masked[*slot]).collect()
    }

    fn shown(&self) -> Vec<u32> {
        let slots = self.tokens.iter().zip(&self.is_masked);
        slots.map(|(token, masked)| if *masked { Specials::MASK } else { *token }).collect()
    }
}

impl Trajectories {
    /// Blocks of `block_len` tokens from the start of the answer; `problems` of each task for evaluation.
    pub fn new(text: Text, settings: &TrainSettings, problems: u64, block_len: usize) -> Result<Self, ZooError> {
        Ok(Self { masked: Masked::full(text, settings, problems, block_len)? })
    }

    fn draw(&self, micro: usize, drawn: u64) -> Result<Track, ZooError> {
        let Masked { text, seed, mix, .. } = &self.masked;
        // Draws of different micro-batches, and those of other recipes, do not meet.
        let mut stream = Stream::new(text, seed ^ 0x7472_616a, *mix, drawn * 64 + micro as u64);
        let sample = stream.next()?;
        let tokens = self.masked.drawn_canvas(&sample, stream.rng());
        let prompt_len = sample.prompt.len();
        let is_masked = (0..tokens.len()).map(|slot| slot >= prompt_len).collect();
        let last = prompt_len + sample.answer.len() - 1;
        Ok(Track { tokens, prompt_len, last, is_masked, threshold: stream.rng().random_range(THRESHOLDS) })
    }
}

impl Recipe for Trajectories {
    type State = Canvases;

    fn name(&self) -> &'static str {
        "trajectories"
    }

    fn state(&self, micro: usize) -> Result<Canvases, ZooError> {
        let mut rng = ChaCha8Rng::seed_from_u64(self.masked.seed ^ micro as u64);
        let tracks = (0..POOL as u64).map(|drawn| {
            let mut track = self.draw(micro, drawn)?;
            // Not all at their beginning.
            let committed = rng.random_range(track.prompt_len..=track.last);
            track.is_masked[..committed].fill(false);
            Ok(track)
        });
        Ok(Canvases { tracks: tracks.collect::<Result<_, ZooError>>()?, micro, drawn: POOL as u64 })
    }

    fn loss(&self, net: &Net, draw: u64, pool: &mut Canvases) -> Result<Loss, ZooError> {
        let masked = &self.masked;
        let mut stream = Stream::new(&masked.text, masked.seed ^ 0x7374_6570, masked.mix, draw);
        let (mut rows, mut wanted, mut open) = (Rows::default(), Wanted::default(), Vec::new());
        // A random part of the pool, whose rows come first.
        while (rows.len() as f64) < (1.0 - RANDOM) * masked.rows as f64 && open.len() < POOL {
            let at = stream.rng().random_range(open.len()..POOL);
            pool.tracks.swap(open.len(), at);
            let track = &pool.tracks[open.len()];
            let start = rows.push_full(&track.shown());
            rows.close(start);
            let slots = track.open(masked.block_len);
            for &slot in &slots {
                let weight = if slot > track.last { FILL_WEIGHT } else { 1.0 };
                wanted.add(start + slot - 1, track.tokens[slot], weight);
            }
            open.push(slots);
        }
        while rows.len() < masked.rows {
            let sample = stream.next()?;
            masked.push_full(&mut rows, &mut wanted, &sample, stream.rng());
        }
        let logits = net.logits(&net.hidden(&Arc::new(rows))?, &wanted.rows)?;
        let mut scores = copied(&logits.detach())?;
        let mut scored = scores.chunks_exact_mut(net.shape().vocab).map(confident);
        let (chosen, mut committed, mut wrong) = (open.len(), 0usize, 0usize);
        for (index, slots) in open.into_iter().enumerate() {
            let own: Vec<(usize, (u32, f32))> = slots.into_iter().zip(&mut scored).collect();
            let top = own.iter().map(|(_, (_, confidence))| *confidence).fold(0.0, f32::max);
            let track = &mut pool.tracks[index];
            for (slot, (token, confidence)) in own {
                if confidence >= track.threshold || confidence == top {
                    track.is_masked[slot] = false;
                    committed += 1;
                    wrong += usize::from(token != track.tokens[slot]);
                }
            }
            if track.open(masked.block_len).is_empty() {
                *track = self.draw(pool.micro, pool.drawn)?;
                pool.drawn += 1;
            }
        }
        let total = token_loss(&logits, wanted.tokens.clone(), wanted.shares())?;
        let parts = vec![
            ("loss", f64::from(total.to_scalar::<f32>()?)),
            ("committed", committed as f64 / chosen.max(1) as f64),
            ("wrong", wrong as f64 / committed.max(1) as f64),
        ];
        Ok(Loss { total, parts })
    }

    fn evaluate(&self, net: &Net) -> Result<Vec<(String, f64)>, ZooError> {
        self.masked.evaluate(net)
    }
}
