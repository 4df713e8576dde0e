//! The fused kernels, run on the host, against compositions of the references.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod add_norm;
#[path = "../common/mod.rs"]
#[allow(dead_code, reason = "shared with the tests of attention")]
mod common;
mod qkv_finish;
mod swiglu_finish;
