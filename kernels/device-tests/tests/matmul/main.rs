//! The device kernels of the matrix product, run on the host: against the reference on random data, the same bits for a
//! row in any company, the layout of weights, and what is refused.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod case;
mod invariance;
mod parity;
mod refusals;
mod weights;

/// Says so and returns true where the kernels could not be compiled.
fn skipped() -> bool {
    if !device_tests::AVAILABLE {
        println!("skipped: no C++ compiler");
    }
    !device_tests::AVAILABLE
}
