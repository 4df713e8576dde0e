//! The contract between a model and the engine: what one forward pass takes and returns.

use std::ops::Range;

use kernels::device::{DeviceFacts, ScoreQuery, ScoreResult};

use crate::{KvCache, ModelError, PageId, SolverReport, TokenId, source::memory};

/// Wires weights into one forward pass. Knows nothing of decoding strategies.
pub trait Backbone: Send {
    /// Facts about the model that never change after loading.
    fn spec(&self) -> &BackboneSpec;

    /// One pass over packed rows.
    ///
    /// Writes the keys and values of every row at the row's position into `kv` (overwriting what was there), and
    /// returns one row of logits for every scored row of the batch, in batch order: segment by segment, ascending
    /// positions. Row `i` of the result already accounts for the family's logit alignment: under
    /// [`LogitAlignment::SameSlot`] it scores the slot of its own row, under [`LogitAlignment::NextSlot`] the slot
    /// after it.
    ///
    /// A row's logits depend only on the tokens that the row can see, never on which other rows share the batch.
    fn forward(&mut self, batch: &ForwardBatch<'_>, kv: &mut KvCache) -> Result<Logits, ModelError>;

    /// Makes room for passes of up to `capacity`, once, before the first pass: the KV cache, and whatever else the
    /// passes need beside the weights. Nothing is allocated later, so no request can fail for want of memory.
    ///
    /// # Errors
    /// If it does not fit, with the sizes.
    fn reserve(&mut self, capacity: Capacity) -> Result<KvCache, ModelError> {
        let layout = self.spec().kv;
        memory::check_cache(capacity.kv_bytes(layout))?;
        KvCache::new(layout, capacity.num_pages, capacity.page_len)
    }

    /// The device that runs it; `None` is the processor.
    fn device(&self) -> Option<&DeviceFacts> {
        None
    }

    /// Passes whose logits stay where they are computed; `None` for a model that gives logits to the host.
    fn scorer(&mut self) -> Option<&mut dyn RowScorer> {
        None
    }
}

/// A model that reduces its logits itself, on the device that computes them.
pub trait RowScorer {
    /// [`Backbone::forward`] and the scores of its scored rows, in the same order. `queries` is called once, while the
    /// device works, and gives one query a scored row.
    ///
    /// # Errors
    /// Those of a forward pass, and if there is not one query a row or one is out of its range.
    fn forward_scored(
        &mut self,
        batch: &ForwardBatch<'_>,
        kv: &mut KvCache,
        queries: &mut dyn FnMut() -> Vec<ScoreQuery>,
    ) -> Result<ScoredRows, ModelError>;
}

/// What a pass that is scored on a device gives.
#[derive(Debug, Clone, Default)]
pub struct ScoredRows {
    /// One a scored row.
    pub rows: Vec<ScoreResult>,
    /// As [`Logits::solver`].
    pub solver: Option<SolverReport>,
}

/// What the passes of a model must have room for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    /// Rows of a pass.
    pub max_rows: usize,
    /// Page tables of a pass: its segments.
    pub max_tables: usize,
    /// Positions of a sequence.
    pub context_len: usize,
    /// Pages of the KV cache.
    pub num_pages: usize,
    /// Positions of a page.
    pub page_len: usize,
}

impl Capacity {
    /// Bytes of the KV cache.
    pub fn kv_bytes(&self, layout: KvLayout) -> usize {
        self.num_pages.saturating_mul(self.page_len).saturating_mul(layout.bytes_per_token())
    }
}

/// What the engine must know of a model to drive it.
#[derive(Debug, Clone, PartialEq)]
pub struct BackboneSpec {
    /// Name of the family as its config spells it, for example `llama`.
    pub family: String,
    /// Width of a row of logits, in tokens.
    pub vocab_size: usize,
    /// Longest sequence (prompt and completion) the model may see, in tokens.
    pub context_len: usize,
    /// What a row may see.
    pub attention: AttentionKind,
    /// Which slot a row of logits scores.
    pub alignment: LogitAlignment,
    /// The token that marks an undecided slot; only diffusion models have one.
    pub mask_id: Option<TokenId>,
    /// Shape of the keys and values that one position stores.
    pub kv: KvLayout,
    /// Whether its attention solves a system for each query, so that passes come with a [`SolverReport`].
    pub has_solver: bool,
    /// Number of parameters, embeddings included, each counted once.
    pub num_params: usize,
    /// Of these, the parameters that one row goes through: all but the experts that it does not choose.
    pub num_active_params: usize,
    /// Width of all query heads of a layer together.
    pub attention_dim: usize,
    /// Memory that the weights occupy, in bytes.
    pub weight_bytes: usize,
}

