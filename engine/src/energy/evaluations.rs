//! Intelligence per watt and per joule: judgements of answers, joined with what the answers cost.

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};

use super::{
    monitor::{Evaluation, EvaluationError},
    report::{RequestEnergy, Ticket},
    types::Basis,
};

/// Most names of data sets: each makes series of metrics.
const MAX_DATASETS: usize = 32;
/// Requests that are remembered as judged, and judgements that wait for their energy.
const CAPACITY: usize = 1 << 16;

/// Judgements of a model on a data set.
#[derive(Debug, Clone, Default)]
pub(crate) struct Verdicts {
    pub(crate) correct: u64,
    pub(crate) incorrect: u64,
    pub(crate) unscored: u64,
    /// Sum of all scores.
    scores: f64,
    /// Those whose requests have energy, by what it covers.
    pub(crate) costed: BTreeMap<Basis, Costed>,
}

/// Judged answers with energy.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Costed {
    pub(crate) count: u64,
    scores: f64,
    pub(crate) joules: f64,
    /// Sum of each request's own mean power.
    pub(crate) watts: f64,
}

impl Verdicts {
    /// Mean score; `None` before the first.
    pub(crate) fn accuracy(&self) -> Option<f64> {
        let scored = self.correct + self.incorrect;
        (scored > 0).then(|| self.scores / scored as f64)
    }
}

impl Costed {
    /// Mean score over mean power, in 1/W: a ratio of means over the same requests.
    pub(crate) fn per_watt(&self) -> Option<f64> {
        (self.watts > 0.0).then(|| self.scores / self.watts)
    }

    /// Mean score over mean energy, in 1/J.
    pub(crate) fn per_joule(&self) -> Option<f64> {
        (self.joules > 0.0).then(|| self.scores / self.joules)
    }
}

#[derive(Debug)]
struct Pending {
    key: (String, String),
    score: f64,
    tickets: Vec<Ticket>,
}

/// All judgements.
#[derive(Debug, Default)]
pub(crate) struct Evaluations {
    /// By model and data set.
    pub(crate) verdicts: BTreeMap<(String, String), Verdicts>,
    datasets: BTreeSet<String>,
    judged: HashSet<String>,
    /// The same in order of arrival.
    order: VecDeque<String>,
    /// Those whose energy is not final.
    pending: Vec<Pending>,
}

impl Evaluations {
    /// Counts a judgement. `energy` says what a request has used.
    pub(crate) fn add(
        &mut self,
        evaluation: &Evaluation<'_>,
        energy: impl Fn(&[Ticket]) -> Option<RequestEnergy>,
    ) -> Result<(), EvaluationError> {
        let Evaluation { request_id, tickets, model, dataset, score } = *evaluation;
        if let Some(score) = score.filter(|score| !(0.0..=1.0).contains(score)) {
            return Err(EvaluationError::Score(score));
        }
        if self.judged.contains(request_id) {
            return Ok(());
        }
        if !self.datasets.contains(dataset) && self.datasets.len() >= MAX_DATASETS {
            return Err(EvaluationError::TooManyDatasets { limit: MAX_DATASETS, dataset: dataset.to_owned() });
        }
        self.datasets.insert(dataset.to_owned());
        if self.order.len() >= CAPACITY
            && let Some(oldest) = self.order.pop_front()
        {
            self.judged.remove(&oldest);
        }
        self.judged.insert(request_id.to_owned());
        self.order.push_back(request_id.to_owned());
        let key = (model.to_owned(), dataset.to_owned());
        let verdicts = self.verdicts.entry(key.clone()).or_default();
        let Some(score) = score else {
            verdicts.unscored += 1;
            return Ok(());
        };
        if score >= 0.5 {
            verdicts.correct += 1;
        } else {
            verdicts.incorrect += 1;
        }
        verdicts.scores += score;
        if self.pending.len() < CAPACITY {
            self.pending.push(Pending { key, score, tickets: tickets.to_vec() });
        }
        self.settle(energy);
        Ok(())
    }

