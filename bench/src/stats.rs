//! Pure statistics.

use std::collections::BTreeMap;

use serde::Serialize;

/// Quantile of the normal distribution for 95 % intervals.
const Z95: f64 = 1.959_963_984_540_054;
/// Resamples of a bootstrap.
const RESAMPLES: usize = 2000;

/// Spread of a figure over several runs.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Summary {
    pub(crate) min: f64,
    pub(crate) median: f64,
    pub(crate) max: f64,
    pub(crate) runs: usize,
}

impl Summary {
    /// `None` without values.
    pub(crate) fn of(values: &[f64]) -> Option<Self> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        Some(Self { min, median: quantile(&sorted, 0.5), max, runs: sorted.len() })
    }
}

/// Linear interpolation between the two nearest of `sorted`, which is not empty.
pub(crate) fn quantile(sorted: &[f64], q: f64) -> f64 {
    let rank = q * (sorted.len() - 1) as f64;
    let (low, high) = (sorted[rank.floor() as usize], sorted[rank.ceil() as usize]);
    low + (high - low) * rank.fract()
}

/// A figure with its 95 % interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Estimate {
    pub(crate) value: f64,
    pub(crate) low: f64,
    pub(crate) high: f64,
}

impl Estimate {
    /// The same in another unit, for a positive factor.
    pub(crate) fn times(self, factor: f64) -> Self {
        Self { value: self.value * factor, low: self.low * factor, high: self.high * factor }
    }

    /// Median and range of rounds: not an interval of confidence.
    pub(crate) fn of_rounds(rounds: &[f64]) -> Option<Self> {
        Summary::of(rounds).map(|summary| Self { value: summary.median, low: summary.min, high: summary.max })
    }
}

/// 97.5 % quantiles of Student's distribution for 1 to 30 degrees of freedom.
const STUDENT: [f64; 30] = [
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
    2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
];

/// Mean of independent values with Student's interval; `None` without values, an interval without end for a single one.
pub(crate) fn student(values: &[f64]) -> Option<Estimate> {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let half = match values.len() {
        0 => return None,
        1 => f64::INFINITY,
        count => {
            let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (n - 1.0);
            // Beyond the table: less than 2 % too wide.
            STUDENT[(count - 2).min(STUDENT.len() - 1)] * (variance / n).sqrt()
        }
    };
    Some(Estimate { value: mean, low: mean - half, high: mean + half })
}

/// Share of `hits` in `trials` with Wilson's score interval; `None` without trials.
pub(crate) fn wilson(hits: usize, trials: usize) -> Option<Estimate> {
    wilson_share(hits as f64 / trials as f64, trials)
}

/// Wilson's score interval around a share that need not be whole hits: the mean of `trials` scores from 0 to 1. `None`
/// without trials.
pub(crate) fn wilson_share(share: f64, trials: usize) -> Option<Estimate> {
    if trials == 0 {
        return None;
    }
    let n = trials as f64;
    let scale = 1.0 + Z95 * Z95 / n;
    let centre = (share + Z95 * Z95 / (2.0 * n)) / scale;
    let half = Z95 / scale * (share * (1.0 - share) / n + Z95 * Z95 / (4.0 * n * n)).sqrt();
    // At the ends the formula gives exactly 0 and 1, but for rounding.
    Some(Estimate {
        value: share,
        low: if share == 0.0 { 0.0 } else { centre - half },
        high: if share == 1.0 { 1.0 } else { centre + half },
    })
}

/// Difference of two shares over the same trials, `ours` less `theirs`. The interval is Wald's with half a trial added to
/// each cell of the table (Agresti and Min 2005), so that it does not vanish when the two never differ. `None` without
/// trials.
pub(crate) fn paired_difference(pairs: impl IntoIterator<Item = (bool, bool)>) -> Option<Estimate> {
    let (mut trials, mut only_ours, mut only_theirs) = (0.0, 0.0, 0.0);
    for (ours, theirs) in pairs {
        trials += 1.0;
        only_ours += f64::from(u8::from(ours && !theirs));
        only_theirs += f64::from(u8::from(theirs && !ours));
    }
    if trials == 0.0 {
        return None;
    }
    let n = trials + 2.0;
    let difference = only_ours - only_theirs;
    let half = Z95 * (only_ours + only_theirs + 1.0 - difference * difference / n).sqrt() / n;
    Some(Estimate { value: difference / trials, low: difference / n - half, high: difference / n + half })
}

