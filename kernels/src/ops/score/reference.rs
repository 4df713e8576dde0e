//! The plain implementation, in f64.

use super::{ScoreAdjustments, ScoreConfidence, ScoreConfidenceKind, ScoreQuery, ScoreResult};

/// Scores a row of logits, `[vocab]`.
///
/// # Panics
/// If a token of the query is outside the row.
pub fn score(logits: &[f32], query: &ScoreQuery) -> ScoreResult {
    let largest = logits[argmax(logits) as usize];
    let facts = ScoreResult {
        is_broken: !largest.is_finite(),
        has_nan: logits.iter().any(|value| value.is_nan()),
        ..ScoreResult::default()
    };
    let mut possible = logits.to_vec();
    let num_tokens = query.num_tokens.unwrap_or(logits.len()).min(logits.len());
    possible[num_tokens..].fill(f32::NEG_INFINITY);
    if let Some(mask) = query.mask_id {
        possible[mask as usize] = f32::NEG_INFINITY;
    }
    let (token, confidence) = match query.given {
        Some(token) => (token, None),
        None => {
            let values = adjusted(&possible, &query.adjustments);
            let token = choose(&values, query);
            (token, query.confidence.as_ref().map(|rule| confidence(&values, token, query, rule)))
        }
    };
    let result = ScoreResult { token, confidence, ..facts };
    match query.top_len() {
        None => result,
        Some(k) => {
            let normaliser = log_sum_exp(&possible);
            let logprob = |v: u32| (f64::from(possible[v as usize]) - normaliser) as f32;
            let top = by_value(&possible).into_iter().take(k).map(|v| (v, logprob(v))).collect();
            ScoreResult { logprob: Some(logprob(token)), top, ..result }
        }
    }
}

/// The first of the largest values that are numbers, or 0.
fn argmax(values: &[f32]) -> u32 {
    let max = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    values.iter().position(|value| *value == max).unwrap_or(0) as u32
}

fn log_sum_exp(values: &[f32]) -> f64 {
    let max = f64::from(values[argmax(values) as usize]);
    max + values.iter().map(|&value| (f64::from(value) - max).exp()).sum::<f64>().ln()
}

/// All tokens in the total order of their values, descending; the lower of equals first.
fn by_value(values: &[f32]) -> Vec<u32> {
    let mut order: Vec<u32> = (0..values.len() as u32).collect();
    order.sort_by(|a, b| values[*b as usize].total_cmp(&values[*a as usize]).then(a.cmp(b)));
    order
}

fn adjusted(values: &[f32], adjustments: &ScoreAdjustments) -> Vec<f32> {
    let mut values = values.to_vec();
    for &(token, bias) in &adjustments.bias {
        values[token as usize] += bias;
    }
    for &(token, in_output) in &adjustments.seen {
        let value = &mut values[token as usize];
        let penalty = adjustments.repetition_penalty;
        *value = if *value > 0.0 { *value / penalty } else { *value * penalty };
        *value -= adjustments.loss(in_output);
    }
    for &token in &adjustments.forbidden {
        values[token as usize] = f32::NEG_INFINITY;
    }
    values
}

/// Which tokens top-k, top-p and min-p keep, one after the other.
fn kept(values: &[f32], temperature: f64, query: &ScoreQuery) -> Vec<bool> {
    let top = f64::from(values[argmax(values) as usize]) / temperature;
    let weight = |v: u32| (f64::from(values[v as usize]) / temperature - top).exp();
    let mut order = by_value(values);
    order.truncate(query.top_k.unwrap_or(usize::MAX));
    if query.top_p < 1.0 {
        let target = f64::from(query.top_p) * order.iter().map(|&v| weight(v)).sum::<f64>();
        // Without a number there is no target that could be reached.
        order.retain(|_| !target.is_nan());
        order.sort_by(|a, b| weight(*b).total_cmp(&weight(*a)).then(a.cmp(b)));
        let mut mass = 0.0;
        let count = order.iter().take_while(|&&v| {
            let wanted = mass < target;
            mass += weight(v);
            wanted
        });
        order.truncate(count.count());
    }
    order.retain(|&v| query.min_p == 0.0 || weight(v) >= f64::from(query.min_p));
    let mut kept = vec![false; values.len()];
    order.into_iter().for_each(|v| kept[v as usize] = true);
    kept
}

fn choose(values: &[f32], query: &ScoreQuery) -> u32 {
    let likeliest = argmax(values);
    if query.temperature == 0.0 {
        return likeliest;
    }
    let temperature = f64::from(query.temperature);
    let kept = query.has_filters().then(|| kept(values, temperature, query));
    let noisy = |v: u32| f64::from(values[v as usize]) / temperature + gumbel(query.noise_key, v);
    let mut best = (likeliest, noisy(likeliest));
    for v in 0..values.len() as u32 {
        let score = noisy(v);
        let is_kept = kept.as_ref().is_none_or(|kept| kept[v as usize]);
        if is_kept && (score > best.1 || (score == best.1 && v < best.0)) {
            best = (v, score);
        }
    }
    best.0
}

fn confidence(values: &[f32], token: u32, query: &ScoreQuery, rule: &ScoreConfidence) -> f32 {
    let temperature = if query.temperature > 0.0 { f64::from(query.temperature) } else { 1.0 };
    let filter = (rule.filtered && query.has_filters()).then(|| kept(values, temperature, query));
    let temperature = if rule.filtered { temperature } else { 1.0 };
    let max = f64::from(values[argmax(values) as usize]);
    let weight = |v: u32| ((f64::from(values[v as usize]) - max) / temperature).exp();
    let is_held = |v: u32| rule.held_down.contains(&v);
    let open: Vec<f64> = (0..values.len() as u32)
        .filter(|&v| filter.as_ref().is_none_or(|kept| kept[v as usize]) && !is_held(v))
        .map(weight)
        .collect();
    let total: f64 = open.iter().sum();
    let confidence = match rule.kind {
        ScoreConfidenceKind::Probability if is_held(token) => 0.0,
        ScoreConfidenceKind::Probability => weight(token) / total,
        ScoreConfidenceKind::Margin => {
            let mut ranked = open;
            ranked.sort_by(|a, b| b.total_cmp(a));
            let at = |i: usize| ranked.get(i).copied().unwrap_or(0.0);
            (at(0) - at(1)) / total
        }
        // Of nothing at all it is 0.
        ScoreConfidenceKind::Entropy => {
            open.iter().map(|w| w / total).filter(|p| *p > 0.0 || p.is_nan()).map(|p| p * p.ln()).sum()
        }
    };
    let is_number = confidence.is_finite() && !values.iter().any(|value| value.is_nan());
    match rule.kind {
        _ if is_number => confidence as f32,
        ScoreConfidenceKind::Probability | ScoreConfidenceKind::Margin => 0.0,
        ScoreConfidenceKind::Entropy => f32::MIN,
    }
}

/// One step of splitmix64 (Steele, Lea, Flood 2014).
fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Standard Gumbel variate `-ln(-ln u)` with `u` uniform on the centres of 2^52 cells of (0, 1).
fn gumbel(key: u64, token: u32) -> f64 {
    let uniform = ((mix(key ^ u64::from(token)) >> 12) as f64 + 0.5) * (0.5f64).powi(52);
    -(-uniform.ln()).ln()
}
