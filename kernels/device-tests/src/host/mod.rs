//! The kernels as the build script compiled them, or their absence.

#[cfg(not(has_cxx))]
mod disabled;
#[cfg(has_cxx)]
mod enabled;

#[cfg(not(has_cxx))]
pub(crate) use disabled::*;
#[cfg(has_cxx)]
pub(crate) use enabled::*;
