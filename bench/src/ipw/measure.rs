//! Accuracy per watt and per joule: ratios of means, never means of ratios.

use serde::Serialize;

use crate::stats::{Estimate, SplitMix, paired_difference, quantile, wilson_share};

/// Resamples of every interval.
pub(super) const RESAMPLES: usize = 10_000;

/// A query: the means over its repeats and runs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Unit {
    /// From 0 to 1.
    pub(super) score: f64,
    /// Energy; `None` if it is unknown for any repeat.
    pub(super) joules: Option<f64>,
    /// Mean over repeats of energy over latency.
    pub(super) watts: Option<f64>,
    pub(super) seconds: f64,
    pub(super) output_tokens: Option<f64>,
}

/// What is said of a set of queries with known energy.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Efficiency {
    pub(super) n: usize,
    pub(super) accuracy: f64,
    /// Unweighted mean over queries, in watts.
    pub(super) mean_watts: f64,
    pub(super) mean_joules: f64,
    /// Sum of joules over sum of seconds; long queries weigh more, so this is not what IPW divides by.
    pub(super) time_weighted_watts: f64,
    /// `None` if the divisor is 0.
    pub(super) intelligence_per_watt: Option<f64>,
    pub(super) intelligence_per_joule: Option<f64>,
    pub(super) tokens_per_joule: Option<f64>,
    pub(super) joules_per_output_token: Option<f64>,
}

/// A query whose energy is known: score, watts, joules.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Known {
    score: f64,
    watts: f64,
    joules: f64,
}

impl Unit {
    fn known(&self) -> Option<Known> {
        Some(Known { score: self.score, watts: self.watts?, joules: self.joules? })
    }
}

fn ratio(dividend: f64, divisor: f64) -> Option<f64> {
    (divisor > 0.0).then(|| dividend / divisor).filter(|ratio| ratio.is_finite())
}

/// Mean scores with Wilson's interval; `None` without queries.
pub(super) fn accuracy(units: &[Unit]) -> Option<Estimate> {
    let sum: f64 = units.iter().map(|unit| unit.score).sum();
    wilson_share(sum / units.len() as f64, units.len())
}

/// The figures of a set, all of whose energies must be known: `None` otherwise, and without queries.
pub(super) fn efficiency(units: &[Unit]) -> Option<Efficiency> {
    let known: Vec<Known> = units.iter().map(Unit::known).collect::<Option<_>>()?;
    if known.is_empty() {
        return None;
    }
    let n = known.len() as f64;
    let accuracy = known.iter().map(|query| query.score).sum::<f64>() / n;
    let mean_watts = known.iter().map(|query| query.watts).sum::<f64>() / n;
    let joules: f64 = known.iter().map(|query| query.joules).sum();
    let seconds: f64 = units.iter().map(|unit| unit.seconds).sum();
    let tokens: Option<f64> = units.iter().map(|unit| unit.output_tokens).sum();
    Some(Efficiency {
        n: known.len(),
        accuracy,
        mean_watts,
        mean_joules: joules / n,
        time_weighted_watts: joules / seconds,
        intelligence_per_watt: ratio(accuracy, mean_watts),
        intelligence_per_joule: ratio(accuracy, joules / n),
        tokens_per_joule: tokens.and_then(|tokens| ratio(tokens, joules)),
        joules_per_output_token: tokens.and_then(|tokens| ratio(joules, tokens)),
    })
}

/// Intervals of both ratios, from the same resamples of whole queries; `None` where [`efficiency`] has none.
pub(super) fn intervals(units: &[Unit], seed: u64) -> Option<(Estimate, Estimate)> {
    let value = efficiency(units)?;
    let known: Vec<Known> = units.iter().filter_map(Unit::known).collect();
    let mut draws = Draws::default();
    resample(known.len(), seed, |chosen| {
        let sum = sums(chosen.iter().map(|index| known[*index]));
        draws.push(sum.0 / sum.1, sum.0 / sum.2);
    });
    let per_watt = draws.first.interval(value.intelligence_per_watt?)?;
    Some((per_watt, draws.second.interval(value.intelligence_per_joule?)?))
}

/// One arm against another on the same queries.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Paired {
    /// Queries that both scored.
    pub(super) n: usize,
    pub(super) accuracy_difference: Option<Estimate>,
    pub(super) joules_difference: Option<Estimate>,
    pub(super) seconds_difference: Option<Estimate>,
    pub(super) ipw_difference: Option<Estimate>,
    pub(super) ipj_difference: Option<Estimate>,
    /// IPJ over that of the other.
    pub(super) ipj_ratio: Option<Estimate>,
}

