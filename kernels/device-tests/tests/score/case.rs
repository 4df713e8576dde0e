//! Random rows, random queries, and what the kernels make of them.

use std::sync::Arc;

use device_tests::{HostDevice, Order};
use kernels::{
    device::{
        Array, Device, ScoreAdjustments, ScoreBatch, ScoreConfidence, ScoreConfidenceKind, ScoreQuery, ScoreResult,
        ScoreSizes, run,
    },
    reference,
};

/// Around a split, a thread's share of it, four in a row, and odd.
pub(crate) const VOCABS: [usize; 12] = [1, 2, 3, 31, 33, 255, 1000, 1025, 4097, 8191, 8193, 20_003];
pub(crate) const ORDERS: [Order; 3] = [Order::Forward, Order::Backward, Order::Shuffled];

/// splitmix64
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    /// In [0, 1).
    pub(crate) fn uniform(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    pub(crate) fn normal(&mut self) -> f64 {
        (-2.0 * (1.0 - self.uniform()).ln()).sqrt() * (std::f64::consts::TAU * self.uniform()).cos()
    }

    pub(crate) fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    pub(crate) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    pub(crate) fn tokens(&mut self, vocab: usize, most: usize) -> Vec<u32> {
        let count = self.below(most + 1).min(vocab);
        (0..count).map(|_| self.below(vocab) as u32).collect()
    }
}

/// How logits are spread.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Spread {
    /// As those of a model.
    Normal,
    /// Nearly equal.
    Flat,
    /// One far above the rest.
    Peaked,
    /// Few different values, so that ties are everywhere; 0 and -0 among them.
    Ties,
    /// All the same.
    Equal,
    /// Most impossible.
    Holes,
    /// Far from zero.
    Shifted,
}

pub(crate) const SPREADS: [Spread; 7] =
    [Spread::Normal, Spread::Flat, Spread::Peaked, Spread::Ties, Spread::Equal, Spread::Holes, Spread::Shifted];

pub(crate) fn logits(random: &mut Random, spread: Spread, vocab: usize) -> Vec<f32> {
    let mut values: Vec<f32> = (0..vocab)
        .map(|_| match spread {
            Spread::Normal | Spread::Peaked => (3.0 * random.normal()) as f32,
            Spread::Flat => (0.01 * random.normal()) as f32,
            Spread::Ties => random.pick(&[-1.5, -0.0, 0.0, 0.5, 2.0]),
            Spread::Equal => -0.75,
            Spread::Holes if random.one_in(3) => (2.0 * random.normal()) as f32,
            Spread::Holes => f32::NEG_INFINITY,
            Spread::Shifted => (500.0 + 4.0 * random.normal()) as f32,
        })
        .collect();
    let at = random.below(vocab);
    match spread {
        Spread::Peaked => values[at] = 25.0,
        // So that a number is there.
        Spread::Holes => values[at] = 1.0,
        _ => {}
    }
    values
}

/// A query with each feature as likely as not.
pub(crate) fn query(random: &mut Random, vocab: usize) -> ScoreQuery {
    let kinds = [ScoreConfidenceKind::Probability, ScoreConfidenceKind::Margin, ScoreConfidenceKind::Entropy];
    let mut query = ScoreQuery {
        noise_key: random.next(),
        temperature: random.pick(&[0.0, 0.0, 0.3, 1.0, 1.0, 2.5]),
        top_k: random.one_in(3).then(|| 1 + random.below(random_limit(vocab))),
        top_p: random.pick(&[1.0, 1.0, 0.1, 0.5, 0.9, 0.999]),
        min_p: random.pick(&[0.0, 0.0, 0.05, 0.5, 1.0]),
        num_tokens: random.one_in(3).then(|| vocab - random.below(vocab.div_ceil(8))),
        mask_id: random.one_in(3).then(|| random.below(vocab) as u32),
        logprobs: random.one_in(2).then(|| random.below(8)),
        ..ScoreQuery::default()
    };
    if random.one_in(2) {
        query.adjustments = adjustments(random, vocab);
    }
    if random.one_in(2) {
        let held_down = if random.one_in(2) { random.tokens(vocab, 4) } else { Vec::new() };
        query.confidence = Some(ScoreConfidence { kind: random.pick(&kinds), filtered: random.one_in(2), held_down });
    }
    if random.one_in(8) {
        let given = Some(random.below(vocab) as u32);
        query = ScoreQuery { given, logprobs: query.logprobs, ..ScoreQuery::default() };
    }
    query
}

fn random_limit(vocab: usize) -> usize {
    (vocab / 2).clamp(1, 50)
}

