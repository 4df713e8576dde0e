//! `summary.json` and the analyses, of one arm.

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use super::{
    data::Set,
    measure::{Fit, fit},
    outcome::Outcome,
    record::harness_basis,
    session::{Rest, Session, Shot},
    wire::Method,
};
use crate::stats::{Estimate, quantile};

/// What all summaries share.
#[derive(Debug)]
pub(super) struct Frame<'a> {
    pub(super) session: &'a Session<'a>,
    pub(super) sets: &'a [Set],
    pub(super) rest: &'a Rest,
    pub(super) method: Method,
    pub(super) basis: Option<String>,
    pub(super) label: String,
    pub(super) system_info: Value,
    pub(super) gpu_info: Value,
    pub(super) environment: Value,
    pub(super) warnings: &'a [String],
}

fn interval(estimate: Option<Estimate>) -> Option<[f64; 2]> {
    estimate.map(|estimate| [estimate.low, estimate.high])
}

impl Frame<'_> {
    /// `summary.json` of arm `index`.
    pub(super) fn summary(&self, index: usize, outcome: &Outcome<'_>) -> Value {
        let session = self.session;
        let args = session.args;
        let arm = &session.arms[index];
        let dataset = self.sets.iter().map(|set| set.name.as_str()).collect::<Vec<_>>().join("+");
        let titles = self.sets.iter().map(|set| set.title.as_str()).collect::<Vec<_>>().join("; ");
        let queries: usize = self.sets.iter().map(|set| set.items.len()).sum();
        let ids: Vec<&str> = self.sets.iter().flat_map(|set| &set.items).map(|item| item.id.as_str()).collect();
        let counts = outcome.counts;
        let figures = outcome.efficiency;
        let hashes: serde_json::Map<String, Value> =
            self.sets.iter().map(|set| (set.name.clone(), json!(set.sha256))).collect();
        json!({
            "schema": "ipw-report/1", "model": arm.model, "strategy": arm.name, "decoding": arm.decoding,
            "dataset": dataset, "dataset_name": titles, "hardware_label": self.label,
            "generated_at": SystemTime::now().duration_since(UNIX_EPOCH).ok().map(|age| age.as_secs_f64()),
            "total_queries": queries, "system_info": self.system_info, "gpu_info": self.gpu_info,
            "output_dir": args.output.join(&arm.slug),
            "profiler_config": {
                "dataset_id": dataset, "dataset_params": {"seed": args.seed, "limit": args.limit, "sha256": hashes},
                "client_id": "openai-server", "client_base_url": session.client.api(), "model": arm.model,
                "max_queries": queries,
            },
            "query_ids": ids, "environment": self.environment, "sampling": session.sampling(),
            "preset": args.preset.name(), "concurrency": args.concurrency, "repeats": session.repeats, "runs": args.runs,
            "incomplete": counts.incomplete(),
            "accuracy": {
                "value": outcome.accuracy.map(|estimate| estimate.value), "ci95": interval(outcome.accuracy),
                "n": outcome.scored().len(), "correct": counts.correct, "incorrect": counts.incorrect,
                "unextracted": counts.unextracted, "grader_failed": counts.grader_failed,
                "request_failed": counts.request_failed, "cut_by_max_tokens": counts.cut,
            },
            "energy": self.energy(outcome),
            "efficiency": {
                "intelligence_per_watt": figures.and_then(|figures| figures.intelligence_per_watt),
                "ipw_ci95": interval(outcome.ipw),
                "intelligence_per_joule": figures.and_then(|figures| figures.intelligence_per_joule),
                "ipj_ci95": interval(outcome.ipj),
                "perplexity_per_watt": null, "perplexity_per_joule": null,
                "joules_per_output_token": figures.and_then(|figures| figures.joules_per_output_token),
                "tokens_per_joule": figures.and_then(|figures| figures.tokens_per_joule),
                "reason": outcome.reason, "subset_with_energy": outcome.subset,
            },
            "latency": {
                "ttft_seconds": outcome.percentiles(|shot| reply(shot, |reply| reply.ttft.into_iter().collect())),
                "itl_seconds": outcome.percentiles(|shot| reply(shot, |reply| reply.gaps.clone())),
                "request_seconds": outcome.percentiles(|shot| reply(shot, |reply| vec![reply.seconds])),
            },
            "throughput": {
                "output_tokens_per_second":
                    outcome.tokens_per_second(|shot| Some(shot.reply.as_ref().ok()?.seconds)),
                "decode_tokens_per_second": outcome.tokens_per_second(|shot| shot.energy()?.timing.decode_seconds),
            },
            "by_run": outcome.by_run(args.runs, self.method),
            "warnings": self.warnings,
        })
    }

    fn energy(&self, outcome: &Outcome<'_>) -> Value {
        let figures = outcome.efficiency;
        let mut joules: Vec<f64> = outcome.scored().iter().filter_map(|unit| unit.joules).collect();
        joules.sort_by(f64::total_cmp);
        let known = joules.len();
        let at = |q: f64| figures.map(|_| quantile(&joules, q));
        let energies = || outcome.shots.iter().filter_map(|shot| shot.energy());
        let net: Option<f64> = energies().map(|energy| energy.net_joules).sum();
        let answers = energies().count();
        let coverage = energies()
            .filter_map(|energy| energy.coverage)
            .fold(None, |least: Option<f64>, coverage| Some(least.map_or(coverage, |least| least.min(coverage))));
        let exclusive: Option<Vec<bool>> = energies().map(|energy| energy.exclusive).collect();
        let shots_joules: Option<f64> = outcome.shots.iter().map(|shot| shot.joules(self.method).ok()).sum();
        let status = match (figures, known) {
            (Some(_), _) => "measured",
            (None, 0) => "unavailable",
            (None, _) => "partial",
        };
        json!({
            "status": status, "reason": outcome.reason, "basis": self.basis, "method": self.method.name(), "n": known,
            "missing": outcome.counts.without_energy, "total_joules": figures.and(shots_joules),
            "mean_joules": figures.map(|figures| figures.mean_joules), "median_joules": at(0.5), "p95_joules": at(0.95),
            "mean_watts": figures.map(|figures| figures.mean_watts),
            "time_weighted_watts": figures.map(|figures| figures.time_weighted_watts),
            "idle_watts": self.rest.idle_watts,
            "net_mean_joules": figures.and(net).map(|net| net / answers as f64),
            "exclusive": exclusive.filter(|all| !all.is_empty()).map(|all| all.into_iter().all(|alone| alone)),
            "coverage_min": coverage, "resolution_limited": outcome.counts.resolution_limited,
            "warmup_watts": self.rest.warmup_watts, "active_share": outcome.active_share(),
        })
    }

    /// `analysis/accuracy.json`, in the words of the harness.
    pub(super) fn accuracy(&self, index: usize, outcome: &Outcome<'_>) -> Value {
        let counts = outcome.counts;
        let scored = counts.correct + counts.incorrect;
        let figures = outcome.efficiency;
        let known = outcome.shots.iter().filter(|shot| shot.joules(self.method).is_ok()).count();
        json!({
            "analysis": "accuracy",
            "summary": {
                "model": self.session.arms[index].model,
                "correct": counts.correct, "incorrect": counts.incorrect,
                "unevaluated": counts.request_failed + counts.grader_failed,
                "failed": counts.request_failed + counts.grader_failed, "total_scored": scored,
                "accuracy": outcome.accuracy.map(|estimate| estimate.value),
                "intelligence_per_joule": figures.and_then(|figures| figures.intelligence_per_joule),
                "intelligence_per_watt": figures.and_then(|figures| figures.intelligence_per_watt),
                "avg_per_query_energy_joules": figures.map(|figures| figures.mean_joules),
                "avg_per_query_power_watts": figures.map(|figures| figures.mean_watts),
                "energy_sample_count": known, "power_sample_count": known,
                "energy_basis": self.basis.as_deref().map(harness_basis),
            },
            "warnings": self.warnings,
            "data": {"basis": self.basis, "method": self.method.name(), "reason": outcome.reason},
        })
    }

    /// `analysis/regression.json`: lines through all answers.
    pub(super) fn regression(&self, index: usize, outcome: &Outcome<'_>) -> Value {
        let joules = |shot: &Shot| shot.joules(self.method).ok();
        let seconds = |shot: &Shot| Some(shot.reply.as_ref().ok()?.seconds);
        let watts = |shot: &Shot| Some(joules(shot)? / seconds(shot).filter(|seconds| *seconds > 0.0)?);
        let input = |shot: &Shot| Some(shot.reply.as_ref().ok()?.prompt_tokens? as f64);
        let output = |shot: &Shot| Some(shot.reply.as_ref().ok()?.completion_tokens? as f64);
        let total = |shot: &Shot| Some(input(shot)? + output(shot)?);
        let line = |x: &dyn Fn(&Shot) -> Option<f64>, y: &dyn Fn(&Shot) -> Option<f64>| -> Fit {
            let points: Vec<(f64, f64)> = outcome.shots.iter().filter_map(|shot| Some((x(shot)?, y(shot)?))).collect();
            fit(&points)
        };
        let log = |shot: &Shot| total(shot).filter(|total| *total > 0.0).map(f64::ln);
        json!({
            "analysis": "regression",
            "summary": {"model": self.session.arms[index].model, "total_samples": outcome.shots.len()},
            "warnings": [],
            "data": {"regressions": {
                "input_tokens_vs_ttft": line(&input, &|shot| shot.reply.as_ref().ok()?.ttft),
                "total_tokens_vs_energy": line(&total, &joules),
                "total_tokens_vs_latency": line(&total, &seconds),
                "total_tokens_vs_power": line(&total, &watts),
                "total_tokens_vs_power_log": line(&log, &watts),
                "output_tokens_vs_energy": line(&output, &joules),
            }},
        })
    }
}

fn reply(shot: &Shot, values: impl Fn(&super::client::Reply) -> Vec<f64>) -> Vec<f64> {
    shot.reply.as_ref().map(values).unwrap_or_default()
}
