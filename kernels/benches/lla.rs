//! Speed of local linear attention for prefill and decoding, beside softmax attention on the same data.
//! `cargo bench -p leapfrog-kernels --bench lla`
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout)]

use std::time::{Duration, Instant};

use candle_core::{Device, Tensor};
use kernels::{
    AttentionPlan, LlaPlan, LlaSettings, LlaSolver, PlanRow, Ridge, arch::CpuLevel, attention, lla, rms_norm,
};

const PAGE_LEN: usize = 64;
const HEADS: (usize, usize) = (8, 2);

fn main() {
    println!("level {}, {} threads", CpuLevel::current(), rayon::current_num_threads());
    println!(
        "{:>4} {:>6} {:>8} {:>6} {:>12} {:>8} {:>10} {:>8}",
        "dim", "rows", "context", "ridge", "us", "softmax", "mean steps", "capped"
    );
    for dim in [64, 128] {
        for ridge in [10.0, 1.0, 0.1] {
            for (rows, context) in [(1, 512), (1, 4096), (8, 4096), (512, 512), (1024, 4096)] {
                measure(dim, rows, context, ridge);
            }
        }
    }
}

fn measure(dim: usize, rows: usize, context: usize, ridge: f32) {
    let (num_heads, num_kv_heads) = HEADS;
    let num_pages = context / PAGE_LEN;
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
    let repeats = if rows > 64 { 2 } else { 20 };
    let best = |body: &dyn Fn() -> Tensor| {
        let mut best = Duration::MAX;
        for _ in 0..repeats {
            let start = Instant::now();
            let out = body();
            best = best.min(start.elapsed());
            assert!(out.sum_all().unwrap().to_scalar::<f32>().unwrap().is_finite());
        }
        best.as_secs_f64() * 1e6
    };
    let us = best(&|| lla(&q, (&keys, &values), &plan, &settings).unwrap().output);
    let softmax = best(&|| attention(&q, &keys, &values, &attention_plan, scale).unwrap());
    let report = lla(&q, (&keys, &values), &plan, &settings).unwrap().report;
    let steps: usize = report.iterations.iter().enumerate().map(|(steps, count)| steps * count).sum();
    println!(
        "{dim:>4} {rows:>6} {context:>8} {:>6} {us:>12.0} {:>8.1} {:>10.1} {:>8}",
        ridge[0],
        us / softmax,
        steps as f64 / report.num_queries as f64,
        report.num_capped
    );
}
