//! Speed of the linear layer: formats, activation widths, rows and shapes. `cargo bench -p leapfrog-kernels --bench
//! linear [filter]`, where the filter is a format such as `q8_0`.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout)]

use std::time::{Duration, Instant};

use kernels::{ActivationBits, GgmlType, PackedLinear, arch::CpuLevel, reference};

/// Outputs and inputs: the matrices of a model of 135 million parameters.
const SHAPES: [(usize, usize); 4] = [(960, 576), (3072, 576), (576, 1536), (49152, 576)];
const ROWS: [usize; 7] = [1, 2, 4, 8, 16, 64, 512];
const FORMATS: [GgmlType; 5] = [GgmlType::F32, GgmlType::Q8_0, GgmlType::Q4_0, GgmlType::Q4_K, GgmlType::Q6_K];

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn value(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }
}

/// Random codes under scales near 0.01, `in_features` rounded down to whole blocks.
fn weight(ty: GgmlType, out_features: usize, in_features: usize, random: &mut Random) -> (PackedLinear, usize) {
    let in_features = in_features / ty.block_len() * ty.block_len();
    let mut bytes: Vec<u8> =
        (0..out_features * in_features / ty.block_len() * ty.block_bytes()).map(|_| random.next() as u8).collect();
    for block in bytes.chunks_exact_mut(ty.block_bytes()) {
        match ty {
            GgmlType::F32 => block.copy_from_slice(&random.value().to_le_bytes()),
            GgmlType::Q6_K => block[208..].copy_from_slice(&[0x1f, 0x21]),
            _ => block[..2].copy_from_slice(&[0x1f, 0x21]),
        }
        if ty == GgmlType::Q4_K {
            block[2..4].copy_from_slice(&[0x1f, 0x21]);
        }
    }
    (PackedLinear::from_ggml(ty, &bytes, out_features, in_features).unwrap(), in_features)
}

fn best(mut body: impl FnMut()) -> Duration {
    body();
    let start = Instant::now();
    let mut best = Duration::MAX;
    let mut runs = 0;
    while runs < 3 || (start.elapsed() < Duration::from_millis(150) && runs < 200) {
        let start = Instant::now();
        body();
        best = best.min(start.elapsed());
        runs += 1;
    }
    best
}

fn main() {
    let filter = std::env::args().skip(1).find(|arg| !arg.starts_with('-'));
    println!("level {}, {} threads", CpuLevel::current(), rayon::current_num_threads());
    println!(
        "{:>6} {:>6} {:>13} {:>5} {:>10} {:>8} {:>7}",
        "format", "bits", "out x in", "rows", "us", "GMAC/s", "GB/s"
    );
    let mut random = Random(1);
    for ty in FORMATS {
        for (out_features, in_features) in SHAPES {
            let (linear, in_features) = weight(ty, out_features, in_features, &mut random);
            if filter.as_ref().is_some_and(|filter| *filter != linear.format().to_string()) {
                continue;
            }
            let all_bits = [ActivationBits::Int8, ActivationBits::Int16];
            for bits in if ty == GgmlType::F32 { &all_bits[1..] } else { &all_bits } {
                let linear = linear.clone().with_activations(*bits);
                for rows in ROWS {
                    let xs: Vec<f32> = (0..rows * in_features).map(|_| random.value()).collect();
                    let mut ys = vec![0.0; rows * out_features];
                    let time = best(|| linear.forward(&xs, rows, &mut ys).unwrap());
                    let mut row = vec![0.0; in_features];
                    linear.row(out_features - 1, &mut row).unwrap();
                    let expected = reference::linear(&xs[..in_features], &row, in_features)[0];
                    assert!((f64::from(ys[out_features - 1]) - expected).abs() < 0.2, "{expected}");
                    let seconds = time.as_secs_f64();
                    println!(
                        "{:>6} {:>6} {:>13} {rows:>5} {:>10.1} {:>8.1} {:>7.2}",
                        linear.format(),
                        if ty == GgmlType::F32 { "-".into() } else { format!("{bits:?}") },
                        format!("{out_features} x {in_features}"),
                        seconds * 1e6,
                        (rows * out_features * in_features) as f64 / seconds / 1e9,
                        linear.weight_bytes() as f64 / seconds / 1e9,
                    );
                }
            }
        }
    }
}
