//! The matrix product on a device, `Y = X W^T`, and rows of `W` by token. `matmul.cuh` says how, `weight.cuh` in which
//! layout. A [`DeviceWeight`] is held in a [`DeviceFormat`], a [`DeviceLinear`] is one or several of them; [`matmul`] and
//! [`embed`] make launches.

mod launch;
mod pack;
pub(crate) mod reference;
mod weight;

pub(crate) use launch::KERNEL_NAMES;
pub use launch::{EmbedParams, MatmulParams, MatmulPart, RandomParams, embed, matmul};
pub use weight::{DeviceFormat, DeviceLinear, DeviceWeight, padded};

const OP: &str = "matmul";
