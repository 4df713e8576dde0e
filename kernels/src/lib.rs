//! Compute kernels over candle tensors. All tensors are contiguous f32; weights may be quantised.
//!
//! | op | shapes | reference |
//! |---|---|---|
//! | [`PackedLinear`] | `[rows, in] -> [rows, out]`, weights f32 or ggml blocks | `ops/linear/reference.rs` |
//! | [`write_kv`] | `[rows, kv_heads, head_dim]` into `[pages, kv_heads, page_len, head_dim]` | `ops/attention/reference.rs` |
//! | [`attention`] | `[rows, heads, head_dim]` over pages `-> [rows, heads * head_dim]` | `ops/attention/reference.rs` |
//! | [`lla`] | as [`attention`], values may have a size of their own | `ops/lla/reference.rs` |
//! | [`parallax`] | as [`lla`], with a probe `[rows, heads, key_dim]` | `ops/lla/reference.rs` |
//! | [`swiglu`] | `[rows, 2 * ffn] -> [rows, ffn]` | `ops/swiglu/reference.rs` |
//! | [`rms_norm`] | `[.., dim] -> [.., dim]` | `ops/rms_norm/reference.rs` |
//! | [`rope`] | `[rows, heads, head_dim]`, same shape out; all features of a head or its first ones | `ops/rope/reference.rs` |
//!
//! # Devices
//!
//! With the feature `cuda` local linear attention and Parallax also have device kernels (`ops/lla/*.cu`), for f32, f16 and
//! bf16 and heads of up to 128 values: [`device`]. So has the reduction of logits to scores (`ops/score/*.cu`), whose CPU
//! side is the engine's sampler and whose reference is `ops/score/reference.rs`. They are tested by running them on the host (`device-tests`); no
//! number of a GPU has been measured.
//!
//! # Row invariance
//!
//! Every output row has the same bits whatever other rows share the call and however many threads run it: each output
//! value comes from one fixed sequence of operations, and tiles only decide which sequences run side by side. The
//! engine relies on it, because a token that is checked in a block must get the scores it would get alone.
//!
//! The vector levels ([`arch::CpuLevel`]) run the same sequence too, so they agree bit for bit.

pub mod arch;
mod cpu;
pub mod cuda;
pub mod device;
mod error;
mod ops;
mod tensor;

pub use error::KernelError;
pub use ops::{
    attention::{AttentionPlan, PlanRow, attention, write_kv},
    linear::{ActivationBits, GgmlType, PackedLinear, WeightFormat, dequantize},
    lla::{
        LlaDetails, LlaOutput, LlaPlan, LlaReport, LlaRow, LlaSequence, LlaSettings, LlaSolver, ParallaxOutput, Ridge,
        lla, parallax,
    },
    rms_norm::rms_norm,
    rope::rope,
    swiglu::swiglu,
};

/// The plain implementations that the tests compare every kernel with.
pub mod reference {
    pub use crate::ops::{
        attention::reference::{HeadShape, attention, write_kv},
        linear::reference::linear,
        lla::reference::{LlaGradients, LlaInputs, LlaShape, LlaSolution, lla, lla_gradients, parallax},
        rms_norm::reference::rms_norm,
        rope::reference::{RopeShape, rope},
        score::reference::score,
        swiglu::reference::swiglu,
    };
}