    /// Joins the judgements with the energies that have become final.
    pub(crate) fn settle(&mut self, energy: impl Fn(&[Ticket]) -> Option<RequestEnergy>) {
        let verdicts = &mut self.verdicts;
        self.pending.retain(|Pending { key, score, tickets }| {
            let Some(energy) = energy(tickets) else { return false };
            if !energy.is_final {
                return true;
            }
            if let (Some(energy_uj), Some(verdicts)) = (energy.energy_uj, verdicts.get_mut(key))
                && !energy.active.is_zero()
            {
                let joules = energy_uj as f64 / 1e6;
                let costed = verdicts.costed.entry(energy.basis).or_default();
                costed.count += 1;
                costed.scores += score;
                costed.joules += joules;
                costed.watts += joules / energy.active.as_secs_f64();
            }
            false
        });
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::energy::report::Status;

    fn energy(joules: u64, seconds: u64, is_final: bool) -> RequestEnergy {
        RequestEnergy {
            status: Status::Measured,
            is_final,
            basis: Basis::Cpu,
            energy_uj: Some(joules * 1_000_000),
            prefill_uj: None,
            decode_uj: None,
            net_joules: None,
            window_joules: None,
            idle_watts: None,
            domains: Vec::new(),
            policy: "tokens",
            mean_concurrency: None,
            max_concurrency: 1,
            coverage: Some(1.0),
            resolution_limited: false,
            exclusive: None,
            active: Duration::from_secs(seconds),
        }
    }

    /// Powers of 10, 20 and 30 W over 2, 1 and 4 s.
    fn measured(tickets: &[Ticket]) -> Option<RequestEnergy> {
        let (joules, seconds) = [(20, 2), (20, 1), (120, 4)][usize::try_from(tickets[0].0).ok()?];
        Some(energy(joules, seconds, true))
    }

    fn judge<'a>(request_id: &'a str, tickets: &'a [Ticket], dataset: &'a str, score: Option<f64>) -> Evaluation<'a> {
        Evaluation { request_id, tickets, model: "m", dataset, score }
    }

    #[test]
    fn the_ratios_are_those_of_means() {
        let mut evaluations = Evaluations::default();
        for (index, score) in [1.0, 0.0, 1.0].into_iter().enumerate() {
            let (id, tickets) = (format!("r{index}"), [Ticket(index as u64)]);
            for _ in 0..2 {
                evaluations.add(&judge(&id, &tickets, "d", Some(score)), measured).unwrap();
            }
        }
        evaluations.add(&judge("r9", &[Ticket(0)], "d", None), measured).unwrap();
        let verdicts = &evaluations.verdicts[&("m".to_owned(), "d".to_owned())];
        assert_eq!((verdicts.correct, verdicts.incorrect, verdicts.unscored), (2, 1, 1));
        assert!((verdicts.accuracy().unwrap() - 2.0 / 3.0).abs() < 1e-12);
        let costed = verdicts.costed[&Basis::Cpu];
        assert_eq!((costed.count, costed.joules, costed.watts), (3, 160.0, 60.0));
        assert!((costed.per_watt().unwrap() - 2.0 / 3.0 / 20.0).abs() < 1e-9);
        assert!((costed.per_joule().unwrap() - 0.0125).abs() < 1e-9);
    }

    #[test]
    fn energy_is_joined_when_it_is_final() {
        let mut evaluations = Evaluations::default();
        evaluations.add(&judge("r", &[Ticket(0)], "d", Some(1.0)), |_| Some(energy(5, 1, false))).unwrap();
        let costed = |evaluations: &Evaluations| evaluations.verdicts[&("m".to_owned(), "d".to_owned())].costed.clone();
        assert!(costed(&evaluations).is_empty());
        evaluations.settle(|_| Some(energy(7, 1, true)));
        evaluations.settle(|_| Some(energy(7, 1, true)));
        assert_eq!(costed(&evaluations)[&Basis::Cpu].joules, 7.0);
    }

    #[test]
    fn scores_and_data_sets_have_limits() {
        let mut evaluations = Evaluations::default();
        for bad in [-0.1, 1.1, f64::NAN] {
            let refused = evaluations.add(&judge("r", &[], "d", Some(bad)), |_| None);
            assert!(matches!(refused, Err(EvaluationError::Score(_))));
        }
        for index in 0..MAX_DATASETS {
            let (id, dataset) = (format!("r{index}"), format!("d{index}"));
            evaluations.add(&judge(&id, &[], &dataset, Some(1.0)), |_| None).unwrap();
        }
        let refused = evaluations.add(&judge("x", &[], "one more", Some(1.0)), |_| None);
        assert!(matches!(refused, Err(EvaluationError::TooManyDatasets { limit: MAX_DATASETS, .. })));
        evaluations.add(&judge("x", &[], "d0", Some(1.0)), |_| None).unwrap();
    }
}
