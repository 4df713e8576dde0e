//! Distributions over requests, for `/metrics`.

use std::collections::BTreeMap;

use prometheus_client::metrics::histogram::Histogram;

use super::{
    report::{RequestEnergy, Status},
    types::Basis,
};

/// Model and basis.
pub(crate) type Key = (String, Basis);

/// Histograms of one quantity.
#[derive(Debug)]
pub(crate) struct Distribution {
    bounds: Vec<f64>,
    pub(crate) histograms: BTreeMap<Key, Histogram>,
}

impl Distribution {
    fn new(bounds: Vec<f64>) -> Self {
        Self { bounds, histograms: BTreeMap::new() }
    }

    fn observe(&mut self, key: &Key, value: f64) {
        let make = || Histogram::new(self.bounds.iter().copied());
        self.histograms.entry(key.clone()).or_insert_with(make).observe(value);
    }
}

/// What is counted when the figures of a request are final.
#[derive(Debug)]
pub(crate) struct Counts {
    /// Requests by model and status.
    pub(crate) requests: BTreeMap<(String, &'static str), u64>,
    pub(crate) joules: Distribution,
    pub(crate) watts: Distribution,
    pub(crate) joules_per_output_token: Distribution,
    pub(crate) joules_per_prompt_token: Distribution,
}

const WATTS: [f64; 17] =
    [1.0, 2.0, 5.0, 10.0, 15.0, 20.0, 30.0, 50.0, 75.0, 100.0, 150.0, 200.0, 300.0, 500.0, 700.0, 1000.0, 2000.0];

/// 1, 2 and 5 times the powers of ten from `10^first` on, up to `last`.
fn one_two_five(first: i32, last: f64) -> Vec<f64> {
    let decade = |power: i32| [1u32, 2, 5].map(|digit| format!("{digit}e{power}").parse().unwrap_or(f64::MAX));
    (first..20).flat_map(decade).take_while(|bound: &f64| *bound <= last).collect()
}

impl Counts {
    pub(crate) fn new() -> Self {
        Self {
            requests: BTreeMap::new(),
            joules: Distribution::new(one_two_five(-1, 50_000.0)),
            watts: Distribution::new(WATTS.to_vec()),
            joules_per_output_token: Distribution::new(one_two_five(-3, 100.0)),
            joules_per_prompt_token: Distribution::new(one_two_five(-3, 100.0)),
        }
    }

    /// A request is final. Requests without a number are counted and are in no distribution.
    pub(crate) fn observe(&mut self, model: &str, energy: &RequestEnergy, prompt_tokens: u64, completion_tokens: u64) {
        let status = match energy.status {
            Status::Measured => "measured",
            Status::Partial => "partial",
            Status::Unavailable(_) => "unavailable",
        };
        *self.requests.entry((model.to_owned(), status)).or_default() += 1;
        let Some(energy_uj) = energy.energy_uj else { return };
        let (key, joules) = ((model.to_owned(), energy.basis), energy_uj as f64 / 1e6);
        self.joules.observe(&key, joules);
        if !energy.active.is_zero() {
            self.watts.observe(&key, joules / energy.active.as_secs_f64());
        }
        if completion_tokens > 0 {
            self.joules_per_output_token.observe(&key, joules / completion_tokens as f64);
        }
        if let Some(prefill_uj) = energy.prefill_uj
            && prompt_tokens > 0
        {
            self.joules_per_prompt_token.observe(&key, prefill_uj as f64 / 1e6 / prompt_tokens as f64);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_round_numbers() {
        let bounds = one_two_five(-1, 50_000.0);
        assert_eq!(bounds[..5], [0.1, 0.2, 0.5, 1.0, 2.0]);
        assert_eq!((bounds.len(), bounds[bounds.len() - 1]), (18, 50_000.0));
        let bounds = one_two_five(-3, 100.0);
        assert_eq!((bounds[0], bounds[bounds.len() - 1]), (0.001, 100.0));
    }
}
