//! What the device is asked is what the sampler does: thousands of random passes, with the reference of the kernels in the
//! place of the device.

use models::{LogitAlignment, Logits, TokenId, Visibility};

use super::{
    query::{queries, scores},
    score,
};
use crate::{
    decode::{CanvasReading, Reading, StepPlan},
    request::{InfillPart, Request, SuppressEos},
    sampling::{ConfidenceKind, ConfidenceRule, TokenCounts, TokenScore, mix},
    sequence::Scoring,
};

struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(1);
        (mix(self.0) % end as u64) as usize
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    fn tokens(&mut self, vocab: usize, count: usize) -> Vec<TokenId> {
        (0..count).map(|_| TokenId(self.below(vocab) as u32)).collect()
    }

    /// Sums of twelve uniform numbers, nearly normal.
    fn logit(&mut self) -> f32 {
        let sum: usize = (0..12).map(|_| self.below(1 << 20)).sum();
        3.0 * (sum as f32 / (1 << 20) as f32 - 6.0)
    }
}

/// A pass, owned.
struct Pass {
    request: Request,
    tokens: Vec<TokenId>,
    counts: TokenCounts,
    end_ids: Vec<TokenId>,
    mask_id: Option<TokenId>,
    num_tokens: usize,
    prompt_rows: std::ops::Range<usize>,
    plan: StepPlan,
    alignment: LogitAlignment,
    logits: Logits,
}

impl Pass {
    fn random(random: &mut Random) -> Self {
        let vocab = random.pick(&[5, 40, 257, 1000]);
        let mut request = Request::new(Vec::new());
        let prompt_len = 1 + random.below(6);
        request.prompt = random.tokens(vocab, prompt_len);
        sampling(random, &mut request, vocab);
        let end_ids = random.tokens(vocab, 2);
        request.stop.ignore_eos = random.one_in(4);
        request.stop.min_tokens = random.below(6);
        if random.one_in(4) {
            request.infill = vec![InfillPart::Hole(2), InfillPart::Fixed(random.tokens(vocab, 2)), InfillPart::Hole(3)];
        }
        let alignment = random.pick(&[LogitAlignment::NextSlot, LogitAlignment::SameSlot]);
        let num_committed = if random.one_in(2) { 0 } else { random.below(5) };
        let committed = random.tokens(vocab, num_committed);
        let tokens = [request.prompt.clone(), committed.clone()].concat();
        let mut counts = TokenCounts::of_prompt(&request.prompt);
        committed.iter().for_each(|token| counts.push(*token));

        // The whole prompt with its log-probabilities, or the last token alone; then drafts or slots.
        let scores_prompt = num_committed == 0 && random.one_in(2);
        let start = if scores_prompt { 0 } else { tokens.len() - 1 };
        let num_forced = tokens.len() - start;
        let fed = [tokens[start..].to_vec(), random.tokens(vocab, random_len(vocab))].concat();
        let is_canvas = random.one_in(2);
        let first = if is_canvas && alignment == LogitAlignment::SameSlot { num_forced } else { num_forced - 1 };
        let plan = StepPlan {
            start,
            scored: first..fed.len(),
            tokens: fed,
            visibility: Visibility::Causal,
            reading: if is_canvas { Reading::Canvas(canvas(random, vocab)) } else { Reading::InOrder },
        };
        request.prompt_logprobs = scores_prompt.then(|| random.below(4));
        let prompt_rows = if scores_prompt { 0..prompt_len - 1 } else { 0..0 };
        let mask_id = random.one_in(2).then(|| TokenId(random.below(vocab) as u32));
        let num_tokens = vocab + 2 - random.below(5);
        let values = (0..plan.tokens.len() * vocab).map(|_| random.logit()).collect();
        let logits = Logits::new(values, vocab).unwrap();
        Self { request, tokens, counts, end_ids, mask_id, num_tokens, prompt_rows, plan, alignment, logits }
    }

    fn scoring(&self) -> Scoring<'_> {
        Scoring {
            request: &self.request,
            tokens: &self.tokens,
            counts: &self.counts,
            end_ids: &self.end_ids,
            mask_id: self.mask_id,
            num_tokens: self.num_tokens,
            prompt_rows: self.prompt_rows.clone(),
            plan: &self.plan,
        }
    }

    /// Scores it both ways.
    fn check(&self) {
        let pass = self.scoring();
        // The logits of a pass begin with its first row that is scored.
        let vocab = self.logits.row(0).len();
        let rows = pass.rows();
        let logits = Logits::new(self.logits.values()[rows.start * vocab..rows.end * vocab].to_vec(), vocab).unwrap();
        let expected = score(std::slice::from_ref(&pass), &logits, self.alignment).remove(0);
        let queries = queries(&pass, self.alignment);
        assert_eq!(queries.len(), logits.num_rows());
        let results: Vec<_> =
            (0..queries.len()).map(|i| kernels::reference::score(logits.row(i), &queries[i])).collect();
        match (scores(&pass, &results), expected) {
            (Ok(got), Ok(expected)) => {
                check_all(&got.prompt, &expected.prompt, vocab);
                check_all(&got.rows, &expected.rows, vocab);
                assert_eq!(got.nonfinite, expected.nonfinite);
            }
            (got, expected) => assert_eq!(got, expected),
        }
    }
}

