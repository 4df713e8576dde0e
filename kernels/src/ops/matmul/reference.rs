//! The plain matrix product, and the random weights of the device.

use half::{bf16, f16};

use super::{
    launch::spread,
    weight::{DeviceFormat, TILE_OUTPUTS, padded},
};

/// `xs W^T` in f64, `[rows, out_features]`, for `weight` `[out_features, in_features]` and `xs` `[rows, in_features]`.
pub fn matmul(weight: &[f32], xs: &[f32], in_features: usize) -> Vec<f64> {
    let outputs = || weight.chunks_exact(in_features);
    let dot = |x: &[f32], w: &[f32]| x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
    xs.chunks_exact(in_features).flat_map(|x| outputs().map(move |w| dot(x, w))).collect()
}

/// The values of [`DeviceWeight::random`](crate::device::DeviceWeight::random), `[out_features, in_features]`.
pub fn random_weight(format: DeviceFormat, (out_features, in_features): (usize, usize), seed: u32) -> Vec<f32> {
    let (slab_len, width) = (format.slab_len(), padded(in_features));
    let spread = spread(format, in_features);
    let value = |index: usize| {
        let (output, k) = (index / in_features, index % in_features);
        let (slab, quad, in_eight) = (k / slab_len, k / 8 % 4, k % 8);
        let row = (output / TILE_OUTPUTS * (width / slab_len) + slab) * TILE_OUTPUTS + output % TILE_OUTPUTS;
        let piece = (row * 4 + quad) as u64;
        let code_bits = u128::from(mix(2 * piece, seed)) | u128::from(mix(2 * piece + 1, seed)) << 64;
        let Some((record_len, _)) = format.record() else {
            let value = normal(mix(8 * piece + in_eight as u64, seed)) * spread;
            return match format {
                DeviceFormat::BF16 => bf16::from_f32(value).to_f32(),
                _ => f16::from_f32(value).to_f32(),
            };
        };
        let record = (output / TILE_OUTPUTS * (width / record_len) + k / record_len) * TILE_OUTPUTS;
        let record = SCALE_COUNTERS + 2 * (record + output % TILE_OUTPUTS) as u64;
        let (low, high) = (mix(record, seed), mix(record + 1, seed));
        let scale = |bits| f16::from_f32(spread * about_one(bits)).to_f32();
        let (chunk, group) = (k % slab_len / 32, k % record_len / 32);
        if format == DeviceFormat::Q8_0 {
            let code = (code_bits >> (64 * chunk + 8 * in_eight)) as u8 as i8;
            return scale(if chunk == 0 { low } else { high }) * f32::from(code);
        }
        let code = (code_bits >> (32 * chunk + 4 * (in_eight / 2) + 16 * (in_eight % 2))) as u32 & 15;
        let (factors, minima, tops) = ((low >> 32) as u32, high as u32, (high >> 32) as u32);
        let factor = factors >> (4 * group) & 15 | (tops >> (2 * group) & 3) << 4;
        let minimum = minima >> (4 * group) & 15 | (tops >> (2 * group + 16) & 3) << 4;
        let offset = f16::from_f32(7.5 * (spread * about_one(low))).to_f32() * minimum as f32;
        (scale(low) * factor as f32).mul_add(code as f32, -offset)
    };
    (0..out_features * in_features).map(value).collect()
}

/// `kScaleCounters` of `random.cu`, as the functions below.
const SCALE_COUNTERS: u64 = 1 << 48;

fn mix(counter: u64, seed: u32) -> u64 {
    let mut x = counter
        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
        .wrapping_add(u64::from(seed).wrapping_mul(0xd134_2543_de82_ef95))
        .wrapping_add(0x2545_f491_4f6c_dd1d);
    x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ x >> 31
}

fn normal(bits: u64) -> f32 {
    let sum: i32 = (0..4).map(|i| (bits >> (16 * i) & 0xffff) as i32).sum();
    (sum - 131_070) as f32 * 2.6429e-5
}

fn about_one(bits: u64) -> f32 {
    0.5 + (bits & 0xffff) as f32 * (1.0 / 65536.0)
}
