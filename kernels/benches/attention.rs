//! Speed of attention for decoding, blocks and prefill. `cargo bench -p leapfrog-kernels --bench attention`
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout)]

use std::time::{Duration, Instant};

use candle_core::{Device, Tensor};
use kernels::{AttentionPlan, PlanRow, arch::CpuLevel, attention};

const PAGE_LEN: usize = 64;
const HEAD_DIM: usize = 64;

fn main() {
    println!("level {}, {} threads", CpuLevel::current(), rayon::current_num_threads());
    println!("{:>5} {:>7} {:>12} {:>10} {:>8}", "rows", "context", "heads / kv", "us", "GMAC/s");
    for (num_heads, num_kv_heads) in [(9, 3), (32, 8)] {
        for (rows, context) in [(1, 128), (1, 2048), (8, 2048), (16, 2048), (512, 512), (512, 2048)] {
            let num_pages = context / PAGE_LEN;
            let cache = (num_pages, num_kv_heads, PAGE_LEN, HEAD_DIM);
            let keys = Tensor::randn(0f32, 1.0, cache, &Device::Cpu).unwrap();
            let values = Tensor::randn(0f32, 1.0, cache, &Device::Cpu).unwrap();
            let q = Tensor::randn(0f32, 1.0, (rows, num_heads, HEAD_DIM), &Device::Cpu).unwrap();
            let plan_rows: Vec<PlanRow> = (context - rows..context)
                .map(|position| PlanRow { table: 0, position, visible_end: position + 1 })
                .collect();
            let seen: usize = plan_rows.iter().map(|row| row.visible_end).sum();
            let plan = AttentionPlan::new(vec![(0..num_pages as u32).collect()], plan_rows, PAGE_LEN).unwrap();
            let mut best = Duration::MAX;
            for _ in 0..30 {
                let start = Instant::now();
                let out = attention(&q, &keys, &values, &plan, 0.125).unwrap();
                best = best.min(start.elapsed());
                assert!(out.sum_all().unwrap().to_scalar::<f32>().unwrap().is_finite());
            }
            let seconds = best.as_secs_f64();
            println!(
                "{rows:>5} {context:>7} {:>12} {:>10.1} {:>8.1}",
                format!("{num_heads} / {num_kv_heads}"),
                seconds * 1e6,
                (seen * num_heads * HEAD_DIM * 2) as f64 / seconds / 1e9
            );
        }
    }
}
