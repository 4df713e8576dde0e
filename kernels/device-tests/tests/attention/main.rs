//! Attention on a device, run on the host: the reference by the rule that an error is at most twice that of a plain
//! implementation with the same operands; the laws; recordings; what is refused.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod case;
#[path = "../common/mod.rs"]
#[allow(dead_code, reason = "shared with the tests of the fused kernels")]
mod common;
mod device;
mod laws;
mod parity;
