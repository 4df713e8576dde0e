use super::*;

fn slot<'a>(sampling: &'a Sampling, counts: &'a TokenCounts, index: u64) -> SlotContext<'a> {
    let noise = SlotNoise::new(sampling.seed, 0, index);
    SlotContext { sampling, counts, noise, forbidden: &[], logprobs: None, confidence: None }
}

fn sampled(logits: &[f32], sampling: &Sampling, draws: u64) -> Vec<usize> {
    let counts = TokenCounts::default();
    let mut histogram = vec![0; logits.len()];
    for index in 0..draws {
        histogram[choose(logits, &slot(sampling, &counts, index)).token.0 as usize] += 1;
    }
    histogram
}

const LOGITS: [f32; 16] = [2.0, -1.0, 0.3, 1.7, 0.0, -2.5, 0.9, 1.1, -0.4, 2.2, 0.6, -3.0, 1.4, 0.2, -0.9, 1.9];

/// Chi-square of 20 000 draws against softmax(z / T) over the kept tokens. The 99.9 % points of the distribution with
/// 15, 4 and 6 degrees of freedom are 37.7, 18.5 and 22.5.
#[test]
fn draws_follow_the_filtered_softmax() {
    let cases: [(Sampling, &[usize], f64); 4] = [
        (Sampling { temperature: 1.0, seed: 1, ..Sampling::default() }, &[], 37.7),
        (Sampling { temperature: 2.0, seed: 2, ..Sampling::default() }, &[], 37.7),
        (Sampling { temperature: 0.7, top_k: Some(5), seed: 3, ..Sampling::default() }, &[9, 0, 15, 3, 12], 18.5),
        (Sampling { temperature: 1.0, min_p: 0.3, seed: 4, ..Sampling::default() }, &[9, 0, 15, 3, 12, 7], 20.5),
    ];
    for (sampling, kept, limit) in cases {
        let keep = |v: usize| kept.is_empty() || kept.contains(&v);
        let weights: Vec<f64> = (0..16)
            .map(|v| if keep(v) { (f64::from(LOGITS[v]) / f64::from(sampling.temperature)).exp() } else { 0.0 })
            .collect();
        let total: f64 = weights.iter().sum();
        let draws = 20_000;
        let histogram = sampled(&LOGITS, &sampling, draws);
        let mut chi_square = 0.0;
        for (count, weight) in histogram.iter().zip(&weights) {
            let expected = weight / total * draws as f64;
            if *weight == 0.0 {
                assert_eq!(*count, 0, "a filtered token was drawn: {sampling:?}");
            } else {
                chi_square += (*count as f64 - expected).powi(2) / expected;
            }
        }
        assert!(chi_square < limit, "chi-square {chi_square} for {sampling:?}: {histogram:?}");
    }
}

#[test]
fn top_p_keeps_the_smallest_sufficient_set() {
    // Probabilities 0.5, 0.3, 0.15, 0.05.
    let logits = [0.5f32, 0.3, 0.15, 0.05].map(f32::ln);
    let kept = |top_p: f32| {
        let sampling = Sampling { temperature: 1.0, top_p, ..Sampling::default() };
        filter(&logits, f64::from(logits[0]), &sampling).len()
    };
    assert_eq!([kept(0.4), kept(0.6), kept(0.9), kept(0.97)], [1, 2, 3, 4]);
}

#[test]
fn greedy_takes_the_lowest_id_of_a_tie_and_never_nan() {
    assert_eq!(argmax(&[1.0, 3.0, 3.0, f32::NAN]), TokenId(1));
    for hopeless in [vec![f32::NAN, f32::NEG_INFINITY], vec![f32::NAN; 40], vec![f32::NEG_INFINITY; 17]] {
        let index = argmax(&hopeless).0 as usize;
        assert!(!hopeless[index].is_finite(), "the caller sees by the value that there is none");
    }
    let mut values = vec![0.5f32; 100];
    for index in [0, 15, 16, 95, 96, 99] {
        values[index] = 2.0;
        assert_eq!(argmax(&values).0 as usize, index, "in full lanes and in the rest");
        values[index] = f32::NAN;
    }
}