fn adjustments(random: &mut Random, vocab: usize) -> ScoreAdjustments {
    let mut seen = random.tokens(vocab, 40);
    seen.sort_unstable();
    seen.dedup();
    let seen = seen.into_iter().map(|token| (token, random.below(4) as u32)).collect();
    let bias = random.tokens(vocab, 5).into_iter().map(|token| (token, (4.0 * random.normal()) as f32)).collect();
    ScoreAdjustments {
        bias,
        seen,
        repetition_penalty: random.pick(&[1.0, 1.3, 0.8]),
        presence_penalty: random.pick(&[0.0, 0.7, -0.4]),
        frequency_penalty: random.pick(&[0.0, 0.3]),
        forbidden: random.tokens(vocab, 3),
    }
}

/// Rows of logits with their queries.
#[derive(Clone)]
pub(crate) struct Case {
    pub(crate) vocab: usize,
    pub(crate) logits: Vec<f32>,
    pub(crate) queries: Vec<ScoreQuery>,
}

impl Case {
    pub(crate) fn new(vocab: usize) -> Self {
        Self { vocab, logits: Vec::new(), queries: Vec::new() }
    }

    pub(crate) fn of(row: &[f32], query: ScoreQuery) -> Self {
        let mut case = Self::new(row.len());
        case.push(row, query);
        case
    }

    pub(crate) fn push(&mut self, row: &[f32], query: ScoreQuery) {
        assert_eq!(row.len(), self.vocab);
        self.logits.extend_from_slice(row);
        self.queries.push(query);
    }

    pub(crate) fn row(&self, index: usize) -> &[f32] {
        &self.logits[index * self.vocab..][..self.vocab]
    }

    /// What the kernels make of it.
    pub(crate) fn run(&self, order: Order) -> Vec<ScoreResult> {
        let device: Arc<dyn Device> = HostDevice::new(1 << 30, order);
        let sizes = ScoreSizes { max_rows: self.queries.len(), vocab: self.vocab, max_top: 64 };
        let mut batch = ScoreBatch::new(&device, sizes).unwrap();
        let logits = Array::from_slice(&device, &self.logits).unwrap();
        let shape = batch.prepare(&self.queries).unwrap();
        run(&*device, &batch.launches(&shape, &logits).unwrap()).unwrap();
        batch.read().unwrap()
    }

    /// Runs it and compares every row with the reference.
    pub(crate) fn check(&self, order: Order) {
        let results = self.run(order);
        assert_eq!(results.len(), self.queries.len());
        for (i, result) in results.iter().enumerate() {
            let expected = reference::score(self.row(i), &self.queries[i]);
            check_result(result, &expected, &self.queries[i], self.vocab);
        }
    }
}

/// Tokens must be equal.
///
/// A log-probability is a sum in f32 over 32 tokens a thread, of exponentials that are off by two units in the last place,
/// of arguments that are rounded once: at most `(32 + 2 + |x|) 2^-24` of each weight, with `|x| < 20` wherever the weight
/// counts; that is 3.3e-6, to which the rounding of the result in f32 is added. The probability and the margin have the
/// same relative error in their total, and in their own weights. In an entropy it is multiplied by the largest
/// logarithm that counts, below 20 nats.
fn check_result(got: &ScoreResult, expected: &ScoreResult, query: &ScoreQuery, vocab: usize) {
    let context = format!("vocab {vocab}, {query:?}: got {got:?}, expected {expected:?}");
    assert_eq!((got.is_broken, got.has_nan), (expected.is_broken, expected.has_nan), "{context}");
    assert_eq!(got.token, expected.token, "{context}");
    assert_eq!(got.logprob.is_some(), expected.logprob.is_some(), "{context}");
    let near = |a: f32, b: f32, relative: f32, absolute: f32| {
        a == b || (a.is_nan() && b.is_nan()) || (a - b).abs() <= absolute + relative * b.abs()
    };
    if let (Some(a), Some(b)) = (got.logprob, expected.logprob) {
        assert!(near(a, b, 2e-7, 3.3e-6), "log-probability: {context}");
    }
    assert_eq!(got.top.len(), expected.top.len(), "{context}");
    for ((token, a), (expected_token, b)) in got.top.iter().zip(&expected.top) {
        assert_eq!(token, expected_token, "{context}");
        assert!(near(*a, *b, 2e-7, 3.3e-6), "likeliest: {context}");
    }
    assert_eq!(got.confidence.is_some(), expected.confidence.is_some(), "{context}");
    if let (Some(a), Some(b)) = (got.confidence, expected.confidence) {
        let is_entropy = query.confidence.as_ref().is_some_and(|rule| rule.kind == ScoreConfidenceKind::Entropy);
        let fine = if is_entropy { near(a, b, 2e-7, 20.0 * 3.3e-6) } else { near(a, b, 2.0 * 3.3e-6, 3.3e-6) };
        assert!(fine, "confidence: {context}");
    }
}
