//! One folder per op: the checked entry, the plain reference, and the kernel.

pub(crate) mod attention;
pub(crate) mod fused;
pub(crate) mod linear;
pub(crate) mod lla;
pub(crate) mod matmul;
pub(crate) mod partials;
pub(crate) mod rms_norm;
pub(crate) mod rope;
pub(crate) mod score;
pub(crate) mod swiglu;