/// The visibility pattern a family was trained with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttentionKind {
    /// A row sees itself and everything before it.
    Causal,
    /// A row sees every block up to and including its own.
    BlockCausal {
        /// Block length the model was trained with, in tokens.
        block_len: usize,
        /// Where its blocks are counted from.
        origin: BlockOrigin,
    },
    /// Every row sees every other.
    Full,
}

/// Where the blocks of a block-causal model are counted from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockOrigin {
    /// From position 0: a prompt that ends within a block shares it with the first generated tokens.
    Start,
    /// From the end of the prompt, forwards and backwards: the first block of the prompt may be short.
    PromptEnd,
}

impl BlockOrigin {
    /// The first block border that is not a whole number of blocks away from position 0, for a prompt of `prompt_len`
    /// tokens: the `origin` of [`Visibility::Blocks`].
    pub fn position(self, prompt_len: usize, block_len: usize) -> usize {
        match self {
            Self::Start => 0,
            Self::PromptEnd => prompt_len % block_len,
        }
    }
}

/// Which slot row `i` of a forward pass predicts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogitAlignment {
    /// Row `i` scores slot `i + 1`: causal language models.
    NextSlot,
    /// Row `i` scores slot `i`: masked diffusion models.
    SameSlot,
}

/// Shape of the KV storage of one position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvLayout {
    /// Number of transformer layers.
    pub num_layers: usize,
    /// Number of key/value heads.
    pub num_kv_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Bytes of one value.
    pub element_bytes: usize,
}

impl KvLayout {
    /// Bytes that one position occupies over all layers, keys and values.
    pub fn bytes_per_token(&self) -> usize {
        self.num_layers * self.num_kv_heads * self.head_dim * 2 * self.element_bytes
    }
}

/// Which positions the rows of a segment see. Every pattern is a prefix `0..end` of the sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Visibility {
    /// The row at position `p` sees `0..=p`.
    Causal,
    /// Every row sees `0..end`: a bidirectional canvas, or one block of a block-causal model.
    Through(usize),
    /// The row at position `p` sees everything up to the end of its own block, clipped to the end of the segment.
    Blocks {
        /// Position where block 0 starts.
        origin: usize,
        /// Tokens per block, at least 1.
        block_len: usize,
    },
}

impl Visibility {
    /// One past the last position that the row at `position` sees, in a segment that ends before `segment_end`.
    pub fn end(&self, position: usize, segment_end: usize) -> usize {
        match *self {
            Self::Causal => position + 1,
            Self::Through(end) => end,
            Self::Blocks { origin, block_len } => match position.checked_sub(origin) {
                None => origin.min(segment_end),
                Some(offset) => (origin + (offset / block_len + 1) * block_len).min(segment_end),
            },
        }
    }
}

/// The rows of one sequence within a batch: consecutive positions `start..start + tokens.len()`.
#[derive(Debug, Clone)]
pub struct Segment<'a> {
    /// Tokens to feed, one a row.
    pub tokens: &'a [TokenId],
    /// Absolute position of the first row. Positions below it must already be in the KV cache.
    pub start: usize,
    /// What each row sees.
    pub visibility: Visibility,
    /// Rows (indices into `tokens`) whose logits are wanted; may be empty.
    pub scored: Range<usize>,
    /// Pages that hold the sequence's positions: position `p` lies in `pages[p / page_len]`.
    pub pages: &'a [PageId],
}

impl Segment<'_> {
    /// One past the last position of the segment.
    pub fn end(&self) -> usize {
        self.start + self.tokens.len()
    }
}

/// Rows of any number of sequences, packed into one pass without padding.
#[derive(Debug, Clone, Default)]
pub struct ForwardBatch<'a> {
    /// One segment a sequence.
    pub segments: Vec<Segment<'a>>,
}

