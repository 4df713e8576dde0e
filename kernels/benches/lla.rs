//! Speed of local linear attention for prefill and decoding, beside softmax attention on the same data. Operations are
//! counted against the processor time of all threads, which other processes disturb less than the time on the clock.
//! `cargo bench -p leapfrog-kernels --bench lla [-- HEADS,KV_HEADS,DIM,ROWS,CONTEXT,RIDGE,REPEATS ..]`
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout)]

use std::time::{Duration, Instant};

use candle_core::{Device, Tensor};
use kernels::{
    AttentionPlan, LlaPlan, LlaSettings, LlaSolver, PlanRow, Ridge, arch::CpuLevel, attention, lla, rms_norm,
};

const PAGE_LEN: usize = 64;

/// What to measure.
#[derive(Debug, Clone, Copy)]
struct Case {
    num_heads: usize,
    num_kv_heads: usize,
    dim: usize,
    rows: usize,
    context: usize,
    ridge: f32,
    repeats: usize,
}

fn main() {
    let given: Vec<Case> = std::env::args().skip(1).filter(|arg| arg.contains(',')).map(|arg| parse(&arg)).collect();
    println!("level {}, {} threads", CpuLevel::current(), rayon::current_num_threads());
    println!(
        "{:>5} {:>4} {:>6} {:>8} {:>6} {:>12} {:>9} {:>8} {:>10} {:>8}",
        "heads", "dim", "rows", "context", "ridge", "us", "GFLOP/s*", "softmax", "mean steps", "capped"
    );
    if !given.is_empty() {
        given.into_iter().for_each(measure);
        return;
    }
    // The shape of the built-in models.
    for (rows, context) in [(1, 64), (1, 300), (4, 300), (16, 300)] {
        measure(Case { num_heads: 6, num_kv_heads: 2, dim: 32, rows, context, ridge: 1.0, repeats: 200 });
    }
    for dim in [64, 128] {
        for ridge in [10.0, 1.0, 0.1] {
            for (rows, context) in [(1, 512), (1, 4096), (8, 4096), (512, 512), (1024, 4096)] {
                let repeats = if rows > 64 { 2 } else { 20 };
                measure(Case { num_heads: 8, num_kv_heads: 2, dim, rows, context, ridge, repeats });
            }
        }
    }
}

fn parse(arg: &str) -> Case {
    let fields: Vec<&str> = arg.split(',').collect();
    let [num_heads, num_kv_heads, dim, rows, context, ridge, repeats] = fields[..] else { panic!("seven fields") };
    let count = |field: &str| field.parse().unwrap();
    Case {
        num_heads: count(num_heads),
        num_kv_heads: count(num_kv_heads),
        dim: count(dim),
        rows: count(rows),
        context: count(context),
        ridge: ridge.parse().unwrap(),
        repeats: count(repeats),
    }
}

fn measure(Case { num_heads, num_kv_heads, dim, rows, context, ridge, repeats }: Case) {
    let num_pages = context.div_ceil(PAGE_LEN);
    let normal = |shape: &[usize]| Tensor::randn(0f32, 1.0, shape, &Device::Cpu).unwrap();
    let ones = Tensor::ones(dim, candle_core::DType::F32, &Device::Cpu).unwrap();
    let cache = [num_pages, num_kv_heads, PAGE_LEN, dim];
    let q = rms_norm(&normal(&[rows, num_heads, dim]), &ones, 0.0).unwrap();
    let keys = rms_norm(&normal(&cache), &ones, 0.0).unwrap();
    let values = normal(&cache);
    let plan_rows: Vec<PlanRow> =
        (context - rows..context).map(|position| PlanRow { table: 0, position, visible_end: position + 1 }).collect();
    let attention_plan = AttentionPlan::new(vec![(0..num_pages as u32).collect()], plan_rows, PAGE_LEN).unwrap();
    let plan = LlaPlan::from_attention(&attention_plan, None);
    let ridge = vec![ridge; num_heads];
    let scale = (dim as f32).sqrt().recip();
    let settings = LlaSettings { scale, ridge: Ridge::PerHead(&ridge), solver: LlaSolver::default(), details: false };
    let best = |body: &dyn Fn() -> Tensor| {
        let (mut best, processor) = (Duration::MAX, processor_seconds());
        for _ in 0..repeats {
            let start = Instant::now();
            let out = body();
            best = best.min(start.elapsed());
            assert!(out.sum_all().unwrap().to_scalar::<f32>().unwrap().is_finite());
        }
        (best.as_secs_f64() * 1e6, (processor_seconds() - processor) / repeats as f64)
    };
    let (us, processor) = best(&|| lla(&q, (&keys, &values), &plan, &settings).unwrap().output);
    let (softmax, _) = best(&|| attention(&q, &keys, &values, &attention_plan, scale).unwrap());
    let report = lla(&q, (&keys, &values), &plan, &settings).unwrap().report;
    let steps: usize = report.iterations.iter().enumerate().map(|(steps, count)| steps * count).sum();
    let mean_steps = steps as f64 / report.num_queries as f64;
    // Scores, weighted keys and values, two products a step, and two of the last pass.
    let products = (rows * num_heads) as f64 * (context as f64 - (rows as f64 - 1.0) / 2.0) * (5.0 + 2.0 * mean_steps);
    println!(
        "{num_heads:>5} {dim:>4} {rows:>6} {context:>8} {:>6} {us:>12.0} {:>9.1} {:>8.1} {mean_steps:>10.1} {:>8}",
        ridge[0],
        2e-9 * products * dim as f64 / processor,
        us / softmax,
        report.num_capped
    );
}

/// Processor time of the threads of this process, where the system says so.
fn processor_seconds() -> f64 {
    let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let of_task = |task: std::fs::DirEntry| {
        let text = std::fs::read_to_string(task.path().join("schedstat")).ok()?;
        text.split_whitespace().next()?.parse::<f64>().ok()
    };
    tasks.filter_map(of_task).sum::<f64>() / 1e9
}
