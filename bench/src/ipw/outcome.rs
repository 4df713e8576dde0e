//! What the answers of an arm add up to.

use serde_json::{Value, json};

use super::{
    grade::Grade,
    measure::{self, Efficiency, Unit},
    session::Shot,
    wire::Method,
};
use crate::stats::{Estimate, quantile};

/// The answers of one arm.
#[derive(Debug)]
pub(super) struct Outcome<'a> {
    pub(super) shots: Vec<&'a Shot>,
    /// By query; `None` if an answer of it has no score.
    pub(super) units: Vec<Option<Unit>>,
    pub(super) accuracy: Option<Estimate>,
    /// `None` if it is unknown for any answer.
    pub(super) efficiency: Option<Efficiency>,
    pub(super) ipw: Option<Estimate>,
    pub(super) ipj: Option<Estimate>,
    /// The queries whose energy is known, if not all are.
    pub(super) subset: Option<Efficiency>,
    /// Why there is no efficiency.
    pub(super) reason: Option<String>,
    pub(super) counts: Counts,
}

/// Numbers of answers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) correct: usize,
    pub(super) incorrect: usize,
    pub(super) unextracted: usize,
    pub(super) grader_failed: usize,
    pub(super) request_failed: usize,
    /// Answered, with unknown energy.
    pub(super) without_energy: usize,
    pub(super) resolution_limited: usize,
    pub(super) cut: usize,
}

impl Counts {
    fn of(shots: &[&Shot], method: Method) -> Self {
        let mut counts = Self::default();
        for shot in shots {
            let Ok(reply) = &shot.reply else {
                counts.request_failed += 1;
                continue;
            };
            match shot.grade.as_ref().and_then(Grade::score) {
                Some(score) if score >= 0.5 => counts.correct += 1,
                Some(_) => counts.incorrect += 1,
                None => counts.grader_failed += 1,
            }
            counts.unextracted += usize::from(shot.grade == Some(Grade::Unextracted));
            counts.without_energy += usize::from(shot.joules(method).is_err());
            let limited = shot.energy().and_then(|energy| energy.resolution_limited) == Some(true);
            counts.resolution_limited += usize::from(limited);
            counts.cut += usize::from(reply.finish_reason.as_deref() == Some("length"));
        }
        counts
    }

    /// Whether anything is missing from what was to be measured.
    pub(super) fn incomplete(&self) -> bool {
        self.grader_failed + self.request_failed > 0
    }
}

impl<'a> Outcome<'a> {
    pub(super) fn new(shots: Vec<&'a Shot>, items: usize, method: Method, seed: u64) -> Self {
        let units = units(&shots, items, method);
        let counts = Counts::of(&shots, method);
        let scored: Vec<Unit> = units.iter().copied().flatten().collect();
        let whole = counts.request_failed == 0;
        let efficiency = measure::efficiency(&scored).filter(|_| whole);
        let intervals = efficiency.and_then(|_| measure::intervals(&scored, seed));
        let known: Vec<Unit> = scored.iter().filter(|unit| unit.joules.is_some()).copied().collect();
        let reason = efficiency.is_none().then(|| because(&shots, counts, method));
        Self {
            accuracy: measure::accuracy(&scored),
            subset: measure::efficiency(&known).filter(|_| efficiency.is_none()),
            efficiency,
            ipw: intervals.map(|both| both.0),
            ipj: intervals.map(|both| both.1),
            reason,
            counts,
            units,
            shots,
        }
    }

    /// Queries with a score.
    pub(super) fn scored(&self) -> Vec<Unit> {
        self.units.iter().copied().flatten().collect()
    }

    /// Percentiles of a time of all answers, in seconds.
    pub(super) fn percentiles(&self, values: impl Fn(&Shot) -> Vec<f64>) -> Value {
        let mut all: Vec<f64> = self.shots.iter().flat_map(|shot| values(shot)).collect();
        all.sort_by(f64::total_cmp);
        let at = |q: f64| (!all.is_empty()).then(|| quantile(&all, q));
        json!({"p50": at(0.5), "p95": at(0.95), "p99": at(0.99)})
    }

