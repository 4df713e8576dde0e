//! Consistency training (Kou et al., arXiv:2403.00835, equation 5 with the global loss) on the network's own Jacobi
//! trajectories, which its training passes continue.
//!
//! A sample is its right text, causal, and windows of guesses: a window that begins at position `s` sees the text before
//! `s` and itself. One pass thus gives the next-token logits, the teacher's distributions (the rows of the text,
//! without gradient) and the student's (the rows of the windows). The student's likeliest tokens are the next
//! state of the Jacobi iteration, so a trajectory costs no pass of its own: the window accepts, slides and is filled
//! up as in decoding, and waits in a pool until its sample is drawn again.
//!
//! Only samples whose right text is what the network writes by itself take part; the others train the next-token loss
//! alone until they are.

use std::sync::Arc;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::{
    Loss, Recipe, TrainSettings,
    ar::{exact, is_right, whole},
    data::{Mix, Stream, validation},
};
use crate::{
    Net, Rows, Text, ZooError,
    net::{
        arg_max,
        ops::{copied, softmax},
        soft_loss,
    },
    tasks::{Problem, Task},
    text::Encoded,
};

/// Weight of the next-token loss.
const AR_WEIGHT: f32 = 10.0;
/// Samples that a micro-batch keeps under way.
const POOL: usize = 96;

/// Consistency training.
#[derive(Debug)]
pub struct Consistency {
    text: Text,
    seed: u64,
    mix: Mix,
    rows: usize,
    width: usize,
    validation: Vec<(Problem, Encoded)>,
}

/// Guesses for the positions from `start` on.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Window {
    start: usize,
    /// Where its part of the text ends.
    limit: usize,
    guesses: Vec<u32>,
}

/// A sample under way.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Track {
    tokens: Vec<u32>,
    prompt_len: usize,
    windows: Vec<Window>,
}

/// Samples under way, and how many were drawn.
#[derive(Debug, Serialize, Deserialize)]
pub struct Pool {
    tracks: Vec<Track>,
    micro: usize,
    drawn: u64,
}

impl Consistency {
    /// Windows of `width` tokens, `problems` of each task for evaluation.
    pub fn new(text: Text, settings: &TrainSettings, problems: u64, width: usize) -> Result<Self, ZooError> {
        if width < 2 {
            return Err(ZooError::Settings(format!("a window of {width} tokens has no guess")));
        }
        let validation = validation(&text, problems)?;
        Ok(Self { text, seed: settings.seed, mix: settings.mix, rows: settings.rows, width, validation })
    }

    fn draw(&self, micro: usize, drawn: u64) -> Result<Track, ZooError> {
        // Draws of different micro-batches, and those of the target's training, do not meet.
        let mut stream = Stream::new(&self.text, self.seed ^ 0x636c_6c6d, self.mix, drawn * 64 + micro as u64);
        let sample = stream.next()?;
        let mut track = Track { tokens: whole(&sample), prompt_len: sample.prompt.len(), windows: Vec::new() };
        let rng = stream.rng();
        let mut start = track.prompt_len;
        let mut next = start + rng.random_range(1..=self.width);
        while start + 1 < track.tokens.len() {
            let mut window = Window { start, limit: next.min(track.tokens.len()), guesses: Vec::new() };
            window.fill(&track.tokens, self.width, rng);
            track.windows.push(window);
            (start, next) = (next, next + self.width);
        }
        Ok(track)
    }
}

impl Window {
    /// Fills the window up with tokens drawn from the text before it.
    fn fill(&mut self, tokens: &[u32], width: usize, rng: &mut ChaCha8Rng) {
        let len = (width - 1).min(tokens.len().saturating_sub(self.start + 1));
        self.guesses.truncate(len);
        while self.guesses.len() < len {
            self.guesses.push(tokens[rng.random_range(0..self.start)]);
        }
    }

    /// Offset of the first wrong guess, if one is wrong.
    fn first_wrong(&self, tokens: &[u32]) -> Option<usize> {
        self.guesses.iter().zip(&tokens[self.start..]).position(|(guess, token)| guess != token)
    }

