//! Shapes of models, and what of them an op is measured with.

use clap::ValueEnum;

/// A model whose sizes are measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Shape {
    /// HuggingFaceTB/SmolLM2-135M-Instruct
    #[value(name = "smollm2-135m")]
    SmolLm2,
    /// meta-llama/Llama-3.2-1B
    #[value(name = "llama-1b")]
    Llama1B,
    /// A model of nobody, for trying the command
    Tiny,
}

/// The sizes of a shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sizes {
    pub(super) hidden: usize,
    /// Inputs of the last product of the feed-forward layer.
    pub(super) inner: usize,
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) head_dim: usize,
    pub(super) vocab: usize,
}

/// One matrix product of a model: layers of one input are one matrix, as the models stack them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Matrix {
    pub(super) name: &'static str,
    pub(super) outputs: usize,
    pub(super) inputs: usize,
}

impl Shape {
    /// The name on the command line and in tables.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::SmolLm2 => "smollm2-135m",
            Self::Llama1B => "llama-1b",
            Self::Tiny => "tiny",
        }
    }

    /// From the `config.json` of the model.
    pub(super) fn sizes(self) -> Sizes {
        match self {
            Self::SmolLm2 => Sizes { hidden: 576, inner: 1536, heads: 9, kv_heads: 3, head_dim: 64, vocab: 49152 },
            Self::Llama1B => Sizes { hidden: 2048, inner: 8192, heads: 32, kv_heads: 8, head_dim: 64, vocab: 128_256 },
            Self::Tiny => Sizes { hidden: 64, inner: 256, heads: 4, kv_heads: 2, head_dim: 16, vocab: 300 },
        }
    }
}

impl Sizes {
    /// The products of a layer, and the head.
    pub(super) fn matrices(self) -> [Matrix; 5] {
        let (q, kv) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        [
            Matrix { name: "qkv", outputs: q + 2 * kv, inputs: self.hidden },
            Matrix { name: "output", outputs: self.hidden, inputs: q },
            Matrix { name: "gate and up", outputs: 2 * self.inner, inputs: self.hidden },
            Matrix { name: "down", outputs: self.hidden, inputs: self.inner },
            Matrix { name: "head", outputs: self.vocab, inputs: self.hidden },
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As published with the models, embeddings included; both heads are the embedding.
    #[test]
    fn shapes_have_the_published_numbers_of_parameters() {
        for (shape, layers, published) in [(Shape::SmolLm2, 30, 134.5e6), (Shape::Llama1B, 16, 1.236e9)] {
            let [qkv, output, gate_up, down, head] = shape.sizes().matrices().map(|m| m.outputs * m.inputs);
            let ratio = (layers * (qkv + output + gate_up + down) + head) as f64 / published;
            assert!((0.998..1.002).contains(&ratio), "{}: {ratio}", shape.name());
        }
    }
}
