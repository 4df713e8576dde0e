//! What the authors of each family decode with: the defaults of a request that leaves something open.

use models::AttentionKind;

use crate::{
    decode::commit::Schedule,
    request::{Policy, Remasking},
};

/// A family of diffusion models, as far as decoding differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    /// LLaDA, LLaDA-1.5, iLLaDA, LLaDA-MoE, and models that say nothing.
    Llada,
    /// Dream, Dream-Coder, DiffuCoder.
    Dream,
    /// SDAR, TraDo.
    Sdar,
    /// Fast-dLLM v2.
    FastDllm,
    /// LLaDA2.x.
    Llada2,
    /// Tiny A2D, trained with masks anywhere (mdlm).
    A2dFull,
    /// Tiny A2D, trained block by block (bd3lm).
    A2dBlocks,
}

impl Family {
    /// By the name in the model's spec.
    pub(super) fn of(name: &str, attention: AttentionKind) -> Self {
        match (name, attention) {
            ("dream", _) => Self::Dream,
            ("sdar", _) => Self::Sdar,
            ("fast_dllm_v2", _) => Self::FastDllm,
            ("llada2", _) => Self::Llada2,
            ("a2d", AttentionKind::BlockCausal { .. }) => Self::A2dBlocks,
            ("a2d", _) => Self::A2dFull,
            _ => Self::Llada,
        }
    }

    pub(super) fn policy(self) -> Policy {
        match self {
            Self::Llada | Self::Dream => Policy::LocalLeap,
            Self::Sdar | Self::FastDllm | Self::Llada2 | Self::A2dBlocks => Policy::Dynamic,
            Self::A2dFull => Policy::Threshold,
        }
    }

    /// κ of LocalLeap, the thresholds of Fast-dLLM, SDAR and LLaDA2.
    pub(super) fn threshold(self) -> f32 {
        match self {
            Self::Llada | Self::Dream | Self::FastDllm | Self::A2dFull | Self::A2dBlocks => 0.9,
            Self::Sdar => 0.85,
            Self::Llada2 => 0.95,
        }
    }

    /// τ of LocalLeap.
    pub(super) fn relaxed_threshold(self) -> f32 {
        match self {
            Self::Dream => 0.8,
            _ => 0.75,
        }
    }

    /// W of LocalLeap; small blocks would lie wholly within the published one.
    pub(super) fn radius(self) -> usize {
        match self {
            Self::Sdar | Self::FastDllm => 2,
            _ => 4,
        }
    }

    /// Slots decoded together; `unit_len` is the block that the model was trained with, if it was.
    pub(super) fn block_len(self, unit_len: usize) -> usize {
        match self {
            // Sub-blocks of a quarter: 8 of 32.
            Self::FastDllm if unit_len.is_multiple_of(4) => unit_len / 4,
            Self::Llada | Self::Dream | Self::A2dFull => unit_len.min(32),
            _ => unit_len,
        }
    }

    pub(super) fn schedule(self) -> Schedule {
        match self {
            Self::Dream => Schedule::Grid,
            Self::A2dFull | Self::A2dBlocks => Schedule::Linear,
            _ => Schedule::Even,
        }
    }

    /// Whether a schedule divides all slots of a block, also those of the prompt.
    pub(super) fn divides_whole_blocks(self) -> bool {
        matches!(self, Self::Sdar | Self::Llada2)
    }

    /// What the fixed quota ranks by.
    pub(super) fn remasking(self) -> Remasking {
        match self {
            Self::Dream => Remasking::Entropy,
            _ => Remasking::LowConfidence,
        }
    }

    /// Whether confidences are taken after temperature and filters.
    pub(super) fn filters_confidence(self) -> bool {
        !matches!(self, Self::Llada | Self::A2dFull | Self::A2dBlocks)
    }
}