/// `pairs` are (ours, theirs) of each query. Differences are ours less theirs; those of energy are `None` unless it is
/// known for all.
pub(super) fn paired(pairs: &[(Unit, Unit)], seed: u64) -> Paired {
    let known: Option<Vec<(Known, Known)>> = pairs.iter().map(|(a, b)| Some((a.known()?, b.known()?))).collect();
    let n = pairs.len();
    let mean = |value: &dyn Fn(usize) -> f64, chosen: &[usize]| {
        chosen.iter().map(|index| value(*index)).sum::<f64>() / chosen.len() as f64
    };
    let of = |statistic: &dyn Fn(&[usize]) -> f64| -> Option<Estimate> {
        let all: Vec<usize> = (0..n).collect();
        let mut draws = Sample::default();
        resample(n, seed, |chosen| draws.push(statistic(chosen)));
        let value = (n > 0).then(|| statistic(&all)).filter(|value| value.is_finite())?;
        draws.interval(value)
    };
    let split = |known: &[(Known, Known)], chosen: &[usize]| {
        let side = |pick: fn(&(Known, Known)) -> Known| sums(chosen.iter().map(|index| pick(&known[*index])));
        (side(|pair| pair.0), side(|pair| pair.1))
    };
    let known = known.as_deref().filter(|known| !known.is_empty());
    let energy = |statistic: fn(Sums, Sums) -> f64| {
        known.and_then(|known| {
            of(&|chosen| {
                let (ours, theirs) = split(known, chosen);
                statistic(ours, theirs)
            })
        })
    };
    Paired {
        n,
        accuracy_difference: match whole(pairs) {
            // Resamples of pairs that never differ would say that they never can.
            Some(whole) => paired_difference(whole),
            None => of(&|chosen| mean(&|i| pairs[i].0.score - pairs[i].1.score, chosen)),
        },
        joules_difference: known
            .and_then(|known| of(&|chosen| mean(&|i| known[i].0.joules - known[i].1.joules, chosen))),
        seconds_difference: of(&|chosen| mean(&|i| pairs[i].0.seconds - pairs[i].1.seconds, chosen)),
        ipw_difference: energy(|ours, theirs| ours.0 / ours.1 - theirs.0 / theirs.1),
        ipj_difference: energy(|ours, theirs| ours.0 / ours.2 - theirs.0 / theirs.2),
        ipj_ratio: energy(|ours, theirs| (ours.0 / ours.2) / (theirs.0 / theirs.2)),
    }
}

/// Right or wrong on both sides; `None` if a score is neither.
fn whole(pairs: &[(Unit, Unit)]) -> Option<Vec<(bool, bool)>> {
    let side = |unit: &Unit| [0.0, 1.0].contains(&unit.score).then_some(unit.score == 1.0);
    pairs.iter().map(|(ours, theirs)| Some((side(ours)?, side(theirs)?))).collect()
}

/// Sums of scores, watts and joules.
type Sums = (f64, f64, f64);

fn sums(queries: impl Iterator<Item = Known>) -> Sums {
    queries.fold((0.0, 0.0, 0.0), |(a, p, e), query| (a + query.score, p + query.watts, e + query.joules))
}

/// Calls `each` with the indices of every resample.
fn resample(n: usize, seed: u64, mut each: impl FnMut(&[usize])) {
    let mut random = SplitMix(seed);
    let mut chosen = vec![0; n];
    if n > 0 {
        for _ in 0..RESAMPLES {
            chosen.fill_with(|| random.below(n));
            each(&chosen);
        }
    }
}

/// Values of a statistic over resamples.
#[derive(Debug, Default)]
struct Sample(Vec<f64>);

impl Sample {
    fn push(&mut self, value: f64) {
        if value.is_finite() {
            self.0.push(value);
        }
    }

    /// 2.5 % and 97.5 % percentiles; `None` if a resample had no value.
    fn interval(mut self, value: f64) -> Option<Estimate> {
        if self.0.len() < RESAMPLES {
            return None;
        }
        self.0.sort_by(f64::total_cmp);
        Some(Estimate { value, low: quantile(&self.0, 0.025), high: quantile(&self.0, 0.975) })
    }
}

#[derive(Debug, Default)]
struct Draws {
    first: Sample,
    second: Sample,
}

impl Draws {
    fn push(&mut self, first: f64, second: f64) {
        self.first.push(first);
        self.second.push(second);
    }
}

/// A straight line by least squares.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Fit {
    pub(super) count: usize,
    pub(super) slope: Option<f64>,
    pub(super) intercept: Option<f64>,
    pub(super) r2: Option<f64>,
    pub(super) avg_y: Option<f64>,
}

