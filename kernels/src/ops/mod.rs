//! One folder per op: the checked entry, the plain reference, and the kernel.

pub(crate) mod attention;
pub(crate) mod linear;
pub(crate) mod lla;
pub(crate) mod rms_norm;
pub(crate) mod rope;
pub(crate) mod score;
pub(crate) mod swiglu;
