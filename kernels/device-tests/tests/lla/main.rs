//! The device kernels of local linear attention, run on the host: the golden vectors, the reference on random data, the
//! laws of the operator, inputs made to break them, and the shim itself.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod case;
mod device;
mod golden;
mod parity;
mod properties;
mod room;
mod shim;

/// Says so and returns true where the kernels could not be compiled.
fn skipped() -> bool {
    if !device_tests::AVAILABLE {
        println!("skipped: no C++ compiler");
    }
    !device_tests::AVAILABLE
}