    /// One step of the iteration: `refined[k]` is what the row of guess `k` predicts. Returns the number of tokens
    /// accepted.
    fn step(&mut self, tokens: &[u32], refined: &[u32], width: usize, rng: &mut ChaCha8Rng) -> usize {
        let right = self.first_wrong(tokens).unwrap_or(self.guesses.len());
        let accepted = right + 1;
        // Prediction 0 is the text's own row, prediction k + 1 that of guess k.
        self.guesses = refined.get(accepted - 1..).unwrap_or_default().to_vec();
        self.start += accepted;
        self.fill(tokens, width, rng);
        accepted
    }
}

/// Adds a sample's text and windows; returns the first row of the text and of each window.
fn push(rows: &mut Rows, tokens: &[u32], windows: &[Window]) -> (usize, Vec<usize>) {
    let text = rows.push_causal(tokens);
    let mut starts = Vec::new();
    for window in windows {
        let first = rows.len();
        for (at, guess) in window.guesses.iter().enumerate() {
            rows.push(*guess, window.start + at, [text..text + window.start, first..first + at + 1]);
        }
        starts.push(first);
    }
    rows.close(text);
    (text, starts)
}

impl Recipe for Consistency {
    type State = Pool;

    fn name(&self) -> &'static str {
        "consistency"
    }

    fn state(&self, micro: usize) -> Result<Pool, ZooError> {
        let tracks: Result<_, _> = (0..POOL as u64).map(|drawn| self.draw(micro, drawn)).collect();
        Ok(Pool { tracks: tracks?, micro, drawn: POOL as u64 })
    }

    fn loss(&self, net: &Net, draw: u64, pool: &mut Pool) -> Result<Loss, ZooError> {
        let mut stream = Stream::new(&self.text, self.seed ^ 0x7374_6570, self.mix, draw);
        let rng = stream.rng();
        // A random part of the pool.
        let (mut rows, mut chosen) = (Rows::default(), Vec::new());
        while rows.len() < self.rows && chosen.len() < POOL {
            let at = rng.random_range(chosen.len()..POOL);
            pool.tracks.swap(chosen.len(), at);
            let track = &pool.tracks[chosen.len()];
            chosen.push(push(&mut rows, &track.tokens, &track.windows));
        }
        // Rows that are scored: those that predict the answer, then those of all windows.
        let mut wanted: Vec<u32> = Vec::new();
        for (track, (text, starts)) in pool.tracks.iter().zip(&chosen) {
            wanted.extend((track.prompt_len - 1..track.tokens.len() - 1).map(|at| (text + at) as u32));
            for (window, first) in track.windows.iter().zip(starts) {
                wanted.extend((0..window.guesses.len()).map(|at| (first + at) as u32));
            }
        }
        let vocab = net.shape().vocab;
        let logits = net.logits(&net.hidden(&Arc::new(rows))?, &wanted)?;
        let scores = copied(&logits.detach())?;
        let mut targets = vec![0f32; scores.len()];
        let (mut is_text, mut is_student) = (vec![false; wanted.len()], vec![false; wanted.len()]);
        let (mut at, mut entropy, mut verified, mut accepted, mut windows) = (0, 0f64, 0usize, 0usize, 0usize);
        for track in pool.tracks.iter_mut().take(chosen.len()) {
            let text = at;
            let answer = &track.tokens[track.prompt_len..];
            let row = |index: usize| &scores[index * vocab..(index + 1) * vocab];
            let is_verified = answer.iter().enumerate().all(|(k, token)| arg_max(row(text + k)) == *token);
            for (k, token) in answer.iter().enumerate() {
                targets[(text + k) * vocab + *token as usize] = 1.0;
                is_text[text + k] = true;
            }
            at += answer.len();
            verified += usize::from(is_verified);
            let tokens = track.tokens.clone();
            for window in &mut track.windows {
                let len = window.guesses.len();
                if is_verified {
                    if let Some(wrong) = window.first_wrong(&tokens) {
                        for k in wrong..len {
                            // Guess k stands at start + k and predicts the position after it.
                            let teacher = text + window.start + k + 1 - track.prompt_len;
                            let into = &mut targets[(at + k) * vocab..(at + k + 1) * vocab];
                            into.copy_from_slice(row(teacher));
                            let lse = softmax(into);
                            entropy -=
                                into.iter().zip(row(teacher)).map(|(p, z)| f64::from(p * (z - lse))).sum::<f64>();
                            is_student[at + k] = true;
                        }
                    }
                    let refined: Vec<u32> = (0..len).map(|k| arg_max(row(at + k))).collect();
                    accepted += window.step(&tokens, &refined, self.width, rng);
                    windows += 1;
                }
                at += len;
            }
            track.windows.retain(|window| window.start < window.limit && !window.guesses.is_empty());
            if track.windows.is_empty() || !is_verified {
                *track = self.draw(pool.micro, pool.drawn)?;
                pool.drawn += 1;
            }
        }
        let count = |flags: &[bool]| flags.iter().filter(|flag| **flag).count().max(1) as f32;
        let (texts, students) = (count(&is_text), count(&is_student));
        let weigh = |flags: &[bool], weight: f32| flags.iter().map(|flag| if *flag { weight } else { 0.0 }).collect();
        let text_weights: Vec<f32> = weigh(&is_text, AR_WEIGHT / texts);
        let student_weights: Vec<f32> = weigh(&is_student, 1.0 / students);
        let weights = text_weights.iter().zip(&student_weights).map(|(a, b)| a + b).collect();
        let total = soft_loss(&logits, targets.clone(), weights)?;
        // For the log: the two losses apart.
        let student = soft_loss(&logits.detach(), targets, student_weights)?.to_scalar::<f32>()?;
        let sum = total.to_scalar::<f32>()?;
        let parts = vec![
            ("loss", f64::from(sum)),
            ("ar", f64::from((sum - student) / AR_WEIGHT)),
            ("divergence", f64::from(student) - entropy / f64::from(students)),
            ("verified", verified as f64 / chosen.len() as f64),
            ("accepted", accepted as f64 / windows.max(1) as f64),
        ];
        Ok(Loss { total, parts })
    }

    fn evaluate(&self, net: &Net) -> Result<Vec<(String, f64)>, ZooError> {
        let mut figures = exact(net, &self.validation)?;
        for task in Task::ALL {
            let own = self.validation.iter().filter(|(problem, _)| problem.task == task).map(|(_, sample)| sample);
            let own: Vec<&Encoded> = own.take(24).collect();
            let right = is_right(net, &own)?;
            let own: Vec<&Encoded> =
                own.into_iter().zip(right).filter(|(_, right)| *right).map(|(own, _)| own).collect();
            if let Some(rate) = tokens_per_pass(net, &own, self.width)? {
                figures.push((format!("tpf_{task}"), rate));
            }
        }
        Ok(figures)
    }
}