/// The line through `points`; without two different `x` there is none.
pub(super) fn fit(points: &[(f64, f64)]) -> Fit {
    let n = points.len() as f64;
    let none = Fit { count: points.len(), slope: None, intercept: None, r2: None, avg_y: None };
    if points.is_empty() {
        return none;
    }
    let (x, y) = points.iter().fold((0.0, 0.0), |(x, y), point| (x + point.0 / n, y + point.1 / n));
    let sum = |term: &dyn Fn(f64, f64) -> f64| points.iter().map(|(px, py)| term(px - x, py - y)).sum::<f64>();
    let (xx, xy, yy) = (sum(&|dx, _| dx * dx), sum(&|dx, dy| dx * dy), sum(&|_, dy| dy * dy));
    if xx <= 0.0 {
        return Fit { avg_y: Some(y), ..none };
    }
    let slope = xy / xx;
    Fit {
        count: points.len(),
        slope: Some(slope),
        intercept: Some(y - slope * x),
        r2: (yy > 0.0).then(|| xy * xy / (xx * yy)),
        avg_y: Some(y),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unit(score: f64, watts: f64, seconds: f64) -> Unit {
        let joules = watts * seconds;
        Unit { score, joules: Some(joules), watts: Some(watts), seconds, output_tokens: Some(10.0) }
    }

    fn vector() -> [Unit; 3] {
        [unit(1.0, 10.0, 2.0), unit(0.0, 20.0, 1.0), unit(1.0, 30.0, 4.0)]
    }

    fn close(got: f64, expected: f64) {
        assert!((got - expected).abs() < 1e-9, "{got} is not {expected}");
    }

    #[test]
    fn the_worked_example() {
        let got = efficiency(&vector()).unwrap();
        close(got.accuracy, 2.0 / 3.0);
        close(got.mean_watts, 20.0);
        close(got.mean_joules, 160.0 / 3.0);
        close(got.time_weighted_watts, 160.0 / 7.0);
        let (per_watt, per_joule) = (got.intelligence_per_watt.unwrap(), got.intelligence_per_joule.unwrap());
        close(per_watt, 1.0 / 30.0);
        close(per_joule, 0.0125);
        close(got.tokens_per_joule.unwrap(), 30.0 / 160.0);
        close(got.joules_per_output_token.unwrap(), 160.0 / 30.0);
        // The mean of ratios, and the ratio to time-weighted power.
        for wrong in [(1.0 / 10.0 + 1.0 / 30.0) / 3.0, 2.0 / 3.0 / (160.0 / 7.0)] {
            assert!((per_watt - wrong).abs() > 1e-3, "{wrong}");
        }
    }

    #[test]
    fn one_unknown_energy_makes_the_set_unknown() {
        let mut units = vector();
        units[1].joules = None;
        assert_eq!(efficiency(&units), None);
        assert_eq!(intervals(&units, 1), None);
        assert!(accuracy(&units).is_some());
        assert_eq!(efficiency(&[]), None);
        assert_eq!(accuracy(&[]), None);
    }

    #[test]
    fn no_answer_right_is_zero_and_no_energy_is_no_ratio() {
        let wrong = [unit(0.0, 10.0, 1.0), unit(0.0, 20.0, 1.0)];
        assert_eq!(efficiency(&wrong).unwrap().intelligence_per_watt, Some(0.0));
        assert_eq!(efficiency(&[unit(1.0, 0.0, 1.0)]).unwrap().intelligence_per_watt, None);
    }

    #[test]
    fn intervals_come_from_the_seed() {
        let units: Vec<Unit> = (0..60).map(|i| unit(f64::from(i % 3 % 2), 10.0 + f64::from(i % 7), 1.5)).collect();
        let first = intervals(&units, 5).unwrap();
        assert_eq!(intervals(&units, 5).unwrap(), first);
        assert_ne!(intervals(&units, 6).unwrap(), first);
        assert!(first.0.low < first.0.value && first.0.value < first.0.high);
        // Score and energy are drawn together: with energy that follows the score, the ratio of one query to another
        // stays within their own.
        let tied: Vec<Unit> = (0..40).map(|i| unit(1.0, 1.0 + f64::from(i % 2), 1.0)).collect();
        let (per_watt, _) = intervals(&tied, 1).unwrap();
        assert!(per_watt.low > 0.5 && per_watt.high < 1.0, "{per_watt:?}");
    }

    #[test]
    fn pairs_cancel_what_both_share() {
        let theirs: Vec<Unit> = (0..50).map(|i| unit(f64::from(i % 2), 5.0 + f64::from(i), 1.0)).collect();
        let pairs: Vec<(Unit, Unit)> =
            theirs.iter().map(|unit| (Unit { joules: unit.joules.map(|j| j - 2.0), ..*unit }, *unit)).collect();
        let paired = paired(&pairs, 3);
        let joules = paired.joules_difference.unwrap();
        close(joules.value, -2.0);
        close(joules.low, joules.high);
        let accuracy = paired.accuracy_difference.unwrap();
        assert!(accuracy.value == 0.0 && accuracy.high > 0.0, "fifty pairs do not show that none can differ");
        assert!(paired.ipj_ratio.unwrap().low > 1.0);
        let mut unknown = pairs;
        unknown[7].1.joules = None;
        let paired = super::paired(&unknown, 3);
        assert_eq!((paired.joules_difference, paired.ipj_ratio), (None, None));
        assert!(paired.accuracy_difference.is_some());
    }

    #[test]
    fn lines_by_least_squares() {
        let line = fit(&[(1.0, 5.0), (2.0, 7.0), (3.0, 9.0)]);
        assert_eq!((line.slope, line.intercept, line.r2, line.avg_y), (Some(2.0), Some(3.0), Some(1.0), Some(7.0)));
        assert_eq!(fit(&[(1.0, 5.0), (1.0, 7.0)]).slope, None);
        assert_eq!(fit(&[]).avg_y, None);
    }
}