impl ForwardBatch<'_> {
    /// Total number of rows.
    pub fn num_rows(&self) -> usize {
        self.segments.iter().map(|segment| segment.tokens.len()).sum()
    }

    /// Number of rows whose logits are wanted.
    pub fn num_scored(&self) -> usize {
        self.segments.iter().map(|segment| segment.scored.len()).sum()
    }

    /// Checks what every backbone relies on: no empty segment, known tokens, scored rows in range, context length
    /// kept, and pages that cover every position a row writes or sees.
    pub fn check(&self, spec: &BackboneSpec, kv: &KvCache) -> Result<(), ModelError> {
        for segment in &self.segments {
            let end = segment.end();
            let seen = match segment.visibility {
                Visibility::Through(through) => through.max(end),
                Visibility::Causal | Visibility::Blocks { .. } => end,
            };
            let is_outside = segment.scored.end > segment.tokens.len() || segment.scored.start > segment.scored.end;
            if segment.tokens.is_empty() || is_outside {
                return Err(ModelError::BadSegment { rows: segment.tokens.len(), scored: segment.scored.clone() });
            }
            if seen > spec.context_len {
                return Err(ModelError::ContextExceeded { end: seen, context_len: spec.context_len });
            }
            let needed = seen.div_ceil(kv.page_len());
            if segment.pages.len() < needed {
                return Err(ModelError::MissingPages { needed, got: segment.pages.len() });
            }
            for token in segment.tokens {
                if token.0 as usize >= spec.vocab_size {
                    return Err(ModelError::TokenOutOfRange { token: *token, vocab_size: spec.vocab_size });
                }
            }
            for page in segment.pages {
                if page.0 as usize >= kv.num_pages() {
                    return Err(ModelError::PageOutOfRange { page: *page, num_pages: kv.num_pages() });
                }
            }
        }
        Ok(())
    }
}

/// Scores of the wanted rows, `[rows, vocab]`, f32, on the host; and how the pass that made them fared.
#[derive(Debug, Clone, PartialEq)]
pub struct Logits {
    values: Vec<f32>,
    vocab_size: usize,
    solver: Option<SolverReport>,
}

impl Logits {
    /// Takes `rows * vocab_size` values, row by row.
    pub fn new(values: Vec<f32>, vocab_size: usize) -> Result<Self, ModelError> {
        if vocab_size == 0 || !values.len().is_multiple_of(vocab_size) {
            return Err(ModelError::BadLogits { len: values.len(), vocab_size });
        }
        Ok(Self { values, vocab_size, solver: None })
    }

    /// The same with the report of the pass's solvers.
    pub fn with_solver(self, report: SolverReport) -> Self {
        Self { solver: Some(report), ..self }
    }

    /// How the systems of the pass fared, over all rows, also those that are not scored; `None` unless the model's
    /// attention solves systems ([`BackboneSpec::has_solver`]).
    pub fn solver(&self) -> Option<&SolverReport> {
        self.solver.as_ref()
    }

    /// Number of rows.
    pub fn num_rows(&self) -> usize {
        self.values.len() / self.vocab_size
    }

    /// Row `i`, `vocab_size` long.
    pub fn row(&self, i: usize) -> &[f32] {
        &self.values[i * self.vocab_size..(i + 1) * self.vocab_size]
    }

    /// All values, row by row.
    pub fn values(&self) -> &[f32] {
        &self.values
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn visibility_is_always_a_prefix() {
        assert_eq!(Visibility::Causal.end(4, 9), 5);
        assert_eq!(Visibility::Through(9).end(4, 9), 9);
        let blocks = Visibility::Blocks { origin: 3, block_len: 4 };
        assert_eq!(blocks.end(1, 20), 3, "before the first block: the prompt");
        assert_eq!(blocks.end(3, 20), 7);
        assert_eq!(blocks.end(6, 20), 7);
        assert_eq!(blocks.end(7, 20), 11);
        assert_eq!(blocks.end(19, 20), 20, "the last block is clipped to what exists");
    }

    #[test]
    fn logits_reject_a_ragged_length() {
        assert!(Logits::new(vec![0.0; 7], 3).is_err());
        let logits = Logits::new(vec![1.0, 2.0, 3.0, 4.0], 2).expect("two rows");
        assert_eq!((logits.num_rows(), logits.row(1)), (2, &[3.0, 4.0][..]));
    }
}