/// Tokens per pass of greedy Jacobi decoding with a sliding window, over samples whose right answer is what the network
/// writes; `None` if there is none.
fn tokens_per_pass(net: &Net, samples: &[&Encoded], width: usize) -> Result<Option<f64>, ZooError> {
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let mut tracks: Vec<(Vec<u32>, Window)> = samples
        .iter()
        .map(|sample| {
            let tokens = whole(sample);
            let mut window = Window { start: sample.prompt.len(), limit: tokens.len(), guesses: Vec::new() };
            window.fill(&tokens, width, &mut rng);
            (tokens, window)
        })
        .collect();
    let (mut passes, mut committed) = (0usize, 0usize);
    while !tracks.is_empty() {
        let (mut rows, mut wanted) = (Rows::default(), Vec::new());
        for (tokens, window) in &tracks {
            let (_, starts) = push(&mut rows, tokens, std::slice::from_ref(window));
            wanted.extend((0..window.guesses.len()).map(|at| (starts[0] + at) as u32));
        }
        let scores = match wanted.is_empty() {
            true => Vec::new(),
            false => copied(&net.logits(&net.hidden(&Arc::new(rows))?.detach(), &wanted)?)?,
        };
        let mut best = scores.chunks_exact(net.shape().vocab).map(arg_max);
        for (tokens, window) in &mut tracks {
            let refined: Vec<u32> = best.by_ref().take(window.guesses.len()).collect();
            committed += window.step(tokens, &refined, width, &mut rng);
            passes += 1;
        }
        tracks.retain(|(tokens, window)| window.start < tokens.len());
    }
    Ok((passes > 0).then(|| committed as f64 / passes as f64))
}
