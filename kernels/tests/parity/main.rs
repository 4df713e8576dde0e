//! Every op against its reference, on every level of vector instructions that the machine has, and the law that a row
//! does not depend on the rows around it or on the number of threads.
#![allow(clippy::unwrap_used)]

mod attention;
mod elementwise;
mod linear;
mod lla;

use kernels::arch::CpuLevel;

/// Batch sizes around the tiles.
const BATCHES: [usize; 6] = [2, 3, 5, 8, 17, 64];

/// Seeded numbers.
struct Random(u64);

impl Random {
    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.bits() % end as u64) as usize
    }

    /// Roughly normal values with a few large ones, as activations have.
    fn values(&mut self, count: usize) -> Vec<f32> {
        (0..count)
            .map(|_| {
                let sum: f32 = (0..4).map(|_| (self.bits() >> 40) as f32 / (1 << 23) as f32 - 1.0).sum();
                if self.below(50) == 0 { 10.0 * sum } else { sum }
            })
            .collect()
    }
}

/// Runs `body` on every level of the machine, in a pool of `num_threads`.
fn on_every_level<R: Send>(num_threads: usize, body: impl Fn() -> R + Sync) -> Vec<(CpuLevel, R)> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(num_threads).build().unwrap();
    let levels = CpuLevel::available();
    assert_eq!(levels[0], CpuLevel::Portable);
    pool.install(|| levels.into_iter().map(|level| (level, level.scope(&body).unwrap())).collect())
}

/// Bits, so that NaN equals itself and -0 differs from 0.
fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// Refuses values that differ from the expected ones by more than `relative` of them plus `absolute`.
#[track_caller]
fn assert_close(got: &[f32], expected: &[f32], (relative, absolute): (f32, f32), what: &str) {
    assert_eq!(got.len(), expected.len(), "{what}: lengths");
    for (at, (&got, &expected)) in got.iter().zip(expected).enumerate() {
        let error = (got - expected).abs();
        // Negated, so that NaN fails.
        assert!(
            !(error.is_nan() || error > relative * expected.abs() + absolute),
            "{what}[{at}]: {got} for {expected}"
        );
    }
}
