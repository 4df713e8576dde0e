//! One row for each answer, in the schema of the reference harness. Every key is always there; unknown is `null`.

use serde_json::{Value, json};

use super::{
    args::Arm,
    data::Item,
    session::Shot,
    wire::{self, Energy, Method},
};
use crate::stats::quantile;

/// Version of `ipw_ext`.
const VERSION: u32 = 1;

/// What all rows of an arm share.
#[derive(Debug)]
pub(super) struct Context<'a> {
    pub(super) arm: &'a Arm,
    pub(super) method: Method,
    pub(super) system_info: Value,
    pub(super) gpu_info: Value,
}

/// The harness knows two bases; ours is in `ipw_ext`.
pub(super) fn harness_basis(basis: &str) -> &'static str {
    match basis {
        "soc" | "cpu" | "gpu+cpu" => "soc",
        _ => "gpu",
    }
}

/// Joules of a query by the harness's rails. Where a rail is the basis, it has the figure that everything else is computed
/// from; other rails have their share.
#[derive(Debug, Default)]
struct Rails {
    gpu: Option<f64>,
    cpu: Option<f64>,
    ane: Option<f64>,
    soc: Option<f64>,
}

impl Rails {
    fn of(energy: &Energy, joules: Option<f64>) -> Self {
        let basis = energy.basis.as_deref().unwrap_or_default();
        let only = |name: &str, share: Option<f64>| if basis == name { joules } else { share };
        Self {
            gpu: only("gpu", energy.sum(wire::is_gpu)),
            cpu: only("cpu", energy.sum(wire::is_cpu)),
            ane: energy.sum(wire::is_ane),
            soc: match harness_basis(basis) {
                "soc" => joules,
                _ => energy.sum(wire::is_exclusive_leaf),
            },
        }
    }
}

fn nothing(keys: &[&str]) -> Value {
    keys.iter().map(|key| ((*key).to_owned(), Value::Null)).collect::<serde_json::Map<_, _>>().into()
}

fn over(dividend: Option<f64>, divisor: Option<f64>) -> Option<f64> {
    dividend.zip(divisor).filter(|(_, divisor)| *divisor > 0.0).map(|(dividend, divisor)| dividend / divisor)
}

/// The row of an answer.
pub(super) fn row(context: &Context<'_>, item: &Item, shot: &Shot) -> Value {
    let model = &context.arm.model;
    let text = shot.reply.as_ref().map(|reply| reply.text.as_str()).unwrap_or_default();
    let mut answers = serde_json::Map::new();
    answers.insert(model.clone(), json!(text));
    let mut metrics = serde_json::Map::new();
    metrics.insert(model.clone(), model_metrics(context, item, shot, text));
    json!({
        "problem": item.problem,
        "answer": item.answer,
        "subject": item.subject,
        "dataset_metadata": {"dataset": item.dataset, "id": item.id, "grader": item.grader.name()},
        "model_answers": answers,
        "model_metrics": metrics,
    })
}

fn model_metrics(context: &Context<'_>, item: &Item, shot: &Shot, text: &str) -> Value {
    let reply = shot.reply.as_ref().ok();
    let energy = shot.energy();
    let known = shot.joules(context.method);
    let joules = known.as_ref().ok().copied();
    let rails = energy.map(|energy| Rails::of(energy, joules)).unwrap_or_default();
    let seconds = reply.map(|reply| reply.seconds);
    let count = |tokens: Option<u64>| tokens.map(|tokens| tokens as f64);
    let input = reply.and_then(|reply| reply.prompt_tokens);
    let output = reply.and_then(|reply| reply.completion_tokens);
    let total = input.zip(output).map(|(input, output)| input + output);
    let basis = energy.and_then(|energy| energy.basis.as_deref());
    let score = shot.grade.as_ref().and_then(super::grade::Grade::score);
    let watts = over(joules, seconds);
    json!({
        "compute_metrics": nothing(&["flops_per_request", "macs_per_request", "total_flops", "flops_per_token"]),
        "energy_metrics": {
            "per_query_joules": rails.gpu, "total_joules": rails.gpu,
            "cpu_per_query_joules": rails.cpu, "cpu_total_joules": rails.cpu,
            "ane_per_query_joules": rails.ane, "ane_total_joules": rails.ane,
            "soc_per_query_joules": rails.soc, "soc_total_joules": rails.soc,
            "judge_gpu_joules": null, "judge_cpu_joules": null,
            "total_task_gpu_joules": null, "total_task_cpu_joules": null,
            "energy_per_output_token_joules": over(joules, count(output)),
            "energy_per_total_token_joules": over(joules, count(total)),
            "basis": basis.map(harness_basis),
        },
        "latency_metrics": latency(shot, seconds, count(output)),
        "memory_metrics": {"cpu_mb": spread(None), "gpu_mb": spread(None)},
        "power_metrics": {
            "gpu": power(over(rails.gpu, seconds)), "cpu": power(over(rails.cpu, seconds)),
            "ane": power(over(rails.ane, seconds)), "soc": power(over(rails.soc, seconds)),
            "basis": basis.map(harness_basis),
        },
        "temperature_metrics": spread(None),
        "token_metrics": {"input": input, "output": output, "total": total},
        "phase_metrics": phases(energy.filter(|_| joules.is_some()), count(input), count(output)),
        "hardware_utilization": {
            "gpu": nothing(&["compute_utilization_pct", "memory_bandwidth_utilization_pct", "tensor_core_utilization_pct",
                "memory_used_gb", "memory_total_gb"]),
            "derived": nothing(&["mfu", "mbu", "arithmetic_intensity"]),
        },
        "efficiency": {
            "throughput_per_watt": over(over(count(output), seconds), watts),
            "flops_per_joule": null, "flops_per_watt": null,
        },
        "cost": nothing(&["input_cost_usd", "output_cost_usd", "tool_cost_usd", "total_cost_usd"]),
        "gpu_info": context.gpu_info,
        "system_info": context.system_info,
        "evaluation": evaluation(item, shot, score),
        "lm_correctness": score.map(|score| score >= 0.5),
        "lm_response": text,
        "ipw_ext": extension(context, shot, known, score),
    })
}

