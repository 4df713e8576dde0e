//! Token embeddings, which may double as the output head.

use candle_core::{Device, Tensor};
use kernels::PackedLinear;
use rayon::prelude::*;

use crate::{ModelError, TokenId};

/// A table of embeddings in the packed form of a linear layer, so that a tied head shares its memory.
#[derive(Debug)]
pub(crate) struct Embedding {
    table: PackedLinear,
}

impl Embedding {
    pub(crate) fn new(table: PackedLinear) -> Self {
        Self { table }
    }

    /// `[rows, hidden]`; ids must be inside the table.
    pub(crate) fn forward<'a>(&self, tokens: impl Iterator<Item = &'a TokenId>) -> Result<Tensor, ModelError> {
        let hidden = self.table.in_features();
        let ids: Vec<TokenId> = tokens.copied().collect();
        let mut rows = vec![0f32; ids.len() * hidden];
        rows.par_chunks_mut(hidden).zip(&ids).try_for_each(|(row, id)| self.table.row(id.0 as usize, row))?;
        Ok(Tensor::from_vec(rows, (ids.len(), hidden), &Device::Cpu)?)
    }

    /// Logits of `[rows, hidden]`: the tied head.
    pub(crate) fn head(&self, xs: &Tensor) -> Result<Tensor, ModelError> {
        Ok(self.table.apply(xs)?)
    }

    pub(crate) fn num_params(&self) -> usize {
        self.table.out_features() * self.table.in_features()
    }

    pub(crate) fn bytes(&self) -> usize {
        self.table.weight_bytes()
    }
}
