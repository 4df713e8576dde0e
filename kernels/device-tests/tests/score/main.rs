//! The kernels that reduce logits, run on the host: the reference on random rows and on rows made to break them, the law
//! that a row's result does not depend on its batch, and what is refused.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod case;
mod choice;
mod confidence;
mod invariance;
mod limits;
mod logprobs;

/// Says so and returns true where the kernels could not be compiled.
fn skipped() -> bool {
    if !device_tests::AVAILABLE {
        println!("skipped: no C++ compiler");
    }
    !device_tests::AVAILABLE
}