/// One unit of a ratio of sums: its group, and what it adds above and below the line.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Part {
    pub(crate) group: usize,
    pub(crate) above: f64,
    pub(crate) below: f64,
}

/// Sum of the upper parts over the sum of the lower ones, with a percentile bootstrap that resamples within groups.
/// `None` if there is nothing below the line.
pub(crate) fn ratio_of_sums(parts: &[Part], seed: u64) -> Option<Estimate> {
    let ratio = |(above, below): (f64, f64)| above / below;
    let add = |sum: (f64, f64), part: &Part| (sum.0 + part.above, sum.1 + part.below);
    let total = parts.iter().fold((0.0, 0.0), add);
    if total.1 <= 0.0 {
        return None;
    }
    let mut groups: BTreeMap<usize, Vec<&Part>> = BTreeMap::new();
    for part in parts {
        groups.entry(part.group).or_default().push(part);
    }
    let mut random = SplitMix(seed);
    let mut resampled: Vec<f64> = (0..RESAMPLES)
        .map(|_| {
            let draws = groups.values().flat_map(|group| std::iter::repeat_n(group, group.len()));
            ratio(draws.fold((0.0, 0.0), |sum, group| add(sum, group[random.below(group.len())])))
        })
        .filter(|ratio| ratio.is_finite())
        .collect();
    resampled.sort_by(f64::total_cmp);
    let value = ratio(total);
    match resampled.is_empty() {
        true => Some(Estimate { value, low: value, high: value }),
        false => Some(Estimate { value, low: quantile(&resampled, 0.025), high: quantile(&resampled, 0.975) }),
    }
}

/// The generator of Steele, Lea and Flood.
#[derive(Debug, Clone)]
pub(crate) struct SplitMix(pub(crate) u64);

impl SplitMix {
    /// A number of the normal distribution, by Box and Muller.
    pub(crate) fn normal(&mut self) -> f32 {
        let (radius, angle) = (self.uniform(), self.uniform());
        ((-2.0 * radius.ln()).sqrt() * (std::f64::consts::TAU * angle).cos()) as f32
    }