fn latency(shot: &Shot, seconds: Option<f64>, output: Option<f64>) -> Value {
    let reply = shot.reply.as_ref().ok();
    let mut gaps: Vec<f64> = reply.map(|reply| reply.gaps.iter().map(|gap| gap * 1000.0).collect()).unwrap_or_default();
    gaps.sort_by(f64::total_cmp);
    let at = |q: f64| (!gaps.is_empty()).then(|| quantile(&gaps, q));
    let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
    let deviation = (gaps.len() > 1)
        .then(|| (gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / (gaps.len() - 1) as f64).sqrt());
    json!({
        "per_token_ms": over(seconds, output).map(|seconds| seconds * 1000.0),
        "throughput_tokens_per_sec": over(output, seconds),
        "time_to_first_token_seconds": reply.and_then(|reply| reply.ttft),
        "total_query_seconds": seconds,
        "median_itl_ms": at(0.5), "p90_itl_ms": at(0.9), "p95_itl_ms": at(0.95), "p99_itl_ms": at(0.99),
        "itl_std_ms": deviation,
    })
}

fn spread(avg: Option<f64>) -> Value {
    json!({"avg": avg, "max": null, "median": null, "min": null})
}

fn power(watts: Option<f64>) -> Value {
    json!({"per_query_watts": spread(watts), "total_watts": spread(watts)})
}

fn phases(energy: Option<&Energy>, input: Option<f64>, output: Option<f64>) -> Value {
    let prefill = energy.and_then(|energy| energy.prefill_joules);
    let decode = energy.and_then(|energy| energy.decode_joules);
    let prefill_seconds = energy.and_then(|energy| energy.timing.prefill_seconds);
    let decode_seconds = energy.and_then(|energy| energy.timing.decode_seconds);
    // A map from rail to joules would give rows different columns; the rails are in `ipw_ext`.
    json!({
        "prefill_energy_j": prefill, "decode_energy_j": decode,
        "prefill_duration_ms": prefill_seconds.map(|seconds| seconds * 1000.0),
        "decode_duration_ms": decode_seconds.map(|seconds| seconds * 1000.0),
        "prefill_power_avg_w": over(prefill, prefill_seconds), "decode_power_avg_w": over(decode, decode_seconds),
        "prefill_energy_per_input_token_j": over(prefill, input),
        "decode_energy_per_output_token_j": over(decode, output),
        "prefill_energy_components_j": null, "decode_energy_components_j": null,
    })
}

fn evaluation(item: &Item, shot: &Shot, score: Option<f64>) -> Value {
    use super::grade::Grade;
    let error = match (&shot.reply, &shot.grade) {
        (Err(error), _) => Some(format!("request failed: {error}")),
        (_, Some(Grade::Failed(error))) => Some(error.clone()),
        _ => None,
    };
    let metadata = json!({
        "score": score, "grader": item.grader.name(), "unextracted": shot.grade == Some(Grade::Unextracted),
        "evaluation_failed": error.is_some(), "evaluation_attempts": 1, "error": error,
    });
    json!({
        "is_correct": score.map(|score| score >= 0.5),
        "metadata": metadata.to_string(),
        "config": null,
    })
}

fn extension(context: &Context<'_>, shot: &Shot, known: Result<f64, String>, score: Option<f64>) -> Value {
    let reply = shot.reply.as_ref().ok();
    let energy = shot.energy();
    let output = reply.and_then(|reply| reply.completion_tokens);
    // From the first text on, without the tokens of that event, which the client cannot count: the server's time is better.
    let decode = energy.and_then(|energy| energy.timing.decode_seconds);
    json!({
        "version": VERSION,
        "strategy": context.arm.name,
        "request_id": reply.map(|reply| reply.id.as_str()),
        "repeat": shot.repeat, "run": shot.run,
        "basis": energy.and_then(|energy| energy.basis.as_deref()),
        "status": energy.and_then(|energy| energy.status.as_deref()).unwrap_or("unavailable"),
        "reason": known.as_ref().err(),
        "energy_method": context.method.name(),
        "energy_joules": known.ok(),
        "attributed_joules": energy.and_then(|energy| energy.energy_joules),
        "window_joules": energy.and_then(|energy| energy.window_joules),
        "net_joules": energy.and_then(|energy| energy.net_joules),
        "domains": energy.map(|energy| &energy.domains),
        "coverage": energy.and_then(|energy| energy.coverage),
        "resolution_limited": energy.and_then(|energy| energy.resolution_limited),
        "exclusive": energy.and_then(|energy| energy.exclusive),
        "mean_concurrency": energy.and_then(|energy| energy.attribution.mean_concurrency),
        "score": score,
        "finish_reason": reply.and_then(|reply| reply.finish_reason.as_deref()),
        "cached_tokens": reply.and_then(|reply| reply.cached_tokens),
        "decode_tokens_per_second": over(output.map(|tokens| tokens as f64), decode),
        "decoding": reply.and_then(|reply| reply.decoding.as_ref()).map(Value::to_string),
        "server_timing": energy.map(|energy| &energy.timing),
    })
}
