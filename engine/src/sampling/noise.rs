//! Counter-based Gumbel noise.
//!
//! The noise of a token is a function of `(seed, choice, index, token)` alone, so the sampled text depends on the
//! prefix and the seed only: not on the width of a block, not on the neighbours in a batch. The hash is part of the API:
//! a seed must give the same text in every release, which the golden values below pin down.

use models::TokenId;

/// Weyl increment of splitmix64 (Steele, Lea, Flood 2014), the golden ratio in 64 bits.
const WEYL: u64 = 0x9e37_79b9_7f4a_7c15;

/// One step of splitmix64: a bijection of 64 bits with full avalanche.
pub(crate) fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(WEYL);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The noise of one slot: the key shared by all its tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlotNoise(u64);

impl SlotNoise {
    /// Noise of completion index `index` (0-based) of choice `choice`.
    pub fn new(seed: u64, choice: u32, index: u64) -> Self {
        Self(mix(mix(mix(seed) ^ u64::from(choice)) ^ index))
    }

    /// The same slot in a later pass: a masked slot is proposed anew in every denoising step. Step 0 is the slot itself.
    pub fn at_step(self, step: u64) -> Self {
        if step == 0 { self } else { Self(mix(self.0 ^ mix(step))) }
    }

    /// The key, for where the noise is made elsewhere.
    pub(crate) fn key(self) -> u64 {
        self.0
    }

    /// A uniform variate in (0, 1) for `item`.
    pub fn uniform(self, item: u64) -> f64 {
        uniform_of(mix(self.0 ^ item))
    }

    fn hash(self, token: TokenId) -> u64 {
        mix(self.0 ^ u64::from(token.0))
    }

    /// Standard Gumbel variate `-ln(-ln u)` with `u` uniform on the centres of 2^52 cells of (0, 1).
    pub fn gumbel(self, token: TokenId) -> f64 {
        gumbel_of(self.hash(token))
    }

    /// Index into `candidates` of the largest `logit / temperature + gumbel`; the lowest token id wins a tie.
    ///
    /// `candidates` yields `(token, logit)` with the logit already divided by the temperature; `likeliest` is one of
    /// them with the largest logit. Exact: a candidate is skipped only when an upper bound of its noise cannot reach
    /// the best score so far, which spares two logarithms for nearly every token of a large vocabulary.
    pub(crate) fn argmax(self, likeliest: (TokenId, f64), candidates: impl Iterator<Item = (TokenId, f64)>) -> TokenId {
        let (mut best_token, mut best) = (likeliest.0, likeliest.1 + self.gumbel(likeliest.0));
        for (token, logit) in candidates {
            let hash = self.hash(token);
            // With z leading ones in the hash, 1 - u > 2^-(z+1), so gumbel < (z+1) ln 2.
            let bound = f64::from(hash.leading_ones() + 1) * std::f64::consts::LN_2;
            if logit + bound < best {
                continue;
            }
            let score = logit + gumbel_of(hash);
            if score > best || (score == best && token < best_token) {
                (best_token, best) = (token, score);
            }
        }
        best_token
    }
}

fn gumbel_of(hash: u64) -> f64 {
    -(-uniform_of(hash).ln()).ln()
}

fn uniform_of(hash: u64) -> f64 {
    // 52 bits and a half are exact in f64; with 53 the last centre would round to 1, whose Gumbel noise is infinite.
    ((hash >> 12) as f64 + 0.5) * (0.5f64).powi(52)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_frozen() {
        // splitmix64 from state 0: the published first outputs.
        assert_eq!(mix(0), 0xe220_a839_7b1d_cdaf);
        assert_eq!(mix(WEYL), 0x6e78_9e6a_a1b9_65f4);
        let golden = [
            (SlotNoise::new(0, 0, 0), TokenId(0)),
            (SlotNoise::new(42, 0, 0), TokenId(7)),
            (SlotNoise::new(42, 1, 0), TokenId(7)),
            (SlotNoise::new(u64::MAX, 3, 4095), TokenId(49_151)),
        ]
        .map(|(noise, token)| noise.hash(token));
        assert_eq!(golden, GOLDEN_HASHES);
    }

    const GOLDEN_HASHES: [u64; 4] =
        [2_391_539_541_053_276_776, 4_750_131_251_579_153_869, 11_506_130_685_473_431_765, 3_124_825_411_632_378_309];

    #[test]
    fn the_bound_never_hides_the_winner() {
        for slot in 0..200 {
            let noise = SlotNoise::new(9, 0, slot);
            let logits: Vec<f64> =
                (0..500u64).map(|v| (mix(v ^ (slot << 20)) >> 11) as f64 / (1u64 << 50) as f64).collect();
            let all = || logits.iter().enumerate().map(|(v, &logit)| (TokenId(v as u32), logit));
            let likeliest = all().max_by(|a, b| a.1.total_cmp(&b.1)).unwrap();
            let plain =
                all().map(|(v, logit)| (v, logit + noise.gumbel(v))).max_by(|a, b| a.1.total_cmp(&b.1)).unwrap();
            assert_eq!(noise.argmax(likeliest, all()), plain.0, "slot {slot}");
        }
    }

    #[test]
    fn gumbel_is_finite_at_both_ends() {
        assert!(gumbel_of(0).is_finite() && gumbel_of(u64::MAX).is_finite());
        assert!(gumbel_of(0) < -3.0 && gumbel_of(u64::MAX) > 36.0);
    }
}
