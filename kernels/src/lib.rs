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
//! With the feature `cuda` these ops also have device kernels, which [`device`] launches:
//!
//! | op | kernels | types |
//! |---|---|---|
//! | local linear attention and Parallax | `ops/lla/*.cu` | f32, f16, bf16; heads of up to 128 values |
//! | [attention](device::attention) | `ops/attention/*.cu` | f16, bf16; heads of up to 128 values |
//! | [matrix product](device::matmul), [rows by token](device::embed) | `ops/matmul/*.cu` | weights f16, bf16, Q8_0, Q4_K |
//! | what lies between matrix products: [norm](device::add_norm), [q, k and v](device::qkv_finish), [swiglu](device::swiglu_finish) | `ops/fused/*.cu` | f32 in, f16 or bf16 out |
//! | [logits to scores](device::ScoreBatch), with the engine's sampler as the CPU side | `ops/score/*.cu` | f32 |
//!
//! They are tested by running them on the host (`device-tests`); no number of a GPU has been measured.
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

pub use cpu::peak;
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
        matmul::reference::{matmul, random_weight},
        rms_norm::reference::rms_norm,
        rope::reference::{RopeShape, rope},
        score::reference::score,
        swiglu::reference::swiglu,
    };
}
