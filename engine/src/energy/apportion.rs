//! Exact division of whole microjoules.

/// Divides `total` by `weights` with the method of the largest remainder; ties go to the first. The parts sum to `total`
/// exactly, unless all weights are zero: then nothing is given to anybody.
pub(crate) fn apportion(total: u64, weights: &[u128]) -> Vec<u64> {
    // Products must fit: weights lose low bits that no microjoule could show.
    let bits = |value: u128| u128::BITS - value.leading_zeros();
    let largest = weights.iter().copied().max().unwrap_or(0);
    let of_sum = bits(largest) + bits(weights.len() as u128);
    let shift = (of_sum + bits(u128::from(total))).saturating_sub(127);
    let sum: u128 = weights.iter().map(|weight| weight >> shift).sum();
    if sum == 0 {
        return vec![0; weights.len()];
    }
    let products = weights.iter().map(|weight| (weight >> shift) * u128::from(total));
    let mut parts = Vec::with_capacity(weights.len());
    let mut remainders: Vec<(usize, u128)> = Vec::with_capacity(weights.len());
    for (index, product) in products.enumerate() {
        parts.push((product / sum) as u64);
        remainders.push((index, product % sum));
    }
    let given: u64 = parts.iter().sum();
    // Stable, so that of equal remainders the first wins.
    remainders.sort_by_key(|(_, remainder)| std::cmp::Reverse(*remainder));
    for (index, _) in remainders.into_iter().take((total - given) as usize) {
        parts[index] += 1;
    }
    parts
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn remainders_go_to_the_largest_and_then_to_the_first() {
        assert_eq!(apportion(10, &[1, 1, 1]), [4, 3, 3]);
        assert_eq!(apportion(1_000_001, &[2, 3, 5]), [200_000, 300_000, 500_001]);
        assert_eq!(apportion(0, &[1, 2]), [0, 0]);
        assert_eq!(apportion(7, &[0, 0]), [0, 0]);
        assert_eq!(apportion(7, &[0, 3]), [0, 7]);
        assert!(apportion(7, &[]).is_empty());
    }

    proptest! {
        #[test]
        fn parts_sum_to_the_whole_and_are_near_their_share(
            total in any::<u64>(),
            weights in prop::collection::vec(prop_oneof![Just(0u128), 1u128..1000, 0..=(1u128 << 100)], 1..40),
        ) {
            let parts = apportion(total, &weights);
            if weights.iter().all(|weight| *weight == 0) {
                prop_assert!(parts.iter().all(|part| *part == 0));
                return Ok(());
            }
            prop_assert_eq!(parts.iter().map(|part| u128::from(*part)).sum::<u128>(), u128::from(total));
            let sum: f64 = weights.iter().map(|weight| *weight as f64).sum();
            for (part, weight) in parts.iter().zip(&weights) {
                let share = total as f64 * (*weight as f64 / sum);
                prop_assert!((*part as f64 - share).abs() <= 1.0 + 1e-12 * total as f64);
                prop_assert!(*weight > 0 || *part == 0);
            }
        }
    }
}