#[test]
fn bias_penalties_and_forbidden_tokens_move_the_choice() {
    let logits = [1.0, 2.0, 3.0];
    let mut counts = TokenCounts::of_prompt(&[TokenId(2)]);
    let choice = |sampling: &Sampling, counts: &TokenCounts, forbidden: &[TokenId]| {
        choose(&logits, &SlotContext { forbidden, ..slot(sampling, counts, 0) }).token.0
    };
    let plain = Sampling::default();
    assert_eq!(choice(&plain, &counts, &[]), 2);
    assert_eq!(choice(&plain, &counts, &[TokenId(2)]), 1);
    let bias = Sampling { logit_bias: vec![(TokenId(0), 5.0)], ..Sampling::default() };
    assert_eq!(choice(&bias, &counts, &[]), 0);
    let repetition = Sampling { repetition_penalty: 2.0, ..Sampling::default() };
    assert_eq!(choice(&repetition, &counts, &[]), 1, "the prompt counts for the repetition penalty");
    let presence = Sampling { presence_penalty: 1.5, ..Sampling::default() };
    assert_eq!(choice(&presence, &counts, &[]), 2, "the prompt does not count for the presence penalty");
    counts.push(TokenId(2));
    assert_eq!(choice(&presence, &counts, &[]), 1);
    let frequency = Sampling { frequency_penalty: 0.6, ..Sampling::default() };
    assert_eq!(choice(&frequency, &counts, &[]), 2, "one occurrence costs 0.6");
    counts.push(TokenId(2));
    assert_eq!(choice(&frequency, &counts, &[]), 1, "two cost 1.2");
}

#[test]
fn logprobs_are_those_of_the_model_itself() {
    let logits = [0.5f32, 0.3, 0.2].map(f32::ln);
    let sampling = Sampling { logit_bias: vec![(TokenId(2), 9.0)], ..Sampling::default() };
    let counts = TokenCounts::default();
    let score = choose(&logits, &SlotContext { logprobs: Some(2), ..slot(&sampling, &counts, 0) });
    assert_eq!(score.token, TokenId(2));
    assert!((score.logprob.unwrap() - 0.2f32.ln()).abs() < 1e-6);
    assert_eq!(score.top.iter().map(|(v, _)| v.0).collect::<Vec<_>>(), [0, 1]);
    assert!((score.top[0].1 - 0.5f32.ln()).abs() < 1e-6);
}

#[test]
fn confidence_is_that_of_the_named_distribution() {
    let logits: Vec<f32> = [0.5f32, 0.3, 0.2].iter().map(|p| p.ln()).collect();
    let counts = TokenCounts::default();
    let of = |logits: &[f32], sampling: &Sampling, kind, filtered, held_down: &'static [TokenId]| {
        let confidence = Some(ConfidenceRule { kind, filtered, held_down });
        choose(logits, &SlotContext { confidence, ..slot(sampling, &counts, 0) }).confidence.unwrap()
    };
    use ConfidenceKind::{Entropy, Margin, Probability};
    let plain = Sampling::default();
    let near = |a: f32, b: f32| assert!((a - b).abs() < 1e-6, "{a} {b}");
    near(of(&logits, &plain, Probability, false, &[]), 0.5);
    near(of(&logits, &plain, Margin, false, &[]), 0.2);
    near(of(&logits, &plain, Entropy, false, &[]), 0.5 * 0.5f32.ln() + 0.3 * 0.3f32.ln() + 0.2 * 0.2f32.ln());
    let top_two = Sampling { top_k: Some(2), ..Sampling::default() };
    near(of(&logits, &top_two, Probability, true, &[]), 0.5 / 0.8);
    near(of(&logits, &top_two, Probability, false, &[]), 0.5);
    // Held down: confidence 0 for it, and the others share.
    assert_eq!(of(&logits, &plain, Probability, false, &[TokenId(0)]), 0.0);
    near(of(&logits, &plain, Probability, false, &[TokenId(1)]), 0.5 / 0.7);
    // Filters must not hide that a row is broken.
    let broken = [logits[0], f32::NAN, logits[2]];
    for sampling in [plain, top_two, Sampling { min_p: 0.1, top_p: 0.9, ..Sampling::default() }] {
        assert_eq!(of(&broken, &sampling, Probability, true, &[]), 0.0);
        assert_eq!(of(&broken, &sampling, Entropy, true, &[]), f32::MIN);
    }
}