fn random_len(vocab: usize) -> usize {
    1 + vocab % 4
}

fn sampling(random: &mut Random, request: &mut Request, vocab: usize) {
    let sampling = &mut request.sampling;
    sampling.temperature = random.pick(&[0.0, 0.5, 1.0, 1.0, 2.0]);
    sampling.top_k = random.one_in(3).then(|| 1 + random.below(vocab));
    sampling.top_p = random.pick(&[1.0, 1.0, 0.2, 0.8, 0.99]);
    sampling.min_p = random.pick(&[0.0, 0.0, 0.1, 1.0]);
    sampling.repetition_penalty = random.pick(&[1.0, 1.0, 1.3, 0.7]);
    sampling.presence_penalty = random.pick(&[0.0, 0.0, 0.5, -1.0]);
    sampling.frequency_penalty = random.pick(&[0.0, 0.0, 0.9]);
    let num_biases = random.below(4);
    sampling.logit_bias = random.tokens(vocab, num_biases).into_iter().map(|token| (token, 2.5)).collect();
    sampling.seed = random.below(1 << 30) as u64;
    request.choice = random.below(3) as u32;
    request.logprobs = random.one_in(2).then(|| random.below(5));
}

fn canvas(random: &mut Random, vocab: usize) -> CanvasReading {
    let kind = random.pick(&[ConfidenceKind::Probability, ConfidenceKind::Margin, ConfidenceKind::Entropy]);
    let num_decided = random.below(4);
    CanvasReading {
        decided: random.tokens(vocab, num_decided),
        step: random.below(4) as u64,
        confidence: ConfidenceRule { kind, filtered: random.one_in(2), held_down: &[] },
        suppress_eos: random.pick(&[SuppressEos::None, SuppressEos::Logits, SuppressEos::Confidence]),
    }
}

/// The sampler sums exponentials that it computes in f32, each off by a few parts in 10^7, and adds 1e-10 inside the
/// logarithm of an entropy; the reference does neither.
fn check_all(got: &[TokenScore], expected: &[TokenScore], vocab: usize) {
    assert_eq!(got.len(), expected.len());
    let near = |a: Option<f32>, b: Option<f32>| match (a, b) {
        (Some(a), Some(b)) => a == b || (a - b).abs() <= 5e-6 + 2e-6 * b.abs() + 1e-10 * vocab as f32,
        (a, b) => a == b,
    };
    for (got, expected) in got.iter().zip(expected) {
        assert_eq!(got.token, expected.token);
        assert!(near(got.logprob, expected.logprob), "{got:?}, {expected:?}");
        assert!(near(got.confidence, expected.confidence), "{got:?}, {expected:?}");
        assert_eq!(got.top.len(), expected.top.len());
        for (got, expected) in got.top.iter().zip(&expected.top) {
            assert!(got.0 == expected.0 && near(Some(got.1), Some(expected.1)), "{got:?}, {expected:?}");
        }
    }
}

#[test]
fn random_passes_have_the_scores_of_the_sampler() {
    let mut random = Random(7);
    let mut rows = 0;
    for _ in 0..2000 {
        let pass = Pass::random(&mut random);
        pass.check();
        rows += pass.plan.scored.len();
    }
    assert!(rows > 4000, "{rows} rows");
}

#[test]
fn rows_with_values_that_are_not_numbers_have_them_too() {
    let mut random = Random(8);
    let mut nonfinite = 0;
    for _ in 0..600 {
        let mut pass = Pass::random(&mut random);
        let vocab = pass.logits.row(0).len();
        let mut values = pass.logits.values().to_vec();
        for _ in 0..1 + random.below(3) {
            let value = random.pick(&[f32::NAN, -f32::NAN, f32::NEG_INFINITY, f32::INFINITY]);
            // Log-probabilities of such rows mean nothing; which of the bits of NaN they have is not compared.
            let at = random.below(values.len());
            values[at] = value;
        }
        if random.one_in(10) {
            let row = random.below(pass.plan.tokens.len());
            values[row * vocab..][..vocab].fill(f32::NAN);
        }
        pass.request.logprobs = None;
        pass.request.prompt_logprobs = pass.request.prompt_logprobs.map(|_| 0);
        pass.prompt_rows = 0..0;
        pass.logits = Logits::new(values, vocab).unwrap();
        pass.check();
        let scoring = pass.scoring();
        let first = scoring.rows().start;
        let logits = Logits::new(pass.logits.values()[first * vocab..].to_vec(), vocab).unwrap();
        let scored = score(std::slice::from_ref(&scoring), &logits, pass.alignment).remove(0);
        nonfinite += scored.map_or(0, |scored| scored.nonfinite);
    }
    assert!(nonfinite > 20, "{nonfinite} rows had such a value");
}