    /// Sum over answered queries of output tokens over the sum of seconds; `None` if either is missing.
    pub(super) fn tokens_per_second(&self, seconds: impl Fn(&Shot) -> Option<f64>) -> Option<f64> {
        let answered: Vec<&&Shot> = self.shots.iter().filter(|shot| shot.reply.is_ok()).collect();
        let tokens: Option<u64> =
            answered.iter().map(|shot| shot.reply.as_ref().ok().and_then(|reply| reply.completion_tokens)).sum();
        let seconds: Option<f64> = answered.iter().map(|shot| seconds(shot)).sum();
        let (tokens, seconds) = tokens.zip(seconds)?;
        (seconds > 0.0).then(|| tokens as f64 / seconds)
    }

    /// Share of the clients' time in which the server worked on their requests; `None` if it did not say.
    pub(super) fn active_share(&self) -> Option<f64> {
        let times = self
            .shots
            .iter()
            .filter_map(|shot| Some((shot.energy()?.timing.active_seconds?, shot.reply.as_ref().ok()?.seconds)));
        let (active, waited) = times.fold((0.0, 0.0), |sum, (active, waited)| (sum.0 + active, sum.1 + waited));
        (waited > 0.0).then(|| active / waited)
    }

    /// Figures of each run by itself, and their mean and sample standard deviation.
    pub(super) fn by_run(&self, runs: u32, method: Method) -> Value {
        let of = |run: u32| {
            let shots: Vec<&Shot> = self.shots.iter().filter(|shot| shot.run == run).copied().collect();
            let scored: Vec<Unit> = units(&shots, self.units.len(), method).into_iter().flatten().collect();
            let whole = shots.iter().all(|shot| shot.reply.is_ok());
            let efficiency = measure::efficiency(&scored).filter(|_| whole);
            [
                measure::accuracy(&scored).map(|estimate| estimate.value),
                efficiency.and_then(|figures| figures.intelligence_per_watt),
                efficiency.and_then(|figures| figures.intelligence_per_joule),
                efficiency.map(|figures| figures.mean_joules),
            ]
        };
        let runs: Vec<[Option<f64>; 4]> = (0..runs).map(of).collect();
        let spread = |which: usize| {
            let values: Option<Vec<f64>> = runs.iter().map(|run| run[which]).collect();
            let values = values.unwrap_or_default();
            let n = values.len() as f64;
            let mean = values.iter().sum::<f64>() / n;
            let deviation = (values.len() > 1)
                .then(|| (values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (n - 1.0)).sqrt());
            json!({"mean": (!values.is_empty()).then_some(mean), "stdev": deviation,
                "values": runs.iter().map(|run| run[which]).collect::<Vec<_>>()})
        };
        json!({"accuracy": spread(0), "intelligence_per_watt": spread(1), "intelligence_per_joule": spread(2),
            "mean_joules": spread(3)})
    }
}

/// Means over the repeats and runs of each query.
fn units(shots: &[&Shot], items: usize, method: Method) -> Vec<Option<Unit>> {
    let mut by_item: Vec<Vec<&Shot>> = vec![Vec::new(); items];
    for shot in shots {
        by_item[shot.item].push(shot);
    }
    by_item.iter().map(|shots| unit(shots, method)).collect()
}

fn unit(shots: &[&Shot], method: Method) -> Option<Unit> {
    let n = shots.len() as f64;
    let mean = |value: &dyn Fn(&Shot) -> Option<f64>| -> Option<f64> {
        let sum: Option<f64> = shots.iter().map(|shot| value(shot)).sum();
        sum.filter(|_| !shots.is_empty()).map(|sum| sum / n)
    };
    let seconds = |shot: &Shot| Some(shot.reply.as_ref().ok()?.seconds);
    Some(Unit {
        score: mean(&|shot| shot.grade.as_ref()?.score())?,
        joules: mean(&|shot| shot.joules(method).ok()),
        watts: mean(&|shot| {
            let seconds = seconds(shot).filter(|seconds| *seconds > 0.0)?;
            Some(shot.joules(method).ok()? / seconds)
        }),
        seconds: mean(&seconds)?,
        output_tokens: mean(&|shot| Some(shot.reply.as_ref().ok()?.completion_tokens? as f64)),
    })
}

fn because(shots: &[&Shot], counts: Counts, method: Method) -> String {
    if counts.request_failed > 0 {
        return format!("{} of {} requests failed", counts.request_failed, shots.len());
    }
    let first = shots.iter().find_map(|shot| shot.joules(method).err());
    match first {
        Some(reason) => {
            format!("energy of {} of {} answers unknown; the first: {reason}", counts.without_energy, shots.len())
        }
        None => "no query was scored".into(),
    }
}
