//! The shim notices what a device would punish, and rounds as the formats say.

use half::{bf16, f16};
use kernels::device::LlaParams;

use crate::skipped;

#[track_caller]
fn notices(kernel: &str, what: &str) {
    let error = device_tests::run_wrong(kernel).unwrap_err();
    assert!(error.contains(what), "{error}");
}

#[test]
fn mistakes_of_a_block_are_errors() {
    if skipped() {
        return;
    }
    notices("leaves_before_the_barrier", "deadlock");
    notices("meets_different_barriers", "different barriers");
    notices("shuffles_without_a_lane", "deadlock");
    notices("writes_past_shared_memory", "0 bytes past the shared memory");
    notices("none", "no such kernel");
}

#[test]
fn parameters_have_one_layout() {
    assert_eq!(device_tests::params_len(), size_of::<LlaParams>());
}

#[test]
fn numbers_round_to_nearest_even() {
    // Every half, and the numbers around the middle of each pair of neighbours.
    for bits in 0..=u16::MAX {
        let (low, high) = (f16::from_bits(bits).to_f32(), f16::from_bits(bits.wrapping_add(1)).to_f32());
        let middle = low / 2.0 + high / 2.0;
        for value in [low, middle, middle.next_up(), middle.next_down()] {
            let (got, expected) = (f16::from_bits(device_tests::to_half(value)), f16::from_f32(value));
            assert!(got.to_bits() == expected.to_bits() || got.is_nan() && expected.is_nan(), "{value}: {got}");
            let (got, expected) = (bf16::from_bits(device_tests::to_bfloat(value)), bf16::from_f32(value));
            assert!(got.to_bits() == expected.to_bits() || got.is_nan() && expected.is_nan(), "{value}: {got}");
        }
    }
    for value in [65519.9, 65520.0, 1e30, f32::INFINITY, 3.4e38, 1e-8, 2.98e-8, 2.99e-8, 0.0, -0.0] {
        assert_eq!(device_tests::to_half(value), f16::from_f32(value).to_bits(), "{value}");
        assert_eq!(device_tests::to_bfloat(value), bf16::from_f32(value).to_bits(), "{value}");
    }
}