    /// Above 0 and below 1.
    pub(crate) fn uniform(&mut self) -> f64 {
        ((self.next() >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    /// Less than `bound`, which is far below 2^32.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        (((self.next() >> 32) * bound as u64) >> 32) as usize
    }
}

/// Accuracy under parallelism: the area under accuracy (percent) over tokens per forward, where accuracy that is lost
/// against `best` weighs the less the more it is, and points more than five below the slowest are left out. `points` are
/// `(tokens per forward, accuracy)`. `None` without points.
pub(crate) fn accuracy_under_parallelism(points: &[(f64, f64)], best: f64) -> Option<f64> {
    /// Points of accuracy that the fastest may lose against the slowest.
    const MOST_LOST: f64 = 5.0;
    let mut sorted = points.to_vec();
    sorted.sort_by(|a, b| a.0.total_cmp(&b.0));
    let &(slowest, reference) = sorted.first()?;
    sorted.retain(|(_, accuracy)| *accuracy >= reference - MOST_LOST);
    let weighted = |accuracy: f64| accuracy * (-3.0 * (1.0 - accuracy / best)).exp().min(1.0);
    let trapezoid = |pair: &[(f64, f64)]| (pair[1].0 - pair[0].0) / 2.0 * (weighted(pair[1].1) + weighted(pair[0].1));
    Some(slowest * reference + sorted.windows(2).map(trapezoid).sum::<f64>())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(got: f64, expected: f64, tolerance: f64) {
        assert!((got - expected).abs() <= tolerance, "{got} is not {expected}");
    }

    #[test]
    fn students_interval_is_that_of_the_table() {
        assert_eq!(student(&[]), None);
        assert_eq!(student(&[2.0]).unwrap().high, f64::INFINITY);
        // Three values: deviation 1, so 4.303 / sqrt(3) to either side.
        let Estimate { value, low, high } = student(&[1.0, 2.0, 3.0]).unwrap();
        assert_eq!(value, 2.0);
        assert!((high - 2.0 - 2.4843).abs() < 1e-3 && (2.0 - low - 2.4843).abs() < 1e-3, "{low} {high}");
    }

    #[test]
    fn summaries() {
        assert_eq!(Summary::of(&[]), None);
        let summary = Summary::of(&[3.0, 1.0, 2.0, 10.0]).unwrap();
        assert_eq!((summary.min, summary.median, summary.max, summary.runs), (1.0, 2.5, 10.0, 4));
        assert_eq!(quantile(&[1.0, 2.0, 3.0], 0.25), 1.5);
    }

    /// Newcombe 1998, "Two-sided confidence intervals for the single proportion", table I, method 3.
    #[test]
    fn wilson_intervals_are_those_of_the_literature() {
        for (hits, trials, low, high) in
            [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)]
        {
            let estimate = wilson(hits, trials).unwrap();
            close(estimate.value, hits as f64 / trials as f64, 1e-12);
            close(estimate.low, low, 5e-5);
            close(estimate.high, high, 5e-5);
        }
        let all = wilson(20, 20).unwrap();
        close(all.low, 1.0 - 0.1611, 5e-5);
        assert_eq!(all.high, 1.0);
        assert_eq!(wilson(0, 0), None);
    }

    #[test]
    fn paired_differences() {
        // 100 trials, 10 right only here, 5 only there: 5/102 -+ 1.96 sqrt(16 - 25/102) / 102.
        let pair = |i| match i {
            0..10 => (true, false),
            10..15 => (false, true),
            15..60 => (true, true),
            _ => (false, false),
        };
        let estimate = paired_difference((0..100).map(pair)).unwrap();
        close(estimate.value, 0.05, 1e-12);
        close(estimate.low, -0.027_25, 1e-5);
        close(estimate.high, 0.125_29, 1e-5);
        let never = paired_difference([(true, true); 500]).unwrap();
        assert_eq!(never.value, 0.0);
        close(never.high, 1.96 / 502.0, 1e-6);
        close(never.low, -never.high, 1e-15);
        assert_eq!(paired_difference([]), None);
    }

    #[test]
    fn ratios_are_of_sums_and_resampling_stays_within_groups() {
        let part = |group, above, below| Part { group, above, below };
        // Not the mean of 1 and 9.
        let ratio = ratio_of_sums(&[part(0, 1.0, 1.0), part(0, 9.0, 1.0), part(0, 0.0, 8.0)], 1).unwrap();
        close(ratio.value, 1.0, 1e-12);
        assert!(ratio.low < 0.2 && ratio.high > 2.0, "{ratio:?}");
        // Every group is constant, so nothing varies.
        let ratio = ratio_of_sums(&[part(0, 1.0, 1.0), part(0, 1.0, 1.0), part(1, 30.0, 3.0)], 1).unwrap();
        close(ratio.value, 32.0 / 5.0, 1e-12);
        close(ratio.low, ratio.high, 1e-12);
        // Standard error of the mean of 400 values of variance 1/4: 0.025.
        let coins: Vec<Part> = (0..400).map(|i| part(0, f64::from(i % 2), 1.0)).collect();
        let ratio = ratio_of_sums(&coins, 7).unwrap();
        close(ratio.high - ratio.low, 2.0 * 1.96 * 0.025, 0.01);
        assert_eq!(ratio_of_sums(&coins, 7).unwrap(), ratio, "the same seed, the same interval");
        assert_eq!(ratio_of_sums(&[], 1), None);
    }

    #[test]
    fn normal_numbers_have_the_moments_of_their_distribution() {
        let mut random = SplitMix(3);
        let numbers: Vec<f64> = (0..20_000).map(|_| f64::from(random.normal())).collect();
        let moment = |power| numbers.iter().map(|number| number.powi(power)).sum::<f64>() / numbers.len() as f64;
        // Three standard errors: 1, sqrt(2) and sqrt(96) over sqrt(20000).
        close(moment(1), 0.0, 0.0213);
        close(moment(2), 1.0, 0.03);
        close(moment(4), 3.0, 0.21);
    }

    /// The check value of the definition.
    #[test]
    fn accuracy_under_parallelism_is_as_defined() {
        let points = [(1.0, 80.0), (3.0, 79.0), (5.0, 76.0)];
        close(accuracy_under_parallelism(&points, 80.0).unwrap(), 377.6, 0.05);
        let too_wrong = [(5.0, 76.0), (8.0, 70.0), (1.0, 80.0), (3.0, 79.0)];
        close(accuracy_under_parallelism(&too_wrong, 80.0).unwrap(), 377.6, 0.05);
        assert_eq!(accuracy_under_parallelism(&[], 80.0), None);
        close(accuracy_under_parallelism(&[(2.0, 50.0)], 80.0).unwrap(), 100.0, 1e-12);
    }
}
